//! The persistent index.

use std::collections::HashSet;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hash};
use std::sync::Arc;

use super::record::{Record, Rights};
use super::table::{Table, from_short, grouped, short};
use crate::model::EntryId;
use crate::spiffe::{Selector, Selectors, SpiffeId, TrustDomain};
use crate::time::Timestamp;

/// Deleted entries, and as many removed agents, whose last event is remembered, so that a late delta does not bring them
/// back. Writers race for microseconds, so a few thousand writes are far more than can be in flight.
const TOMBSTONES_MAX: usize = 4096;

type Records<P> = Table<Arc<Record<P>>>;

/// What is known of an agent for its view.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentRecord {
    /// Selectors of its attestation.
    pub selectors: Selectors,
    /// When its SVID expires.
    pub expires_at: Timestamp,
    /// Serial number of the SVID that it uses, decimal.
    pub serial_number: Box<str>,
    /// The write that the record comes from.
    pub event: u64,
}

/// All entries of one trust domain, and the agents that may see them. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Index<P> {
    trust_domain: TrustDomain,
    by_id: Records<P>,
    /// Grouped by parent.
    by_parent: Records<P>,
    /// Grouped by identity.
    by_identity: Records<P>,
    /// Each alias grouped under one of its selectors: it can only apply to an agent that has that one.
    aliases: Records<P>,
    /// Identities of entries that are parents of entries too. They are few, and a walk has to go on below these only.
    inner: Table<SpiffeId>,
    agents: Table<Arc<(SpiffeId, AgentRecord)>>,
    deleted: Tombstones<EntryId>,
    removed_agents: Tombstones<SpiffeId>,
    hasher: RandomState,
}

impl<P> Index<P> {
    /// An index without entries.
    pub fn new(trust_domain: TrustDomain) -> Self {
        Self {
            trust_domain,
            by_id: Table::new(),
            by_parent: Table::new(),
            by_identity: Table::new(),
            aliases: Table::new(),
            inner: Table::new(),
            agents: Table::new(),
            deleted: Tombstones::new(),
            removed_agents: Tombstones::new(),
            hasher: RandomState::new(),
        }
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.by_id.len() == 0
    }

    /// How many agents there are.
    pub fn agent_count(&self) -> usize {
        self.agents.len()
    }

    /// All agents, in no order.
    pub fn agents(&self) -> impl Iterator<Item = (&SpiffeId, &AgentRecord)> {
        self.agents.iter().map(|agent| (&agent.0, &agent.1))
    }

    /// All entries, in no order.
    pub fn records(&self) -> impl Iterator<Item = &Arc<Record<P>>> {
        self.by_id.iter()
    }

    /// All node aliases, in no order.
    pub fn aliases(&self) -> impl Iterator<Item = &Arc<Record<P>>> {
        self.aliases.iter()
    }

    /// One entry, whoever may see it.
    pub fn record(&self, id: &EntryId) -> Option<&Arc<Record<P>>> {
        self.by_id.find(self.hash(id), |record| record.id == *id)
    }

    /// Puts an entry in, unless a later write of it is already here. Entries of other trust domains are
    /// left out, since no agent of this one may see them. Returns whether the index changed.
    pub fn upsert(&mut self, mut record: Record<P>) -> bool {
        if !record.spiffe_id.is_member_of(&self.trust_domain)
            || !record.parent_id.is_member_of(&self.trust_domain)
            || self.last_event(&record.id).is_some_and(|event| event > record.event)
        {
            return false;
        }
        self.unlink(&record.id);
        let id = self.hash(&record.id);
        self.deleted.clear(id, &record.id);
        let shared = self.children(&record.parent_id).next().map(|sibling| sibling.parent_id.clone());
        record.parent_id = shared.unwrap_or(record.parent_id);
        let identity = self.hash(&record.spiffe_id);
        record.identity_hash = short(identity);
        let record = Arc::new(record);
        let parent = self.hash(&record.parent_id);
        self.by_parent.insert(grouped(parent, id), record.clone());
        self.by_identity.insert(grouped(identity, id), record.clone());
        if record.is_alias()
            && let Some(key) = self.alias_key(&record.alias_selectors)
        {
            self.aliases.insert(grouped(self.hash(key), id), record.clone());
        }
        self.by_id.insert(id, record.clone());
        self.note_inner(&record.parent_id);
        self.note_inner(&record.spiffe_id);
        true
    }

    /// Takes an entry out, unless a later write of it is here. Returns whether the index changed.
    pub fn remove(&mut self, id: &EntryId, event: u64) -> bool {
        if self.last_event(id).is_some_and(|last| last > event) {
            return false;
        }
        self.deleted.set(&self.hasher, id, event);
        self.unlink(id)
    }

    /// Puts an agent in, unless a later write of it is here. Returns whether it was put in.
    pub fn upsert_agent(&mut self, id: SpiffeId, agent: AgentRecord) -> bool {
        if self.last_agent_event(&id).is_some_and(|last| last > agent.event) {
            return false;
        }
        let hash = self.hash(&id);
        self.removed_agents.clear(hash, &id);
        self.agents.remove(hash, |known| known.0 == id);
        self.agents.insert(hash, Arc::new((id, agent)));
        true
    }

    /// Takes an agent out, known or not, unless a later write of it is here. Returns whether there is no later one.
    pub fn remove_agent(&mut self, id: &SpiffeId, event: u64) -> bool {
        if self.last_agent_event(id).is_some_and(|last| last > event) {
            return false;
        }
        self.removed_agents.set(&self.hasher, id, event);
        self.agents.remove(self.hash(id), |agent| agent.0 == *id);
        true
    }

    /// What is known of an agent.
    pub fn agent(&self, id: &SpiffeId) -> Option<&AgentRecord> {
        self.agents.find(self.hash(id), |agent| agent.0 == *id).map(|agent| &agent.1)
    }

    /// Calls `visit` with each entry that the agent may see, once each, in no order. An agent that is not
    /// known (yet) sees what stands below its own ID.
    pub fn visit_authorized<'a>(&'a self, agent: &SpiffeId, mut visit: impl FnMut(&'a Arc<Record<P>>)) {
        let mut walk = Walk { index: self, entered: HashSet::new() };
        walk.below(agent, &mut visit);
        for alias in self.aliases_of(agent) {
            walk.below(&alias.spiffe_id, &mut visit);
        }
    }

    /// The entry, if the agent may see it: climbs from the entry to the agent, so the cost depends on the
    /// depth of the tree and not on how many entries the agent has.
    pub fn authorized(&self, agent: &SpiffeId, id: &EntryId) -> Option<&Arc<Record<P>>> {
        let record = self.record(id)?;
        let mut roots = vec![agent];
        roots.extend(self.aliases_of(agent).map(|alias| &alias.spiffe_id));
        self.is_below(record, &roots).then_some(record)
    }

    /// What an identity may do, over all entries that give it something.
    pub fn rights(&self, id: &SpiffeId) -> Rights {
        let mut rights = Rights::default();
        for record in self.with_identity(id) {
            rights.admin |= record.rights.admin;
            rights.downstream |= record.rights.downstream;
        }
        rights
    }

    /// The entries that give an identity.
    pub fn with_identity<'a, 'k>(
        &'a self,
        id: &'k SpiffeId,
    ) -> impl Iterator<Item = &'a Arc<Record<P>>> + use<'a, 'k, P> {
        self.by_identity.group(self.hash(id)).filter(move |record| record.spiffe_id == *id)
    }

    fn children<'a, 'k>(
        &'a self,
        id: &'k SpiffeId,
    ) -> impl Iterator<Item = &'a Arc<Record<P>>> + use<'a, 'k, P> {
        self.by_parent.group(self.hash(id)).filter(move |record| record.parent_id == *id)
    }

    fn hash(&self, key: &impl Hash) -> u64 {
        self.hasher.hash_one(key)
    }

    fn aliases_of(&self, agent: &SpiffeId) -> impl Iterator<Item = &Arc<Record<P>>> {
        let selectors = self.agent(agent).map(|a| &a.selectors);
        selectors.into_iter().flat_map(move |has| {
            has.iter().flat_map(move |selector| {
                let below = self.aliases.group(self.hash(selector));
                below.filter(move |alias| alias.alias_selectors.is_subset_of(has))
            })
        })
    }

    /// Whether a chain of parents leads from the record to one of the roots. Parents are matched by
    /// identity, and several entries may share one, so this is a search and not a walk.
    fn is_below(&self, record: &Record<P>, roots: &[&SpiffeId]) -> bool {
        let mut seen: Vec<&SpiffeId> = Vec::new();
        let mut open = vec![&record.parent_id];
        while let Some(parent) = open.pop() {
            if roots.contains(&parent) {
                return true;
            }
            if seen.contains(&parent) {
                continue;
            }
            seen.push(parent);
            open.extend(self.with_identity(parent).map(|r| &r.parent_id));
        }
        false
    }

    fn last_event(&self, id: &EntryId) -> Option<u64> {
        self.record(id).map(|r| r.event).or_else(|| self.deleted.event(self.hash(id), id))
    }

    fn last_agent_event(&self, id: &SpiffeId) -> Option<u64> {
        self.agent(id).map(|a| a.event).or_else(|| self.removed_agents.event(self.hash(id), id))
    }

    /// The selector of an alias that the fewest other aliases are kept under, so that a selector which all
    /// agents share does not gather all aliases.
    fn alias_key<'s>(&self, selectors: &'s Selectors) -> Option<&'s Selector> {
        selectors.iter().min_by_key(|s| self.aliases.group(self.hash(s)).count())
    }

    fn unlink(&mut self, id: &EntryId) -> bool {
        let hash = self.hash(id);
        let is = |other: &Arc<Record<P>>| other.id == *id;
        let Some(record) = self.by_id.remove(hash, is) else { return false };
        self.by_parent.remove(grouped(self.hash(&record.parent_id), hash), is);
        self.by_identity.remove(grouped(self.hash(&record.spiffe_id), hash), is);
        for selector in &record.alias_selectors {
            self.aliases.remove(grouped(self.hash(selector), hash), is);
        }
        self.note_inner(&record.parent_id);
        self.note_inner(&record.spiffe_id);
        true
    }

    /// Keeps `inner` true for an identity after a change.
    fn note_inner(&mut self, id: &SpiffeId) {
        let is = self.children(id).next().is_some() && self.with_identity(id).next().is_some();
        let hash = self.hash(id);
        let known = self.inner.find(hash, |other| other == id).is_some();
        if is && !known {
            self.inner.insert(hash, id.clone());
        } else if known && !is {
            self.inner.remove(hash, |other| other == id);
        }
    }
}

/// The last events of what is gone.
#[derive(Clone, Debug)]
struct Tombstones<K>(Table<(K, u64)>);

impl<K: Clone + Eq + Hash> Tombstones<K> {
    fn new() -> Self {
        Self(Table::new())
    }

    fn event(&self, hash: u64, key: &K) -> Option<u64> {
        self.0.find(hash, |(other, _)| other == key).map(|(_, event)| *event)
    }

    fn clear(&mut self, hash: u64, key: &K) {
        self.0.remove(hash, |(other, _)| other == key);
    }

    fn set(&mut self, hasher: &RandomState, key: &K, event: u64) {
        if self.0.len() >= TOMBSTONES_MAX {
            self.drop_old(hasher);
        }
        let hash = hasher.hash_one(key);
        self.clear(hash, key);
        self.0.insert(hash, (key.clone(), event));
    }

    fn drop_old(&mut self, hasher: &RandomState) {
        let mut kept: Vec<(K, u64)> = self.0.iter().cloned().collect();
        kept.sort_unstable_by_key(|(_, event)| std::cmp::Reverse(*event));
        kept.truncate(TOMBSTONES_MAX / 2);
        self.0 = Table::new();
        for (key, event) in kept {
            self.0.insert(hasher.hash_one(&key), (key, event));
        }
    }
}

/// A descent that enters each identity once, so that cycles end.
struct Walk<'a, P> {
    index: &'a Index<P>,
    entered: HashSet<&'a SpiffeId>,
}

impl<'a, P> Walk<'a, P> {
    fn below(&mut self, root: &SpiffeId, visit: &mut impl FnMut(&'a Arc<Record<P>>)) {
        let mut open: Vec<&'a SpiffeId> = self.enter(root).into_iter().collect();
        while let Some(parent) = open.pop() {
            self.index.children(parent).for_each(|record| {
                visit(record);
                open.extend(self.enter_identity(record));
            });
        }
    }

    /// The record's identity as a parent. Nearly all are leaves, which the hash that the record has tells.
    fn enter_identity(&mut self, record: &Record<P>) -> Option<&'a SpiffeId> {
        if self.index.inner.len() == 0 {
            return None;
        }
        let hash = from_short(record.identity_hash);
        let inner = self.index.inner.group(hash).any(|id| *id == record.spiffe_id);
        if inner { self.enter(&record.spiffe_id) } else { None }
    }

    /// The identity as a parent, unless it has no children or was entered before. Only identities with
    /// children are remembered, so the list stays as short as the tree has inner nodes.
    fn enter(&mut self, id: &SpiffeId) -> Option<&'a SpiffeId> {
        let key = &self.index.children(id).next()?.parent_id;
        self.entered.insert(key).then_some(key)
    }
}
