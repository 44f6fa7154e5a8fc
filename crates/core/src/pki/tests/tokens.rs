//! Tokens, keys and bundles as JSON.

use super::super::bundle_doc::{Format, Reading};
use super::super::jwt::{JwtError, JwtSvidClaims, KeyNotFound, WitSvidClaims};
use super::*;
use crate::spiffe::{Bundle, JwtAuthority, SpiffeId, X509Authority};

#[test]
fn tokens_are_those_of_the_reference_byte_for_byte() {
    let v = vectors();
    let id = SpiffeId::parse(ID).unwrap();
    let audience = strings(&["a<b>&c", "", "d"]);
    for expected in v["tokens"].as_array().unwrap() {
        let name = expected["key"].as_str().unwrap();
        let theirs = expected["token"].as_str().unwrap();
        let key = key(&v, name);
        let kid = format!("kid-{name}");
        let claims = JwtSvidClaims {
            subject: &id,
            audience: &audience,
            issued_at: now(),
            expires_at: now() + Duration::from_secs(300),
            issuer: "https://issuer",
            jti: None,
        };
        let built = claims.to_be_signed(key.public_key(), &kid).unwrap();
        assert_eq!(built.bytes(), theirs.rsplit_once('.').unwrap().0.as_bytes(), "{name}");
        assert_eq!(jwt::sign_claims(&claims.to_map(), key.public_key(), &kid).unwrap(), built);
        let signature = key.sign(built.algorithm(), built.bytes()).unwrap();
        let ours = built.assemble(&signature).unwrap();
        for token in [&ours, theirs] {
            let find = |td: &TrustDomain, asked: &str| {
                assert_eq!((td.name(), asked), ("example.org", kid.as_str()));
                Ok(key.public_key().clone())
            };
            let verified = jwt::verify_svid(token, &strings(&["x", "d"]), now(), find).unwrap();
            assert_eq!(verified.id(), &id);
            assert_eq!(verified.audience(), ["a<b>&c", "d"]);
            assert_eq!(verified.expires_at(), claims.expires_at);
            assert_eq!(verified.claims()["iss"], "https://issuer");
        }
    }
    let rsa = key(&v, "rsa");
    let pss = v["pss_token"].as_str().unwrap();
    jwt::verify_svid(pss, &strings(&["x"]), now(), |_, _| Ok(rsa.public_key().clone())).unwrap();
}

#[test]
fn wit_svids_are_those_of_the_reference_byte_for_byte() {
    let v = vectors();
    let (signer, workload) = (key(&v, "p256"), key(&v, "workload"));
    let id = SpiffeId::parse(ID).unwrap();
    let jwk = Jwk { alg: "ES256".into(), ..Jwk::new(workload.public_key().clone()) };
    let claims = WitSvidClaims {
        subject: &id,
        key: &jwk,
        issued_at: now(),
        expires_at: now() + Duration::from_secs(3600),
        issuer: "",
    };
    let built = claims.to_be_signed(signer.public_key(), "w").unwrap();
    let theirs = v["wit_token"].as_str().unwrap();
    assert_eq!(built.bytes(), theirs.rsplit_once('.').unwrap().0.as_bytes());
    let verified = jwt::verify_wit(theirs, now(), |_, _| Ok(signer.public_key().clone())).unwrap();
    assert_eq!(Jwk::from_value(&verified.claims()["cnf"]["jwk"]).unwrap(), jwk);
    let as_jwt = jwt::verify_svid(theirs, &[], now(), |_, _| Ok(signer.public_key().clone()));
    assert_eq!(as_jwt, Err(JwtError::Type));
}

/// Signs arbitrary claims and gives what verification says about them.
fn verdict(claims: Value, audience: &[&str]) -> String {
    let v = vectors();
    let key = key(&v, "p256");
    let built = jwt::sign_claims(claims.as_object().unwrap(), key.public_key(), "k").unwrap();
    let signature = key.sign(built.algorithm(), built.bytes()).unwrap();
    let token = built.assemble(&signature).unwrap();
    let result = jwt::verify_svid(&token, &strings(audience), now(), |_, _| Ok(key.public_key().clone()));
    result.map_or_else(|e| e.to_string(), |_| String::new())
}

#[test]
fn claims_are_judged_as_the_reference_does() {
    let at = |offset: i64| now().unix() + offset;
    for (claims, audience, expected) in [
        (serde_json::json!({"sub": ID, "exp": at(0), "aud": "a"}), &["a"][..], ""),
        (serde_json::json!({"sub": ID, "exp": at(-60), "aud": "a"}), &["a"], ""),
        (serde_json::json!({"sub": ID, "exp": at(-61), "aud": "a"}), &["a"], "token has expired"),
        (serde_json::json!({"sub": ID, "exp": at(1) as f64 + 0.5}), &[], ""),
        (serde_json::json!({"sub": ID}), &[], "token missing exp claim"),
        (serde_json::json!({"sub": ID, "exp": null}), &[], "token missing exp claim"),
        (
            serde_json::json!({"sub": ID, "exp": "1"}),
            &[],
            "unable to get claims from token: go-jose/go-jose/jwt: expected number value to unmarshal NumericDate",
        ),
        (serde_json::json!({"exp": at(1)}), &[], "token missing subject claim"),
        (
            serde_json::json!({"sub": "x", "exp": at(1)}),
            &[],
            "token has in invalid subject claim: scheme is missing or invalid",
        ),
        (serde_json::json!({"sub": ID, "exp": at(1), "nbf": at(60), "iat": at(60)}), &[], ""),
        (
            serde_json::json!({"sub": ID, "exp": at(1), "nbf": at(61)}),
            &[],
            "go-jose/go-jose/jwt: validation failed, token not valid yet (nbf)",
        ),
        (
            serde_json::json!({"sub": ID, "exp": at(1), "iat": at(61)}),
            &[],
            "go-jose/go-jose/jwt: validation field, token issued in the future (iat)",
        ),
        (
            serde_json::json!({"sub": ID, "exp": at(1), "aud": ["b", "c"]}),
            &["a", "d"],
            r#"expected audience in ["a" "d"] (audience=["b" "c"])"#,
        ),
    ] {
        assert_eq!(verdict(claims.clone(), audience), expected, "{claims}");
    }
}

#[test]
fn tokens_that_are_not_strictly_tokens_are_refused() {
    use base64::Engine as _;

    let v = vectors();
    let key = key(&v, "p256");
    let good = v["tokens"][0]["token"].as_str().unwrap();
    let (_, rest) = good.split_once('.').unwrap();
    let with_header =
        |header: &str| format!("{}.{rest}", base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(header));
    for (token, expected) in [
        (
            "a.b".to_owned(),
            "unable to parse JWT token: go-jose/go-jose: compact JWS format must have three parts",
        ),
        (
            format!("{good}.x"),
            "unable to parse JWT token: go-jose/go-jose: compact JWS format must have three parts",
        ),
        (
            with_header(r#"{"alg":"none","kid":"k"}"#),
            r#"unable to parse JWT token: unexpected signature algorithm "none"; expected ["ES256" "ES384" "ES512" "RS256" "RS384" "RS512" "PS256" "PS384" "PS512"]"#,
        ),
        (
            with_header(r#"{"alg":"ES256","kid":"k","crit":["x"]}"#),
            "unable to parse JWT token: go-jose/go-jose: unsupported critical header",
        ),
        (
            with_header(r#"{"alg":"ES256","kid":"k","typ":"at+jwt"}"#),
            "token header type not equal to either JWT or JOSE",
        ),
        (with_header(r#"{"alg":"ES256"}"#), "token header missing key id"),
        (with_header(r#"{"alg":"RS256","kid":"k"}"#), "go-jose/go-jose: error in cryptographic primitive"),
        (with_header(r#"{"alg":"ES384","kid":"k"}"#), "go-jose/go-jose: error in cryptographic primitive"),
        (
            with_header(r#"{"alg":"ES256","kid":"other","typ":"JOSE"}"#),
            "go-jose/go-jose: error in cryptographic primitive",
        ),
        ("x".repeat(MAX_TOKEN_BYTES + 1), "unable to parse JWT token: token is too large"),
    ] {
        let error = jwt::verify_svid(&token, &[], now(), |_, _| Ok(key.public_key().clone())).unwrap_err();
        assert_eq!(error.to_string(), expected);
    }
    let missing = |missing| jwt::verify_svid(good, &[], now(), |_, _| Err(missing)).unwrap_err().to_string();
    assert_eq!(missing(KeyNotFound::TrustDomain), r#"no keys found for trust domain "example.org""#);
    assert!(missing(KeyNotFound::Key).ends_with(r#" not found in trust domain "example.org""#));
}

fn bundle(v: &Value) -> Bundle {
    let mut bundle = Bundle::empty(TrustDomain::parse("example.org").unwrap());
    for name in ["ca-p256", "ca-rsa"] {
        let der = certificate(v, name).der().clone();
        bundle.x509_authorities.push(X509Authority { der, tainted: false });
    }
    bundle.jwt_authorities.push(JwtAuthority {
        kid: "kid-p384".into(),
        public_key: key(v, "p384").public_key().spki().clone(),
        not_after: Timestamp::EPOCH,
        tainted: false,
    });
    bundle.sequence_number = 7;
    bundle.refresh_hint = Duration::from_secs(300);
    bundle
}

#[test]
fn bundles_are_written_and_read_as_the_reference_does() {
    let v = vectors();
    let expected = &v["bundle"];
    let bundle = bundle(&v);
    let td = &bundle.trust_domain;
    assert_eq!(bundle_doc::marshal(&bundle, Format::SPIFFE).unwrap(), expected["spire"].as_str().unwrap());
    assert_eq!(
        bundle_doc::marshal_compact(&bundle, Format::SPIFFE).unwrap(),
        expected["gospiffe"].as_str().unwrap()
    );
    assert_eq!(bundle_doc::marshal(&bundle, Format::JWT_JWKS).unwrap(), expected["jwks"].as_str().unwrap());
    assert_eq!(
        bundle_doc::marshal(&Bundle::empty(td.clone()), Format::SPIFFE).unwrap(),
        expected["empty"].as_str().unwrap()
    );
    let text = expected["spire"].as_str().unwrap().as_bytes();
    assert_eq!(bundle_doc::parse(td, text, Reading::GoSpiffe).unwrap(), bundle);
    let read = bundle_doc::parse(td, text, Reading::Reference).unwrap();
    assert_eq!(read, Bundle { sequence_number: 0, ..bundle.clone() });
    let jwks = expected["jwks"].as_str().unwrap().as_bytes();
    assert_eq!(bundle_doc::parse_jwks(jwks).unwrap(), bundle.jwt_authorities);
}

#[test]
fn bundles_that_are_not_are_refused_with_the_references_words() {
    let v = vectors();
    let td = TrustDomain::parse("example.org").unwrap();
    let key = Jwk::new(key(&v, "p256").public_key().clone()).to_json();
    let entry = |extra: &str| format!(r#"{{"keys":[{{{extra}{}]}}"#, &key[1..]);
    for (document, how, expected) in [
        (entry(""), Reading::Reference, "missing use for key entry 0"),
        (entry(r#""use":"sig","#), Reading::Reference, r#"unrecognized use "sig" for key entry 0"#),
        (entry(r#""use":"sig","#), Reading::GoSpiffe, ""),
        (entry(r#""use":"jwt-svid","#), Reading::Reference, "missing key ID in jwt-svid entry 0"),
        (
            entry(r#""use":"x509-svid","#),
            Reading::Reference,
            "expected a single certificate in x509-svid entry 0; got 0",
        ),
        ("{}".to_owned(), Reading::GoSpiffe, "no authorities found"),
        ("{}".to_owned(), Reading::Reference, ""),
        ("[]".to_owned(), Reading::Reference, "malformed bundle: not an object"),
    ] {
        let result = bundle_doc::parse(&td, document.as_bytes(), how);
        assert_eq!(result.map_or_else(|e| e.to_string(), |_| String::new()), expected, "{document}");
    }
    let mut private: Value = serde_json::from_str(&key).unwrap();
    private["d"] = "AAAA".into();
    assert_eq!(Jwk::from_value(&private), Err(jwk::JwkError::NotPublic));
    let mut off_curve: Value = serde_json::from_str(&key).unwrap();
    off_curve["x"] = off_curve["y"].clone();
    assert!(Jwk::from_value(&off_curve).is_err());
}
