//! Writes that change the view: to the datastore first, then, with the events that they appended, to the view.

use spire_core::model::{Entry, EntryId, EntryMask, Node, NodeUpdate};
use spire_core::spiffe::{SpiffeId, TrustDomain};
use spire_core::time::Timestamp;
use spire_ports::datastore::{Creation, DeleteMode, EventId, Result, Written};

use super::load::{agent_record, remove_agent, same_agent};
use super::{Changes, LiveEntries, View, put, remember, take};

/// Entries pruned in one transaction.
const PRUNE_BATCH: u32 = 1000;

impl LiveEntries {
    /// Creates entries in one transaction; an outcome an item.
    ///
    /// # Errors
    /// The datastore's, where the whole transaction failed.
    pub async fn create(&self, entries: Vec<Entry>) -> Result<Vec<Result<Creation>>> {
        let outcomes = self.store.entries_create(entries).await?;
        let created = outcomes.iter().filter_map(|outcome| match outcome {
            Ok(Creation::Created(written)) => Some(written),
            _ => None,
        });
        self.put_all(created);
        Ok(outcomes)
    }

    /// Updates the masked fields of entries in one transaction; an outcome an item.
    ///
    /// # Errors
    /// The datastore's, where the whole transaction failed.
    pub async fn update(&self, updates: Vec<(Entry, EntryMask)>) -> Result<Vec<Result<Written<Entry>>>> {
        let outcomes = self.store.entries_update(updates).await?;
        self.put_all(outcomes.iter().filter_map(|outcome| outcome.as_ref().ok()));
        Ok(outcomes)
    }

    /// Deletes entries in one transaction; an outcome an item.
    ///
    /// # Errors
    /// The datastore's, where the whole transaction failed.
    pub async fn delete(&self, ids: &[EntryId]) -> Result<Vec<Result<Written<Entry>>>> {
        let outcomes = self.store.entries_delete(ids).await?;
        self.take_all(outcomes.iter().filter_map(|outcome| outcome.as_ref().ok()));
        Ok(outcomes)
    }

    /// Deletes entries that expired before the time, and logs each. Returns how many.
    ///
    /// # Errors
    /// The datastore's.
    pub async fn prune(&self, expired_before: Timestamp) -> Result<usize> {
        let mut pruned = 0;
        loop {
            let batch = self.store.entries_prune(expired_before, PRUNE_BATCH).await?;
            self.take_all(batch.iter());
            for entry in &batch {
                tracing::info!(
                    subsystem_name = "sql",
                    spiffe_id = %entry.value.spiffe_id,
                    parent_id = %entry.value.parent_id,
                    entry_id = %entry.value.id,
                    "Pruned an expired registration"
                );
            }
            pruned += batch.len();
            if batch.len() < PRUNE_BATCH as usize {
                return Ok(pruned);
            }
        }
    }

    /// Stores a node after its attestation.
    ///
    /// # Errors
    /// The datastore's.
    pub async fn attest_node(&self, node: &Node) -> Result<Node> {
        Ok(self.attested(self.store.node_attest(node).await?))
    }

    /// Stores a node that a join token admits, which is used up with that. `None` if there is no such token (any more).
    ///
    /// # Errors
    /// The datastore's.
    pub async fn attest_node_by_token(&self, node: &Node, token: &str) -> Result<Option<Node>> {
        let written = self.store.node_attest_by_token(node, token).await?;
        Ok(written.map(|written| self.attested(written)))
    }

    fn attested(&self, written: Written<Node>) -> Node {
        self.apply(|next, writer, changes| {
            remember(&mut writer.own_node_events, written.event);
            put_node(next, changes, &written.value, written.event);
        });
        written.value
    }

    /// Sets fields of a node. A ban ends its streams.
    ///
    /// # Errors
    /// The datastore's.
    pub async fn update_node(&self, id: &SpiffeId, update: &NodeUpdate) -> Result<Node> {
        let written = self.store.node_update(id, update).await?;
        let mut node = written.value;
        self.apply(|next, writer, changes| {
            remember(&mut writer.own_node_events, written.event);
            // The row comes without selectors, which an update never changes.
            if let Some(known) = next.agent(id) {
                node.selectors = known.selectors.clone();
            }
            if node.is_banned() || next.agent(id).is_some() {
                put_node(next, changes, &node, written.event);
            } else {
                // Known to the store but not to us: another server attested it, and its event will tell.
                writer.own_node_events.remove(&written.event);
            }
        });
        Ok(node)
    }

    /// Removes a node and ends its streams. What goes with it (the alias of a join token) is heard of by its event, at
    /// once.
    ///
    /// # Errors
    /// The datastore's.
    pub async fn evict_node(&self, id: &SpiffeId) -> Result<Node> {
        let written = self.store.node_delete(id).await?;
        self.apply(|next, writer, changes| {
            remember(&mut writer.own_node_events, written.event);
            remove_agent(next, changes, id, written.event);
        });
        self.look_now();
        Ok(written.value)
    }

    /// Removes nodes whose SVID expired before the time, `limit` (not 0) at most, and logs each. Returns how many.
    ///
    /// # Errors
    /// The datastore's.
    pub async fn prune_nodes(
        &self,
        expired_before: Timestamp,
        include_non_reattestable: bool,
        limit: u32,
    ) -> Result<usize> {
        let pruned = self.store.nodes_prune(expired_before, include_non_reattestable, limit).await?;
        self.apply(|next, writer, changes| {
            for written in &pruned {
                remember(&mut writer.own_node_events, written.event);
                remove_agent(next, changes, &written.value, written.event);
            }
        });
        for node in &pruned {
            tracing::info!(agent_id = %node.value, "Pruned an expired agent");
        }
        if !pruned.is_empty() {
            self.look_now();
        }
        Ok(pruned.len())
    }

    /// Removes a federated bundle. Entries that go or change with it are heard of by their events, at once.
    ///
    /// # Errors
    /// The datastore's.
    pub async fn delete_bundle(&self, trust_domain: &TrustDomain, mode: DeleteMode) -> Result<()> {
        self.store.bundle_delete(trust_domain, mode).await?;
        self.changes.bundle_changed();
        self.look_now();
        Ok(())
    }

    fn put_all<'a>(&self, written: impl Iterator<Item = &'a Written<Entry>>) {
        self.apply(|next, writer, changes| {
            for one in written {
                remember(&mut writer.own_entry_events, one.event);
                put(next, changes, &one.value, one.event);
            }
        });
    }

    fn take_all<'a>(&self, written: impl Iterator<Item = &'a Written<Entry>>) {
        self.apply(|next, writer, changes| {
            for one in written {
                remember(&mut writer.own_entry_events, one.event);
                take(next, changes, &one.value.id, one.event);
            }
        });
    }
}

/// Puts a node in as an agent, or takes it out if it is banned.
pub(super) fn put_node(view: &mut View, changes: &Changes, node: &Node, event: EventId) {
    if node.is_banned() {
        remove_agent(view, changes, &node.spiffe_id, event);
        return;
    }
    let same = same_agent(view.agent(&node.spiffe_id), node);
    if view.upsert_agent(node.spiffe_id.clone(), agent_record(node, event)) && !same {
        changes.mark(super::changes::Marks { agents: vec![node.spiffe_id.clone()], aliases: Vec::new() });
    }
}
