//! Certificates, requests, tokens, bundles.

use spire_core::pki::bundle_doc::{Format, Reading, marshal, parse, parse_jwks};
use spire_core::pki::chain::{Purpose, parse_and_verify_svid, verify};
use spire_core::pki::jwk::Jwk;
use spire_core::pki::{Certificate, LocalKey, PublicKey, VerifiedCsr, jwt, pem};
use spire_core::spiffe::{Selector, SpiffeId, TrustDomain};
use spire_fuzz::samples::{ID, NOW, SAMPLES, trust_domain};
use spire_fuzz::{changed, input_or_changed};

#[test]
fn csr() {
    bolero::check!().for_each(|input: &[u8]| {
        let der = input_or_changed(&[&SAMPLES.csr], input);
        if let Ok(csr) = VerifiedCsr::from_der(der.clone()) {
            assert_eq!(**csr.der(), *der, "only what was sent");
            let _ = (csr.subject(), csr.uris(), csr.dns_names(), csr.ip_addresses(), csr.extensions());
            // Nobody but the holder of a key can make a request for it; the samples' key is the only one here.
            assert_eq!(
                csr.public_key(),
                VerifiedCsr::from_der(SAMPLES.csr.clone()).expect("a sample").public_key()
            );
        }
    });
}

#[test]
fn certificate_chain() {
    let authority = &SAMPLES.authority;
    let roots = std::panic::AssertUnwindSafe(vec![authority.clone()]);
    bolero::check!().for_each(|input: &[u8]| {
        let Some((which, changes)) = input.split_first() else { return };
        let (intermediate, leaf) = (&SAMPLES.intermediate, &SAMPLES.leaf);
        let mut chain = vec![leaf.der().to_vec(), intermediate.der().to_vec()];
        match which % 5 {
            0 => chain[0] = changed(&chain[0], changes),
            1 => chain[1] = changed(&chain[1], changes),
            2 => chain.insert(usize::from(which % 2), changes.to_vec()),
            3 => chain.swap(0, 1),
            _ => chain.resize(usize::from(*which) + 2, intermediate.der().to_vec()),
        }
        let ders = chain.iter().map(Vec::as_slice);
        let found = parse_and_verify_svid(ders, |td| (*td == trust_domain()).then_some(&roots[..]), NOW);
        if let Ok(svid) = found {
            assert_eq!(svid.id().as_str(), ID);
            assert_eq!(svid.leaf().tbs_der(), leaf.tbs_der(), "what was signed");
        }
        if let Ok(all) = Certificate::many_from_der(chain.concat(), 16) {
            assert!(all.len() <= 16);
            let _ = verify(&all, &roots, Purpose::ServerAuth, NOW);
        }
    });
}

#[test]
fn certificate() {
    bolero::check!().for_each(|input: &[u8]| {
        let der = input_or_changed(&[SAMPLES.authority.der(), SAMPLES.leaf.der()], input);
        if let Ok(certificate) = Certificate::from_der(der) {
            let _ =
                (certificate.serial(), certificate.subject().to_string(), certificate.issuer().to_string());
            let _ = (certificate.spiffe_id(), certificate.public_key(), certificate.authority_id());
        }
    });
}

#[test]
fn keys() {
    let spki = SAMPLES.token_key.spki();
    bolero::check!().for_each(|input: &[u8]| {
        let der = input_or_changed(&[spki, &SAMPLES.leaf_key], input);
        let _ = PublicKey::from_spki(der.clone());
        let _ = LocalKey::from_der(&der);
    });
}

#[test]
fn pem_text() {
    let chain = SAMPLES.chain_pem();
    bolero::check!().for_each(|input: &[u8]| {
        let text = input_or_changed(&[chain.as_bytes()], input);
        let _ = (pem::blocks(&text).count(), pem::certificates(&text), pem::certificate(&text));
    });
}

#[test]
fn jwt_svid() {
    let signed = SAMPLES.token.rsplit_once('.').expect("a token").0;
    bolero::check!().for_each(|input: &[u8]| {
        let token = input_or_changed(&[SAMPLES.token.as_bytes()], input);
        let Ok(token) = std::str::from_utf8(&token) else { return };
        let key = |_: &TrustDomain, _: &str| Ok(SAMPLES.token_key.clone());
        if let Ok(verified) = jwt::verify_svid(token, &["a".to_owned()], NOW, key) {
            assert_eq!(verified.id().as_str(), ID);
            assert_eq!(token.rsplit_once('.').expect("verified").0, signed);
        }
        let _ = jwt::verify_wit(token, NOW, key);
    });
}

#[test]
fn bundle_document() {
    let spiffe = marshal(&SAMPLES.bundle, Format::SPIFFE).expect("a document");
    bolero::check!().for_each(|input: &[u8]| {
        let document = input_or_changed(&[spiffe.as_bytes()], input);
        for how in [Reading::GoSpiffe, Reading::Reference] {
            let Ok(bundle) = parse(&trust_domain(), &document, how) else { continue };
            let again = marshal(&bundle, Format::SPIFFE).expect("what was read can be written");
            let read = parse(&trust_domain(), again.as_bytes(), how).expect("what was written can be read");
            assert_eq!(read.x509_authorities, bundle.x509_authorities);
        }
        let _ = parse_jwks(&document);
        let _ = Jwk::from_slice(&document);
    });
}

#[test]
fn spiffe_id() {
    bolero::check!().for_each(|input: &[u8]| {
        let text = input_or_changed(&[ID.as_bytes(), b"spiffe://td/spire/agent/x509pop/a"], input);
        let Ok(text) = std::str::from_utf8(&text) else { return };
        if let Ok(id) = SpiffeId::parse(text) {
            assert_eq!(id.as_str(), text, "nothing is normalised");
            assert_eq!(SpiffeId::from_path(&id.trust_domain(), id.path()).as_ref(), Ok(&id));
            assert!(!id.path().contains("//") && !id.path().ends_with('/') && !id.path().contains("/../"));
        }
        let _ = TrustDomain::parse(text);
        let _ = Selector::new(text, text);
    });
}
