//! Attestation payloads of agents, which anybody may send: each built-in node attestor of a server, with a configuration
//! and payloads that begin well.

use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use spire_compat::hcl;
use spire_fuzz::samples::{SAMPLES, trust_domain};
use spire_fuzz::{changed, input_or_changed};
use spire_ports::plugins::catalog::{Configuration, ServerCatalog};
use spire_ports::plugins::{Challenger, NodeAttestor, PluginType, Result};
use tokio::runtime::{Builder, Runtime};

/// An agent that answers each challenge with a change of it.
struct Liar<'a>(&'a [u8]);

#[async_trait]
impl Challenger for Liar<'_> {
    async fn challenge(&mut self, challenge: Bytes) -> Result<Bytes> {
        Ok(changed(&challenge, self.0).into())
    }
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}

fn attestor(runtime: &Runtime, name: &str, data: &str) -> AssertUnwindSafe<Arc<dyn NodeAttestor>> {
    let mut catalog = ServerCatalog::default();
    spire_plugins_local::register_server(&mut catalog);
    spire_plugins_tpm::register_server(&mut catalog);
    let data = Some(hcl::parse(data).expect("HCL").into());
    let configuration = Configuration::new((PluginType::NodeAttestor, name), trust_domain(), data);
    let builtin = catalog.node_attestors.find(name).expect("built in");
    AssertUnwindSafe(runtime.block_on((builtin.make)(configuration)).expect("configured"))
}

/// Nobody gets in with a payload that is not the sample.
fn fuzz(name: &str, data: &str, sample: &[u8]) {
    fuzz_made(name, data, |input| input_or_changed(&[sample], input));
}

/// As [`fuzz`], with payloads that are made of the input.
fn fuzz_made(name: &str, data: &str, payload: impl Fn(&[u8]) -> Vec<u8> + std::panic::RefUnwindSafe) {
    let runtime = AssertUnwindSafe(runtime());
    let attestor = attestor(&runtime, name, data);
    bolero::check!().for_each(|input: &[u8]| {
        let payload = payload(input);
        let mut liar = Liar(input);
        let attested = runtime.block_on(attestor.attest(payload.into(), &mut liar));
        assert!(attested.is_err(), "nobody here holds a key");
    });
}

fn authority_file(folder: &Path) -> String {
    let path = folder.join("ca.pem");
    let authority = spire_core::pki::pem::encode_certificates([&SAMPLES.authority.der()[..]]);
    std::fs::write(&path, authority).expect("written");
    path.display().to_string()
}

#[test]
fn x509pop_payload() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = authority_file(folder.path());
    let certificates: Vec<String> =
        [&SAMPLES.leaf, &SAMPLES.intermediate].map(|c| STANDARD.encode(c.der())).into();
    let sample = serde_json::json!({ "certificates": certificates }).to_string();
    fuzz("x509pop", &format!("ca_bundle_path = {path:?}"), sample.as_bytes());
}

#[test]
fn join_token_payload() {
    let runtime = AssertUnwindSafe(runtime());
    let attestor = attestor(&runtime, "join_token", "");
    bolero::check!().for_each(|input: &[u8]| {
        // The server itself judges tokens; the plugin must refuse whatever comes to it.
        let attested = runtime.block_on(attestor.attest(input.to_vec().into(), &mut Liar(input)));
        assert!(attested.is_err());
    });
}

/// The certificate itself is changed, since most changes of its base64 are none any more.
#[test]
fn sshpop_payload() {
    const AUTHORITY: &str =
        include_str!("../../../../crates/plugins/local/src/sshpop/testdata/ca-ed25519-256.pub");
    const HOST: &str =
        include_str!("../../../../crates/plugins/local/src/sshpop/testdata/host-ed25519-256-cert.pub");
    let certificate = HOST.split(' ').nth(1).and_then(|text| STANDARD.decode(text).ok()).expect("base64");
    fuzz_made("sshpop", &format!("cert_authorities = [{:?}]", AUTHORITY.trim()), move |input| {
        let certificate = STANDARD.encode(input_or_changed(&[&certificate], input));
        serde_json::json!({ "Certificate": certificate }).to_string().into_bytes()
    });
}

/// Only names that lead to this machine are let through, and there to a port where nobody listens.
#[test]
fn http_challenge_payload() {
    const DATA: &str = "allowed_dns_patterns = [\"^localhost$\"]\nrequired_port = 1";
    let sample = serde_json::json!({ "hostname": "localhost", "agentname": "default", "port": 1 });
    fuzz("http_challenge", DATA, sample.to_string().as_bytes());
}

/// The structures of the TPM are changed one by one, each as deep as its own parser goes.
#[test]
fn tpm_devid_payload() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = authority_file(folder.path());
    let certificates: Vec<String> =
        [&SAMPLES.leaf, &SAMPLES.intermediate].map(|c| STANDARD.encode(c.der())).into();
    let endorsement = SAMPLES.intermediate.der().to_vec();
    let data = format!("devid_ca_path = {path:?}\nendorsement_ca_path = {path:?}");
    fuzz_made("tpm_devid", &data, move |input| {
        let (which, changes) = input.split_first().unwrap_or((&0, &[]));
        let part = |number: u8, sample: &[u8]| {
            STANDARD.encode(if *which % 8 == number { changed(sample, changes) } else { sample.to_vec() })
        };
        let request = serde_json::json!({
            "DevIDCert": certificates,
            "DevIDPub": part(0, &rsa_public(0x0004_0072)),
            "EKCert": part(1, &endorsement),
            "EKPub": part(2, &rsa_public(0x0003_00b2)),
            "AKPub": part(3, &rsa_public(0x0005_0072)),
            "CertifiedDevID": part(4, &certified()),
            "CertificationSignature": part(5, &signature()),
        });
        let text = request.to_string().into_bytes();
        if *which % 8 == 6 { changed(&text, changes) } else { text }
    });
}

/// TPMT_PUBLIC of an RSA key: type, hash, attributes, no policy, no symmetric algorithm, RSASSA with SHA-256, 2048
/// bits, the default exponent, and the modulus (TPM 2.0 library, part 2, section 12.2).
fn rsa_public(attributes: u32) -> Vec<u8> {
    let mut public = vec![0, 0x01, 0, 0x0b];
    public.extend(attributes.to_be_bytes());
    public.extend([0, 0, 0, 0x10, 0, 0x14, 0, 0x0b, 0x08, 0, 0, 0, 0, 0, 1, 0]);
    public.extend([0xc5; 256]);
    public
}

/// TPMS_ATTEST of a certification: magic, type, signer, no extra data, clock, firmware, and the names of the key.
fn certified() -> Vec<u8> {
    let name = [&[0, 34, 0, 0x0b][..], &[0xaa; 32]].concat();
    [&[0xff, b'T', b'C', b'G', 0x80, 0x17][..], &name, &[0; 2], &[0; 17], &[0; 8], &name, &name].concat()
}

/// TPMT_SIGNATURE: RSASSA with SHA-256.
fn signature() -> Vec<u8> {
    [&[0, 0x14, 0, 0x0b, 1, 0][..], &[0x5a; 256]].concat()
}
