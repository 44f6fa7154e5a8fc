//! Following the endpoints of all relationships (pkg/server/bundle/client/manager.go).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use parking_lot::Mutex;
use spire_core::spiffe::{Bundle, TrustDomain};
use spire_net::tls::TlsPolicy;
use spire_ports::datastore::{self, DataStore};
use spire_ports::observe::names::{label, server as metric};
use spire_ports::observe::{Call, Label, Metrics};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use super::SUBSYSTEM;
use super::fetch::FetchPolicy;
use super::relationship::{Relationship, Relationships, Sources};
use super::schedule::next_look;
use super::update::{Update, UpdateError, same, update};
use crate::api::BundleRefresher;
use crate::clock::Clock;
use crate::config::{FederatesWith, FederationConfig};
use crate::entries::LiveEntries;

/// How often relationships are read again: another server may have changed them (configRefreshInterval).
const RECONCILE: Duration = Duration::from_secs(10);
/// Bundles that are fetched at once.
const FETCHES_MAX: usize = 16;

/// What following needs of the server.
pub struct FederationParts {
    /// Entries, whose agents hear of bundles, and the datastore.
    pub live: Arc<LiveEntries>,
    /// Where metrics go.
    pub metrics: Arc<dyn Metrics>,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
    /// What is asked of TLS.
    pub policy: TlsPolicy,
}

/// Follows the bundle endpoints of the trust domains that we federate with, by a task each. Relationships are looked at
/// again and again, and the tasks follow them.
pub struct Federation {
    parts: FederationParts,
    sources: ArcSwap<Sources>,
    policy: FetchPolicy,
    stop: CancellationToken,
    followed: Mutex<HashMap<TrustDomain, Followed>>,
    tasks: Mutex<JoinSet<()>>,
    /// Held while tasks are brought in line with relationships.
    reconciling: tokio::sync::Mutex<()>,
    changed: Notify,
    fetches: Semaphore,
}

/// A trust domain whose endpoint is followed.
struct Followed {
    state: Arc<State>,
    stop: CancellationToken,
    task: AbortHandle,
}

struct State {
    trust_domain: TrustDomain,
    relationship: Mutex<Relationship>,
    changed: Notify,
    /// The bundle at the last look; held during one.
    last: tokio::sync::Mutex<Option<Bundle>>,
}

impl Federation {
    /// Follows nobody before [`Federation::run`]. All ends with `stop`.
    pub fn new(config: &FederationConfig, parts: FederationParts, stop: CancellationToken) -> Arc<Self> {
        Arc::new(Self {
            sources: ArcSwap::from_pointee(Sources::new(
                parts.live.trust_domain().clone(),
                &config.federates_with,
            )),
            policy: FetchPolicy { tls: parts.policy, public_only: config.refuse_private_endpoints },
            parts,
            stop,
            followed: Mutex::default(),
            tasks: Mutex::default(),
            reconciling: tokio::sync::Mutex::default(),
            changed: Notify::new(),
            fetches: Semaphore::new(FETCHES_MAX),
        })
    }

    /// Takes over other static relationships; the tasks follow them at once.
    pub fn set_configured(&self, federates_with: &[FederatesWith]) {
        let sources = Sources::new(self.parts.live.trust_domain().clone(), federates_with);
        self.sources.store(Arc::new(sources));
        self.changed.notify_one();
    }

    /// Works until it is to stop, and lets the tasks end.
    pub async fn run(self: Arc<Self>) {
        loop {
            self.reconcile_or_log().await;
            tokio::select! {
                () = self.changed.notified() => {}
                () = tokio::time::sleep(RECONCILE) => {}
                () = self.stop.cancelled() => break,
            }
        }
        tracing::info!(subsystem_name = SUBSYSTEM, "Shutting down");
        let mut tasks = std::mem::take(&mut *self.tasks.lock());
        while tasks.join_next().await.is_some() {}
    }

    fn store(&self) -> &dyn DataStore {
        &**self.parts.live.store()
    }

    async fn reconcile_or_log(self: &Arc<Self>) {
        if let Err(error) = self.reconcile().await {
            tracing::error!(subsystem_name = SUBSYSTEM, error = %error, "Failed to reload configs");
        }
    }

    /// Starts, changes and ends tasks as the relationships of now ask for. Idempotent.
    async fn reconcile(self: &Arc<Self>) -> datastore::Result<()> {
        let _alone = self.reconciling.lock().await;
        let wanted = self.sources.load_full().current(self.store()).await?;
        if self.stop.is_cancelled() {
            return Ok(());
        }
        while self.tasks.lock().try_join_next().is_some() {}
        let mut followed = self.followed.lock();
        let stale = followed.extract_if(|domain, one| !wanted.contains_key(domain) || one.task.is_finished());
        let stale: Vec<_> = stale.collect();
        for (trust_domain, one) in &stale {
            tracing::info!(
                subsystem_name = SUBSYSTEM,
                entry = trust_domain.name(),
                "Trust domain no longer managed"
            );
            one.stop.cancel();
        }
        self.follow_all(&mut followed, wanted);
        Ok(())
    }

    fn follow_all(self: &Arc<Self>, followed: &mut HashMap<TrustDomain, Followed>, wanted: Relationships) {
        for (trust_domain, relationship) in wanted {
            let (bundle_endpoint_url, bundle_endpoint_profile) =
                (relationship.endpoint_url.clone(), relationship.profile());
            if let Some(one) = followed.get(&trust_domain) {
                if one.state.replace(relationship) {
                    tracing::info!(
                        subsystem_name = SUBSYSTEM,
                        entry = trust_domain.name(),
                        bundle_endpoint_url,
                        bundle_endpoint_profile,
                        "Updated configuration for managed trust domain"
                    );
                }
                continue;
            }
            tracing::info!(
                subsystem_name = SUBSYSTEM,
                trust_domain = trust_domain.name(),
                bundle_endpoint_url,
                bundle_endpoint_profile,
                "Trust domain is now managed"
            );
            let state = Arc::new(State::new(trust_domain.clone(), relationship));
            let stop = self.stop.child_token();
            let task = self.tasks.lock().spawn(Arc::clone(self).follow(Arc::clone(&state), stop.clone()));
            followed.insert(trust_domain, Followed { state, stop, task });
        }
    }

    /// Looks at one endpoint again and again.
    async fn follow(self: Arc<Self>, state: Arc<State>, stop: CancellationToken) {
        let trust_domain = state.trust_domain.name();
        let mut bundles = self.parts.live.changes().bundles();
        loop {
            bundles.mark_unchanged();
            let (next, waits) = tokio::select! {
                looked = self.look(&state) => looked,
                () = stop.cancelled() => break,
            };
            let at = self.parts.clock.now() + next;
            tracing::debug!(
                subsystem_name = SUBSYSTEM,
                trust_domain,
                at = spire_compat::gotime::rfc3339(at.unix()),
                "Scheduling next bundle refresh"
            );
            tokio::select! {
                () = tokio::time::sleep(next) => {}
                () = state.changed.notified() => {}
                () = arrival(&mut bundles), if waits => {}
                () = stop.cancelled() => break,
            }
        }
        tracing::info!(subsystem_name = SUBSYSTEM, trust_domain, "No longer polling for updates");
    }

    /// One look of a task, with its log and metrics: the time to the next one, and whether it may come sooner since all
    /// that is missing is a bundle to begin with.
    async fn look(&self, state: &State) -> (Duration, bool) {
        let trust_domain = state.trust_domain.name();
        tracing::debug!(subsystem_name = SUBSYSTEM, trust_domain, "Polling for bundle update");
        let metrics = &*self.parts.metrics;
        let mut call = Call::start(metrics, metric::BUNDLE_MANAGER_FETCH_FEDERATED_BUNDLE);
        call.label(label::TRUST_DOMAIN_ID, trust_domain);
        let update = self.update(state).await;
        call.done_with(&update.stored);
        let waits = matches!(update.stored, Err(UpdateError::NoEndpointBundle));
        match update.stored {
            Ok(Some(stored)) => {
                let labels = [Label::new(label::TRUST_DOMAIN_ID, trust_domain)];
                metrics.incr_counter(metric::BUNDLE_MANAGER_UPDATE_FEDERATED_BUNDLE, 1.0, &labels);
                tracing::info!(subsystem_name = SUBSYSTEM, trust_domain, "Bundle refreshed");
                return (next_look(Some(&stored)), waits);
            }
            Ok(None) => {}
            Err(error) => {
                tracing::error!(subsystem_name = SUBSYSTEM, trust_domain, error = %error, "Error updating bundle");
            }
        }
        (next_look(update.local.as_ref()), waits)
    }

    /// Looks at an endpoint, and tells agents where its bundle is another one than at the last look, whoever stored it.
    async fn update(&self, state: &State) -> Update {
        let mut last = state.last.lock().await;
        // The semaphore is never closed.
        let _place = self.fetches.acquire().await;
        let relationship = state.relationship.lock().clone();
        let update = update(self.store(), &state.trust_domain, &relationship, self.policy).await;
        let stored = update.stored.as_ref().ok().and_then(Option::as_ref);
        let now = stored.or(update.local.as_ref());
        let differs = match (&*last, now) {
            (Some(last), Some(now)) => !same(last, now),
            // At the first look only what was stored by it is news.
            (None, Some(_)) => stored.is_some(),
            (_, None) => false,
        };
        if differs {
            self.parts.live.changes().bundle_changed();
        }
        if now.is_some() {
            *last = now.cloned();
        }
        update
    }
}

/// Waits until a bundle arrives from somewhere; for ever where nothing can any more.
async fn arrival(bundles: &mut watch::Receiver<()>) {
    if bundles.changed().await.is_err() {
        std::future::pending().await
    }
}

impl State {
    fn new(trust_domain: TrustDomain, relationship: Relationship) -> Self {
        Self {
            trust_domain,
            relationship: Mutex::new(relationship),
            changed: Notify::new(),
            last: tokio::sync::Mutex::default(),
        }
    }

    /// Takes another relationship, and has it looked at at once. Whether it is another.
    fn replace(&self, relationship: Relationship) -> bool {
        let mut current = self.relationship.lock();
        if *current == relationship {
            return false;
        }
        *current = relationship;
        self.changed.notify_one();
        true
    }
}

#[async_trait]
impl BundleRefresher for Arc<Federation> {
    async fn refresh(&self, trust_domain: &TrustDomain) -> Result<bool, String> {
        self.reconcile_or_log().await;
        let state = self.followed.lock().get(trust_domain).map(|one| Arc::clone(&one.state));
        let Some(state) = state else { return Ok(false) };
        // Boxed: a TLS handshake takes a lot of the stack.
        match Box::pin(self.update(&state)).await.stored {
            Ok(_) => Ok(true),
            Err(error) => Err(error.to_string()),
        }
    }

    fn relationships_changed(&self) {
        self.changed.notify_one();
    }
}

impl std::fmt::Debug for Federation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let followed: Vec<String> = self.followed.lock().keys().map(ToString::to_string).collect();
        f.debug_struct("Federation").field("followed", &followed).finish_non_exhaustive()
    }
}
