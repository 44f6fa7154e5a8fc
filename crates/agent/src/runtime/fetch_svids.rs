//! Getting X.509-SVIDs signed for the entries that need one.

use std::sync::Arc;
use std::time::Duration;

use spire_core::model::EntryId;
use spire_core::pki::{Certificate, KeyType, LocalKey};
use spire_core::svids::{Stale, X509Svid};
use spire_ports::observe::{Call, names};
use tokio::time::Instant;
use tonic::Status;
use zeroize::Zeroizing;

use super::backoff::{Backoff, BatchSize, random};
use super::client::{CallError, Signed};
use super::error::AgentError;
use super::events::Event;
use super::keys::{CsrError, workload_csr};
use super::shared::Core;

/// Requests in one batch: what the server lets one agent sign a second (pkg/common/limits: SignLimitPerIP).
const BATCH_MAX: usize = 500;

/// First and longest wait after a failed batch (pkg/agent/manager: SVIDSyncInterval, maxSVIDSyncInterval).
const RETRY_MIN: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(4 * 60);

/// A sync that succeeds ends the wait when it has lasted so long: the server is there. Not sooner, since syncs follow each
/// other quickly where much changes.
const RETRY_SYNCED: Duration = Duration::from_secs(2);

/// A request on its way: the key that will go with the SVID.
pub(super) struct Prepared {
    pub(super) stale: Stale,
    pub(super) key: LocalKey,
    pub(super) csr: Vec<u8>,
}

impl Core {
    /// Fetches SVIDs whenever some are wanted; never ends.
    pub(super) async fn svid_loop(&self) -> Result<(), AgentError> {
        let mut size = BatchSize::new(BATCH_MAX);
        let mut backoff = Backoff::new(RETRY_MIN).max(RETRY_MAX);
        loop {
            match self.fetch_svids(size.get()).await {
                Ok(0) => self.identities().wait_for_stale().await,
                Ok(_) => {
                    size.succeeded();
                    backoff.reset();
                }
                Err(error) => {
                    tracing::error!(subsystem_name = "manager", error = %error, "SVID sync failed");
                    size.failed();
                    *self.fetch_failed.lock() = Some(Instant::now());
                    tokio::select! {
                        () = self.fetch_now.notified() => {}
                        () = tokio::time::sleep(backoff.next(random()).unwrap_or(RETRY_MAX)) => {}
                    }
                    *self.fetch_failed.lock() = None;
                }
            }
        }
    }

    /// Has a batch that failed tried again after a sync (pkg/agent/manager/sync.go: synchronize fetches SVIDs each time).
    pub(super) fn retry_svids(&self) {
        if self.fetch_failed.lock().is_some_and(|at| at.elapsed() >= RETRY_SYNCED) {
            self.fetch_now.notify_one();
        }
    }

    /// Fetches one batch; returns how many were asked for.
    ///
    /// # Errors
    /// [`CallError`] when the whole batch failed.
    pub async fn fetch_svids(&self, limit: usize) -> Result<usize, CallError> {
        let (stale, total) = self.identities().stale(limit);
        if stale.is_empty() {
            return Ok(0);
        }
        tracing::debug!(
            subsystem_name = "manager",
            cache_type = "workload",
            count = total,
            limit,
            "Renewing stale entries"
        );
        let names = [names::agent::CACHE_MANAGER_EXPIRING_SVIDS, names::agent::CACHE_MANAGER_OUTDATED_SVIDS];
        self.count_replaced(&stale, names);
        let call = Call::start(&*self.metrics, names::agent::MANAGER_SYNC_FETCH_SVIDS_UPDATES);
        let count = stale.len();
        let result = self.fetch_batch(stale).await;
        call.done_with(&result);
        result.map(|()| count)
    }

    /// How many SVIDs are replaced for their age, and how many because what they say changed.
    pub(super) fn count_replaced(&self, stale: &[Stale], names: [names::Name; 2]) {
        let held = stale.iter().filter(|wanted| wanted.expires_at.is_some());
        let (expiring, outdated): (Vec<&Stale>, Vec<&Stale>) = held.partition(|wanted| wanted.is_expiring);
        for (name, count) in names.into_iter().zip([expiring.len(), outdated.len()]) {
            if count > 0 {
                self.metrics.add_sample(name, count as f32, &[]);
            }
        }
    }

    async fn fetch_batch(&self, stale: Vec<Stale>) -> Result<(), CallError> {
        for wanted in &stale {
            log_request(wanted);
        }
        let prepared = prepare(stale, self.options.workload_key_type).await?;
        let requests = prepared.iter().map(|p| (p.stale.entry.id.clone(), p.csr.clone())).collect();
        let signed = self.client.new_x509_svids(requests).await?;
        let mut issued: Vec<(EntryId, i64, Arc<X509Svid>)> = Vec::with_capacity(prepared.len());
        let mut refused = Vec::new();
        let mut answers = signed.into_iter();
        for Prepared { stale, key, .. } in prepared {
            let entry = &stale.entry;
            let svid = match answers.next() {
                Some(Signed::Chain(chain)) => assemble(chain, &key),
                Some(Signed::Refused(code, message)) => {
                    tracing::warn!(
                        subsystem_name = "manager", entry_id = %entry.id, status = code, error = message,
                        "Failed to mint X509 SVID"
                    );
                    None
                }
                None => None,
            };
            match svid {
                Some(svid) => {
                    self.warn_if_short(entry, &svid);
                    self.events.emit(|| Event::X509Issued {
                        entry_id: entry.id.clone(),
                        spiffe_id: entry.spiffe_id.clone(),
                        expires_at: svid.not_after,
                        renewed: stale.expires_at.is_some(),
                    });
                    issued.push((entry.id.clone(), entry.revision, Arc::new(svid)));
                }
                None => refused.push(entry.id.clone()),
            }
        }
        self.identities().issued(issued);
        self.identities().refused(&refused);
        Ok(())
    }
}

fn log_request(wanted: &Stale) {
    let entry = &wanted.entry;
    match wanted.expires_at {
        None => tracing::info!(
            subsystem_name = "manager", entry_id = %entry.id, spiffe_id = %entry.spiffe_id, "Creating X509-SVID"
        ),
        Some(at) => {
            let at = at.to_utc().format(&time::format_description::well_known::Rfc3339).unwrap_or_default();
            tracing::info!(
                subsystem_name = "manager", entry_id = %entry.id, spiffe_id = %entry.spiffe_id, expires_at = at,
                "Renewing X509-SVID"
            );
        }
    }
}

/// Makes keys and requests, off the threads that serve workloads: an RSA key takes long.
pub(super) async fn prepare(stale: Vec<Stale>, key_type: KeyType) -> Result<Vec<Prepared>, CallError> {
    let work = tokio::task::spawn_blocking(move || {
        let one = |stale: Stale| {
            let key = LocalKey::generate(key_type)?;
            let csr = workload_csr(&key, &stale.entry.spiffe_id)?;
            Ok(Prepared { stale, key, csr })
        };
        stale.into_iter().map(one).collect::<Result<Vec<_>, CsrError>>()
    });
    let failed = |reason: String| CallError {
        doing: "failed to make certificate signing requests",
        status: Box::new(Status::internal(reason)),
    };
    work.await.map_err(|e| failed(e.to_string()))?.map_err(|e| failed(e.to_string()))
}

/// The SVID of a chain, when it is for this key.
pub(super) fn assemble(chain: Vec<Certificate>, key: &LocalKey) -> Option<X509Svid> {
    let leaf = chain.first()?;
    if leaf.spki_der() != &key.public_key().spki()[..] {
        tracing::warn!(
            subsystem_name = "manager",
            "Server signed another key than the one that was asked for"
        );
        return None;
    }
    let spiffe_id = match leaf.spiffe_id() {
        Ok(id) => id,
        Err(error) => {
            tracing::warn!(subsystem_name = "manager", error = %error, "Server signed an SVID without a SPIFFE ID");
            return None;
        }
    };
    let (not_before, not_after) = (leaf.not_before(), leaf.not_after());
    let private_key: Zeroizing<Vec<u8>> = key.to_pkcs8().ok()?;
    let chain = chain.iter().map(|c| c.der().clone()).collect();
    Some(X509Svid { spiffe_id, chain, private_key, not_before, not_after })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::time::timeout;

    use super::*;
    use crate::fixture::{FakeServer, deps, entry, options};
    use crate::runtime::start;

    #[tokio::test]
    async fn a_batch_that_failed_is_tried_again_after_a_sync() {
        let server = FakeServer::start().await;
        server.change(|state| {
            state.entries = vec![entry("web", "uid:1")];
            state.failures.push(("BatchNewX509SVID", Status::unavailable("down")));
        });
        let folder = tempfile::tempdir().unwrap();
        let (core, _) = start(Arc::new(options(&server, folder.path())), &deps(&["uid:1"])).await.unwrap();
        let looping = tokio::spawn({
            let core = Arc::clone(&core);
            async move { core.svid_loop().await }
        });
        while core.fetch_failed.lock().is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        looping.abort();
        let _ = looping.await;
        for (since, expected) in
            [(None, false), (Some(Duration::ZERO), false), (Some(RETRY_SYNCED + RETRY_MIN), true)]
        {
            *core.fetch_failed.lock() = since.map(|since| Instant::now() - since);
            core.synchronize().await.unwrap();
            let notified = timeout(Duration::from_millis(50), core.fetch_now.notified()).await.is_ok();
            assert_eq!(notified, expected, "{since:?}");
        }
    }
}
