//! JSON Web Keys (RFC 7517) with go-jose's order of members, public keys only.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Map, Value};

use super::certificate::{Certificate, CertificateError};
use super::der::Reader;
use super::json;
use super::key::{PublicKey, PublicKeyError, PublicKeyKind};

/// How many certificates one key may bring.
const MAX_CERTIFICATES: usize = 16;

/// Why JSON is not a public key. Texts are go-jose's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JwkError {
    /// Not an object.
    #[error("go-jose/go-jose: JWK is not an object")]
    NotObject,
    /// A member of another type.
    #[error("go-jose/go-jose: invalid JWK, {0} is malformed")]
    Member(&'static str),
    /// No `kty`.
    #[error("go-jose/go-jose: missing json web key type")]
    MissingType,
    /// A `kty` or `crv` that we do not know.
    #[error("go-jose/go-jose: unsupported key type/format")]
    Unsupported,
    /// A curve that we do not know.
    #[error("go-jose/go-jose: unsupported elliptic curve '{0}'")]
    Curve(String),
    /// A private or symmetric key where a public one belongs.
    #[error("JWK must be a public key")]
    NotPublic,
    /// Members that make no key.
    #[error("go-jose/go-jose: invalid key: {0}")]
    Key(#[from] PublicKeyError),
    /// `x5c` holds what is no certificate.
    #[error("go-jose/go-jose: failed to unmarshal x5c field: {0}")]
    Certificate(#[from] CertificateError),
    /// `x5c` is about another key.
    #[error("go-jose/go-jose: invalid JWK, public keys in key and x5c fields do not match")]
    CertificateKey,
}

/// A public key with the members that SPIFFE uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Jwk {
    /// The key.
    pub key: PublicKey,
    /// `kid`; empty for none.
    pub kid: String,
    /// `use`; empty for none.
    pub key_use: String,
    /// `alg`; empty for none.
    pub alg: String,
    /// `x5c`.
    pub certificates: Vec<Certificate>,
}

impl Jwk {
    /// A key without further members.
    pub fn new(key: PublicKey) -> Self {
        Self { key, kid: String::new(), key_use: String::new(), alg: String::new(), certificates: Vec::new() }
    }

    /// As JSON without blanks: `use, kty, kid, crv, alg, x, y, n, e, x5c`, absent members left out.
    pub fn to_json(&self) -> String {
        let mut out = String::with_capacity(256);
        self.push_json(&mut out);
        out
    }

    /// Appends the JSON.
    pub(crate) fn push_json(&self, out: &mut String) {
        let parts = Parts::of(&self.key);
        let members = [
            ("use", self.key_use.as_str()),
            ("kty", parts.kty),
            ("kid", &self.kid),
            ("crv", parts.crv),
            ("alg", &self.alg),
            ("x", &parts.x),
            ("y", &parts.y),
            ("n", &parts.n),
            ("e", &parts.e),
        ];
        out.push('{');
        let mut first = true;
        for (name, value) in members {
            if value.is_empty() {
                continue;
            }
            if !first {
                out.push(',');
            }
            first = false;
            json::push_string(out, name);
            out.push(':');
            json::push_string(out, value);
        }
        if !self.certificates.is_empty() {
            out.push_str(",\"x5c\":[");
            for (i, certificate) in self.certificates.iter().enumerate() {
                out.push_str(if i == 0 { "\"" } else { ",\"" });
                STANDARD.encode_string(certificate.der(), out);
                out.push('"');
            }
            out.push(']');
        }
        out.push('}');
    }

    /// From JSON bytes.
    ///
    /// # Errors
    /// [`JwkError::NotObject`] when it is not JSON, otherwise as [`Jwk::from_value`].
    pub fn from_slice(bytes: &[u8]) -> Result<Self, JwkError> {
        match json::parse(bytes) {
            Ok(value) => Self::from_value(&value),
            Err(_) => Err(JwkError::NotObject),
        }
    }

    /// From a parsed object.
    ///
    /// # Errors
    /// [`JwkError`] says what is wrong. A coordinate, modulus or exponent that is not there is a
    /// [`JwkError::Member`], too.
    pub fn from_value(value: &Value) -> Result<Self, JwkError> {
        let members = value.as_object().ok_or(JwkError::NotObject)?;
        let certificates = certificates(members)?;
        if members.contains_key("d") || members.contains_key("k") {
            return Err(JwkError::NotPublic);
        }
        let key = match text(members, "kty")? {
            "EC" => {
                let (kind, size) = match text(members, "crv")? {
                    "P-256" => (PublicKeyKind::EcP256, 32),
                    "P-384" => (PublicKeyKind::EcP384, 48),
                    "P-521" => (PublicKeyKind::EcP521, 66),
                    other => return Err(JwkError::Curve(other.chars().take(32).collect())),
                };
                let (x, y) = (bytes(members, "x")?, bytes(members, "y")?);
                if x.len() != size || y.len() != size {
                    return Err(JwkError::Member("x or y"));
                }
                PublicKey::from_ec_point(kind, &[&[4][..], &x, &y].concat())?
            }
            "RSA" => PublicKey::from_rsa_parts(&bytes(members, "n")?, &bytes(members, "e")?)?,
            "OKP" if text(members, "crv")? == "Ed25519" => PublicKey::from_ed25519(&bytes(members, "x")?)?,
            "" => return Err(JwkError::MissingType),
            _ => return Err(JwkError::Unsupported),
        };
        if certificates.first().is_some_and(|c| c.public_key() != Ok(&key)) {
            return Err(JwkError::CertificateKey);
        }
        Ok(Self {
            key,
            kid: text(members, "kid")?.to_owned(),
            key_use: text(members, "use")?.to_owned(),
            alg: text(members, "alg")?.to_owned(),
            certificates,
        })
    }
}

/// The members that make up a key, base64url; empty where a kind of key has no such member.
#[derive(Default)]
struct Parts {
    kty: &'static str,
    crv: &'static str,
    x: String,
    y: String,
    n: String,
    e: String,
}

impl Parts {
    fn of(key: &PublicKey) -> Self {
        let bytes = key.key_bytes();
        let crv = match key.kind() {
            PublicKeyKind::EcP256 => "P-256",
            PublicKeyKind::EcP384 => "P-384",
            PublicKeyKind::EcP521 => "P-521",
            PublicKeyKind::Ed25519 => {
                let x = URL_SAFE_NO_PAD.encode(bytes);
                return Self { kty: "OKP", crv: "Ed25519", x, ..Self::default() };
            }
            PublicKeyKind::Rsa { .. } => {
                // A PublicKey holds well-formed parts; nothing is encoded otherwise.
                let parts =
                    Reader::new(bytes).sequence().and_then(|mut r| Ok((r.unsigned()?, r.unsigned()?)));
                let (n, e) = parts.unwrap_or_default();
                let (n, e) = (URL_SAFE_NO_PAD.encode(n), URL_SAFE_NO_PAD.encode(e));
                return Self { kty: "RSA", n, e, ..Self::default() };
            }
        };
        let (x, y) = bytes[1..].split_at((bytes.len() - 1) / 2);
        let (x, y) = (URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode(y));
        Self { kty: "EC", crv, x, y, ..Self::default() }
    }
}

fn text<'m>(members: &'m Map<String, Value>, name: &'static str) -> Result<&'m str, JwkError> {
    match members.get(name) {
        None | Some(Value::Null) => Ok(""),
        Some(Value::String(text)) => Ok(text),
        Some(_) => Err(JwkError::Member(name)),
    }
}

fn bytes(members: &Map<String, Value>, name: &'static str) -> Result<Vec<u8>, JwkError> {
    match text(members, name)? {
        "" => Err(JwkError::Member(name)),
        encoded => URL_SAFE_NO_PAD.decode(encoded).map_err(|_| JwkError::Member(name)),
    }
}

fn certificates(members: &Map<String, Value>) -> Result<Vec<Certificate>, JwkError> {
    let list = match members.get("x5c") {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(list)) if list.len() <= MAX_CERTIFICATES => list,
        Some(_) => return Err(JwkError::Member("x5c")),
    };
    list.iter()
        .map(|item| {
            let encoded = item.as_str().ok_or(JwkError::Member("x5c"))?;
            let der = STANDARD.decode(encoded).map_err(|_| JwkError::Member("x5c"))?;
            Ok(Certificate::from_der(der)?)
        })
        .collect()
}
