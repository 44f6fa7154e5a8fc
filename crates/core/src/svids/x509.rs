//! The cache of X.509-SVIDs: entries, the SVIDs held for them, and which are to be fetched.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::groups::Groups;
use super::index::MatchIndex;
use super::schedule::{Jitter, Rotation};
use super::view::{Match, View, X509Svid};
use crate::model::{Entry, EntryId};
use crate::spiffe::{Bundle, Selectors, TrustDomain};
use crate::time::Timestamp;

/// How many SVIDs of a tainted authority are replaced at a time (x509_lru_cache.go: defaultProcessingBatchSize).
const TAINTED_BATCH: usize = 100;

/// How long to wait between such batches (x509_lru_cache.go: processingTaintedX509SVIDInterval).
const TAINTED_INTERVAL: Duration = Duration::from_secs(5);

/// An entry that the server refuses to sign for is asked for again after at most this long
/// (manager.go: maxSVIDSyncInterval).
const RETRY_MAX: Duration = Duration::from_secs(4 * 60);

/// What bounds the cache.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// SVIDs to hold. Soft: those of a workload that is connected are held whatever their number.
    pub max_svids: usize,
}

/// A change of what the server authorises, relative to what the cache holds.
#[derive(Clone, Debug, Default)]
pub struct Delta {
    /// New entries and new revisions.
    pub upserts: Vec<Entry>,
    /// Entries that are gone.
    pub removals: Vec<EntryId>,
    /// All bundles that are known now, by trust domain; `None` leaves them as they are.
    pub bundles: Option<BTreeMap<TrustDomain, Bundle>>,
}

/// What the shell does after a change.
#[derive(Clone, Debug)]
pub enum Effect {
    /// The view of this tracked selector set may be another now.
    ViewChanged(Selectors),
    /// An entry is new.
    EntryCreated(Arc<Entry>),
    /// An entry has another revision.
    EntryUpdated {
        /// As it was.
        old: Arc<Entry>,
        /// As it is.
        new: Arc<Entry>,
    },
    /// An entry is gone.
    EntryRemoved(Arc<Entry>),
    /// The SVID of an entry was replaced, or is there for the first time.
    SvidUpdated(Arc<Entry>),
    /// An SVID gave way to others; its entry stays.
    SvidEvicted(Arc<Entry>),
    /// A bundle is new.
    BundleAdded(TrustDomain),
    /// A bundle has another content.
    BundleUpdated(TrustDomain),
    /// A bundle is gone.
    BundleRemoved(TrustDomain),
}

/// An entry whose SVID is to be fetched.
#[derive(Clone, Debug)]
pub struct Stale {
    /// The entry; its revision says what the answer will be for.
    pub entry: Arc<Entry>,
    /// When the SVID that is held expires; none when none is held.
    pub expires_at: Option<Timestamp>,
    /// Whether that one is due for its age, and not because its entry changed or its authority is tainted.
    pub is_expiring: bool,
}

/// The entries that this agent is authorised for and the X.509-SVIDs that it holds.
#[derive(Debug)]
pub struct X509Cache {
    trust_domain: TrustDomain,
    rotation: Rotation,
    limits: Limits,
    records: HashMap<u32, Record>,
    next_key: u32,
    by_id: HashMap<EntryId, u32>,
    index: MatchIndex,
    groups: Groups,
    bundles: BTreeMap<TrustDomain, Arc<Bundle>>,
    /// Entries whose SVIDs go to stores and never to workloads.
    store: BTreeMap<EntryId, Arc<Entry>>,
    svid_count: usize,
    /// To be fetched. Those that a connected workload waits for come first.
    stale: BTreeSet<(Urgency, u32)>,
    /// Without an SVID, not stale, and may be fetched ahead of need.
    prefetchable: BTreeSet<u32>,
    /// When the SVIDs that are held are to be renewed.
    renewals: BTreeSet<(Timestamp, u32)>,
    /// Signed by a tainted authority and not stale yet.
    tainted: VecDeque<u32>,
    tainted_next: Timestamp,
    /// When things were last moved on; the clock may be behind it now.
    advanced: Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Urgency {
    Awaited,
    Outdated,
    Ahead,
}

#[derive(Debug)]
struct Record {
    entry: Arc<Entry>,
    svid: Option<Arc<X509Svid>>,
    renew_at: Timestamp,
    stale: Option<Urgency>,
    /// Pinned groups that match.
    pins: u32,
    last_access: Timestamp,
    failures: u32,
    retry_at: Timestamp,
}

impl X509Cache {
    /// A cache that holds nothing but the bundle of the agent's trust domain.
    pub fn new(bundle: Bundle, rotation: Rotation, limits: Limits) -> Self {
        let trust_domain = bundle.trust_domain.clone();
        Self {
            rotation,
            limits,
            records: HashMap::new(),
            next_key: 0,
            by_id: HashMap::new(),
            index: MatchIndex::default(),
            groups: Groups::default(),
            bundles: BTreeMap::from([(trust_domain.clone(), Arc::new(bundle))]),
            trust_domain,
            store: BTreeMap::new(),
            svid_count: 0,
            stale: BTreeSet::new(),
            prefetchable: BTreeSet::new(),
            renewals: BTreeSet::new(),
            tainted: VecDeque::new(),
            tainted_next: Timestamp::EPOCH,
            advanced: Timestamp::EPOCH,
        }
    }

    /// Entries for workloads.
    pub fn entry_count(&self) -> usize {
        self.records.len()
    }

    /// Entries for stores.
    pub fn store_entries(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.store.values()
    }

    /// SVIDs that are held.
    pub fn svid_count(&self) -> usize {
        self.svid_count
    }

    /// The entry of that ID, for workloads or stores: what a sync compares revisions with.
    pub fn entry(&self, id: &EntryId) -> Option<&Arc<Entry>> {
        match self.by_id.get(id) {
            Some(key) => self.records.get(key).map(|r| &r.entry),
            None => self.store.get(id),
        }
    }

    /// Every entry, for workloads and stores, in no order.
    pub fn entries(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.records.values().map(|r| &r.entry).chain(self.store.values())
    }

    /// The bundles that are known, the agent's own among them.
    pub fn bundles(&self) -> &BTreeMap<TrustDomain, Arc<Bundle>> {
        &self.bundles
    }

    /// The bundle of the agent's trust domain.
    pub fn own_bundle(&self) -> Arc<Bundle> {
        self.bundles
            .get(&self.trust_domain)
            .map_or_else(|| Arc::new(Bundle::empty(self.trust_domain.clone())), Arc::clone)
    }

    /// The entries that match a workload, by entry ID.
    pub fn matching(&self, workload: &Selectors) -> Vec<Arc<Entry>> {
        self.sorted_matches(workload).into_iter().map(|r| Arc::clone(&r.entry)).collect()
    }

    /// What a workload gets now.
    pub fn view(&self, workload: &Selectors) -> View {
        let matches: Box<[Match]> = self
            .sorted_matches(workload)
            .into_iter()
            .map(|r| Match { entry: Arc::clone(&r.entry), svid: r.svid.clone() })
            .collect();
        let mut federated = BTreeMap::new();
        let mut missing = Vec::new();
        for m in matches.iter().filter(|m| m.svid.is_some()) {
            for domain in &m.entry.federates_with {
                match self.bundles.get(domain) {
                    Some(bundle) => drop(federated.insert(domain, Arc::clone(bundle))),
                    None => missing.push((Arc::clone(&m.entry), domain.clone())),
                }
            }
        }
        let federated = federated.into_values().collect();
        View { bundle: self.own_bundle(), federated, missing_bundles: missing.into(), matches }
    }

    /// Reports changes of this workload's view from now on, without holding SVIDs for it.
    pub fn track(&mut self, workload: &Selectors) {
        self.groups.track(workload);
    }

    /// A workload that wants X.509-SVIDs is connected: its SVIDs are fetched first and never given up.
    pub fn pin(&mut self, workload: &Selectors, now: Timestamp) {
        self.groups.track(workload);
        if self.groups.set_pinned(workload, true) {
            for key in self.matching_keys(workload) {
                if let Some(record) = self.records.get_mut(&key) {
                    record.pins += 1;
                    record.last_access = now;
                }
                self.require(key);
            }
        }
    }

    /// The last workload with these selectors that wanted X.509-SVIDs left; `last_access` is when one was
    /// last there.
    pub fn unpin(&mut self, workload: &Selectors, last_access: Timestamp) {
        if self.groups.set_pinned(workload, false) {
            for key in self.matching_keys(workload) {
                if let Some(record) = self.records.get_mut(&key) {
                    record.pins = record.pins.saturating_sub(1);
                    record.last_access = record.last_access.max(last_access);
                }
            }
        }
    }

    /// Reports no more changes of this workload's view. It is unpinned first when it was pinned.
    pub fn forget(&mut self, workload: &Selectors, last_access: Timestamp) {
        self.unpin(workload, last_access);
        self.groups.forget(workload);
    }

    /// Takes a change of what the server authorises.
    pub fn apply(&mut self, delta: Delta, now: Timestamp) -> Vec<Effect> {
        let mut change = Change::default();
        if let Some(bundles) = delta.bundles {
            self.apply_bundles(bundles, &mut change);
        }
        for id in delta.removals {
            self.remove(&id, &mut change);
        }
        for entry in delta.upserts {
            self.upsert(entry, now, &mut change);
        }
        self.evict(&mut change);
        change.effects()
    }

    /// Takes an SVID that the server signed for `revision` of an entry. When the entry is gone the SVID is
    /// dropped; when its revision is another by now, the SVID is served but stays to be fetched again.
    pub fn issued(
        &mut self,
        id: &EntryId,
        revision: i64,
        svid: Arc<X509Svid>,
        now: Timestamp,
        jitter: Jitter,
    ) -> Vec<Effect> {
        let mut change = Change::default();
        let Some(&key) = self.by_id.get(id) else { return Vec::new() };
        self.unschedule(key);
        let Some(record) = self.records.get_mut(&key) else { return Vec::new() };
        self.svid_count += usize::from(record.svid.is_none());
        record.renew_at = self.rotation.renew_new_x509_at(svid.not_before, svid.not_after, now, jitter);
        record.svid = Some(svid);
        record.failures = 0;
        record.retry_at = Timestamp::EPOCH;
        if record.last_access == Timestamp::EPOCH {
            record.last_access = now;
        }
        self.renewals.insert((record.renew_at, key));
        let entry = Arc::clone(&record.entry);
        self.prefetchable.remove(&key);
        if entry.revision == revision {
            self.set_stale(key, None);
        }
        change.views.extend(self.groups.matched_by(&entry.selectors).cloned());
        change.log.push(Effect::SvidUpdated(entry));
        self.evict(&mut change);
        change.effects()
    }

    /// The server would not sign for this entry; it is asked for again later, and later each time.
    pub fn refused(&mut self, id: &EntryId, now: Timestamp) {
        let record = self.by_id.get(id).and_then(|key| self.records.get_mut(key));
        if let Some(record) = record {
            let wait = Duration::from_secs(1 << record.failures.min(8)).min(RETRY_MAX);
            record.failures = record.failures.saturating_add(1);
            record.retry_at = now + wait;
        }
    }

    /// Replaces the SVIDs of which `is_tainted` is true, a batch at a time; returns how many there are.
    pub fn taint(&mut self, now: Timestamp, mut is_tainted: impl FnMut(&X509Svid) -> bool) -> usize {
        let mut keys: Vec<(bool, u32)> = self
            .records
            .iter()
            .filter(|(_, r)| r.svid.as_ref().is_some_and(|svid| is_tainted(svid)))
            .map(|(key, r)| (r.pins == 0, *key))
            .collect();
        // Workloads that are connected come first.
        keys.sort_unstable();
        let count = keys.len();
        self.tainted.extend(keys.into_iter().map(|(_, key)| key));
        self.tainted_next = now;
        count
    }

    /// The entries to fetch SVIDs for now, most urgent first, at most `limit`; and how many there are.
    pub fn stale(&mut self, now: Timestamp, limit: usize) -> (Vec<Stale>, usize) {
        self.advance(now);
        let ready =
            self.stale.iter().filter_map(|(_, key)| self.records.get(key)).filter(|r| r.retry_at <= now);
        let mut total = 0;
        let mut wanted = Vec::new();
        for record in ready {
            total += 1;
            if wanted.len() < limit {
                wanted.push(Stale {
                    entry: Arc::clone(&record.entry),
                    expires_at: record.svid.as_ref().map(|svid| svid.not_after),
                    is_expiring: record.svid.is_some() && record.renew_at <= now,
                });
            }
        }
        (wanted, total)
    }

    /// When [`X509Cache::stale`] will have something if nothing else happens; `None` is never.
    pub fn next_stale(&self) -> Option<Timestamp> {
        let retry = self.stale.iter().filter_map(|(_, key)| self.records.get(key)).map(|r| r.retry_at).min();
        let tainted = (!self.tainted.is_empty()).then_some(self.tainted_next);
        let renewal = self.renewals.first().map(|(at, _)| *at);
        let ahead = (self.room() > 0 && !self.prefetchable.is_empty()).then_some(Timestamp::EPOCH);
        [retry, tainted, renewal, ahead].into_iter().flatten().min()
    }

    /// Moves to the stale set what has become due.
    fn advance(&mut self, now: Timestamp) {
        if now < self.advanced {
            self.turn_back(now);
        }
        self.advanced = now;
        while let Some(&(at, key)) = self.renewals.first().filter(|(at, _)| *at <= now) {
            self.renewals.remove(&(at, key));
            self.set_stale(key, Some(Urgency::Outdated));
        }
        if !self.tainted.is_empty() && self.tainted_next <= now {
            for key in self.tainted.drain(..TAINTED_BATCH.min(self.tainted.len())).collect::<Vec<_>>() {
                self.set_stale(key, Some(Urgency::Outdated));
            }
            self.tainted_next = now + TAINTED_INTERVAL;
        }
        let ahead: Vec<u32> = self.prefetchable.iter().copied().take(self.room()).collect();
        for key in ahead {
            self.prefetchable.remove(&key);
            self.set_stale(key, Some(Urgency::Ahead));
        }
    }

    /// The clock was set back: SVIDs that are not valid yet are replaced, and nothing waits for a time that was ahead.
    fn turn_back(&mut self, now: Timestamp) {
        let mut of_the_future = Vec::new();
        for (key, record) in &mut self.records {
            record.retry_at = record.retry_at.min(now);
            if record.svid.as_ref().is_some_and(|svid| now < svid.not_before) {
                of_the_future.push(*key);
            }
        }
        for key in of_the_future {
            self.unschedule(key);
            self.set_stale(key, Some(Urgency::Outdated));
        }
        self.tainted_next = self.tainted_next.min(now);
    }

    /// How many SVIDs may still be fetched ahead of need (lru_cache.go: syncSVIDsWithSubscribers).
    fn room(&self) -> usize {
        self.limits.max_svids.saturating_sub(self.svid_count).saturating_sub(self.stale.len())
    }

    fn apply_bundles(&mut self, bundles: BTreeMap<TrustDomain, Bundle>, change: &mut Change) {
        let gone: Vec<TrustDomain> = self
            .bundles
            .keys()
            .filter(|domain| **domain != self.trust_domain && !bundles.contains_key(domain))
            .cloned()
            .collect();
        let mut changed: BTreeSet<TrustDomain> = gone.iter().cloned().collect();
        for domain in gone {
            self.bundles.remove(&domain);
            change.log.push(Effect::BundleRemoved(domain));
        }
        for (domain, bundle) in bundles {
            let effect = match self.bundles.get(&domain) {
                Some(known) if **known == bundle => continue,
                Some(_) => Effect::BundleUpdated(domain.clone()),
                None => Effect::BundleAdded(domain.clone()),
            };
            change.log.push(effect);
            changed.insert(domain.clone());
            self.bundles.insert(domain, Arc::new(bundle));
        }
        let own = changed.contains(&self.trust_domain);
        let concerned = self.groups.iter().filter(|set| {
            own || self
                .index
                .subsets(set)
                .filter_map(|key| self.records.get(&key))
                .any(|r| r.entry.federates_with.iter().any(|domain| changed.contains(domain)))
        });
        if !changed.is_empty() {
            change.views.extend(concerned.cloned());
        }
    }

    fn upsert(&mut self, entry: Entry, now: Timestamp, change: &mut Change) {
        let known = self.entry(&entry.id).cloned();
        if known.as_ref().is_some_and(|old| old.store_svid != entry.store_svid) {
            self.remove(&entry.id, change);
        }
        let entry = Arc::new(entry);
        if entry.store_svid {
            self.store.insert(entry.id.clone(), Arc::clone(&entry));
        } else if let Some(&key) = self.by_id.get(&entry.id) {
            self.replace(key, &entry, change);
        } else {
            self.create(&entry, now);
            change.views.extend(self.groups.matched_by(&entry.selectors).cloned());
        }
        change.log.push(match known {
            Some(old) => Effect::EntryUpdated { old, new: entry },
            None => Effect::EntryCreated(entry),
        });
    }

    fn create(&mut self, entry: &Arc<Entry>, now: Timestamp) {
        let key = self.next_key;
        self.next_key = self.next_key.wrapping_add(1);
        let pins = self.pins(&entry.selectors);
        self.records.insert(
            key,
            Record {
                entry: Arc::clone(entry),
                svid: None,
                renew_at: Timestamp::EPOCH,
                stale: None,
                pins,
                last_access: if pins > 0 { now } else { Timestamp::EPOCH },
                failures: 0,
                retry_at: Timestamp::EPOCH,
            },
        );
        self.by_id.insert(entry.id.clone(), key);
        self.index.insert(key, &entry.selectors);
        self.offer(key);
        self.require(key);
    }

    /// Puts another revision in the place of a record's entry.
    fn replace(&mut self, key: u32, entry: &Arc<Entry>, change: &mut Change) {
        let pins = self.pins(&entry.selectors);
        let Some(record) = self.records.get_mut(&key) else { return };
        let old = std::mem::replace(&mut record.entry, Arc::clone(entry));
        record.pins = pins;
        record.retry_at = Timestamp::EPOCH;
        let outdated = record.svid.is_some() && old.revision != entry.revision;
        if old.selectors != entry.selectors {
            self.index.remove(key, &old.selectors);
            self.index.insert(key, &entry.selectors);
        }
        if outdated {
            self.set_stale(key, Some(Urgency::Outdated));
        }
        self.offer(key);
        self.require(key);
        // What is only inside the certificate is not told before the new SVID is there, which is told then.
        let served = old.selectors != entry.selectors
            || old.federates_with != entry.federates_with
            || old.hint != entry.hint;
        if served || !outdated {
            change.views.extend(self.groups.matched_by(&old.selectors).cloned());
            change.views.extend(self.groups.matched_by(&entry.selectors).cloned());
        }
    }

    fn remove(&mut self, id: &EntryId, change: &mut Change) {
        if let Some(entry) = self.store.remove(id) {
            change.log.push(Effect::EntryRemoved(entry));
            return;
        }
        let Some(key) = self.by_id.remove(id) else { return };
        self.set_stale(key, None);
        self.unschedule(key);
        self.prefetchable.remove(&key);
        self.tainted.retain(|k| *k != key);
        let Some(record) = self.records.remove(&key) else { return };
        self.svid_count -= usize::from(record.svid.is_some());
        self.index.remove(key, &record.entry.selectors);
        change.views.extend(self.groups.matched_by(&record.entry.selectors).cloned());
        change.log.push(Effect::EntryRemoved(record.entry));
    }

    /// Gives up the SVIDs that were not used for longest, until the limit holds or all others are pinned.
    fn evict(&mut self, change: &mut Change) {
        let excess = self.svid_count.saturating_sub(self.limits.max_svids);
        if excess == 0 {
            return;
        }
        let mut idle: Vec<(Timestamp, &EntryId, u32)> = self
            .records
            .iter()
            .filter(|(_, r)| r.svid.is_some() && r.pins == 0)
            .map(|(key, r)| (r.last_access, &r.entry.id, *key))
            .collect();
        idle.sort_unstable();
        let victims: Vec<u32> = idle.into_iter().take(excess).map(|(_, _, key)| key).collect();
        for key in victims {
            self.unschedule(key);
            self.set_stale(key, None);
            let Some(record) = self.records.get_mut(&key) else { continue };
            record.svid = None;
            record.last_access = Timestamp::EPOCH;
            self.svid_count -= 1;
            let entry = Arc::clone(&record.entry);
            self.offer(key);
            change.views.extend(self.groups.matched_by(&entry.selectors).cloned());
            change.log.push(Effect::SvidEvicted(entry));
        }
    }

    /// Makes a record prefetchable when it may be and has nothing.
    fn offer(&mut self, key: u32) {
        let Some(record) = self.records.get(&key) else { return };
        let wanted = record.entry.attributes.is_none_or(|a| !a.disable_x509_svid_prefetch);
        if wanted && record.svid.is_none() && record.stale.is_none() {
            self.prefetchable.insert(key);
        } else {
            self.prefetchable.remove(&key);
        }
    }

    /// Makes a pinned record without SVID stale.
    fn require(&mut self, key: u32) {
        if self.records.get(&key).is_some_and(|r| r.pins > 0 && r.svid.is_none()) {
            self.prefetchable.remove(&key);
            self.set_stale(key, Some(Urgency::Awaited));
        }
    }

    fn set_stale(&mut self, key: u32, urgency: Option<Urgency>) {
        let Some(record) = self.records.get_mut(&key) else { return };
        if let Some(old) = std::mem::replace(&mut record.stale, urgency) {
            self.stale.remove(&(old, key));
        }
        if let Some(urgency) = urgency {
            self.stale.insert((urgency, key));
        }
    }

    fn unschedule(&mut self, key: u32) {
        if let Some(record) = self.records.get(&key) {
            self.renewals.remove(&(record.renew_at, key));
        }
    }

    fn pins(&self, entry: &Selectors) -> u32 {
        let pinned = self.groups.matched_by(entry).filter(|set| self.groups.is_pinned(set)).count();
        u32::try_from(pinned).unwrap_or(u32::MAX)
    }

    fn matching_keys(&self, workload: &Selectors) -> Vec<u32> {
        self.index.subsets(workload).collect()
    }

    fn sorted_matches(&self, workload: &Selectors) -> Vec<&Record> {
        let mut records: Vec<&Record> =
            self.index.subsets(workload).filter_map(|key| self.records.get(&key)).collect();
        records.sort_unstable_by(|a, b| a.entry.id.cmp(&b.entry.id));
        records
    }
}

/// Effects while they are collected: each view is named once.
#[derive(Default)]
struct Change {
    views: std::collections::HashSet<Selectors>,
    log: Vec<Effect>,
}

impl Change {
    fn effects(self) -> Vec<Effect> {
        let mut effects = self.log;
        effects.extend(self.views.into_iter().map(Effect::ViewChanged));
        effects
    }
}

#[cfg(test)]
mod tests;
