//! The CA's background work: idempotent steps on timers.

use std::sync::Arc;
use std::time::Duration;

use spire_ports::observe::names::server as metric;
use spire_ports::observe::{Call, GrpcCode};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};
use tokio_util::sync::CancellationToken;

use spire_ports::plugins::ErrorKind;

use super::authorities::{Authorities, SUBSYSTEM};
use super::error::CaError;
use super::server_svid::ServerSvid;

/// How often the rotator checks whether an authority is due (pkg/server/ca/rotator).
const ROTATE: Duration = Duration::from_secs(10);
/// How often it is looked whether the server's SVID is due (pkg/server/svid DefaultRotatorInterval). The
/// stored bundle is read as often, for changes by other servers on the same database.
const SVID: Duration = Duration::from_secs(5);
/// When the upstream's view of the bundle is subscribed to (pkg/server/ca/manager SubscribeToLocalBundle), and the
/// longest wait before it is again.
const SUBSCRIBE_MIN: Duration = Duration::from_secs(5);
const SUBSCRIBE_MAX: Duration = Duration::from_secs(20);
/// When an upstream that ends its stream after each answer is asked again.
const SUBSCRIBE_AGAIN: Duration = Duration::from_secs(60);
const PRUNE_BUNDLE: Duration = Duration::from_secs(6 * 3600);
const PRUNE_JOURNALS: Duration = Duration::from_secs(8 * 3600);

/// Rotates, prunes and refreshes until cancelled. Failures are logged and tried again at the next tick.
/// Cancelling in the middle of a step is like a crash there, which every step survives.
pub async fn run(authorities: Arc<Authorities>, svid: Arc<ServerSvid>, cancel: CancellationToken) {
    // A slow upstream authority must not keep the server's SVID from being renewed.
    let work = async {
        tokio::join!(
            keep_authorities(&authorities),
            keep_svid(&authorities, &svid),
            follow_upstream(&authorities)
        )
    };
    tokio::select! {
        () = cancel.cancelled() => tracing::debug!(subsystem_name = "svid_rotator", "Stopping SVID rotator"),
        _ = work => {}
    }
}

async fn keep_authorities(authorities: &Authorities) {
    let mut rotate = every(ROTATE);
    let mut prune_bundle = every(PRUNE_BUNDLE);
    let mut prune_journals = every(PRUNE_JOURNALS);
    loop {
        // Rotation and taint processing log their own failures.
        tokio::select! {
            () = upstream_tainted(authorities) => {
                let _ = authorities.process_tainted_upstream().await;
            }
            _ = rotate.tick() => {
                let _ = authorities.rotate().await;
                let _ = authorities.process_tainted_upstream().await;
            }
            _ = prune_bundle.tick() => {
                if let Err(error) = measured(authorities, authorities.prune_bundle()).await {
                    tracing::error!(
                        subsystem_name = SUBSYSTEM,
                        error = format!("unable to prune bundle: {error}"),
                        "Could not prune CA certificates"
                    );
                }
            }
            _ = prune_journals.tick() => {
                if let Err(error) = measured(authorities, authorities.prune_journals()).await {
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

/// The reference counts the pruning of journals under the same name.
async fn measured<T, E: GrpcCode>(
    authorities: &Authorities,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let call = Call::start(&*authorities.ports.metrics, metric::CA_MANAGER_BUNDLE_PRUNE);
    let result = work.await;
    call.done_with(&result);
    result
}

async fn keep_svid(authorities: &Authorities, svid: &ServerSvid) {
    let mut check = every(SVID);
    loop {
        check.tick().await;
        if let Err(error) = authorities.bundle_changes().refresh().await {
            tracing::warn!(subsystem_name = SUBSYSTEM, error = %error, "Could not read the bundle");
        }
        // Logs its own failure.
        let _ = svid.rotate().await;
    }
}

/// Follows the upstream's view of our bundle where it offers one, whatever fails in between. (The reference ends when
/// the upstream cannot be reached at that moment.)
async fn follow_upstream(authorities: &Authorities) {
    let Some(upstream) = &authorities.upstream else { return };
    let mut wait = SUBSCRIBE_MIN;
    loop {
        tokio::time::sleep(wait).await;
        wait = match upstream.follow_local_bundle().await {
            Ok(()) => SUBSCRIBE_AGAIN,
            Err(CaError::Plugin(error)) if error.kind == ErrorKind::Unimplemented => return,
            Err(error) => {
                tracing::warn!(
                    subsystem_name = SUBSYSTEM,
                    error = %error,
                    "Failed to subscribe to the upstream authority's bundle; trying again"
                );
                (wait * 2).min(SUBSCRIBE_MAX)
            }
        };
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
