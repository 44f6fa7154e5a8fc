//! The signing plane for tokens: JWT-SVIDs and WIT-SVIDs.

use std::time::Duration;

use spire_core::authority::Kind;
use spire_core::pki::jwk::Jwk;
use spire_core::pki::jwt::{JwtSvidClaims, WitSvidClaims, sign_claims};
use spire_core::pki::{JwsError, TokenToBeSigned, validity};
use spire_core::spiffe::SpiffeId;
use spire_core::time::Timestamp;
use spire_ports::observe::names::server as metric;
use spire_ports::plugins::JwtSvidAttributes;

use super::active::ActiveKey;
use super::error::SignError;
use super::sign::ServerCa;
use super::validate;

/// What a JWT-SVID is to say.
#[derive(Clone, Copy, Debug)]
pub struct WorkloadJwtParams<'a> {
    /// The workload's SPIFFE ID.
    pub spiffe_id: &'a SpiffeId,
    /// For whom the token is; empty strings are dropped, one must be left.
    pub audience: &'a [String],
    /// How long it is to be valid; zero for the default. The key's end of life caps it.
    pub ttl: Duration,
    /// Whether it gets an ID of its own.
    pub include_jti: bool,
}

/// What a WIT-SVID is to say.
#[derive(Clone, Copy, Debug)]
pub struct WorkloadWitParams<'a> {
    /// The workload's SPIFFE ID.
    pub spiffe_id: &'a SpiffeId,
    /// The workload's key, with its algorithm.
    pub key: &'a Jwk,
    /// How long it is to be valid; zero for the default. The signing key's end of life caps it.
    pub ttl: Duration,
}

/// A signed token.
#[derive(Clone, PartialEq, Eq)]
pub struct SignedToken {
    /// In compact form. A credential: keep it out of logs.
    pub token: String,
    /// When it was made.
    pub issued_at: Timestamp,
    /// When it expires.
    pub expires_at: Timestamp,
}

/// Shows no token.
impl std::fmt::Debug for SignedToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SignedToken").field("expires_at", &self.expires_at).finish_non_exhaustive()
    }
}

impl ServerCa {
    /// Signs a JWT-SVID.
    ///
    /// # Errors
    /// [`SignError`]; nothing was issued then.
    pub async fn sign_workload_jwt(&self, params: WorkloadJwtParams<'_>) -> Result<SignedToken, SignError> {
        if self.config.jwt_svids_disabled {
            return Err(SignError::Disabled(Kind::Jwt));
        }
        let active = self.jwt.load_full().ok_or(SignError::NotAvailable(Kind::Jwt))?;
        self.check_member("JWT-SVID", params.spiffe_id)?;
        if params.audience.iter().all(String::is_empty) {
            return Err(SignError::NoAudience);
        }
        let ttl = if params.ttl.is_zero() { self.config.jwt_svid_ttl } else { params.ttl };
        let now = self.clock.now();
        let (_, expires_at) = validity(now, ttl, Some(active.not_after));
        let claims = JwtSvidClaims {
            subject: params.spiffe_id,
            audience: params.audience,
            issued_at: now,
            expires_at,
            issuer: &self.config.jwt_issuer,
            jti: if params.include_jti { Some(self.random_bytes()?) } else { None },
        };
        let (to_be_signed, expires_at) = if self.composers.is_empty() {
            validate::token_time("JWT", expires_at, now).map_err(SignError::InvalidToken)?;
            (claims.to_be_signed(active.key.public_key(), &active.kid), expires_at)
        } else {
            let attributes = self.compose_jwt(&claims).await?;
            let claims = claims_of(&attributes)?;
            validate::token("JWT", &claims, params.spiffe_id, now).map_err(SignError::InvalidToken)?;
            let expires_at = claims.get("exp").and_then(serde_json::Value::as_i64);
            let to_be_signed = sign_claims(&claims, active.key.public_key(), &active.kid);
            (to_be_signed, expires_at.map_or(attributes.expires_at, Timestamp::from_unix))
        };
        let token =
            sign_token(&active, to_be_signed, "unable to sign JWT SVID: failed to sign JWT SVID").await?;
        self.metrics.incr_counter(metric::SERVER_CA_SIGN_JWT_SVID, 1.0, &[]);
        Ok(SignedToken { token, issued_at: now, expires_at })
    }

    /// Signs a WIT-SVID.
    ///
    /// # Errors
    /// [`SignError`]; nothing was issued then.
    pub async fn sign_workload_wit(&self, params: WorkloadWitParams<'_>) -> Result<SignedToken, SignError> {
        if !self.config.wit_svids_enabled {
            return Err(SignError::Disabled(Kind::Wit));
        }
        let active = self.wit.load_full().ok_or(SignError::NotAvailable(Kind::Wit))?;
        if params.key.alg.is_empty() {
            return Err(SignError::TokenKey);
        }
        self.check_member("WIT-SVID", params.spiffe_id)?;
        let ttl = if params.ttl.is_zero() { self.config.wit_svid_ttl } else { params.ttl };
        let now = self.clock.now();
        let (_, expires_at) = validity(now, ttl, Some(active.not_after));
        validate::token_time("WIT", expires_at, now).map_err(SignError::InvalidToken)?;
        let claims = WitSvidClaims {
            subject: params.spiffe_id,
            key: params.key,
            issued_at: now,
            expires_at,
            issuer: &self.config.wit_issuer,
        };
        let to_be_signed = claims.to_be_signed(active.key.public_key(), &active.kid);
        // The first words are the reference's, which says JWT here, too.
        let token =
            sign_token(&active, to_be_signed, "unable to sign JWT SVID: failed to sign WIT SVID").await?;
        Ok(SignedToken { token, issued_at: now, expires_at })
    }

    async fn compose_jwt(&self, claims: &JwtSvidClaims<'_>) -> Result<JwtSvidAttributes, SignError> {
        let mut attributes = JwtSvidAttributes {
            claims: claims.to_map().into_iter().map(|(name, value)| (name, value.to_string())).collect(),
            expires_at: claims.expires_at,
        };
        for composer in &self.composers {
            attributes =
                composer.workload_jwt_svid(claims.subject, attributes).await.map_err(SignError::Composer)?;
        }
        Ok(attributes)
    }
}

fn claims_of(
    attributes: &JwtSvidAttributes,
) -> Result<serde_json::Map<String, serde_json::Value>, SignError> {
    attributes
        .claims
        .iter()
        .map(|(name, text)| {
            let value = serde_json::from_str(text)
                .map_err(|error| SignError::Attributes(format!("claim {name:?}: {error}")))?;
            Ok((name.clone(), whole_number(name, value)))
        })
        .collect()
}

/// Times that came back as floating point (composers behind protobuf return them so) as integers again.
#[expect(clippy::cast_possible_truncation, reason = "a cast of f64 saturates, and NaN is no JSON number")]
fn whole_number(name: &str, value: serde_json::Value) -> serde_json::Value {
    match value.as_f64() {
        Some(number) if matches!(name, "iat" | "exp") => (number as i64).into(),
        _ => value,
    }
}

async fn sign_token(
    active: &ActiveKey,
    to_be_signed: Result<TokenToBeSigned, JwsError>,
    what: &'static str,
) -> Result<String, SignError> {
    let bad = |error| SignError::Token { kind: active.kind, error };
    let to_be_signed = to_be_signed.map_err(bad)?;
    let signature = active
        .key
        .sign(to_be_signed.algorithm(), to_be_signed.bytes())
        .await
        .map_err(|source| SignError::Key { what, source })?;
    to_be_signed.assemble(&signature).map_err(bad)
}
