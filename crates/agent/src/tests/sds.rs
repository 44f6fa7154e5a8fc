//! Envoy's SDS over the socket of a whole agent.

use prost::Message;
use spire_core::pki::pem;
use spire_wire::envoy::config::core::v3::{DataSource, data_source::Specifier};
use spire_wire::envoy::extensions::transport_sockets::tls::v3::{
    Secret, SpiffeCertValidatorConfig, secret::Type,
};
use spire_wire::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest, DiscoveryResponse};
use spire_wire::envoy::service::secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use super::*;

const WEB: &str = "spiffe://test.org/web";
const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";

fn client(running: &Running) -> SecretDiscoveryServiceClient<Channel> {
    let socket = running.folder.path().join("public/api.sock");
    let channel = spire_net::grpc::unix_channel(spire_net::tls::UnixConnector::new(socket));
    SecretDiscoveryServiceClient::new(channel)
}

fn asks(names: &[&str]) -> DiscoveryRequest {
    DiscoveryRequest {
        resource_names: names.iter().map(|name| (*name).to_owned()).collect(),
        type_url: SECRET.to_owned(),
        ..DiscoveryRequest::default()
    }
}

/// The request that accepts a response and asks for the same.
fn accepts(response: &DiscoveryResponse, names: &[&str]) -> DiscoveryRequest {
    DiscoveryRequest {
        version_info: response.version_info.clone(),
        response_nonce: response.nonce.clone(),
        ..asks(names)
    }
}

fn secrets(response: &DiscoveryResponse) -> Vec<Secret> {
    assert_eq!(response.type_url, SECRET);
    let secret = |any: &prost_types::Any| {
        assert_eq!(any.type_url, SECRET);
        Secret::decode(&any.value[..]).unwrap()
    };
    response.resources.iter().map(secret).collect()
}

fn inline(source: Option<&DataSource>) -> &[u8] {
    let Some(Specifier::InlineBytes(bytes)) = source.and_then(|s| s.specifier.as_ref()) else {
        panic!("no bytes")
    };
    bytes
}

/// Trust domains and certificates of a SPIFFE validator.
fn validator(secret: &Secret) -> Vec<(String, usize)> {
    let Some(Type::ValidationContext(context)) = &secret.r#type else { panic!("{secret:?}") };
    assert!(context.trusted_ca.is_none());
    let custom = context.custom_validator_config.as_ref().unwrap();
    assert_eq!(custom.name, "envoy.tls.cert_validator.spiffe");
    let any = custom.typed_config.as_ref().unwrap();
    let spiffe = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig";
    assert_eq!(any.type_url, spiffe);
    let config = SpiffeCertValidatorConfig::decode(&any.value[..]).unwrap();
    let of = |domain: &spire_wire::envoy::extensions::transport_sockets::tls::v3::spiffe_cert_validator_config::TrustDomain| {
        (domain.name.clone(), pem::certificates(inline(domain.trust_bundle.as_ref())).unwrap().len())
    };
    config.trust_domains.iter().map(of).collect()
}

/// The leaf of a certificate, which goes with its key.
fn leaf(secret: &Secret) -> Certificate {
    let Some(Type::TlsCertificate(certificate)) = &secret.r#type else { panic!("{secret:?}") };
    let chain = pem::certificates(inline(certificate.certificate_chain.as_ref())).unwrap();
    let key = pem::blocks(inline(certificate.private_key.as_ref())).next().unwrap();
    assert_eq!(key.label, "PRIVATE KEY");
    let key = LocalKey::from_pkcs8(&key.contents).unwrap();
    assert_eq!(chain[0].spki_der(), &key.public_key().spki()[..]);
    chain[0].clone()
}

/// A server with an identity that federates with `b.org`.
async fn federated() -> FakeServer {
    let server = FakeServer::start().await;
    let other = crate::fixture::TestCa::new();
    server.change(|state| {
        let mut web = entry("web", "uid:1");
        web.federates_with = vec!["b.org".to_owned()];
        state.entries = vec![web];
        state.federated = vec![types::Bundle {
            trust_domain: "b.org".to_owned(),
            x509_authorities: vec![types::X509Certificate {
                asn1: other.certificate().der().clone(),
                tainted: false,
            }],
            ..types::Bundle::default()
        }];
    });
    server
}

#[tokio::test]
async fn secrets_have_the_form_that_envoy_reads() {
    let server = federated().await;
    let running = Running::start(&server, deps(&["uid:1"]), |_| {}).await;
    let mut sds = client(&running);
    let mut fetch =
        async |names: &[&str]| sds.fetch_secrets(asks(names)).await.map(tonic::Response::into_inner);

    let everything = fetch(&[]).await.unwrap();
    assert_eq!((everything.version_info.as_str(), everything.nonce.as_str()), ("", ""));
    let all = secrets(&everything);
    let names: Vec<&str> = all.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names, ["spiffe://test.org", "spiffe://b.org", WEB]);
    assert_eq!(validator(&all[0]), [("test.org".to_owned(), 1)]);
    assert_eq!(validator(&all[1]), [("b.org".to_owned(), 1)]);
    leaf(&all[2]);

    let all = secrets(&fetch(&["ALL", "default"]).await.unwrap());
    assert_eq!(all[0].name, "ALL");
    assert_eq!(validator(&all[0]), [("b.org".to_owned(), 1), ("test.org".to_owned(), 1)]);
    assert_eq!(all[1].name, "default");
    leaf(&all[1]);
    let refused = fetch(&["ROOTCA", "spiffe://test.org/other"]).await.unwrap_err();
    let text = "workload is not authorized for the requested identities [\"spiffe://test.org/other\"]";
    assert_eq!((refused.code(), refused.message()), (Code::InvalidArgument, text));
    assert!(!format!("{all:?}").contains("PRIVATE"), "a key in Debug");
    running.stop().await;

    // Other names, and authorities without the SPIFFE validator.
    let running = Running::start(&server, deps(&["uid:1"]), |options| {
        options.sds.default_svid_name = "me".to_owned();
        options.sds.default_bundle_name = "CAs".to_owned();
        options.sds.disable_spiffe_cert_validation = true;
    })
    .await;
    let mut sds = client(&running);
    let all = secrets(&sds.fetch_secrets(asks(&["me", "CAs"])).await.unwrap().into_inner());
    let Some(Type::ValidationContext(context)) = &all[0].r#type else { panic!("{all:?}") };
    assert!(context.custom_validator_config.is_none());
    assert_eq!(inline(context.trusted_ca.as_ref()), server.ca.pem().as_bytes());
    assert_eq!(sds.fetch_secrets(asks(&["ROOTCA"])).await.unwrap_err().code(), Code::InvalidArgument);
    running.stop().await;
}

#[tokio::test]
async fn streams_get_what_changes_of_what_they_asked_for() {
    let server = FakeServer::start().await;
    server.change(|state| state.entries = vec![entry("web", "uid:1")]);
    let mut running = Running::start(&server, deps(&["uid:1"]), |_| {}).await;
    running.until(|event| *event == Event::PushConnected).await;
    let mut sds = client(&running);
    let mut open = async || {
        let (send, requests) = mpsc::channel(8);
        let requests = ReceiverStream::new(requests);
        (send, sds.stream_secrets(requests).await.unwrap().into_inner())
    };
    let (ask_bundle, mut bundles) = open().await;
    let (ask, mut stream) = open().await;
    ask_bundle.try_send(asks(&["ROOTCA"])).unwrap();
    let bundle = bundles.message().await.unwrap().unwrap();
    ask_bundle.try_send(accepts(&bundle, &["ROOTCA"])).unwrap();
    ask.try_send(asks(&[WEB])).unwrap();
    let first = stream.message().await.unwrap().unwrap();
    assert_eq!((first.version_info.as_str(), first.nonce.len()), ("1", 8));
    let certificate = leaf(&secrets(&first)[0]);
    ask.try_send(accepts(&first, &[WEB])).unwrap();

    server.change(|state| state.entries[0].revision_number = 1);
    let second = stream.message().await.unwrap().unwrap();
    assert_eq!(second.version_info, "2");
    assert_ne!(second.nonce, first.nonce);
    assert_ne!(leaf(&secrets(&second)[0]).der(), certificate.der());
    // A late answer means nothing, a refusal changes nothing, and both may be followed by a question.
    ask.try_send(accepts(&first, &["ROOTCA"])).unwrap();
    let mut refuses = accepts(&second, &[WEB]);
    refuses.version_info = "1".to_owned();
    refuses.error_detail = Some(spire_wire::rpc::Status { message: "no".to_owned(), ..Default::default() });
    ask.try_send(refuses).unwrap();
    ask.try_send(accepts(&second, &[WEB, "ROOTCA"])).unwrap();
    let third = stream.message().await.unwrap().unwrap();
    assert_eq!((third.version_info.as_str(), third.resources.len()), ("2", 2));

    // The bundle did not change, so that the next answer of its stream is that to the next question.
    ask_bundle.try_send(accepts(&bundle, &["spiffe://test.org"])).unwrap();
    let renamed = bundles.message().await.unwrap().unwrap();
    assert_eq!(renamed.version_info, bundle.version_info);
    assert_eq!(secrets(&renamed)[0].name, "spiffe://test.org");

    // What is asked for goes away: that stream ends, the other goes on until its client leaves.
    server.change(|state| state.entries.clear());
    let mut ended = stream.message().await;
    while let Ok(Some(_)) = ended {
        ended = stream.message().await;
    }
    assert_eq!(ended.unwrap_err().code(), Code::InvalidArgument);
    drop(ask_bundle);
    assert!(bundles.message().await.unwrap().is_none(), "the stream ends with OK");
    running.stop().await;
}

#[tokio::test]
async fn what_is_not_there_is_said() {
    let server = FakeServer::start().await;
    let running = Running::start(&server, deps(&["uid:1"]), |_| {}).await;
    let mut sds = client(&running);
    // Without an identity there are the authorities, as in the reference.
    let all = secrets(&sds.fetch_secrets(asks(&[])).await.unwrap().into_inner());
    assert_eq!(validator(&all[0]), [("test.org".to_owned(), 1)]);
    let refused = sds.fetch_secrets(asks(&["default"])).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let delta = tokio_stream::iter([DeltaDiscoveryRequest::default()]);
    let refused = sds.delta_secrets(delta).await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::Unimplemented, "Method is not implemented"));
    running.stop().await;

    let mut failing = deps(&[]);
    failing.workload_attestors = vec![Arc::new(FixedAttestor::failing("a"))];
    let running = Running::start(&server, failing, |_| {}).await;
    let mut sds = client(&running);
    let refused = sds.fetch_secrets(asks(&[])).await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::Unavailable, "workload attestation failed"));
    let refused = sds.stream_secrets(tokio_stream::iter([asks(&[])])).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    running.stop().await;

    let running = Running::start(&server, deps(&["uid:1"]), |options| options.disable_sds_api = true).await;
    assert_eq!(client(&running).fetch_secrets(asks(&[])).await.unwrap_err().code(), Code::Unimplemented);
    running.stop().await;
}
