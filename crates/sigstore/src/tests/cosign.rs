//! The same signatures before cosign itself, where `SPIRE_COSIGN_BIN` names it: what it accepts we accept, and what it
//! refuses we refuse.

use std::process::Command;

use spire_testkit::sigstore::digest_of;

use super::*;

fn accepted_by(cosign: &str, site: &Site, attestation: bool) -> (bool, String) {
    let mut command = Command::new(cosign);
    command.arg(if attestation { "verify-attestation" } else { "verify" });
    command.args(["--certificate-identity-regexp", ".*", "--certificate-oidc-issuer-regexp", ".*"]);
    command.args(["--new-bundle-format=false", "--allow-http-registry"]);
    if attestation {
        command.args(["--type", "https://cosign.sigstore.dev/attestation/v1"]);
    }
    command.args(["--rekor-url", "http://127.0.0.1:1", &site.name()]);
    command.env_clear().env("HOME", site._folder.path()).env("TUF_ROOT", site._folder.path().join("tuf"));
    for (name, value) in &site.variables {
        command.env(name, value);
    }
    let output = command.output().unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[tokio::test]
async fn cosign_agrees() {
    let Ok(cosign) = std::env::var("SPIRE_COSIGN_BIN") else { return };
    let site = site();
    let good = site.order();
    let (rekor, ct) = (&site.sigstore.rekor, &site.sigstore.ct);
    let minute = Duration::from_secs(60);
    let table = [
        (good.clone(), true),
        (Order { name: Name::Uri("https://x/y"), ..good.clone() }, true),
        (Order { name: Name::Other("somebody"), ..good.clone() }, true),
        (Order { name: Name::Both("a@b", "https://x/y"), ..good.clone() }, true),
        (Order { claim: digest_of(b"other"), ..good.clone() }, false),
        (Order { claim_type: "x", ..good.clone() }, true),
        (Order { integrated: good.issued + 11 * minute, ..good.clone() }, false),
        (Order { integrated: good.issued - minute, ..good.clone() }, false),
        (Order { code_signing: false, ..good.clone() }, false),
        (Order { timestamp: None, ..good.clone() }, false),
        (Order { timestamp: Some((rekor, ct.log_id())), ..good.clone() }, false),
        (Order { timestamp: Some((rekor, rekor.log_id())), ..good.clone() }, false),
        (Order { log: (ct, rekor.log_id()), ..good.clone() }, false),
        (Order { log: (ct, ct.log_id()), ..good.clone() }, false),
    ];
    for (number, (order, is_good)) in table.into_iter().enumerate() {
        site.attach("sig", &[site.sign(&order)]);
        let (theirs, why) = accepted_by(&cosign, &site, false);
        let ours = site.verify(ONLY_SIGNATURES).await;
        assert_eq!((theirs, ours.is_ok()), (is_good, is_good), "{number}: {why} {ours:?}");
    }
    site.attach("sig", &[site.sign(&good)]);
    for entry in [AttestationEntry::Dsse, AttestationEntry::Intoto1, AttestationEntry::Intoto2] {
        for (claim, is_good) in [(good.claim.clone(), true), (digest_of(b"other"), false)] {
            let order = Order { claim, attestation: Some(entry), ..good.clone() };
            site.attach("att", &[site.sign(&order)]);
            let (theirs, why) = accepted_by(&cosign, &site, true);
            let ours = site.verify("").await;
            assert_eq!((theirs, ours.is_ok()), (is_good, is_good), "{entry:?}: {why} {ours:?}");
        }
    }
}
