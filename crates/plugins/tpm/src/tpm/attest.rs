//! What a TPM says under its own signature: TPMS_ATTEST (part 2, section 10.12.12) and TPMT_SIGNATURE (section
//! 11.3.4).

use super::alg;
use super::buffer::{DecodeError, Reader, Short};

/// The magic of what a TPM made itself. A restricted key signs nothing else that begins with it.
const GENERATED: u32 = 0xff54_4347;
/// TPM_ST_ATTEST_CERTIFY
const CERTIFY: u16 = 0x8017;

fn short(part: &'static str) -> impl Fn(Short) -> DecodeError {
    move |short| DecodeError::Short(part, short)
}

/// The name of the key that a TPM certified with TPM2_Certify; nothing when it attested something else.
pub(crate) fn certified_name(attested: &[u8]) -> Result<Option<&[u8]>, DecodeError> {
    let mut reader = Reader::new(attested);
    let head = short("Magic/Type");
    let magic = reader.u32().map_err(&head)?;
    let kind = reader.u16().map_err(&head)?;
    if magic != GENERATED {
        return Err(DecodeError::Magic(magic));
    }
    reader.sized().map_err(short("QualifiedSigner"))?;
    let middle = short("ExtraData/ClockInfo/FirmwareVersion");
    reader.sized().map_err(&middle)?;
    reader.u64().map_err(&middle)?;
    reader.u32().map_err(&middle)?;
    reader.u32().map_err(&middle)?;
    reader.u8().map_err(&middle)?;
    reader.u64().map_err(&middle)?;
    if kind != CERTIFY {
        return Ok(None);
    }
    let name = reader.sized().map_err(short("AttestedCertifyInfo: decoding Name"))?;
    reader.sized().map_err(short("AttestedCertifyInfo: decoding QualifiedName"))?;
    reader.finish("TPMS_ATTEST")?;
    Ok(Some(name))
}

/// A signature as a TPM gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signature<'a> {
    /// PKCS#1 v1.5 or PSS.
    Rsa { algorithm: u16, signature: &'a [u8] },
    /// Two big-endian magnitudes.
    Ecdsa { r: &'a [u8], s: &'a [u8] },
}

impl<'a> Signature<'a> {
    /// Reads a whole TPMT_SIGNATURE.
    pub(crate) fn decode(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let algorithm = reader.u16().map_err(short("Alg"))?;
        let signature = match algorithm {
            alg::RSASSA | alg::RSAPSS => {
                let part = short("RSA");
                reader.u16().map_err(&part)?;
                Self::Rsa { algorithm, signature: reader.sized().map_err(&part)? }
            }
            alg::ECDSA => {
                let part = short("ECC");
                reader.u16().map_err(&part)?;
                Self::Ecdsa { r: reader.sized().map_err(&part)?, s: reader.sized().map_err(&part)? }
            }
            other => return Err(DecodeError::SignatureAlgorithm(other)),
        };
        reader.finish("TPMT_SIGNATURE")?;
        Ok(signature)
    }

    /// As X.509 has signatures: RSA's bytes, or the DER of both numbers. Nothing when a number is longer than any
    /// curve's.
    pub(crate) fn to_x509(self) -> Option<Vec<u8>> {
        let (r, s) = match self {
            Self::Rsa { signature, .. } => return Some(signature.to_vec()),
            Self::Ecdsa { r, s } => (r, s),
        };
        let mut body = Vec::with_capacity(144);
        for number in [r, s] {
            let digits = &number[number.iter().take_while(|byte| **byte == 0).count()..];
            // P-521 has 66 bytes.
            if digits.len() > 66 {
                return None;
            }
            let sign = digits.first().is_none_or(|byte| *byte >= 0x80);
            body.extend_from_slice(&[0x02, u8::try_from(digits.len()).ok()? + u8::from(sign)]);
            body.extend(sign.then_some(0));
            body.extend_from_slice(digits);
        }
        let len = u8::try_from(body.len()).ok()?;
        let header: &[u8] = if len < 0x80 { &[0x30, len] } else { &[0x30, 0x81, len] };
        Some([header, &body].concat())
    }
}
