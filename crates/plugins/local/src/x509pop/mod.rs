//! NodeAttestor `x509pop`: a node proves that it has the key of a certificate.
//!
//! The agent sends its chain, the server a nonce, and the agent signs the server's nonce and its own. What
//! stands here is what both sides share: the JSON on the wire, and signing and verifying
//! (pkg/common/plugin/x509pop).

pub(crate) mod agent;
pub(crate) mod server;

mod path;
pub(crate) mod pss;
#[cfg(test)]
mod tests;

use aws_lc_rs::digest;
use serde::{Deserialize, Serialize};
use spire_core::pki::{Certificate, KeyUsage, LocalKey, PublicKey, PublicKeyKind, SignatureAlgorithm};

use crate::json::Base64;
use crate::machine::random;

pub(crate) const NAME: &str = "x509pop";

const NONCE_LEN: usize = 32;

/// What the agent sends first: the chain, leaf first, DER.
#[derive(Debug, Serialize)]
struct Payload {
    certificates: Vec<Base64>,
}

/// The same as the server reads it: nothing is decoded before the certificates are counted.
#[derive(Debug, Deserialize)]
struct Received {
    #[serde(default)]
    certificates: Option<Vec<Option<String>>>,
}

/// The server's challenge, of the kind that fits the key.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Challenge {
    #[serde(default)]
    rsa_signature: Option<Nonce>,
    #[serde(default)]
    ecdsa_signature: Option<Nonce>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Nonce {
    #[serde(default)]
    nonce: Base64,
}

/// The agent's response.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Response {
    #[serde(default)]
    rsa_signature: Option<RsaSignature>,
    #[serde(default)]
    ecdsa_signature: Option<EcdsaSignature>,
}

#[derive(Debug, Serialize, Deserialize)]
struct RsaSignature {
    #[serde(default)]
    nonce: Base64,
    /// RSA-PSS with SHA-256, over both nonces.
    #[serde(default)]
    signature: Base64,
}

/// ECDSA over the SHA-256 of both nonces, whatever the curve. Both numbers are big-endian magnitudes.
#[derive(Debug, Serialize, Deserialize)]
struct EcdsaSignature {
    #[serde(default)]
    nonce: Base64,
    #[serde(default)]
    r: Base64,
    #[serde(default)]
    s: Base64,
}

impl Challenge {
    /// A challenge for the holder of a certificate, which must be meant for signatures.
    fn new(certificate: &Certificate) -> Result<Self, String> {
        if !certificate.key_usage().contains(KeyUsage::DIGITAL_SIGNATURE) {
            return Err("certificate not intended for digital signature use".to_owned());
        }
        let key = certificate.public_key().map_err(|error| error.to_string())?;
        let nonce = Some(Nonce { nonce: Base64(random::<NONCE_LEN>()?.to_vec()) });
        match key.kind() {
            PublicKeyKind::Rsa { .. } => Ok(Self { rsa_signature: nonce, ecdsa_signature: None }),
            PublicKeyKind::EcP256 | PublicKeyKind::EcP384 | PublicKeyKind::EcP521 => {
                Ok(Self { rsa_signature: None, ecdsa_signature: nonce })
            }
            PublicKeyKind::Ed25519 => Err("unsupported public key type ed25519.PublicKey".to_owned()),
        }
    }

    /// Signs the challenge.
    fn respond(&self, key: &LocalKey) -> Result<Response, String> {
        let own = random::<NONCE_LEN>()?;
        let nonce = Base64(own.to_vec());
        match key.public_key().kind() {
            PublicKeyKind::Rsa { .. } => {
                let challenge = self.rsa_signature.as_ref().ok_or("expecting RSA challenge")?;
                let message = combine(&challenge.nonce.0, &own)?;
                let signature = key
                    .sign(SignatureAlgorithm::RsaPssSha256, &message)
                    .map_err(|error| error.to_string())?;
                let signature = RsaSignature { nonce, signature: Base64(signature) };
                Ok(Response { rsa_signature: Some(signature), ecdsa_signature: None })
            }
            kind => {
                let challenge = self.ecdsa_signature.as_ref().ok_or("expecting ECDSA challenge")?;
                let message = combine(&challenge.nonce.0, &own)?;
                let (r, s) = sign_sha256(key, kind, &message)?;
                let signature = EcdsaSignature { nonce, r: Base64(r), s: Base64(s) };
                Ok(Response { rsa_signature: None, ecdsa_signature: Some(signature) })
            }
        }
    }

    /// Checks a response. Only who has the private key could make it.
    fn verify(&self, key: &PublicKey, response: &Response) -> Result<(), String> {
        if let PublicKeyKind::Rsa { .. } = key.kind() {
            let challenge = self.rsa_signature.as_ref().ok_or("expecting RSA challenge")?;
            let response = response.rsa_signature.as_ref().ok_or("expecting RSA response")?;
            let message = combine(&challenge.nonce.0, &response.nonce.0)?;
            // The reference salts with as many bytes as fit, we with as many as the hash has.
            if !pss::verify_sha256(key, &message, &response.signature.0) {
                return Err("RSA signature verify failed".to_owned());
            }
        } else {
            let challenge = self.ecdsa_signature.as_ref().ok_or("expecting ECDSA challenge")?;
            let response = response.ecdsa_signature.as_ref().ok_or("expecting ECDSA response")?;
            let message = combine(&challenge.nonce.0, &response.nonce.0)?;
            let verified = ecdsa_der(&response.r.0, &response.s.0).is_some_and(|signature| {
                key.verify(SignatureAlgorithm::EcdsaSha256, &message, &signature).is_ok()
            });
            if !verified {
                return Err("ECDSA signature verify failed".to_owned());
            }
        }
        Ok(())
    }
}

/// The SHA-1 of a certificate in hex, by which agents are named.
fn fingerprint(certificate: &Certificate) -> String {
    hex::encode(digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, certificate.der()))
}

/// What is signed: the server's nonce, then the agent's.
fn combine(challenge: &[u8], response: &[u8]) -> Result<[u8; 2 * NONCE_LEN], &'static str> {
    if challenge.len() != NONCE_LEN {
        return Err("invalid challenge nonce");
    }
    if response.len() != NONCE_LEN {
        return Err("invalid response nonce");
    }
    let mut message = [0; 2 * NONCE_LEN];
    message[..NONCE_LEN].copy_from_slice(challenge);
    message[NONCE_LEN..].copy_from_slice(response);
    Ok(message)
}

/// An ECDSA signature over SHA-256, as its two numbers.
fn sign_sha256(key: &LocalKey, kind: PublicKeyKind, message: &[u8]) -> Result<(Vec<u8>, Vec<u8>), String> {
    let signature = match kind {
        PublicKeyKind::EcP256 => key.sign(SignatureAlgorithm::EcdsaSha256, message),
        // A hash is a number to ECDSA, and zeros before it do not change that: a SHA-256 that fills up to
        // the length of a SHA-384 signs as the SHA-256 would.
        PublicKeyKind::EcP384 => {
            let mut padded = [0; 48];
            padded[16..].copy_from_slice(digest::digest(&digest::SHA256, message).as_ref());
            key.sign_digest(SignatureAlgorithm::EcdsaSha384, &padded)
        }
        kind => return Err(format!("unsupported private key type {kind:?}")),
    }
    .map_err(|error| error.to_string())?;
    ecdsa_numbers(&signature).ok_or_else(|| "malformed ECDSA signature".to_owned())
}

/// The two numbers of a DER signature, without leading zeros. Numbers of our curves have one-byte lengths.
pub(crate) fn ecdsa_numbers(der: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let [0x30, len, body @ ..] = der else { return None };
    let mut rest = body.get(..usize::from(*len))?;
    let mut number = || {
        let [0x02, len, after @ ..] = rest else { return None };
        let (value, after) = after.split_at_checked(usize::from(*len))?;
        rest = after;
        Some(trim_zeros(value).to_vec())
    };
    Some((number()?, number()?))
}

/// A DER signature of two magnitudes; nothing when they are longer than any of our curves'.
pub(crate) fn ecdsa_der(r: &[u8], s: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::with_capacity(144);
    for number in [trim_zeros(r), trim_zeros(s)] {
        // P-521 has 66 bytes.
        if number.is_empty() || number.len() > 66 {
            return None;
        }
        let sign = usize::from(number[0] >= 0x80);
        body.extend_from_slice(&[0x02, u8::try_from(number.len() + sign).ok()?]);
        body.extend_from_slice(&[0][..sign]);
        body.extend_from_slice(number);
    }
    let len = u8::try_from(body.len()).ok()?;
    let mut der = if len < 0x80 { vec![0x30, len] } else { vec![0x30, 0x81, len] };
    der.append(&mut body);
    Some(der)
}

fn trim_zeros(number: &[u8]) -> &[u8] {
    &number[number.iter().take_while(|byte| **byte == 0).count()..]
}
