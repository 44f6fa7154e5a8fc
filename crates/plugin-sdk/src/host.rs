//! What a plugin may ask of the server or agent that runs it.

use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use spire_wire::plugin::host::agentstore::agent_store_client::AgentStoreClient;
use spire_wire::plugin::host::identityprovider::identity_provider_client::IdentityProviderClient;
use spire_wire::plugin::host::metrics::metrics_client::MetricsClient;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::watch;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

/// How long the host may take to say where its services are, once it has initialised the plugin (go-plugin: Dial).
const TOLD_WITHIN: Duration = Duration::from_secs(5);

const AGENT_STORE: &str = "spire.hostservice.server.agentstore.v1.AgentStore";
const IDENTITY_PROVIDER: &str = "spire.hostservice.server.identityprovider.v1.IdentityProvider";
const METRICS: &str = "spire.hostservice.common.metrics.v1.Metrics";

/// The services of the host. They are there once the plugin is initialised, which is before it is configured.
#[derive(Clone)]
pub struct Host(Arc<watch::Sender<Offer>>);

#[derive(Clone, Default)]
struct Offer {
    names: Vec<String>,
    channel: Option<Channel>,
}

impl Host {
    pub(crate) fn new() -> Self {
        Self(Arc::default())
    }

    /// Connects to what the host offers, where it offers anything.
    pub(crate) async fn offered(
        &self,
        names: Vec<String>,
        mut told: watch::Receiver<Option<(String, String)>>,
    ) -> Result<(), Status> {
        let mut channel = None;
        if !names.is_empty() {
            let address = tokio::time::timeout(TOLD_WITHIN, told.wait_for(Option::is_some)).await;
            let Ok(Ok(address)) = address.map(|found| found.map(|found| found.clone())) else {
                return Err(Status::deadline_exceeded("timeout waiting for connection info"));
            };
            channel = address.map(connect);
        }
        self.0.send_replace(Offer { names, channel });
        Ok(())
    }

    fn service(&self, name: &str) -> Result<Channel, Status> {
        let offer = self.0.borrow();
        match &offer.channel {
            Some(channel) if offer.names.iter().any(|offered| offered == name) => Ok(channel.clone()),
            _ => Err(Status::failed_precondition(format!("the host does not offer {name}"))),
        }
    }

    /// The agents that a server knows. Agents do not offer it.
    ///
    /// # Errors
    /// `FailedPrecondition` where the host does not offer it.
    pub fn agent_store(&self) -> Result<AgentStoreClient<Channel>, Status> {
        self.service(AGENT_STORE).map(AgentStoreClient::new)
    }

    /// The identity of a server. Agents do not offer it, and a server has one only when it runs: a call while plugins
    /// are configured fails.
    ///
    /// # Errors
    /// `FailedPrecondition` where the host does not offer it.
    pub fn identity_provider(&self) -> Result<IdentityProviderClient<Channel>, Status> {
        self.service(IDENTITY_PROVIDER).map(IdentityProviderClient::new)
    }

    /// Where metrics go.
    ///
    /// # Errors
    /// `FailedPrecondition` where the host does not offer it.
    pub fn metrics(&self) -> Result<MetricsClient<Channel>, Status> {
        self.service(METRICS).map(MetricsClient::new)
    }
}

/// A channel that connects with its first call.
fn connect((network, address): (String, String)) -> Channel {
    let dial = tower::service_fn(move |_| {
        let (network, address) = (network.clone(), address.clone());
        async move {
            let stream: TokioIo<Either> = match network.as_str() {
                "unix" => TokioIo::new(Either::Left(UnixStream::connect(address).await?)),
                _ => TokioIo::new(Either::Right(TcpStream::connect(address).await?)),
            };
            Ok::<_, std::io::Error>(stream)
        }
    });
    Endpoint::from_static("http://host").connect_with_connector_lazy(dial)
}

type Either = tokio_util::either::Either<UnixStream, TcpStream>;
