//! Waking the streams of the agents that a change concerns.
//!
//! A write marks who stands above the changed entry (a climb of a few steps) and nudges one task, which delivers the
//! marks at once and then rests for [`REST`]: so a single change arrives immediately, and a hundred changes a second
//! cost fifty rounds at most however many streams are open. Within a round each marked agent is found by name; only
//! changed aliases make the round look at every agent with a stream, once for all of them.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use spire_core::spiffe::{Selectors, SpiffeId};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::View;

/// Between two rounds of delivery: short beside a sync, long beside a round.
const REST: Duration = Duration::from_millis(20);

/// Marks of one kind in one round; with more of them, everybody is woken, which is no worse.
const MARKS_MAX: usize = 10_000;

/// Aliases of one round, each of which is compared with every agent that has a stream.
const ALIASES_MAX: usize = 64;

/// Open streams of one agent: two on each of the connections that one identity may have. Each may keep a page of entries
/// that the agent does not read.
const STREAMS_PER_AGENT_MAX: usize = 128;

const ENTRIES: u8 = 1;
const BUNDLES: u8 = 2;
const ENDED: u8 = 4;

/// Who stands above a changed entry.
#[derive(Debug, Default)]
pub(super) struct Marks {
    /// Agents by name.
    pub(super) agents: Vec<SpiffeId>,
    /// Selectors of aliases: agents that have all of one.
    pub(super) aliases: Vec<Selectors>,
}

/// The streams of agents, and what they have to hear.
#[derive(Debug)]
pub struct Changes {
    streams: Mutex<HashMap<SpiffeId, Vec<Arc<Shared>>>>,
    marked: Mutex<Marked>,
    nudge: Notify,
    sequence: AtomicU64,
    bundles: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct Marked {
    agents: HashSet<SpiffeId>,
    aliases: HashSet<Selectors>,
    everybody: u8,
}

#[derive(Debug, Default)]
struct Shared {
    flags: AtomicU8,
    wake: Notify,
}

impl Shared {
    fn raise(&self, flags: u8) {
        self.flags.fetch_or(flags, Ordering::AcqRel);
        self.wake.notify_one();
    }
}

impl Default for Changes {
    /// The sequence starts at a random number: an agent that comes from another server must not find its own.
    fn default() -> Self {
        let random = uuid::Uuid::new_v4().as_u64_pair().1 >> 2;
        Self {
            streams: Mutex::default(),
            marked: Mutex::default(),
            nudge: Notify::new(),
            sequence: AtomicU64::new(random),
            bundles: watch::Sender::new(()),
        }
    }
}

impl Changes {
    /// Registers an open stream of an agent, unless it has too many; dropping the result takes it out.
    pub fn open(self: &Arc<Self>, agent: &SpiffeId) -> Option<AgentStream> {
        let shared = Arc::new(Shared::default());
        let mut streams = self.streams.lock();
        let open = streams.entry(agent.clone()).or_default();
        if open.len() >= STREAMS_PER_AGENT_MAX {
            return None;
        }
        open.push(shared.clone());
        Some(AgentStream { agent: agent.clone(), shared, changes: self.clone() })
    }

    /// The number of the last change that was delivered.
    pub fn sequence(&self) -> u64 {
        self.sequence.load(Ordering::Acquire)
    }

    /// How many streams are open.
    pub fn stream_count(&self) -> usize {
        self.streams.lock().values().map(Vec::len).sum()
    }

    /// Some bundle that agents may need changed.
    pub fn bundle_changed(&self) {
        self.marked.lock().everybody |= BUNDLES;
        self.nudge();
        self.bundles.send_replace(());
    }

    /// Wakes at each change of a bundle that was made through this server.
    pub fn bundles(&self) -> watch::Receiver<()> {
        self.bundles.subscribe()
    }

    /// Ends the streams of an agent that may no longer have any: it was banned or evicted.
    pub fn end(&self, agent: &SpiffeId) {
        if let Some(streams) = self.streams.lock().get(agent) {
            streams.iter().for_each(|s| s.raise(ENDED));
        }
    }

    pub(super) fn mark(&self, marks: Marks) {
        if marks.agents.is_empty() && marks.aliases.is_empty() {
            return;
        }
        let mut marked = self.marked.lock();
        marked.agents.extend(marks.agents);
        marked.aliases.extend(marks.aliases);
        if marked.agents.len() > MARKS_MAX || marked.aliases.len() > ALIASES_MAX {
            marked.agents.clear();
            marked.aliases.clear();
            marked.everybody |= ENTRIES;
        }
    }

    pub(super) fn nudge(&self) {
        self.nudge.notify_one();
    }

    /// Delivers marks until cancelled.
    pub(super) async fn deliver(&self, view: impl Fn() -> Arc<View>, stop: &CancellationToken) {
        loop {
            tokio::select! {
                () = self.nudge.notified() => {}
                () = stop.cancelled() => return,
            }
            self.round(&view());
            tokio::select! {
                () = tokio::time::sleep(REST) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// One round: wakes whom the marks name.
    pub(super) fn round(&self, view: &View) {
        let marked = std::mem::take(&mut *self.marked.lock());
        if marked.everybody == 0 && marked.agents.is_empty() && marked.aliases.is_empty() {
            return;
        }
        self.sequence.fetch_add(1, Ordering::AcqRel);
        let streams = self.streams.lock();
        if marked.everybody != 0 {
            streams.values().flatten().for_each(|s| s.raise(marked.everybody));
        }
        for agent in &marked.agents {
            streams.get(agent).into_iter().flatten().for_each(|s| s.raise(ENTRIES));
        }
        if marked.aliases.is_empty() {
            return;
        }
        for (agent, open) in streams.iter().filter(|(agent, _)| !marked.agents.contains(agent)) {
            let concerned = view.agent(agent).is_some_and(|known| {
                marked.aliases.iter().any(|wanted| wanted.is_subset_of(&known.selectors))
            });
            if concerned {
                open.iter().for_each(|s| s.raise(ENTRIES));
            }
        }
    }
}

/// What a stream was woken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// Something that the agent may see changed.
    Changed {
        /// An entry.
        entries: bool,
        /// A bundle.
        bundles: bool,
        /// The number of the newest change.
        sequence: u64,
    },
    /// The agent was banned or evicted.
    Ended,
}

/// One open stream of an agent.
#[derive(Debug)]
pub struct AgentStream {
    agent: SpiffeId,
    shared: Arc<Shared>,
    changes: Arc<Changes>,
}

impl AgentStream {
    /// Waits for a change that concerns the agent, or for the end. Several changes come as one. Cancel safe.
    pub async fn woken(&self) -> Wake {
        loop {
            if let Some(wake) = self.pending() {
                return wake;
            }
            self.shared.wake.notified().await;
        }
    }

    /// Waits until the agent may have no streams any more, and hears of nothing else. Cancel safe.
    pub async fn ended(&self) {
        while !self.has_ended() {
            self.shared.wake.notified().await;
        }
    }

    /// Whether the agent may have no streams any more.
    pub fn has_ended(&self) -> bool {
        self.shared.flags.load(Ordering::Acquire) & ENDED != 0
    }

    fn pending(&self) -> Option<Wake> {
        let sequence = self.changes.sequence();
        let flags = self.shared.flags.fetch_and(ENDED, Ordering::AcqRel);
        if flags & ENDED != 0 {
            return Some(Wake::Ended);
        }
        (flags != 0).then_some(Wake::Changed {
            entries: flags & ENTRIES != 0,
            bundles: flags & BUNDLES != 0,
            sequence,
        })
    }
}

impl Drop for AgentStream {
    fn drop(&mut self) {
        let mut streams = self.changes.streams.lock();
        let Some(open) = streams.get_mut(&self.agent) else { return };
        open.retain(|s| !Arc::ptr_eq(s, &self.shared));
        if open.is_empty() {
            streams.remove(&self.agent);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_of_one_agent_are_bounded() {
        let changes = Arc::<Changes>::default();
        let [a, b] = ["a", "b"].map(|name| SpiffeId::parse(&format!("spiffe://example.org/{name}")).unwrap());
        let mut open: Vec<_> = (0..STREAMS_PER_AGENT_MAX).map(|_| changes.open(&a).unwrap()).collect();
        assert!(changes.open(&a).is_none());
        assert!(changes.open(&b).is_some());
        open.pop();
        assert!(changes.open(&a).is_some());
    }
}
