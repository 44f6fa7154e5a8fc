//! The server's APIs: a module a service, over gRPC.
//!
//! [`Api`] holds what the services need; [`Api::tcp_service`] and [`Api::unix_routes`] are what a listener serves. Who
//! may call what stands in the type of each handler's second parameter ([`caller`]).

mod agent;
mod audit;
mod bundle;
pub mod caller;
mod convert;
mod debug;
mod encoded;
mod entry;
mod health;
mod intake;
mod judge;
mod limits;
mod local_authority;
mod logger;
mod measured;
mod route;
mod status;
mod svid;
mod trust_domain;

#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use spire_core::spiffe::{SpiffeId, TrustDomain};
use spire_core::time::Timestamp;
use spire_ports::datastore::DataStore;
use spire_ports::observe::Metrics;
use spire_ports::policy::Policy;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::Request;
use tonic::service::Routes;
use tower::ServiceExt as _;

pub use limits::RateLimits;
pub use logger::LogControl;
pub use route::ApiService;
pub(crate) use route::{Replies, server_streaming};
pub(crate) use status::go_error as status_text;
pub use trust_domain::BundleRefresher;

use crate::attest::Attestors;
use crate::ca::{Authorities, ServerCa, ServerSvid};
use crate::clock::Clock;
use crate::entries::{AgentStream, LiveEntries};
use caller::{AgentCaller, Authorizer, Peer, Proof};
use intake::Unfinished;
use judge::Judge;
use limits::Limits;
use route::Listeners;
pub(crate) use route::{Call, Route};

/// Calls whose clients are gone and whose handlers go on. Beyond that many, a handler ends with its client, since the limit on
/// the calls of a connection does not hold for what was cancelled.
const ABANDONED_MAX: usize = 1024;

/// What the services need.
pub struct Deps {
    /// Entries and agents.
    pub live: Arc<LiveEntries>,
    /// Our authorities.
    pub authorities: Arc<Authorities>,
    /// Our own SVID.
    pub server_svid: Arc<ServerSvid>,
    /// Judges of nodes.
    pub attestors: Arc<Attestors>,
    /// Fetches bundles of federated trust domains; without it `RefreshBundle` is not implemented.
    pub federation: Option<Arc<dyn BundleRefresher>>,
    /// The log's level.
    pub log: Arc<dyn LogControl>,
    /// Where metrics go.
    pub metrics: Arc<dyn Metrics>,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
    /// `admin_ids`.
    pub admin_ids: HashSet<SpiffeId>,
    /// `ratelimit`.
    pub rate_limits: RateLimits,
    /// `audit_log_enabled`.
    pub audit_log_enabled: bool,
    /// `max_attested_node_info_staleness`; zero reads each agent's row at each call.
    pub node_info_staleness: Duration,
    /// The user's policy, instead of what the handlers' types say.
    pub policy: Option<Arc<dyn Policy>>,
    /// `agent_spiffe_id_as_selector`: agents also have their own ID as a selector.
    pub agent_id_as_selector: bool,
}

/// The server's APIs.
pub struct Api {
    pub(crate) deps: Deps,
    authorizer: Authorizer,
    judge: Option<Judge>,
    unfinished: Arc<Unfinished>,
    abandoned: Arc<Semaphore>,
    limits: ArcSwap<Limits>,
    started: Instant,
    debug_info: debug::Cached,
    known_bundles: bundle::KnownBundles,
    stopping: CancellationToken,
}

impl Api {
    /// The APIs over what they need.
    pub fn new(deps: Deps) -> Arc<Self> {
        let authorizer = Authorizer::new(
            deps.live.clone(),
            deps.clock.clone(),
            deps.admin_ids.clone(),
            deps.node_info_staleness,
        );
        Arc::new(Self {
            authorizer,
            judge: deps.policy.clone().map(Judge::new),
            unfinished: Arc::default(),
            abandoned: Arc::new(Semaphore::new(ABANDONED_MAX)),
            limits: ArcSwap::from_pointee(Limits::new(deps.rate_limits)),
            started: Instant::now(),
            debug_info: debug::Cached::default(),
            known_bundles: bundle::KnownBundles::default(),
            stopping: CancellationToken::new(),
            deps,
        })
    }

    /// Takes over another `ratelimit`. Whoever waits for a turn under the old one still waits for that.
    pub fn set_rate_limits(&self, limits: RateLimits) {
        self.limits.store(Arc::new(Limits::new(limits)));
    }

    /// The methods that the TCP listener serves, for `spire_net::grpc::serve_tcp`.
    pub fn tcp_service(self: &Arc<Self>) -> ApiService {
        self.service(Listeners::TcpOnly)
    }

    /// The methods that the unix socket serves.
    pub fn unix_service(self: &Arc<Self>) -> ApiService {
        self.service(Listeners::UnixOnly)
    }

    /// As [`Api::unix_service`], for `spire_net::grpc::unix_server().add_routes(..)`.
    pub fn unix_routes(self: &Arc<Self>) -> Routes {
        routes_of(self.unix_service())
    }

    /// Ends the open streams of agents. A server that stops calls it, since a stream that lasts would hold up the
    /// graceful stop; agents come back to another server.
    pub fn end_streams(&self) {
        self.stopping.cancel();
    }

    #[cfg(test)]
    fn unfinished_size(&self) -> usize {
        self.unfinished.size()
    }

    fn service(self: &Arc<Self>, on: Listeners) -> ApiService {
        let served = routes()
            .into_iter()
            .filter(|route| matches!(route.listeners, Listeners::Both) || route.listeners == on);
        ApiService::new(self.clone(), served)
    }

    pub(crate) fn trust_domain(&self) -> &TrustDomain {
        self.deps.live.trust_domain()
    }

    fn ca(&self) -> &ServerCa {
        self.deps.authorities.ca()
    }

    fn now(&self) -> Timestamp {
        self.deps.clock.now()
    }

    /// Whether an agent that was let in still may be; to be asked once its session is open.
    pub(crate) async fn recheck(&self, peer: &Peer, caller: &AgentCaller) -> Result<(), Status> {
        match self.authorizer.authorize(peer, <AgentCaller as Proof>::ALLOWED).await {
            Ok(_) => Ok(()),
            Err(_) => {
                tracing::info!(agent_id = %caller.id(), "Agent lost its right to a stream while it was opened");
                Err(Session::ban())
            }
        }
    }

    /// The open stream of an agent: it ends with the agent's right to it.
    ///
    /// # Errors
    /// The agent has too many.
    pub(crate) fn session(&self, caller: &AgentCaller) -> Result<Session, Status> {
        let left = caller.expires_at().since(self.now());
        let stream = self.deps.live.changes().open(caller.id());
        Ok(Session {
            stream: stream.ok_or_else(|| Status::resource_exhausted("too many open streams of one agent"))?,
            end: tokio::time::Instant::now() + left + EXPIRY_GRACE,
            stopping: self.stopping.clone(),
        })
    }
}

/// Times are whole seconds: a certificate is good through its last.
const EXPIRY_GRACE: Duration = Duration::from_secs(1);

/// A stream of an agent and when it must end.
pub(crate) struct Session {
    pub(crate) stream: AgentStream,
    pub(crate) end: tokio::time::Instant,
    stopping: CancellationToken,
}

impl Session {
    /// Waits for an end before its time: the agent was banned or evicted, or the server stops.
    pub(crate) async fn ended_early(&self) -> Status {
        tokio::select! {
            () = self.stream.ended() => Self::ban(),
            status = self.stopped() => status,
        }
    }

    /// Waits for an end that has nothing to do with a ban: the SVID expired, or the server stops.
    pub(crate) async fn over(&self) -> Status {
        tokio::select! {
            () = tokio::time::sleep_until(self.end) => Self::expired(),
            status = self.stopped() => status,
        }
    }

    /// Why it has ended before its time, if it has.
    pub(crate) fn has_ended_early(&self) -> Option<Status> {
        if self.stream.has_ended() {
            Some(Self::ban())
        } else if self.stopping.is_cancelled() {
            Some(Self::stopping())
        } else {
            None
        }
    }

    async fn stopped(&self) -> Status {
        self.stopping.cancelled().await;
        Self::stopping()
    }

    fn stopping() -> Status {
        Status::unavailable("server is stopping")
    }

    pub(crate) fn expired() -> Status {
        Status::permission_denied("agent SVID has expired")
    }

    pub(crate) fn ban() -> Status {
        Status::permission_denied("agent may no longer have streams: it was banned or evicted")
    }
}

impl Call {
    fn store(&self) -> &Arc<dyn DataStore> {
        self.api.deps.live.store()
    }
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Api").field("live", &self.deps.live).finish_non_exhaustive()
    }
}

fn routes() -> Vec<Route> {
    let services = [
        agent::routes(),
        bundle::routes(),
        debug::routes(),
        entry::routes(),
        health::routes(),
        local_authority::routes(),
        logger::routes(),
        svid::routes(),
        trust_domain::routes(),
        crate::push::routes(),
    ];
    services.into_iter().flatten().collect()
}

/// Everything goes to our own dispatch, unknown methods too: it answers them as grpc-go does.
fn routes_of(service: ApiService) -> Routes {
    let service = service.map_request(|request: Request<_>| request.map(Body::new));
    Routes::default().into_axum_router().fallback_service(service).into()
}
