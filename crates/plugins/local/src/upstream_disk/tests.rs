//! CAs that the authority signs, and files that it refuses.

use std::sync::Arc;
use std::time::Duration;

use spire_core::pki::chain::{Purpose, verify};
use spire_core::pki::{Certificate, CsrTemplate, KeyType, LocalKey, Profile};
use spire_core::spiffe::{JwtAuthority, TrustDomain};
use spire_core::time::Timestamp;
use spire_ports::plugins::{ErrorKind, MintedCa, PluginType, Result, UpstreamAuthority};

use super::build;
use crate::machine::now;
use crate::test_ca::{Ca, configuration, name, pem_of, refusal};

struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.0.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    /// Key, certificates and, if there are any, roots; the settings that name them.
    fn settings(&self, key: &LocalKey, certificates: &[&Certificate], roots: &[&Certificate]) -> String {
        let mut data = format!(
            "key_file_path = \"{}\"\ncert_file_path = \"{}\"\n",
            self.write("key.pem", &key.to_pkcs8_pem().unwrap()),
            self.write("cert.pem", &pem_of(certificates)),
        );
        if !roots.is_empty() {
            let bundle = self.write("bundle.pem", &pem_of(roots));
            data.push_str(&format!("bundle_file_path = \"{bundle}\"\n"));
        }
        data
    }
}

async fn authority(data: &str) -> Result<Arc<dyn UpstreamAuthority>> {
    build(configuration(PluginType::UpstreamAuthority, "disk", data)).await
}

/// A CSR for these URIs, signed by the key.
fn csr(key: &LocalKey, uris: &[&str]) -> Vec<u8> {
    let subject = name("server");
    let template = CsrTemplate {
        subject: &subject,
        public_key: key.public_key(),
        dns_names: &[],
        uris,
        extra_extensions: &[],
    };
    let signed = template.to_be_signed().unwrap();
    let signature = key.sign(signed.algorithm(), signed.bytes()).unwrap();
    signed.assemble(&signature)
}

async fn mint(authority: &dyn UpstreamAuthority, csr: &[u8], ttl: u64) -> Result<MintedCa> {
    let domain = TrustDomain::parse("example.org").unwrap();
    authority.mint_x509_ca(csr, &domain.id(), Duration::from_secs(ttl)).await
}

fn parse(ders: &[bytes::Bytes]) -> Vec<Certificate> {
    ders.iter().map(|der| Certificate::from_der(der.clone()).unwrap()).collect()
}

#[tokio::test]
async fn a_self_signed_authority_signs() {
    let files = Files::new();
    let root = Ca::root("root");
    let upstream =
        authority(&(files.settings(&root.key, &[&root.certificate], &[]) + "ttl = \"1h\"")).await.unwrap();
    let key = LocalKey::generate(KeyType::EcP384).unwrap();
    let mut minted = mint(&*upstream, &csr(&key, &["spiffe://example.org"]), 600).await.unwrap();
    assert!(minted.updates.recv().await.is_none());
    assert_eq!(minted.roots.len(), 1);
    assert_eq!(minted.roots[0].der, *root.certificate.der());

    let chain = parse(&minted.chain);
    assert_eq!(chain.len(), 1);
    let ca = &chain[0];
    assert!(ca.is_ca());
    assert_eq!(ca.public_key().unwrap(), key.public_key());
    assert_eq!(ca.uris(), ["spiffe://example.org"]);
    assert_eq!(ca.subject().common_name, "server");
    assert_eq!(ca.not_after().since(ca.not_before()), Duration::from_secs(610));
    verify(&chain, &[root.certificate], Purpose::Any, now()).unwrap();
}

#[tokio::test]
async fn lifetimes_end_with_the_authoritys() {
    let files = Files::new();
    let root = Ca::root("root");
    let upstream = authority(&files.settings(&root.key, &[&root.certificate], &[])).await.unwrap();
    let request = csr(&LocalKey::generate(KeyType::EcP256).unwrap(), &["spiffe://example.org"]);
    for (ttl, longest) in [(1 << 40, None), (0, Some(3610))] {
        let minted = mint(&*upstream, &request, ttl).await.unwrap();
        let ca = &parse(&minted.chain)[0];
        assert!(ca.not_after() <= root.certificate.not_after());
        match longest {
            None => assert_eq!(ca.not_after(), root.certificate.not_after()),
            Some(longest) => assert!(ca.not_after().since(ca.not_before()).as_secs() <= longest),
        }
    }
}

/// An authority is replaced by replacing its files; what cannot be used leaves the one before.
#[tokio::test]
async fn files_are_read_for_each_authority() {
    let files = Files::new();
    let (first, second) = (Ca::root("first"), Ca::root("second"));
    let upstream = authority(&files.settings(&first.key, &[&first.certificate], &[])).await.unwrap();
    let request = csr(&LocalKey::generate(KeyType::EcP256).unwrap(), &["spiffe://example.org"]);
    let root = async || mint(&*upstream, &request, 60).await.unwrap().roots[0].der.clone();
    assert_eq!(root().await, *first.certificate.der());
    files.write("cert.pem", "no certificate");
    assert_eq!(root().await, *first.certificate.der());
    files.settings(&second.key, &[&first.certificate], &[]);
    assert_eq!(root().await, *first.certificate.der(), "a key of another");
    files.settings(&second.key, &[&second.certificate], &[]);
    assert_eq!(root().await, *second.certificate.der());
}

#[tokio::test]
async fn every_key_type_signs() {
    for key_type in KeyType::ALL {
        let files = Files::new();
        let root = Ca::root_with("root", key_type);
        let upstream = authority(&files.settings(&root.key, &[&root.certificate], &[])).await.unwrap();
        let key = LocalKey::generate(KeyType::EcP256).unwrap();
        let minted = mint(&*upstream, &csr(&key, &["spiffe://example.org"]), 60).await.unwrap();
        verify(&parse(&minted.chain), &[root.certificate], Purpose::Any, now()).unwrap();
    }
}

#[tokio::test]
async fn an_intermediate_authority_gives_its_chain() {
    let files = Files::new();
    let root = Ca::root("root");
    let (middle, roots) = (root.intermediate("middle"), [&root.certificate]);
    let lower = middle.intermediate("lower");
    let data = files.settings(&lower.key, &[&lower.certificate, &middle.certificate], &roots);
    let upstream = authority(&data).await.unwrap();
    let request = csr(&LocalKey::generate(KeyType::EcP256).unwrap(), &["spiffe://example.org"]);
    let minted = mint(&*upstream, &request, 600).await.unwrap();
    let chain = parse(&minted.chain);
    assert_eq!(chain[1..], [lower.certificate.clone(), middle.certificate.clone()]);
    verify(&chain, std::slice::from_ref(&root.certificate), Purpose::Any, now()).unwrap();

    // New files count from the next CA on, and bad ones do not.
    let fresh = root.intermediate("fresh");
    files.settings(&fresh.key, &[&fresh.certificate], &roots);
    let minted = mint(&*upstream, &request, 600).await.unwrap();
    assert_eq!(parse(&minted.chain)[1..], *std::slice::from_ref(&fresh.certificate));
    files.write("key.pem", "");
    let minted = mint(&*upstream, &request, 600).await.unwrap();
    assert_eq!(parse(&minted.chain)[1..], [fresh.certificate]);
}

#[tokio::test]
async fn requests_are_checked() {
    let files = Files::new();
    let root = Ca::root("root");
    let upstream = authority(&files.settings(&root.key, &[&root.certificate], &[])).await.unwrap();
    let key = LocalKey::generate(KeyType::EcP256).unwrap();
    let good = csr(&key, &["spiffe://example.org"]);
    let mut forged = good.clone();
    // The last byte of the signature's second number.
    *forged.last_mut().unwrap() ^= 1;
    let table = [
        (Vec::new(), "unable to sign CSR: unable to parse CSR: "),
        (forged, "unable to sign CSR: CSR signature check failed: "),
        (csr(&key, &[]), "unable to sign CSR: CSR must have exactly one URI SAN"),
        (
            csr(&key, &["spiffe://example.org", "spiffe://b"]),
            "unable to sign CSR: CSR must have exactly one URI SAN",
        ),
        (csr(&key, &["http://x"]), "unable to sign CSR: CSR with SPIFFE ID \"http://x\" is invalid: "),
        (
            csr(&key, &["spiffe://example.org/x"]),
            "unable to sign CSR: CSR with SPIFFE ID \"spiffe://example.org/x\" is invalid: must use the trust \
             domain ID for trust domain \"example.org\"",
        ),
        (
            csr(&key, &["spiffe://other.org"]),
            "unable to sign CSR: CSR with SPIFFE ID \"spiffe://other.org\" is invalid: must use the trust \
             domain ID for trust domain \"example.org\"",
        ),
    ];
    for (request, message) in table {
        let found = refusal(mint(&*upstream, &request, 600).await);
        assert!(found.0 == ErrorKind::Internal && found.1.starts_with(message), "{message}: {found:?}");
    }

    let jwt = JwtAuthority {
        kid: "k".to_owned(),
        public_key: bytes::Bytes::new(),
        not_after: Timestamp::EPOCH,
        tainted: false,
    };
    let found = refusal(upstream.publish_jwt_key(&jwt).await);
    assert_eq!(found, (ErrorKind::Unimplemented, "publishing upstream is unsupported".to_owned()));
}

#[tokio::test]
async fn settings_and_files_are_checked() {
    let files = Files::new();
    let (root, other) = (Ca::root("root"), Ca::root("other"));
    let lower = root.intermediate("lower");
    let key = LocalKey::generate(KeyType::EcP256).unwrap();
    let leaf = root.issue(Profile::Svid, "leaf", key.public_key(), "");
    let unset = "'cert_file_path' and 'key_file_path' must be set and not empty";
    let unfit = "unable to load upstream CA: certificate cannot be validated with the provided bundle or is \
                 not self-signed";
    let missing = "key_file_path = \"/no/such\"\ncert_file_path = \"/no/such\"";
    let two_keys = root.key.to_pkcs8_pem().unwrap().repeat(2);
    let (pem, two_keys) = (files.write("c.pem", &pem_of(&[&leaf])), files.write("two.pem", &two_keys));
    let paths = |key: &str, certificate: &str| {
        format!("key_file_path = \"{key}\"\ncert_file_path = \"{certificate}\"")
    };
    let table: Vec<(String, &str)> = vec![
        (String::new(), unset),
        ("cert_file_path = \"x\"".to_owned(), unset),
        ("cert_file_path = {}".to_owned(), "plugin configuration is malformed"),
        (missing.to_owned(), "unable to load upstream CA key: open /no/such: no such file or directory"),
        (paths(&two_keys, &pem), "unable to load upstream CA key: expected 1 PEM blocks; got 2"),
        (
            paths(&pem, &pem),
            "unable to load upstream CA key: expected block type [\"PRIVATE KEY\" \"RSA PRIVATE KEY\" \"EC \
             PRIVATE KEY\"]; got \"CERTIFICATE\"",
        ),
    ];
    for (data, message) in table {
        let found = refusal(authority(&data).await);
        assert!(found.0 == ErrorKind::InvalidArgument && found.1 == message, "{data}: {found:?}");
    }

    let certificates = [&lower.certificate, &root.certificate];
    let found = refusal(authority(&files.settings(&lower.key, &certificates, &[])).await).1;
    assert_eq!(found, "with no bundle_file_path configured only self-signed CAs are supported");
    let found = refusal(authority(&files.settings(&other.key, &[&root.certificate], &[])).await).1;
    assert_eq!(found, "unable to load upstream CA: certificate and private key do not match");
    let data = files.settings(&lower.key, &[&lower.certificate], &[&other.certificate]);
    assert_eq!(refusal(authority(&data).await).1, unfit);
}
