//! The two documents: the keys, encoded once when they change, and what a client starts from.

use bytes::Bytes;
use spire_compat::url::Url;
use spire_core::pki::bundle_doc::indent;
use spire_core::pki::jwk::Jwk;
use spire_core::pki::{KeyType, PublicKey, PublicKeyKind};
use spire_core::time::Timestamp;

use crate::config::Documents;

/// A key as sources give it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwtKey {
    /// `kid`
    pub kid: String,
    /// The key.
    pub key: PublicKey,
}

/// The keys as they are served. It never changes; a change of the keys is another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySet {
    /// The JWKS.
    pub body: Bytes,
    /// When it changed last.
    pub modified: Timestamp,
    /// How many keys there are.
    pub len: usize,
}

impl KeySet {
    /// Encodes keys (RFC 7517), as Go's `json.MarshalIndent` with two blanks writes go-jose's key set.
    pub fn encode(keys: &[JwtKey], set_key_use: bool, modified: Timestamp) -> Self {
        let encoded: Vec<String> = keys.iter().map(|key| encode(key, set_key_use)).collect();
        let compact = format!("{{\"keys\":[{}]}}", encoded.join(","));
        Self { body: Bytes::from(indent(&compact, "  ")), modified, len: keys.len() }
    }
}

fn encode(JwtKey { kid, key }: &JwtKey, set_key_use: bool) -> String {
    let alg = algorithm(key).unwrap_or_else(|error| {
        tracing::error!(kid, error, "Failed to get public key algorithm");
        ""
    });
    let key_use = if set_key_use { "sig" } else { "" };
    Jwk { kid: kid.clone(), alg: alg.to_owned(), key_use: key_use.to_owned(), ..Jwk::new(key.clone()) }
        .to_json()
}

/// pkg/common/cryptoutil: JoseAlgFromPublicKey
fn algorithm(key: &PublicKey) -> Result<&'static str, String> {
    match (key.key_type(), key.kind()) {
        (Some(KeyType::EcP256), _) => Ok("ES256"),
        (Some(KeyType::EcP384), _) => Ok("ES384"),
        (_, PublicKeyKind::Rsa { .. }) => Ok("RS256"),
        (_, PublicKeyKind::EcP521) => {
            Err("unable to determine signature algorithm for EC public key size 521".to_owned())
        }
        _ => Err("unable to determine signature algorithm for public key type ed25519.PublicKey".to_owned()),
    }
}

/// The discovery document (OpenID Connect Discovery 1.0, section 3) for a client that reached us by `scheme` at `host`,
/// which was verified.
pub(crate) fn discovery(documents: &Documents, scheme: &str, host: &str) -> Result<String, String> {
    let prefix = documents.routes.prefix();
    let own = |path: String| Url { scheme: scheme.to_owned(), host: host.to_owned(), path, ..Url::default() };
    let issuer = match &documents.jwt_issuer {
        Some(issuer) => issuer.to_text(),
        None => own(if prefix == "/" { String::new() } else { prefix.to_owned() }).to_text(),
    };
    let jwks_uri = match (&documents.jwks_uri, &documents.jwt_issuer) {
        (Some(uri), _) => uri.to_text(),
        (None, Some(issuer)) => {
            let path = Url::join_path(&issuer.path, "keys")?;
            let (scheme, host) = (issuer.scheme.clone(), issuer.host.clone());
            Url { scheme, host, path, ..Url::default() }.to_text()
        }
        (None, None) => own(Url::join_path(prefix, "keys")?).to_text(),
    };
    let (issuer, jwks_uri) = (quoted(&issuer), quoted(&jwks_uri));
    Ok(format!(
        r#"{{
  "issuer": {issuer},
  "jwks_uri": {jwks_uri},
  "authorization_endpoint": "",
  "response_types_supported": [
    "id_token"
  ],
  "subject_types_supported": [
    "public"
  ],
  "id_token_signing_alg_values_supported": [
    "RS256",
    "ES256",
    "ES384"
  ]
}}"#
    ))
}

/// A JSON string with Go's escapes.
fn quoted(text: &str) -> String {
    spire_core::pki::json_string(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    #[test]
    fn keys_are_written_as_the_reference_writes_them() {
        let keys = [fixture::key("one", fixture::EC_KEY)];
        let set = KeySet::encode(&keys, false, Timestamp::EPOCH);
        assert_eq!(std::str::from_utf8(&set.body).unwrap(), fixture::EC_JWKS);
        assert_eq!(set.len, 1);
        let with_use = KeySet::encode(&keys, true, Timestamp::EPOCH);
        let expected = fixture::EC_JWKS.replace("      \"kty\"", "      \"use\": \"sig\",\n      \"kty\"");
        assert_eq!(std::str::from_utf8(&with_use.body).unwrap(), expected);
        assert_eq!(KeySet::encode(&[], false, Timestamp::EPOCH).len, 0);
    }

    #[test]
    fn issuer_and_keys_are_where_the_settings_say() {
        let url = |text: &str| Some(Url::parse(text).unwrap());
        let base = fixture::documents(&["h"]);
        let prefixed = Documents { routes: crate::routes::Routes::new("/a b").unwrap(), ..base.clone() };
        let issued = Documents { jwt_issuer: url("https://i/p?q=1"), ..base.clone() };
        let bare = Documents { jwt_issuer: url("https://i"), ..base.clone() };
        let blank = Documents { jwt_issuer: url("https://i/a%20b"), ..base.clone() };
        let both = Documents { jwks_uri: url("https://k/x"), ..issued.clone() };
        let keys_only = Documents { jwks_uri: url("https://k/x"), ..prefixed.clone() };
        for (documents, issuer, jwks_uri) in [
            (&base, "https://h:1", "https://h:1/keys"),
            (&prefixed, "https://h:1/a%20b", "https://h:1/a%2520b/keys"),
            (&issued, "https://i/p?q=1", "https://i/p/keys"),
            (&bare, "https://i", "https://i/keys"),
            // The reference escapes twice.
            (&blank, "https://i/a%20b", "https://i/a%2520b/keys"),
            (&both, "https://i/p?q=1", "https://k/x"),
            (&keys_only, "https://h:1/a%20b", "https://k/x"),
        ] {
            let document = discovery(documents, "https", "h:1").unwrap();
            assert!(document.contains(&format!("\n  \"issuer\": \"{issuer}\",\n")), "{document}");
            assert!(document.contains(&format!("\n  \"jwks_uri\": \"{jwks_uri}\",\n")), "{document}");
        }
        let document = discovery(&base, "http", "h:<x>").unwrap();
        assert!(document.contains(r#""issuer": "http://h:\u003cx\u003e""#), "{document}");
    }
}
