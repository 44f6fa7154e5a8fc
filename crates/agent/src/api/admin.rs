//! The admin socket: Debug, Logger and Delegated Identity for local administrators and delegates, with gRPC health and
//! reflection (pkg/agent/api/endpoints.go; the reference has the first three).

mod debug;
mod delegated;
mod logger;

use std::sync::Arc;

use spire_net::uds::{UnixEndpoint, UnixIncoming};
use spire_ports::observe::names::agent as metric;
use spire_wire::AGENT_SOCKETS_DESCRIPTORS;
use spire_wire::api::agent::debug::v1::debug_server::DebugServer;
use spire_wire::api::agent::delegatedidentity::v1::delegated_identity_server::DelegatedIdentityServer;
use spire_wire::api::agent::logger::v1::logger_server::LoggerServer;
use spire_wire::explain::process_server::ProcessServer;
use spire_wire::health::health_server::HealthServer;
use spire_wire::reflection::{v1, v1alpha};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

pub(super) use self::delegated::{is_handed_on, no_identity};
use super::explain::Explanations;
use super::health::Health;
use super::observed::Observed;
use super::reflection::Reflection;
use crate::runtime::{AgentError, Core, WorkloadAttestation};

/// The socket, bound.
pub struct AdminSocket {
    core: Arc<Core>,
    attestation: Arc<WorkloadAttestation>,
    incoming: UnixIncoming,
    address: String,
}

impl AdminSocket {
    /// Makes the socket of the options, if there is to be one, and says so in the log.
    ///
    /// # Errors
    /// [`AgentError::AdminBind`] when it cannot be made.
    pub fn bind(
        core: &Arc<Core>,
        attestation: &Arc<WorkloadAttestation>,
    ) -> Result<Option<Self>, AgentError> {
        let Some(path) = &core.options().admin_socket_path else { return Ok(None) };
        let incoming = UnixEndpoint::agent_restricted(path).bind().map_err(AgentError::AdminBind)?;
        let address = path.display().to_string();
        tracing::info!(network = "unix", address, "Starting Admin APIs");
        let (core, attestation) = (Arc::clone(core), Arc::clone(attestation));
        Ok(Some(Self { core, attestation, incoming, address }))
    }

    /// Serves until told to stop; then open streams end and the socket is gone.
    pub async fn serve(self, shutdown: CancellationToken) {
        let Self { core, attestation, incoming, address } = self;
        let metrics = core.metrics();
        let debug = DebugServer::new(debug::Debug::new(Arc::clone(&core)));
        let delegated = delegated::Delegated::new(Arc::clone(&core), Arc::clone(&attestation));
        let mut services = vec![
            "grpc.health.v1.Health",
            "grpc.reflection.v1.ServerReflection",
            "grpc.reflection.v1alpha.ServerReflection",
            "spire.agent.debug.v1.Debug",
            "spire.api.agent.delegatedidentity.v1.DelegatedIdentity",
            "spire.explain.v1.Process",
        ];
        let connections = (metric::DEBUG_API_CONNECTION, metric::DEBUG_API_CONNECTIONS);
        let mut routes = Routes::new(Observed::new(debug, metrics, Some(connections)));
        let explanations = Explanations::new(Arc::clone(&core), Arc::clone(&attestation));
        routes = routes.add_service(Observed::new(ProcessServer::new(explanations), metrics, None));
        let connections =
            (metric::DELEGATED_IDENTITY_API_CONNECTION, metric::DELEGATED_IDENTITY_API_CONNECTIONS);
        let delegated = DelegatedIdentityServer::new(delegated);
        routes = routes.add_service(Observed::new(delegated, metrics, Some(connections)));
        if let Some(level) = core.log_level() {
            services.push("spire.api.agent.logger.v1.Logger");
            let logger = LoggerServer::new(logger::Logger::new(level.clone()));
            let connections = (metric::LOGGER_API_CONNECTION, metric::LOGGER_API_CONNECTIONS);
            routes = routes.add_service(Observed::new(logger, metrics, Some(connections)));
        }
        let health = HealthServer::new(Health::new(Arc::clone(&core), attestation));
        let reflection = Arc::new(Reflection::new(AGENT_SOCKETS_DESCRIPTORS, services.clone()));
        let routes = routes
            .add_service(Observed::new(health, metrics, None))
            .add_service(v1::server_reflection_server::ServerReflectionServer::from_arc(Arc::clone(
                &reflection,
            )))
            .add_service(v1alpha::server_reflection_server::ServerReflectionServer::from_arc(reflection));
        let stopping = (Arc::clone(&core), address.clone());
        let stop = async move {
            shutdown.cancelled().await;
            let (core, address) = stopping;
            tracing::info!(network = "unix", address, "Stopping Admin APIs");
            core.identities().close();
        };
        spire_net::grpc::serve_unix(routes, &services, incoming, stop).await;
        tracing::info!(network = "unix", address, "Admin APIs have stopped");
    }
}
