//! Background work beside the API. Each task is idempotent and takes no input: it looks at what there is and
//! does what is due.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use spire_compat::duration::GoDuration;
use spire_ports::datastore;
use spire_ports::observe::names::server as metric;
use spire_ports::observe::{Call, Metrics};
use spire_ports::plugins::{BundlePublisher, Notifier};
use tokio::task::{self, JoinSet};
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
/// How often expired nodes are removed, and by how much that differs from server to server, so that those on one
/// database do not all do it at once (pkg/server/node: defaultJobInterval, maxJitter).
const PRUNE_NODES: Duration = Duration::from_secs(3600);
const PRUNE_NODES_JITTER: Duration = Duration::from_secs(15 * 60);

/// Tasks that end only when the server does.
///
/// Without one of them a server would look healthy and grow stale, so one that panics ends the server.
pub(super) struct Tasks {
    stop: CancellationToken,
    running: JoinSet<()>,
    names: HashMap<task::Id, &'static str>,
}

impl Tasks {
    /// No task yet.
    pub(super) fn new() -> Self {
        Self { stop: CancellationToken::new(), running: JoinSet::new(), names: HashMap::new() }
    }

    /// Cancelled when the tasks are to end.
    pub(super) fn stop(&self) -> &CancellationToken {
        &self.stop
    }

    /// Runs a task that ends soon after [`Tasks::stop`].
    pub(super) fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.names.insert(self.running.spawn(task).id(), name);
    }

    /// Runs a task until [`Tasks::stop`], which ends it wherever it is.
    pub(super) fn spawn_until_stopped(
        &mut self,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        let task = self.stop.clone().run_until_cancelled_owned(task);
        self.spawn(name, async move {
            // None is a task that was told to end.
            let _ = task.await;
        });
    }

    /// Waits until all tasks have ended. One that panics ends the others.
    ///
    /// # Errors
    /// [`RunError::Task`], of the first that panicked.
    pub(super) async fn ended(&mut self) -> Result<(), RunError> {
        let mut failed = Ok(());
        while let Some(ended) = self.running.join_next_with_id().await {
            let Err(error) = ended else { continue };
            let name = self.names.get(&error.id()).copied().unwrap_or_default();
            tracing::error!(task = name, error = %error, "A background task ended unexpectedly; stopping");
            self.stop.cancel();
            failed = failed.and(Err(RunError::Task { name, error: error.to_string() }));
        }
        failed
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

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

    /// Starts to work.
    pub(super) fn start(self, tasks: &mut Tasks) {
        let (this, stop) = (Arc::new(self), tasks.stop().clone());
        tasks.spawn("authorities", ca::run(this.authorities.clone(), this.svid.clone(), stop.clone()));
        tasks.spawn("entries", this.entries.clone().run(stop));
        tasks.spawn_until_stopped("registration_manager", this.clone().prune_entries());
        // A task each, so that a slow plugin holds up no other.
        for notifier in &this.notifiers {
            let mut changes = this.authorities.bundle_changes().subscribe();
            // The notifiers were told of this one when it was loaded.
            changes.mark_unchanged();
            tasks.spawn_until_stopped("notifier", bundle_plugins::notify(notifier.clone(), changes));
        }
        for publisher in &this.publishers {
            let changes = this.authorities.bundle_changes().subscribe();
            tasks
                .spawn_until_stopped("bundle_publisher", bundle_plugins::publish(publisher.clone(), changes));
        }
        if let Some(prune) = this.prune_nodes.clone() {
            tasks.spawn_until_stopped("node_manager", this.clone().prune_nodes(prune));
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
        let interval = prune_nodes_interval(uuid::Uuid::new_v4().as_u64_pair().1);
        let retry_interval = GoDuration::from(interval);
        tracing::info!(
            expired_for = %GoDuration::from(prune.expired_for),
            include_tofu = prune.include_non_reattestable,
            %retry_interval,
            subsystem_name = "node_manager",
            "Periodic prune of expired nodes started"
        );
        let mut ticks = every(interval);
        loop {
            ticks.tick().await;
            let before = self.clock.now() - prune.expired_for;
            let work = self.entries.prune_nodes(before, prune.include_non_reattestable, batch);
            if let Err(error) = self.measured(metric::NODE_MANAGER_PRUNE, work).await {
                tracing::error!(
                    %retry_interval, subsystem_name = "node_manager", error = %error,
                    "Failed during periodic pruning of expired nodes"
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

/// Between 45 and 75 minutes, whole seconds.
fn prune_nodes_interval(random: u64) -> Duration {
    let spread = 2 * PRUNE_NODES_JITTER.as_secs();
    PRUNE_NODES - PRUNE_NODES_JITTER + Duration::from_secs(random % spread)
}

/// Ticks from one period on.
fn every(period: Duration) -> Interval {
    let mut ticks = interval_at(Instant::now() + period, period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_that_panics_ends_the_others_and_is_named() {
        let mut tasks = Tasks::new();
        tasks.spawn_until_stopped("patient", std::future::pending());
        let stop = tasks.stop().clone();
        tasks.spawn("orderly", async move { stop.cancelled().await });
        tasks.spawn("hasty", async { panic!("boom") });
        let error = tasks.ended().await.unwrap_err().to_string();
        assert!(error.starts_with("background task \"hasty\" ended unexpectedly: "), "{error}");
        assert!(error.contains("boom"), "{error}");
        assert!(tasks.stop().is_cancelled());
    }

    #[tokio::test]
    async fn tasks_that_end_are_no_failure() {
        let mut tasks = Tasks::new();
        tasks.spawn("short", async {});
        tasks.spawn_until_stopped("long", std::future::pending());
        tasks.stop().cancel();
        tasks.ended().await.unwrap();
    }

    #[test]
    fn servers_prune_agents_at_different_times() {
        let spread = 2 * PRUNE_NODES_JITTER.as_secs();
        assert_eq!(prune_nodes_interval(0), Duration::from_secs(45 * 60));
        assert_eq!(prune_nodes_interval(spread - 1), Duration::from_secs(75 * 60 - 1));
        assert_eq!(prune_nodes_interval(spread), Duration::from_secs(45 * 60));
    }
}
