//! The sockets of the SPIFFE Broker API: mutual TLS with the agent's SVID, over a unix socket, TCP, or both, for the
//! brokers of the configuration only (pkg/agent/broker/endpoints.go).

mod policy;
mod service;
#[cfg(test)]
mod tests;

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

use http::Request;
use spire_compat::quote::quote;
use spire_core::pki::Certificate;
use spire_core::spiffe::TrustDomain;
use spire_net::tls::{
    Authorize, ClientAuth, ServerTls, TlsIncoming, TlsInfo, TlsPolicy, TlsUnixIncoming, TrustSource,
};
use spire_net::uds::UnixEndpoint;
use spire_wire::AGENT_SOCKETS_DESCRIPTORS;
use spire_wire::broker::api_server::ApiServer;
use spire_wire::health::health_server::HealthServer;
use spire_wire::reflection::{v1, v1alpha};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::body::Body;
use tonic::transport::server::Router;

use super::health::Health;
use super::observed::Observed;
use super::reflection::Reflection;
use crate::config::BrokerConfig;
use crate::runtime::{AgentError, Core, Identities, WorkloadAttestation};

/// The sockets, bound.
pub struct BrokerSockets {
    core: Arc<Core>,
    attestation: Arc<WorkloadAttestation>,
    unix: Option<TlsUnixIncoming>,
    tcp: Option<TlsIncoming>,
}

impl BrokerSockets {
    /// Makes the sockets of the options, if there are to be some, and says so in the log.
    ///
    /// # Errors
    /// [`AgentError::NoBrokers`] when nobody could connect, [`AgentError::BrokerBind`] when one cannot be made.
    pub async fn bind(
        core: &Arc<Core>,
        attestation: &Arc<WorkloadAttestation>,
    ) -> Result<Option<Self>, AgentError> {
        let Some(config) = &core.options().broker else { return Ok(None) };
        if config.brokers.is_empty() {
            return Err(AgentError::NoBrokers);
        }
        let tls = tls(core, config).map_err(|error| AgentError::Serve(error.to_string()))?;
        let mut sockets =
            Self { core: Arc::clone(core), attestation: Arc::clone(attestation), unix: None, tcp: None };
        if let Some(path) = &config.socket_path {
            let address = path.display().to_string();
            let bound = UnixEndpoint::agent_restricted(path).bind();
            let incoming = bound.map_err(|error| bind_error(&address, &error))?;
            sockets.unix = Some(TlsUnixIncoming::new(tls.clone(), incoming));
            log_start("unix", &address);
        }
        if let Some(address) = config.bind_address {
            let failed = |error: std::io::Error| {
                let cause = format!("listen tcp {address}: bind: {}", spire_net::errno_text(&error));
                bind_error(&address.to_string(), &cause)
            };
            let incoming = tls.bind(address).await.map_err(failed)?;
            let bound = incoming.local_addr().unwrap_or(address);
            sockets.tcp = Some(incoming);
            log_start("tcp", &bound.to_string());
        }
        Ok(Some(sockets))
    }

    /// Where the TCP socket listens, for tests that leave the port to the system.
    #[cfg(test)]
    fn tcp_address(&self) -> Option<std::net::SocketAddr> {
        self.tcp.as_ref()?.local_addr().ok()
    }

    /// Serves until told to stop; then open streams end and the sockets are gone.
    ///
    /// # Errors
    /// [`AgentError::Serve`] when a server stops by itself.
    // The future has 46 KiB. A caller that awaited it would have room for it on its own stack, even in the many agents that serve
    // no broker.
    #[inline(never)]
    pub fn serve(
        self,
        shutdown: CancellationToken,
    ) -> Pin<Box<dyn Future<Output = Result<(), AgentError>> + Send>> {
        Box::pin(self.serve_both(shutdown))
    }

    async fn serve_both(self, shutdown: CancellationToken) -> Result<(), AgentError> {
        let Self { core, attestation, unix, tcp } = self;
        let service = service::BrokerApi::new(Arc::clone(&core), Arc::clone(&attestation));
        let services = vec![
            "grpc.health.v1.Health",
            "grpc.reflection.v1.ServerReflection",
            "grpc.reflection.v1alpha.ServerReflection",
            "spiffe.broker.API",
        ];
        let reflection = Arc::new(Reflection::new(AGENT_SOCKETS_DESCRIPTORS, services));
        let stopping = shutdown.child_token();
        let stop = || {
            let (core, stopping) = (Arc::clone(&core), stopping.clone());
            async move {
                stopping.cancelled().await;
                core.identities().close();
            }
        };
        let router = || router(&core, &attestation, &service, &reflection);
        let unix = async {
            match unix {
                Some(incoming) => spire_net::grpc::serve(router(), incoming, stop()).await.map(drop),
                None => {
                    stop().await;
                    Ok(())
                }
            }
        };
        let tcp = async {
            match tcp {
                Some(incoming) => spire_net::grpc::serve(router(), incoming, stop()).await.map(drop),
                None => {
                    stop().await;
                    Ok(())
                }
            }
        };
        let said = async {
            stopping.cancelled().await;
            tracing::info!("Stopping SPIFFE Broker Endpoint");
        };
        // The first that ends ends the other.
        let ended = async {
            let (unix, tcp) = tokio::join!(end(unix, &stopping), end(tcp, &stopping));
            unix.and(tcp)
        };
        match tokio::join!(ended, said).0 {
            Ok(()) => {
                tracing::info!("SPIFFE Broker Endpoint has stopped");
                Ok(())
            }
            Err(error) => {
                tracing::error!(error = %error, "SPIFFE Broker Endpoint stopped prematurely");
                Err(AgentError::Serve(error.to_string()))
            }
        }
    }
}

fn router(
    core: &Arc<Core>,
    attestation: &Arc<WorkloadAttestation>,
    service: &service::BrokerApi,
    reflection: &Arc<Reflection>,
) -> Router {
    let metrics = core.metrics();
    let health = Health::new(Arc::clone(core), Arc::clone(attestation));
    let reflection_v1 = v1::server_reflection_server::ServerReflectionServer::from_arc(reflection.clone());
    let reflection_v1alpha =
        v1alpha::server_reflection_server::ServerReflectionServer::from_arc(reflection.clone());
    // The settings of unix sockets for TCP as well: brokers hold many streams, and for long.
    spire_net::grpc::unix_server()
        .add_service(Observed::checked(ApiServer::new(service.clone()), metrics, has_security_header))
        .add_service(Observed::checked(HealthServer::new(health), metrics, has_security_header))
        .add_service(Observed::checked(reflection_v1, metrics, may_reflect))
        .add_service(Observed::checked(reflection_v1alpha, metrics, may_reflect))
}

async fn end<T>(serving: impl Future<Output = T>, stopping: &CancellationToken) -> T {
    let ended = serving.await;
    stopping.cancel();
    ended
}

fn tls(core: &Arc<Core>, config: &BrokerConfig) -> Result<ServerTls, spire_net::tls::TlsSetupError> {
    let ids = config.brokers.iter().map(|broker| broker.id.clone()).collect();
    let trust = Arc::new(KnownBundles(Arc::clone(core.identities())));
    let clients = ClientAuth { trust, authorize: Authorize::OneOf(ids) };
    let policy = TlsPolicy { require_pq_kem: core.options().require_pq_kem };
    ServerTls::mutual_grpc(Arc::clone(core.identity()), clients, policy)
}

fn log_start(network: &str, address: &str) {
    tracing::info!(network, address, "Starting SPIFFE Broker Endpoint");
}

fn bind_error(address: &str, cause: &dyn fmt::Display) -> AgentError {
    AgentError::BrokerBind { address: quote(address), reason: cause.to_string() }
}

/// Against requests that somebody was tricked into making, as for the Workload API (SPIFFE Broker API).
fn has_security_header(request: &Request<Body>) -> Result<(), Status> {
    let mut values = request.headers().get_all("broker.spiffe.io").iter();
    if values.next().is_some_and(|value| value == "true") && values.next().is_none() {
        return Ok(());
    }
    Err(Status::invalid_argument("security header missing from request"))
}

fn may_reflect(request: &Request<Body>) -> Result<(), Status> {
    if request.extensions().get::<TlsInfo>().is_some() {
        return Err(Status::permission_denied("server reflection is only available over Unix sockets"));
    }
    has_security_header(request)
}

/// The authorities of all bundles that the agent knows: a broker may be of a federated trust domain.
struct KnownBundles(Arc<Identities>);

impl TrustSource for KnownBundles {
    fn authorities(&self, trust_domain: &TrustDomain) -> Option<Arc<[Certificate]>> {
        let bundles = self.0.bundles().borrow().clone()?;
        let authorities = bundles.get(trust_domain)?.x509_authorities.iter();
        Some(authorities.filter_map(|authority| Certificate::from_der(authority.der.clone()).ok()).collect())
    }
}

impl fmt::Debug for KnownBundles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KnownBundles").finish_non_exhaustive()
    }
}
