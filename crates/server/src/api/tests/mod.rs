//! The services in process: generated clients on our dispatch, over a datastore in memory and a real CA.

mod agents;
mod authorities;
mod bundles;
mod callers;
mod cancelled;
mod cost;
mod entries;
mod intake;
mod policy;
mod signing;
mod wire;

use std::collections::HashSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use spire_core::model::{Entry, EntryId, Node};
use spire_core::pki::{CsrTemplate, DistinguishedName, KeyType, LocalKey};
use spire_core::spiffe::{Selector, SpiffeId, TrustDomain};
use spire_core::time::Timestamp;
use spire_ports::datastore::{DataStore, Nodes as _};
use spire_ports::observe::NoMetrics;
use spire_telemetry::{Level, LogLevel};
use spire_wire::api::server::agent::v1::agent_client::AgentClient;
use spire_wire::api::server::bundle::v1::bundle_client::BundleClient;
use spire_wire::api::server::entry::v1::entry_client::EntryClient;
use spire_wire::api::server::localauthority::v1::local_authority_client::LocalAuthorityClient;
use spire_wire::api::server::svid::v1::svid_client::SvidClient;
use spire_wire::api::types;
use spire_wire::push::agent_push_client::AgentPushClient;
use tonic::Code;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tower::Service;

use super::caller::{CallerSvid, Peer};
use super::route::BoxFuture;
use super::*;
use crate::ca::{CaConfig, CaPorts};
use crate::entries::Intervals;
use crate::testing::{FakeClock, MemoryKeys, MemoryStore, START};

struct World {
    store: Arc<MemoryStore>,
    clock: Arc<FakeClock>,
    api: Arc<Api>,
}

fn td() -> TrustDomain {
    TrustDomain::parse("example.org").unwrap()
}

fn id(path: &str) -> SpiffeId {
    SpiffeId::from_path(&td(), path).unwrap()
}

fn wire_id(path: &str) -> Option<types::Spiffeid> {
    Some(types::Spiffeid { trust_domain: "example.org".into(), path: path.into() })
}

const AGENT: &str = "/spire/agent/x509pop/a";

impl World {
    async fn new() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(configure: impl FnOnce(&mut Deps)) -> Self {
        Self::with_ca(CaConfig::new(td()), configure).await
    }

    async fn with_ca(ca: CaConfig, configure: impl FnOnce(&mut Deps)) -> Self {
        let (store, clock) = (MemoryStore::new(), FakeClock::new());
        let datastore: Arc<dyn DataStore> = store.clone();
        let mut ports =
            CaPorts::new(&datastore, Arc::new(MemoryKeys::default()), Arc::new(NoMetrics), clock.clone());
        ports.composers = Vec::new();
        let authorities = Authorities::start(ca, ports).await.unwrap();
        let server_svid = ServerSvid::start(authorities.clone()).await.unwrap();
        let live = LiveEntries::load(td(), datastore, clock.clone(), Intervals::default()).await.unwrap();
        let mut deps = Deps {
            live,
            authorities,
            server_svid,
            attestors: Arc::default(),
            federation: None,
            log: Arc::new(LogLevel::new(Level::Info)),
            metrics: Arc::new(NoMetrics),
            clock: clock.clone(),
            admin_ids: HashSet::from([id("/admin")]),
            rate_limits: RateLimits::default(),
            audit_log_enabled: true,
            node_info_staleness: Duration::ZERO,
            policy: None,
            agent_id_as_selector: false,
        };
        configure(&mut deps);
        Self { store, clock, api: Api::new(deps) }
    }

    fn live(&self) -> &LiveEntries {
        &self.api.deps.live
    }

    /// An agent with SVID number 7.
    async fn attested(&self, path: &str) -> Peer {
        let node = Node {
            spiffe_id: id(path),
            attestation_type: "x509pop".into(),
            serial_number: "7".into(),
            expires_at: Timestamp::from_unix(START + 3600),
            new_serial_number: Box::default(),
            new_expires_at: None,
            can_reattest: true,
            agent_version: Box::default(),
            selectors: [Selector::new("x509pop", "cluster").unwrap()].into_iter().collect(),
        };
        self.live().attest_node(&node).await.unwrap();
        tls(path, "7")
    }

    async fn entry(&self, name: &str, parent: &str, path: &str, change: impl FnOnce(&mut Entry)) {
        let selectors = [Selector::new("unix", "uid:1000").unwrap()].into_iter().collect();
        let mut entry = Entry::new(EntryId::parse(name).unwrap(), id(parent), id(path), selectors);
        change(&mut entry);
        for outcome in self.live().create(vec![entry]).await.unwrap() {
            outcome.unwrap();
        }
    }

    fn connection(&self, peer: Peer) -> Connection {
        let service = match &peer {
            Peer::Local(_) => self.api.unix_service(),
            Peer::Tls { .. } => self.api.tcp_service(),
        };
        Connection { service, peer }
    }

    fn entries(&self, peer: Peer) -> EntryClient<Connection> {
        EntryClient::new(self.connection(peer))
    }

    fn agents(&self, peer: Peer) -> AgentClient<Connection> {
        AgentClient::new(self.connection(peer))
    }

    fn svids(&self, peer: Peer) -> SvidClient<Connection> {
        SvidClient::new(self.connection(peer))
    }

    fn bundles(&self, peer: Peer) -> BundleClient<Connection> {
        BundleClient::new(self.connection(peer))
    }

    fn authorities(&self, peer: Peer) -> LocalAuthorityClient<Connection> {
        LocalAuthorityClient::new(self.connection(peer))
    }

    fn push(&self, peer: Peer) -> AgentPushClient<Connection> {
        AgentPushClient::new(self.connection(peer))
    }
}

/// A client's connection: each request comes from the same peer.
#[derive(Clone)]
struct Connection {
    service: ApiService,
    peer: Peer,
}

impl Service<Request<Body>> for Connection {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        request.extensions_mut().insert(self.peer.clone());
        self.service.call(request)
    }
}

fn local() -> Peer {
    Peer::Local(None)
}

/// A TLS client with an SVID that expires in an hour.
fn tls(path: &str, serial: &str) -> Peer {
    let svid = CallerSvid::given(id(path), serial, Timestamp::from_unix(START + 3600));
    Peer::Tls { address: "127.0.0.1:4711".parse().unwrap(), svid: Some(svid) }
}

fn anonymous() -> Peer {
    Peer::Tls { address: "127.0.0.1:4711".parse().unwrap(), svid: None }
}

/// A request for a certificate.
fn csr(uris: &[&str], dns_names: &[&str]) -> Bytes {
    let key = LocalKey::generate(KeyType::EcP256).unwrap();
    let dns_names: Vec<String> = dns_names.iter().map(|n| (*n).to_owned()).collect();
    let template = CsrTemplate {
        subject: &DistinguishedName::default().encode().unwrap(),
        public_key: key.public_key(),
        dns_names: &dns_names,
        uris,
        extra_extensions: &[],
    };
    let tbs = template.to_be_signed().unwrap();
    let signature = key.sign(tbs.algorithm(), tbs.bytes()).unwrap();
    tbs.assemble(&signature).into()
}

fn refused<T: std::fmt::Debug>(answer: Result<tonic::Response<T>, Status>) -> (Code, String) {
    let status = answer.unwrap_err();
    (status.code(), status.message().to_owned())
}
