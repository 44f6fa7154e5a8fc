//! Byte-for-byte comparison with what SPIRE makes on Go, and behaviour that has no counterpart there.

use std::time::Duration;

use serde_json::Value;

use super::bundle_doc::{self, Format, Reading};
use super::chain::{self, Purpose};
use super::jwk::Jwk;
use super::jwt::{self, JwtError, JwtSvidClaims, KeyNotFound, WitSvidClaims};
use super::*;
use crate::spiffe::{Bundle, JwtAuthority, SpiffeId, TrustDomain, X509Authority};
use crate::time::Timestamp;

mod fuzz;

const ID: &str = "spiffe://example.org/workload";

fn now() -> Timestamp {
    Timestamp::from_unix(1_700_000_000)
}

fn vectors() -> Value {
    serde_json::from_str(include_str!("testdata/go_vectors.json")).unwrap()
}

fn unhex(value: &Value) -> Vec<u8> {
    hex::decode(value.as_str().unwrap()).unwrap()
}

fn named<'v>(list: &'v Value, name: &str) -> &'v Value {
    list.as_array().unwrap().iter().find(|v| v["name"] == name).unwrap()
}

fn key(v: &Value, name: &str) -> LocalKey {
    LocalKey::from_pkcs8(&unhex(&v["keys"][name]["pkcs8"])).unwrap()
}

fn certificate(v: &Value, name: &str) -> Certificate {
    Certificate::from_der(unhex(&named(&v["certificates"], name)["der"])).unwrap()
}

fn serial(v: &Value) -> SerialNumber {
    let text = v["serial_hex"].as_str().unwrap();
    let bytes = hex::decode(format!("{text:0>32}")).unwrap();
    SerialNumber::from_random(bytes.try_into().unwrap())
}

fn strings(items: &[&str]) -> Vec<String> {
    items.iter().map(|s| (*s).to_owned()).collect()
}

#[test]
fn keys_read_and_identify_as_in_go() {
    let v = vectors();
    for name in ["p256", "p384", "rsa", "workload"] {
        let expected = &v["keys"][name];
        let key = key(&v, name);
        let public = key.public_key();
        assert_eq!(public.spki()[..], unhex(&expected["spki"]), "{name}");
        assert_eq!(public.subject_key_id().to_string(), expected["ski"].as_str().unwrap());
        assert_eq!(key.to_pkcs8().unwrap()[..], unhex(&expected["pkcs8"]));
        let legacy = unhex(&expected["legacy"]);
        assert_eq!(LocalKey::from_der(&legacy).unwrap().public_key(), public);
        let label = if name == "rsa" { "RSA PRIVATE KEY" } else { "EC PRIVATE KEY" };
        let text = format!("{}{}", pem::encode("EC PARAMETERS", &[5, 0]), pem::encode(label, &legacy));
        assert_eq!(LocalKey::from_pem(text.as_bytes()).unwrap().public_key(), public);
        assert_eq!(LocalKey::from_pem(key.to_pkcs8_pem().unwrap().as_bytes()).unwrap().public_key(), public);

        let mut jwk = Jwk::new(public.clone());
        jwk.kid = format!("kid-{name}");
        assert_eq!(jwk.to_json(), expected["jwk"].as_str().unwrap());
        assert_eq!(Jwk::from_slice(jwk.to_json().as_bytes()).unwrap(), jwk);
        assert_eq!(jwk.thumbprint(), unhex(&expected["thumbprint"]));
    }
}

#[test]
fn made_keys_sign_what_their_public_part_verifies() {
    for key_type in [KeyType::EcP256, KeyType::EcP384, KeyType::Rsa2048] {
        let key = LocalKey::generate(key_type).unwrap();
        assert_eq!(key.public_key().key_type(), Some(key_type));
        let algorithm = key_type.signature_algorithm();
        let signature = key.sign(algorithm, b"message").unwrap();
        key.public_key().verify(algorithm, b"message", &signature).unwrap();
        assert!(key.public_key().verify(algorithm, b"massage", &signature).is_err());
        let hash = algorithm.hash().unwrap().digest(b"message");
        let signature = key.sign_digest(algorithm, hash.as_ref()).unwrap();
        key.public_key().verify(algorithm, b"message", &signature).unwrap();
        assert!(key.sign_digest(algorithm, &hash.as_ref()[1..]).is_err());
    }
    let rsa = LocalKey::generate(KeyType::Rsa2048).unwrap();
    for algorithm in [SignatureAlgorithm::RsaPssSha256, SignatureAlgorithm::RsaPkcs1Sha512] {
        let signature = rsa.sign(algorithm, b"message").unwrap();
        rsa.public_key().verify(algorithm, b"message", &signature).unwrap();
    }
    assert!(rsa.sign(SignatureAlgorithm::EcdsaSha256, b"").is_err());
    assert_eq!("EC-P384".parse(), Ok(KeyType::EcP384));
    assert_eq!(
        "ec-p521".parse::<KeyType>().unwrap_err().to_string(),
        r#"key type "ec-p521" is unknown; must be one of [rsa-2048, rsa-4096, ec-p256, ec-p384]"#
    );
}

/// Builds the certificate of that name as the reference's template builder does.
fn build(v: &Value, name: &str) -> ToBeSigned {
    let expected = named(&v["certificates"], name);
    let public = key(v, expected["key"].as_str().unwrap()).public_key().clone();
    let serial = serial(expected);
    let parent = certificate(v, &format!("ca-{}", expected["issuer"].as_str().unwrap()));
    let profile = if expected["is_ca"] == true { Profile::Ca } else { Profile::Svid };
    let mut subject = match name {
        _ if name.starts_with("ca-") => ca_subject(&DistinguishedName::default_ca(), serial),
        "downstream" => downstream_subject(&parent.subject(), 1),
        _ => DistinguishedName::default_svid(),
    };
    let (mut not_before, mut not_after) = match profile {
        Profile::Ca if name.starts_with("ca-") => validity(now(), Duration::from_secs(86400), None),
        _ => validity(now(), Duration::from_secs(3600), Some(parent.not_after())),
    };
    let mut uri = if profile == Profile::Ca { "spiffe://example.org" } else { ID };
    let mut dns_names = Vec::new();
    let mut extra = Vec::new();
    match name {
        "svid-dns-capped" => {
            (not_before, not_after) =
                validity(now(), Duration::from_secs(3000 * 3600), Some(parent.not_after()));
            dns_names = strings(&["a.example", "*.b.example"]);
            subject.common_name = dns_names[0].clone();
        }
        "svid-uniqueid" => subject.push_unique_id(ID),
        "svid-subject-extra" => {
            subject = DistinguishedName {
                country: strings(&["DE", "AT", "CH"]),
                organization: strings(&["A*B", "Zoë & Co"]),
                organizational_unit: strings(&["u,v"]),
                locality: strings(&["L"]),
                province: strings(&["P"]),
                street_address: strings(&["S 1"]),
                postal_code: strings(&["12"]),
                common_name: "#x y ".into(),
                ..Default::default()
            };
            extra.push(Extension::new("1.2.3.4", false, vec![5, 0]).unwrap());
        }
        "svid-empty-subject-2052" => {
            subject = DistinguishedName::default();
            (not_before, not_after) =
                (Timestamp::from_unix(-700_000_000), Timestamp::from_unix(2_600_000_000));
        }
        "upstream-signed" => {
            let csr = VerifiedCsr::from_der(unhex(&named(&v["csrs"], "upstream")["der"])).unwrap();
            subject = csr.subject();
            extra = csr.extensions().to_vec();
            uri = "";
        }
        _ => {}
    }
    let template = CertificateTemplate {
        profile,
        serial,
        subject: &subject.encode().unwrap(),
        not_before,
        not_after,
        public_key: &public,
        dns_names: &dns_names,
        uri,
        policies: &[],
        extra_extensions: &extra,
    };
    if name.starts_with("ca-") {
        self_signed(&template).unwrap()
    } else {
        Issuer::new(&parent).unwrap().certificate(&template).unwrap()
    }
}

#[test]
fn certificates_are_those_of_the_reference_byte_for_byte() {
    let v = vectors();
    for expected in v["certificates"].as_array().unwrap() {
        let name = expected["name"].as_str().unwrap();
        let built = build(&v, name);
        assert_eq!(hex::encode(built.bytes()), expected["tbs"].as_str().unwrap(), "{name}");
        // With Go's signature the whole is Go's.
        let theirs = Certificate::from_der(unhex(&expected["der"])).unwrap();
        assert_eq!(built.algorithm(), theirs.signature_algorithm().unwrap());
        assert_eq!(built.clone().assemble(theirs.signature()), theirs.der()[..], "{name}");
        // With ours it is valid.
        let issuer = expected["issuer"].as_str().unwrap();
        let signature = key(&v, issuer).sign(built.algorithm(), built.bytes()).unwrap();
        let ours = Certificate::from_der(built.assemble(&signature)).unwrap();
        ours.check_signature(&certificate(&v, &format!("ca-{issuer}"))).unwrap();
    }
}

#[test]
fn certificates_are_read_as_go_reads_them() {
    let v = vectors();
    for expected in v["certificates"].as_array().unwrap() {
        let der = unhex(&expected["der"]);
        let c = Certificate::from_der(der.clone()).unwrap();
        assert_eq!(c.serial(), expected["serial"].as_str().unwrap());
        assert_eq!(c.not_before().unix(), expected["not_before"].as_i64().unwrap());
        assert_eq!(c.not_after().unix(), expected["not_after"].as_i64().unwrap());
        assert_eq!(c.subject().to_string(), expected["subject"].as_str().unwrap());
        assert_eq!(c.issuer().to_string(), expected["issuer_name"].as_str().unwrap());
        assert_eq!(c.is_ca(), expected["is_ca"].as_bool().unwrap());
        assert_eq!(c.tbs_der(), unhex(&expected["tbs"]));
        assert_eq!(c.spki_der(), &c.public_key().unwrap().spki()[..]);
        assert_eq!(c.subject_key_id(), Some(c.public_key().unwrap().subject_key_id().as_bytes()));
        let twice = [der.clone(), der.clone()].concat();
        assert_eq!(Certificate::many_from_der(twice.clone(), 2).unwrap().len(), 2);
        assert!(Certificate::many_from_der(twice.clone(), 1).is_err());
        assert_eq!(Certificate::from_der(twice).unwrap_err().to_string(), "x509: trailing data");
    }
    let ca = certificate(&v, "ca-p256");
    assert_eq!(ca.authority_id(), v["keys"]["p256"]["ski"].as_str().unwrap());
    assert_eq!(ca.authority_key_id(), None);
    assert!(ca.key_usage().contains(KeyUsage::CERT_SIGN.union(KeyUsage::CRL_SIGN)));
    let svid = certificate(&v, "svid-dns-capped");
    assert_eq!(svid.spiffe_id().unwrap().as_str(), ID);
    assert_eq!(svid.dns_names(), ["a.example", "*.b.example"]);
    assert_eq!(svid.authority_key_id(), ca.subject_key_id());
    assert!(svid.extended_key_usage().client_auth && svid.extended_key_usage().server_auth);
    assert!(!svid.key_usage().contains(KeyUsage::CERT_SIGN));
    assert_eq!(certificate(&v, "svid-p256").not_after(), now() + Duration::from_secs(3600));
}

#[test]
fn requests_are_those_of_the_reference_byte_for_byte() {
    let v = vectors();
    let empty = DistinguishedName::default().encode().unwrap();
    let agent = DistinguishedName::default_svid().encode().unwrap();
    let upstream_serial = v["upstream_subject_serial"].as_str().unwrap();
    let mut upstream = DistinguishedName::default_ca();
    upstream.serial_number = upstream_serial.to_owned();
    let upstream = upstream.encode().unwrap();
    let dns = strings(&["a.example", "b.example"]);
    for (name, subject, dns_names, uris) in [
        ("workload", &agent, &[][..], &[ID][..]),
        ("agent", &agent, &[], &[]),
        ("mint", &empty, &dns, &[ID]),
        ("upstream", &upstream, &[], &["spiffe://example.org"]),
    ] {
        let expected = named(&v["csrs"], name);
        let key = key(&v, expected["key"].as_str().unwrap());
        let template =
            CsrTemplate { subject, public_key: key.public_key(), dns_names, uris, extra_extensions: &[] };
        let built = template.to_be_signed().unwrap();
        assert_eq!(hex::encode(built.bytes()), expected["tbs"].as_str().unwrap(), "{name}");
        let signature = key.sign(built.algorithm(), built.bytes()).unwrap();
        let ours = VerifiedCsr::from_der(built.assemble(&signature)).unwrap();
        let theirs = VerifiedCsr::from_der(unhex(&expected["der"])).unwrap();
        for csr in [ours, theirs] {
            assert_eq!(csr.public_key(), key.public_key());
            assert_eq!(csr.uris(), uris);
            assert_eq!(csr.dns_names(), dns_names);
            assert_eq!(csr.subject().to_string(), expected["subject"].as_str().unwrap());
        }
    }
}

#[test]
fn a_request_with_another_signature_is_refused() {
    let v = vectors();
    let mut der = unhex(&named(&v["csrs"], "workload")["der"]);
    let at = der.windows(ID.len()).position(|w| w == ID.as_bytes()).unwrap();
    der[at + ID.len() - 1] ^= 1;
    let error = VerifiedCsr::from_der(der).unwrap_err();
    assert_eq!(error.to_string(), "x509: ECDSA verification failure");
    assert_eq!(VerifiedCsr::from_der(vec![0x30; MAX_CSR_BYTES + 1]).unwrap_err(), CsrError::TooLarge);
}

#[test]
fn chains_are_accepted_and_refused_as_go_does() {
    let v = vectors();
    let roots = [certificate(&v, "ca-p256")];
    for expected in v["chains"].as_array().unwrap() {
        let name = expected["name"].as_str().unwrap();
        let chain = [
            Certificate::from_der(unhex(&expected["leaf"])).unwrap(),
            Certificate::from_der(unhex(&expected["intermediate"])).unwrap(),
        ];
        let error = chain::verify(&chain, &roots, Purpose::Any, now()).err().map(|e| e.to_string());
        assert_eq!(error.unwrap_or_default(), expected["error"].as_str().unwrap(), "{name}");
        if name != "no-uri-host" {
            let verified = chain::verify_svid(&chain, |_| Some(&roots), now());
            assert_eq!(verified.is_ok(), expected["error"] == "", "{name}");
        }
    }
}

#[test]
fn verified_svids_name_their_authority() {
    let v = vectors();
    let roots = [certificate(&v, "ca-rsa"), certificate(&v, "ca-p256")];
    let leaf = certificate(&v, "svid-p256");
    let td = TrustDomain::parse("example.org").unwrap();
    let verified = chain::parse_and_verify_svid(
        [&leaf.der()[..]].into_iter(),
        |asked| (*asked == td).then_some(&roots[..]),
        now(),
    )
    .unwrap();
    assert_eq!(verified.id().as_str(), ID);
    assert_eq!(verified.leaf(), &leaf);
    assert_eq!(verified.authority(), &roots[1]);
    let text = |result: Result<VerifiedX509Svid, X509SvidError>| result.unwrap_err().to_string();
    assert_eq!(text(chain::verify_svid(&[], |_| None, now())), "x509svid: empty certificates chain");
    assert_eq!(
        text(chain::verify_svid(std::slice::from_ref(&leaf), |_| None, now())),
        "x509svid: could not get X509 bundle: x509bundle: no X.509 bundle for trust domain \"example.org\""
    );
    assert_eq!(
        text(chain::verify_svid(&roots[1..], |_| Some(&roots), now())),
        "x509svid: leaf certificate with CA flag set to true"
    );
    assert_eq!(
        text(chain::verify_svid(&vec![leaf.clone(); 17], |_| Some(&roots), now())),
        "x509svid: certificate chain is too long"
    );
    assert_eq!(chain::is_signed_by_root(std::slice::from_ref(&leaf), &roots[1..], now()), Ok(true));
    assert_eq!(chain::is_signed_by_root(std::slice::from_ref(&leaf), &roots[..1], now()), Ok(false));
    assert_eq!(chain::is_signed_by_root(&[], &roots, now()), Ok(false));
    let late = now() + Duration::from_secs(1_000_000);
    assert!(chain::is_signed_by_root(std::slice::from_ref(&leaf), &roots, late).is_err());
}

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
            assert_eq!(jwt::unverified_lifetime(token), Ok((now(), claims.expires_at)));
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

#[test]
fn weak_and_huge_keys_are_refused() {
    for (bits, error) in [(1024, PublicKeyError::RsaBits(1024)), (16384, PublicKeyError::TooLarge)] {
        let mut n = vec![0xff; bits / 8];
        n[0] = 0xff;
        assert_eq!(PublicKey::from_rsa_parts(&n, &[1, 0, 1]).unwrap_err(), error);
    }
    assert_eq!(PublicKey::from_spki(vec![0x30; 4096]).unwrap_err(), PublicKeyError::TooLarge);
    let v = vectors();
    let mut spki = unhex(&v["keys"]["p256"]["spki"]);
    let last = spki.len() - 1;
    spki[last] ^= 1;
    assert_eq!(PublicKey::from_spki(spki).unwrap_err(), PublicKeyError::Malformed);
}

#[test]
fn pem_of_certificates() {
    let v = vectors();
    let (a, b) = (certificate(&v, "ca-p256"), certificate(&v, "ca-rsa"));
    let text = pem::encode_certificates([&a.der()[..], &b.der()[..]]);
    assert_eq!(pem::certificates(text.as_bytes()).unwrap(), [a.clone(), b]);
    assert_eq!(pem::certificate(text.as_bytes()).unwrap_err().to_string(), "expected 1 PEM blocks; got 2");
    assert_eq!(pem::certificates(b"text").unwrap_err().to_string(), "no PEM blocks");
    let other = pem::encode("PRIVATE KEY", &[1]);
    assert_eq!(
        pem::certificates(other.as_bytes()).unwrap_err().to_string(),
        r#"expected block type "CERTIFICATE"; got "PRIVATE KEY""#
    );
    assert_eq!(
        pem::certificates(pem::encode("CERTIFICATE", &[1]).as_bytes()).unwrap_err().to_string(),
        r#"unable to parse "CERTIFICATE" PEM block 1: x509: malformed certificate"#
    );
}
