//! The Broker API over both kinds of sockets, with brokers that may and that may not.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use prost::Message as _;
use spire_core::pki::{Certificate, KeyType, LocalKey};
use spire_core::spiffe::{Selector, SpiffeId};
use spire_net::grpc::tcp_channel;
use spire_net::tls::{Identity, TlsClient, TlsPolicy, TlsUnixConnector, UnixConnector};
use spire_ports::observe::NoMetrics;
use spire_ports::plugins::{
    Error, ErrorKind, PluginType, Result as PluginResult, WorkloadAttestor, WorkloadReference,
};
use spire_wire::broker as wire;
use spire_wire::broker::api_client::ApiClient;
use spire_wire::health::{HealthCheckRequest, health_client::HealthClient};
use spire_wire::reflection::v1::ServerReflectionRequest;
use spire_wire::reflection::v1::server_reflection_client::ServerReflectionClient;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use super::*;
use crate::config::{Broker, ReferenceType};
use crate::fixture::{FakeServer, FixedAttestor, TestCa, deps, domain, entry, options};
use crate::runtime::Trust;
use crate::runtime::start;

const PID: &str = "type.googleapis.com/spiffe.broker.WorkloadPIDReference";
const OBJECT: &str = "type.googleapis.com/spiffe.broker.KubernetesObjectReference";

type Secured = InterceptedService<Channel, fn(Request<()>) -> Result<Request<()>, Status>>;

fn secure(mut request: Request<()>) -> Result<Request<()>, Status> {
    request.metadata_mut().insert("broker.spiffe.io", "true".parse().unwrap());
    Ok(request)
}

/// Knows Kubernetes objects by their names; processes it leaves to others.
struct Objects;

#[async_trait]
impl WorkloadAttestor for Objects {
    fn name(&self) -> &str {
        "objects"
    }

    async fn attest(&self, _: i32) -> PluginResult<Vec<Selector>> {
        Ok(Vec::new())
    }

    async fn attest_reference(&self, reference: &WorkloadReference) -> PluginResult<Vec<Selector>> {
        let fail = |kind, text: &str| Error::new(kind, (PluginType::WorkloadAttestor, "objects"), text);
        if reference.pid.is_some() {
            return Ok(Vec::new());
        }
        if reference.type_url != OBJECT {
            return Err(fail(ErrorKind::Unimplemented, "another type"));
        }
        assert_eq!(reference.broker.as_ref().unwrap().as_str(), "spiffe://test.org/broker");
        let object = wire::KubernetesObjectReference::decode(reference.value.clone()).unwrap();
        match object.key.unwrap().name.as_str() {
            "web" => Ok(vec![Selector::new("test", "pod:web").unwrap()]),
            _ => Err(fail(ErrorKind::NotFound, "no such pod")),
        }
    }
}

struct Setup {
    server: FakeServer,
    core: Arc<Core>,
    tcp: SocketAddr,
    folder: TempDir,
    stop: CancellationToken,
    serving: JoinHandle<Result<(), AgentError>>,
}

impl Setup {
    async fn start() -> Self {
        let server = FakeServer::start().await;
        server.change(|state| {
            let mut admin = entry("admin", "pid");
            admin.admin = true;
            state.entries = vec![entry("web", "pod:web"), entry("process", "pid"), admin];
        });
        let folder = tempfile::tempdir().unwrap();
        let mut options = options(&server, folder.path());
        let allowed =
            |type_url: &str, allow_over_tcp| ReferenceType { type_url: type_url.to_owned(), allow_over_tcp };
        let broker = Broker {
            id: SpiffeId::parse("spiffe://test.org/broker").unwrap(),
            allowed_reference_types: vec![
                allowed(PID, false),
                allowed(OBJECT, true),
                allowed("t/unknown", true),
            ],
        };
        options.broker = Some(BrokerConfig {
            socket_path: Some(folder.path().join("broker/api.sock")),
            bind_address: Some((std::net::Ipv4Addr::LOCALHOST, 0).into()),
            brokers: vec![broker],
        });
        let (core, _) = Box::pin(start(Arc::new(options), &deps(&[]))).await.unwrap();
        core.fetch_svids(10).await.unwrap();
        let attestors: Vec<Arc<dyn WorkloadAttestor>> =
            vec![Arc::new(FixedAttestor::new(&["pid"])), Arc::new(Objects)];
        let attestation = Arc::new(WorkloadAttestation::new(attestors, Arc::new(NoMetrics)));
        let sockets = BrokerSockets::bind(&core, &attestation).await.unwrap().unwrap();
        let tcp = sockets.tcp_address().unwrap();
        let stop = CancellationToken::new();
        let serving = tokio::spawn(sockets.serve(stop.clone()));
        Self { server, core, tcp, folder, stop, serving }
    }

    fn tls(&self, ca: &TestCa, id: Option<&str>, ttl: Duration) -> TlsClient {
        let identity = Identity::empty();
        if let Some(id) = id {
            let key = LocalKey::generate(KeyType::EcP256).unwrap();
            identity.replace(&[ca.svid(id, key.public_key(), ttl)], &key.to_pkcs8().unwrap()).unwrap();
        }
        let trust = Trust::new(domain(), vec![self.server.ca.certificate().clone()]);
        let agent = self.core.svid().id().clone();
        TlsClient::spiffe(trust, agent, Some(identity), TlsPolicy::default()).unwrap()
    }

    fn broker_tls(&self) -> TlsClient {
        self.tls(&self.server.ca, Some("spiffe://test.org/broker"), Duration::from_secs(3600))
    }

    fn unix_channel(&self, tls: TlsClient) -> Channel {
        let unix = UnixConnector::new(self.folder.path().join("broker/api.sock"));
        Endpoint::from_static("http://localhost")
            .connect_with_connector_lazy(TlsUnixConnector::new(tls, unix))
    }

    fn unix(&self, tls: TlsClient) -> ApiClient<Secured> {
        ApiClient::with_interceptor(self.unix_channel(tls), secure)
    }

    fn tcp(&self, tls: TlsClient) -> ApiClient<Secured> {
        let channel = tcp_channel(&self.tcp.ip().to_string(), self.tcp.port(), tls).unwrap();
        ApiClient::with_interceptor(channel, secure)
    }

    async fn stop(self) {
        self.stop.cancel();
        self.serving.await.unwrap().unwrap();
    }
}

fn reference(type_url: &str, value: Vec<u8>) -> Option<wire::WorkloadReference> {
    let reference = Some(prost_types::Any { type_url: type_url.to_owned(), value });
    Some(wire::WorkloadReference { reference })
}

fn pid(pid: i32) -> Option<wire::WorkloadReference> {
    reference(PID, wire::WorkloadPidReference { pid }.encode_to_vec())
}

fn own_pid() -> Option<wire::WorkloadReference> {
    pid(i32::try_from(std::process::id()).unwrap())
}

fn object(name: &str) -> Option<wire::WorkloadReference> {
    let key = wire::KubernetesObjectKey { namespace: "default".to_owned(), name: name.to_owned() };
    let kind = wire::KubernetesObjectType { plural: "pods".to_owned(), group: "core".to_owned() };
    let object = wire::KubernetesObjectReference { r#type: Some(kind), key: Some(key), uid: String::new() };
    reference(OBJECT, object.encode_to_vec())
}

fn told(status: &Status) -> (Code, &str) {
    (status.code(), status.message())
}

#[tokio::test]
async fn brokers_get_identities_by_process_and_by_object() {
    let setup = Setup::start().await;
    let mut unix = setup.unix(setup.broker_tls());
    let request = wire::SubscribeToX509svidRequest { reference: own_pid() };
    let mut stream = unix.subscribe_to_x509svid(request).await.unwrap().into_inner();
    let first = stream.message().await.unwrap().unwrap();
    let ids: Vec<_> = first.svids.iter().map(|svid| svid.spiffe_id.as_str()).collect();
    assert_eq!(ids, ["spiffe://test.org/process"], "identities with rights at the server are not handed on");
    let svid = &first.svids[0];
    let key = LocalKey::from_pkcs8(&svid.x509_svid_key).unwrap();
    let leaf = Certificate::from_der(svid.x509_svid.clone()).unwrap();
    assert_eq!(leaf.spki_der(), &key.public_key().spki()[..]);
    assert_eq!(&svid.bundle, setup.server.ca.certificate().der());

    let mut tcp = setup.tcp(setup.broker_tls());
    let request = wire::SubscribeToX509svidRequest { reference: object("web") };
    let mut far = tcp.subscribe_to_x509svid(request).await.unwrap().into_inner();
    let first = far.message().await.unwrap().unwrap();
    assert_eq!(first.svids[0].spiffe_id, "spiffe://test.org/web");

    let request = wire::SubscribeToX509BundlesRequest { reference: object("web") };
    let mut bundles = tcp.subscribe_to_x509_bundles(request).await.unwrap().into_inner();
    let answer = bundles.message().await.unwrap().unwrap();
    assert_eq!(&answer.bundles["spiffe://test.org"], setup.server.ca.certificate().der());
    let request = wire::SubscribeToJwtBundlesRequest { reference: object("web") };
    let mut bundles = tcp.subscribe_to_jwt_bundles(request).await.unwrap().into_inner();
    let answer = bundles.message().await.unwrap().unwrap();
    assert!(String::from_utf8_lossy(&answer.bundles["spiffe://test.org"]).contains("kid-1"));

    let fetch = |audience: &[&str], spiffe_id: &str| wire::FetchJwtsvidRequest {
        reference: own_pid(),
        audience: audience.iter().map(|text| (*text).to_owned()).collect(),
        spiffe_id: spiffe_id.to_owned(),
    };
    let all = unix.fetch_jwtsvid(fetch(&["a"], "")).await.unwrap().into_inner().svids;
    assert_eq!(all.len(), 2);
    let one =
        unix.fetch_jwtsvid(fetch(&["a"], "spiffe://test.org/process")).await.unwrap().into_inner().svids;
    assert_eq!((one.len(), one[0].spiffe_id.as_str()), (1, "spiffe://test.org/process"));
    let status = unix.fetch_jwtsvid(fetch(&["a"], "spiffe://test.org/web")).await.unwrap_err();
    assert_eq!(told(&status), (Code::PermissionDenied, "no identity issued"));
    let status = unix.fetch_jwtsvid(fetch(&["a"], "x")).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    let status = unix.fetch_jwtsvid(fetch(&[], "")).await.unwrap_err();
    assert_eq!(told(&status), (Code::InvalidArgument, "audience must be specified"));

    // The agent stops: streams end.
    setup.core.identities().close();
    assert_eq!(stream.message().await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(bundles.message().await.unwrap_err().code(), Code::Unavailable);
    drop((far, unix, tcp));
    setup.stop().await;
}

#[tokio::test]
async fn references_are_held_to_what_the_broker_may() {
    let setup = Setup::start().await;
    let ask = |reference| wire::SubscribeToX509svidRequest { reference };
    let mut unix = setup.unix(setup.broker_tls());
    let mut tcp = setup.tcp(setup.broker_tls());
    let broker = "broker \"spiffe://test.org/broker\"";
    let cases = [
        (None, Code::InvalidArgument, "workload reference must be provided".to_owned()),
        (
            Some(wire::WorkloadReference { reference: None }),
            Code::InvalidArgument,
            "workload reference must be provided".to_owned(),
        ),
        (
            reference("t/other", Vec::new()),
            Code::PermissionDenied,
            format!("{broker} is not allowed to use reference type \"t/other\""),
        ),
        (
            reference("t/unknown", Vec::new()),
            Code::Unimplemented,
            "no workload attestor handled reference".to_owned(),
        ),
        (
            object("gone"),
            Code::NotFound,
            "workload attestor \"objects\" failed: rpc error: code = NotFound desc = workloadattestor(objects): no \
             such pod"
                .to_owned(),
        ),
    ];
    for (reference, code, text) in cases {
        let status = unix.subscribe_to_x509svid(ask(reference)).await.unwrap_err();
        assert_eq!(told(&status), (code, text.as_str()));
    }
    let status = tcp.subscribe_to_x509svid(ask(own_pid())).await.unwrap_err();
    let text = format!("reference type \"{PID}\" is not allowed over TCP for {broker}");
    assert_eq!(told(&status), (Code::PermissionDenied, text.as_str()));
    // The attestors of this test know every process, but there is none to hold on to.
    let status = unix.subscribe_to_x509svid(ask(pid(i32::MAX))).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    assert!(status.message().starts_with("workload attestation failed: "), "{}", status.message());
    let status =
        unix.subscribe_to_x509_bundles(wire::SubscribeToX509BundlesRequest { reference: object("gone") });
    assert_eq!(status.await.unwrap_err().code(), Code::NotFound, "bundles too are for workloads only");
    drop((unix, tcp));
    setup.stop().await;
}

#[tokio::test]
async fn only_configured_brokers_connect_and_only_with_the_header() {
    let setup = Setup::start().await;
    let hour = Duration::from_secs(3600);
    let other_ca = TestCa::new();
    let strangers = [
        setup.tls(&setup.server.ca, Some("spiffe://test.org/web"), hour),
        setup.tls(&setup.server.ca, None, hour),
        setup.tls(&other_ca, Some("spiffe://test.org/broker"), hour),
    ];
    let ask = || wire::SubscribeToX509svidRequest { reference: object("web") };
    for tls in strangers {
        let over_unix = setup.unix(tls.clone()).subscribe_to_x509svid(ask()).await.unwrap_err();
        let over_tcp = setup.tcp(tls).subscribe_to_x509svid(ask()).await.unwrap_err();
        assert_ne!(over_unix.code(), Code::PermissionDenied, "TLS refuses it: {over_unix}");
        assert_eq!(over_tcp.code(), Code::Unavailable, "{over_tcp}");
    }

    let channel = setup.unix_channel(setup.broker_tls());
    let header = (Code::InvalidArgument, "security header missing from request");
    let status = ApiClient::new(channel.clone()).subscribe_to_x509svid(ask()).await.unwrap_err();
    assert_eq!(told(&status), header);
    let status = HealthClient::new(channel.clone()).check(HealthCheckRequest::default()).await.unwrap_err();
    assert_eq!(told(&status), header);
    let mut health = HealthClient::with_interceptor(channel.clone(), secure);
    assert_eq!(health.check(HealthCheckRequest::default()).await.unwrap().into_inner().status, 1);
    let reflect = || tokio_stream::empty::<ServerReflectionRequest>();
    let mut reflection = ServerReflectionClient::with_interceptor(channel, secure);
    reflection.server_reflection_info(reflect()).await.unwrap();
    let tcp = tcp_channel("127.0.0.1", setup.tcp.port(), setup.broker_tls()).unwrap();
    let status = ServerReflectionClient::with_interceptor(tcp, secure)
        .server_reflection_info(reflect())
        .await
        .unwrap_err();
    let text = "server reflection is only available over Unix sockets";
    assert_eq!(told(&status), (Code::PermissionDenied, text));
    drop((health, reflection));
    setup.stop().await;
}

#[tokio::test]
async fn a_stream_ends_with_the_brokers_certificate() {
    let setup = Setup::start().await;
    let tls = setup.tls(&setup.server.ca, Some("spiffe://test.org/broker"), Duration::from_secs(2));
    let mut unix = setup.unix(tls);
    let request = wire::SubscribeToX509BundlesRequest { reference: object("web") };
    let mut stream = unix.subscribe_to_x509_bundles(request).await.unwrap().into_inner();
    stream.message().await.unwrap().unwrap();
    let status = stream.message().await.unwrap_err();
    assert_eq!(told(&status), (Code::Unauthenticated, "broker certificate has expired"));
    drop(unix);
    setup.stop().await;
}

#[tokio::test]
async fn somebody_must_be_allowed_to_call() {
    let server = FakeServer::start().await;
    let folder = tempfile::tempdir().unwrap();
    let mut options = options(&server, folder.path());
    let socket_path = Some(folder.path().join("broker/api.sock"));
    options.broker = Some(BrokerConfig { socket_path, bind_address: None, brokers: Vec::new() });
    let (core, _) = Box::pin(start(Arc::new(options), &deps(&[]))).await.unwrap();
    let attestation = Arc::new(WorkloadAttestation::new(Vec::new(), Arc::new(NoMetrics)));
    let refused = BrokerSockets::bind(&core, &attestation).await.err().unwrap();
    assert_eq!(refused.to_string(), "at least one broker is required");
}
