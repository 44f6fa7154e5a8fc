//! Background work beside the API. Each task is idempotent and takes no input: it looks at what there is and
//! does what is due.

use std::sync::Arc;
use std::time::Duration;

use spire_ports::datastore;
use spire_ports::observe::names::server as metric;
use spire_ports::observe::{Call, Metrics};
use spire_ports::plugins::{BundlePublisher, Notifier};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};
use tokio_util::sync::CancellationToken;

use super::RunError;
use super::bundle_plugins;
use crate::ca::{self, Authorities, ServerSvid};
use crate::clock::Clock;
use crate::config::PruneAttestedNodes;
use crate::entries::LiveEntries;

/// How often expired entries are removed (pkg/server/registration: _pruningCadence).
const PRUNE_ENTRIES: Duration = Duration::from_secs(5 * 60);
/// How often expired nodes are removed (pkg/server/node).
const PRUNE_NODES: Duration = Duration::from_secs(3600);

/// What the tasks work on.
pub(super) struct Background {
    pub(super) entries: Arc<LiveEntries>,
    pub(super) authorities: Arc<Authorities>,
    pub(super) svid: Arc<ServerSvid>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) metrics: Arc<dyn Metrics>,
    pub(super) notifiers: Vec<Arc<dyn Notifier>>,
    pub(super) publishers: Vec<Arc<dyn BundlePublisher>>,
    pub(super) prune_nodes: Option<PruneAttestedNodes>,
}

impl Background {
    /// Tells the notifiers that the bundle is loaded; one that fails stops the start.
    pub(super) async fn announce_bundle(&self) -> Result<(), RunError> {
        let Some(bundle) = self.authorities.bundle_changes().current() else { return Ok(()) };
        bundle_plugins::announce(&self.notifiers, &bundle).await.map_err(RunError::Notifier)
    }

    /// Works until cancelled.
    pub(super) async fn run(self, stop: CancellationToken) {
        let this = Arc::new(self);
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(ca::run(this.authorities.clone(), this.svid.clone(), stop.clone()));
        tasks.spawn(this.entries.clone().run(stop.clone()));
        tasks.spawn(until(stop.clone(), this.clone().prune_entries()));
        // A task each, so that a slow plugin holds up no other.
        for notifier in &this.notifiers {
            let mut changes = this.authorities.bundle_changes().subscribe();
            // The notifiers were told of this one when it was loaded.
            changes.mark_unchanged();
            tasks.spawn(until(stop.clone(), bundle_plugins::notify(notifier.clone(), changes)));
        }
        for publisher in &this.publishers {
            let changes = this.authorities.bundle_changes().subscribe();
            tasks.spawn(until(stop.clone(), bundle_plugins::publish(publisher.clone(), changes)));
        }
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
            let work = self.entries.prune(self.clock.now());
            if let Err(error) = self.measured(metric::REGISTRATION_ENTRY_MANAGER_PRUNE, work).await {
                tracing::error!(
                    subsystem_name = "registration_manager", error = %error,
                    "Failed pruning registration entries"
                );
            }
        }
    }

    async fn prune_nodes(self: Arc<Self>, prune: PruneAttestedNodes) {
        let batch = u32::try_from(prune.batch_size).unwrap_or(u32::MAX).max(1);
        let mut ticks = every(PRUNE_NODES);
        loop {
            ticks.tick().await;
            let before = self.clock.now() - prune.expired_for;
            let work = self.entries.prune_nodes(before, prune.include_non_reattestable, batch);
            if let Err(error) = self.measured(metric::NODE_MANAGER_PRUNE, work).await {
                tracing::error!(
                    subsystem_name = "node_manager", error = %error, "Failed pruning attested nodes"
                );
            }
        }
    }

    async fn measured<T>(
        &self,
        name: &'static [&'static str],
        work: impl Future<Output = datastore::Result<T>>,
    ) -> datastore::Result<T> {
        let call = Call::start(&*self.metrics, name);
        let result = work.await;
        call.done_with(&result);
        result
    }
}

async fn until(stop: CancellationToken, task: impl Future<Output = ()>) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = task => {}
    }
}

/// Ticks from one period on.
fn every(period: Duration) -> Interval {
    let mut ticks = interval_at(Instant::now() + period, period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}
