//! Certificates of ssh-keygen, both sides against each other, and peers that cheat.

use std::sync::Arc;

use aws_lc_rs::digest;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use spire_ports::plugins::{AgentNodeAttestor, ErrorKind, NodeAttestor, PluginType, Result};

use super::authorized::first_key;
use super::certificate::Certificate;
use super::key::{PublicKey, Purpose};
use super::private::Signer;
use super::wire::put_string;
use super::{NAME, Response, Signature, agent, server};
use crate::json::Base64;
use crate::machine::now;
use crate::test_ca::{configuration, refusal};
use crate::test_wire::{Files, Fixed, attest};

const KINDS: [&str; 5] = ["rsa-2048", "ecdsa-256", "ecdsa-384", "ecdsa-521", "ed25519-256"];

fn testdata(name: &str) -> String {
    format!("{}/src/sshpop/testdata/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn read(name: &str) -> String {
    std::fs::read_to_string(testdata(name)).unwrap()
}

async fn server(data: &str) -> Result<Arc<dyn NodeAttestor>> {
    server::build(configuration(PluginType::NodeAttestor, NAME, data)).await
}

async fn agent(data: &str) -> Result<Arc<dyn AgentNodeAttestor>> {
    agent::build(configuration(PluginType::NodeAttestor, NAME, data)).await
}

fn host(kind: &str) -> String {
    format!(
        "host_key_path = \"{}\"\nhost_cert_path = \"{}\"",
        testdata(&format!("host-{kind}")),
        testdata(&format!("host-{kind}-cert.pub"))
    )
}

/// An authority in software, for what ssh-keygen does not make.
struct Ca {
    key: Ed25519KeyPair,
    /// The application, when it pretends to be a security key.
    application: Option<&'static str>,
}

impl Ca {
    fn new(application: Option<&'static str>) -> Self {
        Self { key: Ed25519KeyPair::generate().unwrap(), application }
    }

    fn key_type(&self) -> &'static str {
        if self.application.is_some() { "sk-ssh-ed25519@openssh.com" } else { "ssh-ed25519" }
    }

    fn blob(&self) -> Vec<u8> {
        let mut blob = strings(&[self.key_type().as_bytes(), self.key.public_key().as_ref()]);
        blob.extend(self.application.map(|it| strings(&[it.as_bytes()])).unwrap_or_default());
        blob
    }

    fn line(&self) -> String {
        format!("{} {} the authority", self.key_type(), STANDARD.encode(self.blob()))
    }

    /// A signature with a security key's flags.
    fn sign(&self, message: &[u8], flags: u8) -> Signature {
        let (message, rest) = match self.application {
            None => (message.to_vec(), None),
            Some(application) => {
                let hash = |bytes: &[u8]| digest::digest(&digest::SHA256, bytes).as_ref().to_vec();
                let rest = vec![flags, 0, 0, 0, 9];
                ([hash(application.as_bytes()), rest.clone(), hash(message)].concat(), Some(Base64(rest)))
            }
        };
        let blob = Base64(self.key.sign(&message).as_ref().to_vec());
        Signature { format: self.key_type().to_owned(), blob, rest }
    }
}

fn strings(parts: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::new();
    parts.iter().for_each(|part| put_string(&mut out, part));
    out
}

/// A certificate to be.
struct Draft {
    key: Ca,
    cert_type: u32,
    principals: Vec<&'static str>,
    valid_after: u64,
    valid_before: u64,
    options: Vec<u8>,
    signature_key: Option<Vec<u8>>,
}

impl Draft {
    fn new() -> Self {
        Self {
            key: Ca::new(None),
            cert_type: 2,
            principals: vec!["host.example.org"],
            valid_after: 0,
            valid_before: u64::MAX,
            options: Vec::new(),
            signature_key: None,
        }
    }

    fn signed(&self, ca: &Ca) -> Vec<u8> {
        let principals: Vec<&[u8]> = self.principals.iter().map(|name| name.as_bytes()).collect();
        let key = self.key.key.public_key().as_ref();
        let mut blob = strings(&[b"ssh-ed25519-cert-v01@openssh.com", b"nonce", key]);
        blob.extend(7u64.to_be_bytes());
        blob.extend(self.cert_type.to_be_bytes());
        blob.extend(strings(&[b"id", &strings(&principals)]));
        blob.extend(self.valid_after.to_be_bytes());
        blob.extend(self.valid_before.to_be_bytes());
        let signature_key = self.signature_key.clone().unwrap_or_else(|| ca.blob());
        blob.extend(strings(&[&self.options, b"", b"", &signature_key]));
        // Nobody touches the key of an authority.
        let signature = ca.sign(&blob, 0);
        let mut encoded = strings(&[signature.format.as_bytes(), &signature.blob.0]);
        encoded.extend(signature.rest.map(|rest| rest.0).unwrap_or_default());
        put_string(&mut blob, &encoded);
        blob
    }
}

fn payload(certificate: &[u8]) -> Bytes {
    format!("{{\"Certificate\":\"{}\"}}", STANDARD.encode(certificate)).into()
}

#[tokio::test]
async fn hosts_with_certificates_of_ssh_keygen_attest() {
    let lines: Vec<String> =
        KINDS.iter().map(|kind| read(&format!("ca-{kind}.pub")).trim().to_owned()).collect();
    let data = format!("cert_authorities = {lines:?}");
    for kind in KINDS {
        let certificate = first_key(&read(&format!("host-{kind}-cert.pub"))).unwrap();
        let fingerprint = URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, &certificate));
        let attested = attest(server(&data).await.unwrap(), agent(&host(kind)).await.unwrap()).await.unwrap();
        let expected = format!("spiffe://example.org/spire/agent/sshpop/{fingerprint}");
        assert_eq!(attested.agent_id.as_str(), expected, "{kind}");
        assert!(attested.can_reattest && attested.selectors.is_empty());
        // Another authority does not help.
        let other =
            lines.iter().find(|line| !read(&format!("ca-{kind}.pub")).starts_with(line.as_str())).unwrap();
        let stranger = server(&format!("cert_authorities = [{other:?}]")).await.unwrap();
        let found = refusal(attest(stranger, agent(&host(kind)).await.unwrap()).await);
        let message = "failed to check host key: ssh: no authorities for hostname: host.example.org:22";
        assert_eq!(found, (ErrorKind::Internal, message.to_owned()));
    }
}

#[tokio::test]
async fn names_come_from_templates_and_domains() {
    let ca = testdata("ca-rsa-2048.pub");
    let attested = |more: &str| {
        let data = format!("cert_authorities_path = \"{ca}\"\n{more}");
        async move {
            let agent = agent(&host("rsa-2048")).await.unwrap();
            attest(server(&data).await.unwrap(), agent).await.map(|it| it.agent_id.path().to_owned())
        }
    };
    let template = |text: &str| format!("agent_path_template = \"{text}\"\n");
    let table = [
        (template("/{{ .Hostname }}"), "/host.example.org"),
        (template("/{{ .Hostname }}") + "canonical_domain = \"example.org\"", "/host"),
        (template("/{{ .Serial }}/{{ .CertType }}/{{ .ValidAfter }}"), "/7/2/0"),
        (template("/{{ .KeyId | replace \\\" \\\" \\\"-\\\" }}"), "/id-of-host"),
        (template("/{{ index .ValidPrincipals 1 }}"), "/other.example.org"),
        (
            template("/{{ .Type | trunc 7 }}/{{ len .CriticalOptions }}{{ len .Certificate.Extensions }}"),
            "/ssh-rsa/00",
        ),
    ];
    for (more, path) in table {
        assert_eq!(attested(&more).await.unwrap(), format!("/spire/agent{path}"), "{more}");
    }
    let found = refusal(attested("canonical_domain = \"other.org\"").await);
    let message = "failed to decanonicalize hostname: cert principal is not in domain \".other.org\"";
    assert_eq!(found, (ErrorKind::Internal, message.to_owned()));
    let found = refusal(attested(&template("/{{ .KeyId }}")).await);
    let message = "failed to create AgentID: invalid agent path suffix \"/id of host\": ";
    assert!(found.0 == ErrorKind::Internal && found.1.starts_with(message), "{found:?}");
}

#[tokio::test]
async fn cheats_are_refused() {
    let ca = Ca::new(None);
    let server = server(&format!("cert_authorities = [{:?}]", ca.line())).await.unwrap();
    let refused = |payload: Bytes, response: &'static str| {
        let server = Arc::clone(&server);
        async move { refusal(server.attest(payload, &mut Fixed(response)).await) }
    };
    let after = u64::try_from(now().unix()).unwrap() + 3600;
    let good = Draft::new().signed(&ca);
    let mut broken = good.clone();
    broken[60] ^= 1;
    let unsorted = [strings(&[b"b", b""]), strings(&[b"a", b""])].concat();
    let nested = Draft::new().signed(&ca);
    let drafts = [
        (Draft { cert_type: 1, ..Draft::new() }, "ssh: certificate presented as a host key has type 1"),
        (Draft { valid_after: after, ..Draft::new() }, "ssh: cert is not yet valid"),
        (Draft { valid_after: u64::MAX, ..Draft::new() }, "ssh: cert is not yet valid"),
        (Draft { valid_before: 1, ..Draft::new() }, "ssh: cert has expired"),
        (Draft { valid_before: u64::MAX - 1, ..Draft::new() }, "ssh: cert has expired"),
        (
            Draft { options: strings(&[b"force-command", &strings(&[b"x"])]), ..Draft::new() },
            "ssh: unsupported critical option \"force-command\" in certificate",
        ),
        (Draft { principals: vec!["a:b"], ..Draft::new() }, "address a:b:22: too many colons in address"),
        (
            Draft { signature_key: Some(Ca::new(None).blob()), ..Draft::new() },
            "ssh: no authorities for hostname: host.example.org:22",
        ),
    ];
    for (draft, message) in drafts {
        let found = refused(payload(&draft.signed(&ca)), "").await;
        assert_eq!(found, (ErrorKind::Internal, format!("failed to check host key: {message}")));
    }
    let malformed: Vec<(Vec<u8>, &str)> = vec![
        (
            Draft { options: unsorted, ..Draft::new() }.signed(&ca),
            "ssh: certificate options are not in lexical order",
        ),
        (
            Draft { signature_key: Some(nested), ..Draft::new() }.signed(&ca),
            "ssh: the signature key type \"ssh-ed25519-cert-v01@openssh.com\" is invalid for certificates",
        ),
        ([&good[..], b"x"].concat(), "ssh: trailing junk in certificate"),
        (good[..good.len() - 1].to_vec(), "ssh: short read"),
        (strings(&[b"ssh-dss", b"x"]), "ssh: unknown key algorithm: ssh-dss"),
        (vec![0xff; 5], "ssh: short read"),
        (vec![0; 70_000], "ssh: certificate is larger than 65536 bytes"),
    ];
    for (blob, message) in malformed {
        let found = refused(payload(&blob), "").await;
        assert_eq!(found, (ErrorKind::Internal, format!("failed to parse public key: {message}")));
    }
    let none = Draft { principals: Vec::new(), ..Draft::new() }.signed(&ca);
    let nonce = STANDARD.encode([0; 32]);
    let wrong = Box::leak(
        format!(r#"{{"Nonce":"{nonce}","Signature":{{"Format":"ssh-ed25519","Blob":"AA==","Rest":null}}}}"#)
            .into_boxed_str(),
    );
    let unsigned = Box::leak(format!(r#"{{"Nonce":"{nonce}","Signature":null}}"#).into_boxed_str());
    let table: Vec<(Bytes, &'static str, &str)> = vec![
        ("x".into(), "", "failed to unmarshal data: "),
        ("{}".into(), "", "no certificate in response"),
        (payload(&ca.blob()), "", "pubkey in response is not a certificate"),
        (payload(&none), "", "cert has no valid principals"),
        (payload(&broken), "", "failed to check host key: ssh: certificate signature does not verify"),
        (payload(&good), "[", "failed to unmarshal challenge response: "),
        (payload(&good), "{}", "failed to combine nonces: invalid response nonce size"),
        (payload(&good), unsigned, "failed to verify signature: there is none"),
        (payload(&good), wrong, "failed to verify signature: ssh: signature did not verify"),
    ];
    for (payload, response, message) in table {
        let found = refused(payload, response).await;
        assert!(found.0 == ErrorKind::Internal && found.1.starts_with(message), "{message}: {found:?}");
    }
    let found = refused(Bytes::new(), "").await;
    assert_eq!(found, (ErrorKind::InvalidArgument, "missing attestation payload".to_owned()));
}

#[test]
fn security_keys_make_certificates_and_answers() {
    let ca = Ca::new(Some("ssh:"));
    let certificate = Certificate::parse(&Draft::new().signed(&ca)).unwrap().unwrap();
    assert_eq!(certificate.check_host(&[ca.blob()], 5), Ok("host.example.org"));
    let key = PublicKey::parse(&ca.blob()).unwrap();
    let verify = |signature: &Signature| key.verify(b"message", signature, Purpose::Challenge);
    assert_eq!(verify(&ca.sign(b"message", 1)), Ok(()));
    let untouched = verify(&ca.sign(b"message", 0)).unwrap_err();
    assert_eq!(untouched, "ssh: signature missing required user presence flag");
    assert_eq!(verify(&ca.sign(b"other", 1)).unwrap_err(), "ssh: signature did not verify");
    let without = Signature { rest: None, ..ca.sign(b"message", 1) };
    assert_eq!(verify(&without).unwrap_err(), "ssh: short read");
}

#[test]
fn sha_1_answers_a_challenge_and_makes_no_certificate() {
    let blob = first_key(&read("host-rsa-2048-cert.pub")).unwrap();
    let key = Certificate::parse(&blob).unwrap().unwrap().key;
    let signer = Signer::from_pem(read("host-rsa-2048").as_bytes()).unwrap();
    let sha_512 = signer.sign(b"message").unwrap();
    assert_eq!(sha_512.format, "rsa-sha2-512");
    for purpose in [Purpose::Challenge, Purpose::Certificate] {
        assert_eq!(key.verify(b"message", &sha_512, purpose), Ok(()));
    }
    let sha_1 = Signature { format: "ssh-rsa".to_owned(), ..sha_512.clone() };
    let found = key.verify(b"message", &sha_1, Purpose::Challenge).unwrap_err();
    assert_eq!(found, "crypto/rsa: verification error");
    let found = key.verify(b"message", &sha_1, Purpose::Certificate).unwrap_err();
    assert_eq!(found, "ssh: signature type ssh-rsa for key type ssh-rsa");
    let other = Signature { format: "x\ny".to_owned(), ..sha_512 };
    let found = key.verify(b"message", &other, Purpose::Challenge).unwrap_err();
    assert_eq!(found, "ssh: signature type \"x\\ny\" for key type ssh-rsa");
}

#[test]
fn keys_in_all_formats_sign() {
    for name in ["pkcs1", "pkcs8", "sec1"] {
        let signer = Signer::from_pem(read(name).as_bytes()).unwrap();
        let public = PublicKey::parse(&first_key(&read(&format!("{name}.pub"))).unwrap()).unwrap();
        assert_eq!(signer.public_key().unwrap(), public, "{name}");
        let signature = signer.sign(b"message").unwrap();
        assert_eq!(public.verify(b"message", &signature, Purpose::Challenge), Ok(()), "{name}");
        let text =
            serde_json::to_string(&Response { nonce: Base64(vec![1]), signature: Some(signature) }).unwrap();
        assert!(text.starts_with(r#"{"Nonce":"AQ==","Signature":{"Format":""#), "{text}");
    }
    let refused = |text: &str| Signer::from_pem(text.as_bytes()).err().unwrap();
    assert_eq!(refused(&read("protected")), "ssh: this private key is passphrase protected");
    assert_eq!(refused("x"), "ssh: no key found");
    assert!(
        refused("-----BEGIN DSA PRIVATE KEY-----\nAA==\n-----END DSA PRIVATE KEY-----\n")
            .contains("unsupported key type")
    );
}

#[test]
fn lines_of_authorized_keys() {
    let ca = Ca::new(None);
    let (line, blob) = (ca.line(), ca.blob());
    let good = [
        line.clone(),
        format!("# comment\n\n{line}"),
        format!("junk\n{line}\r\n"),
        format!("cert-authority,from=\"a b,\\\" c\" {line}"),
        format!("\t{line}"),
    ];
    for text in good {
        assert_eq!(first_key(&text), Ok(blob.clone()), "{text}");
    }
    let mismatch = line.replacen("ssh-ed25519", "ssh-rsa", 1);
    for bad in ["", "#", "x", "ssh-ed25519 !", "ssh-ed25519 AA==", mismatch.as_str(), "a=\"b c"] {
        let error = first_key(bad).unwrap_err();
        assert!(error.starts_with("ssh: no key found"), "{bad}: {error}");
    }
}

#[test]
fn large_and_odd_numbers_are_refused() {
    let rsa = |e: &[u8], n: &[u8]| PublicKey::parse(&strings(&[b"ssh-rsa", e, n])).err();
    let n = |bytes: usize| [&[0][..], &vec![0xff; bytes]].concat();
    assert_eq!(rsa(&[1, 0, 1], &n(256)), None);
    assert_eq!(rsa(&[1, 0, 1], &n(1024)), None);
    let table: [(&[u8], Vec<u8>, &str); 8] = [
        (&[1, 0, 1], n(2048), "ssh: rsa modulus too large"),
        (&[1, 0, 1], n(255), "ssh: rsa modulus too small"),
        (&[1, 0, 0, 1], n(256), "ssh: exponent too large"),
        (&[2], n(256), "ssh: incorrect exponent"),
        (&[1], n(256), "ssh: incorrect exponent"),
        (&[], n(256), "ssh: number is zero"),
        (&[0, 3], n(256), "ssh: number is negative or not in its shortest form"),
        (&[3], vec![0xff; 256], "ssh: number is negative or not in its shortest form"),
    ];
    for (e, n, message) in table {
        assert_eq!(rsa(e, &n).as_deref(), Some(message));
    }
}

#[tokio::test]
async fn settings_are_checked() {
    let files = Files::new();
    let empty = files.write("empty", "\n");
    let ca = testdata("ca-ed25519-256.pub");
    let table = [
        (
            String::new(),
            "missing required config value for \"cert_authorities\" or \"cert_authorities_path\"",
        ),
        (
            "cert_authorities = []".to_owned(),
            "failed to create cert checker: must provide at least one cert authority",
        ),
        (
            "cert_authorities = [\"x\"]".to_owned(),
            "failed to create cert checker: failed to parse public key \"x\": ssh: no key found",
        ),
        ("cert_authorities = 1".to_owned(), "failed to decode configuration: "),
        (
            "cert_authorities_path = \"/no/such/file\"".to_owned(),
            "failed to get cert authorities from file: open /no/such/file: no such file or directory",
        ),
        (
            format!("cert_authorities_path = \"{empty}\""),
            "failed to get cert authorities from file: no data found in file: ",
        ),
        (
            format!("cert_authorities_path = \"{ca}\"\nagent_path_template = \"{{{{ .x\""),
            "failed to parse agent svid template: \"{{ .x\": template: agent-path:1: unclosed action",
        ),
        (
            format!("cert_authorities_path = \"{ca}\"\nagent_path_template = \"/{{{{ .SignatureKey }}}}\""),
            "agent_path_template uses .SignatureKey, which is not built",
        ),
    ];
    for (data, message) in table {
        let found = refusal(server(&data).await);
        assert!(found.0 == ErrorKind::InvalidArgument && found.1.starts_with(message), "{data}: {found:?}");
    }
    let with = |key: &str, certificate: &str| {
        format!("host_key_path = \"{}\"\nhost_cert_path = \"{}\"", testdata(key), testdata(certificate))
    };
    let table = [
        (with("none", "host-rsa-2048-cert.pub"), "failed to read host key file: open "),
        (with("host-rsa-2048", "none"), "failed to read host cert file: open "),
        (
            with("protected", "host-rsa-2048-cert.pub"),
            "failed to get cert and signer from pem: ssh: this private key",
        ),
        (with("pkcs1", "pkcs1.pub"), "failed to get cert and signer from pem: pubkey isn't a certificate"),
        (
            with("pkcs1", "host-rsa-2048-cert.pub"),
            "failed to get cert and signer from pem: host certificate is not of the host key",
        ),
    ];
    for (data, message) in table {
        let found = refusal(agent(&data).await);
        assert!(found.0 == ErrorKind::InvalidArgument && found.1.starts_with(message), "{data}: {found:?}");
    }
}

proptest::proptest! {
    /// Whatever a node sends, there is an answer.
    #[test]
    fn nothing_panics(at in 0usize..1500, with in proptest::collection::vec(proptest::num::u8::ANY, 0..8), cut in 0usize..1500) {
        for kind in KINDS {
            let mut blob = first_key(&read(&format!("host-{kind}-cert.pub"))).unwrap();
            let at = at % blob.len();
            let end = (at + with.len()).min(blob.len());
            blob[at..end].copy_from_slice(&with[..end - at]);
            blob.truncate(cut.max(1));
            if let Ok(Some(certificate)) = Certificate::parse(&blob) {
                let authority = first_key(&read(&format!("ca-{kind}.pub"))).unwrap();
                let _ = certificate.check_host(&[authority], 5);
            }
        }
    }
}
