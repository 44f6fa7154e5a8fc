//! The live view of entries and agents, and every write that changes it.
//!
//! [`LiveEntries`] holds an [`Index`] behind an atomic pointer: readers take a snapshot and never lock. Writes go
//! through the methods here, which write to the datastore first and then tell the view of the rows and their events;
//! so the view changes with the write itself and not with a poll. What other servers on the same database wrote
//! arrives by the events tables (`catch_up.rs`), and a slow sweep compares everything (`load.rs`). A write that was
//! committed but whose caller went away before the view was told is healed by the same events.
//!
//! [`Changes`] wakes the streams of the agents that a change concerns.

mod catch_up;
mod changes;
mod load;
mod measure;
mod payload;
mod writes;

#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use parking_lot::Mutex;
use spire_core::entries::{Index, Record};
use spire_core::model::{Entry, EntryId};
use spire_core::spiffe::{SpiffeId, TrustDomain};
use spire_ports::datastore::{DataStore, EventId, Result};
use spire_ports::observe::{Metrics, NoMetrics};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

pub use changes::{AgentStream, Changes, Wake};
pub use payload::{Answer, Payload, SigningFields, entry_to_wire, is_agent_mask};
pub(crate) use payload::{
    Sink, id_to_wire, number_len, put_head, put_number, put_text, selectors_to_wire, text_len,
};

use crate::clock::Clock;
use catch_up::Tracker;

/// The index as the server keeps it.
pub type View = Index<Payload>;

/// One entry of the view.
pub type ViewRecord = Record<Payload>;

/// Events of our own writes that the events tables have not shown yet. A catch-up every few seconds takes them out, so
/// this many would be a day's writes of a server whose catch-up fails; beyond it their entries are just read again.
const OWN_EVENTS_MAX: usize = 200_000;

/// How the view keeps up with other servers (pkg/server/endpoints: defaults of endpoints.go).
#[derive(Clone, Copy, Debug)]
pub struct Intervals {
    /// Between two looks at the events tables: `cache_reload_interval`.
    pub catch_up: Duration,
    /// Between two comparisons of everything: `full_cache_reload_interval`.
    pub sweep: Duration,
    /// How long an event id that was skipped may still become visible: `event_timeout`.
    pub event_timeout: Duration,
    /// Events older than this are removed: `prune_events_older_than`.
    pub prune_events_older_than: Duration,
}

impl Default for Intervals {
    fn default() -> Self {
        Self {
            catch_up: Duration::from_secs(5),
            sweep: Duration::from_secs(24 * 3600),
            event_timeout: Duration::from_secs(15 * 60),
            prune_events_older_than: Duration::from_secs(12 * 3600),
        }
    }
}

/// The live view and the writes that change it.
pub struct LiveEntries {
    trust_domain: TrustDomain,
    store: Arc<dyn DataStore>,
    clock: Arc<dyn Clock>,
    intervals: Intervals,
    view: ArcSwap<View>,
    /// Held while a new view is made and published; never across an await.
    writer: Mutex<Writer>,
    /// Held by the one task that reads events.
    tracker: tokio::sync::Mutex<Tracker>,
    changes: Arc<Changes>,
    poke: Notify,
    metrics: Arc<dyn Metrics>,
}

#[derive(Default)]
struct Writer {
    own_entry_events: HashSet<EventId>,
    own_node_events: HashSet<EventId>,
}

impl LiveEntries {
    /// Loads everything that is stored.
    ///
    /// # Errors
    /// The datastore's.
    pub async fn load(
        trust_domain: TrustDomain,
        store: Arc<dyn DataStore>,
        clock: Arc<dyn Clock>,
        intervals: Intervals,
    ) -> Result<Arc<Self>> {
        Self::load_measured(trust_domain, store, clock, intervals, Arc::new(NoMetrics)).await
    }

    /// As [`LiveEntries::load`], with sizes and reloads told to `metrics`.
    ///
    /// # Errors
    /// The datastore's.
    pub async fn load_measured(
        trust_domain: TrustDomain,
        store: Arc<dyn DataStore>,
        clock: Arc<dyn Clock>,
        intervals: Intervals,
        metrics: Arc<dyn Metrics>,
    ) -> Result<Arc<Self>> {
        let live = Self {
            view: ArcSwap::from_pointee(Index::new(trust_domain.clone())),
            trust_domain,
            store,
            clock,
            intervals,
            writer: Mutex::default(),
            tracker: tokio::sync::Mutex::default(),
            changes: Arc::default(),
            poke: Notify::new(),
            metrics,
        };
        live.load_all().await?;
        Ok(Arc::new(live))
    }

    /// The view as of now. It does not change while it is held.
    pub fn view(&self) -> Guard<Arc<View>> {
        self.view.load()
    }

    /// The view as of now, to be kept for long or across awaits.
    pub fn snapshot(&self) -> Arc<View> {
        self.view.load_full()
    }

    /// The datastore, for reads and for writes that do not concern the view.
    pub fn store(&self) -> &Arc<dyn DataStore> {
        &self.store
    }

    /// The trust domain whose entries these are.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Who must hear of changes.
    pub fn changes(&self) -> &Arc<Changes> {
        &self.changes
    }

    /// Looks at the events tables now and not at the next interval: for writes that change entries as a consequence
    /// (a deleted bundle, an evicted agent).
    pub fn look_now(&self) {
        self.poke.notify_one();
    }

    /// Keeps the view current and wakes streams, until cancelled.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let changes = self.changes.clone();
        let deliver = changes.deliver(|| self.snapshot(), &stop);
        tokio::join!(deliver, self.follow(&stop), self.prune_events(&stop));
    }

    /// Makes the next view by `change`, publishes it and wakes whom it concerns.
    fn apply(&self, change: impl FnOnce(&mut View, &mut Writer, &Changes)) {
        let mut writer = self.writer.lock();
        let mut next = View::clone(&self.view.load());
        change(&mut next, &mut writer, &self.changes);
        self.view.store(Arc::new(next));
        drop(writer);
        self.changes.nudge();
    }
}

impl std::fmt::Debug for LiveEntries {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let view = self.view();
        f.debug_struct("LiveEntries")
            .field("trust_domain", &self.trust_domain)
            .field("entries", &view.len())
            .field("agents", &view.agent_count())
            .finish_non_exhaustive()
    }
}

/// Puts an entry in and marks the agents that see it, before or after.
fn put(view: &mut View, changes: &Changes, entry: &Entry, event: EventId) {
    let before = marks_above(view, &entry.id);
    if view.upsert(Record::new(entry, event, Payload::new(entry))) {
        changes.mark(before);
        changes.mark(marks_above(view, &entry.id));
    }
}

/// Takes an entry out and marks the agents that saw it.
fn take(view: &mut View, changes: &Changes, id: &EntryId, event: EventId) {
    let before = marks_above(view, id);
    if view.remove(id, event) {
        changes.mark(before);
    }
}

/// Who sees an entry: the agents that stand above it, by name or by an alias. Parents that are no agents are named
/// too, and found to have no streams.
fn marks_above(view: &View, id: &EntryId) -> changes::Marks {
    let mut marks = changes::Marks::default();
    let Some(record) = view.record(id) else { return marks };
    let mut seen: Vec<&SpiffeId> = Vec::new();
    let mut open = vec![record];
    while let Some(record) = open.pop() {
        if record.is_alias() {
            marks.aliases.push(record.alias_selectors.clone());
            continue;
        }
        if seen.contains(&&record.parent_id) {
            continue;
        }
        seen.push(&record.parent_id);
        marks.agents.push(record.parent_id.clone());
        open.extend(view.with_identity(&record.parent_id));
    }
    marks
}

fn remember(events: &mut HashSet<EventId>, event: EventId) {
    if events.len() < OWN_EVENTS_MAX {
        events.insert(event);
    }
}
