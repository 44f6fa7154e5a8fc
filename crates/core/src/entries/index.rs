//! The persistent index.

use std::sync::Arc;

use rpds::HashTrieMapSync;

use super::record::{Record, Rights};
use crate::model::EntryId;
use crate::spiffe::{Selector, Selectors, SpiffeId, TrustDomain};
use crate::time::Timestamp;

/// Deleted entries whose last event is remembered, so that a late delta does not bring them back. Writers
/// race for microseconds, so a few thousand writes are far more than can be in flight.
const TOMBSTONES_MAX: usize = 4096;

type Children<P> = HashTrieMapSync<EntryId, Arc<Record<P>>>;

/// What is known of an agent for its view.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentRecord {
    /// Selectors of its attestation.
    pub selectors: Selectors,
    /// When its SVID expires.
    pub expires_at: Timestamp,
    /// The write that the record comes from.
    pub event: u64,
}

/// All entries of one trust domain, and the agents that may see them. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Index<P> {
    trust_domain: TrustDomain,
    by_id: HashTrieMapSync<EntryId, Arc<Record<P>>>,
    by_parent: HashTrieMapSync<SpiffeId, Children<P>>,
    /// Each alias under one of its selectors: it can only apply to an agent that has that one.
    aliases: HashTrieMapSync<Selector, Children<P>>,
    /// Entries by the identity that they give; nearly always one.
    by_identity: HashTrieMapSync<SpiffeId, Vec<Arc<Record<P>>>>,
    agents: HashTrieMapSync<SpiffeId, AgentRecord>,
    tombstones: HashTrieMapSync<EntryId, u64>,
}

impl<P> Index<P> {
    /// An index without entries.
    pub fn new(trust_domain: TrustDomain) -> Self {
        Self {
            trust_domain,
            by_id: HashTrieMapSync::new_sync(),
            by_parent: HashTrieMapSync::new_sync(),
            aliases: HashTrieMapSync::new_sync(),
            by_identity: HashTrieMapSync::new_sync(),
            agents: HashTrieMapSync::new_sync(),
            tombstones: HashTrieMapSync::new_sync(),
        }
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.by_id.size()
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// How many agents there are.
    pub fn agent_count(&self) -> usize {
        self.agents.size()
    }

    /// All agents, in no order.
    pub fn agents(&self) -> impl Iterator<Item = (&SpiffeId, &AgentRecord)> {
        self.agents.iter()
    }

    /// All entries, in no order.
    pub fn records(&self) -> impl Iterator<Item = &Arc<Record<P>>> {
        self.by_id.values()
    }

    /// One entry, whoever may see it.
    pub fn record(&self, id: &EntryId) -> Option<&Arc<Record<P>>> {
        self.by_id.get(id)
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
        self.unlink(&record.id.clone());
        self.tombstones.remove_mut(&record.id);
        if let Some((shared, _)) = self.by_parent.get_key_value(&record.parent_id) {
            record.parent_id = shared.clone();
        }
        let record = Arc::new(record);
        insert_child(&mut self.by_parent, &record.parent_id, &record);
        if record.is_alias()
            && let Some(key) = self.alias_key(&record.alias_selectors).cloned()
        {
            insert_child(&mut self.aliases, &key, &record);
        }
        if let Some(same) = self.by_identity.get_mut(&record.spiffe_id) {
            same.push(record.clone());
        } else {
            self.by_identity.insert_mut(record.spiffe_id.clone(), vec![record.clone()]);
        }
        self.by_id.insert_mut(record.id.clone(), record);
        true
    }

    /// Takes an entry out, unless a later write of it is here. Returns whether the index changed.
    pub fn remove(&mut self, id: &EntryId, event: u64) -> bool {
        if self.last_event(id).is_some_and(|last| last > event) {
            return false;
        }
        if self.tombstones.size() >= TOMBSTONES_MAX {
            self.drop_old_tombstones();
        }
        self.tombstones.insert_mut(id.clone(), event);
        self.unlink(id)
    }

    /// Puts an agent in, unless a later write of it is here.
    pub fn upsert_agent(&mut self, id: SpiffeId, agent: AgentRecord) -> bool {
        if self.agents.get(&id).is_some_and(|known| known.event > agent.event) {
            return false;
        }
        self.agents.insert_mut(id, agent);
        true
    }

    /// Takes an agent out.
    pub fn remove_agent(&mut self, id: &SpiffeId) -> bool {
        self.agents.remove_mut(id)
    }

    /// What is known of an agent.
    pub fn agent(&self, id: &SpiffeId) -> Option<&AgentRecord> {
        self.agents.get(id)
    }

    /// Calls `visit` with each entry that the agent may see, once each, in no order. An agent that is not
    /// known (yet) sees what stands below its own ID.
    pub fn visit_authorized<'a>(&'a self, agent: &SpiffeId, mut visit: impl FnMut(&'a Arc<Record<P>>)) {
        let mut walk = Walk { index: self, entered: Vec::new() };
        walk.below(agent, &mut visit);
        for alias in self.aliases_of(agent) {
            walk.below(&alias.spiffe_id, &mut visit);
        }
    }

    /// The entry, if the agent may see it: climbs from the entry to the agent, so the cost depends on the
    /// depth of the tree and not on how many entries the agent has.
    pub fn authorized(&self, agent: &SpiffeId, id: &EntryId) -> Option<&Arc<Record<P>>> {
        let record = self.by_id.get(id)?;
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
    pub fn with_identity(&self, id: &SpiffeId) -> impl Iterator<Item = &Arc<Record<P>>> {
        self.by_identity.get(id).into_iter().flatten()
    }

    fn aliases_of(&self, agent: &SpiffeId) -> impl Iterator<Item = &Arc<Record<P>>> {
        let selectors = self.agents.get(agent).map(|a| &a.selectors);
        selectors.into_iter().flat_map(move |has| {
            has.iter()
                .filter_map(|selector| self.aliases.get(selector))
                .flat_map(HashTrieMapSync::values)
                .filter(move |alias| alias.alias_selectors.is_subset_of(has))
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
        self.by_id.get(id).map(|r| r.event).or_else(|| self.tombstones.get(id).copied())
    }

    /// The selector of an alias that the fewest other aliases are kept under, so that a selector which all
    /// agents share does not gather all aliases.
    fn alias_key<'s>(&self, selectors: &'s Selectors) -> Option<&'s Selector> {
        selectors.iter().min_by_key(|s| self.aliases.get(*s).map_or(0, HashTrieMapSync::size))
    }

    fn unlink(&mut self, id: &EntryId) -> bool {
        let Some(record) = self.by_id.get(id).cloned() else { return false };
        self.by_id.remove_mut(id);
        remove_child(&mut self.by_parent, &record.parent_id, id);
        for selector in &record.alias_selectors {
            remove_child(&mut self.aliases, selector, id);
        }
        if let Some(same) = self.by_identity.get_mut(&record.spiffe_id) {
            same.retain(|r| r.id != *id);
            if same.is_empty() {
                self.by_identity.remove_mut(&record.spiffe_id);
            }
        }
        true
    }

    fn drop_old_tombstones(&mut self) {
        let mut events: Vec<u64> = self.tombstones.values().copied().collect();
        events.sort_unstable();
        let middle = events.get(events.len() / 2).copied().unwrap_or(0);
        let old: Vec<EntryId> =
            self.tombstones.iter().filter(|(_, event)| **event <= middle).map(|(id, _)| id.clone()).collect();
        for id in &old {
            self.tombstones.remove_mut(id);
        }
    }
}

/// A descent that enters each identity once, so that cycles end.
struct Walk<'a, P> {
    index: &'a Index<P>,
    entered: Vec<&'a SpiffeId>,
}

impl<'a, P> Walk<'a, P> {
    fn below(&mut self, root: &SpiffeId, visit: &mut impl FnMut(&'a Arc<Record<P>>)) {
        let mut open: Vec<&'a SpiffeId> = self.enter(root).into_iter().collect();
        while let Some(parent) = open.pop() {
            for record in self.index.by_parent.get(parent).into_iter().flat_map(HashTrieMapSync::values) {
                visit(record);
                open.extend(self.enter(&record.spiffe_id));
            }
        }
    }

    /// The identity as a parent, unless it has no children or was entered before. Only identities with
    /// children are remembered, so the list stays as short as the tree has inner nodes.
    fn enter(&mut self, id: &SpiffeId) -> Option<&'a SpiffeId> {
        let (key, _) = self.index.by_parent.get_key_value(id)?;
        if self.entered.contains(&key) {
            return None;
        }
        self.entered.push(key);
        Some(key)
    }
}

fn insert_child<K, P>(map: &mut HashTrieMapSync<K, Children<P>>, key: &K, record: &Arc<Record<P>>)
where
    K: Clone + Eq + std::hash::Hash,
{
    if let Some(children) = map.get_mut(key) {
        children.insert_mut(record.id.clone(), record.clone());
    } else {
        let mut children = HashTrieMapSync::new_sync();
        children.insert_mut(record.id.clone(), record.clone());
        map.insert_mut(key.clone(), children);
    }
}

fn remove_child<K, P>(map: &mut HashTrieMapSync<K, Children<P>>, key: &K, id: &EntryId)
where
    K: Clone + Eq + std::hash::Hash,
{
    let Some(children) = map.get_mut(key) else { return };
    children.remove_mut(id);
    if children.is_empty() {
        map.remove_mut(key);
    }
}
