//! The bundle of our own trust domain, for everybody who shows it to others.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use spire_core::spiffe::{Bundle, TrustDomain};
use spire_ports::datastore::{Bundles, Result};
use tokio::sync::watch;

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
}

impl BundleChanges {
    /// Knows nothing before the first [`BundleChanges::refresh`] or [`BundleChanges::publish`].
    pub fn new(trust_domain: TrustDomain, store: Arc<dyn Bundles + Send + Sync>) -> Self {
        Self { trust_domain, store, newest: watch::Sender::new(None), published: AtomicU64::new(0) }
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
