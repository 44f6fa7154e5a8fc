//! The bundle of our own trust domain, for everybody who shows it to others.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use spire_core::spiffe::{Bundle, TrustDomain};
use spire_ports::datastore::{Bundles, Error, Result};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::outage::patiently;

/// How long the bundle is answered from memory before the datastore is asked whether another server changed it, as the
/// reference's cache does (pkg/server/cache/dscache).
const FRESH: Duration = Duration::from_secs(1);

/// The newest known bundle of the server's own trust domain, and its changes: those made through this
/// server at once, those of other servers on the same database by [`BundleChanges::refresh`].
///
/// TLS verification, the Workload-facing APIs, notifiers and bundle publishers read from here. A watch and
/// not a queue: who is slow sees the newest bundle and misses the steps between.
pub struct BundleChanges {
    trust_domain: TrustDomain,
    store: Arc<dyn Bundles + Send + Sync>,
    newest: watch::Sender<Option<Arc<Bundle>>>,
    /// Counts what was published, so that a slow read does not undo a write that it missed.
    published: AtomicU64,
    started: Instant,
    /// Until when what is known is not asked for again, in milliseconds after `started`.
    fresh_until: AtomicU64,
    /// The read of [`BundleChanges::fresh`] that is under way: its sender lives until the read is over.
    reading: Mutex<Option<watch::Receiver<()>>>,
}

impl BundleChanges {
    /// Knows nothing before the first [`BundleChanges::refresh`] or [`BundleChanges::publish`].
    pub fn new(trust_domain: TrustDomain, store: Arc<dyn Bundles + Send + Sync>) -> Self {
        Self {
            trust_domain,
            store,
            newest: watch::Sender::new(None),
            published: AtomicU64::new(0),
            started: Instant::now(),
            fresh_until: AtomicU64::new(0),
            reading: Mutex::default(),
        }
    }

    /// The newest known bundle; `None` before there is one.
    pub fn current(&self) -> Option<Arc<Bundle>> {
        self.newest.borrow().clone()
    }

    /// A receiver that wakes at each change.
    pub fn subscribe(&self) -> watch::Receiver<Option<Arc<Bundle>>> {
        self.newest.subscribe()
    }

    /// Makes known a bundle as the datastore returned it from a write. Older ones than the known are
    /// ignored, so writers need no order among themselves.
    pub fn publish(&self, bundle: Bundle) {
        self.published.fetch_add(1, Ordering::SeqCst);
        self.newest.send_if_modified(|known| {
            let newer = known
                .as_ref()
                .is_none_or(|known| bundle.sequence_number >= known.sequence_number && **known != bundle);
            if newer {
                *known = Some(Arc::new(bundle));
            }
            newer
        });
    }

    /// Reads the stored bundle, for writes that do not return it and those of other servers.
    ///
    /// # Errors
    /// The datastore's; what is known stays.
    pub async fn refresh(&self) -> Result<Option<Arc<Bundle>>> {
        let published = self.published.load(Ordering::SeqCst);
        if let Some(bundle) = self.store.bundle_fetch(&self.trust_domain).await? {
            self.newest.send_if_modified(|known| {
                // What is stored counts even where its sequence number went back, as after a restored
                // backup; but not where a newer bundle was published while this one was being read.
                let overtaken = published != self.published.load(Ordering::SeqCst);
                let differs = known.as_ref().is_none_or(|known| {
                    **known != bundle && !(overtaken && bundle.sequence_number < known.sequence_number)
                });
                if differs {
                    *known = Some(Arc::new(bundle));
                }
                differs
            });
        }
        Ok(self.current())
    }

    /// The bundle at most [`FRESH`] behind what other servers wrote, or as it is known where the datastore is away. However many
    /// ask, the datastore is read once.
    ///
    /// # Errors
    /// The datastore's, where nothing is known or the datastore is there and fails.
    pub async fn fresh(&self) -> Result<Option<Arc<Bundle>>> {
        while self.fresh_until.load(Ordering::Acquire) <= self.now() {
            let reading = match &mut *self.reading.lock() {
                Some(read) if read.has_changed().is_ok() => Err(read.clone()),
                none => {
                    let (reading, read) = watch::channel(());
                    *none = Some(read);
                    Ok(reading)
                }
            };
            match reading {
                // It fails when the read is over, or given up.
                Err(mut read) => while read.changed().await.is_ok() {},
                Ok(_reading) => self.read_patiently().await?,
            }
        }
        Ok(self.current())
    }

    async fn read_patiently(&self) -> Result<()> {
        let known = self.current().is_some();
        match patiently(known, self.refresh()).await {
            Err(error @ Error::Unavailable(_)) if known => {
                tracing::warn!(
                    error = %error,
                    "The datastore is not available; the trust bundle is served as it was known last"
                );
            }
            read => drop(read?),
        }
        self.fresh_until.store(self.now() + FRESH.as_millis() as u64, Ordering::Release);
        Ok(())
    }

    /// Milliseconds after `started`.
    fn now(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    /// Adds authorities to the stored bundle and makes the result known.
    ///
    /// # Errors
    /// The datastore's.
    pub async fn append(&self, addition: &Bundle) -> Result<Arc<Bundle>> {
        let bundle = self.store.bundle_append(addition).await?;
        self.publish(bundle.clone());
        Ok(Arc::new(bundle))
    }

    pub(super) fn store(&self) -> &(dyn Bundles + Send + Sync) {
        self.store.as_ref()
    }

    pub(super) fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }
}
