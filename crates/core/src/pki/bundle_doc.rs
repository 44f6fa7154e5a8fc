//! Trust bundles as JWKS: the SPIFFE bundle format (SPIFFE Trust Domain and Bundle specification,
//! section 4) and the plain JWKS of the Workload API.

use std::time::Duration;

use serde_json::Value;

use super::certificate::{Certificate, CertificateError};
use super::json::{self, JsonError};
use super::jwk::{Jwk, JwkError};
use super::key::{PublicKey, PublicKeyError};
use crate::spiffe::{Bundle, JwtAuthority, TrustDomain, X509Authority};
use crate::time::Timestamp;

/// The longest document that is read.
pub const MAX_DOCUMENT_BYTES: usize = 4 * 1024 * 1024;
/// How many keys a document may have.
const MAX_KEYS: usize = 4096;

const X509_USE: &str = "x509-svid";
const JWT_USE: &str = "jwt-svid";
const WIT_USE: &str = "wit-svid";

/// Why a document is not a bundle, or a bundle cannot be written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BundleDocError {
    /// Longer than 4 MiB, or more than 4096 keys.
    #[error("bundle is too large")]
    TooLarge,
    /// Not JSON.
    #[error("{0}")]
    Json(#[from] JsonError),
    /// Not an object, or members of other types.
    #[error("malformed bundle: {0}")]
    Malformed(&'static str),
    /// No `keys` (go-spiffe).
    #[error("no authorities found")]
    NoKeys,
    /// A key that we cannot read.
    #[error("{0}")]
    Key(#[from] JwkError),
    /// Not exactly one certificate.
    #[error("expected a single certificate in x509-svid entry {index}; got {count}")]
    Certificates {
        /// Which key.
        index: usize,
        /// How many it has.
        count: usize,
    },
    /// A signing key without ID.
    #[error("missing key ID in {0} entry {1}")]
    MissingKeyId(&'static str, usize),
    /// A key without `use`.
    #[error("missing use for key entry {0}")]
    MissingUse(usize),
    /// A `use` that is not SPIFFE's.
    #[error("unrecognized use {0:?} for key entry {1}")]
    UnknownUse(String, usize),
    /// An authority of the bundle is not a certificate.
    #[error("unable to parse root CA {0}: {1}")]
    Authority(usize, CertificateError),
    /// A certificate of the bundle has a key that JWK cannot express, or a signing key is malformed.
    #[error("unable to parse public key {0}: {1}")]
    SigningKey(usize, PublicKeyError),
}

/// What to write of a bundle, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    /// X.509 authorities.
    pub x509: bool,
    /// Keys of JWT-SVIDs.
    pub jwt: bool,
    /// Keys of WIT-SVIDs.
    pub wit: bool,
    /// `use`, `spiffe_sequence` and `spiffe_refresh_hint`.
    pub spiffe: bool,
}

impl Format {
    /// The whole bundle in SPIFFE's format: bundle endpoints, `bundle show -format spiffe`, files.
    pub const SPIFFE: Self = Self { x509: true, jwt: true, wit: true, spiffe: true };
    /// JWT keys as plain JWKS: the Workload API and the OIDC discovery provider.
    pub const JWT_JWKS: Self = Self { x509: false, jwt: true, wit: false, spiffe: false };
    /// WIT keys as plain JWKS.
    pub const WIT_JWKS: Self = Self { x509: false, jwt: false, wit: true, spiffe: false };
}

/// Writes a bundle with an indent of four blanks, as the reference (bundleutil.Marshal).
///
/// # Errors
/// As [`marshal_compact`].
pub fn marshal(bundle: &Bundle, format: Format) -> Result<String, BundleDocError> {
    Ok(indent(&marshal_compact(bundle, format)?, "    "))
}

/// Writes a bundle without blanks, as go-spiffe.
///
/// # Errors
/// [`BundleDocError::Authority`] when an X.509 authority is no certificate; [`BundleDocError::SigningKey`]
/// when its key, or one of the keys of tokens, is none that [`PublicKey`] takes. What `format` leaves out
/// is not looked at.
pub fn marshal_compact(bundle: &Bundle, format: Format) -> Result<String, BundleDocError> {
    let label = |label: &str| if format.spiffe { label.to_owned() } else { String::new() };
    let mut out = String::from("{\"keys\":[");
    let mut first = true;
    let mut push = |out: &mut String, jwk: Jwk| {
        if !first {
            out.push(',');
        }
        first = false;
        jwk.push_json(out);
    };
    if format.x509 {
        for (i, authority) in bundle.x509_authorities.iter().enumerate() {
            let certificate =
                Certificate::from_der(authority.der.clone()).map_err(|e| BundleDocError::Authority(i, e))?;
            let key = certificate.public_key().map_err(|e| BundleDocError::SigningKey(i, e))?.clone();
            let jwk = Jwk { key_use: label(X509_USE), certificates: vec![certificate], ..Jwk::new(key) };
            push(&mut out, jwk);
        }
    }
    let jwt = (format.jwt, JWT_USE, &bundle.jwt_authorities);
    let wit = (format.wit, WIT_USE, &bundle.wit_authorities);
    for (wanted, key_use, authorities) in [jwt, wit] {
        for (i, authority) in authorities.iter().enumerate().filter(|_| wanted) {
            let key = PublicKey::from_spki(authority.public_key.clone())
                .map_err(|e| BundleDocError::SigningKey(i, e))?;
            let jwk = Jwk { key_use: label(key_use), kid: authority.kid.clone(), ..Jwk::new(key) };
            push(&mut out, jwk);
        }
    }
    out.push(']');
    if format.spiffe {
        if bundle.sequence_number != 0 {
            out.push_str(&format!(",\"spiffe_sequence\":{}", bundle.sequence_number));
        }
        if bundle.refresh_hint.as_secs() != 0 {
            out.push_str(&format!(",\"spiffe_refresh_hint\":{}", bundle.refresh_hint.as_secs()));
        }
    }
    out.push('}');
    Ok(out)
}

/// How strictly a document is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// As the reference's bundleutil.Unmarshal: each key needs a `use` that SPIFFE knows, and the sequence
    /// number is not taken over (the store of the reader counts).
    Reference,
    /// As go-spiffe's spiffebundle.Parse: keys of other uses are passed over, and the sequence number is
    /// taken over.
    GoSpiffe,
}

/// Reads a bundle in SPIFFE's format.
///
/// # Errors
/// [`BundleDocError::TooLarge`], [`BundleDocError::Json`] or [`BundleDocError::Malformed`] for the document
/// as a whole; [`BundleDocError::Key`], [`BundleDocError::Certificates`] or
/// [`BundleDocError::MissingKeyId`] for one of its keys. [`BundleDocError::NoKeys`] comes with
/// [`Reading::GoSpiffe`] alone, [`BundleDocError::MissingUse`] and [`BundleDocError::UnknownUse`] with
/// [`Reading::Reference`] alone.
pub fn parse(trust_domain: &TrustDomain, document: &[u8], how: Reading) -> Result<Bundle, BundleDocError> {
    let document = read_object(document)?;
    let mut bundle = Bundle::empty(trust_domain.clone());
    if let Some(hint) = number(&document, "spiffe_refresh_hint")? {
        bundle.refresh_hint = Duration::from_secs(hint);
    }
    let sequence = number(&document, "spiffe_sequence")?;
    if how == Reading::GoSpiffe {
        bundle.sequence_number = sequence.unwrap_or_default();
        if !matches!(document.get("keys"), Some(Value::Array(_))) {
            return Err(BundleDocError::NoKeys);
        }
    }
    for (i, value) in keys(&document)?.iter().enumerate() {
        let jwk = Jwk::from_value(value)?;
        let key = |jwk: Jwk, label| {
            if jwk.kid.is_empty() {
                return Err(BundleDocError::MissingKeyId(label, i));
            }
            Ok(authority(jwk))
        };
        match jwk.key_use.as_str() {
            X509_USE => {
                let [certificate] = &jwk.certificates[..] else {
                    return Err(BundleDocError::Certificates { index: i, count: jwk.certificates.len() });
                };
                let der = certificate.der().clone();
                if bundle.x509_authorities.iter().all(|a| a.der != der) {
                    bundle.x509_authorities.push(X509Authority { der, tainted: false });
                }
            }
            JWT_USE => put(&mut bundle.jwt_authorities, key(jwk, JWT_USE)?),
            WIT_USE => put(&mut bundle.wit_authorities, key(jwk, WIT_USE)?),
            _ if how == Reading::GoSpiffe => {}
            "" => return Err(BundleDocError::MissingUse(i)),
            other => return Err(BundleDocError::UnknownUse(other.chars().take(64).collect(), i)),
        }
    }
    Ok(bundle)
}

/// Reads a plain JWKS of token keys, as the Workload API sends it (go-spiffe's jwtbundle.Parse).
///
/// # Errors
/// [`BundleDocError::TooLarge`], [`BundleDocError::Json`] or [`BundleDocError::Malformed`] for the document
/// as a whole; [`BundleDocError::Key`] or [`BundleDocError::MissingKeyId`] for one of its keys.
pub fn parse_jwks(document: &[u8]) -> Result<Vec<JwtAuthority>, BundleDocError> {
    let document = read_object(document)?;
    let mut authorities = Vec::new();
    for (i, value) in keys(&document)?.iter().enumerate() {
        let jwk = Jwk::from_value(value)?;
        if jwk.kid.is_empty() {
            return Err(BundleDocError::MissingKeyId(JWT_USE, i));
        }
        put(&mut authorities, authority(jwk));
    }
    Ok(authorities)
}

/// JSON without blanks, spread over lines as Go's json.Indent does. Blanks outside of strings in the
/// input stay as they are.
pub fn indent(compact: &str, step: &str) -> String {
    let mut out = String::with_capacity(compact.len() * 3 / 2);
    let mut depth = 0usize;
    let mut in_string = false;
    let mut escaped = false;
    let mut previous = ' ';
    let newline = |out: &mut String, depth: usize| {
        out.push('\n');
        (0..depth).for_each(|_| out.push_str(step));
    };
    for c in compact.chars() {
        if in_string {
            out.push(c);
            in_string = escaped || c != '"';
            escaped = !escaped && c == '\\';
            previous = c;
            continue;
        }
        if matches!(c, ']' | '}') {
            depth = depth.saturating_sub(1);
            if !matches!(previous, '[' | '{') {
                newline(&mut out, depth);
            }
        } else if matches!(previous, '[' | '{') {
            newline(&mut out, depth);
        }
        out.push(c);
        match c {
            '[' | '{' => depth += 1,
            ',' => newline(&mut out, depth),
            ':' => out.push(' '),
            '"' => in_string = true,
            _ => {}
        }
        // The end of a string is not the start of a list, whatever its last character.
        previous = c;
    }
    out
}

fn authority(jwk: Jwk) -> JwtAuthority {
    JwtAuthority {
        kid: jwk.kid,
        public_key: jwk.key.spki().clone(),
        not_after: Timestamp::EPOCH,
        tainted: false,
    }
}

/// A later key with the same ID replaces an earlier one, as in go-spiffe's map.
fn put(authorities: &mut Vec<JwtAuthority>, authority: JwtAuthority) {
    match authorities.iter_mut().find(|a| a.kid == authority.kid) {
        Some(here) => *here = authority,
        None => authorities.push(authority),
    }
}

fn read_object(document: &[u8]) -> Result<serde_json::Map<String, Value>, BundleDocError> {
    if document.len() > MAX_DOCUMENT_BYTES {
        return Err(BundleDocError::TooLarge);
    }
    match json::parse(document)? {
        Value::Object(members) => Ok(members),
        _ => Err(BundleDocError::Malformed("not an object")),
    }
}

fn keys(document: &serde_json::Map<String, Value>) -> Result<&[Value], BundleDocError> {
    match document.get("keys") {
        None | Some(Value::Null) => Ok(&[]),
        Some(Value::Array(keys)) if keys.len() <= MAX_KEYS => Ok(keys),
        Some(Value::Array(_)) => Err(BundleDocError::TooLarge),
        Some(_) => Err(BundleDocError::Malformed("keys is not an array")),
    }
}

/// A whole number that is not negative.
fn number(
    document: &serde_json::Map<String, Value>,
    name: &'static str,
) -> Result<Option<u64>, BundleDocError> {
    match document.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match (value.as_u64(), value.as_i64()) {
            (Some(n), _) => Ok(Some(n)),
            // The reference clamps negative hints to its minimum later; zero leads to the same.
            (None, Some(_)) if name == "spiffe_refresh_hint" => Ok(Some(0)),
            _ => Err(BundleDocError::Malformed(name)),
        },
    }
}
