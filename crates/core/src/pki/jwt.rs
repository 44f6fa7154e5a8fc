//! JWT-SVIDs and WIT-SVIDs: their claims, and validation.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value, json};

use super::json;
use super::jwk::Jwk;
use super::jws::{JwsError, TokenToBeSigned, UnverifiedJws};
use super::key::PublicKey;
use crate::spiffe::{IdError, SpiffeId, TrustDomain};
use crate::time::Timestamp;

/// How far clocks may differ, in seconds (go-jose's jwt.DefaultLeeway).
const LEEWAY_SECONDS: i64 = 60;

/// The claims of a JWT-SVID (JWT-SVID specification, section 3).
#[derive(Clone, Copy, Debug)]
pub struct JwtSvidClaims<'a> {
    /// `sub`
    pub subject: &'a SpiffeId,
    /// `aud`: always written as an array; empty strings are dropped.
    pub audience: &'a [String],
    /// `iat`
    pub issued_at: Timestamp,
    /// `exp`
    pub expires_at: Timestamp,
    /// `iss`; empty for none.
    pub issuer: &'a str,
    /// Random bytes for `jti`; they become those of a UUID version 4, base64url.
    pub jti: Option<[u8; 16]>,
}

impl JwtSvidClaims<'_> {
    /// As a map, which credential composers may change before [`sign_claims`].
    pub fn to_map(&self) -> Map<String, Value> {
        let audience: Vec<&String> = self.audience.iter().filter(|a| !a.is_empty()).collect();
        let mut claims = Map::new();
        claims.insert("sub".into(), self.subject.as_str().into());
        claims.insert("aud".into(), json!(audience));
        claims.insert("exp".into(), self.expires_at.unix().into());
        claims.insert("iat".into(), self.issued_at.unix().into());
        if !self.issuer.is_empty() {
            claims.insert("iss".into(), self.issuer.into());
        }
        if let Some(random) = self.jti {
            claims.insert("jti".into(), jti(random).into());
        }
        claims
    }

    /// The bytes to sign, written without a map between.
    ///
    /// # Errors
    /// [`JwsError::Key`] when `key` is none that signs tokens ([`PublicKey::jwt_algorithm`]).
    pub fn to_be_signed(&self, key: &PublicKey, kid: &str) -> Result<TokenToBeSigned, JwsError> {
        let mut out = String::with_capacity(192);
        out.push_str("{\"aud\":[");
        for (i, audience) in self.audience.iter().filter(|a| !a.is_empty()).enumerate() {
            if i > 0 {
                out.push(',');
            }
            json::push_string(&mut out, audience);
        }
        out.push_str("],");
        push_times(&mut out, self.expires_at, self.issued_at);
        push_issuer(&mut out, self.issuer);
        if let Some(random) = self.jti {
            out.push_str(",\"jti\":");
            json::push_string(&mut out, &jti(random));
        }
        push_subject(&mut out, self.subject);
        TokenToBeSigned::new(key, kid, "JWT", &out)
    }
}

/// The claims of a WIT-SVID: a workload's key, bound to its SPIFFE ID.
#[derive(Clone, Copy, Debug)]
pub struct WitSvidClaims<'a> {
    /// `sub`
    pub subject: &'a SpiffeId,
    /// `cnf.jwk`, with its `alg`.
    pub key: &'a Jwk,
    /// `iat`
    pub issued_at: Timestamp,
    /// `exp`
    pub expires_at: Timestamp,
    /// `iss`; empty for none.
    pub issuer: &'a str,
}

impl WitSvidClaims<'_> {
    /// The bytes to sign.
    ///
    /// # Errors
    /// [`JwsError::Key`] when `key` is none that signs tokens ([`PublicKey::jwt_algorithm`]).
    pub fn to_be_signed(&self, key: &PublicKey, kid: &str) -> Result<TokenToBeSigned, JwsError> {
        let mut out = String::with_capacity(384);
        out.push_str("{\"cnf\":{\"jwk\":");
        self.key.push_json(&mut out);
        out.push_str("},");
        push_times(&mut out, self.expires_at, self.issued_at);
        push_issuer(&mut out, self.issuer);
        push_subject(&mut out, self.subject);
        TokenToBeSigned::new(key, kid, "wit+jwt", &out)
    }
}

/// A JWT-SVID with claims that a credential composer returned; members are sorted, and whole numbers
/// that came back as doubles are written as integers.
///
/// # Errors
/// [`JwsError::Key`] when `key` is none that signs tokens ([`PublicKey::jwt_algorithm`]).
pub fn sign_claims(
    claims: &Map<String, Value>,
    key: &PublicKey,
    kid: &str,
) -> Result<TokenToBeSigned, JwsError> {
    let mut out = String::with_capacity(256);
    json::push_object(&mut out, claims);
    TokenToBeSigned::new(key, kid, "JWT", &out)
}

fn push_times(out: &mut String, expires_at: Timestamp, issued_at: Timestamp) {
    out.push_str("\"exp\":");
    out.push_str(&expires_at.unix().to_string());
    out.push_str(",\"iat\":");
    out.push_str(&issued_at.unix().to_string());
}

fn push_issuer(out: &mut String, issuer: &str) {
    if !issuer.is_empty() {
        out.push_str(",\"iss\":");
        json::push_string(out, issuer);
    }
}

fn push_subject(out: &mut String, subject: &SpiffeId) {
    out.push_str(",\"sub\":");
    json::push_string(out, subject.as_str());
    out.push('}');
}

fn jti(mut random: [u8; 16]) -> String {
    random[6] = random[6] & 0x0f | 0x40;
    random[8] = random[8] & 0x3f | 0x80;
    URL_SAFE_NO_PAD.encode(random)
}

/// Why a key was not found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyNotFound {
    /// There is no bundle of that trust domain.
    TrustDomain,
    /// The bundle has no key with that ID.
    Key,
}

/// Why a token is not a valid SVID. Texts are those of the reference (pkg/common/jwtsvid/validate.go) and
/// go-spiffe (svid/jwtsvid/svid.go), without the prefixes that their callers add.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JwtError {
    /// Not a signed token.
    #[error("unable to parse JWT token: {0}")]
    Parse(JwsError),
    /// Another `typ` than JWT or JOSE.
    #[error("token header type not equal to either JWT or JOSE")]
    Type,
    /// Another `typ` than wit+jwt.
    #[error("token header type not equal to wit+jwt")]
    WitType,
    /// No `kid`.
    #[error("token header missing key id")]
    MissingKeyId,
    /// The payload is not an object of claims.
    #[error("unable to get claims from token: {0}")]
    Claims(String),
    /// No `sub`.
    #[error("token missing subject claim")]
    MissingSubject,
    /// No `exp`.
    #[error("token missing exp claim")]
    MissingExpiry,
    /// No `iat`, where it is needed.
    #[error("JWT missing iat claim")]
    MissingIssuedAt,
    /// `sub` is not a SPIFFE ID.
    #[error("token has in invalid subject claim: {0}")]
    Subject(IdError),
    /// Nothing is known about the trust domain.
    #[error("no keys found for trust domain {0:?}")]
    NoTrustDomain(String),
    /// The trust domain has no such key.
    #[error("public key {kid:?} not found in trust domain {trust_domain:?}")]
    NoKey {
        /// The key ID.
        kid: String,
        /// Where it was looked for.
        trust_domain: String,
    },
    /// The signature is not by that key.
    #[error("{0}")]
    Signature(JwsError),
    /// `exp` is over.
    #[error("token has expired")]
    Expired,
    /// `nbf` is to come.
    #[error("go-jose/go-jose/jwt: validation failed, token not valid yet (nbf)")]
    NotYetValid,
    /// `iat` is to come.
    #[error("go-jose/go-jose/jwt: validation field, token issued in the future (iat)")]
    IssuedInTheFuture,
    /// None of the audiences that are accepted.
    #[error("expected audience in {} (audience={})", go_list(.expected), go_list(.found))]
    Audience {
        /// What is accepted.
        expected: Vec<String>,
        /// What the token says.
        found: Vec<String>,
    },
}

/// Go's `%q` of strings: `["a" "b"]`.
fn go_list(items: &[String]) -> String {
    let quoted: Vec<String> = items.iter().map(|i| format!("{i:?}")).collect();
    format!("[{}]", quoted.join(" "))
}

/// A token whose signature and claims were checked. Only [`verify_svid`] and [`verify_wit`] make one.
#[derive(Clone, Debug, PartialEq)]
pub struct VerifiedJwt {
    id: SpiffeId,
    audience: Vec<String>,
    expires_at: Timestamp,
    claims: Map<String, Value>,
}

impl VerifiedJwt {
    /// `sub`
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// `aud`
    pub fn audience(&self) -> &[String] {
        &self.audience
    }

    /// `exp`
    pub fn expires_at(&self) -> Timestamp {
        self.expires_at
    }

    /// Every claim, from the bytes that the signature covers.
    pub fn claims(&self) -> &Map<String, Value> {
        &self.claims
    }
}

/// Validates a JWT-SVID: signature, `typ`, `sub`, `exp`, `nbf`, `iat`, and that one of `audience` is meant
/// (an empty `audience` accepts any). `find_key` looks up a key of the trust domain of `sub` by its ID.
///
/// # Errors
/// [`JwtError`]: form, `typ`, `kid`, `sub` and the presence of `exp` are checked before a key is looked up,
/// the audience and the times after the signature, with a minute of leeway (go-jose's Claims.Validate).
pub fn verify_svid(
    token: &str,
    audience: &[String],
    now: Timestamp,
    find_key: impl FnOnce(&TrustDomain, &str) -> Result<PublicKey, KeyNotFound>,
) -> Result<VerifiedJwt, JwtError> {
    let jws = UnverifiedJws::parse(token).map_err(JwtError::Parse)?;
    if !matches!(jws.typ(), None | Some("JWT" | "JOSE")) {
        return Err(JwtError::Type);
    }
    verify(jws, audience, now, find_key)
}

/// Validates a WIT-SVID: as a JWT-SVID, with its own `typ` and without an audience.
///
/// # Errors
/// As [`verify_svid`], with [`JwtError::WitType`] for another `typ`, and never [`JwtError::Audience`].
pub fn verify_wit(
    token: &str,
    now: Timestamp,
    find_key: impl FnOnce(&TrustDomain, &str) -> Result<PublicKey, KeyNotFound>,
) -> Result<VerifiedJwt, JwtError> {
    let jws = UnverifiedJws::parse(token).map_err(JwtError::Parse)?;
    if jws.typ() != Some("wit+jwt") {
        return Err(JwtError::WitType);
    }
    verify(jws, &[], now, find_key)
}

fn verify(
    jws: UnverifiedJws<'_>,
    audience: &[String],
    now: Timestamp,
    find_key: impl FnOnce(&TrustDomain, &str) -> Result<PublicKey, KeyNotFound>,
) -> Result<VerifiedJwt, JwtError> {
    if jws.kid().is_empty() {
        return Err(JwtError::MissingKeyId);
    }
    // The subject is needed to find the key; it is read again from the verified bytes.
    let unverified = Claims::parse(jws.unverified_payload())?;
    let id = unverified.subject()?;
    if unverified.expires_at.is_none() {
        return Err(JwtError::MissingExpiry);
    }
    let key = find_key(&id.trust_domain(), jws.kid()).map_err(|missing| {
        let trust_domain = id.trust_domain_name().to_owned();
        match missing {
            KeyNotFound::TrustDomain => JwtError::NoTrustDomain(trust_domain),
            KeyNotFound::Key => JwtError::NoKey { kid: jws.kid().to_owned(), trust_domain },
        }
    })?;
    let verified = jws.verify(&key).map_err(JwtError::Signature)?;
    let claims = Claims::parse(verified.payload())?;
    let id = claims.subject()?;
    let expires_at = claims.expires_at.ok_or(JwtError::MissingExpiry)?;
    claims.check(audience, expires_at, now)?;
    Ok(VerifiedJwt { id, audience: claims.audience, expires_at, claims: claims.all })
}

/// The registered claims, typed.
struct Claims {
    audience: Vec<String>,
    expires_at: Option<Timestamp>,
    not_before: Option<Timestamp>,
    issued_at: Option<Timestamp>,
    all: Map<String, Value>,
}

impl Claims {
    fn parse(payload: &[u8]) -> Result<Self, JwtError> {
        let value = json::parse(payload).map_err(|e| JwtError::Claims(e.to_string()))?;
        let Value::Object(all) = value else {
            return Err(JwtError::Claims("payload is not an object".to_owned()));
        };
        let audience = match all.get("aud") {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::String(one)) => vec![one.clone()],
            Some(Value::Array(items)) => items
                .iter()
                .map(|i| i.as_str().map(str::to_owned))
                .collect::<Option<_>>()
                .ok_or_else(bad_audience)?,
            Some(_) => return Err(bad_audience()),
        };
        Ok(Self {
            audience,
            expires_at: date(&all, "exp")?,
            not_before: date(&all, "nbf")?,
            issued_at: date(&all, "iat")?,
            all,
        })
    }

    fn subject(&self) -> Result<SpiffeId, JwtError> {
        match self.all.get("sub") {
            None | Some(Value::Null) => Err(JwtError::MissingSubject),
            Some(Value::String(sub)) if sub.is_empty() => Err(JwtError::MissingSubject),
            Some(Value::String(sub)) => SpiffeId::parse(sub).map_err(JwtError::Subject),
            Some(_) => Err(JwtError::Claims("sub is not a string".to_owned())),
        }
    }

    /// In the order of go-jose's Claims.Validate, with its leeway.
    fn check(&self, audience: &[String], expires_at: Timestamp, now: Timestamp) -> Result<(), JwtError> {
        if !audience.is_empty() && !audience.iter().any(|a| self.audience.contains(a)) {
            return Err(JwtError::Audience { expected: audience.to_vec(), found: self.audience.clone() });
        }
        let latest = now.unix().saturating_add(LEEWAY_SECONDS);
        if self.not_before.is_some_and(|at| at.unix() > latest) {
            return Err(JwtError::NotYetValid);
        }
        if now.unix().saturating_sub(LEEWAY_SECONDS) > expires_at.unix() {
            return Err(JwtError::Expired);
        }
        if self.issued_at.is_some_and(|at| at.unix() > latest) {
            return Err(JwtError::IssuedInTheFuture);
        }
        Ok(())
    }
}

fn bad_audience() -> JwtError {
    JwtError::Claims(
        "go-jose/go-jose/jwt: expected string or array value to unmarshal to Audience".to_owned(),
    )
}

/// A NumericDate: a number, fractions cut off.
fn date(claims: &Map<String, Value>, name: &str) -> Result<Option<Timestamp>, JwtError> {
    match claims.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Number(n)) => {
            // The cast saturates, so a number outside of 64 bits is far past or far future.
            let seconds = n.as_i64().or_else(|| n.as_f64().map(|f| f as i64));
            Ok(seconds.map(Timestamp::from_unix))
        }
        Some(_) => Err(JwtError::Claims(
            "go-jose/go-jose/jwt: expected number value to unmarshal NumericDate".to_owned(),
        )),
    }
}
