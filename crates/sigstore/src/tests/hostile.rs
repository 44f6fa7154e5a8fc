//! Signatures that must not count.

use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;
use serde_json::{Value, json};
use spire_testkit::sigstore::digest_of;

use super::*;

const MINUTE: Duration = Duration::from_secs(60);

/// The error, without what every error of a single signature begins with.
async fn refused(site: &Site, text: &str) -> String {
    let error = site.verify(text).await.expect_err(text);
    error
        .strip_prefix("failed to verify signatures: no matching signatures: ")
        .unwrap_or_else(|| panic!("{error}"))
        .to_owned()
}

#[tokio::test]
async fn what_is_signed_wrongly_does_not_count() {
    let site = site();
    let other = Sigstore::new().unwrap();
    let good = site.order();
    let (rekor, ct) = (&site.sigstore.rekor, &site.sigstore.ct);
    let long_ago = SystemTime::now() - 20 * 24 * 60 * MINUTE;
    let table = [
        (Order { claim: digest_of(b"other"), ..good.clone() }, "invalid or missing digest in claim: sha256:"),
        (Order { claim: String::new(), ..good.clone() }, "invalid or missing digest in claim: "),
        (
            Order { integrated: good.issued + 11 * MINUTE, ..good.clone() },
            "checking expiry on certificate with bundle: certificate expired before observed time: ",
        ),
        (
            Order { integrated: good.issued - MINUTE, ..good.clone() },
            "checking expiry on certificate with bundle: certificate was issued after observed time: ",
        ),
        // Older than its authorities.
        (
            Order { issued: long_ago, integrated: long_ago + MINUTE, ..good.clone() },
            "cert verification failed: x509: certificate ",
        ),
        (
            Order { code_signing: false, ..good.clone() },
            "cert verification failed: x509: certificate specifies an incompatible key usage. Check your TUF root",
        ),
        (Order { timestamp: None, ..good.clone() }, "certificate does not include required embedded SCT"),
        (
            Order { timestamp: Some((rekor, rekor.log_id())), ..good.clone() },
            "ctfe public key not found for payload",
        ),
        // Another key under the log's name.
        (
            Order { timestamp: Some((rekor, ct.log_id())), ..good.clone() },
            "error verifying embedded SCT: failed to verify ECDSA signature",
        ),
        (
            Order { log: (ct, ct.log_id()), ..good.clone() },
            "error verifying bundle: verifying bundle: rekor log public key not found for payload",
        ),
        (Order { log: (ct, rekor.log_id()), ..good.clone() }, "error verifying bundle: unable to verify SET"),
        (
            Order { log_index: -1, ..good.clone() },
            "error verifying bundle: unmarshaling bundle: a number is out of range",
        ),
        (
            Order { log_index: i64::MAX, ..good.clone() },
            "error verifying bundle: unmarshaling bundle: a number is out",
        ),
    ];
    for (order, expected) in table {
        site.attach("sig", &[site.sign(&order)]);
        let error = refused(&site, ONLY_SIGNATURES).await;
        assert!(error.starts_with(expected), "{expected}: {error}");
    }
    // Another Fulcio, with the same names, and its own logs.
    let theirs = other.sign(&other.order(&site.image)).unwrap();
    site.attach("sig", &[theirs]);
    assert!(refused(&site, ONLY_SIGNATURES).await.contains("rekor log public key not found"));
    let order = Order {
        log: (rekor, rekor.log_id()),
        timestamp: Some((ct, ct.log_id())),
        ..other.order(&site.image)
    };
    site.attach("sig", &[other.sign(&order).unwrap()]);
    let error = refused(&site, ONLY_SIGNATURES).await;
    assert!(
        error.starts_with("cert verification failed: x509: certificate signed by unknown authority"),
        "{error}"
    );
    // Good, but without what a selector needs.
    site.attach("sig", &[site.sign(&Order { issuer: None, ..site.order() })]);
    let error = site.verify(ONLY_SIGNATURES).await.unwrap_err();
    let expected = format!(
        "failed to extract details from signatures for image {:?}: failed to extract issuer from certificate: no OIDC \
         issuer found in certificate extensions",
        site.name()
    );
    assert_eq!(error, expected);
}

/// A signature of one image does not count for another one under whose name it is pushed. (It does in SPIRE.)
#[tokio::test]
async fn a_signature_of_another_image_does_not_count() {
    let site = site();
    let other = site.images.image("team/blog", "2", b"other");
    let signed = site.sign(&site.sigstore.order(&other));
    site.images.attach("team/blog", &other, "sig", std::slice::from_ref(&signed));
    site.attach("sig", &[signed]);
    let verifier = site.verifier(ONLY_SIGNATURES);
    let named = |digest: &str| format!("127.0.0.1:{}/team/blog@{digest}", site.web.port());
    assert!(verifier.verify(&named(&other)).await.is_ok());
    let error = verifier.verify(&named(&site.image)).await.unwrap_err().to_string();
    assert!(error.ends_with(&format!("invalid or missing digest in claim: {other}")), "{error}");
}

const SIGNATURE: &str = "dev.cosignproject.cosign/signature";
const CERTIFICATE: &str = "dev.sigstore.cosign/certificate";
const CHAIN: &str = "dev.sigstore.cosign/chain";
const BUNDLE: &str = "dev.sigstore.cosign/bundle";

/// Changes the log's entry and writes the bundle again, as one who has no key of the log can.
fn with_bundle(signed: &mut Signed, change: impl FnOnce(&mut Value)) {
    let mut bundle: Value = serde_json::from_str(&signed.annotations[BUNDLE]).unwrap();
    change(&mut bundle);
    signed.annotations.insert(BUNDLE.to_owned(), bundle.to_string());
}

type Change<'a> = Box<dyn Fn(&mut Signed) + 'a>;

/// What somebody who has no keys can do to a signature, and why it does not count then.
fn changes(other: &Signed) -> Vec<(Change<'_>, &'static str)> {
    let set = |name: &'static str, value: String| -> Change<'_> {
        Box::new(move |signed: &mut Signed| {
            signed.annotations.insert(name.to_owned(), value.clone());
        })
    };
    let remove = |name: &'static str| -> Change<'_> {
        Box::new(move |signed: &mut Signed| {
            signed.annotations.remove(name);
        })
    };
    let bundle = |pointer: &'static str, value: Value| -> Change<'_> {
        Box::new(move |signed: &mut Signed| {
            with_bundle(signed, |bundle| *bundle.pointer_mut(pointer).unwrap() = value.clone());
        })
    };
    let entry = |text: &str| json!(STANDARD.encode(text));
    vec![
        (remove(SIGNATURE), "signature layer sha256:"),
        (remove(CERTIFICATE), "no certificate found on signature"),
        (set(CERTIFICATE, String::new()), "no certificate found on signature"),
        (set(CERTIFICATE, "x".to_owned()), "invalid certificate found on signature: no PEM blocks"),
        (set(CHAIN, "x".to_owned()), "invalid certificate found on signature: no PEM blocks"),
        (
            set(CERTIFICATE, other.annotations[CERTIFICATE].clone()),
            "error verifying bundle: comparing public key PEMs: ",
        ),
        (
            set(SIGNATURE, other.annotations[SIGNATURE].clone()),
            "error verifying bundle: signature in bundle does not match signature being verified",
        ),
        // Without a signature it passes for an attestation's at first.
        (set(SIGNATURE, String::new()), "invalid signature when validating ASN.1 encoded signature"),
        (
            set(BUNDLE, other.annotations[BUNDLE].clone()),
            "error verifying bundle: signature in bundle does not match",
        ),
        (set(BUNDLE, "{".to_owned()), "error verifying bundle: unmarshaling bundle: not one"),
        (
            bundle("/SignedEntryTimestamp", json!("!")),
            "error verifying bundle: unmarshaling bundle: the timestamp",
        ),
        (bundle("/SignedEntryTimestamp", json!("")), "error verifying bundle: unable to verify SET"),
        (bundle("/Payload/integratedTime", json!(1)), "error verifying bundle: unable to verify SET"),
        (bundle("/Payload/logIndex", json!(1)), "error verifying bundle: unable to verify SET"),
        (
            bundle("/Payload/logID", json!("\",\"x\":\"")),
            "error verifying bundle: verifying bundle: rekor log public",
        ),
        (bundle("/Payload/body", json!(7)), "error verifying bundle: unmarshaling bundle: "),
        (
            bundle("/Payload/body", json!("!")),
            "error verifying bundle: failed to extract key from bundle: not base64",
        ),
        (
            bundle("/Payload/body", entry("{}")),
            "error verifying bundle: failed to extract key from bundle: not an entry",
        ),
        (
            bundle("/Payload/body", entry(r#"{"apiVersion":"0.0.1","kind":"jar","spec":{}}"#)),
            "error verifying bundle: unsupported type",
        ),
        (
            bundle("/Payload/body", entry(r#"{"apiVersion":"0.0.1","kind":"dsse","spec":{}}"#)),
            "error verifying bundle: failed to extract key from bundle: not an entry of its kind",
        ),
        (
            Box::new(|signed| signed.payload = signed.payload.to_ascii_uppercase()),
            "error verifying bundle: matching bundle to payload: ",
        ),
        (
            Box::new(|signed| signed.payload = vec![b' '; (1 << 20) + 1]),
            "size of layer (1048577) exceeded the limit",
        ),
    ]
}

#[tokio::test]
async fn what_was_changed_afterwards_does_not_count() {
    let site = site();
    let other = site.sign(&site.order());
    for (change, expected) in changes(&other) {
        let mut signed = site.sign(&site.order());
        change(&mut signed);
        site.attach("sig", &[signed]);
        let error = refused(&site, ONLY_SIGNATURES).await;
        assert!(error.starts_with(expected), "{expected}: {error}");
    }
    // The chain that came along is not looked at where the intermediates are known.
    let mut signed = site.sign(&site.order());
    signed.annotations.remove(CHAIN);
    site.attach("sig", &[signed]);
    assert!(site.verify(ONLY_SIGNATURES).await.is_ok());
}

/// Without a log the changes of payload and signature are found by the signature itself.
#[tokio::test]
async fn what_was_changed_afterwards_does_not_count_without_a_log() {
    let site = site();
    let issued = SystemTime::now() - MINUTE;
    for what in [0, 1] {
        let mut signed = site.sign(&Order { issued, bundle: false, ..site.order() });
        match what {
            0 => signed.payload.push(b' '),
            _ => drop(signed.annotations.insert(SIGNATURE.to_owned(), "AAAA".to_owned())),
        }
        site.attach("sig", &[signed]);
        let error = refused(&site, &format!("{ONLY_SIGNATURES}\nignore_tlog = true")).await;
        assert_eq!(error, "invalid signature when validating ASN.1 encoded signature");
    }
}

/// Intermediates may come along where none are known, and then must lead to the root.
#[tokio::test]
async fn intermediates_come_along_where_none_are_known() {
    let site = site();
    let path = site.variables[0].1.clone();
    std::fs::write(&path, site.sigstore.root()).unwrap();
    let signed = site.sign(&site.order());
    site.attach("sig", std::slice::from_ref(&signed));
    assert!(site.verify(ONLY_SIGNATURES).await.is_ok());
    for chain in [site.sigstore.root(), Sigstore::new().unwrap().roots()] {
        let mut signed = signed.clone();
        signed.annotations.insert(CHAIN.to_owned(), chain);
        site.attach("sig", &[signed]);
        let error = refused(&site, ONLY_SIGNATURES).await;
        assert!(error.contains("x509: certificate signed by unknown authority"), "{error}");
    }
    let mut signed = signed;
    signed.annotations.insert(CHAIN.to_owned(), site.sigstore.root().repeat(11));
    site.attach("sig", &[signed]);
    assert!(refused(&site, ONLY_SIGNATURES).await.contains("too many certificates"));
}

#[tokio::test]
async fn attestations_that_do_not_count() {
    let site = site();
    site.attach("sig", &[site.sign(&site.order())]);
    let issued = SystemTime::now() - MINUTE;
    let envelope = |change: &dyn Fn(&mut Value)| {
        let order = Order { issued, attestation: Some(AttestationEntry::Dsse), ..site.order() };
        let mut signed = site.sign(&order);
        let mut envelope: Value = serde_json::from_slice(&signed.payload).unwrap();
        change(&mut envelope);
        signed.payload = envelope.to_string().into_bytes();
        signed
    };
    let without_log = "ignore_tlog = true";
    site.attach("sig", &[site.sign(&Order { issued, ..site.order() })]);
    site.attach("att", &[envelope(&|_| {})]);
    assert!(site.verify(without_log).await.is_ok());
    type Edit<'a> = &'a dyn Fn(&mut Value);
    let table: [(Edit<'_>, &str); 6] = [
        (
            &|e| e["payloadType"] = json!("text/plain"),
            "invalid payloadType on envelope. Expected application/vnd",
        ),
        (&|e| e["payload"] = json!("e30="), "invalid signature when validating ASN.1 encoded signature"),
        (&|e| e["payload"] = json!("!"), "malformed signature: the payload is not base64"),
        (&|e| e["signatures"] = json!([]), "invalid signature when validating ASN.1 encoded signature"),
        (
            &|e| e["signatures"][0]["sig"] = json!("AAAA"),
            "invalid signature when validating ASN.1 encoded signature",
        ),
        (&|e| *e = json!([]), "malformed signature: not an envelope"),
    ];
    for (change, expected) in table {
        site.attach("att", &[envelope(change)]);
        let error = site.verify(without_log).await.unwrap_err();
        let error =
            error.strip_prefix("failed to verify image attestations: no matching attestations: ").unwrap();
        assert!(error.starts_with(expected), "{expected}: {error}");
    }
    // With a log the entry must be about the envelope.
    site.attach("sig", &[site.sign(&site.order())]);
    site.attach("att", &[envelope(&|e| e["x"] = json!(1))]);
    let error = site.verify("").await.unwrap_err();
    assert!(error.contains("matching bundle to payload: "), "{error}");
    // A signature is no attestation.
    site.attach("att", &[site.sign(&site.order())]);
    let error = site.verify("").await.unwrap_err();
    assert!(error.contains("malformed signature: not an envelope"), "{error}");
}

/// Texts that were made once, as the layer of a good signature.
fn sample() -> (Layer, Digest, Settings, Trust) {
    let sigstore = Sigstore::new().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let variables = sigstore.trust(folder.path()).unwrap();
    let find =
        |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.clone());
    let settings = settings("");
    let trust = Trust::load(&settings, find).unwrap();
    let image = Digest::of(b"image");
    let signed = sigstore.sign(&sigstore.order(&image.to_string())).unwrap();
    let layer = Layer {
        digest: Digest::of(&signed.payload),
        annotations: signed.annotations,
        payload: signed.payload.into(),
    };
    (layer, image, settings, trust)
}

fn judged(layer: &Layer, sample: &(Layer, Digest, Settings, Trust)) -> Option<Vec<String>> {
    let (_, image, settings, trust) = sample;
    let evidence = layer.entry().ok()?.map_or(Evidence::None, Evidence::Bundle);
    let now = Timestamp::from_unix(0);
    check::check(layer, Kind::Signature, image, evidence, (settings, trust), now).ok()?.values().ok()
}

thread_local! {
    static SAMPLE: (Layer, Digest, Settings, Trust) = sample();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever one changes: what still counts says what the original says.
    #[test]
    fn no_change_says_anything_else(which in 0usize..5, at: usize, value: u8) {
        SAMPLE.with(|sample| {
            let original = judged(&sample.0, sample);
            assert!(original.is_some());
            let mut layer = sample.0.clone();
            let change = |bytes: &mut Vec<u8>| {
                let at = at % bytes.len();
                bytes[at] = value;
            };
            match [SIGNATURE, CERTIFICATE, CHAIN, BUNDLE].get(which) {
                Some(name) => {
                    let mut bytes = layer.annotations[*name].clone().into_bytes();
                    change(&mut bytes);
                    let text = String::from_utf8_lossy(&bytes).into_owned();
                    layer.annotations.insert((*name).to_owned(), text);
                }
                None => {
                    let mut bytes = layer.payload.to_vec();
                    change(&mut bytes);
                    layer.payload = bytes.into();
                }
            }
            let changed = judged(&layer, sample);
            assert!(changed.is_none() || changed == original, "{changed:?}");
            if which == 4 && layer.payload != sample.0.payload {
                assert_eq!(changed, None);
            }
        });
    }
}
