//! A certificate from an ACME authority, in a network of the test's own, since it is served on port 443.

use spire_testkit::{Run, place, wait};

use super::provider::{BUNDLE, Provider};
use crate::federation_web::Pebble;
use crate::harness::peer::Peer;
use crate::harness::programs::{self, Programs};
use crate::harness::site::text;
use crate::harness::{Case, Need, Outcome, SOON};

pub(super) fn cases() -> Vec<Case> {
    const ACME: &[Need] = &[Need::Oidc, Need::Namespaces, Need::Openssl, Need::Pebble, Need::Peer(Peer::Go)];
    const BESIDE: &[Need] =
        &[Need::ReferenceOidc, Need::Namespaces, Need::Openssl, Need::Pebble, Need::Peer(Peer::Go)];
    vec![
        Case { name: "oidc::acme_gets_and_keeps_certificates", needs: ACME, run: acme },
        Case { name: "oidc::acme_data_is_taken_over_and_given_back", needs: BESIDE, run: taken_over },
    ]
}

const NAMES: [&str; 2] = ["one.oidc.test", "two.oidc.test"];

struct Acme {
    folder: tempfile::TempDir,
    pebble: Option<Pebble>,
    root: std::path::PathBuf,
    directory: String,
    issuer: std::path::PathBuf,
}

impl Acme {
    fn start() -> Result<Self, libtest_mimic::Failed> {
        let folder = place::folder()?;
        let pebble = Pebble::start_in(folder.path().join("pebble"), 443, &NAMES)?;
        let issuer = pebble.issuer()?.to_owned();
        place::write(&folder.path().join("bundle.json"), BUNDLE)?;
        let (root, directory) = (pebble.root.clone(), pebble.directory.clone());
        Ok(Self { folder, pebble: Some(pebble), root, directory, issuer })
    }

    fn provider(&self, programs: &Programs, names: &[&str]) -> spire_testkit::Result<spire_testkit::Daemon> {
        let config = format!(
            "domains = {names:?}\nacme {{ directory_url = \"{}\" email = \"a@oidc.test\" tos_accepted = true }}\n\
             file {{ path = \"bundle.json\" }}\n",
            self.directory
        );
        let variables = [("SSL_CERT_FILE", self.root.as_path())];
        Provider::spawn_with(&programs.oidc(), self.folder.path(), &config, &variables)
    }

    /// The keys under a name; `None` where there is no certificate.
    fn keys(&self, name: &str) -> Option<String> {
        let peer = Peer::Go.command().ok()?;
        let url = format!("https://{name}/keys");
        let output = Run::new(&peer[0]).args(&["get", &url, text(&self.issuer)]).output().ok()?;
        (output.code == 0 && output.stdout.contains("C6vs25")).then_some(output.stdout)
    }
}

/// Each name gets its own certificate when it is asked for; a restart finds them again, with the authority away.
fn acme() -> Outcome {
    let mut acme = Acme::start()?;
    let provider = acme.provider(programs::under_test(), &NAMES)?;
    provider.wait_for(&["level=info", "Serving HTTPS via ACME"], SOON)?;
    let mark = provider.mark();
    wait::until("the first certificate", SOON, || acme.keys(NAMES[0]))?;
    provider.wait_for(&["level=info", "ACME Terms Of Service accepted", "url="], SOON)?;
    provider.wait_after(mark, &["Obtained a certificate", NAMES[0]], SOON)?;
    assert!(!provider.lines().iter().any(|line| line.contains(NAMES[1])), "nobody asked for the other name");
    wait::until("the second certificate", SOON, || acme.keys(NAMES[1]))?;
    assert!(acme.keys("localhost").is_none(), "a name that is not ours gets no handshake");
    let cache = acme.folder.path().join(".acme-cache");
    assert_eq!(place::mode(&cache)?, 0o700);
    for name in NAMES {
        let file = cache.join(name);
        assert_eq!(place::mode(&file)?, 0o600);
        let text = place::read(&file)?;
        let labels: Vec<&str> = text.lines().filter(|line| line.starts_with("-----BEGIN")).collect();
        assert_eq!(labels[..2], ["-----BEGIN PRIVATE KEY-----", "-----BEGIN CERTIFICATE-----"]);
    }
    drop(provider);
    let before = place::read(&cache.join(NAMES[0]))?;
    drop(acme.pebble.take());
    let _provider = acme.provider(programs::under_test(), &NAMES)?;
    for name in NAMES {
        wait::until("the kept certificate", SOON, || acme.keys(name))?;
    }
    assert_eq!(place::read(&cache.join(NAMES[0]))?, before);
    Ok(())
}

/// Certificates that one implementation obtained are shown by the other.
fn taken_over() -> Outcome {
    let acme = Acme::start()?;
    let theirs = programs::theirs()?;
    let file = acme.folder.path().join(".acme-cache").join(NAMES[0]);
    let mut first = None;
    for programs in [theirs, programs::under_test(), theirs] {
        let provider = acme.provider(programs, &NAMES[..1])?;
        wait::until("the certificate", SOON, || acme.keys(NAMES[0]))?;
        let cached = wait::until("the file", SOON, || place::read(&file).ok())?;
        assert_eq!(first.get_or_insert_with(|| cached.clone()), &cached);
        drop(provider);
    }
    std::fs::remove_file(&file)?;
    let mut again = None;
    for programs in [programs::under_test(), theirs] {
        let provider = acme.provider(programs, &NAMES[..1])?;
        wait::until("the certificate", SOON, || acme.keys(NAMES[0]))?;
        let cached = wait::until("the file", SOON, || place::read(&file).ok())?;
        assert_eq!(again.get_or_insert_with(|| cached.clone()), &cached);
        drop(provider);
    }
    Ok(())
}
