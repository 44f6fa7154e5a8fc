//! gRPC health of the agent, and the check behind `/live` and `/ready`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use spire_ports::observe::{Details, HealthCheck, HealthState};
use spire_wire::health::health_check_response::ServingStatus;
use spire_wire::health::{
    HealthCheckRequest, HealthCheckResponse, HealthListRequest, HealthListResponse, health_server,
};
use tonic::{Request, Response, Status};

use crate::runtime::{Core, WorkloadAttestation, WorkloadError};

/// Whether a workload could be served: the agent attests itself as it would any workload. The reference calls
/// its own socket for this; an answer without an identity counts as healthy there too.
async fn probe(attestation: &WorkloadAttestation) -> Result<(), WorkloadError> {
    attestation.selectors(std::process::id()).await.map(drop)
}

/// `grpc.health.v1.Health` (pkg/agent/api/health/v1).
pub(super) struct Health {
    core: Arc<Core>,
    attestation: Arc<WorkloadAttestation>,
}

impl Health {
    pub(super) fn new(core: Arc<Core>, attestation: Arc<WorkloadAttestation>) -> Self {
        Self { core, attestation }
    }
}

#[async_trait]
impl health_server::Health for Health {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        if !request.into_inner().service.is_empty() {
            let text = "per-service health is not supported";
            tracing::error!(
                subsystem_name = "endpoints",
                method = "Check",
                service = "Health",
                "Invalid argument: {text}"
            );
            return Err(Status::invalid_argument(text));
        }
        let mut status = ServingStatus::Serving;
        if !self.core.options().disable_workload_api
            && let Err(error) = probe(&self.attestation).await
        {
            tracing::warn!(
                subsystem_name = "endpoints", reason = "unable to fetch X.509 context from Workload API",
                error = %error, "Health check failed"
            );
            status = ServingStatus::NotServing;
        }
        Ok(Response::new(HealthCheckResponse { status: status.into() }))
    }

    async fn list(&self, _: Request<HealthListRequest>) -> Result<Response<HealthListResponse>, Status> {
        Err(Status::unimplemented("method List not implemented"))
    }

    type WatchStream = tokio_stream::Empty<Result<HealthCheckResponse, Status>>;

    async fn watch(&self, _: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("method Watch not implemented"))
    }
}

/// The agent's check for the HTTP listener (pkg/agent: CheckHealth).
#[derive(Default)]
pub struct AgentHealth {
    started: AtomicBool,
    attestation: std::sync::OnceLock<Option<Arc<WorkloadAttestation>>>,
}

impl AgentHealth {
    /// The APIs listen from now on; without a socket there is nothing to attest.
    pub fn started(&self, attestation: Option<Arc<WorkloadAttestation>>) {
        // A second start does not happen; the first value would stay.
        let _ = self.attestation.set(attestation);
        self.started.store(true, Ordering::Release);
    }
}

#[async_trait]
impl HealthCheck for AgentHealth {
    async fn check_health(&self) -> HealthState {
        let started = self.started.load(Ordering::Acquire);
        let failure = match self.attestation.get() {
            Some(None) => {
                return HealthState {
                    started: Some(started),
                    ready: started,
                    live: true,
                    ..HealthState::default()
                };
            }
            Some(Some(attestation)) => probe(attestation).await.err().map(|_| "workload api is unavailable"),
            None => Some("workload api is unavailable"),
        };
        let details = |shown: bool| {
            let failure = failure.filter(|_| shown);
            Some(Details::error("make_new_x509_err", failure.as_ref().map(|f| f as &dyn std::fmt::Display)))
        };
        HealthState {
            started: Some(started),
            ready: failure.is_none(),
            live: !started || failure.is_none(),
            ready_details: details(true),
            live_details: details(started),
        }
    }
}
