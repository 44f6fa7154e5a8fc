//! What pruning and tainting need of an X.509 authority: its subject key ID, expiry and serial number.

use der::{Decode, Reader, SliceReader};
use spire_core::time::Timestamp;
use spire_ports::datastore::Error;
use x509_cert::Certificate;
use x509_cert::ext::pkix::SubjectKeyIdentifier;

use crate::fault::Sql;

/// The facts of one certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CertificateFacts {
    /// Subject key identifier, lower-case hex; empty when the certificate has none.
    pub(crate) subject_key_id: String,
    /// When it expires.
    pub(crate) not_after: Timestamp,
    /// Serial number, decimal.
    pub(crate) serial_number: String,
}

/// Reads the certificates of an authority: one, or in old databases several in a row.
pub(crate) fn certificates(der: &[u8]) -> Sql<Vec<CertificateFacts>> {
    let unreadable = |error: der::Error| Error::Internal(format!("cannot parse certificates: {error}"));
    let mut reader = SliceReader::new(der).map_err(unreadable)?;
    let mut all = Vec::new();
    while !reader.is_finished() {
        let certificate = Certificate::decode(&mut reader).map_err(unreadable)?;
        let tbs = certificate.tbs_certificate();
        let subject_key_id = tbs
            .get_extension::<SubjectKeyIdentifier>()
            .map_err(unreadable)?
            .map(|(_critical, id)| hex(id.0.as_bytes()))
            .unwrap_or_default();
        let not_after = tbs.validity().not_after.to_unix_duration().as_secs();
        all.push(CertificateFacts {
            subject_key_id,
            not_after: Timestamp::from_unix(i64::try_from(not_after).unwrap_or(i64::MAX)),
            serial_number: decimal(tbs.serial_number().as_bytes()),
        });
    }
    Ok(all)
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A big-endian number in decimal, by repeated division.
fn decimal(number: &[u8]) -> String {
    let mut digits = vec![0_u8];
    for byte in number {
        let mut carry = u32::from(*byte);
        for digit in &mut digits {
            let value = u32::from(*digit) * 256 + carry;
            *digit = u8::try_from(value % 10).unwrap_or(0);
            carry = value / 10;
        }
        while carry > 0 {
            digits.push(u8::try_from(carry % 10).unwrap_or(0));
            carry /= 10;
        }
    }
    digits.iter().rev().map(|digit| char::from(b'0' + digit)).collect()
}

#[cfg(test)]
mod tests {
    use super::decimal;

    #[test]
    fn serial_numbers_print_in_decimal() {
        assert_eq!(decimal(&[0]), "0");
        assert_eq!(decimal(&[1, 0]), "256");
        assert_eq!(decimal(&[0xff; 16]), "340282366920938463463374607431768211455");
    }
}
