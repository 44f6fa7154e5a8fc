//! Checks of credentials after credential composers had a hand in them (pkg/server/credvalidator).

use spire_core::pki::{Certificate, KeyUsage};
use spire_core::spiffe::SpiffeId;
use spire_core::time::Timestamp;
use time::format_description::well_known::Rfc3339;

/// What is wrong with a credential. Texts are the reference's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct CredentialError(pub String);

fn bad<T>(text: impl Into<String>) -> Result<T, CredentialError> {
    Err(CredentialError(text.into()))
}

/// RFC 3339, as Go formats a UTC time of whole seconds.
pub(super) fn rfc3339(at: Timestamp) -> String {
    at.to_utc().format(&Rfc3339).unwrap_or_else(|_| at.to_string())
}

/// A CA certificate must be one, for certificates only, of this trust domain, and valid now.
pub(super) fn x509_ca(
    ca: &Certificate,
    trust_domain: &SpiffeId,
    now: Timestamp,
) -> Result<(), CredentialError> {
    if ca.basic_constraints().is_none() {
        return bad("invalid X509 CA: basic constraints are not valid");
    }
    if !ca.is_ca() {
        return bad("invalid X509 CA: cA constraint is not set");
    }
    if !ca.key_usage().contains(KeyUsage::CERT_SIGN) {
        return bad("invalid X509 CA: keyCertSign key usage must be set");
    }
    let allowed = KeyUsage::CERT_SIGN.union(KeyUsage::CRL_SIGN).union(KeyUsage::DIGITAL_SIGNATURE);
    if !allowed.contains(ca.key_usage()) {
        return bad("invalid X509 CA: only keyCertSign, cRLSign, or digitalSignature key usage can be set");
    }
    // A CA should be an SVID itself, but need not.
    if !ca.uris().is_empty() {
        uri_san(ca, trust_domain).or_else(|e| bad(format!("invalid X509 CA: {e}")))?;
    }
    valid_now(ca.not_before(), ca.not_after(), now).or_else(|e| bad(format!("invalid X509 CA: {e}")))
}

/// An X.509-SVID must be no CA, for signatures and key exchange, of exactly this SPIFFE ID, and valid now.
pub(super) fn x509_svid(svid: &Certificate, id: &SpiffeId, now: Timestamp) -> Result<(), CredentialError> {
    if svid.basic_constraints().is_none() {
        return bad("invalid X509-SVID: basic constraints are not valid");
    }
    if svid.is_ca() {
        return bad("invalid X509-SVID: cA constraint must not be set");
    }
    if !svid.key_usage().contains(KeyUsage::DIGITAL_SIGNATURE) {
        return bad("invalid X509-SVID: digitalSignature key usage must be set");
    }
    let allowed =
        KeyUsage::DIGITAL_SIGNATURE.union(KeyUsage::KEY_ENCIPHERMENT).union(KeyUsage::KEY_AGREEMENT);
    if !allowed.contains(svid.key_usage()) {
        return bad(
            "invalid X509-SVID: only digitalSignature, keyEncipherment, and keyAgreement key usage can be set",
        );
    }
    let eku = svid.extended_key_usage();
    if !eku.is_empty() {
        match (eku.server_auth, eku.client_auth) {
            (true, true) => {}
            (false, true) => return bad("invalid X509-SVID: missing serverAuth extended key usage"),
            (true, false) => return bad("invalid X509-SVID: missing clientAuth extended key usage"),
            (false, false) => {
                return bad("invalid X509-SVID: missing both serverAuth and clientAuth extended key usage");
            }
        }
    }
    if svid.uris().is_empty() {
        return bad("invalid X509-SVID: missing URI SAN");
    }
    uri_san(svid, id).or_else(|e| bad(format!("invalid X509-SVID: {e}")))?;
    x509_svid_time(svid.not_before(), svid.not_after(), now)
}

/// The check that even a certificate of our own template needs: its CA may have expired.
pub(super) fn x509_svid_time(
    not_before: Timestamp,
    not_after: Timestamp,
    now: Timestamp,
) -> Result<(), CredentialError> {
    valid_now(not_before, not_after, now).or_else(|e| bad(format!("invalid X509-SVID: {e}")))
}

/// What a token must say. `what` is `JWT` or `WIT`; only JWT-SVIDs need an audience.
pub(super) fn token(
    what: &str,
    claims: &serde_json::Map<String, serde_json::Value>,
    id: &SpiffeId,
    now: Timestamp,
) -> Result<(), CredentialError> {
    let date = |name: &str| claims.get(name).and_then(serde_json::Value::as_f64);
    let subject = claims.get("sub").and_then(serde_json::Value::as_str).unwrap_or_default();
    if subject != id.as_str() {
        return bad(format!(
            "invalid {what}-SVID \"sub\" claim: expected {:?} but got {subject:?}",
            id.as_str()
        ));
    }
    let Some(expiry) = date("exp") else {
        return bad(format!("invalid {what}-SVID \"exp\" claim: required but missing"));
    };
    token_time(what, seconds(expiry), now)?;
    if let Some(from) = date("nbf").map(seconds).filter(|from| *from > now) {
        return bad(format!("invalid {what}-SVID \"nbf\" claim: not yet valid until {}", rfc3339(from)));
    }
    let audience = match claims.get("aud") {
        None | Some(serde_json::Value::Null) => Vec::new(),
        Some(serde_json::Value::Array(all)) => all.iter().map(|a| a.as_str().unwrap_or_default()).collect(),
        Some(one) => vec![one.as_str().unwrap_or_default()],
    };
    if audience.is_empty() && what == "JWT" {
        return bad("invalid JWT-SVID \"aud\" claim: required but missing");
    }
    if audience.contains(&"") {
        return bad(format!("invalid {what}-SVID \"aud\" claim: contains empty value"));
    }
    Ok(())
}

/// The check that even a token of our own claims needs: its key may have expired.
pub(super) fn token_time(what: &str, expiry: Timestamp, now: Timestamp) -> Result<(), CredentialError> {
    if expiry > now {
        return Ok(());
    }
    bad(format!("invalid {what}-SVID \"exp\" claim: already expired as of {}", rfc3339(expiry)))
}

#[expect(clippy::cast_possible_truncation, reason = "a cast of f64 saturates, and NaN is no JSON number")]
fn seconds(date: f64) -> Timestamp {
    Timestamp::from_unix(date as i64)
}

fn uri_san(certificate: &Certificate, id: &SpiffeId) -> Result<(), String> {
    match certificate.uris() {
        [uri] if uri == id.as_str() => Ok(()),
        [uri] => Err(format!("expected URI SAN {:?} but got {uri:?}", id.as_str())),
        several => Err(format!("expected URI SAN {:?} but got {several:?}", id.as_str())),
    }
}

fn valid_now(not_before: Timestamp, not_after: Timestamp, now: Timestamp) -> Result<(), String> {
    if now < not_before {
        return Err(format!("not yet valid until {}", rfc3339(not_before)));
    }
    if now > not_after {
        return Err(format!("already expired as of {}", rfc3339(not_after)));
    }
    Ok(())
}
