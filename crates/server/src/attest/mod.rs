//! Node attestation: join tokens, which the server itself judges, and the plugins for all other proofs.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use spire_core::spiffe::{IdError, Selectors, SpiffeId, TrustDomain};
use spire_core::time::Timestamp;
use spire_ports::datastore::{self, JoinTokens};
use spire_ports::plugins::{Attestation, NodeAttestor};

/// The attestation type of join tokens.
pub const JOIN_TOKEN: &str = "join_token";

/// The node attestors of a server, by the type that agents name. A new configuration of a plugin replaces it.
#[derive(Default)]
pub struct Attestors {
    by_name: ArcSwap<HashMap<String, Arc<dyn NodeAttestor>>>,
}

impl Attestors {
    /// These attestors.
    pub fn new(attestors: impl IntoIterator<Item = Arc<dyn NodeAttestor>>) -> Self {
        let by_name = attestors.into_iter().map(|attestor| (attestor.name().to_owned(), attestor)).collect();
        Self { by_name: ArcSwap::from_pointee(by_name) }
    }

    /// The attestor of that type.
    pub fn named(&self, name: &str) -> Option<Arc<dyn NodeAttestor>> {
        self.by_name.load().get(name).cloned()
    }

    /// Replaces the attestor of the same name. Attestations in progress end with the one that they began with.
    pub fn replace(&self, attestor: Arc<dyn NodeAttestor>) {
        self.by_name.rcu(|known| {
            let mut next = HashMap::clone(known);
            next.insert(attestor.name().to_owned(), attestor.clone());
            next
        });
    }
}

impl std::fmt::Debug for Attestors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.by_name.load().keys()).finish()
    }
}

/// Why a join token does not admit. Texts as pkg/server/api/agent/v1, attestJoinToken.
#[derive(Debug, thiserror::Error)]
pub enum JoinTokenError {
    /// There is no such token, or it was used.
    #[error("failed to attest: join token does not exist or has already been used")]
    Unknown,
    /// It came too late; the token is gone.
    #[error("join token expired")]
    Expired,
    /// The datastore failed.
    #[error("failed to fetch join token: {0}")]
    Store(#[from] datastore::Error),
    /// An agent's ID cannot be made of it.
    #[error("failed to create join token ID: {0}")]
    Id(IdError),
}

/// Takes a join token as proof. It is used up as its agent is stored ([`spire_ports::datastore::Nodes::node_attest_by_token`]), so it
/// never admits two, and an attestation that fails later does not cost it.
///
/// # Errors
/// [`JoinTokenError`]; an expired token is gone after that.
pub async fn join_token<S: JoinTokens + ?Sized>(
    store: &S,
    trust_domain: &TrustDomain,
    token: &str,
    now: Timestamp,
) -> Result<Attestation, JoinTokenError> {
    let found = store.join_token_fetch(token).await?.ok_or(JoinTokenError::Unknown)?;
    if found.expires_at < now {
        store.join_token_delete(token).await?;
        return Err(JoinTokenError::Expired);
    }
    let agent_id = join_token_agent(trust_domain, token).map_err(JoinTokenError::Id)?;
    Ok(Attestation { agent_id, selectors: Selectors::default(), can_reattest: false })
}

/// The ID of the agent that a token admits.
///
/// # Errors
/// [`IdError`] for a token that cannot be a path segment.
pub fn join_token_agent(trust_domain: &TrustDomain, token: &str) -> Result<SpiffeId, IdError> {
    if let Some(error) = spire_core::spiffe::segment_error(token) {
        return Err(error);
    }
    SpiffeId::agent(trust_domain, &format!("/{JOIN_TOKEN}/{token}"))
}
