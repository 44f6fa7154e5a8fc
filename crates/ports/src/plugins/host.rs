//! What a plugin may ask of the server or agent that runs it: the host services of the reference
//! (pkg/server/hostservice, pkg/common/hostservice), for built-in and external plugins alike.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use async_trait::async_trait;
use bytes::Bytes;
use spire_core::spiffe::{Bundle, SpiffeId};

use super::{Error, ErrorKind, PluginType};
use crate::observe::{Metrics, NoMetrics};

/// A host service that failed. It names no plugin: whoever called it says in whose name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct HostError {
    /// The kind of failure, for external plugins the gRPC status code.
    pub kind: ErrorKind,
    /// What went wrong.
    pub message: String,
}

impl HostError {
    /// A failure of that kind.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    fn not_set(service: &str) -> Self {
        // The text of pkg/server/hostservice.
        Self::new(ErrorKind::FailedPrecondition, format!("{service} host service has not been initialized"))
    }
}

/// Knows the agents that were attested (`spire.hostservice.server.agentstore.v1.AgentStore`). A node attestor that
/// trusts on first use asks here whether a node was attested before.
#[async_trait]
pub trait AgentStore: Send + Sync {
    /// Whether there is an agent of that ID; a banned one counts.
    ///
    /// # Errors
    /// [`HostError`] when the store cannot tell, which is no answer: an attestor must refuse then.
    async fn is_attested(&self, agent_id: &SpiffeId) -> Result<bool, HostError>;
}

/// The identity of the server that runs the plugin (`spire.hostservice.server.identityprovider.v1.IdentityProvider`).
#[async_trait]
pub trait IdentityProvider: Send + Sync {
    /// The server's X.509-SVID and the bundle of its trust domain, both of now.
    ///
    /// # Errors
    /// [`HostError`] before the server has one.
    async fn x509_identity(&self) -> Result<X509Identity, HostError>;
}

/// The server's X.509-SVID with its bundle.
#[derive(Clone)]
pub struct X509Identity {
    /// Leaf and intermediates, DER.
    pub chain: Vec<Bytes>,
    /// The private key, PKCS#8 DER. Never logged.
    pub private_key: Bytes,
    /// The bundle of the server's trust domain.
    pub bundle: Arc<Bundle>,
}

impl fmt::Debug for X509Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("X509Identity")
            .field("trust_domain", &self.bundle.trust_domain)
            .finish_non_exhaustive()
    }
}

/// The services that a plugin may call. On an agent, and in tests, [`Host::none`]: only metrics work there.
#[derive(Clone)]
pub struct Host {
    /// Which agents were attested.
    pub agents: Arc<dyn AgentStore>,
    /// The server's own identity.
    pub identity: Arc<dyn IdentityProvider>,
    /// Where metrics go.
    pub metrics: Arc<dyn Metrics>,
}

impl Host {
    /// A host that knows no agents and has no identity, and drops metrics.
    pub fn none() -> Self {
        Self::metrics_only(Arc::new(NoMetrics))
    }

    /// What an agent offers: metrics. The other services answer that they are not there.
    pub fn metrics_only(metrics: Arc<dyn Metrics>) -> Self {
        Self {
            agents: Arc::new(LateBound::<dyn AgentStore>::default()),
            identity: Arc::new(LateBound::<dyn IdentityProvider>::default()),
            metrics,
        }
    }
}

impl Host {
    /// Refuses an agent that was attested before: the proof of a node attestor that trusts on first use may be used once
    /// (pkg/server/plugin/nodeattestor/base).
    ///
    /// # Errors
    /// [`ErrorKind::PermissionDenied`] in the plugin's name, or what the store failed with.
    pub async fn assess_tofu(&self, plugin: (PluginType, &str), agent_id: &SpiffeId) -> super::Result<()> {
        match self.agents.is_attested(agent_id).await {
            Ok(false) => Ok(()),
            Ok(true) => {
                tracing::error!(
                    external = false,
                    plugin_name = plugin.1,
                    plugin_type = plugin.0.as_str(),
                    spiffe_id = %agent_id,
                    "Attestation data has already been used to attest an agent"
                );
                let text = "attestation data has already been used to attest an agent";
                Err(Error::new(ErrorKind::PermissionDenied, plugin, text))
            }
            Err(error) => Err(Error::new(error.kind, plugin, format!("unable to get agent info: {error}"))),
        }
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host").finish_non_exhaustive()
    }
}

/// A service that is there only once the server is further: plugins are made before its authorities, and
/// calls before [`LateBound::bind`] fail with `FailedPrecondition` as the reference's do.
pub struct LateBound<T: ?Sized>(RwLock<Option<Arc<T>>>);

impl<T: ?Sized> LateBound<T> {
    /// From now on calls go to this service.
    pub fn bind(&self, service: Arc<T>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(service);
    }

    /// From now on calls fail again. What the service holds (the server's parts, which hold plugins) is let go.
    pub fn release(&self) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn bound(&self) -> Option<Arc<T>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl<T: ?Sized> Default for LateBound<T> {
    fn default() -> Self {
        Self(RwLock::new(None))
    }
}

#[async_trait]
impl AgentStore for LateBound<dyn AgentStore> {
    async fn is_attested(&self, agent_id: &SpiffeId) -> Result<bool, HostError> {
        let service = self.bound().ok_or_else(|| HostError::not_set("AgentStore"))?;
        service.is_attested(agent_id).await
    }
}

#[async_trait]
impl IdentityProvider for LateBound<dyn IdentityProvider> {
    async fn x509_identity(&self) -> Result<X509Identity, HostError> {
        let service = self.bound().ok_or_else(|| HostError::not_set("IdentityProvider"))?;
        service.x509_identity().await
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    struct Everyone;

    #[async_trait]
    impl AgentStore for Everyone {
        async fn is_attested(&self, _: &SpiffeId) -> Result<bool, HostError> {
            Ok(true)
        }
    }

    fn ready<T>(future: impl Future<Output = T>) -> T {
        match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(value) => value,
            Poll::Pending => panic!("nothing here waits"),
        }
    }

    #[test]
    fn a_late_service_fails_clearly_before_it_is_bound_and_after_it_is_released() {
        let id: SpiffeId = "spiffe://example.org/spire/agent/x".parse().expect("an id");
        let late = Arc::new(LateBound::<dyn AgentStore>::default());
        let host = Host { agents: late.clone(), ..Host::none() };
        let unset =
            HostError::new(ErrorKind::FailedPrecondition, "AgentStore host service has not been initialized");
        assert_eq!(ready(host.agents.is_attested(&id)), Err(unset.clone()));
        late.bind(Arc::new(Everyone));
        assert_eq!(ready(host.agents.is_attested(&id)), Ok(true));
        late.release();
        assert_eq!(ready(host.agents.is_attested(&id)), Err(unset));
        let error = ready(host.identity.x509_identity()).expect_err("no identity");
        assert_eq!(error.to_string(), "IdentityProvider host service has not been initialized");
    }
}
