//! SVIDs of entries with `store_svid`, which go to SVIDStore plugins and never to workloads (pkg/agent/svid/store,
//! pkg/agent/manager/storecache).
//!
//! One pass of a store looks at what the server authorises and at what was stored, and does what is due: it deletes what an
//! entry that is gone or has other selectors left, has SVIDs signed, and puts what is new. A store that fails is asked
//! again after a wait that grows.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::try_join_all;
use spire_core::model::{Entry, EntryId};
use spire_core::pki::Certificate;
use spire_core::pki::chain::is_signed_by_root;
use spire_core::spiffe::{Bundle, TrustDomain};
use spire_core::svids::{Jitter, Stale, X509Svid};
use spire_core::time::Timestamp;
use spire_ports::observe::{Call, names};
use spire_ports::plugins::{ErrorKind, StoredSvid, SvidStore};
use tokio::sync::{Mutex, Notify};

use super::backoff::random;
use super::client::{CallError, Signed};
use super::error::AgentError;
use super::fetch_svids::{Prepared, assemble, prepare};
use super::shared::Core;

const SUBSYSTEM: &str = "svid_store_service";

/// Time between passes when nothing is heard (pkg/agent/svid/store: defaultInterval).
const INTERVAL: Duration = Duration::from_secs(5);

/// Entries that one call asks SVIDs for.
const BATCH_MAX: usize = 100;

/// Entries that are brought to a store at once.
const PUTS_AT_ONCE: usize = 16;

/// Longest wait before a store, or the server, is asked again for an entry. The reference asks every five seconds.
const RETRY_MAX: Duration = Duration::from_secs(4 * 60);

/// The store plugins, and what was stored where. Each has passes of its own: one that hangs delays no other.
pub(super) struct Stores {
    by_name: BTreeMap<String, Shelf>,
    /// For entries whose selectors name no store, which is logged.
    unknown: Shelf,
}

/// A store plugin with what is known of its entries.
#[derive(Default)]
struct Shelf {
    store: Option<Arc<dyn SvidStore>>,
    ledger: Mutex<Ledger>,
    /// SVIDs that are held, for who may not wait for a pass to end.
    svid_count: AtomicUsize,
    changed: Notify,
}

type Ledger = BTreeMap<EntryId, Record>;
type Bundles = BTreeMap<TrustDomain, Arc<Bundle>>;

/// What is known of one entry.
#[derive(Default)]
struct Record {
    /// As the server authorises it; `None` when it does not any more.
    entry: Option<Arc<Entry>>,
    svid: Option<Held>,
    /// The entry whose selectors say where something may be stored.
    place: Option<Arc<Entry>>,
    /// What was stored last.
    put: Option<Put>,
    /// Counts what there was to store, for the log.
    revision: i64,
    failures: u32,
    retry_at: Timestamp,
}

struct Held {
    svid: Arc<X509Svid>,
    /// Of the entry that it was signed for.
    revision: i64,
    renew_at: Timestamp,
}

/// What a store was given.
#[derive(Clone)]
struct Put {
    svid: Arc<X509Svid>,
    revision: i64,
    bundles: Vec<Arc<Bundle>>,
}

impl Put {
    fn is_same(&self, other: &Self) -> bool {
        let same = |(a, b): (&Arc<Bundle>, &Arc<Bundle>)| {
            Arc::ptr_eq(a, b)
                || (a.trust_domain == b.trust_domain && a.x509_authorities == b.x509_authorities)
        };
        Arc::ptr_eq(&self.svid, &other.svid)
            && self.revision == other.revision
            && self.bundles.len() == other.bundles.len()
            && self.bundles.iter().zip(&other.bundles).all(same)
    }
}

impl Stores {
    /// These plugins; nothing is stored yet as far as is known.
    pub(super) fn new(stores: impl IntoIterator<Item = Arc<dyn SvidStore>>) -> Self {
        let shelf = |store: Arc<dyn SvidStore>| {
            (store.name().to_owned(), Shelf { store: Some(store), ..Shelf::default() })
        };
        Self { by_name: stores.into_iter().map(shelf).collect(), unknown: Shelf::default() }
    }

    fn shelves(&self) -> impl Iterator<Item = &Shelf> {
        self.by_name.values().chain([&self.unknown])
    }

    /// SVIDs that are held for stores.
    pub(super) fn svid_count(&self) -> usize {
        self.shelves().map(|shelf| shelf.svid_count.load(Ordering::Relaxed)).sum()
    }

    /// Makes a pass of each store come at once.
    pub(super) fn wake(&self) {
        self.shelves().for_each(|shelf| shelf.changed.notify_one());
    }

    /// Whether a shelf is the one for an entry.
    fn is_on(&self, shelf: &Shelf, entry: &Entry) -> bool {
        let found = self.shelf_of(entry).map_or(&self.unknown, |(shelf, _)| shelf);
        std::ptr::eq(found, shelf)
    }

    /// The store of an entry, and the selectors' values without their type.
    fn store_of(&self, entry: &Entry) -> Result<(&Arc<dyn SvidStore>, Vec<String>), NoStore> {
        let (shelf, name) = self.shelf_of(entry)?;
        let store = shelf.store.as_ref().ok_or_else(|| NoStore::Unknown(name.to_owned()))?;
        Ok((store, entry.selectors.iter().map(|selector| selector.value().to_owned()).collect()))
    }

    /// The shelf of an entry's store, and the store's name.
    fn shelf_of<'a>(&self, entry: &'a Entry) -> Result<(&Shelf, &'a str), NoStore> {
        let mut kinds = entry.selectors.iter().map(|selector| selector.kind());
        let name = kinds.next().ok_or(NoStore::Selectors("no selectors found"))?;
        if kinds.any(|kind| kind != name) {
            return Err(NoStore::Selectors("selector contains multiple types"));
        }
        let shelf = self.by_name.get(name).ok_or_else(|| NoStore::Unknown(name.to_owned()))?;
        Ok((shelf, name))
    }
}

/// Why an entry has no store.
enum NoStore {
    Selectors(&'static str),
    Unknown(String),
}

impl Record {
    fn failed(&mut self, now: Timestamp) {
        let wait = INTERVAL.saturating_mul(1 << self.failures.min(8)).min(RETRY_MAX);
        self.failures = self.failures.saturating_add(1);
        self.retry_at = now + wait;
    }

    fn succeeded(&mut self) {
        self.failures = 0;
        self.retry_at = Timestamp::EPOCH;
    }

    /// Whether the entry has nothing any more, here or in a store.
    fn is_over(&self) -> bool {
        self.entry.is_none() && self.place.is_none()
    }

    /// What the server authorises now. A change is not made to wait for what failed before.
    fn authorised(&mut self, entry: Option<&Arc<Entry>>) {
        let same = match (&self.entry, entry) {
            (Some(old), Some(new)) => old.revision == new.revision && old.created_at == new.created_at,
            (None, None) => true,
            _ => false,
        };
        if same {
            return;
        }
        self.entry = entry.cloned();
        self.revision += 1;
        self.succeeded();
        if self.entry.is_none() {
            self.svid = None;
        }
    }

    fn wants_svid(&self, now: Timestamp) -> Option<Stale> {
        let entry = self.entry.clone()?;
        let due = match &self.svid {
            None => true,
            Some(held) => held.revision != entry.revision || now >= held.renew_at,
        };
        let expires_at = self.svid.as_ref().map(|held| held.svid.not_after);
        let is_expiring = self.svid.as_ref().is_some_and(|held| now >= held.renew_at);
        (due && now >= self.retry_at).then_some(Stale { entry, expires_at, is_expiring })
    }
}

/// Takes what the server authorises.
fn authorised(ledger: &mut Ledger, entries: &[Arc<Entry>]) {
    let now: BTreeMap<&EntryId, &Arc<Entry>> = entries.iter().map(|entry| (&entry.id, entry)).collect();
    for (id, record) in ledger.iter_mut() {
        record.authorised(now.get(id).copied());
    }
    for entry in entries {
        ledger.entry(entry.id.clone()).or_default().authorised(Some(entry));
    }
    ledger.retain(|_, record| !record.is_over());
}

impl Core {
    /// Keeps the stores up to date; never ends.
    pub(super) async fn store_loop(&self) -> Result<(), AgentError> {
        try_join_all(self.stores.shelves().map(|shelf| self.shelf_loop(shelf))).await.map(drop)
    }

    async fn shelf_loop(&self, shelf: &Shelf) -> Result<Infallible, AgentError> {
        loop {
            self.store_svids(shelf).await;
            tokio::select! {
                () = shelf.changed.notified() => {}
                () = tokio::time::sleep(INTERVAL) => {}
            }
        }
    }

    /// One pass over all entries of a store.
    async fn store_svids(&self, shelf: &Shelf) {
        let mut ledger = shelf.ledger.lock().await;
        let (entries, bundles): (Vec<Arc<Entry>>, Bundles) = self.identities().read(|cache| {
            let entries = cache.store_entries().filter(|entry| self.stores.is_on(shelf, entry));
            (entries.cloned().collect(), cache.bundles().clone())
        });
        authorised(&mut ledger, &entries);
        self.drop_tainted(shelf, &mut ledger, &bundles);
        // Counted with nothing to store too, as by the reference.
        let is_counted = shelf.store.is_none() || !ledger.is_empty();
        let call = is_counted.then(|| Call::start(&*self.metrics, names::agent::STORE_STORE_SVID_UPDATES));
        if let Err(error) = self.sign_for_stores(shelf, &mut ledger).await {
            tracing::error!(subsystem_name = "manager", error = %error, "SVID sync failed");
        }
        let held = ledger.values().filter(|record| record.svid.is_some()).count();
        shelf.svid_count.store(held, Ordering::Relaxed);
        let records = futures_util::stream::iter(ledger.values_mut());
        records.for_each_concurrent(PUTS_AT_ONCE, |record| self.bring(record, &bundles)).await;
        ledger.retain(|_, record| !record.is_over());
        if let Some(call) = call {
            call.done("OK");
        }
    }

    /// Forgets SVIDs that an authority signed which is tainted since the last pass, so that others are signed. Once for each
    /// authority: a server that does not know of the taint yet signs with it again.
    fn drop_tainted(&self, shelf: &Shelf, ledger: &mut Ledger, bundles: &Bundles) {
        let Some(own) = bundles.get(&self.options.trust_domain) else { return };
        let name = shelf.store.as_ref().map_or("", |store| store.name());
        let tainted = own.x509_authorities.iter().filter(|authority| authority.tainted);
        let tainted: Vec<Certificate> = tainted
            .filter_map(|authority| Certificate::from_der(authority.der.clone()).ok())
            .filter(|authority| {
                self.seen_taints.lock().insert(format!("store {name} {}", authority.authority_id()))
            })
            .collect();
        if tainted.is_empty() {
            return;
        }
        let now = self.clock.now();
        let call =
            Call::start(&*self.metrics, names::agent::CACHE_MANAGER_SVID_STORE_PROCESS_TAINTED_X509_SVIDS);
        let mut count = 0_u16;
        for record in ledger.values_mut() {
            let Some(held) = &record.svid else { continue };
            let chain: Vec<Certificate> =
                held.svid.chain.iter().filter_map(|der| Certificate::from_der(der.clone()).ok()).collect();
            if is_signed_by_root(&chain, &tainted, now).unwrap_or(false) {
                record.svid = None;
                count = count.saturating_add(1);
            }
        }
        call.done("OK");
        // The reference says the first (pkg/agent/manager/storecache), where its names have the second.
        for name in [
            names::agent::CACHE_MANAGER_EXPIRING_SVIDS_SVID_STORE,
            names::agent::CACHE_MANAGER_TAINTED_X509_SVIDS_SVID_STORE,
        ] {
            self.metrics.add_sample(name, f32::from(count), &[]);
        }
        tracing::info!(subsystem_name = SUBSYSTEM, tainted_x509_svids = count, "Tainted X.509 SVIDs");
    }

    /// Has SVIDs signed for the entries that need one and have a store.
    async fn sign_for_stores(&self, shelf: &Shelf, ledger: &mut Ledger) -> Result<(), CallError> {
        let now = self.clock.now();
        let stale: Vec<Stale> = ledger
            .values()
            .filter_map(|record| record.wants_svid(now))
            .filter(|stale| self.stores.store_of(&stale.entry).is_ok())
            .take(BATCH_MAX)
            .collect();
        if stale.is_empty() {
            return Ok(());
        }
        let names = [
            names::agent::CACHE_MANAGER_EXPIRING_SVIDS_SVID_STORE,
            names::agent::CACHE_MANAGER_OUTDATED_SVIDS_SVID_STORE,
        ];
        self.count_replaced(&stale, names);
        let count = stale.len();
        tracing::debug!(
            subsystem_name = "manager",
            cache_type = "svid_store",
            count,
            limit = BATCH_MAX,
            "Renewing stale entries"
        );
        if count == BATCH_MAX {
            // There may be more.
            shelf.changed.notify_one();
        }
        let prepared = prepare(stale, self.options.workload_key_type).await?;
        let requests = prepared.iter().map(|p| (p.stale.entry.id.clone(), p.csr.clone())).collect();
        let mut answers = self.client.new_x509_svids(requests).await?.into_iter();
        for Prepared { stale, key, .. } in prepared {
            let Some(record) = ledger.get_mut(&stale.entry.id) else { continue };
            let svid = match answers.next() {
                Some(Signed::Chain(chain)) => assemble(chain, &key),
                Some(Signed::Refused(code, message)) => {
                    tracing::warn!(
                        subsystem_name = "manager", entry_id = %stale.entry.id, status = code, error = message,
                        "Failed to mint X509 SVID"
                    );
                    None
                }
                None => None,
            };
            let Some(svid) = svid else {
                record.failed(now);
                continue;
            };
            let jitter = Jitter::from_random(random());
            let renew_at = self.rotation.renew_new_x509_at(svid.not_before, svid.not_after, now, jitter);
            record.svid = Some(Held { svid: Arc::new(svid), revision: stale.entry.revision, renew_at });
            record.revision += 1;
            record.succeeded();
        }
        Ok(())
    }

    /// Does what is due for one entry: deletes, then puts.
    async fn bring(&self, record: &mut Record, bundles: &Bundles) {
        let now = self.clock.now();
        if now < record.retry_at {
            return;
        }
        if let Some(place) = record.place.clone() {
            let moved = record.entry.as_ref().is_none_or(|entry| entry.selectors != place.selectors);
            if moved {
                if !self.delete(&place, record.revision).await {
                    record.failed(now);
                    return;
                }
                record.place = None;
                record.put = None;
            }
        }
        let Some(entry) = record.entry.clone() else { return };
        let (store, metadata) = match self.stores.store_of(&entry) {
            Ok(found) => found,
            Err(why) => {
                log_no_store(&entry, record.revision, &why, "Error storing SVID: SVIDStore not found");
                record.failed(now);
                return;
            }
        };
        let Some(held) = record.svid.as_ref().filter(|held| held.revision == entry.revision) else { return };
        let own = bundles.get(&self.options.trust_domain);
        let federated = entry.federates_with.iter().filter(|domain| **domain != self.options.trust_domain);
        let all = own.into_iter().chain(federated.filter_map(|domain| bundles.get(domain)));
        let put =
            Put { svid: Arc::clone(&held.svid), revision: entry.revision, bundles: all.cloned().collect() };
        if record.put.as_ref().is_some_and(|last| last.is_same(&put)) {
            return;
        }
        // Even a put that fails may leave something.
        record.place = Some(Arc::clone(&entry));
        let stored = store.put(&stored_svid(&put), &metadata).await;
        let (id, revision_number) = (&entry.id, record.revision);
        match stored {
            Ok(()) => {
                tracing::debug!(
                    subsystem_name = SUBSYSTEM, entry = %id, spiffe_id = %entry.spiffe_id, revision_number,
                    svid_store = store.name(), "SVID stored successfully"
                );
                record.put = Some(put);
                record.succeeded();
            }
            Err(error) => {
                tracing::error!(
                    subsystem_name = SUBSYSTEM, entry = %id, spiffe_id = %entry.spiffe_id, revision_number,
                    svid_store = store.name(), error = %error, "Failed to put X509-SVID"
                );
                record.failed(now);
            }
        }
    }

    /// Removes what an entry left. `false` if it must be tried again.
    async fn delete(&self, entry: &Entry, revision_number: i64) -> bool {
        let (store, metadata) = match self.stores.store_of(entry) {
            Ok(found) => found,
            Err(why) => {
                log_no_store(entry, revision_number, &why, "Error deleting SVID: SVIDStore not found");
                return false;
            }
        };
        let id = &entry.id;
        match store.delete(&metadata).await {
            Ok(()) => {
                tracing::debug!(
                    subsystem_name = SUBSYSTEM, entry = %id, spiffe_id = %entry.spiffe_id, revision_number,
                    svid_store = store.name(), "SVID deleted successfully"
                );
                true
            }
            Err(error) if error.kind == ErrorKind::InvalidArgument => {
                tracing::debug!(
                    subsystem_name = SUBSYSTEM, entry = %id, spiffe_id = %entry.spiffe_id, revision_number,
                    svid_store = store.name(), error = %error, "Failed to delete SVID because of malformed selectors"
                );
                true
            }
            Err(error) => {
                tracing::error!(
                    subsystem_name = SUBSYSTEM, entry = %id, spiffe_id = %entry.spiffe_id, revision_number,
                    svid_store = store.name(), error = %error, "Failed to delete SVID"
                );
                false
            }
        }
    }
}

fn log_no_store(entry: &Entry, revision_number: i64, why: &NoStore, unknown: &str) {
    match why {
        NoStore::Selectors(reason) => tracing::error!(
            subsystem_name = SUBSYSTEM, entry = %entry.id, spiffe_id = %entry.spiffe_id, revision_number,
            error = reason, "Invalid store name in selectors"
        ),
        NoStore::Unknown(name) => tracing::error!(
            subsystem_name = SUBSYSTEM, entry = %entry.id, spiffe_id = %entry.spiffe_id, revision_number,
            svid_store = name, "{unknown}"
        ),
    }
}

fn stored_svid(put: &Put) -> StoredSvid {
    let roots =
        |bundle: &Bundle| bundle.x509_authorities.iter().map(|authority| authority.der.clone()).collect();
    let (own, federated) = match put.bundles.as_slice() {
        [own, federated @ ..] => (roots(own), federated),
        [] => (Vec::new(), &[][..]),
    };
    StoredSvid {
        spiffe_id: put.svid.spiffe_id.clone(),
        chain: put.svid.chain.clone(),
        private_key: Bytes::copy_from_slice(&put.svid.private_key),
        bundle: own,
        federated_bundles: federated.iter().map(|b| (b.trust_domain.clone(), roots(b))).collect(),
        expires_at: put.svid.not_after,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_is_tried_again_later_and_later_up_to_a_bound() {
        let mut record = Record::default();
        let now = Timestamp::from_unix(1_000);
        let mut waits = Vec::new();
        for _ in 0..12 {
            record.failed(now);
            waits.push(record.retry_at.since(now).as_secs());
        }
        assert_eq!(waits[..7], [5, 10, 20, 40, 80, 160, 240]);
        assert!(waits[7..].iter().all(|wait| *wait == 240));
        record.succeeded();
        assert_eq!((record.failures, record.retry_at), (0, Timestamp::EPOCH));
    }
}
