//! Settings and files; what happens at a TPM is in tests/swtpm.

use proptest::prelude::*;
use spire_compat::hcl;
use spire_core::pki::KeyType;
use spire_core::spiffe::TrustDomain;

use super::session::element_len;
use super::*;
use crate::test_ca::{Ca, Wanted, pem_of};

fn configuration(data: &str) -> Configuration {
    let trust_domain = TrustDomain::parse("example.org").unwrap();
    Configuration::new((PluginType::NodeAttestor, NAME), trust_domain, Some(hcl::parse(data).unwrap().into()))
}

async fn refusal(data: &str) -> (ErrorKind, String) {
    match build(configuration(data)).await {
        Ok(_) => panic!("must be refused: {data}"),
        Err(error) => (error.kind, error.message),
    }
}

#[tokio::test]
async fn settings_are_checked() {
    use ErrorKind::{Internal, InvalidArgument};

    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let ca = Ca::root("root");
    let key = spire_core::pki::LocalKey::generate(KeyType::EcP256).unwrap();
    let leaf = ca.issue(Wanted::leaf("device"), key.public_key());
    let certificate = write("devid.pem", pem_of(&[&leaf]).as_bytes());
    let blob = write("blob", b"\x00\x01\x07");
    let all = |certificate: &str, private: &str, public: &str| {
        format!(
            "devid_cert_path = \"{certificate}\"\ndevid_priv_path = \"{private}\"\ndevid_pub_path = \"{public}\"\n\
             tpm_device_path = \"/no/such/tpm\""
        )
    };
    let table = [
        ("devid_cert_path = []".to_owned(), InvalidArgument, "unable to decode configuration: "),
        (String::new(), InvalidArgument, "invalid configuration: devid_cert_path is required"),
        (
            "devid_cert_path = \"x\"".to_owned(),
            InvalidArgument,
            "invalid configuration: devid_priv_path is required",
        ),
        (
            "devid_cert_path = \"x\"\ndevid_priv_path = \"x\"".to_owned(),
            InvalidArgument,
            "invalid configuration: devid_pub_path is required",
        ),
        (
            all("/no/such/file", &blob, &blob),
            Internal,
            "unable to load DevID files: cannot load certificate(s): open /no/such/file: no such file or directory",
        ),
        (
            all(&blob, &blob, &blob),
            Internal,
            "unable to load DevID files: cannot load certificate(s): no certificates found in file",
        ),
        (
            all(&certificate, "/no/such/file", &blob),
            Internal,
            "unable to load DevID files: cannot load private key: open /no/such/file: no such file or directory",
        ),
        (
            all(&certificate, &blob, "/no/such/file"),
            Internal,
            "unable to load DevID files: cannot load public key: open /no/such/file: no such file or directory",
        ),
    ];
    for (data, kind, message) in table {
        let found = refusal(&data).await;
        assert!(found.0 == kind && found.1.starts_with(message), "{data}: {found:?}");
    }

    // A TPM that is absent is told when it is needed.
    let agent = build(configuration(&all(&certificate, &blob, &blob))).await.unwrap();
    let error = agent.attest(&mut NoServer).await.unwrap_err();
    assert_eq!(error.kind, Internal);
    assert_eq!(
        error.message,
        "unable to start a new TPM session: cannot open TPM at \"/no/such/tpm\": stat /no/such/tpm: no such file or \
         directory"
    );
}

/// A server that must not be asked.
struct NoServer;

#[async_trait]
impl AttestationStream for NoServer {
    async fn send_payload(&mut self, _: Bytes) -> Result<Option<Bytes>> {
        panic!("nothing to send");
    }
    async fn respond(&mut self, _: Bytes) -> Result<Option<Bytes>> {
        panic!("nothing to send");
    }
}

#[test]
fn sizes_before_keys_are_taken_away() {
    assert_eq!(without_size(vec![0, 3, 1, 2, 3]), [1, 2, 3]);
    for kept in [&[][..], &[0], &[0, 0, 0], &[0, 1, 0, 0x0b], &[0, 0x20, 1, 2]] {
        assert_eq!(without_size(kept.to_vec()), kept);
    }
}

#[test]
fn certificates_end_where_they_say() {
    assert_eq!(element_len(&[0x30, 1, 7, 0, 0]), Ok(3));
    assert_eq!(element_len(&[0x30, 0x81, 0x80]), Err("asn1: syntax error: data truncated"));
    assert_eq!(element_len(&[0x30, 0x82, 1]), Err("asn1: syntax error: data truncated"));
    assert_eq!(element_len(&[0x30]), Err("asn1: syntax error: data truncated"));
    assert_eq!(element_len(&[0x31, 0]), Err("asn1: structure error: tags don't match"));
    assert_eq!(element_len(&[0x30, 0x84, 0, 0, 0, 1, 0]), Err("asn1: structure error: length too large"));
}

proptest! {
    #[test]
    fn lengths_stay_within(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        if let Ok(len) = element_len(&bytes) {
            prop_assert!(len <= bytes.len());
        }
        let kept = without_size(bytes.clone());
        prop_assert!(kept.len() == bytes.len() || kept.len() + 2 == bytes.len());
    }
}
