//! Hearing what other servers on the same database wrote, by the events tables.
//!
//! Ids of events are given when a row is inserted and become visible when its transaction commits, so a lower id may
//! appear after a higher one. Skipped ids are therefore remembered and looked for until they appear or time out, as
//! the reference does (pkg/server/endpoints/eventTracker.go).

use std::collections::BTreeMap;
use std::time::Duration;

use spire_core::model::EntryId;
use spire_core::spiffe::SpiffeId;
use spire_core::time::Timestamp;
use spire_ports::datastore::{Event, EventId, Result};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::writes::put_node;
use super::{LiveEntries, put, take};

/// Events read at once.
const EVENTS_PAGE: u32 = 1000;

/// Objects read again at once.
const OBJECTS_BATCH: usize = 500;

/// Skipped ids that are remembered. Databases that give ids in steps leave gaps behind every row; the oldest are
/// forgotten, and a sweep is made instead.
const SKIPPED_MAX: usize = 10_000;

/// How many ids before the latest are looked at when following starts: more than transactions that run at once.
const RECENT: EventId = 500;

/// How many of them are waited for where none is visible.
const UNSEEN: EventId = 16;

/// A skipped id is looked for at each catch-up while it is younger than this, then once in this time.
const EAGER: Duration = Duration::from_secs(60);

/// Where we are in both events tables.
#[derive(Debug, Default)]
pub(super) struct Tracker {
    entries: Progress,
    nodes: Progress,
    sweep_due: bool,
}

#[derive(Debug, Default)]
struct Progress {
    last: EventId,
    /// Skipped ids, with when they were first missed and last looked for.
    skipped: BTreeMap<EventId, (Instant, Instant)>,
}

impl Tracker {
    /// Ids of entry events and of node events that were skipped and may still appear.
    pub(super) fn skipped(&self) -> (usize, usize) {
        (self.entries.skipped.len(), self.nodes.skipped.len())
    }
}

impl Progress {
    /// Starts after `last`. Of the ids shortly before it, of which `seen` are visible, the others may belong to
    /// transactions that are under way.
    fn after(last: EventId, seen: impl Iterator<Item = EventId>, now: Instant) -> Self {
        let mut progress = Self { last, ..Self::default() };
        let mut next = None;
        for id in seen.take_while(|id| *id <= last) {
            let gap = next.unwrap_or(id)..id;
            progress.skipped.extend(gap.map(|id| (id, (now, now))));
            next = Some(id + 1);
        }
        // With nothing visible they are mostly pruned ones.
        let rest = next.unwrap_or_else(|| last.saturating_sub(UNSEEN) + 1)..=last;
        progress.skipped.extend(rest.map(|id| (id, (now, now))));
        progress
    }

    /// Moves on to `event` and remembers what it jumped over. Returns whether some of it had to be forgotten.
    fn reach(&mut self, event: EventId, now: Instant) -> bool {
        let jumped = self.last.saturating_add(1)..event;
        self.last = self.last.max(event);
        let mut forgot = false;
        for id in jumped {
            if self.skipped.len() >= SKIPPED_MAX {
                forgot = true;
                break;
            }
            self.skipped.insert(id, (now, now));
        }
        forgot
    }

    /// Skipped ids that are to be looked for now; those that timed out are forgotten.
    fn due(&mut self, now: Instant, timeout: Duration) -> Vec<EventId> {
        self.skipped.retain(|_, (missed, _)| now.duration_since(*missed) < timeout);
        let mut due = Vec::new();
        for (id, (missed, looked)) in &mut self.skipped {
            if now.duration_since(*missed) < EAGER || now.duration_since(*looked) >= EAGER {
                *looked = now;
                due.push(*id);
            }
        }
        due
    }
}

impl LiveEntries {
    /// Catches up at each interval, when poked and when the database hints at changes, and sweeps at the longer one.
    pub(super) async fn follow(&self, stop: &CancellationToken) {
        let mut catch_up = tokio::time::interval(self.intervals.catch_up);
        let mut sweep = tokio::time::interval(self.intervals.sweep);
        catch_up.set_missed_tick_behavior(MissedTickBehavior::Delay);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        sweep.reset();
        loop {
            let mut full = false;
            tokio::select! {
                _ = catch_up.tick() => {}
                () = self.poke.notified() => {}
                () = self.store.changed_elsewhere() => {}
                _ = sweep.tick() => full = true,
                () = stop.cancelled() => {
                    tracing::debug!(subsystem_name = "endpoints", "Stopping in-memory entry cache hydrator");
                    return;
                }
            }
            if let Err(error) = self.catch_up().await {
                tracing::error!(error = %error, "Failed to update entry cache");
            }
            self.emit_sizes().await;
            full |= std::mem::take(&mut self.tracker.lock().await.sweep_due);
            if full && let Err(error) = self.sweep().await {
                tracing::error!(error = %error, "Failed to full refresh entry cache");
                self.tracker.lock().await.sweep_due = true;
            }
        }
    }

    /// Notes where both events tables stand, before everything is read.
    pub(super) async fn start_following(&self, entry_event: EventId, node_event: EventId) -> Result<()> {
        let entries = self.store.entry_events(entry_event.saturating_sub(RECENT), EVENTS_PAGE).await?;
        let nodes = self.store.node_events(node_event.saturating_sub(RECENT), EVENTS_PAGE).await?;
        let now = Instant::now();
        let mut tracker = self.tracker.lock().await;
        tracker.entries = Progress::after(entry_event, entries.iter().map(|event| event.id), now);
        tracker.nodes = Progress::after(node_event, nodes.iter().map(|event| event.id), now);
        Ok(())
    }

    /// Up to which entry and node event all are known to be visible, where the latest are these. What is read now is not
    /// older than that; it may be older than a later one whose transaction is under way.
    pub(super) async fn settled(&self, entry_event: EventId, node_event: EventId) -> (EventId, EventId) {
        let tracker = self.tracker.lock().await;
        let settled = |progress: &Progress, latest: EventId| {
            let first = progress.skipped.keys().next();
            first.map_or(progress.last, |id| id.saturating_sub(1)).min(latest)
        };
        (settled(&tracker.entries, entry_event), settled(&tracker.nodes, node_event))
    }

    /// Takes in what the events tables tell that the view does not know.
    ///
    /// # Errors
    /// The datastore's; the events are read again next time.
    pub async fn catch_up(&self) -> Result<()> {
        let mut tracker = self.tracker.lock().await;
        self.catch_up_entries(&mut tracker).await?;
        self.catch_up_nodes(&mut tracker).await
    }

    async fn catch_up_entries(&self, tracker: &mut Tracker) -> Result<()> {
        let now = Instant::now();
        let mut due = tracker.entries.due(now, self.intervals.event_timeout);
        // Our own writes need no reading.
        due.retain(|id| {
            let own = self.writer.lock().own_entry_events.remove(id);
            if own {
                tracker.entries.skipped.remove(id);
            }
            !own
        });
        let late = if due.is_empty() { Vec::new() } else { self.store.entry_events_among(&due).await? };
        self.take_in_entries(&late).await?;
        for event in late {
            tracker.entries.skipped.remove(&event.id);
        }
        loop {
            let page = self.store.entry_events(tracker.entries.last, EVENTS_PAGE).await?;
            self.take_in_entries(&page).await?;
            for event in &page {
                tracker.sweep_due |= tracker.entries.reach(event.id, now);
            }
            if page.len() < EVENTS_PAGE as usize {
                return Ok(());
            }
        }
    }

    async fn catch_up_nodes(&self, tracker: &mut Tracker) -> Result<()> {
        let now = Instant::now();
        let mut due = tracker.nodes.due(now, self.intervals.event_timeout);
        due.retain(|id| {
            let own = self.writer.lock().own_node_events.remove(id);
            if own {
                tracker.nodes.skipped.remove(id);
            }
            !own
        });
        let late = if due.is_empty() { Vec::new() } else { self.store.node_events_among(&due).await? };
        self.take_in_nodes(&late).await?;
        for event in late {
            tracker.nodes.skipped.remove(&event.id);
        }
        loop {
            let page = self.store.node_events(tracker.nodes.last, EVENTS_PAGE).await?;
            self.take_in_nodes(&page).await?;
            for event in &page {
                tracker.sweep_due |= tracker.nodes.reach(event.id, now);
            }
            if page.len() < EVENTS_PAGE as usize {
                return Ok(());
            }
        }
    }

    async fn take_in_entries(&self, events: &[Event<EntryId>]) -> Result<()> {
        let mut newest: BTreeMap<EntryId, EventId> = BTreeMap::new();
        {
            let mut writer = self.writer.lock();
            for event in events.iter().filter(|e| !writer.own_entry_events.contains(&e.id)) {
                let known = newest.entry(event.key.clone()).or_default();
                *known = event.id.max(*known);
            }
            for event in events {
                writer.own_entry_events.remove(&event.id);
            }
        }
        let changed: Vec<(EntryId, EventId)> = newest.into_iter().collect();
        for batch in changed.chunks(OBJECTS_BATCH) {
            let ids: Vec<EntryId> = batch.iter().map(|(id, _)| id.clone()).collect();
            let entries = self.store.entries_fetch(&ids).await?;
            self.apply(|next, _, changes| {
                for (id, event) in batch {
                    match entries.iter().find(|entry| entry.id == *id) {
                        Some(entry) => put(next, changes, entry, *event),
                        None => take(next, changes, id, *event),
                    }
                }
            });
        }
        Ok(())
    }

    async fn take_in_nodes(&self, events: &[Event<SpiffeId>]) -> Result<()> {
        let mut newest: BTreeMap<SpiffeId, EventId> = BTreeMap::new();
        {
            let mut writer = self.writer.lock();
            for event in events.iter().filter(|e| !writer.own_node_events.contains(&e.id)) {
                let known = newest.entry(event.key.clone()).or_default();
                *known = event.id.max(*known);
            }
            for event in events {
                writer.own_node_events.remove(&event.id);
            }
        }
        let changed: Vec<(SpiffeId, EventId)> = newest.into_iter().collect();
        for batch in changed.chunks(OBJECTS_BATCH) {
            let ids: Vec<SpiffeId> = batch.iter().map(|(id, _)| id.clone()).collect();
            let nodes = self.store.nodes_fetch(&ids).await?;
            self.apply(|next, _, changes| {
                for (id, event) in batch {
                    match nodes.iter().find(|node| node.spiffe_id == *id) {
                        Some(node) => put_node(next, changes, node, *event),
                        None => super::load::remove_agent(next, changes, id, *event),
                    }
                }
            });
        }
        Ok(())
    }

    /// Removes old events twice in the time that they are kept.
    pub(super) async fn prune_events(&self, stop: &CancellationToken) {
        let keep = self.intervals.prune_events_older_than;
        loop {
            tokio::select! {
                () = tokio::time::sleep(keep / 2) => {}
                () = stop.cancelled() => {
                    tracing::debug!(subsystem_name = "endpoints", "Stopping event pruner");
                    return;
                }
            }
            let before: Timestamp = self.clock.now() - keep;
            if let Err(error) = self.store.events_prune(before).await {
                tracing::error!(error = %error, "Failed to prune events");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skipped_ids_are_looked_for_until_they_time_out() {
        let start = Instant::now();
        let timeout = Duration::from_secs(900);
        let mut progress = Progress { last: 10, ..Progress::default() };
        assert!(!progress.reach(14, start));
        assert_eq!(progress.last, 14);
        assert_eq!(progress.due(start + Duration::from_secs(5), timeout), [11, 12, 13]);
        progress.skipped.remove(&12);
        assert_eq!(
            progress.due(start + Duration::from_secs(61), timeout),
            [0; 0],
            "looked for 56 seconds ago"
        );
        assert_eq!(progress.due(start + Duration::from_secs(66), timeout), [11, 13]);
        assert_eq!(progress.due(start + Duration::from_secs(901), timeout), [0; 0]);
        assert!(progress.skipped.is_empty());
    }

    #[test]
    fn what_is_under_way_at_the_start_is_waited_for() {
        let now = Instant::now();
        let skipped = |last, seen: &[EventId]| {
            let progress = Progress::after(last, seen.iter().copied(), now);
            assert_eq!(progress.last, last);
            progress.skipped.into_keys().collect::<Vec<_>>()
        };
        assert_eq!(skipped(0, &[]), [0; 0]);
        assert_eq!(skipped(7, &[3, 4, 6, 7, 9]), [5], "what is pruned was before, and 9 comes by itself");
        assert_eq!(skipped(7, &[4, 5]), [6, 7]);
        assert_eq!(skipped(3, &[]), [1, 2, 3]);
        assert_eq!(skipped(1000, &[]).len(), 16);
    }

    #[test]
    fn a_wide_gap_is_bounded() {
        let mut progress = Progress::default();
        assert!(progress.reach(u64::MAX, Instant::now()), "asks for a sweep instead");
        assert_eq!(progress.skipped.len(), SKIPPED_MAX);
    }
}
