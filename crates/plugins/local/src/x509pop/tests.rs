//! Both sides against each other, and against peers that cheat.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use spire_core::pki::{Certificate, Extension, KeyType, LocalKey, Profile};
use spire_core::spiffe::{Bundle, TrustDomain, X509Authority};
use spire_ports::plugins::{
    AgentNodeAttestor, Challenger, ErrorKind, HostError, IdentityProvider, NodeAttestor, PluginType, Result,
    X509Identity,
};
use tokio::sync::mpsc;

use super::path::{Fields, NOT_BUILT};
use super::{NAME, agent, ecdsa_der, ecdsa_numbers, fingerprint, server};
use crate::agent_path::AgentPath;
use crate::test_ca::{Ca, configuration, pem_of, refusal};
use crate::test_wire::{Files, Fixed, Wire, attest, closed};

async fn server(data: &str) -> Result<Arc<dyn NodeAttestor>> {
    server::build(configuration(PluginType::NodeAttestor, NAME, data)).await
}

async fn agent(data: &str) -> Result<Arc<dyn AgentNodeAttestor>> {
    agent::build(configuration(PluginType::NodeAttestor, NAME, data)).await
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

    use ErrorKind::InvalidArgument;
    server(&with("verify_client_ip = true\nsvid_prefix = \"/x\"")).await.map(|_| ()).unwrap();
    server("mode = \"spiffe\"").await.map(|_| ()).unwrap();
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
        (with("verify_client_ip = \"x\""), InvalidArgument, "unable to decode configuration: ".to_owned()),
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
            with("agent_path_template = \"/{{ .Fingerprint | nosuch }}\""),
            InvalidArgument,
            "failed to parse agent svid template: \"/{{ .Fingerprint | nosuch }}\": template: agent-path:1: function \
             \"nosuch\" not defined"
                .to_owned(),
        ),
        (
            with("agent_path_template = \"/{{ .PublicKey }}\""),
            InvalidArgument,
            "agent_path_template uses .PublicKey, which is not built".to_owned(),
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
    // What a Workload API gives is asked for when it is needed.
    for (socket, why) in [
        ("http://x", "workload endpoint socket URI must have a \"tcp\" or \"unix\" scheme"),
        ("unix:///no/such/socket", "rpc error: code = Unavailable desc = "),
    ] {
        let agent = agent(&format!("spiffe_endpoint_socket = \"{socket}\"")).await.unwrap();
        let (out, _payloads) = mpsc::channel(1);
        let (_to_agent, back) = mpsc::channel(1);
        let found = refusal(agent.attest(&mut Wire { out, back }).await);
        let message = format!("unable to fetch SVID from workload API: {why}");
        assert!(found.0 == ErrorKind::Unavailable && found.1.starts_with(&message), "{found:?}");
    }
}

#[test]
fn paths_from_templates() {
    let root = Ca::root("root");
    let key = LocalKey::generate(KeyType::EcP256).unwrap();
    let leaf =
        root.issue(Profile::Svid, "node-1.example.org", key.public_key(), "x509pop://example.org/rack/r1");
    let san_selectors = [("rack".to_owned(), "r1".to_owned())].into();
    let fields =
        Fields { leaf: &leaf, trust_domain: "example.org", svid_path: "a/b", san_selectors: &san_selectors };
    let (hash, serial) = (fingerprint(&leaf), hex::encode(leaf.serial_bytes()));
    let ours = TrustDomain::parse("example.org").unwrap();
    let table = [
        ("/{{ .PluginName }}/{{ .Fingerprint }}", Ok(format!("/x509pop/{hash}"))),
        ("/a/{{.SerialNumberHex}}", Ok(format!("/a/{serial}"))),
        ("/{{ .TrustDomain }}/{{ .Subject.CommonName }}", Ok("/example.org/node-1.example.org".to_owned())),
        ("/{{ .Certificate.Subject.CommonName | trimSuffix \".example.org\" }}", Ok("/node-1".to_owned())),
        ("/{{ .URISanSelectors.rack }}/{{ .SVIDPathTrimmed }}", Ok("/r1/a/b".to_owned())),
        ("/{{ .SerialNumber }}/{{ .Version }}/{{ .IsCA }}", Ok(format!("/{}/3/false", leaf.serial()))),
        ("/{{ printf \"%x\" .Raw | sha1sum | trunc 4 | len }}", Ok("/4".to_owned())),
        ("/{{ .NotAfter.Unix }}", Ok(format!("/{}", leaf.not_after().unix()))),
        ("/{{ range .URIs }}{{ . | toString | base }}{{ end }}", Ok("/r1".to_owned())),
        ("/{{ .Issuer.CommonName }}{{ .Subject.Organization | join \"-\" }}", Ok("/root".to_owned())),
        ("/ {{- .PluginName -}} /x", Ok("/x509pop/x".to_owned())),
        (
            "/{{ .URISanSelectors.none }}",
            Err(
                "template: agent-path:1:20: executing \"agent-path\" at <.URISanSelectors.none>: map has no entry for \
                 key \"none\"",
            ),
        ),
        (
            "/{{ .Nope }}",
            Err(
                "template: agent-path:1:4: executing \"agent-path\" at <.Nope>: can't evaluate field Nope in type \
                 x509pop.agentPathTemplateData",
            ),
        ),
        // Nothing is escaped, joined or cut to make a path of it.
        (
            "/{{ .Subject }}",
            Err("invalid agent path suffix \"/CN=node-1.example.org\": path segment characters"),
        ),
        ("/../server", Err("invalid agent path suffix \"/../server\": path cannot contain dot segments")),
        ("no-slash", Err("invalid agent path suffix \"no-slash\": path must have a leading slash")),
        ("/x/", Err("invalid agent path suffix \"/x/\": path cannot have a trailing slash")),
        ("/é", Err("invalid agent path suffix \"/é\": path segment characters")),
    ];
    for (template, expected) in table {
        let made = AgentPath::parse(template, NOT_BUILT).unwrap().agent_id(&ours, &fields.value());
        match expected {
            Ok(path) => assert_eq!(made.unwrap().path(), format!("/spire/agent{path}"), "{template}"),
            Err(message) => {
                let found = made.unwrap_err();
                assert!(found.starts_with(message), "{template}: {found}");
            }
        }
    }
}

/// The server's own identity, as far as an attestor asks for it.
struct Own(Bundle);

#[async_trait]
impl IdentityProvider for Own {
    async fn x509_identity(&self) -> std::result::Result<X509Identity, HostError> {
        let bundle = Arc::new(self.0.clone());
        Ok(X509Identity { chain: Vec::new(), private_key: Bytes::new(), bundle })
    }
}

async fn spiffe_server(data: &str, authorities: &[&Certificate]) -> Result<Arc<dyn NodeAttestor>> {
    let mut configuration = configuration(PluginType::NodeAttestor, NAME, data);
    let mut bundle = Bundle::empty(configuration.trust_domain.clone());
    bundle.x509_authorities =
        authorities.iter().map(|it| X509Authority { der: it.der().clone(), tainted: false }).collect();
    configuration.host.identity = Arc::new(Own(bundle));
    server::build(configuration).await
}

#[tokio::test]
async fn an_svid_of_the_server_attests_in_mode_spiffe() {
    let files = Files::new();
    let root = Ca::root("root");
    let key = LocalKey::generate(KeyType::EcP256).unwrap();
    let key_path = files.write("key.pem", &key.to_pkcs8_pem().unwrap());
    let with = |uri: &str| {
        let leaf = root.issue(Profile::Svid, "", key.public_key(), uri);
        format!(
            "private_key_path = \"{key_path}\"\ncertificate_path = \"{}\"",
            files.write("leaf.pem", &pem_of(&[&leaf]))
        )
    };
    let own = [&root.certificate];
    let attested = |server: &str, uri: &str| {
        let (server, agent) = (server.to_owned(), with(uri));
        async move {
            attest(spiffe_server(&server, &own).await.unwrap(), self::agent(&agent).await.unwrap())
                .await
                .map(|attested| attested.agent_id.path().to_owned())
        }
    };
    let mode = "mode = \"spiffe\"\n";
    let found = attested(mode, "spiffe://example.org/spire-exchange/a/b").await;
    assert_eq!(found.unwrap(), "/spire/agent/x509pop/a/b");
    let prefix = mode.to_owned() + "spiffe_prefix = \"/nodes\"";
    assert_eq!(attested(&prefix, "spiffe://example.org/nodes/a").await.unwrap(), "/spire/agent/x509pop/a");
    let denied = |message: &str| (ErrorKind::PermissionDenied, message.to_owned());
    let mismatch = denied("x509 cert doesnt match SVID prefix");
    let none = denied("valid SVID x509 cert not found");
    let table = [
        (mode, "spiffe://example.org/spire-exchangex/a", &mismatch),
        (mode, "spiffe://example.org/other", &mismatch),
        (&prefix, "spiffe://example.org/nodesx/a", &mismatch),
        (mode, "spiffe://other.org/spire-exchange/a", &none),
        (mode, "spiffe://example.org/spire-exchange/../a", &none),
        (mode, "https://example.org/spire-exchange/a", &none),
        (mode, "", &none),
    ];
    for (server, uri, expected) in table {
        assert_eq!(&refusal(attested(server, uri).await), expected, "{uri}");
    }
    // Of nothing but the prefix no path can be made.
    assert_eq!(refusal(attested(mode, "spiffe://example.org/spire-exchange").await), mismatch);

    let agent = agent(&with("spiffe://example.org/spire-exchange/a")).await.unwrap();
    let stranger = Ca::root("root");
    for authorities in [&[&stranger.certificate][..], &[]] {
        let server = spiffe_server(mode, authorities).await.unwrap();
        let found = refusal(attest(server, agent.clone()).await);
        assert!(found.1.starts_with("certificate verification failed: "), "{found:?}");
    }
    let server = server(mode).await.unwrap();
    let found = refusal(attest(server, agent).await);
    let message =
        "failed to get trust bundle: IdentityProvider host service has not been initialized".to_owned();
    assert_eq!(found, (ErrorKind::Internal, message));
}

#[tokio::test]
async fn the_address_must_be_one_of_the_certificate_where_that_is_asked_for() {
    /// Answers no challenge; what is refused before is what counts.
    struct At(Option<IpAddr>);
    #[async_trait]
    impl Challenger for At {
        async fn challenge(&mut self, _: Bytes) -> Result<Bytes> {
            Err(closed())
        }
        fn client_ip(&self) -> Option<IpAddr> {
            self.0
        }
    }

    let files = Files::new();
    let root = Ca::root("root");
    let bundle = files.write("bundle.pem", &pem_of(&[&root.certificate]));
    let key = LocalKey::generate(KeyType::EcP256).unwrap();
    // subjectAltName with the address 192.0.2.7.
    let san = Extension::new("2.5.29.17", false, [0x30, 6, 0x87, 4, 192, 0, 2, 7].as_slice()).unwrap();
    let leaf = root.issue_with(Profile::Svid, "node", key.public_key(), "", &[san]);
    let payload = payload_of(&[&leaf]);
    let checking = server(&format!("ca_bundle_path = \"{bundle}\"\nverify_client_ip = true")).await.unwrap();
    let reached = "the other side went away";
    let table = [
        (Some("192.0.2.7"), ErrorKind::Unavailable, reached),
        (Some("::ffff:192.0.2.7"), ErrorKind::Unavailable, reached),
        (
            Some("192.0.2.8"),
            ErrorKind::PermissionDenied,
            "client IP 192.0.2.8 does not match any certificate IP SAN",
        ),
        (Some("::1"), ErrorKind::PermissionDenied, "client IP ::1 does not match any certificate IP SAN"),
        (None, ErrorKind::Internal, "client IP not available for verification"),
    ];
    for (address, kind, message) in table {
        let mut at = At(address.map(|address| address.parse().unwrap()));
        let found = refusal(checking.attest(payload.clone().into(), &mut at).await);
        assert_eq!(found, (kind, message.to_owned()), "{address:?}");
    }
    let careless = server(&format!("ca_bundle_path = \"{bundle}\"")).await.unwrap();
    assert_eq!(refusal(careless.attest(payload.into(), &mut At(None)).await).1, reached);
}

/// DER: an element of this tag.
fn der(tag: u8, contents: &[u8]) -> Vec<u8> {
    let len = contents.len();
    let mut out = vec![tag];
    match len {
        0..0x80 => out.push(u8::try_from(len).unwrap()),
        _ => {
            out.push(0x82);
            out.extend(u16::try_from(len).unwrap().to_be_bytes());
        }
    }
    out.extend_from_slice(contents);
    out
}

/// A certificate with an RSA key of this size, signed by nobody.
fn unsigned_rsa(bits: usize, like: &Certificate) -> Vec<u8> {
    let rsa = der(0x30, &[&[6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1][..], &[5, 0]].concat());
    let modulus = [&[0][..], &vec![0xff; bits / 8]].concat();
    let key = der(0x30, &[der(2, &modulus), der(2, &[1, 0, 1])].concat());
    let spki = der(0x30, &[rsa, der(3, &[&[0][..], &key].concat())].concat());
    let algorithm = der(0x30, &[6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2]);
    let validity = der(0x30, &[der(0x17, b"250101000000Z"), der(0x17, b"350101000000Z")].concat());
    let tbs = [
        vec![0xa0, 3, 2, 1, 2, 2, 1, 1],
        algorithm.clone(),
        like.issuer_der().to_vec(),
        validity,
        like.subject_der().to_vec(),
        spki,
    ];
    der(0x30, &[der(0x30, &tbs.concat()), algorithm, der(3, &[0, 1, 2])].concat())
}

#[tokio::test]
async fn what_is_too_much_is_refused_before_it_costs_anything() {
    use base64::Engine as _;
    let encode = |der: &[u8]| base64::engine::general_purpose::STANDARD.encode(der);
    let files = Files::new();
    let root = Ca::root("root");
    let bundle = files.write("bundle.pem", &pem_of(&[&root.certificate]));
    let key = LocalKey::generate(KeyType::EcP256).unwrap();
    let leaf = root.issue(Profile::Svid, "node", key.public_key(), "");
    let server = server(&format!("ca_bundle_path = \"{bundle}\"")).await.unwrap();
    let payload =
        |certificates: &[String]| format!("{{\"certificates\":[\"{}\"]}}", certificates.join("\",\""));

    // A hundred intermediates that are none: they are counted, not read.
    let hundred = vec!["!not base64!".to_owned(); 101];
    let found = refused(&*server, &payload(&hundred), "").await;
    assert_eq!(found, (ErrorKind::InvalidArgument, "too many intermediate certificates".to_owned()));
    // Keys of 16,384 bits, whose signature nobody could check in reasonable time.
    let huge = encode(&unsigned_rsa(16_384, &leaf));
    let found = refused(&*server, &payload(std::slice::from_ref(&huge)), "").await;
    assert_eq!(found, (ErrorKind::InvalidArgument, "leaf certificate key size too large".to_owned()));
    let found = refused(&*server, &payload(&[encode(leaf.der()), huge]), "").await;
    let message = "intermediate certificate 0 key size too large";
    assert_eq!(found, (ErrorKind::InvalidArgument, message.to_owned()));
    // Ten megabytes, which no transport lets through: one certificate, or brackets.
    let found = refused(&*server, &payload(&["A".repeat(10 << 20)]), "").await;
    assert!(found.1.starts_with("unable to parse leaf certificate: "), "{found:?}");
    let found = refused(&*server, &"[".repeat(10 << 20), "").await;
    assert!(found.1.starts_with("failed to unmarshal data: "), "{found:?}");
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
