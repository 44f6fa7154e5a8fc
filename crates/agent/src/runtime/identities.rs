//! The SVID cache as the APIs see it: snapshots that are read without locks and replaced by deltas.
//!
//! Workloads with equal selectors share one [`Group`], whose view is built and encoded once a change. Finding
//! a known group reads an atomic pointer and takes that group's own lock for a moment; the cache's lock is
//! taken only for a selector set that was not seen for a minute.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use spire_core::model::{Entry, EntryId};
use spire_core::spiffe::{Bundle, Selectors, TrustDomain};
use spire_core::svids::{Delta, Effect, Jitter, Stale, View, X509Cache, X509Svid};
use spire_core::time::Timestamp;
use spire_ports::observe::{Label, Metrics, names};
use tokio::sync::{Notify, watch};

use super::clock::Clock;
use super::events::{Event, Events};
use crate::api::encode::Encoded;

/// How long a selector set stays known, and its SVIDs held, after its last workload left.
const IDLE: Duration = Duration::from_secs(60);

/// How long a workload that has an SVID waits for those of its other entries. Signing takes milliseconds; this is for a
/// server that is busy, and what one that is away costs each start of a workload.
const READY_MAX: Duration = Duration::from_secs(5);

/// Known selector sets from which idle ones are forgotten at once, so that short-lived processes with ever new
/// selectors take no memory. Sets with an open stream count too, but are bounded by connections.
const GROUPS_MAX: usize = 4096;

/// The identities that this agent can give out.
pub struct Identities {
    cache: Mutex<X509Cache>,
    groups: ArcSwap<HashMap<Selectors, Arc<Group>>>,
    /// All bundles that are known; none when the agent stops.
    bundles: watch::Sender<Option<Bundles>>,
    /// Set once, when the agent stops.
    closed: std::sync::atomic::AtomicBool,
    /// There are SVIDs to fetch.
    wanted: Notify,
    clock: Clock,
    metrics: Arc<dyn Metrics>,
    events: Events,
}

/// The bundles that are known, the agent's own among them.
pub type Bundles = Arc<BTreeMap<TrustDomain, Arc<Bundle>>>;

/// The workloads of one selector set.
pub(super) struct Group {
    selectors: Selectors,
    /// What they get; none when the agent stops.
    view: watch::Sender<Option<Arc<Served>>>,
    users: Mutex<Users>,
}

struct Users {
    count: usize,
    pinned: bool,
    /// Not in the map any more: whoever still holds it looks again.
    forgotten: bool,
    last_use: Timestamp,
}

/// A view with the answers that were encoded from it so far.
pub struct Served {
    /// What the workloads get.
    pub view: View,
    /// The answers, each encoded when it is first asked for and shared from then on.
    pub encoded: Encoded,
}

/// Follows the view of a selector set; dropping it ends that.
pub struct Subscription {
    group: Arc<Group>,
    views: watch::Receiver<Option<Arc<Served>>>,
    clock: Clock,
}

impl Identities {
    /// Serves from this cache.
    pub fn new(cache: X509Cache, clock: Clock, metrics: Arc<dyn Metrics>, events: Events) -> Arc<Self> {
        Arc::new(Self {
            bundles: watch::Sender::new(Some(Arc::new(cache.bundles().clone()))),
            cache: Mutex::new(cache),
            groups: ArcSwap::default(),
            closed: std::sync::atomic::AtomicBool::new(false),
            wanted: Notify::new(),
            clock,
            metrics,
            events,
        })
    }

    /// Follows what workloads with these selectors get, and holds their X.509-SVIDs meanwhile.
    pub fn subscribe(&self, selectors: &Selectors) -> Subscription {
        loop {
            let group = self.group(selectors);
            let pinned = {
                let mut users = group.users.lock();
                if users.forgotten {
                    continue;
                }
                users.count += 1;
                users.last_use = self.clock.now();
                users.pinned
            };
            let subscription =
                Subscription { views: group.view.subscribe(), clock: self.clock, group: Arc::clone(&group) };
            if !pinned {
                self.pin(&group);
            }
            return subscription;
        }
    }

    /// What workloads with these selectors get now, without holding SVIDs for them.
    pub fn look(&self, selectors: &Selectors) -> Option<Arc<Served>> {
        let group = self.group(selectors);
        group.users.lock().last_use = self.clock.now();
        group.view.borrow().clone()
    }

    /// The entries that workloads with these selectors match, by entry ID.
    pub fn matching(&self, selectors: &Selectors) -> Vec<Arc<Entry>> {
        self.cache.lock().matching(selectors)
    }

    /// Follows all bundles that are known; `None` comes when the agent stops.
    pub fn bundles(&self) -> watch::Receiver<Option<Bundles>> {
        self.bundles.subscribe()
    }

    /// Takes what a sync found.
    pub fn apply(&self, delta: Delta) {
        let mut cache = self.cache.lock();
        let effects = cache.apply(delta, self.clock.now());
        self.publish(&cache, effects);
        self.gauge(names::agent::LRU_CACHE_RECORD_MAP_SIZE, cache.entry_count());
        drop(cache);
        self.wanted.notify_one();
    }

    /// Takes SVIDs that the server signed, each for a revision of its entry.
    pub fn issued(&self, svids: Vec<(EntryId, i64, Arc<X509Svid>)>) {
        let now = self.clock.now();
        let mut cache = self.cache.lock();
        let mut effects = Vec::new();
        for (id, revision, svid) in svids {
            let jitter = Jitter::from_random(super::backoff::random());
            effects.extend(cache.issued(&id, revision, svid, now, jitter));
        }
        // At once: a workload with several identities hears of their rotation once.
        self.publish(&cache, effects);
        self.gauge(names::agent::LRU_CACHE_SVID_MAP_SIZE, cache.svid_count());
    }

    /// The server would not sign for these entries.
    pub fn refused(&self, ids: &[EntryId]) {
        let now = self.clock.now();
        let mut cache = self.cache.lock();
        for id in ids {
            cache.refused(id, now);
        }
    }

    /// The entries to fetch SVIDs for, at most `limit`, and how many there are.
    pub fn stale(&self, limit: usize) -> (Vec<Stale>, usize) {
        self.cache.lock().stale(self.clock.now(), limit)
    }

    /// Waits until there may be SVIDs to fetch.
    pub async fn wait_for_stale(&self) {
        let wanted = self.wanted.notified();
        let next = self.cache.lock().next_stale();
        match next {
            Some(at) => {
                tokio::select! {
                    () = wanted => {}
                    () = self.clock.sleep_until(at) => {}
                }
            }
            None => wanted.await,
        }
    }

    /// Reads the cache; the caller must not take long.
    pub fn read<T>(&self, read: impl FnOnce(&X509Cache) -> T) -> T {
        read(&self.cache.lock())
    }

    /// Schedules the replacement of SVIDs of which `is_tainted` is true; returns how many there are.
    pub fn taint(&self, is_tainted: impl FnMut(&X509Svid) -> bool) -> usize {
        let count = self.cache.lock().taint(self.clock.now(), is_tainted);
        self.wanted.notify_one();
        count
    }

    /// Forgets the selector sets that no workload had for a minute.
    pub fn sweep(&self) {
        let now = self.clock.now();
        self.forget(|last_use| last_use + IDLE <= now);
    }

    /// Ends every subscription: the agent stops.
    pub fn close(&self) {
        let cache = self.cache.lock();
        self.closed.store(true, std::sync::atomic::Ordering::SeqCst);
        for group in self.groups.load().values() {
            group.view.send_replace(None);
        }
        self.bundles.send_replace(None);
        drop(cache);
    }

    /// Streams that are open.
    pub fn subscriber_count(&self) -> usize {
        self.groups.load().values().map(|g| g.users.lock().count).sum()
    }

    fn group(&self, selectors: &Selectors) -> Arc<Group> {
        if let Some(group) = self.groups.load().get(selectors) {
            return Arc::clone(group);
        }
        if self.groups.load().len() >= GROUPS_MAX {
            self.forget(|_| true);
        }
        let mut cache = self.cache.lock();
        // Somebody may have been faster; the map changes only under the cache's lock.
        if let Some(group) = self.groups.load().get(selectors) {
            return Arc::clone(group);
        }
        cache.track(selectors);
        let closed = self.closed.load(std::sync::atomic::Ordering::SeqCst);
        let served = (!closed).then(|| served(&cache, selectors));
        let group = Arc::new(Group {
            selectors: selectors.clone(),
            view: watch::Sender::new(served),
            users: Mutex::new(Users {
                count: 0,
                pinned: false,
                forgotten: false,
                last_use: self.clock.now(),
            }),
        });
        let mut groups = HashMap::clone(&self.groups.load());
        groups.insert(selectors.clone(), Arc::clone(&group));
        self.groups.store(Arc::new(groups));
        group
    }

    fn pin(&self, group: &Group) {
        let mut cache = self.cache.lock();
        let mut users = group.users.lock();
        if !std::mem::replace(&mut users.pinned, true) {
            cache.pin(&group.selectors, self.clock.now());
            drop(users);
            drop(cache);
            self.wanted.notify_one();
        }
    }

    fn forget(&self, old_enough: impl Fn(Timestamp) -> bool) {
        let mut cache = self.cache.lock();
        let groups = self.groups.load_full();
        let idle = |group: &Group| {
            let users = group.users.lock();
            users.count == 0 && old_enough(users.last_use)
        };
        if !groups.values().any(|group| idle(group)) {
            return;
        }
        let mut kept = HashMap::with_capacity(groups.len());
        for (selectors, group) in groups.iter() {
            let mut users = group.users.lock();
            if users.count == 0 && old_enough(users.last_use) {
                users.forgotten = true;
                cache.forget(selectors, users.last_use);
            } else {
                kept.insert(selectors.clone(), Arc::clone(group));
            }
        }
        self.groups.store(Arc::new(kept));
    }

    /// Logs effects and replaces the views that changed. The cache's lock is held, so views come in order.
    fn publish(&self, cache: &X509Cache, effects: Vec<Effect>) {
        let groups = self.groups.load();
        let mut counts = [0_u16; 3];
        let mut bundles_changed = false;
        let mut changed = HashSet::new();
        for effect in effects {
            match &effect {
                Effect::ViewChanged(selectors) => {
                    if let Some(group) = groups.get(selectors)
                        && !self.closed.load(std::sync::atomic::Ordering::SeqCst)
                        && changed.insert(selectors.clone())
                    {
                        group.view.send_replace(Some(served(cache, selectors)));
                    }
                }
                Effect::EntryCreated(_) => counts[0] = counts[0].saturating_add(1),
                Effect::EntryUpdated { .. } => counts[1] = counts[1].saturating_add(1),
                Effect::EntryRemoved(_) => counts[2] = counts[2].saturating_add(1),
                Effect::BundleAdded(domain)
                | Effect::BundleUpdated(domain)
                | Effect::BundleRemoved(domain) => {
                    bundles_changed = true;
                    self.events.emit(|| Event::BundleChanged(domain.clone()));
                }
                Effect::SvidUpdated(_) | Effect::SvidEvicted(_) => {}
            }
            log(&effect);
        }
        if bundles_changed && !self.closed.load(std::sync::atomic::Ordering::SeqCst) {
            self.bundles.send_replace(Some(Arc::new(cache.bundles().clone())));
        }
        let counters = [
            names::agent::LRU_CACHE_ENTRY_ADD,
            names::agent::LRU_CACHE_ENTRY_UPDATE,
            names::agent::LRU_CACHE_ENTRY_REMOVE,
        ];
        // Of none too, as the reference: a counter that was never raised cannot be watched for its first rise.
        for (name, count) in counters.into_iter().zip(counts) {
            self.metrics.incr_counter(name, f32::from(count), &[]);
        }
    }

    fn gauge(&self, name: names::Name, value: usize) {
        let value = u32::try_from(value).unwrap_or(u32::MAX);
        self.metrics.set_gauge(name, f64::from(value), &[Label::new(names::label::SVID_TYPE, "X509")]);
    }
}

impl Subscription {
    /// The selectors of the workload.
    pub fn selectors(&self) -> &Selectors {
        &self.group.selectors
    }

    /// What the workloads get now; none when the agent stops.
    pub fn current(&mut self) -> Option<Arc<Served>> {
        self.views.borrow_and_update().clone()
    }

    /// Waits for the next view; none when the agent stops.
    pub async fn changed(&mut self) -> Option<Arc<Served>> {
        self.views.changed().await.ok()?;
        self.current()
    }

    /// The first view to serve: waits until every entry that matches has its SVID, as the reference does (lru_cache.go:
    /// subscribeToWorkloadUpdates), but not for longer than [`READY_MAX`] if there is an SVID to serve already: one entry
    /// that cannot be signed for must not keep a workload from its other identities. The rest comes as a change.
    /// None when the agent stops.
    pub async fn first(&mut self) -> Option<Arc<Served>> {
        let mut served = self.current()?;
        if !served.view.is_incomplete() {
            return Some(served);
        }
        tracing::info!(
            subsystem_name = "cache_manager",
            selectors = %selector_list(&self.group.selectors),
            "Waiting for SVID to get cached"
        );
        let patience = tokio::time::sleep(READY_MAX);
        tokio::pin!(patience);
        while served.view.is_incomplete() {
            tokio::select! {
                biased;
                changed = self.changed() => served = changed?,
                () = &mut patience, if served.view.has_identity() => {
                    self.warn_of_missing(&served.view);
                    break;
                }
            }
        }
        Some(served)
    }

    fn warn_of_missing(&self, view: &View) {
        let missing: Vec<&str> =
            view.matches.iter().filter(|m| m.svid.is_none()).map(|m| m.entry.id.as_str()).collect();
        tracing::warn!(
            subsystem_name = "cache_manager",
            selectors = %selector_list(&self.group.selectors),
            entry_ids = missing.join(","),
            "Serving the SVIDs that are ready; others are waited for"
        );
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut users = self.group.users.lock();
        users.count = users.count.saturating_sub(1);
        users.last_use = self.clock.now();
    }
}

/// Selectors as Go prints their protobufs in logs: `[type:"unix" value:"uid:0" type:…]`.
pub(crate) fn selector_list(selectors: &Selectors) -> String {
    let items: Vec<String> =
        selectors.iter().map(|s| format!("type:{:?} value:{:?}", s.kind(), s.value())).collect();
    format!("[{}]", items.join(" "))
}

/// The selectors that may be logged, sorted and separated by commas: those that are named, or whose prefix up
/// to a colon is (pkg/agent/endpoints/workload: filterLoggableSelectors).
pub(crate) fn selector_text(selectors: &Selectors, loggable: &[String]) -> String {
    let mut shown: Vec<String> = selectors.iter().map(ToString::to_string).collect();
    shown.retain(|text| {
        loggable.iter().any(|p| {
            text.strip_prefix(p.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with(':'))
        })
    });
    shown.sort_unstable();
    shown.join(",")
}

fn served(cache: &X509Cache, selectors: &Selectors) -> Arc<Served> {
    let view = cache.view(selectors);
    for (entry, domain) in &view.missing_bundles {
        tracing::warn!(
            subsystem_name = "cache_manager", entry_id = %entry.id, spiffe_id = %entry.spiffe_id,
            federated_bundle = domain.id_string(), "Federated bundle contents missing"
        );
    }
    Arc::new(Served { view, encoded: Encoded::default() })
}

fn log(effect: &Effect) {
    match effect {
        Effect::ViewChanged(_) => {}
        Effect::EntryCreated(e) => tracing::debug!(
            subsystem_name = "cache_manager", entry = %e.id, spiffe_id = %e.spiffe_id,
            selectors_added = e.selectors.len(),
            federated_added = (!e.federates_with.is_empty()).then_some(e.federates_with.len()), "Entry created"
        ),
        Effect::EntryUpdated { old, new } => {
            let added = new.selectors.iter().filter(|s| !old.selectors.contains(s)).count();
            let removed = old.selectors.iter().filter(|s| !new.selectors.contains(s)).count();
            tracing::debug!(
                subsystem_name = "cache_manager", entry = %new.id, spiffe_id = %new.spiffe_id,
                selectors_added = (added > 0).then_some(added),
                selectors_removed = (removed > 0).then_some(removed), "Entry updated"
            );
        }
        Effect::EntryRemoved(e) => tracing::debug!(
            subsystem_name = "cache_manager", entry = %e.id, spiffe_id = %e.spiffe_id, "Entry removed"
        ),
        Effect::SvidUpdated(e) => tracing::debug!(
            subsystem_name = "cache_manager", entry = %e.id, spiffe_id = %e.spiffe_id, "SVID updated"
        ),
        Effect::SvidEvicted(e) => {
            tracing::debug!(subsystem_name = "cache_manager", record_id = %e.id, "Removing SVID record");
        }
        Effect::BundleAdded(d) => {
            tracing::debug!(subsystem_name = "cache_manager", trust_domain_id = %d.name(), "Bundle added");
        }
        Effect::BundleUpdated(d) => {
            tracing::debug!(subsystem_name = "cache_manager", trust_domain_id = %d.name(), "Bundle updated");
        }
        Effect::BundleRemoved(d) => {
            tracing::debug!(subsystem_name = "cache_manager", trust_domain_id = %d.name(), "Bundle removed");
        }
    }
}

#[cfg(test)]
mod tests;
