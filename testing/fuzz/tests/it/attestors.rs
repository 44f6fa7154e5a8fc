//! Attestation payloads of agents, which anybody may send: each built-in node attestor of a server, with a configuration
//! and payloads that begin well.

use std::panic::AssertUnwindSafe;
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
    let data = Some(hcl::parse(data).expect("HCL").into());
    let configuration = Configuration::new((PluginType::NodeAttestor, name), trust_domain(), data);
    let builtin = catalog.node_attestors.find(name).expect("built in");
    AssertUnwindSafe(runtime.block_on((builtin.make)(configuration)).expect("configured"))
}

/// Nobody gets in with a payload that is not the sample.
fn fuzz(name: &str, data: &str, sample: &[u8]) {
    let runtime = AssertUnwindSafe(runtime());
    let attestor = attestor(&runtime, name, data);
    bolero::check!().for_each(|input: &[u8]| {
        let payload = input_or_changed(&[sample], input);
        let mut liar = Liar(input);
        let attested = runtime.block_on(attestor.attest(payload.into(), &mut liar));
        assert!(attested.is_err(), "nobody here holds a key");
    });
}

#[test]
fn x509pop_payload() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("ca.pem");
    let authority = spire_core::pki::pem::encode_certificates([&SAMPLES.authority.der()[..]]);
    std::fs::write(&path, authority).expect("written");
    let certificates: Vec<String> =
        [&SAMPLES.leaf, &SAMPLES.intermediate].map(|c| STANDARD.encode(c.der())).into();
    let sample = serde_json::json!({ "certificates": certificates }).to_string();
    fuzz("x509pop", &format!("ca_bundle_path = {:?}", path.display().to_string()), sample.as_bytes());
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
