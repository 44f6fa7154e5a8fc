//! Reading everything: at the start, and slowly now and then to compare.

use std::collections::HashSet;

use spire_core::entries::{AgentRecord, Record};
use spire_core::model::{EntryFilter, EntryId, Node, NodeFilter, Paging};
use spire_core::spiffe::SpiffeId;
use spire_ports::datastore::{Consistency, EventId, Result};

use super::{LiveEntries, Payload, View, put, take};

/// Rows read at once: a page of entries is about a megabyte.
const PAGE: u32 = 2000;

impl LiveEntries {
    /// Reads everything into the view, and starts following events from before the first row was read: a write that
    /// comes meanwhile is read again.
    pub(super) async fn load_all(&self) -> Result<()> {
        let measured = self.measure_reload();
        let loaded = async {
            let (entry_event, node_event) = self.store.latest_events().await?;
            self.start_following(entry_event, node_event).await?;
            let (entry_event, node_event) = self.settled(entry_event, node_event).await;
            self.fill(entry_event, node_event).await
        };
        let swept = loaded.await;
        measured.done_with(&swept);
        self.emit_sizes().await;
        swept
    }

    /// Compares the view with everything that is stored, and sets right what differs. Returns the error of the
    /// datastore; what was compared until then stays.
    ///
    /// # Errors
    /// The datastore's.
    pub async fn sweep(&self) -> Result<()> {
        let measured = self.measure_reload();
        let swept = async {
            // What is known to be settled reaches as far as events were heard.
            self.catch_up().await?;
            let (entry_event, node_event) = self.store.latest_events().await?;
            let (entry_event, node_event) = self.settled(entry_event, node_event).await;
            self.sweep_entries(entry_event).await?;
            self.sweep_nodes(node_event).await
        };
        let swept = swept.await;
        measured.done_with(&swept);
        swept
    }

    /// Makes the first view. Nobody sees it before it is whole, so it is built in place: were each page published, the
    /// tables that it shares with the one before would be copied again and again, half of the cost of a million entries.
    async fn fill(&self, entry_event: EventId, node_event: EventId) -> Result<()> {
        let mut view = View::clone(&self.view());
        let filter = EntryFilter::default();
        let mut paging = Paging { token: String::new(), size: PAGE };
        loop {
            let page = self.store.entry_list(&filter, Some(&paging), consistency(entry_event)).await?;
            for entry in &page.items {
                view.upsert(Record::new(entry, entry_event, Payload::new(entry)));
            }
            if page.next.is_empty() {
                break;
            }
            paging.token = page.next;
        }
        let filter = NodeFilter { fetch_selectors: true, ..NodeFilter::default() };
        let mut paging = Paging { token: String::new(), size: PAGE };
        loop {
            let page = self.store.node_list(&filter, Some(&paging)).await?;
            for node in &page.items {
                super::writes::put_node(&mut view, &self.changes, node, node_event);
            }
            if page.next.is_empty() {
                break;
            }
            paging.token = page.next;
        }
        self.apply(|next, _, _| *next = view);
        Ok(())
    }

    /// Rows are taken as of `event`: whatever the view knows from a later write stays.
    async fn sweep_entries(&self, event: EventId) -> Result<()> {
        let filter = EntryFilter::default();
        let consistency = consistency(event);
        let mut stored: HashSet<EntryId> = HashSet::new();
        let mut paging = Paging { token: String::new(), size: PAGE };
        loop {
            let page = self.store.entry_list(&filter, Some(&paging), consistency).await?;
            stored.extend(page.items.iter().map(|entry| entry.id.clone()));
            let view = self.snapshot();
            let changed: Vec<_> = page
                .items
                .iter()
                .filter(|entry| {
                    view.record(&entry.id).is_none_or(|known| {
                        known.event <= event
                            && (known.revision != entry.revision
                                || known.spiffe_id != entry.spiffe_id
                                || known.created_at != entry.created_at
                                || known.payload != Payload::new(entry))
                    })
                })
                .collect();
            drop(view);
            if !changed.is_empty() {
                self.apply(|next, _, changes| {
                    changed.into_iter().for_each(|entry| put(next, changes, entry, event));
                });
            }
            if page.next.is_empty() {
                break;
            }
            paging.token = page.next;
        }
        let view = self.snapshot();
        let gone: Vec<EntryId> = view
            .records()
            .filter(|known| known.event <= event && !stored.contains(&known.id))
            .map(|known| known.id.clone())
            .collect();
        drop(view);
        if !gone.is_empty() {
            self.apply(|next, _, changes| gone.iter().for_each(|id| take(next, changes, id, event)));
        }
        Ok(())
    }

    async fn sweep_nodes(&self, event: EventId) -> Result<()> {
        let filter = NodeFilter { fetch_selectors: true, ..NodeFilter::default() };
        let mut stored: HashSet<SpiffeId> = HashSet::new();
        let mut paging = Paging { token: String::new(), size: PAGE };
        loop {
            let page = self.store.node_list(&filter, Some(&paging)).await?;
            let nodes: Vec<Node> = page.items;
            stored.extend(nodes.iter().map(|node| node.spiffe_id.clone()));
            if !nodes.is_empty() {
                self.apply(|next, _, changes| {
                    for node in &nodes {
                        super::writes::put_node(next, changes, node, event);
                    }
                });
            }
            if page.next.is_empty() {
                break;
            }
            paging.token = page.next;
        }
        self.apply(|next, _, changes| {
            let gone: Vec<SpiffeId> = next
                .agents()
                .filter(|(id, known)| known.event <= event && !stored.contains(id))
                .map(|(id, _)| id.clone())
                .collect();
            gone.iter().for_each(|id| remove_agent(next, changes, id, event));
        });
        Ok(())
    }
}

/// What a replica shows may not be older than what the view has.
fn consistency(event: EventId) -> Consistency {
    if event == 0 { Consistency::Current } else { Consistency::Seen(event) }
}

/// What the view keeps of a node.
pub(super) fn agent_record(node: &Node, event: EventId) -> AgentRecord {
    AgentRecord {
        selectors: node.selectors.clone(),
        expires_at: expiry(node),
        serial_number: node.serial_number.clone(),
        event,
    }
}

/// When the last SVID of an agent expires.
fn expiry(node: &Node) -> spire_core::time::Timestamp {
    node.new_expires_at.map_or(node.expires_at, |new| new.max(node.expires_at))
}

/// Whether two answers for an agent would differ.
pub(super) fn same_agent(known: Option<&AgentRecord>, node: &Node) -> bool {
    known.is_some_and(|known| known.selectors == node.selectors)
}

/// An agent that the store did not have any more as of `event`, unless it was attested again since.
pub(super) fn remove_agent(view: &mut View, changes: &super::Changes, id: &SpiffeId, event: EventId) {
    if view.remove_agent(id, event) {
        changes.end(id);
    }
}
