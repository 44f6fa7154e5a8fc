//! Images in a stand-in for a registry, signed by stand-ins for Fulcio and Rekor, as they should be and in every way that
//! they should not.

mod cosign;
mod hostile;
mod registries;

use std::sync::Arc;
use std::time::Duration;

use spire_compat::hcl;
use spire_testkit::sigstore::{AttestationEntry, Images, Name, Order, Signed, Sigstore};
use spire_testkit::web::{Answer, Request, Web};

use super::*;

/// Who signs, and a registry.
struct Site {
    sigstore: Sigstore,
    images: Images,
    web: Web,
    variables: Vec<(&'static str, String)>,
    _folder: tempfile::TempDir,
    /// The digest of an image.
    image: String,
}

/// A site whose registry is the plain one.
fn site() -> Site {
    site_with(|images, request| images.answer(request))
}

fn site_with(answer: impl Fn(&Images, &Request) -> Answer + Send + Sync + 'static) -> Site {
    let sigstore = Sigstore::new().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let variables = sigstore.trust(folder.path()).unwrap();
    let images = Images::default();
    let image = images.image("team/blog", "1", b"blog");
    let served = images.clone();
    let web = Web::start(None, move |request| answer(&served, request)).unwrap();
    Site { sigstore, images, web, variables, _folder: folder, image }
}

const ONLY_SIGNATURES: &str = "ignore_attestations = true";

fn settings(text: &str) -> Settings {
    let document = hcl::parse(format!("sigstore {{\n{text}\n}}")).unwrap();
    Settings::take(&mut document.body()).unwrap().unwrap()
}

impl Site {
    fn order(&self) -> Order<'_> {
        self.sigstore.order(&self.image)
    }

    fn sign(&self, order: &Order<'_>) -> Signed {
        self.sigstore.sign(order).unwrap()
    }

    fn attach(&self, suffix: &str, layers: &[Signed]) {
        self.images.attach("team/blog", &self.image, suffix, layers);
    }

    fn name(&self) -> String {
        format!("127.0.0.1:{}/team/blog@{}", self.web.port(), self.image)
    }

    fn verifier(&self, text: &str) -> Verifier {
        let variables = self.variables.clone();
        let find = move |name: &str| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.clone())
        };
        Verifier::with("docker", settings(text), Arc::new(find), None).unwrap()
    }

    /// Selectors, or the error.
    async fn verify(&self, text: &str) -> Result<Vec<String>, String> {
        self.verifier(text).verify(&self.name()).await.map_err(|error| error.to_string())
    }
}

/// The parts of a bundle as selectors show them.
fn details(signed: &Signed) -> Vec<String> {
    let bundle = &signed.annotations["dev.sigstore.cosign/bundle"];
    let bundle: serde_json::Value = serde_json::from_str(bundle).unwrap();
    let payload = &bundle["Payload"];
    vec![
        format!("image-signature-value:{}", signed.annotations["dev.cosignproject.cosign/signature"]),
        format!("image-signature-log-id:{}", payload["logID"].as_str().unwrap()),
        format!("image-signature-log-index:{}", payload["logIndex"]),
        format!("image-signature-integrated-time:{}", payload["integratedTime"]),
        format!(
            "image-signature-signed-entry-timestamp:{}",
            bundle["SignedEntryTimestamp"].as_str().unwrap()
        ),
    ]
}

#[tokio::test]
async fn a_signed_image_has_the_references_selectors() {
    let site = site();
    let signed = site.sign(&site.order());
    site.attach("sig", std::slice::from_ref(&signed));
    let mut expected = vec![
        "image-signature:verified".to_owned(),
        "image-signature-subject:signer@example.org".to_owned(),
        "image-signature-issuer:https://issuer.example.org".to_owned(),
    ];
    expected.extend(details(&signed));
    let verifier = site.verifier(ONLY_SIGNATURES);
    assert_eq!(verifier.verify(&site.name()).await.unwrap(), expected);
    // The answer is remembered, under the name that was asked for.
    let asked = site.web.seen().len();
    assert_eq!(verifier.verify(&site.name()).await.unwrap(), expected);
    assert_eq!(site.web.seen().len(), asked);
    // A tag is looked up.
    let tagged = format!("127.0.0.1:{}/team/blog:1", site.web.port());
    assert_eq!(verifier.verify(&tagged).await.unwrap(), expected);
    let none = format!("127.0.0.1:{}/team/blog:2", site.web.port());
    let error = verifier.verify(&none).await.unwrap_err().to_string();
    assert_eq!(error, "failed to verify signatures: image tag not found");
}

#[tokio::test]
async fn each_good_signature_counts_and_bad_ones_beside_it_do_no_harm() {
    let site = site();
    let first = site.sign(&site.order());
    let bad = site.sign(&Order { code_signing: false, ..site.order() });
    let second = site.sign(&Order { name: Name::Uri("https://ci.example.org/w"), ..site.order() });
    site.attach("sig", &[first.clone(), bad, second.clone()]);
    let found = site.verify(ONLY_SIGNATURES).await.unwrap();
    let of = |prefix: &str| -> Vec<&str> {
        let prefix = format!("image-signature-{prefix}:");
        found.iter().filter_map(|value| value.strip_prefix(&prefix)).collect()
    };
    assert_eq!(of("subject"), ["signer@example.org", "https://ci.example.org/w"]);
    let values = [&first, &second].map(|one| one.annotations["dev.cosignproject.cosign/signature"].as_str());
    assert_eq!(of("value"), values);
    assert_eq!(found.iter().filter(|value| *value == "image-signature:verified").count(), 1);
}

#[tokio::test]
async fn names_of_all_kinds_and_identities() {
    let site = site();
    let table = [
        (Name::Email("a@b"), "a@b"),
        (Name::Uri("https://x/y"), "https://x/y"),
        // The selector has the first in cosign's order, and any may match.
        (Name::Both("a@b", "https://x/y"), "a@b"),
        (Name::Other("somebody"), "somebody"),
    ];
    for (name, subject) in table {
        site.attach("sig", &[site.sign(&Order { name, ..site.order() })]);
        let allowed = format!(
            "{ONLY_SIGNATURES}\nallowed_identities {{ \"https://issuer.example.org\" = [\"{subject}\"] }}"
        );
        let found = site.verify(&allowed).await.unwrap();
        assert!(found.contains(&format!("image-signature-subject:{subject}")), "{found:?}");
        let pattern =
            format!("{ONLY_SIGNATURES}\nallowed_identities {{ \"https://.*\" = [\"x@x\", \".+\"] }}");
        assert!(site.verify(&pattern).await.is_ok());
        for other in ["\"https://issuer.example.org\" = [\"z\"]", "\"https://other\" = [\".*\"]"] {
            let error = site.verify(&format!("{ONLY_SIGNATURES}\nallowed_identities {{ {other} }}")).await;
            let error = error.unwrap_err();
            assert!(error.contains("none of the expected identities matched"), "{error}");
        }
    }
}

#[tokio::test]
async fn what_may_be_ignored() {
    let site = site();
    let skipped = format!("skipped_images = [\"{}\"]", site.name());
    assert_eq!(site.verify(&skipped).await, Ok(vec![]));
    assert!(site.web.seen().is_empty());
    // Without a timestamp of certificate transparency.
    site.attach("sig", &[site.sign(&Order { timestamp: None, ..site.order() })]);
    assert!(site.verify(&format!("{ONLY_SIGNATURES}\nignore_sct = true")).await.is_ok());
    // Without a log nobody knows when it was signed, so the certificate must be valid now.
    let without_log = format!("{ONLY_SIGNATURES}\nignore_tlog = true");
    site.attach("sig", &[site.sign(&Order { bundle: false, ..site.order() })]);
    let error = site.verify(&without_log).await.unwrap_err();
    assert!(error.ends_with("expected a signed timestamp to verify an expired certificate"), "{error}");
    let issued = SystemTime::now() - Duration::from_secs(60);
    site.attach("sig", &[site.sign(&Order { issued, bundle: false, ..site.order() })]);
    let found = site.verify(&without_log).await.unwrap();
    assert!(!found.iter().any(|value| value.contains("-log-") || value.contains("-time")), "{found:?}");
    assert_eq!(found.len(), 4, "{found:?}");
}

#[tokio::test]
async fn attestations_are_verified_unless_ignored() {
    let site = site();
    site.attach("sig", &[site.sign(&site.order())]);
    // As in the reference an image must have one.
    let error = site.verify("").await.unwrap_err();
    assert_eq!(error, "failed to verify image attestations: no matching attestations: ");
    for entry in [AttestationEntry::Dsse, AttestationEntry::Intoto1, AttestationEntry::Intoto2] {
        let order = Order { attestation: Some(entry), ..site.order() };
        site.attach("att", &[site.sign(&order)]);
        let found = site.verify("").await.unwrap_or_else(|error| panic!("{entry:?}: {error}"));
        assert_eq!(found[..2], ["image-signature:verified", "image-attestations:verified"]);
        assert_eq!(found.len(), 9, "the details are the signature's: {found:?}");
        let other = Order { claim: spire_testkit::sigstore::digest_of(b"other"), ..order };
        site.attach("att", &[site.sign(&other)]);
        let error = site.verify("").await.unwrap_err();
        assert!(error.contains("invalid or missing digest in claim: "), "{error}");
    }
    assert!(site.verify(ONLY_SIGNATURES).await.is_ok());
}

/// A signature that came without its entry is looked up in the log.
#[tokio::test]
async fn a_log_is_asked_for_what_did_not_come_along() {
    let site = site();
    let signed = site.sign(&Order { bundle: false, ..site.order() });
    site.attach("sig", std::slice::from_ref(&signed));
    let answer = Arc::new(Mutex::new(signed.found.to_string()));
    let served = Arc::clone(&answer);
    let log = Web::start(None, move |request| match request.target.as_str() {
        "/api/v1/log/entries/retrieve" => Answer::Json(200, served.lock().clone()),
        _ => Answer::Json(404, "{}".to_owned()),
    });
    let log = log.unwrap();
    let text = format!("{ONLY_SIGNATURES}\nrekor_url = \"http://127.0.0.1:{}/\"", log.port());
    let found = site.verify(&text).await.unwrap();
    assert!(found.contains(&"image-signature-log-index:4711".to_owned()), "{found:?}");
    let query: serde_json::Value = serde_json::from_slice(&log.seen()[0].body).unwrap();
    assert_eq!(query["entries"][0]["kind"], "hashedrekord");
    assert_eq!(
        query["entries"][0]["spec"]["signature"]["content"],
        signed.annotations["dev.cosignproject.cosign/signature"]
    );
    let good = signed.found.to_string();
    let other = site.sign(&Order { bundle: false, ..site.order() }).found.to_string();
    let wrong_root = good.replace("\"rootHash\":\"", "\"rootHash\":\"00\",\"x\":\"");
    let table = [
        (String::new(), "searching log query: not an answer of a log"),
        ("[]".to_owned(), "signature not found in transparency log"),
        (other, "signature in bundle does not match signature being verified"),
        (wrong_root, "verifying inclusion proof: calculated root does not match"),
        (good.replace("\"treeSize\":7", "\"treeSize\":3"), "verifying inclusion proof: index is beyond size"),
        (good.replace("\"treeSize\":7", "\"treeSize\":70"), "verifying inclusion proof: wrong proof size"),
        (good.replace("\"inclusionProof\"", "\"no\""), "inclusion proof not provided"),
        // An entry under a UUID that is not its own is none.
        (good.replace("[{\"0000000000000001", "[{\"00000000000000010"), "signature not found"),
        (good.replace("\"logIndex\":4711", "\"logIndex\":4712"), "unable to verify SET"),
    ];
    for (text_of_log, expected) in table {
        *answer.lock() = text_of_log;
        let error = site.verify(&text).await.unwrap_err();
        assert!(error.contains(expected), "{expected}: {error}");
    }
    *answer.lock() = good;
    assert!(site.verify(&text).await.is_ok());
    drop(log);
    let error = site.verify(&text).await.unwrap_err();
    assert!(error.contains("searching log query: "), "{error}");
}

#[test]
fn whom_to_believe_must_be_said() {
    let site = site();
    let with = |text: &str, change: &dyn Fn(&str) -> Option<Option<String>>| {
        let variables = site.variables.clone();
        let mut given = std::collections::BTreeMap::new();
        for (name, value) in variables {
            given.extend(change(name).unwrap_or(Some(value)).map(|value| (name.to_owned(), value)));
        }
        let environment = Arc::new(move |name: &str| given.get(name).cloned());
        Verifier::with("k8s", settings(text), environment, None).err().map(|error| error.to_string())
    };
    assert_eq!(with("", &|_| None), None);
    let without = |text: &str, missing: &str| with(text, &|name| (name == missing).then_some(None));
    let table = [
        ("", "SIGSTORE_ROOT_FILE", "failed to get fulcio root certificates: the trust root of"),
        ("", "SIGSTORE_REKOR_PUBLIC_KEY", "failed to get rekor public keys: the trust root of"),
        ("", "SIGSTORE_CT_LOG_PUBLIC_KEY_FILE", "failed to get CT log public keys: the trust root of"),
    ];
    for (text, missing, expected) in table {
        let error = without(text, missing).unwrap();
        assert!(error.starts_with(expected) && error.contains(missing), "{error}");
    }
    assert_eq!(without("ignore_tlog = true", "SIGSTORE_REKOR_PUBLIC_KEY"), None);
    assert_eq!(without("ignore_sct = true", "SIGSTORE_CT_LOG_PUBLIC_KEY_FILE"), None);
    let wrong = |of: &str, file: &str| {
        with("", &|name| (name == of).then(|| Some(file.to_owned()))).unwrap_or_default()
    };
    let roots = &site.variables[0].1;
    let key = &site.variables[1].1;
    assert!(wrong("SIGSTORE_ROOT_FILE", "/nonexistent").contains("open /nonexistent: no such file"));
    assert!(wrong("SIGSTORE_ROOT_FILE", key).contains("expected block type \"CERTIFICATE\""));
    assert!(
        wrong("SIGSTORE_REKOR_PUBLIC_KEY", roots).contains("unknown Public key PEM file type: CERTIFICATE")
    );
    assert!(wrong("SIGSTORE_CT_LOG_PUBLIC_KEY_FILE", "/dev/zero").contains("larger than"));
}
