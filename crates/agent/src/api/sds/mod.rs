//! Envoy's secret discovery service, version 3 (pkg/agent/endpoints/sdsv3).
//!
//! Whoever may use the Workload API may use this with the same right: calls need no header, since Envoy as it is
//! configured everywhere sends none (docs/sds.md).

mod conversation;
#[cfg(test)]
mod fuzz;
mod request;
mod secrets;
mod stream;

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::stream as futures_stream;
use http::{Request, Response};
use spire_core::spiffe::Selectors;
use spire_net::uds::PeerInfo;
use spire_ports::observe::names;
use spire_wire::envoy::service::discovery::v3::DiscoveryRequest;
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;
use tower::Service;

pub(super) use self::secrets::Secrets;

use self::request::Asked;
use super::explain;
use super::grpc::{self, Framed};
use super::limits::CallLimits;
use super::measured::OpenCalls;
use super::requests::{Requests, STREAMED_MAX, Unfinished};
use crate::runtime::{Core, Served, WorkloadAttestation, code_name};

/// The service, one for all connections.
#[derive(Clone)]
pub(super) struct SdsApi(Arc<Shared>);

struct Shared {
    core: Arc<Core>,
    attestation: Arc<WorkloadAttestation>,
    limits: Arc<CallLimits>,
    calls: OpenCalls,
    unfinished: Arc<Unfinished>,
}

/// The methods of the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rpc {
    Stream,
    Fetch,
    Delta,
}

impl Rpc {
    const ALL: [Self; 3] = [Self::Stream, Self::Fetch, Self::Delta];

    fn from_path(path: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|rpc| rpc.full_method() == path)
    }

    fn full_method(self) -> &'static str {
        match self {
            Self::Stream => "/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets",
            Self::Fetch => "/envoy.service.secret.v3.SecretDiscoveryService/FetchSecrets",
            Self::Delta => "/envoy.service.secret.v3.SecretDiscoveryService/DeltaSecrets",
        }
    }

    fn name(self) -> &'static str {
        self.full_method().rsplit('/').next().unwrap_or_default()
    }
}

/// A call in progress: who calls what.
#[derive(Clone, Copy, Debug)]
struct Caller {
    rpc: Rpc,
    pid: u32,
    is_agent: bool,
}

impl Caller {
    fn error(self, error: &dyn std::fmt::Display, message: &str) {
        tracing::error!(
            subsystem_name = "endpoints", service = "SDS.v3", method = self.rpc.name(), pid = self.pid,
            error = %error, "{message}"
        );
    }
}

impl SdsApi {
    pub(super) fn new(
        core: Arc<Core>,
        attestation: Arc<WorkloadAttestation>,
        limits: Arc<CallLimits>,
        unfinished: Arc<Unfinished>,
    ) -> Self {
        let (counter, gauge) = (names::agent::SDS_API_CONNECTION, names::agent::SDS_API_CONNECTIONS);
        let calls = OpenCalls::new(Arc::clone(core.metrics()), counter, gauge);
        Self(Arc::new(Shared { core, attestation, limits, calls, unfinished }))
    }
}

impl NamedService for SdsApi {
    const NAME: &'static str = "envoy.service.secret.v3.SecretDiscoveryService";
}

impl Service<Request<Body>> for SdsApi {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let shared = Arc::clone(&self.0);
        Box::pin(async move { Ok(shared.answer(request).await) })
    }
}

impl Shared {
    async fn answer(self: Arc<Self>, request: Request<Body>) -> Response<Body> {
        if !grpc::is_grpc(&request) {
            return Status::unknown("malformed method or content type").into_http();
        }
        let path = request.uri().path();
        let Some(rpc) = Rpc::from_path(path) else {
            let method = path.rsplit('/').next().unwrap_or_default();
            let text = format!("unknown method {method} for service {}", SdsApi::NAME);
            return Status::unimplemented(text).into_http();
        };
        let Some(peer) = request.extensions().get::<PeerInfo>().cloned() else {
            return Status::internal("peer tracker watcher missing from context").into_http();
        };
        let caller = Caller { rpc, pid: peer.pid(), is_agent: self.attestation.is_agent(peer.pid()) };
        let measured = self.calls.start(rpc.full_method(), caller.is_agent);
        let requests =
            Requests::new(request.into_body(), STREAMED_MAX, caller.pid, Arc::clone(&self.unfinished));
        let failed = match rpc {
            Rpc::Stream => match self.open(caller, &peer).await {
                Ok((subscription, served)) => {
                    let answers = stream::follow(self, caller, subscription, served, requests, measured);
                    return grpc::streaming(answers);
                }
                Err(status) => status,
            },
            Rpc::Fetch => match self.fetch(caller, &peer, requests).await {
                Ok(message) => {
                    let parts = message.into_iter().map(Ok).chain([Err(Status::ok(""))]);
                    return grpc::streaming(futures_stream::iter(parts));
                }
                Err(status) => status,
            },
            // As the reference; Envoy asks for it only where it is told to.
            Rpc::Delta => Status::unimplemented("Method is not implemented"),
        };
        measured.fail(failed).into_http()
    }

    /// The selectors of the caller, who may call now.
    async fn attest(&self, caller: Caller, peer: &PeerInfo) -> Result<Selectors, Status> {
        let selectors = self.attestation.attest(peer).await.map_err(|error| {
            caller.error(&error, "Failed to attest the workload");
            Status::unavailable("workload attestation failed")
        })?;
        if !caller.is_agent {
            self.limits.check(caller.rpc.full_method(), &selectors)?;
        }
        Ok(selectors)
    }

    /// What a call begins with: attest, limit, and wait for what there is to serve.
    async fn open(
        &self,
        caller: Caller,
        peer: &PeerInfo,
    ) -> Result<(crate::runtime::Subscription, Arc<Served>), Status> {
        let selectors = self.attest(caller, peer).await?;
        let mut subscription = self.core.identities().subscribe(&selectors);
        let served = subscription.first().await.ok_or_else(stopping)?;
        Ok((subscription, served))
    }

    async fn fetch(
        &self,
        caller: Caller,
        peer: &PeerInfo,
        mut requests: Requests<DiscoveryRequest>,
    ) -> Result<Vec<Framed>, Status> {
        let request = requests.next().await?.ok_or_else(|| Status::internal("EOF"))?;
        let asked = Asked::new(request)?;
        let (subscription, served) = self.open(caller, peer).await?;
        let sds = &self.core.options().sds;
        let validator = asked.node.unwrap_or_default().validator(sds);
        let secrets = served.encoded.secrets(&served.view);
        let resources = secrets.select(&served.view, sds, &asked.names, validator).map_err(|status| {
            let message = "Error building fetch secrets response";
            self.refused(caller, subscription.selectors(), &served, status, message)
        })?;
        tracing::debug!(
            subsystem_name = "endpoints",
            service = "SDS.v3",
            method = caller.rpc.name(),
            pid = caller.pid,
            count = resources.len(),
            "Sending FetchSecrets response"
        );
        Framed::parts(secrets::response("", resources, &asked.type_url, ""))
    }
}

impl Shared {
    /// Logs a refusal, and why where the process has no identity at all; gives the status with what it may know of that.
    fn refused(
        &self,
        caller: Caller,
        selectors: &Selectors,
        served: &Served,
        status: Status,
        message: &str,
    ) -> Status {
        let none = !served.view.has_identity();
        let hint = none.then(|| self.core.hint(selectors));
        tracing::error!(
            subsystem_name = "endpoints", service = "SDS.v3", method = caller.rpc.name(), pid = caller.pid,
            error = %GoError(&status), hint = hint.as_deref(), "{message}"
        );
        if none { explain::with_details(&status, &self.core, selectors) } else { status }
    }
}

/// A status as Go prints one.
struct GoError<'a>(&'a Status);

impl std::fmt::Display for GoError<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "rpc error: code = {} desc = {}", code_name(self.0.code()), self.0.message())
    }
}

fn stopping() -> Status {
    Status::unavailable("transport is closing")
}
