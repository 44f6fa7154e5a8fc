//! Keys and settings for tests.

use spire_core::pki::jwk::Jwk;

use crate::config::Documents;
use crate::document::JwtKey;
use crate::domains::Domains;
use crate::routes::Routes;

pub(crate) const EC_KEY: &str = r#"{"kty":"EC","crv":"P-256","x":"ngLYQnlfF6GsojUwqtcEE3WgTNG2RUlsGhK73RNEl5k","y":"tKbiDSUSsQ3F1P7wteeHNXIcU-cx6CgSbroeQrQHTLM"}"#;

/// What SPIRE's provider answers for it.
pub(crate) const EC_JWKS: &str = r#"{
  "keys": [
    {
      "kty": "EC",
      "kid": "one",
      "crv": "P-256",
      "alg": "ES256",
      "x": "ngLYQnlfF6GsojUwqtcEE3WgTNG2RUlsGhK73RNEl5k",
      "y": "tKbiDSUSsQ3F1P7wteeHNXIcU-cx6CgSbroeQrQHTLM"
    }
  ]
}"#;

pub(crate) fn key(kid: &str, jwk: &str) -> JwtKey {
    JwtKey { kid: kid.to_owned(), key: Jwk::from_slice(jwk.as_bytes()).unwrap().key }
}

/// The default settings for these names.
pub(crate) fn documents(names: &[&str]) -> Documents {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    Documents {
        domains: Domains::new(&names).unwrap(),
        set_key_use: false,
        allow_insecure_scheme: false,
        jwt_issuer: None,
        jwks_uri: None,
        routes: Routes::new("").unwrap(),
    }
}
