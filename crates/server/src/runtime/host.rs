//! What the server's plugins may ask of it (pkg/server/hostservice).

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use spire_core::spiffe::SpiffeId;
use spire_ports::datastore::{self, DataStore};
use spire_ports::observe::Metrics;
use spire_ports::plugins::{
    AgentStore, ErrorKind, Host, HostError, IdentityProvider, LateBound, X509Identity,
};

use crate::ca::{BundleChanges, ServerSvid};

/// The host services of a server. Plugins get them before the server has an identity.
pub(super) struct HostServices {
    host: Host,
    identity: Arc<LateBound<dyn IdentityProvider>>,
}

impl HostServices {
    /// Agents are known from the start, the identity only after [`HostServices::bind_identity`].
    pub(super) fn new(store: Arc<dyn DataStore>, metrics: Arc<dyn Metrics>) -> Self {
        let identity = Arc::new(LateBound::<dyn IdentityProvider>::default());
        let host = Host { agents: Arc::new(StoredAgents(store)), identity: identity.clone(), metrics };
        Self { host, identity }
    }

    /// What plugins get.
    pub(super) fn host(&self) -> Host {
        self.host.clone()
    }

    /// From now on plugins see the server's SVID and bundle.
    pub(super) fn bind_identity(&self, svid: Arc<ServerSvid>, bundle: Arc<BundleChanges>) {
        self.identity.bind(Arc::new(OwnIdentity { svid, bundle }));
    }

    /// Lets the server's parts go, which hold plugins that hold this.
    pub(super) fn release(&self) {
        self.identity.release();
    }
}

struct StoredAgents(Arc<dyn DataStore>);

#[async_trait]
impl AgentStore for StoredAgents {
    async fn is_attested(&self, agent_id: &SpiffeId) -> Result<bool, HostError> {
        match self.0.node_row(agent_id).await {
            Ok(node) => Ok(node.is_some()),
            Err(error @ datastore::Error::Unavailable(_)) => {
                Err(HostError::new(ErrorKind::Unavailable, error.to_string()))
            }
            Err(error) => Err(HostError::new(ErrorKind::Unknown, error.to_string())),
        }
    }
}

struct OwnIdentity {
    svid: Arc<ServerSvid>,
    bundle: Arc<BundleChanges>,
}

#[async_trait]
impl IdentityProvider for OwnIdentity {
    async fn x509_identity(&self) -> Result<X509Identity, HostError> {
        let svid = self.svid.current();
        let private_key =
            svid.key.to_pkcs8().map_err(|error| HostError::new(ErrorKind::Internal, error.to_string()))?;
        let bundle = self
            .bundle
            .current()
            .ok_or_else(|| HostError::new(ErrorKind::FailedPrecondition, "the server has no bundle yet"))?;
        Ok(X509Identity { chain: svid.chain.clone(), private_key: Bytes::from(private_key.to_vec()), bundle })
    }
}
