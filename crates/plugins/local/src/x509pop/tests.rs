//! Both sides against each other, and against peers that cheat.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use spire_core::pki::{Certificate, KeyType, LocalKey, Profile};
use spire_ports::plugins::{
    AgentNodeAttestor, Attestation, AttestationStream, Challenger, Error, ErrorKind, NodeAttestor,
    PluginType, Result,
};
use tokio::sync::mpsc;

use super::path::PathTemplate;
use super::{NAME, agent, ecdsa_der, ecdsa_numbers, fingerprint, server};
use crate::test_ca::{Ca, configuration, pem_of, refusal};

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
}

async fn server(data: &str) -> Result<Arc<dyn NodeAttestor>> {
    server::build(configuration(PluginType::NodeAttestor, NAME, data)).await
}

async fn agent(data: &str) -> Result<Arc<dyn AgentNodeAttestor>> {
    agent::build(configuration(PluginType::NodeAttestor, NAME, data)).await
}

/// The way between the two: one channel a direction.
struct Wire {
    out: mpsc::Sender<Bytes>,
    back: mpsc::Receiver<Bytes>,
}

fn closed() -> Error {
    Error::new(ErrorKind::Unavailable, (PluginType::NodeAttestor, NAME), "the other side went away")
}

impl Wire {
    async fn exchange(&mut self, message: Bytes) -> Result<Option<Bytes>> {
        self.out.send(message).await.map_err(|_| closed())?;
        Ok(self.back.recv().await)
    }
}

#[async_trait]
impl AttestationStream for Wire {
    async fn send_payload(&mut self, payload: Bytes) -> Result<Option<Bytes>> {
        self.exchange(payload).await
    }
    async fn respond(&mut self, response: Bytes) -> Result<Option<Bytes>> {
        self.exchange(response).await
    }
}

#[async_trait]
impl Challenger for Wire {
    async fn challenge(&mut self, challenge: Bytes) -> Result<Bytes> {
        self.exchange(challenge).await?.ok_or_else(closed)
    }
}

/// Lets the agent attest to the server.
async fn attest(server: Arc<dyn NodeAttestor>, agent: Arc<dyn AgentNodeAttestor>) -> Result<Attestation> {
    let (to_server, mut payloads) = mpsc::channel(1);
    let (to_agent, from_server) = mpsc::channel(1);
    let client =
        tokio::spawn(async move { agent.attest(&mut Wire { out: to_server, back: from_server }).await });
    let payload = payloads.recv().await.unwrap();
    let result = {
        let mut wire = Wire { out: to_agent, back: payloads };
        server.attest(payload, &mut wire).await
    };
    let client = client.await.unwrap();
    assert!(result.is_err() || client.is_ok(), "{client:?}");
    result
}

/// Answers every challenge with the same bytes.
struct Fixed(&'static str);

#[async_trait]
impl Challenger for Fixed {
    async fn challenge(&mut self, _: Bytes) -> Result<Bytes> {
        Ok(Bytes::from_static(self.0.as_bytes()))
    }
}

async fn refused(server: &dyn NodeAttestor, payload: &str, response: &'static str) -> (ErrorKind, String) {
    refusal(server.attest(Bytes::from(payload.to_owned()), &mut Fixed(response)).await)
}

fn payload_of(certificates: &[&Certificate]) -> String {
    use base64::Engine as _;
    let encode = |certificate: &&Certificate| {
        format!("\"{}\"", base64::engine::general_purpose::STANDARD.encode(certificate.der()))
    };
    let certificates: Vec<String> = certificates.iter().map(encode).collect();
    format!("{{\"certificates\":[{}]}}", certificates.join(","))
}

#[tokio::test]
async fn every_key_type_attests() {
    let files = Files::new();
    let root = Ca::root("root");
    let lower = root.intermediate("lower");
    let bundle = files.write("bundle.pem", &pem_of(&[&root.certificate]));
    let chain = files.write("intermediates.pem", &pem_of(&[&lower.certificate]));
    for key_type in KeyType::ALL {
        let key = LocalKey::generate(key_type).unwrap();
        let uri = "x509pop://example.org/rack/r%201/top";
        let leaf = lower.issue(Profile::Svid, "node", key.public_key(), uri);
        let data = format!(
            "private_key_path = \"{}\"\ncertificate_path = \"{}\"\nintermediates_path = \"{chain}\"",
            files.write("key.pem", &key.to_pkcs8_pem().unwrap()),
            files.write("leaf.pem", &pem_of(&[&leaf])),
        );
        let server = server(&format!("ca_bundle_path = \"{bundle}\"")).await.unwrap();
        let attested = attest(server, agent(&data).await.unwrap()).await.unwrap();
        let expected = format!("spiffe://example.org/spire/agent/x509pop/{}", fingerprint(&leaf));
        assert_eq!(attested.agent_id.as_str(), expected);
        assert!(attested.can_reattest);
        let mut expected = vec![
            format!("x509pop:ca:fingerprint:{}", fingerprint(&lower.certificate)),
            format!("x509pop:ca:fingerprint:{}", fingerprint(&root.certificate)),
            "x509pop:san:rack:r 1/top".to_owned(),
            format!("x509pop:serialnumber:{}", hex::encode(leaf.serial_bytes())),
            "x509pop:subject:cn:node".to_owned(),
        ];
        expected.sort();
        let found: Vec<String> = attested.selectors.iter().map(ToString::to_string).collect();
        assert_eq!(found, expected, "{key_type}");
    }
}

#[tokio::test]
async fn every_root_that_a_chain_ends_in_gives_a_selector() {
    // One key, certified by two roots.
    let files = Files::new();
    let (one, two) = (Ca::root("one"), Ca::root("two"));
    let lower = one.intermediate("lower");
    let crossed = two.issue(Profile::Ca, "lower", lower.key.public_key(), "");
    let key = LocalKey::generate(KeyType::EcP256).unwrap();
    let leaf = lower.issue(Profile::Svid, "", key.public_key(), "");
    let data = format!(
        "private_key_path = \"{}\"\ncertificate_path = \"{}\"",
        files.write("key.pem", &key.to_pkcs8_pem().unwrap()),
        files.write("chain.pem", &pem_of(&[&leaf, &lower.certificate, &crossed])),
    );
    let paths =
        [&one, &two].map(|ca| files.write(&fingerprint(&ca.certificate), &pem_of(&[&ca.certificate])));
    let server = server(&format!("ca_bundle_paths = {paths:?}")).await.unwrap();
    let attested = attest(server, agent(&data).await.unwrap()).await.unwrap();
    let found: Vec<&str> = attested.selectors.iter().map(|selector| selector.value()).collect();
    for certificate in [&one.certificate, &two.certificate, &lower.certificate, &crossed] {
        let selector = format!("ca:fingerprint:{}", fingerprint(certificate));
        assert!(found.contains(&selector.as_str()), "{found:?}");
    }
}

#[tokio::test]
async fn cheats_are_refused() {
    let files = Files::new();
    let root = Ca::root("root");
    let bundle = files.write("bundle.pem", &pem_of(&[&root.certificate]));
    let server = server(&format!("ca_bundle_path = \"{bundle}\"\nmax_intermediates = 1")).await.unwrap();
    let key = LocalKey::generate(KeyType::EcP256).unwrap();
    let leaf = root.issue(Profile::Svid, "node", key.public_key(), "");
    let rsa = LocalKey::generate(KeyType::Rsa2048).unwrap();
    let rsa = root.issue(Profile::Svid, "node", rsa.public_key(), "");
    let no_signatures = root.issue(Profile::Ca, "node", key.public_key(), "");
    let stranger = Ca::root("root").issue(Profile::Svid, "node", key.public_key(), "");

    use ErrorKind::{Internal, InvalidArgument, PermissionDenied};
    let nonce = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    let wrong = Box::leak(
        format!(r#"{{"rsa_signature":null,"ecdsa_signature":{{"nonce":"{nonce}","r":"AQ==","s":"AQ=="}}}}"#)
            .into_boxed_str(),
    );
    let wrong_rsa = Box::leak(
        format!(r#"{{"rsa_signature":{{"nonce":"{nonce}","signature":"AQ=="}}}}"#).into_boxed_str(),
    );
    let table: Vec<(String, &'static str, ErrorKind, &str)> = vec![
        (String::new(), "", InvalidArgument, "missing attestation payload"),
        ("x".to_owned(), "", InvalidArgument, "failed to unmarshal data: "),
        ("{}".to_owned(), "", InvalidArgument, "no certificate to attest"),
        (r#"{"certificates":null}"#.to_owned(), "", InvalidArgument, "no certificate to attest"),
        (
            r#"{"certificates":["AA=="]}"#.to_owned(),
            "",
            InvalidArgument,
            "unable to parse leaf certificate: ",
        ),
        (
            payload_of(&[&leaf]).replace("\"]", "\",\"AA==\"]"),
            "",
            InvalidArgument,
            "unable to parse intermediate certificate 0: ",
        ),
        (payload_of(&[&leaf, &rsa, &leaf]), "", InvalidArgument, "too many intermediate certificates"),
        (
            payload_of(&[&stranger]),
            "",
            PermissionDenied,
            "certificate verification failed: x509: certificate signed by unknown authority",
        ),
        (
            payload_of(&[&no_signatures]),
            "",
            Internal,
            "unable to generate challenge: certificate not intended for digital signature use",
        ),
        (payload_of(&[&leaf]), "[", InvalidArgument, "unable to unmarshal challenge response: "),
        (
            payload_of(&[&leaf]),
            "{}",
            PermissionDenied,
            "challenge response verification failed: expecting ECDSA response",
        ),
        (
            payload_of(&[&leaf]),
            r#"{"ecdsa_signature":{"nonce":"AA==","r":"AQ==","s":"AQ=="}}"#,
            PermissionDenied,
            "challenge response verification failed: invalid response nonce",
        ),
        (
            payload_of(&[&leaf]),
            wrong,
            PermissionDenied,
            "challenge response verification failed: ECDSA signature verify failed",
        ),
        (
            payload_of(&[&rsa]),
            wrong,
            PermissionDenied,
            "challenge response verification failed: expecting RSA response",
        ),
        (
            payload_of(&[&rsa]),
            wrong_rsa,
            PermissionDenied,
            "challenge response verification failed: RSA signature verify failed",
        ),
    ];
    for (payload, response, kind, message) in table {
        let found = refused(&*server, &payload, response).await;
        assert!(found.0 == kind && found.1.starts_with(message), "{message}: {found:?}");
    }
}

#[tokio::test]
async fn large_keys_are_refused() {
    let files = Files::new();
    let root = Ca::root("root");
    let bundle = files.write("bundle.pem", &pem_of(&[&root.certificate]));
    let key = LocalKey::generate(KeyType::EcP256).unwrap();
    let leaf = root.issue(Profile::Svid, "node", key.public_key(), "");
    let rsa = LocalKey::generate(KeyType::Rsa2048).unwrap();
    let rsa = root.issue(Profile::Svid, "node", rsa.public_key(), "");
    let small = server(&format!("ca_bundle_path = \"{bundle}\"\nmax_rsa_key_size = 1024")).await.unwrap();
    let found = refused(&*small, &payload_of(&[&rsa]), "").await;
    assert_eq!(found, (ErrorKind::InvalidArgument, "leaf certificate key size too large".to_owned()));
    let found = refused(&*small, &payload_of(&[&leaf, &rsa]), "").await;
    assert_eq!(
        found,
        (ErrorKind::InvalidArgument, "intermediate certificate 0 key size too large".to_owned())
    );
}

#[tokio::test]
async fn another_key_than_the_certificates_is_refused() {
    let files = Files::new();
    let root = Ca::root("root");
    let bundle = files.write("bundle.pem", &pem_of(&[&root.certificate]));
    let key = LocalKey::generate(KeyType::EcP256).unwrap();
    let leaf = root.issue(Profile::Svid, "node", key.public_key(), "");
    let other = LocalKey::generate(KeyType::EcP256).unwrap();

    /// Signs each challenge with the other key.
    struct Thief(LocalKey);
    #[async_trait]
    impl Challenger for Thief {
        async fn challenge(&mut self, challenge: Bytes) -> Result<Bytes> {
            let challenge: super::Challenge = serde_json::from_slice(&challenge).unwrap();
            Ok(serde_json::to_vec(&challenge.respond(&self.0).unwrap()).unwrap().into())
        }
    }

    let server = server(&format!("ca_bundle_path = \"{bundle}\"")).await.unwrap();
    let payload = Bytes::from(payload_of(&[&leaf]));
    server.attest(payload.clone(), &mut Thief(key)).await.expect("the right key");
    let found = refusal(server.attest(payload, &mut Thief(other)).await);
    let message = "challenge response verification failed: ECDSA signature verify failed";
    assert_eq!(found, (ErrorKind::PermissionDenied, message.to_owned()));
}

#[tokio::test]
async fn server_settings_are_checked() {
    let files = Files::new();
    let root = Ca::root("root");
    let bundle = files.write("bundle.pem", &("junk\n".to_owned() + &pem_of(&[&root.certificate])));
    let key = files.write("key.pem", &root.key.to_pkcs8_pem().unwrap());
    let missing = files.0.path().join("missing").display().to_string();
    let with = |more: &str| format!("ca_bundle_path = \"{bundle}\"\n{more}");
    server(&with("mode = \"external_pki\"\nspiffe_prefix = \"/x\"")).await.map(|_| ()).unwrap();

    use ErrorKind::{FailedPrecondition, InvalidArgument};
    let table = [
        (
            String::new(),
            InvalidArgument,
            "one of ca_bundle_path or ca_bundle_paths must be configured".to_owned(),
        ),
        (with("mode = 1"), InvalidArgument, "mode can only be either spiffe or external_pki".to_owned()),
        (with("mode = true"), InvalidArgument, "unable to decode configuration: ".to_owned()),
        (
            with("mode = \"spiffe\""),
            InvalidArgument,
            "you can not use ca_bundle_path or ca_bundle_paths in spiffe mode".to_owned(),
        ),
        ("mode = \"spiffe\"".to_owned(), FailedPrecondition, "not built yet: mode \"spiffe\"".to_owned()),
        (with("verify_client_ip = true"), FailedPrecondition, "not built yet: verify_client_ip".to_owned()),
        (
            with("ca_bundle_paths = [\"x\"]"),
            InvalidArgument,
            "only one of ca_bundle_path or ca_bundle_paths can be configured, not both".to_owned(),
        ),
        (
            with("max_intermediates = 0"),
            InvalidArgument,
            "max_intermediates must be greater than 0".to_owned(),
        ),
        (
            with("max_rsa_key_size = -1"),
            InvalidArgument,
            "max_rsa_key_size must be greater than 0".to_owned(),
        ),
        (
            format!("ca_bundle_path = \"{missing}\""),
            InvalidArgument,
            format!("unable to load trust bundle \"{missing}\": open {missing}: no such file or directory"),
        ),
        (
            format!("ca_bundle_path = \"{key}\""),
            InvalidArgument,
            format!("unable to load trust bundle \"{key}\": no certificates found in file"),
        ),
        (
            with("agent_path_template = \"/{{ .Fingerprint\""),
            InvalidArgument,
            "failed to parse agent svid template: \"/{{ .Fingerprint\"".to_owned(),
        ),
        (
            with("agent_path_template = \"/{{ .Fingerprint | upper }}\""),
            InvalidArgument,
            "agent_path_template uses \".Fingerprint | upper\", which is not built yet".to_owned(),
        ),
    ];
    for (data, kind, message) in table {
        let found = refusal(server(&data).await);
        assert!(found.0 == kind && found.1.starts_with(&message), "{data}: {found:?}");
    }
}

#[tokio::test]
async fn agent_settings_are_checked() {
    let files = Files::new();
    let root = Ca::root("root");
    let key = files.write("key.pem", &root.key.to_pkcs8_pem().unwrap());
    let other = LocalKey::generate(KeyType::EcP256).unwrap();
    let other = files.write("other.pem", &other.to_pkcs8_pem().unwrap());
    let certificate = files.write("cert.pem", &pem_of(&[&root.certificate]));
    let missing = Path::new("/no/such/file").display();
    let pair = |key: &str, certificate: &str| {
        format!("private_key_path = \"{key}\"\ncertificate_path = \"{certificate}\"\n")
    };
    agent(&pair(&key, &certificate)).await.map(|_| ()).unwrap();

    let table = [
        (String::new(), "private_key_path is required".to_owned()),
        ("private_key_path = \"x\"".to_owned(), "certificate_path is required".to_owned()),
        (
            pair(&key, "/no/such/file"),
            format!("unable to load keypair: open {missing}: no such file or directory"),
        ),
        (pair(&other, &certificate), "unable to load keypair: tls: private key does not match".to_owned()),
        (
            pair(&certificate, &certificate),
            "unable to load keypair: tls: failed to find any PEM data in key input".to_owned(),
        ),
        (
            pair(&key, &key),
            "unable to load keypair: tls: failed to find any PEM data in certificate input".to_owned(),
        ),
        (
            pair(&key, &certificate) + &format!("intermediates_path = \"{key}\""),
            "unable to load intermediate certificates: no certificates found in file".to_owned(),
        ),
    ];
    for (data, message) in table {
        let found = refusal(agent(&data).await);
        assert!(found.0 == ErrorKind::InvalidArgument && found.1.starts_with(&message), "{data}: {found:?}");
    }
    let found = refusal(agent("spiffe_endpoint_socket = \"unix:///x\"").await);
    assert_eq!(found.0, ErrorKind::FailedPrecondition);
}

#[tokio::test]
async fn paths_from_templates() {
    let root = Ca::root("root");
    let key = LocalKey::generate(KeyType::EcP256).unwrap();
    let leaf = root.issue(Profile::Svid, "node-1", key.public_key(), "");
    let selectors = [("rack".to_owned(), "r1".to_owned())].into();
    let fields = super::path::Fields { leaf: &leaf, trust_domain: "example.org", san_selectors: &selectors };
    let (hash, serial) = (fingerprint(&leaf), hex::encode(leaf.serial_bytes()));
    let table = [
        ("/{{ .PluginName }}/{{ .Fingerprint }}", Ok(format!("/x509pop/{hash}"))),
        ("/a/{{.SerialNumberHex}}", Ok(format!("/a/{serial}"))),
        ("/{{ .TrustDomain }}/{{ .Subject.CommonName }}", Ok("/example.org/node-1".to_owned())),
        ("/{{ .URISanSelectors.rack }}", Ok("/r1".to_owned())),
        ("/ {{- .PluginName -}} /x", Ok("/x509pop/x".to_owned())),
        ("/{{ .URISanSelectors.none }}", Err("map has no entry for key \"none\"".to_owned())),
    ];
    for (template, expected) in table {
        assert_eq!(PathTemplate::parse(template).unwrap().execute(&fields), expected, "{template}");
    }
    let default = PathTemplate::by_fingerprint();
    assert_eq!(default.execute(&fields), Ok(format!("/x509pop/{hash}")));
}

#[test]
fn numbers_of_signatures() {
    let table: [(&[u8], &[u8]); 4] =
        [(&[1], &[2]), (&[0x80], &[0x7f, 0]), (&[0xff; 66], &[1]), (&[9; 48], &[0xff; 48])];
    for (r, s) in table {
        let padded = [&[0], r].concat();
        let der = ecdsa_der(&padded, s).unwrap();
        if der[1] < 0x80 {
            assert_eq!(ecdsa_numbers(&der), Some((r.to_vec(), s.to_vec())));
        }
    }
    assert_eq!(ecdsa_der(&[], &[1]), None);
    assert_eq!(ecdsa_der(&[1], &[0, 0]), None);
    assert_eq!(ecdsa_der(&[1; 67], &[1]), None);
    for malformed in [&[][..], &[0x30], &[0x30, 3, 2, 1], &[0x30, 3, 2, 1, 1], &[0x31, 0]] {
        assert_eq!(ecdsa_numbers(malformed), None);
    }
}
