//! The agent's sockets: that of the Workload API with Envoy's SDS, gRPC health and reflection, the admin socket, and the
//! brokers'.

mod admin;
mod broker;
pub mod encode;
mod explain;
mod follow;
pub(crate) mod grpc;
mod health;
mod limits;
mod measured;
mod observed;
mod reflection;
mod requests;
mod sds;
mod workload;

use std::sync::Arc;

use spire_net::uds::{UnixEndpoint, UnixIncoming};
use spire_wire::FILE_DESCRIPTOR_SET;
use spire_wire::explain::caller_server::CallerServer;
use spire_wire::health::health_server::HealthServer;
use spire_wire::reflection::{v1, v1alpha};
use tokio_util::sync::CancellationToken;
use tonic::server::NamedService;
use tonic::service::Routes;

use self::observed::Observed;
use self::requests::Unfinished;
use crate::runtime::{AgentError, Core, Event, WorkloadAttestation};

pub use admin::AdminSocket;
pub use broker::BrokerSockets;
pub use health::AgentHealth;
use workload::seconds_left;

/// The longest request of the small services of the workloads' socket, names of services and symbols. The generated services
/// make room for as much as a request says it has.
const SHORT_MAX: usize = 16 << 10;

/// The APIs' name in the log, as tools that wait for the agent know it.
fn api_names(disable_workload_api: bool, disable_sds_api: bool) -> &'static str {
    match (disable_workload_api, disable_sds_api) {
        (false, false) => "Workload and SDS APIs",
        (true, false) => "SDS API",
        (false, true) => "Workload API",
        (true, true) => "no APIs",
    }
}

/// The socket and who answers on it.
pub struct WorkloadSocket {
    core: Arc<Core>,
    attestation: Arc<WorkloadAttestation>,
}

impl WorkloadSocket {
    /// Answers from this agent.
    pub fn new(core: Arc<Core>, attestation: Arc<WorkloadAttestation>) -> Self {
        Self { core, attestation }
    }

    /// Makes the socket of the options, if there is to be one, and says so in the log.
    ///
    /// # Errors
    /// [`AgentError::Bind`] when it cannot be made.
    pub fn bind(&self) -> Result<Option<UnixIncoming>, AgentError> {
        let options = self.core.options();
        let apis = api_names(options.disable_workload_api, options.disable_sds_api);
        let Some(path) = &options.socket_path else {
            tracing::info!(
                apis = "Workload and SDS APIs",
                "Skipping agent APIs because public endpoint is disabled"
            );
            return Ok(None);
        };
        let incoming = UnixEndpoint::workload(path).bind()?;
        tracing::info!(
            subsystem_name = "endpoints", address = %path.display(), network = "unix", apis, "Starting agent APIs"
        );
        self.core.emit(|| Event::Listening { socket_path: path.clone() });
        Ok(Some(incoming))
    }

    /// Serves until told to stop; then open streams end and the socket is gone.
    pub async fn serve(self, incoming: UnixIncoming, shutdown: CancellationToken) {
        let options = self.core.options();
        let apis = api_names(options.disable_workload_api, options.disable_sds_api);
        let health = health::Health::new(Arc::clone(&self.core), Arc::clone(&self.attestation));
        let mut services = vec![
            "grpc.health.v1.Health",
            "grpc.reflection.v1.ServerReflection",
            "grpc.reflection.v1alpha.ServerReflection",
        ];
        let health = HealthServer::new(health).max_decoding_message_size(SHORT_MAX);
        let mut routes = Routes::new(health);
        let explanations = explain::Explanations::new(Arc::clone(&self.core), Arc::clone(&self.attestation));
        services.push("spire.explain.v1.Caller");
        let explanations = CallerServer::new(explanations).max_decoding_message_size(SHORT_MAX);
        routes = routes.add_service(Observed::new(explanations, self.core.metrics(), None));
        let unfinished = Arc::<Unfinished>::default();
        let limits = Arc::new(limits::CallLimits::new(Arc::clone(&self.core)));
        if !options.disable_workload_api {
            services.push(workload::WorkloadApi::NAME);
            let (core, attestation) = (Arc::clone(&self.core), Arc::clone(&self.attestation));
            let (limits, unfinished) = (Arc::clone(&limits), Arc::clone(&unfinished));
            routes = routes.add_service(workload::WorkloadApi::new(core, attestation, limits, unfinished));
        }
        if !options.disable_sds_api {
            services.push(sds::SdsApi::NAME);
            let sds = sds::SdsApi::new(Arc::clone(&self.core), self.attestation, limits, unfinished);
            routes = routes.add_service(sds);
        }
        let reflection = Arc::new(reflection::Reflection::new(FILE_DESCRIPTOR_SET, services.clone()));
        let latest = v1::server_reflection_server::ServerReflectionServer::from_arc(Arc::clone(&reflection));
        let alpha = v1alpha::server_reflection_server::ServerReflectionServer::from_arc(reflection);
        let routes = routes
            .add_service(latest.max_decoding_message_size(SHORT_MAX))
            .add_service(alpha.max_decoding_message_size(SHORT_MAX));
        let core = self.core;
        let stop = async move {
            shutdown.cancelled().await;
            tracing::info!(subsystem_name = "endpoints", apis, "Stopping agent APIs");
            // Streams are open as long as their workloads live; they end here, so that the server can.
            core.identities().close();
        };
        spire_net::grpc::serve_unix(routes, &services, incoming, stop).await;
    }
}
