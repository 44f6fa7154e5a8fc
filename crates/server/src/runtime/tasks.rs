//! Background work beside the API. Each task is idempotent and takes no input: it looks at what there is and
//! does what is due.

use std::sync::Arc;
use std::time::Duration;

use spire_core::spiffe::Bundle;
use spire_ports::datastore::{self, DataStore};
use spire_ports::plugins::{BundlePublisher, Notifier};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};
use tokio_util::sync::CancellationToken;

use super::RunError;
use crate::ca::{self, Authorities, ServerSvid};
use crate::clock::Clock;
use crate::config::PruneAttestedNodes;
use crate::entries::LiveEntries;

/// How often expired entries are removed (pkg/server/registration: defaultEntryPruningCycle).
const PRUNE_ENTRIES: Duration = Duration::from_secs(5 * 60);
/// Entries that one transaction removes; what is left over comes right after.
const PRUNE_ENTRIES_BATCH: u32 = 1000;
/// How often expired nodes are removed (pkg/server/node).
const PRUNE_NODES: Duration = Duration::from_secs(3600);
/// How often publishers are called even if nothing changed (pkg/server/bundle/pubmanager).
const PUBLISH: Duration = Duration::from_secs(30);

/// What the tasks work on.
pub(super) struct Background {
    pub(super) entries: Arc<LiveEntries>,
    pub(super) store: Arc<dyn DataStore>,
    pub(super) authorities: Arc<Authorities>,
    pub(super) svid: Arc<ServerSvid>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) notifiers: Vec<Arc<dyn Notifier>>,
    pub(super) publishers: Vec<Arc<dyn BundlePublisher>>,
    pub(super) prune_nodes: Option<PruneAttestedNodes>,
}

impl Background {
    /// Tells the notifiers that the bundle is loaded; one that fails stops the start.
    pub(super) async fn announce_bundle(&self) -> Result<(), RunError> {
        let Some(bundle) = self.authorities.bundle_changes().current() else { return Ok(()) };
        for notifier in &self.notifiers {
            notifier.bundle_loaded(&bundle).await.map_err(|error| RunError::Notifier {
                name: notifier.name().to_owned(),
                reason: error.to_string(),
            })?;
        }
        Ok(())
    }

    /// Works until cancelled.
    pub(super) async fn run(self, stop: CancellationToken) {
        let this = Arc::new(self);
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(ca::run(this.authorities.clone(), this.svid.clone(), stop.clone()));
        tasks.spawn(this.entries.clone().run(stop.clone()));
        tasks.spawn(until(stop.clone(), this.clone().prune_entries()));
        tasks.spawn(until(stop.clone(), this.clone().notify()));
        tasks.spawn(until(stop.clone(), this.clone().publish()));
        if let Some(prune) = this.prune_nodes.clone() {
            tasks.spawn(until(stop.clone(), this.clone().prune_nodes(prune)));
        }
        while let Some(ended) = tasks.join_next().await {
            if let Err(error) = ended
                && error.is_panic()
            {
                // Without one of its tasks a server would look healthy and grow stale.
                tracing::error!(error = %error, "A background task ended unexpectedly; stopping");
                stop.cancel();
            }
        }
    }

    async fn prune_entries(self: Arc<Self>) {
        let mut ticks = every(PRUNE_ENTRIES);
        loop {
            ticks.tick().await;
            loop {
                match self.prune_entry_batch().await {
                    Ok(pruned) if pruned == PRUNE_ENTRIES_BATCH as usize => {}
                    Ok(_) => break,
                    Err(error) => {
                        tracing::error!(error = %error, "Failed pruning registration entries");
                        break;
                    }
                }
            }
        }
    }

    async fn prune_entry_batch(&self) -> datastore::Result<usize> {
        let pruned = self.store.entries_prune(self.clock.now(), PRUNE_ENTRIES_BATCH).await?;
        for entry in &pruned {
            tracing::info!(
                spiffe_id = %entry.value.spiffe_id,
                parent_id = %entry.value.parent_id,
                entry_id = %entry.value.id,
                "Pruned an expired registration"
            );
        }
        if !pruned.is_empty() {
            self.entries.look_now();
        }
        Ok(pruned.len())
    }

    async fn prune_nodes(self: Arc<Self>, prune: PruneAttestedNodes) {
        let batch = u32::try_from(prune.batch_size).unwrap_or(u32::MAX).max(1);
        let mut ticks = every(PRUNE_NODES);
        loop {
            ticks.tick().await;
            loop {
                match self.prune_node_batch(&prune, batch).await {
                    Ok(pruned) if pruned == batch as usize => {}
                    Ok(_) => break,
                    Err(error) => {
                        tracing::error!(error = %error, "Failed pruning attested nodes");
                        break;
                    }
                }
            }
        }
    }

    async fn prune_node_batch(&self, prune: &PruneAttestedNodes, batch: u32) -> datastore::Result<usize> {
        let before = self.clock.now() - prune.expired_for;
        let pruned = self.store.nodes_prune(before, prune.include_non_reattestable, batch).await?;
        for node in &pruned {
            tracing::info!(agent_id = %node.value, "Pruned an expired agent");
        }
        if !pruned.is_empty() {
            self.entries.look_now();
        }
        Ok(pruned.len())
    }

    async fn notify(self: Arc<Self>) {
        if self.notifiers.is_empty() {
            return;
        }
        let mut changes = self.authorities.bundle_changes().subscribe();
        while changes.changed().await.is_ok() {
            let Some(bundle) = changes.borrow_and_update().clone() else { continue };
            let calls = self.notifiers.iter().map(|notifier| notify_one(notifier.clone(), bundle.clone()));
            futures_util::future::join_all(calls).await;
        }
    }

    async fn publish(self: Arc<Self>) {
        if self.publishers.is_empty() {
            return;
        }
        let mut changes = self.authorities.bundle_changes().subscribe();
        loop {
            let bundle = changes.borrow_and_update().clone();
            if let Some(bundle) = bundle {
                let calls =
                    self.publishers.iter().map(|publisher| publish_one(publisher.clone(), bundle.clone()));
                futures_util::future::join_all(calls).await;
            }
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(PUBLISH) => {}
            }
        }
    }
}

async fn until(stop: CancellationToken, task: impl Future<Output = ()>) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = task => {}
    }
}

async fn notify_one(notifier: Arc<dyn Notifier>, bundle: Arc<Bundle>) {
    if let Err(error) = notifier.bundle_updated(&bundle).await {
        tracing::warn!(notifier = notifier.name(), error = %error, "Notifier failed to handle event");
    }
}

async fn publish_one(publisher: Arc<dyn BundlePublisher>, bundle: Arc<Bundle>) {
    if let Err(error) = publisher.publish(&bundle).await {
        tracing::error!(plugin_name = publisher.name(), error = %error, "Failed to publish bundle");
    }
}

/// Ticks from one period on.
fn every(period: Duration) -> Interval {
    let mut ticks = interval_at(Instant::now() + period, period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}
