//! What the agent knows of why workloads get the identities that they get, or none.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use parking_lot::Mutex;
use spire_core::explain::{Near, nearest};
use spire_core::model::Entry;
use spire_core::spiffe::Selectors;
use spire_core::time::Timestamp;
use spire_net::uds::{PeerInfo, PinnedProcess};

use super::identities::selector_text;
use super::shared::Core;
use super::workload::{AttestorFailed, TIMEOUT, WorkloadAttestation, WorkloadError};

/// Near entries to show: whoever reads them changes one.
const NEAR_MAX: usize = 5;

/// How long an explanation for the log holds. A workload without an identity asks again and again.
const HINT_AGE: Duration = Duration::from_secs(5);

/// All entries are looked through at most this often for the log, whoever asks.
const SCAN_GAP: Duration = Duration::from_millis(100);

/// Explanations that are kept for the log.
const HINTS_MAX: usize = 256;

/// How fresh the agent's entries are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyncState {
    /// When entries were last brought up to date; the epoch when never.
    pub last_success: Timestamp,
    /// Whether the server tells of changes.
    pub pushed: bool,
    /// When an attempt failed since then, and why.
    pub failure: Option<(Timestamp, String)>,
}

/// Explanations for the log.
#[derive(Debug, Default)]
pub(super) struct Hints(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    last_scan: Option<Instant>,
    by_workload: HashMap<Selectors, (Instant, Arc<str>)>,
}

impl Core {
    /// How fresh entries are.
    pub fn sync_state(&self) -> SyncState {
        SyncState {
            last_success: self.last_sync(),
            pushed: self.pushed.load(Ordering::Relaxed),
            failure: self.sync_failure.lock().clone(),
        }
    }

    /// Notes how a sync ended.
    pub(super) fn note_sync(&self, failure: Option<String>) {
        *self.sync_failure.lock() = failure.map(|text| (self.clock.now(), text));
    }

    /// How many entries for workloads there are, and those that come nearest to matching. Looks through all of them.
    pub fn nearest(&self, workload: &Selectors) -> (usize, Vec<Near<Arc<Entry>>>) {
        let entries: Vec<Arc<Entry>> = self.identities().read(|cache| {
            let for_workloads = cache.entries().filter(|entry| !entry.store_svid);
            for_workloads.cloned().collect()
        });
        (entries.len(), nearest(entries, workload, NEAR_MAX))
    }

    /// Why workloads with these selectors have no identity, in one line for the log. Selectors are shown only where
    /// `log_selectors` says so; of others only their type.
    pub fn hint(&self, workload: &Selectors) -> Arc<str> {
        let now = Instant::now();
        {
            let mut kept = self.hints.0.lock();
            if let Some((made, hint)) = kept.by_workload.get(workload)
                && now.duration_since(*made) < HINT_AGE
            {
                return Arc::clone(hint);
            }
            if kept.last_scan.is_some_and(|last| now.duration_since(last) < SCAN_GAP) {
                return "no entry matches".into();
            }
            kept.last_scan = Some(now);
        }
        let (count, near) = self.nearest(workload);
        let first = near.first().map(|near| (near, &*self.options.log_selectors));
        let hint: Arc<str> = hint(count, first, &self.sync_state(), self.clock.now()).into();
        let mut kept = self.hints.0.lock();
        if kept.by_workload.len() >= HINTS_MAX {
            kept.by_workload.clear();
        }
        kept.by_workload.insert(workload.clone(), (now, Arc::clone(&hint)));
        hint
    }
}

impl AttestorFailed {
    /// The plugin.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl WorkloadAttestation {
    /// The selectors of a connection's process, which must still be the one that connected, and the attestors that
    /// failed, where another did not.
    ///
    /// # Errors
    /// As [`attest`](Self::attest).
    pub async fn attest_in_detail(
        &self,
        peer: &PeerInfo,
    ) -> Result<(Selectors, Vec<AttestorFailed>), WorkloadError> {
        let found = self.in_detail(peer.pid()).await?;
        peer.check_alive()?;
        Ok(found)
    }

    /// The same of a process that somebody else named.
    ///
    /// # Errors
    /// As [`attest_in_detail`](Self::attest_in_detail).
    pub async fn attest_pid_in_detail(
        &self,
        pid: i32,
    ) -> Result<(Selectors, Vec<AttestorFailed>), WorkloadError> {
        let process = PinnedProcess::open(pid);
        let found = self.in_detail(pid.unsigned_abs()).await?;
        process?.check_alive()?;
        Ok(found)
    }

    async fn in_detail(&self, pid: u32) -> Result<(Selectors, Vec<AttestorFailed>), WorkloadError> {
        let asking = join_all(self.attestors.iter().map(|attestor| self.ask(&**attestor, pid)));
        let answers = tokio::time::timeout(TIMEOUT, asking).await.map_err(|_| WorkloadError::Timeout)?;
        let (found, failed): (Vec<_>, Vec<_>) = answers.into_iter().partition(Result::is_ok);
        let failures: Vec<AttestorFailed> = failed.into_iter().filter_map(Result::err).collect();
        if found.is_empty() {
            return Err(WorkloadError::Failed(failures));
        }
        Ok((found.into_iter().flatten().flatten().collect(), failures))
    }
}

fn hint(
    count: usize,
    near: Option<(&Near<Arc<Entry>>, &[String])>,
    sync: &SyncState,
    now: Timestamp,
) -> String {
    let mut text = match (count, near) {
        (0, _) => "this agent has no entries".to_owned(),
        (count, None) => format!("none of {count} entries has a selector like the workload's"),
        (count, Some((near, loggable))) => {
            let lacking: Selectors = near.lacks.iter().map(|lack| lack.selector.clone()).collect();
            let shown = selector_text(&lacking, loggable);
            let what = if shown.is_empty() {
                let mut kinds: Vec<&str> = lacking.iter().map(|selector| selector.kind()).collect();
                kinds.dedup();
                format!("of type {}", kinds.join(", "))
            } else {
                shown
            };
            format!(
                "of {count} entries the nearest is {} ({}): the workload lacks {} of its {} selectors, {what}",
                near.entry.id,
                near.entry.spiffe_id,
                lacking.len(),
                near.entry.selectors.len(),
            )
        }
    };
    let age = now.unix().saturating_sub(sync.last_success.unix()).max(0);
    // The text goes to one line.
    let _ = match &sync.failure {
        Some((_, error)) => write!(text, "; entries are {age}s old, since syncing fails: {error}"),
        None => write!(text, "; entries are {age}s old"),
    };
    text
}

#[cfg(test)]
mod tests {
    use spire_core::explain::Lack;
    use spire_core::model::EntryId;
    use spire_core::spiffe::{Selector, SpiffeId};

    use super::*;

    fn check(count: usize, has_near: bool, loggable: &[&str], failing: bool, expected: &str) {
        let selector = |kind: &str, value: &str| Selector::new(kind, value).unwrap();
        let id = SpiffeId::parse("spiffe://a.org/w").unwrap();
        let selectors = [selector("unix", "uid:1"), selector("k8s", "ns:x"), selector("unix", "gid:1")]
            .into_iter()
            .collect();
        let entry = Arc::new(Entry::new(EntryId::from_stored("e1"), id.clone(), id, selectors));
        let lack = |selector| Lack { selector, instead: Vec::new() };
        let lacks = vec![lack(selector("k8s", "ns:x")), lack(selector("unix", "uid:1"))];
        let near = Near { entry, lacks, shared: 1 };
        let loggable: Vec<String> = loggable.iter().map(|text| (*text).to_owned()).collect();
        let sync = SyncState {
            last_success: Timestamp::from_unix(100),
            pushed: true,
            failure: failing.then(|| (Timestamp::from_unix(102), "no route".to_owned())),
        };
        let near = has_near.then_some((&near, &*loggable));
        assert_eq!(hint(count, near, &sync, Timestamp::from_unix(103)), expected);
    }

    #[test]
    fn the_log_gets_one_line_without_what_it_may_not_show() {
        check(0, false, &[], false, "this agent has no entries; entries are 3s old");
        let text = "none of 2 entries has a selector like the workload's; entries are 3s old, since syncing fails: no route";
        check(2, false, &[], true, text);
        let near =
            "of 2 entries the nearest is e1 (spiffe://a.org/w): the workload lacks 2 of its 3 selectors, ";
        check(2, true, &[], false, &format!("{near}of type k8s, unix; entries are 3s old"));
        check(2, true, &["unix"], false, &format!("{near}unix:uid:1; entries are 3s old"));
    }
}
