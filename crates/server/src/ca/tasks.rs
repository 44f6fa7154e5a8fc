//! The CA's background work: idempotent steps on timers.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};
use tokio_util::sync::CancellationToken;

use super::authorities::{Authorities, SUBSYSTEM};
use super::server_svid::ServerSvid;

/// How often it is looked whether authorities are due (pkg/server/ca/rotator).
const ROTATE: Duration = Duration::from_secs(10);
/// How often it is looked whether the server's SVID is due (pkg/server/svid DefaultRotatorInterval). The
/// stored bundle is read as often, for changes by other servers on the same database.
const SVID: Duration = Duration::from_secs(5);
const PRUNE_BUNDLE: Duration = Duration::from_secs(6 * 3600);
const PRUNE_JOURNALS: Duration = Duration::from_secs(8 * 3600);

/// Rotates, prunes and refreshes until cancelled. Failures are logged and tried again at the next tick.
pub async fn run(authorities: Arc<Authorities>, svid: Arc<ServerSvid>, cancel: CancellationToken) {
    let mut rotate = every(ROTATE);
    let mut svid_check = every(SVID);
    let mut prune_bundle = every(PRUNE_BUNDLE);
    let mut prune_journals = every(PRUNE_JOURNALS);
    loop {
        // Each of these logs its own failures, except where said.
        tokio::select! {
            () = cancel.cancelled() => {
                tracing::debug!(subsystem_name = "svid_rotator", "Stopping SVID rotator");
                return;
            }
            () = upstream_tainted(&authorities) => {
                let _ = authorities.process_tainted_upstream().await;
            }
            _ = rotate.tick() => {
                let _ = authorities.rotate().await;
                let _ = authorities.process_tainted_upstream().await;
            }
            _ = svid_check.tick() => {
                if let Err(error) = authorities.bundle_changes().refresh().await {
                    tracing::warn!(subsystem_name = SUBSYSTEM, error = %error, "Could not read the bundle");
                }
                let _ = svid.rotate().await;
            }
            _ = prune_bundle.tick() => {
                if let Err(error) = authorities.prune_bundle().await {
                    tracing::error!(
                        subsystem_name = SUBSYSTEM,
                        error = format!("unable to prune bundle: {error}"),
                        "Could not prune CA certificates"
                    );
                }
            }
            _ = prune_journals.tick() => {
                if let Err(error) = authorities.prune_journals().await {
                    tracing::error!(
                        subsystem_name = SUBSYSTEM,
                        error = format!("unable to prune CA journals: {error}"),
                        "Could not prune CA journals"
                    );
                }
            }
        }
    }
}

/// Ticks from one period on: the start has just done what the first tick would do.
fn every(period: Duration) -> Interval {
    let mut interval = interval_at(Instant::now() + period, period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

async fn upstream_tainted(authorities: &Authorities) {
    match &authorities.upstream {
        Some(upstream) => upstream.roots.tainted().await,
        None => std::future::pending().await,
    }
}
