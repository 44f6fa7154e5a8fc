//! The upstream authority: what it signs, and the roots and keys it streams.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use spire_core::authority::Kind;
use spire_core::pki::Certificate;
use spire_core::spiffe::{Bundle, JwtAuthority, SpiffeId, X509Authority};
use spire_ports::plugins::{
    self, ErrorKind, JwtAuthorityUpdates, LocalBundle, MintedCa, UpstreamAuthority, X509AuthorityUpdates,
};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::authorities::{SUBSYSTEM, parse};
use super::bundle::BundleChanges;
use super::error::CaError;

/// Keys that are remembered as revoked: more than operators revoke while one process runs.
const FORGOTTEN_MAX: usize = 1024;

/// When a bundle that could not be stored is tried again.
const STORE_RETRY: Duration = Duration::from_secs(5);

/// The plugin, with the streams that follow its last answers.
pub(super) struct Upstream {
    plugin: Arc<dyn UpstreamAuthority>,
    pub(super) roots: Arc<UpstreamRoots>,
    x509_stream: Mutex<Option<Follower>>,
    jwt_stream: Mutex<Option<Follower>>,
    follows_wit: bool,
}

/// A task that ends with its owner.
struct Follower(JoinHandle<()>);

impl Drop for Follower {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Upstream {
    pub(super) fn new(
        plugin: Arc<dyn UpstreamAuthority>,
        changes: Arc<BundleChanges>,
        follows_wit: bool,
    ) -> Self {
        let roots = UpstreamRoots { changes, state: Mutex::default(), tainted: Notify::new() };
        let (x509_stream, jwt_stream) = (Mutex::default(), Mutex::default());
        Self { plugin, roots: Arc::new(roots), x509_stream, jwt_stream, follows_wit }
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

    /// Publishes a JWT or WIT key; returns the upstream's keys of now. Those of JWT-SVIDs are followed if the plugin
    /// streams them.
    pub(super) async fn publish_key(
        &self,
        kind: Kind,
        key: &JwtAuthority,
    ) -> plugins::Result<Vec<JwtAuthority>> {
        if kind == Kind::Wit {
            return self.plugin.publish_wit_key(key).await;
        }
        let (keys, updates) = self.plugin.publish_jwt_key(key).await?;
        let follower = tokio::spawn(follow_keys(Arc::clone(&self.roots), updates));
        *self.jwt_stream.lock() = Some(Follower(follower));
        Ok(keys)
    }

    /// Follows the bundle as the upstream has it, until the stream ends.
    ///
    /// # Errors
    /// The plugin's when it cannot be followed at all, and the datastore's for the first bundle.
    pub(super) async fn follow_local_bundle(&self) -> Result<(), CaError> {
        let LocalBundle { x509_authorities, jwt_authorities, mut updates } =
            self.plugin.subscribe_to_local_bundle().await?;
        self.sync_bundle(&(x509_authorities, jwt_authorities)).await?;
        tracing::debug!(subsystem_name = SUBSYSTEM, "Following the bundle of the upstream authority");
        // What could not be stored, to be stored before anything newer comes.
        let mut unsaved: Option<Told> = None;
        loop {
            let retry = async {
                match &unsaved {
                    Some(_) => tokio::time::sleep(STORE_RETRY).await,
                    None => std::future::pending().await,
                }
            };
            let told = tokio::select! {
                update = updates.recv() => match update {
                    None => return Ok(()),
                    Some(Ok(told)) => Some(told),
                    Some(Err(error)) => {
                        log_end(
                            &error,
                            "The upstream authority plugin stopped streaming authorities updates prematurely. Please \
                             report this bug. Will retry later.",
                        );
                        return Ok(());
                    }
                },
                () = retry => unsaved.take(),
            };
            let Some(told) = told else { continue };
            unsaved = match self.sync_bundle(&told).await {
                Ok(()) => None,
                Err(error) => {
                    tracing::error!(
                        subsystem_name = SUBSYSTEM,
                        error = %error,
                        "Failed to store authorities received by the upstream authority plugin."
                    );
                    Some(told)
                }
            };
        }
    }

    async fn sync_bundle(&self, (x509_authorities, jwt_authorities): &Told) -> Result<(), CaError> {
        self.roots.sync(x509_authorities).await?;
        self.roots.sync_keys(Kind::Jwt, jwt_authorities).await?;
        if !self.follows_wit {
            return Ok(());
        }
        match self.plugin.wit_keys().await {
            Ok(keys) => self.roots.sync_keys(Kind::Wit, &keys).await,
            Err(error) if error.kind == ErrorKind::Unimplemented => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// X.509 and JWT authorities of the upstream.
type Told = (Vec<X509Authority>, Vec<JwtAuthority>);

/// Keeps the bundle in step with the upstream's roots and keys.
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
    /// Keys that the upstream said are tainted, and that were not revoked here yet.
    tainted_keys: BTreeSet<(Kind, String)>,
    /// Keys that the operator revoked.
    forgotten: BTreeSet<(Kind, String)>,
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

    /// Adds new keys, marks those that the upstream tainted, and revokes those of them that it no longer has. (The
    /// reference adds only.) What the operator revoked here does not come back.
    pub(super) async fn sync_keys(&self, kind: Kind, keys: &[JwtAuthority]) -> Result<(), CaError> {
        let (store, trust_domain) = (self.changes.store(), self.changes.trust_domain());
        let stored = store.bundle_fetch(trust_domain).await?;
        let known = stored.map(|mut b| std::mem::take(keys_of(&mut b, kind))).unwrap_or_default();
        let mut addition = Bundle::empty(trust_domain.clone());
        for key in keys.iter().filter(|key| !self.state.lock().forgotten.contains(&(kind, key.kid.clone()))) {
            match known.iter().find(|k| k.kid == key.kid) {
                None => keys_of(&mut addition, kind).push(key.clone()),
                Some(found) if key.tainted && !found.tainted => {
                    match kind {
                        Kind::Wit => store.wit_authority_taint(trust_domain, &key.kid).await?,
                        _ => store.jwt_authority_taint(trust_domain, &key.kid).await?,
                    };
                    log_key(kind, &key.kid, "tainted");
                }
                Some(_) => {}
            }
        }
        // One that was tainted here may never have been the upstream's, and some answers have the last published key alone.
        let tainted_above = {
            let mut state = self.state.lock();
            state.tainted_keys.retain(|(of, kid)| *of != kind || known.iter().any(|k| k.kid == *kid));
            let told = keys.iter().filter(|key| key.tainted);
            state.tainted_keys.extend(told.map(|key| (kind, key.kid.clone())));
            state.tainted_keys.clone()
        };
        let gone = |k: &&JwtAuthority| {
            k.tainted
                && tainted_above.contains(&(kind, k.kid.clone()))
                && !keys.iter().any(|key| key.kid == k.kid)
        };
        for gone in known.iter().filter(gone) {
            match kind {
                Kind::Wit => store.wit_authority_revoke(trust_domain, &gone.kid).await?,
                _ => store.jwt_authority_revoke(trust_domain, &gone.kid).await?,
            };
            log_key(kind, &gone.kid, "revoked");
        }
        self.changes.append(&addition).await?;
        Ok(())
    }

    /// The operator revoked this key: the upstream, which is not told, still has it.
    pub(super) fn forget_key(&self, kind: Kind, kid: &str) {
        let mut state = self.state.lock();
        if state.forgotten.len() >= FORGOTTEN_MAX {
            state.forgotten.pop_first();
        }
        state.forgotten.insert((kind, kid.to_owned()));
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
                if let Err(error) = roots.sync_keys(Kind::Jwt, &keys).await {
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

fn log_key(kind: Kind, kid: &str, what: &str) {
    let kind = if kind == Kind::Wit { "WIT" } else { "JWT" };
    tracing::info!(subsystem_name = SUBSYSTEM, kid, "{kind} authority {what}");
}

/// The bundle's keys of a kind that signs tokens.
pub(super) fn keys_of(bundle: &mut Bundle, kind: Kind) -> &mut Vec<JwtAuthority> {
    match kind {
        Kind::Wit => &mut bundle.wit_authorities,
        _ => &mut bundle.jwt_authorities,
    }
}
