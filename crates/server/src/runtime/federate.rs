//! Federation as part of a whole server.

use std::sync::Arc;

use spire_net::tls::{Identity, TlsPolicy};
use spire_ports::observe::Metrics;
use spire_ports::plugins::KeyManager;
use tokio_util::sync::CancellationToken;

use crate::api::BundleRefresher;
use crate::ca::Authorities;
use crate::clock::Clock;
use crate::config::ServerConfig;
use crate::entries::LiveEntries;
use crate::federation::{
    BundleEndpointParts, BundleEndpointServer, EndpointError, Federation, FederationParts,
};

/// The parts of the server that federation works with.
pub(super) struct FederatingParts {
    pub(super) live: Arc<LiveEntries>,
    pub(super) metrics: Arc<dyn Metrics>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) authorities: Arc<Authorities>,
    pub(super) identity: Arc<Identity>,
    pub(super) key_manager: Arc<dyn KeyManager>,
}

/// Our bundle for others, theirs for us.
pub(super) struct Federating {
    federation: Arc<Federation>,
    endpoint: Option<BundleEndpointServer>,
}

impl Federating {
    /// Listens, if there is to be a bundle endpoint.
    ///
    /// # Errors
    /// [`EndpointError`].
    pub(super) async fn start(
        config: &ServerConfig,
        parts: FederatingParts,
        stop: CancellationToken,
    ) -> Result<Self, EndpointError> {
        let FederatingParts { live, metrics, clock, authorities, identity, key_manager } = parts;
        let policy = TlsPolicy { require_pq_kem: config.experimental.require_pq_kem };
        let follower = FederationParts { live, metrics, clock, policy };
        let federation = Federation::new(&config.federation, follower, stop);
        let bundle = authorities.bundle_changes().clone();
        let endpoint = BundleEndpointParts { bundle, identity, key_manager, policy };
        let endpoint = match &config.federation.bundle_endpoint {
            Some(config) => Some(BundleEndpointServer::bind(config, endpoint).await?),
            None => None,
        };
        Ok(Self { federation, endpoint })
    }

    /// Who follows the relationships.
    pub(super) fn federation(&self) -> Arc<Federation> {
        self.federation.clone()
    }

    /// What fetches a bundle on demand.
    pub(super) fn refresher(&self) -> Arc<dyn BundleRefresher> {
        Arc::new(self.federation.clone())
    }

    /// Works until `stop`.
    pub(super) async fn run(self, stop: CancellationToken) {
        let serve = async {
            if let Some(endpoint) = self.endpoint {
                endpoint.serve(stop.cancelled()).await;
            }
        };
        tokio::join!(self.federation.run(), serve);
    }
}
