//! The upstream authority: what it signs, and the roots and keys it streams.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use spire_core::pki::Certificate;
use spire_core::spiffe::{Bundle, JwtAuthority, SpiffeId, X509Authority};
use spire_ports::plugins::{
    self, ErrorKind, JwtAuthorityUpdates, MintedCa, UpstreamAuthority, X509AuthorityUpdates,
};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::authorities::{SUBSYSTEM, parse};
use super::bundle::BundleChanges;
use super::error::CaError;

/// The plugin, with the streams that follow its last answers.
pub(super) struct Upstream {
    plugin: Arc<dyn UpstreamAuthority>,
    pub(super) roots: Arc<UpstreamRoots>,
    x509_stream: Mutex<Option<Follower>>,
    jwt_stream: Mutex<Option<Follower>>,
}

/// A task that ends with its owner.
struct Follower(JoinHandle<()>);

impl Drop for Follower {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Upstream {
    pub(super) fn new(plugin: Arc<dyn UpstreamAuthority>, changes: Arc<BundleChanges>) -> Self {
        let roots = UpstreamRoots { changes, state: Mutex::default(), tainted: Notify::new() };
        Self { plugin, roots: Arc::new(roots), x509_stream: Mutex::default(), jwt_stream: Mutex::default() }
    }

    pub(super) fn name(&self) -> &str {
        self.plugin.name()
    }

    /// Asks for a CA. Roots of the CA before are followed until [`Upstream::follow_x509`] accepts the new
    /// one, so a failure loses no update.
    pub(super) async fn mint_x509_ca(
        &self,
        csr: &[u8],
        trust_domain: &SpiffeId,
        ttl: Duration,
    ) -> plugins::Result<MintedCa> {
        self.plugin.mint_x509_ca(csr, trust_domain, ttl).await
    }

    /// Puts the roots of an accepted CA into the bundle and follows their changes.
    pub(super) async fn follow_x509(&self, minted: MintedCa) -> Result<(), CaError> {
        self.roots.sync(&minted.roots).await?;
        let follower = tokio::spawn(follow_roots(Arc::clone(&self.roots), minted.updates));
        *self.x509_stream.lock() = Some(Follower(follower));
        Ok(())
    }

    /// Publishes a JWT key and follows the upstream's keys; returns those of now.
    pub(super) async fn publish_jwt_key(&self, key: &JwtAuthority) -> plugins::Result<Vec<JwtAuthority>> {
        let (keys, updates) = self.plugin.publish_jwt_key(key).await?;
        let follower = tokio::spawn(follow_keys(Arc::clone(&self.roots), updates));
        *self.jwt_stream.lock() = Some(Follower(follower));
        Ok(keys)
    }
}

/// Keeps the bundle in step with the upstream's roots.
pub(super) struct UpstreamRoots {
    changes: Arc<BundleChanges>,
    state: Mutex<TaintState>,
    tainted: Notify,
}

#[derive(Default)]
struct TaintState {
    /// Roots (subject key IDs) whose taint was heard of, so that each is processed once.
    seen: HashSet<String>,
    /// Roots whose taint is still to be processed.
    pending: Vec<Certificate>,
}

impl UpstreamRoots {
    /// Adds new roots, notes tainted ones and revokes tainted ones that the upstream no longer has. A root
    /// that becomes tainted is not marked in the bundle yet: first our own CA must be below another one,
    /// or agents would ask for new SVIDs that are tainted again.
    pub(super) async fn sync(&self, roots: &[X509Authority]) -> Result<(), CaError> {
        let known = self.known().await?;
        let mut addition = Bundle::empty(self.changes.trust_domain().clone());
        let mut named = HashSet::new();
        let mut newly_tainted = false;
        for root in roots {
            let id = parse(root.der.clone(), "root certificate")?.authority_id();
            named.insert(id.clone());
            let untainted = known.iter().find(|k| k.id == id && !k.tainted);
            if let (true, Some(found)) = (root.tainted, untainted) {
                let mut state = self.state.lock();
                if state.seen.insert(id.clone()) {
                    state.pending.push(found.certificate.clone());
                    newly_tainted = true;
                    tracing::info!(
                        subsystem_name = SUBSYSTEM,
                        subject_key_id = id.as_str(),
                        "X.509 authority tainted"
                    );
                }
                continue;
            }
            addition.x509_authorities.push(root.clone());
        }
        if newly_tainted {
            self.tainted.notify_one();
        }
        for gone in known.iter().filter(|k| k.tainted && !named.contains(&k.id)) {
            self.changes.store().x509_authority_revoke(self.changes.trust_domain(), &gone.id).await?;
            tracing::info!(
                subsystem_name = SUBSYSTEM,
                subject_key_id = gone.id.as_str(),
                "X.509 authority revoked"
            );
        }
        self.changes.append(&addition).await?;
        Ok(())
    }

    /// Completes when a root was tainted.
    pub(super) async fn tainted(&self) {
        self.tainted.notified().await;
    }

    /// Roots whose taint is still to be processed.
    pub(super) fn pending(&self) -> Vec<Certificate> {
        self.state.lock().pending.clone()
    }

    /// These taints were processed.
    pub(super) fn processed(&self, done: &[Certificate]) {
        self.state.lock().pending.retain(|p| !done.contains(p));
    }

    async fn append_keys(&self, keys: Vec<JwtAuthority>) -> Result<(), CaError> {
        let mut addition = Bundle::empty(self.changes.trust_domain().clone());
        addition.jwt_authorities = keys;
        self.changes.append(&addition).await?;
        Ok(())
    }

    async fn known(&self) -> Result<Vec<KnownRoot>, CaError> {
        let bundle = self.changes.store().bundle_fetch(self.changes.trust_domain()).await?;
        let authorities = bundle.map(|b| b.x509_authorities).unwrap_or_default();
        authorities
            .into_iter()
            .map(|a| {
                let certificate = parse(Bytes::clone(&a.der), "root certificate")?;
                Ok(KnownRoot { id: certificate.authority_id(), certificate, tainted: a.tainted })
            })
            .collect()
    }
}

struct KnownRoot {
    id: String,
    certificate: Certificate,
    tainted: bool,
}

async fn follow_roots(roots: Arc<UpstreamRoots>, mut updates: X509AuthorityUpdates) {
    while let Some(update) = updates.recv().await {
        match update {
            Ok(authorities) => {
                if let Err(error) = roots.sync(&authorities).await {
                    tracing::error!(
                        subsystem_name = SUBSYSTEM,
                        error = %error,
                        "Failed to store X.509 roots received by the upstream authority plugin."
                    );
                }
            }
            Err(error) => {
                log_end(
                    &error,
                    "The upstream authority plugin stopped streaming X.509 root updates prematurely. Please report \
                     this bug. Will retry later.",
                );
                return;
            }
        }
    }
}

async fn follow_keys(roots: Arc<UpstreamRoots>, mut updates: JwtAuthorityUpdates) {
    while let Some(update) = updates.recv().await {
        match update {
            Ok(keys) => {
                if let Err(error) = roots.append_keys(keys).await {
                    tracing::error!(
                        subsystem_name = SUBSYSTEM,
                        error = %error,
                        "Failed to store JWT keys received by the upstream authority plugin."
                    );
                }
            }
            Err(error) => {
                log_end(
                    &error,
                    "The upstream authority plugin stopped streaming JWT key updates prematurely. Please report this \
                     bug. Will retry later.",
                );
                return;
            }
        }
    }
}

/// A cancelled stream is one that we ended ourselves.
fn log_end(error: &plugins::Error, message: &str) {
    if error.kind != ErrorKind::Canceled {
        tracing::error!(subsystem_name = SUBSYSTEM, error = %error, "{message}");
    }
}
