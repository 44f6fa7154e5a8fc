//! Byte-for-byte comparison with what SPIRE makes on Go, and behaviour that has no counterpart there.

use std::time::Duration;

use serde_json::Value;

use super::bundle_doc;
use super::chain::{self, Purpose};
use super::jwk::Jwk;
use super::jwt;
use super::*;
use crate::spiffe::TrustDomain;
use crate::time::Timestamp;

mod endorsement;
mod fuzz;
mod private_jwk;
mod tokens;

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
