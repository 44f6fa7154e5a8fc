//! Signatures of images as registries keep them, to which anybody who may push to one can write.

use std::panic::AssertUnwindSafe;

use spire_fuzz::{changed, input_or_changed};
use spire_sigstore::fuzzing::{self, Judge};
use spire_testkit::sigstore::{Images, Sigstore, digest_of};
use spire_testkit::web::{Answer, Request};

/// Whatever is changed of a good signature: what still counts says what it said.
#[test]
fn signature_layer() {
    let sigstore = Sigstore::new().expect("keys");
    let folder = tempfile::tempdir().expect("a folder");
    let variables = sigstore.trust(folder.path()).expect("files");
    let find =
        |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.clone());
    let image = digest_of(b"image");
    let judge = Judge::new(&image, find).expect("trust").expect("a digest");
    let signed = sigstore.sign(&sigstore.order(&image)).expect("signed");
    let expected = judge.values(signed.annotations.clone(), signed.payload.clone());
    assert!(expected.is_some());
    let (judge, signed) = (AssertUnwindSafe(judge), AssertUnwindSafe(signed));
    bolero::check!().for_each(|input: &[u8]| {
        let Some((which, changes)) = input.split_first() else { return };
        let (mut annotations, mut payload) = (signed.annotations.clone(), signed.payload.clone());
        let count = annotations.len() + 1;
        match annotations.values_mut().nth(usize::from(*which) % count) {
            Some(value) => {
                *value = String::from_utf8_lossy(&changed(value.as_bytes(), changes)).into_owned();
            }
            None => payload = changed(&payload, changes),
        }
        let found = judge.values(annotations, payload);
        assert!(found.is_none() || found == expected, "{found:?}");
    });
}

/// Manifests, bundles and answers of logs.
#[test]
fn registry_documents() {
    let sigstore = Sigstore::new().expect("keys");
    let image = digest_of(b"image");
    let signed = sigstore.sign(&sigstore.order(&image)).expect("signed");
    let images = Images::default();
    images.attach("r", &image, "sig", std::slice::from_ref(&signed));
    let target = format!("/v2/r/manifests/{}.sig", image.replace(':', "-"));
    let request =
        Request { method: "GET".to_owned(), target, headers: vec![], body: vec![], has_certificate: false };
    let Answer::Raw(manifest) = images.answer(&request) else { panic!("a manifest") };
    let start = manifest.windows(4).position(|end| end == b"\r\n\r\n").expect("a head") + 4;
    let manifest = manifest[start..].to_vec();
    let bundle = signed.annotations["dev.sigstore.cosign/bundle"].clone().into_bytes();
    let found =
        signed.found[0].as_object().and_then(|all| all.values().next()).expect("an entry").to_string();
    bolero::check!().for_each(|input: &[u8]| {
        fuzzing::read(&input_or_changed(
            &[&manifest, &bundle, found.as_bytes(), b"r.example/a/b@sha256:00"],
            input,
        ));
    });
}
