//! The SPIFFE Workload API (the reference's `pkg/agent/endpoints/workload`).

mod calls;
mod jwt;
mod wit;

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use spire_core::spiffe::Selectors;
use spire_net::uds::PeerInfo;
use spire_ports::observe::names;
use spire_wire::workload::{
    JwtBundlesRequest, JwtsvidRequest, ValidateJwtsvidRequest, WitBundlesRequest, X509BundlesRequest,
    X509svidRequest,
};
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;
use tower::Service;

pub(super) use self::calls::seconds_left;

use self::calls::Rpc;
use super::explain;
use super::grpc;
use super::limits::CallLimits;
use super::measured::OpenCalls;
use super::requests::{self, Unfinished};
use crate::runtime::{Core, Served, Subscription, WorkloadAttestation, selector_text};

/// The service, one for all connections.
#[derive(Clone)]
pub(super) struct WorkloadApi(Arc<Shared>);

struct Shared {
    core: Arc<Core>,
    attestation: Arc<WorkloadAttestation>,
    limits: Arc<CallLimits>,
    calls: OpenCalls,
    unfinished: Arc<Unfinished>,
}

/// A call in progress: who calls what.
#[derive(Clone, Copy)]
struct Caller {
    rpc: Rpc,
    pid: u32,
    /// The agent asks itself, for its health: that is not logged and not limited.
    is_agent: bool,
}

impl WorkloadApi {
    pub(super) fn new(
        core: Arc<Core>,
        attestation: Arc<WorkloadAttestation>,
        limits: Arc<CallLimits>,
        unfinished: Arc<Unfinished>,
    ) -> Self {
        let (counter, gauge) =
            (names::agent::WORKLOAD_API_CONNECTION, names::agent::WORKLOAD_API_CONNECTIONS);
        let calls = OpenCalls::new(Arc::clone(core.metrics()), counter, gauge);
        Self(Arc::new(Shared { core, attestation, limits, calls, unfinished }))
    }
}

impl NamedService for WorkloadApi {
    const NAME: &'static str = "SpiffeWorkloadAPI";
}

impl Service<Request<Body>> for WorkloadApi {
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
            return Status::unimplemented(format!("unknown method {method} for service SpiffeWorkloadAPI"))
                .into_http();
        };
        let Some(peer) = request.extensions().get::<PeerInfo>().cloned() else {
            return Status::internal("peer tracker watcher missing from context").into_http();
        };
        let caller = Caller { rpc, pid: peer.pid(), is_agent: self.attestation.is_agent(peer.pid()) };
        let measured = self.calls.start(rpc.full_method(), caller.is_agent);
        if !has_security_header(&request) {
            let status = Status::invalid_argument("security header missing from request");
            return measured.fail(status).into_http();
        }
        let body = request.into_body();
        let answer = match rpc {
            Rpc::FetchWitSvid | Rpc::FetchWitBundles if !self.core.options().wit_svids_enabled => {
                let what = if rpc == Rpc::FetchWitSvid { "WIT-SVIDs" } else { "WIT bundles" };
                Err(Status::unimplemented(format!("fetching {what} is not implemented")))
            }
            Rpc::FetchWitSvid => {
                return match self.open_wit(caller, &peer, body).await {
                    Ok(opened) => grpc::streaming(wit::follow(self, caller, opened, measured)),
                    Err(status) => measured.fail(status).into_http(),
                };
            }
            Rpc::FetchX509Svid | Rpc::FetchX509Bundles | Rpc::FetchJwtBundles | Rpc::FetchWitBundles => {
                return match self.open(caller, &peer, body).await {
                    Ok((subscription, first)) => {
                        grpc::streaming(calls::follow(self, caller, subscription, first, measured))
                    }
                    Err(status) => measured.fail(status).into_http(),
                };
            }
            Rpc::FetchJwtSvid => self.fetch_jwt_svid(caller, &peer, body).await,
            Rpc::ValidateJwtSvid => self.validate_jwt_svid(caller, &peer, body).await,
        };
        match answer {
            Ok(message) => grpc::unary(Ok(message)),
            Err(status) => measured.fail(status).into_http(),
        }
    }

    /// What every stream begins with: attest, limit, and wait for what there is to serve.
    async fn open(
        &self,
        caller: Caller,
        peer: &PeerInfo,
        body: Body,
    ) -> Result<(Subscription, Arc<Served>), Status> {
        match caller.rpc {
            Rpc::FetchX509Svid => drop(self.read::<X509svidRequest>(caller, body).await?),
            Rpc::FetchX509Bundles => drop(self.read::<X509BundlesRequest>(caller, body).await?),
            Rpc::FetchWitBundles => drop(self.read::<WitBundlesRequest>(caller, body).await?),
            _ => drop(self.read::<JwtBundlesRequest>(caller, body).await?),
        }
        let selectors = self.attest(caller, peer).await?;
        let mut subscription = self.core.identities().subscribe(&selectors);
        let first = subscription.first().await.ok_or_else(stopping)?;
        self.check_identity(caller, &selectors, &first)?;
        Ok((subscription, first))
    }

    /// The only request of a call.
    async fn read<M: prost::Message + Default>(&self, caller: Caller, body: Body) -> Result<M, Status> {
        requests::read(body, caller.pid, &self.unfinished).await
    }

    /// The selectors of the caller, who may call now.
    async fn attest(&self, caller: Caller, peer: &PeerInfo) -> Result<Selectors, Status> {
        let selectors = self.attestation.attest(peer).await.map_err(|error| {
            caller.error(Some(&error), "Workload attestation failed");
            Status::unavailable("workload attestation failed")
        })?;
        if !caller.is_agent {
            self.limits.check(caller.rpc.full_method(), &selectors)?;
        }
        Ok(selectors)
    }

    /// Refuses a caller without an identity, unless bundles are for everybody.
    fn check_identity(&self, caller: Caller, selectors: &Selectors, served: &Served) -> Result<(), Status> {
        let for_everybody =
            self.core.options().allow_unauthenticated_verifiers && caller.rpc != Rpc::FetchX509Svid;
        if for_everybody || served.view.has_identity() {
            return Ok(());
        }
        if !caller.is_agent || caller.rpc == Rpc::FetchJwtBundles {
            self.log_no_identity(caller, selectors);
        }
        Err(self.no_identity(selectors))
    }

    fn no_identity(&self, selectors: &Selectors) -> Status {
        let status = Status::permission_denied("no identity issued");
        explain::with_details(&status, &self.core, selectors)
    }

    fn log_no_identity(&self, caller: Caller, selectors: &Selectors) {
        let shown = selector_text(selectors, &self.core.options().log_selectors);
        tracing::error!(
            subsystem_name = "endpoints",
            service = "WorkloadAPI",
            method = caller.rpc.name(),
            pid = caller.pid,
            registered = false,
            selectors = (!shown.is_empty()).then_some(shown),
            hint = &*self.core.hint(selectors),
            "No identity issued"
        );
    }
}

impl Caller {
    fn error(&self, error: Option<&dyn std::fmt::Display>, message: &str) {
        tracing::error!(
            subsystem_name = "endpoints",
            service = "WorkloadAPI",
            method = self.rpc.name(),
            pid = self.pid,
            error = error.map(tracing::field::display),
            "{message}"
        );
    }
}

pub(super) fn stopping() -> Status {
    Status::unavailable("transport is closing")
}

/// Every call must carry this header, once (SPIFFE Workload API, section 4.2).
fn has_security_header(request: &Request<Body>) -> bool {
    let mut values = request.headers().get_all("workload.spiffe.io").iter();
    values.next().is_some_and(|value| value == "true") && values.next().is_none()
}

/// Requests of the unary calls.
type ValidateRequest = ValidateJwtsvidRequest;
type FetchRequest = JwtsvidRequest;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rpc_has_a_path_and_a_metric() {
        for name in [
            "FetchX509SVID",
            "FetchX509Bundles",
            "FetchJWTSVID",
            "FetchJWTBundles",
            "ValidateJWTSVID",
            "FetchWITSVID",
            "FetchWITBundles",
        ] {
            let rpc = Rpc::from_path(&format!("/SpiffeWorkloadAPI/{name}")).unwrap();
            assert_eq!(rpc.name(), name);
            assert!(names::rpc(rpc.full_method()).is_some(), "{name}");
        }
        assert_eq!(Rpc::from_path("/SpiffeWorkloadAPI/Other"), None);
    }
}
