//! JSON Web Signatures in compact form (RFC 7515): made in two steps, and verified.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use super::algorithm::{Family, SignatureAlgorithm};
use super::der::{Reader, Writer};
use super::json::{self, JsonError};
use super::key::{PublicKey, PublicKeyKind};

/// The longest token that is looked at.
pub const MAX_TOKEN_BYTES: usize = 64 * 1024;

/// Why a token is not a signed one. Texts are go-jose's where it has one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JwsError {
    /// Longer than 64 KiB.
    #[error("token is too large")]
    TooLarge,
    /// Not three parts.
    #[error("go-jose/go-jose: compact JWS format must have three parts")]
    Parts,
    /// A part is not base64url without padding; the offset is that of the byte.
    #[error("illegal base64 data at input byte {0}")]
    Base64(usize),
    /// The header is not a JSON object with members of the right types.
    #[error("malformed token header: {0}")]
    Header(String),
    /// An algorithm outside RS, ES and PS with 256, 384 and 512.
    #[error("unexpected signature algorithm {0:?}; expected {ALGORITHMS}")]
    Algorithm(String),
    /// A `crit` header; we understand no extension.
    #[error("go-jose/go-jose: unsupported critical header")]
    Critical,
    /// The signature does not match, or the key is of another kind than the algorithm.
    #[error("go-jose/go-jose: error in cryptographic primitive")]
    Signature,
    /// The payload is not what it should be.
    #[error("malformed token payload: {0}")]
    Payload(#[from] JsonError),
    /// The key cannot sign tokens.
    #[error("unable to determine signature algorithm for the key")]
    Key,
}

/// In the order of the reference's pkg/common/jwtsvid.
const ALGORITHMS: &str = r#"["ES256" "ES384" "ES512" "RS256" "RS384" "RS512" "PS256" "PS384" "PS512"]"#;

/// A token that lacks its signature.
#[derive(Clone, PartialEq, Eq)]
pub struct TokenToBeSigned {
    text: String,
    algorithm: SignatureAlgorithm,
}

impl TokenToBeSigned {
    /// Header `{"alg", "kid", "typ"}` and a payload, as go-jose writes them. `key` decides the algorithm:
    /// RS256, ES256 or ES384.
    pub(crate) fn new(key: &PublicKey, kid: &str, typ: &str, payload: &str) -> Result<Self, JwsError> {
        let algorithm = key.jwt_algorithm().ok_or(JwsError::Key)?;
        let mut header = String::with_capacity(kid.len() + 48);
        header.push_str("{\"alg\":\"");
        header.push_str(algorithm.jose().unwrap_or_default());
        header.push('"');
        if !kid.is_empty() {
            header.push_str(",\"kid\":");
            json::push_string(&mut header, kid);
        }
        header.push_str(",\"typ\":");
        json::push_string(&mut header, typ);
        header.push('}');
        // Room for the signature of the largest key we sign with.
        let mut text = String::with_capacity((header.len() + payload.len()) * 4 / 3 + 700);
        URL_SAFE_NO_PAD.encode_string(header, &mut text);
        text.push('.');
        URL_SAFE_NO_PAD.encode_string(payload, &mut text);
        Ok(Self { text, algorithm })
    }

    /// The bytes to sign.
    pub fn bytes(&self) -> &[u8] {
        self.text.as_bytes()
    }

    /// How to sign them.
    pub fn algorithm(&self) -> SignatureAlgorithm {
        self.algorithm
    }

    /// The token. ECDSA signatures are given as DER, as key managers return them.
    ///
    /// # Errors
    /// [`JwsError::Signature`] when an ECDSA signature is not DER of two numbers that fit the curve. Others
    /// are taken as they are.
    pub fn assemble(mut self, signature: &[u8]) -> Result<String, JwsError> {
        self.text.push('.');
        if self.algorithm.family() == Family::Ecdsa {
            let size = if self.algorithm == SignatureAlgorithm::EcdsaSha256 { 32 } else { 48 };
            let raw = ecdsa_to_raw(signature, size).ok_or(JwsError::Signature)?;
            URL_SAFE_NO_PAD.encode_string(raw, &mut self.text);
        } else {
            URL_SAFE_NO_PAD.encode_string(signature, &mut self.text);
        }
        Ok(self.text)
    }
}

impl std::fmt::Debug for TokenToBeSigned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenToBeSigned").field("algorithm", &self.algorithm).finish_non_exhaustive()
    }
}

/// A token that was taken apart and not verified. What it says may be looked at to find the key, and
/// nothing else.
#[derive(Clone)]
pub struct UnverifiedJws<'a> {
    signed: &'a str,
    header: Map<String, Value>,
    payload: Vec<u8>,
    signature: Vec<u8>,
    algorithm: SignatureAlgorithm,
}

impl<'a> UnverifiedJws<'a> {
    /// Takes a compact token apart.
    ///
    /// # Errors
    /// [`JwsError::TooLarge`], [`JwsError::Parts`], [`JwsError::Base64`], [`JwsError::Header`],
    /// [`JwsError::Algorithm`] or [`JwsError::Critical`], which a `b64` header is, too (RFC 7797).
    pub fn parse(token: &'a str) -> Result<Self, JwsError> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(JwsError::TooLarge);
        }
        let mut parts = token.split('.');
        let (Some(header), Some(payload), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(JwsError::Parts);
        };
        let signed = &token[..header.len() + 1 + payload.len()];
        let Value::Object(header) =
            json::parse(&decode(header)?).map_err(|e| JwsError::Header(e.to_string()))?
        else {
            return Err(JwsError::Header("not an object".to_owned()));
        };
        let payload = decode(payload)?;
        let signature = decode(signature)?;
        let alg = text(&header, "alg")?.unwrap_or_default();
        let algorithm =
            SignatureAlgorithm::from_jose(alg).ok_or_else(|| JwsError::Algorithm(alg.to_owned()))?;
        if header.contains_key("crit") || header.contains_key("b64") {
            return Err(JwsError::Critical);
        }
        text(&header, "kid")?;
        text(&header, "typ")?;
        Ok(Self { signed, payload, signature, algorithm, header })
    }

    /// The key ID; empty when there is none.
    pub fn kid(&self) -> &str {
        self.header.get("kid").and_then(Value::as_str).unwrap_or_default()
    }

    /// The type, if it says one.
    pub fn typ(&self) -> Option<&str> {
        self.header.get("typ").and_then(Value::as_str)
    }

    /// What it says, unverified: to find the key with, and nothing else.
    pub fn unverified_payload(&self) -> &[u8] {
        &self.payload
    }

    /// Checks the signature.
    ///
    /// # Errors
    /// [`JwsError::Signature`] when it does not match, or when the key is of another family or curve than
    /// the token's algorithm (RFC 7518, section 3.4).
    pub fn verify(self, key: &PublicKey) -> Result<VerifiedJws, JwsError> {
        if self.algorithm.family() != key.family() {
            return Err(JwsError::Signature);
        }
        let message = self.signed.as_bytes();
        if key.family() == Family::Ecdsa {
            // RFC 7518, 3.4: each algorithm has its curve.
            let size = match (self.algorithm, key.kind()) {
                (SignatureAlgorithm::EcdsaSha256, PublicKeyKind::EcP256) => 32,
                (SignatureAlgorithm::EcdsaSha384, PublicKeyKind::EcP384) => 48,
                (SignatureAlgorithm::EcdsaSha512, PublicKeyKind::EcP521) => 66,
                _ => return Err(JwsError::Signature),
            };
            let der = ecdsa_from_raw(&self.signature, size).ok_or(JwsError::Signature)?;
            key.verify(self.algorithm, message, &der).map_err(|_| JwsError::Signature)?;
        } else {
            key.verify(self.algorithm, message, &self.signature).map_err(|_| JwsError::Signature)?;
        }
        Ok(VerifiedJws { header: self.header, payload: self.payload })
    }
}

/// The covered bytes of a token whose signature was checked. Only [`UnverifiedJws::verify`] makes one.
#[derive(Clone)]
pub struct VerifiedJws {
    header: Map<String, Value>,
    payload: Vec<u8>,
}

impl VerifiedJws {
    /// The header.
    pub fn header(&self) -> &Map<String, Value> {
        &self.header
    }

    /// The payload.
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }
}

fn text<'m>(header: &'m Map<String, Value>, name: &str) -> Result<Option<&'m str>, JwsError> {
    match header.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(JwsError::Header(format!("{name} is not a string"))),
    }
}

fn decode(part: &str) -> Result<Vec<u8>, JwsError> {
    URL_SAFE_NO_PAD.decode(part).map_err(|e| {
        JwsError::Base64(match e {
            base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _) => at,
            _ => part.len(),
        })
    })
}

/// r and s with fixed sizes, from their DER.
pub(crate) fn ecdsa_to_raw(der: &[u8], size: usize) -> Option<Vec<u8>> {
    let mut outer = Reader::new(der);
    let mut both = outer.sequence().ok()?;
    outer.finish().ok()?;
    let mut raw = vec![0; 2 * size];
    for half in raw.chunks_exact_mut(size) {
        let number = both.unsigned().ok()?;
        half.get_mut(size.checked_sub(number.len())?..)?.copy_from_slice(number);
    }
    both.finish().ok()?;
    Some(raw)
}

/// The DER of r and s with fixed sizes.
fn ecdsa_from_raw(raw: &[u8], size: usize) -> Option<Vec<u8>> {
    if raw.len() != 2 * size {
        return None;
    }
    let (r, s) = raw.split_at(size);
    let mut w = Writer::with_capacity(raw.len() + 10);
    w.sequence(|w| {
        w.unsigned(r);
        w.unsigned(s);
    });
    Some(w.into_bytes())
}
