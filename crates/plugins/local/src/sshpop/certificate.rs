//! OpenSSH certificates (OpenSSH's PROTOCOL.certkeys), parsed strictly and checked as x/crypto/ssh checks a host's.

use std::collections::BTreeMap;

use aws_lc_rs::digest;
use spire_compat::quote::quote;

use super::Signature;
use super::key::{PublicKey, Purpose};
use super::wire::{Reader, SHORT};
use crate::json::Base64;

/// The largest certificate. One of RSA keys with 8,192 bits has 5 KiB.
pub(super) const CERTIFICATE_MAX: usize = 64 * 1024;

/// How many principals, options and extensions are read.
const NAMES_MAX: usize = 256;

const HOST: u32 = 2;

/// Certificates without an end.
const INFINITY: u64 = u64::MAX;

/// Types of certificates with the type of their keys.
const TYPES: [(&str, &str); 7] = [
    ("ssh-rsa-cert-v01@openssh.com", "ssh-rsa"),
    ("ecdsa-sha2-nistp256-cert-v01@openssh.com", "ecdsa-sha2-nistp256"),
    ("ecdsa-sha2-nistp384-cert-v01@openssh.com", "ecdsa-sha2-nistp384"),
    ("ecdsa-sha2-nistp521-cert-v01@openssh.com", "ecdsa-sha2-nistp521"),
    ("ssh-ed25519-cert-v01@openssh.com", "ssh-ed25519"),
    ("sk-ecdsa-sha2-nistp256-cert-v01@openssh.com", "sk-ecdsa-sha2-nistp256@openssh.com"),
    ("sk-ssh-ed25519-cert-v01@openssh.com", "sk-ssh-ed25519@openssh.com"),
];

/// A certificate. It proves nothing before [`Certificate::check_host`].
#[derive(Clone, Debug)]
pub(super) struct Certificate {
    blob: Vec<u8>,
    /// How much of the blob is signed.
    signed: usize,
    pub(super) type_name: &'static str,
    pub(super) nonce: Vec<u8>,
    pub(super) key: PublicKey,
    pub(super) serial: u64,
    pub(super) cert_type: u32,
    pub(super) key_id: String,
    pub(super) principals: Vec<String>,
    pub(super) valid_after: u64,
    pub(super) valid_before: u64,
    pub(super) critical_options: BTreeMap<String, String>,
    pub(super) extensions: BTreeMap<String, String>,
    pub(super) reserved: Vec<u8>,
    signature_key_blob: Vec<u8>,
    signature_key: PublicKey,
    signature: Signature,
}

/// Whether a key's type is that of a certificate.
pub(super) fn is_certificate_type(key_type: &str) -> bool {
    TYPES.iter().any(|(certificate, _)| *certificate == key_type)
}

impl Certificate {
    /// Parses a certificate. `None` for a key that is no certificate.
    ///
    /// # Errors
    /// The text of x/crypto/ssh where it has one.
    pub(super) fn parse(blob: &[u8]) -> Result<Option<Self>, String> {
        if blob.len() > CERTIFICATE_MAX {
            return Err(format!("ssh: certificate is larger than {CERTIFICATE_MAX} bytes"));
        }
        let mut reader = Reader(blob);
        let type_name = reader.text()?;
        let Some((type_name, key_type)) = TYPES.into_iter().find(|(name, _)| *name == type_name) else {
            return PublicKey::parse(blob).map(|_| None);
        };
        let nonce = reader.string()?.to_vec();
        let key = PublicKey::parse_body(key_type, &mut reader)?;
        let (serial, cert_type, key_id) = (reader.u64()?, reader.u32()?, reader.text()?.to_owned());
        let principals = principals(reader.string()?)?;
        let (valid_after, valid_before) = (reader.u64()?, reader.u64()?);
        let critical_options = options(reader.string()?)?;
        let extensions = options(reader.string()?)?;
        let reserved = reader.string()?.to_vec();
        let signature_key_blob = reader.string()?.to_vec();
        let signed = blob.len() - reader.0.len();
        let signature = signature(reader.string()?)?;
        if !reader.is_empty() {
            return Err("ssh: trailing junk in certificate".to_owned());
        }
        let signer = Reader(&signature_key_blob).text()?;
        if is_certificate_type(signer) {
            return Err(format!("ssh: the signature key type {} is invalid for certificates", quote(signer)));
        }
        let signature_key = PublicKey::parse(&signature_key_blob)?;
        Ok(Some(Self {
            blob: blob.to_vec(),
            signed,
            type_name,
            nonce,
            key,
            serial,
            cert_type,
            key_id,
            principals,
            valid_after,
            valid_before,
            critical_options,
            extensions,
            reserved,
            signature_key_blob,
            signature_key,
            signature,
        }))
    }

    /// The certificate as SSH has it on the wire.
    pub(super) fn blob(&self) -> &[u8] {
        &self.blob
    }

    /// The SHA-256 of the certificate.
    pub(super) fn fingerprint(&self) -> digest::Digest {
        digest::digest(&digest::SHA256, &self.blob)
    }

    /// Checks that one of the authorities made this certificate for a host of the name of its first principal, and that it
    /// is valid at `now` in seconds since 1970 (ssh.CertChecker).
    ///
    /// # Errors
    /// The text of x/crypto/ssh.
    pub(super) fn check_host(&self, authorities: &[Vec<u8>], now: i64) -> Result<&str, String> {
        if self.cert_type != HOST {
            return Err(format!("ssh: certificate presented as a host key has type {}", self.cert_type));
        }
        let name = self.principals.first().ok_or("cert has no valid principals")?;
        if !authorities.contains(&self.signature_key_blob) {
            return Err(format!("ssh: no authorities for hostname: {name}:22"));
        }
        if name.contains([':', '[', ']']) {
            return Err(format!("address {name}:22: too many colons in address"));
        }
        let supported = |option: &&String| option.as_str() == "source-address";
        if let Some(option) = self.critical_options.keys().find(|option| !supported(option)) {
            return Err(format!("ssh: unsupported critical option {} in certificate", quote(option)));
        }
        if i64::try_from(self.valid_after).is_ok_and(|after| now >= after) {
            let expired = i64::try_from(self.valid_before).map_or(true, |before| now >= before);
            if self.valid_before != INFINITY && expired {
                return Err("ssh: cert has expired".to_owned());
            }
        } else {
            return Err("ssh: cert is not yet valid".to_owned());
        }
        self.signature_key
            .verify(&self.blob[..self.signed], &self.signature, Purpose::Certificate)
            .map_err(|_| "ssh: certificate signature does not verify".to_owned())?;
        Ok(name)
    }
}

fn principals(list: &[u8]) -> Result<Vec<String>, String> {
    let mut reader = Reader(list);
    let mut names = Vec::new();
    while !reader.is_empty() {
        if names.len() == NAMES_MAX {
            return Err("ssh: too many principals".to_owned());
        }
        names.push(reader.text()?.to_owned());
    }
    Ok(names)
}

/// Names in lexical order, each with a value that is a string in a string, or nothing.
fn options(list: &[u8]) -> Result<BTreeMap<String, String>, String> {
    let mut reader = Reader(list);
    let mut options: BTreeMap<String, String> = BTreeMap::new();
    while !reader.is_empty() {
        if options.len() == NAMES_MAX {
            return Err("ssh: too many certificate options".to_owned());
        }
        let name = reader.text()?;
        if options.last_key_value().is_some_and(|(last, _)| name <= last.as_str()) {
            return Err("ssh: certificate options are not in lexical order".to_owned());
        }
        let data = reader.string()?;
        let value = if data.is_empty() {
            String::new()
        } else {
            let mut inner = Reader(data);
            let value = inner.text()?.to_owned();
            if !inner.is_empty() {
                return Err("ssh: unexpected trailing data after certificate option value".to_owned());
            }
            if value.is_empty() {
                // The reference would write it back without, and have another fingerprint.
                return Err(SHORT.to_owned());
            }
            value
        };
        options.insert(name.to_owned(), value);
    }
    Ok(options)
}

fn signature(blob: &[u8]) -> Result<Signature, String> {
    const BAD: &str = "ssh: signature parse error";
    let mut reader = Reader(blob);
    let format = reader.text().map_err(|_| BAD)?.to_owned();
    let blob = Base64(reader.string().map_err(|_| BAD)?.to_vec());
    let rest = if format.starts_with("sk-") {
        Some(Base64(reader.0.to_vec()))
    } else if reader.is_empty() {
        None
    } else {
        return Err(BAD.to_owned());
    };
    Ok(Signature { format, blob, rest })
}
