//! Against a Workload API of this test on a socket.

use std::future::pending;
use std::path::PathBuf;
use std::pin::Pin;

use bytes::Bytes;
use futures_util::Stream;
use parking_lot::Mutex;
use spire_wire::workload::spiffe_workload_api_server::{SpiffeWorkloadApi, SpiffeWorkloadApiServer};
use spire_wire::workload::*;
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::Response;

use super::*;
use crate::fixture::TestCa;

type Reply = Result<X509svidResponse, Status>;
type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What a Workload API says to whoever asks next: one channel a call.
#[derive(Clone, Default)]
struct Agent(Arc<Mutex<Vec<mpsc::Receiver<Reply>>>>);

#[tonic::async_trait]
impl SpiffeWorkloadApi for Agent {
    type FetchX509SVIDStream = Replies<X509svidResponse>;
    type FetchX509BundlesStream = Replies<X509BundlesResponse>;
    type FetchJWTBundlesStream = Replies<JwtBundlesResponse>;
    type FetchWITSVIDStream = Replies<WitsvidResponse>;
    type FetchWITBundlesStream = Replies<WitBundlesResponse>;

    async fn fetch_x509svid(
        &self,
        request: Request<X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        assert_eq!(request.metadata().get(SECURITY_HEADER).unwrap(), "true");
        let next = { self.0.lock().pop() };
        match next {
            Some(replies) => Ok(Response::new(Box::pin(ReceiverStream::new(replies)))),
            None => Err(Status::permission_denied("no identity issued")),
        }
    }

    async fn fetch_x509_bundles(
        &self,
        _: Request<X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn fetch_jwtsvid(&self, _: Request<JwtsvidRequest>) -> Result<Response<JwtsvidResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn fetch_jwt_bundles(
        &self,
        _: Request<JwtBundlesRequest>,
    ) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn validate_jwtsvid(
        &self,
        _: Request<ValidateJwtsvidRequest>,
    ) -> Result<Response<ValidateJwtsvidResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn fetch_witsvid(
        &self,
        _: Request<WitsvidRequest>,
    ) -> Result<Response<Self::FetchWITSVIDStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn fetch_wit_bundles(
        &self,
        _: Request<WitBundlesRequest>,
    ) -> Result<Response<Self::FetchWITBundlesStream>, Status> {
        Err(Status::unimplemented(""))
    }
}

struct Site {
    folder: tempfile::TempDir,
    agent: Agent,
}

impl Site {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("a folder"), agent: Agent::default() }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("agent.sock")
    }

    fn listen(&self) {
        let listener = UnixListener::bind(self.socket()).expect("bound");
        let service = SpiffeWorkloadApiServer::new(self.agent.clone());
        let server = tonic::transport::Server::builder().add_service(service);
        let incoming = UnixListenerStream::new(listener);
        tokio::spawn(server.serve_with_incoming_shutdown(incoming, pending()));
    }

    /// The next caller hears what is sent here.
    fn next_caller(&self) -> mpsc::Sender<Reply> {
        let (sender, receiver) = mpsc::channel(4);
        self.agent.0.lock().insert(0, receiver);
        sender
    }

    fn source(&self) -> X509Source {
        X509Source::follow(UnixConnector::new(self.socket()))
    }
}

fn update(ca: &TestCa, id: &str) -> X509svidResponse {
    let (certificate, key) = ca.issue(id);
    let svid = X509svid {
        spiffe_id: id.to_owned(),
        x509_svid: certificate.der().clone(),
        x509_svid_key: Bytes::copy_from_slice(&key),
        bundle: ca.certificate.der().clone(),
        hint: String::new(),
    };
    X509svidResponse { svids: vec![svid], ..X509svidResponse::default() }
}

const ID: &str = "spiffe://a.test/w";

fn domain(name: &str) -> TrustDomain {
    TrustDomain::parse(name).expect("valid")
}

/// Waits until the source trusts this authority in the trust domain.
async fn trusts(source: &X509Source, name: &str, ca: &TestCa) {
    let trust = source.trust();
    let mut state = source.state.clone();
    loop {
        let authorities = trust.authorities(&domain(name));
        if authorities.is_some_and(|all| *all == [ca.certificate.clone()]) {
            return;
        }
        state.changed().await.expect("it follows");
    }
}

#[tokio::test]
async fn an_identity_comes_and_changes() {
    let site = Site::new();
    site.listen();
    let agent = site.next_caller();
    let source = site.source();
    assert!(source.identity().is_empty() && source.trust().authorities(&domain("a.test")).is_none());
    let (first, second, foreign) =
        (TestCa::new("spiffe://a.test"), TestCa::new("spiffe://a.test"), TestCa::new("spiffe://b.test"));
    let mut with_foreign = update(&first, ID);
    with_foreign.federated_bundles.insert("spiffe://b.test".into(), foreign.certificate.der().clone());
    agent.send(Ok(with_foreign)).await.expect("heard");
    assert_eq!(source.ready().await.expect("known").as_str(), ID);
    assert!(!source.identity().is_empty());
    trusts(&source, "a.test", &first).await;
    trusts(&source, "b.test", &foreign).await;
    agent.send(Ok(update(&second, ID))).await.expect("heard");
    trusts(&source, "a.test", &second).await;
    assert!(source.trust().authorities(&domain("b.test")).is_none(), "federated no more");

    // What cannot be used changes nothing, and what follows does.
    for broken in [
        X509svidResponse::default(),
        X509svidResponse {
            svids: vec![X509svid {
                x509_svid_key: Bytes::from_static(b"no key"),
                ..update(&first, ID).svids.remove(0)
            }],
            ..X509svidResponse::default()
        },
    ] {
        agent.send(Ok(broken)).await.expect("heard");
    }
    agent.send(Ok(update(&first, "spiffe://a.test/other"))).await.expect("heard");
    trusts(&source, "a.test", &first).await;
    assert_eq!(source.ready().await.expect("known").as_str(), "spiffe://a.test/other");
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_is_away_or_knows_nobody_is_asked_again() {
    let site = Site::new();
    // There is no socket yet.
    let source = site.source();
    let mut backoff = tokio::time::interval(Duration::from_secs(2));
    backoff.tick().await;
    backoff.tick().await;
    // There is no entry yet.
    site.listen();
    backoff.tick().await;
    let ca = TestCa::new("spiffe://a.test");
    let agent = site.next_caller();
    agent.send(Ok(update(&ca, ID))).await.expect("room");
    assert_eq!(source.ready().await.expect("known").as_str(), ID);
    // The stream ends; the identity stays, and a new one is heard of.
    let again = site.next_caller();
    drop(agent);
    assert!(!source.identity().is_empty());
    let next = TestCa::new("spiffe://a.test");
    again.send(Ok(update(&next, ID))).await.expect("room");
    trusts(&source, "a.test", &next).await;
}

#[tokio::test]
async fn a_refusal_for_good_is_told() {
    let site = Site::new();
    site.listen();
    let agent = site.next_caller();
    agent.send(Err(Status::invalid_argument("never"))).await.expect("room");
    let source = site.source();
    assert_eq!(source.ready().await.unwrap_err().to_string(), "never");
    assert!(format!("{source:?}").contains("Refused"));
}
