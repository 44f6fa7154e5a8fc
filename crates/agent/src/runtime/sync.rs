//! Keeping up with the server: entries and bundles, by hint or by poll.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::atomic::Ordering;
use std::time::Duration;

use spire_core::model::{Entry, EntryId};
use spire_core::spiffe::TrustDomain;
use spire_core::svids::Delta;
use spire_ports::observe::{Call, Logged, names};
use spire_wire::push::update;
use tonic::Code;

use super::backoff::{Backoff, random, spread};
use super::client::CallError;
use super::error::AgentError;
use super::events::Event;
use super::options::DEFAULT_SYNC_INTERVAL;
use super::shared::Core;
use super::status::{GoStatus, Verdict};
use super::sync_entries::{Changes, Known, sync_entries};
use super::trust::certificates;

/// Limits of the wait after failed syncs (pkg/agent/manager: synchronizeMaxInterval and its multiple).
const BACKOFF_MAX: Duration = Duration::from_secs(8 * 60);
const BACKOFF_MAX_MULTIPLE: u32 = 48;

/// Time between syncs while the server pushes: a net under hints that get lost, in a connection that is dead
/// without saying so for example.
const PUSHED_INTERVAL: Duration = Duration::from_secs(30);

/// The longest wait after a failed sync while the server pushes: it is there, and what it lacks, its database say, comes back.
const PUSHED_RETRY_MAX: Duration = Duration::from_secs(5);

/// Hints within this time of the last sync wait, so that a busy server costs no more than twenty syncs a second.
const HINT_GAP: Duration = Duration::from_millis(50);

/// First wait before subscribing again.
const SUBSCRIBE_RETRY: Duration = Duration::from_secs(1);

impl Core {
    /// Brings entries and bundles up to date, once.
    ///
    /// # Errors
    /// [`CallError`] when the server cannot be asked; nothing changed then.
    pub async fn synchronize(&self) -> Result<(), CallError> {
        let call = Call::start(&*self.metrics, names::agent::MANAGER_SYNC_FETCH_ENTRIES_UPDATES);
        let fetched = self.fetch().await;
        call.done_with(&fetched);
        let delta = fetched?;
        let own = delta.bundles.as_ref().and_then(|all| all.get(&self.options.trust_domain)).cloned();
        self.count(&delta);
        self.identities().apply(delta);
        if let Some(bundle) = own {
            self.trust_bundle(certificates(&bundle));
            self.taint(&bundle);
            self.taint_wit(&bundle);
        }
        self.sweep_wit();
        self.identities().sweep();
        self.stores.wake();
        self.retry_svids();
        self.set_last_sync(self.clock.now());
        self.note_sync(None);
        let entries = self.identities().read(spire_core::svids::X509Cache::entry_count);
        self.events.emit(|| Event::Synced { entries });
        Ok(())
    }

    async fn fetch(&self) -> Result<Delta, CallError> {
        let changes = self.fetch_changes().await?;
        let removals: Vec<EntryId> = self.identities().read(|cache| {
            cache.entries().filter(|e| !changes.present.contains(&e.id)).map(|e| e.id.clone()).collect()
        });
        let bundles = self.client.bundles(self.federated(&changes, &removals)).await?;
        let bundles: BTreeMap<_, _> = bundles.into_iter().map(|b| (b.trust_domain.clone(), b)).collect();
        Ok(Delta { upserts: changes.upserts, removals, bundles: Some(bundles) })
    }

    async fn fetch_changes(&self) -> Result<Changes, CallError> {
        let known = |id: &EntryId| self.identities().read(|cache| cache.entry(id).map(|e| Known::of(e)));
        if self.syncs_changes.load(Ordering::Relaxed) {
            match sync_entries(&self.client, known).await {
                Err(error) if error.status.code() == Code::Unimplemented => {
                    tracing::debug!(subsystem_name = "manager", error = %error, "Server does not sync changes; fetching all entries");
                    self.syncs_changes.store(false, Ordering::Relaxed);
                }
                other => return other,
            }
        }
        let entries = self.client.authorized_entries().await?;
        let present: HashSet<EntryId> = entries.iter().map(|e| e.id.clone()).collect();
        let changed = |e: &Entry| known(&e.id) != Some(Known::of(e));
        Ok(Changes { upserts: entries.into_iter().filter(changed).collect(), present })
    }

    /// The trust domains that the entries will federate with.
    fn federated(&self, changes: &Changes, removals: &[EntryId]) -> Vec<TrustDomain> {
        let replaced: HashSet<&EntryId> = changes.upserts.iter().map(|e| &e.id).chain(removals).collect();
        let mut domains: BTreeSet<TrustDomain> = self.identities().read(|cache| {
            let kept = cache.entries().filter(|e| !replaced.contains(&e.id));
            kept.flat_map(|e| e.federates_with.iter().cloned()).collect()
        });
        domains.extend(changes.upserts.iter().flat_map(|e| e.federates_with.iter().cloned()));
        domains.remove(&self.options.trust_domain);
        domains.into_iter().collect()
    }

    fn count(&self, delta: &Delta) {
        let (total, stale) = self.identities().read(|cache| {
            let stale = delta.upserts.iter().filter(|e| cache.entry(&e.id).is_some()).count();
            (cache.entries().count() + delta.upserts.len() - stale - delta.removals.len(), stale)
        });
        let bundles = delta.bundles.as_ref().map_or(0, BTreeMap::len);
        for (name, value) in [
            (names::agent::SYNC_BUNDLES_TOTAL, bundles),
            (names::agent::SYNC_ENTRIES_TOTAL, total),
            (names::agent::SYNC_ENTRIES_MISSING, delta.upserts.len() - stale),
            (names::agent::SYNC_ENTRIES_STALE, stale),
            (names::agent::SYNC_ENTRIES_DROPPED, delta.removals.len()),
        ] {
            self.metrics.set_gauge(name, f64::from(u32::try_from(value).unwrap_or(u32::MAX)), &[]);
        }
    }

    /// Tells the server the version and syncs for the first time (pkg/agent/manager: Initialize).
    ///
    /// # Errors
    /// [`AgentError`]; its verdict says whether the SVID was dropped.
    pub async fn initialize(&self, version: &str) -> Result<(), AgentError> {
        if let Err(error) = self.client.post_status(version).await {
            tracing::error!(subsystem_name = "manager", agent_version = version, error = %error, "Failed to post agent status");
        }
        let synced = self.synchronize().await.map_err(AgentError::Call);
        if let Err(error) = &synced {
            match error.verdict() {
                Verdict::Retry => {}
                Verdict::Reattest => {
                    tracing::error!(subsystem_name = "manager", error = %error, "Agent needs to re-attest: removing SVID and shutting down");
                    self.delete_svid();
                }
                Verdict::Banned => {
                    tracing::error!(subsystem_name = "manager", error = %error, "Agent is banned: removing SVID and shutting down");
                    self.delete_svid();
                }
            }
        }
        synced
    }

    /// Syncs when a hint comes and from time to time, until that is of no use any more.
    pub(super) async fn sync_loop(&self) -> Result<(), AgentError> {
        let interval = self.options.sync_interval;
        let mut backoff = Backoff::new(interval).max(BACKOFF_MAX.min(interval * BACKOFF_MAX_MULTIPLE));
        let mut wait = interval.min(DEFAULT_SYNC_INTERVAL);
        loop {
            tokio::select! {
                () = self.sync_now.notified() => {}
                () = tokio::time::sleep(wait) => {}
            }
            let synced = self.synchronize().await;
            let failed = match synced {
                Ok(()) => {
                    self.sources.lock().succeeded_if_running()?;
                    backoff.reset();
                    wait = self.next_poll(&mut backoff);
                    // What comes meanwhile is one hint.
                    tokio::time::sleep(HINT_GAP).await;
                    continue;
                }
                Err(error) => AgentError::Call(error),
            };
            self.note_sync(Some(failed.to_string()));
            if failed.is_unknown_authority() {
                self.disagree(failed).map_err(|error| match error {
                    AgentError::Rebootstrap => AgentError::Rebootstrapping,
                    error => error,
                })?;
                wait = spread(interval, random()).min(DEFAULT_SYNC_INTERVAL);
                continue;
            }
            tracing::error!(subsystem_name = "manager", error = %failed, "Synchronize failed");
            if failed.verdict() != Verdict::Retry {
                return Err(failed);
            }
            wait = backoff.next(random()).unwrap_or(BACKOFF_MAX);
            if self.pushed.load(Ordering::Relaxed) {
                wait = wait.min(spread(PUSHED_RETRY_MAX, random()));
            }
        }
    }

    fn next_poll(&self, backoff: &mut Backoff) -> Duration {
        let planned = backoff.next(random()).unwrap_or(self.options.sync_interval);
        if self.pushed.load(Ordering::Relaxed) {
            return planned.max(spread(PUSHED_INTERVAL, random()));
        }
        let nothing = self.identities().read(spire_core::svids::X509Cache::svid_count) == 0;
        if nothing { planned.min(DEFAULT_SYNC_INTERVAL) } else { planned }
    }

    /// Server and bundle do not agree: wait, or find new trust, or give up, as configured.
    pub(super) fn disagree(&self, error: AgentError) -> Result<(), AgentError> {
        let Some(delay) = self.options.rebootstrap.delay() else {
            tracing::info!(subsystem_name = "manager", error = %error, "Synchronize failed, non-recoverable error");
            return Err(match error {
                AgentError::Call(error) => AgentError::UnknownAuthority(error),
                other => other,
            });
        };
        let mut sources = self.sources.lock();
        let elapsed = sources.disagreeing_for()?;
        if elapsed < delay {
            let left = Logged::Duration(delay - elapsed);
            tracing::info!(
                subsystem_name = "manager",
                time_left = left.value(),
                "Trust Bundle and Server don't agree, ignoring for now"
            );
            return Ok(());
        }
        tracing::warn!(subsystem_name = "manager", "Trust Bundle and Server don't agree, rebootstrapping");
        sources.force_rebootstrap()?;
        Err(AgentError::Rebootstrap)
    }

    /// Listens to the server's hints, as long as it gives any.
    pub(super) async fn push_loop(&self) -> Result<(), AgentError> {
        let mut backoff = Backoff::new(SUBSCRIBE_RETRY);
        let mut last_seen = None;
        // Whether this server ever gave hints. Then it denies them to an agent that must attest again, and later gives
        // them again.
        let mut has_pushed = false;
        loop {
            let ended = self.follow(&mut last_seen, &mut backoff).await;
            if self.pushed.swap(false, Ordering::Relaxed) {
                has_pushed = true;
                // The poll may be far away; what was missed must not wait for it.
                self.sync_now.notify_one();
            }
            if let Err(error) = ended {
                let code = error.status.code();
                if code == Code::Unimplemented || (code == Code::PermissionDenied && !has_pushed) {
                    tracing::debug!(subsystem_name = "manager", error = %GoStatus(&error.status), "Server does not push changes; polling");
                    return std::future::pending().await;
                }
                tracing::debug!(subsystem_name = "manager", error = %error, "Lost the server's push");
            }
            let wait = backoff.next(random()).unwrap_or(SUBSCRIBE_RETRY);
            tokio::time::sleep(wait).await;
        }
    }

    async fn follow(&self, last_seen: &mut Option<u64>, backoff: &mut Backoff) -> Result<(), CallError> {
        let broken = |status| CallError { doing: "failed to receive changes", status: Box::new(status) };
        let mut updates = self.client.subscribe(*last_seen).await?;
        self.pushed.store(true, Ordering::Relaxed);
        self.events.emit(|| Event::PushConnected);
        // A change between the last sync and now gave no hint.
        self.sync_now.notify_one();
        self.fetch_now.notify_one();
        while let Some(message) = updates.message().await.map_err(broken)? {
            backoff.reset();
            if let Some(update::Update::Changed(changed)) = message.update {
                *last_seen = Some(changed.sequence);
                self.sync_now.notify_one();
            }
        }
        Ok(())
    }
}
