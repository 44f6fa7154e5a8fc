//! Private keys as JWK, read back by other means.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::super::der::Writer;
use super::*;

fn members(key: &LocalKey, alg: &str) -> Value {
    let text = key.to_jwk(alg).unwrap();
    let jwk: Value = serde_json::from_str(&text).unwrap();
    assert!(Jwk::from_value(&jwk).is_err(), "it must not be taken for a public key");
    let mut public = jwk.clone();
    public.as_object_mut().unwrap().remove("d");
    assert_eq!(Jwk::from_value(&public).unwrap().key, *key.public_key(), "the public part is the key's");
    assert_eq!(jwk["alg"], alg);
    assert!(text.len() < 4096, "it must not outgrow its buffer");
    jwk
}

fn member(jwk: &Value, name: &str) -> Vec<u8> {
    URL_SAFE_NO_PAD.decode(jwk[name].as_str().unwrap()).unwrap()
}

#[test]
fn ec_keys_have_a_scalar_of_the_curve_s_length() {
    for (kind, alg, len) in [(KeyType::EcP256, "ES256", 32), (KeyType::EcP384, "ES384", 48)] {
        let key = LocalKey::generate(kind).unwrap();
        let jwk = members(&key, alg);
        let d = member(&jwk, "d");
        assert_eq!(d.len(), len);
        let pkcs8 = key.to_pkcs8().unwrap();
        assert!(pkcs8.windows(len).any(|part| part == d), "the scalar is that of PKCS#8");
        assert!(!d.is_empty() && jwk.get("p").is_none());
    }
}

#[test]
fn rsa_keys_have_all_parts() {
    let key = key(&vectors(), "rsa");
    let jwk = members(&key, "RS256");
    let mut writer = Writer::with_capacity(2048);
    writer.sequence(|w| {
        w.unsigned(&[]);
        for name in ["n", "e", "d", "p", "q", "dp", "dq", "qi"] {
            w.unsigned(&member(&jwk, name));
        }
    });
    let again = LocalKey::from_pkcs1(&writer.into_bytes()).unwrap();
    assert_eq!(again.to_pkcs8().unwrap(), key.to_pkcs8().unwrap());
}
