//! Public keys of SSH and what they verify (RFC 4253, 5656, 8332, 8709; OpenSSH's PROTOCOL.u2f).

use aws_lc_rs::digest;
use aws_lc_rs::signature::{self, RsaPublicKeyComponents, UnparsedPublicKey, VerificationAlgorithm};
use spire_compat::quote::quote;

use super::Signature;
use super::wire::Reader;
use crate::x509pop::ecdsa_der;

/// The largest RSA modulus that is looked at, in bytes; the reference takes twice that.
const RSA_BYTES_MAX: usize = 1024;

/// The smallest.
const RSA_BYTES_MIN: usize = 256;

const RSA: &str = "ssh-rsa";
const ED25519: &str = "ssh-ed25519";
const SK_ECDSA: &str = "sk-ecdsa-sha2-nistp256@openssh.com";
const SK_ED25519: &str = "sk-ssh-ed25519@openssh.com";

/// Of a security key's flags: somebody touched it.
const USER_PRESENT: u8 = 1;

/// What a signature is for, which decides how strict its check is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// An authority's over a certificate: it must not be of SHA-1, and nobody needs to have touched a security key.
    Certificate,
    /// A host's over two nonces: the reference's agents sign with SHA-1, which does no harm where the server chose half of
    /// what is signed.
    Challenge,
}

/// A public key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PublicKey {
    kind: Kind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    Rsa { e: Vec<u8>, n: Vec<u8> },
    Ecdsa { curve: Curve, point: Vec<u8> },
    Ed25519(Vec<u8>),
    SkEcdsa { point: Vec<u8>, application: String },
    SkEd25519 { key: Vec<u8>, application: String },
}

/// The curves that SSH uses, each with one hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Curve {
    P256,
    P384,
    P521,
}

impl Curve {
    pub(super) const ALL: [Self; 3] = [Self::P256, Self::P384, Self::P521];

    /// The name of the curve.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::P256 => "nistp256",
            Self::P384 => "nistp384",
            Self::P521 => "nistp521",
        }
    }

    /// The name of keys and signatures with it.
    pub(super) fn key_type(self) -> &'static str {
        match self {
            Self::P256 => "ecdsa-sha2-nistp256",
            Self::P384 => "ecdsa-sha2-nistp384",
            Self::P521 => "ecdsa-sha2-nistp521",
        }
    }

    fn point_len(self) -> usize {
        match self {
            Self::P256 => 65,
            Self::P384 => 97,
            Self::P521 => 133,
        }
    }

    fn verification(self) -> &'static dyn VerificationAlgorithm {
        match self {
            Self::P256 => &signature::ECDSA_P256_SHA256_ASN1,
            Self::P384 => &signature::ECDSA_P384_SHA384_ASN1,
            Self::P521 => &signature::ECDSA_P521_SHA512_ASN1,
        }
    }
}

impl PublicKey {
    /// A whole key, with its type before it. Certificates are none.
    ///
    /// # Errors
    /// The text of x/crypto/ssh where it has one.
    pub(super) fn parse(blob: &[u8]) -> Result<Self, String> {
        let mut reader = Reader(blob);
        let key_type = reader.text()?;
        let key = Self::parse_body(key_type, &mut reader)?;
        if reader.is_empty() { Ok(key) } else { Err("ssh: trailing junk in public key".to_owned()) }
    }

    /// What follows a key's type, in a key or in a certificate.
    pub(super) fn parse_body(key_type: &str, reader: &mut Reader<'_>) -> Result<Self, String> {
        let kind = match key_type {
            RSA => {
                let (e, n) = (reader.positive()?, reader.positive()?);
                if n.len() > RSA_BYTES_MAX {
                    return Err("ssh: rsa modulus too large".to_owned());
                }
                if n.len() < RSA_BYTES_MIN {
                    return Err("ssh: rsa modulus too small".to_owned());
                }
                if e.len() > 3 {
                    return Err("ssh: exponent too large".to_owned());
                }
                if e.last().is_none_or(|last| last & 1 == 0) || e == [1] {
                    return Err("ssh: incorrect exponent".to_owned());
                }
                Kind::Rsa { e: e.to_vec(), n: n.to_vec() }
            }
            ED25519 => Kind::Ed25519(ed25519(reader)?),
            SK_ECDSA => {
                let point = point(reader, Curve::P256)?;
                Kind::SkEcdsa { point, application: reader.text()?.to_owned() }
            }
            SK_ED25519 => {
                let key = ed25519(reader)?;
                Kind::SkEd25519 { key, application: reader.text()?.to_owned() }
            }
            _ => {
                let curve = Curve::ALL.into_iter().find(|curve| curve.key_type() == key_type);
                let Some(curve) = curve else {
                    return Err(format!("ssh: unknown key algorithm: {key_type}"));
                };
                Kind::Ecdsa { curve, point: point(reader, curve)? }
            }
        };
        Ok(Self { kind })
    }

    /// The key's type.
    pub(super) fn key_type(&self) -> &'static str {
        match &self.kind {
            Kind::Rsa { .. } => RSA,
            Kind::Ecdsa { curve, .. } => curve.key_type(),
            Kind::Ed25519(_) => ED25519,
            Kind::SkEcdsa { .. } => SK_ECDSA,
            Kind::SkEd25519 { .. } => SK_ED25519,
        }
    }

    /// Checks a signature.
    ///
    /// # Errors
    /// The text of x/crypto/ssh.
    pub(super) fn verify(
        &self,
        message: &[u8],
        signature: &Signature,
        purpose: Purpose,
    ) -> Result<(), String> {
        let format = signature.format.as_str();
        let wrong_type =
            || Err(format!("ssh: signature type {} for key type {}", shown(format), self.key_type()));
        let blob = &signature.blob.0;
        let good = match &self.kind {
            Kind::Rsa { e, n } => {
                let algorithm = match (format, purpose) {
                    ("rsa-sha2-256", _) => &signature::RSA_PKCS1_2048_8192_SHA256,
                    ("rsa-sha2-512", _) => &signature::RSA_PKCS1_2048_8192_SHA512,
                    (RSA, Purpose::Challenge) => &signature::RSA_PKCS1_2048_8192_SHA1_FOR_LEGACY_USE_ONLY,
                    _ => return wrong_type(),
                };
                verify_rsa(e, n, algorithm, message, blob)
            }
            _ if format != self.key_type() => return wrong_type(),
            Kind::Ecdsa { curve, point } => verify_ecdsa(*curve, point, message, blob)?,
            Kind::Ed25519(key) => {
                UnparsedPublicKey::new(&signature::ED25519, key).verify(message, blob).is_ok()
            }
            Kind::SkEcdsa { point, application } => {
                let message = sk_message(application, message, signature, purpose)?;
                verify_ecdsa(Curve::P256, point, &message, blob)?
            }
            Kind::SkEd25519 { key, application } => {
                let message = sk_message(application, message, signature, purpose)?;
                UnparsedPublicKey::new(&signature::ED25519, key).verify(&message, blob).is_ok()
            }
        };
        match (good, &self.kind) {
            (true, _) => Ok(()),
            (false, Kind::Rsa { .. }) => Err("crypto/rsa: verification error".to_owned()),
            (false, _) => Err("ssh: signature did not verify".to_owned()),
        }
    }
}

/// A format that a peer chose, for an error.
fn shown(format: &str) -> String {
    let known = format.len() <= 64 && format.bytes().all(|byte| byte.is_ascii_graphic());
    if known { format.to_owned() } else { quote(&format.chars().take(64).collect::<String>()) }
}

fn ed25519(reader: &mut Reader<'_>) -> Result<Vec<u8>, String> {
    let key = reader.string()?;
    if key.len() != 32 {
        return Err(format!("invalid size {} for Ed25519 public key", key.len()));
    }
    Ok(key.to_vec())
}

fn point(reader: &mut Reader<'_>, curve: Curve) -> Result<Vec<u8>, String> {
    let name = reader.text()?;
    if name != curve.name() {
        return Err(format!(
            "ssh: algorithm type mismatch: expected {}, found curve {}",
            quote(curve.key_type()),
            quote(name)
        ));
    }
    let point = reader.string()?;
    // Only uncompressed points, as the reference; whether it is on the curve is checked with each signature.
    if point.first() != Some(&4) || point.len() != curve.point_len() {
        return Err("ssh: invalid curve point".to_owned());
    }
    Ok(point.to_vec())
}

/// Some sign without leading zeros; the reference fills them up, and so do we.
fn verify_rsa(
    e: &[u8],
    n: &[u8],
    algorithm: &'static signature::RsaParameters,
    message: &[u8],
    blob: &[u8],
) -> bool {
    if blob.len() > n.len() {
        return false;
    }
    let mut padded = vec![0; n.len() - blob.len()];
    padded.extend_from_slice(blob);
    RsaPublicKeyComponents { n, e }.verify(algorithm, message, &padded).is_ok()
}

fn verify_ecdsa(curve: Curve, point: &[u8], message: &[u8], blob: &[u8]) -> Result<bool, String> {
    let mut reader = Reader(blob);
    let (r, s) = (reader.positive()?, reader.positive()?);
    if !reader.is_empty() {
        return Err("ssh: unexpected data behind an ECDSA signature".to_owned());
    }
    let Some(der) = ecdsa_der(r, s) else { return Ok(false) };
    Ok(UnparsedPublicKey::new(curve.verification(), point).verify(message, &der).is_ok())
}

/// What a security key signs instead of the message.
fn sk_message(
    application: &str,
    message: &[u8],
    signature: &Signature,
    purpose: Purpose,
) -> Result<Vec<u8>, String> {
    let rest = signature.rest.as_ref().map_or(&[][..], |rest| &rest.0);
    let mut reader = Reader(rest);
    let (flags, _counter) = (reader.byte()?, reader.u32()?);
    if !reader.is_empty() {
        return Err("ssh: unexpected data behind a security key's signature".to_owned());
    }
    if purpose == Purpose::Challenge && flags & USER_PRESENT == 0 {
        return Err("ssh: signature missing required user presence flag".to_owned());
    }
    let hash = |bytes: &[u8]| digest::digest(&digest::SHA256, bytes);
    Ok([hash(application.as_bytes()).as_ref(), rest, hash(message).as_ref()].concat())
}
