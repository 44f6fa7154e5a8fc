//! Whose certificates the server believes: its own trust domain's, from the bundle of now, and those of the trust domains
//! that its `admin_ids` are of, from federated bundles.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use parking_lot::Mutex;
use spire_core::pki::Certificate;
use spire_core::spiffe::{Bundle, SpiffeId, TrustDomain};
use spire_net::tls::TrustSource;
use tokio::time::Instant;

use crate::ca::BundleChanges;
use crate::entries::LiveEntries;

/// How often federated bundles of administrators are read again, since another server may have changed them; what this
/// server changes is heard of at once. The reference reads at each handshake what is older (pkg/server/endpoints/bundle:
/// cacheExpiry).
const FOREIGN_FRESH: Duration = Duration::from_secs(1);
/// Between two warnings that a bundle is missing (pkg/server/endpoints/auth.go: misconfigLogEvery).
const WARN_EVERY: Duration = Duration::from_secs(60);

/// The authorities that clients are verified by, parsed once a change and not once a handshake.
pub(super) struct BundleTrust {
    trust_domain: TrustDomain,
    changes: Arc<BundleChanges>,
    parsed: ArcSwapOption<Parsed>,
    /// Of the trust domains of foreign administrators, in order; often none.
    foreign_domains: Box<[TrustDomain]>,
    foreign: ArcSwap<BTreeMap<TrustDomain, Arc<Parsed>>>,
    warned: Mutex<HashMap<TrustDomain, Instant>>,
}

struct Parsed {
    of: Arc<Bundle>,
    authorities: Arc<[Certificate]>,
}

impl Parsed {
    /// An authority that cannot be parsed signs nothing that we would believe; the others still count.
    fn new(bundle: Arc<Bundle>) -> Self {
        let authorities = bundle
            .x509_authorities
            .iter()
            .filter_map(|authority| Certificate::from_der(authority.der.clone()).ok())
            .collect();
        Self { of: bundle, authorities }
    }
}

impl BundleTrust {
    /// Follows the server's own bundle, and in [`BundleTrust::follow`] those of these administrators.
    pub(super) fn new(
        trust_domain: TrustDomain,
        changes: Arc<BundleChanges>,
        admin_ids: &[SpiffeId],
    ) -> Arc<Self> {
        let mut foreign_domains: Vec<TrustDomain> =
            admin_ids.iter().map(SpiffeId::trust_domain).filter(|domain| *domain != trust_domain).collect();
        foreign_domains.sort();
        foreign_domains.dedup();
        Arc::new(Self {
            trust_domain,
            changes,
            parsed: ArcSwapOption::empty(),
            foreign_domains: foreign_domains.into(),
            foreign: ArcSwap::default(),
            warned: Mutex::default(),
        })
    }

    /// Keeps the federated bundles current, until dropped; ends at once where no administrator is foreign.
    pub(super) async fn follow(&self, live: &LiveEntries) {
        if self.foreign_domains.is_empty() {
            return;
        }
        let mut changed = live.changes().bundles();
        loop {
            self.read_foreign(live).await;
            tokio::select! {
                // The sender lives as long as the entries.
                _ = changed.changed() => {}
                () = tokio::time::sleep(FOREIGN_FRESH) => {}
            }
        }
    }

    /// Reads the federated bundles; one that cannot be read stays as it was.
    async fn read_foreign(&self, live: &LiveEntries) {
        let known = self.foreign.load_full();
        let mut next = BTreeMap::new();
        for domain in &self.foreign_domains {
            let before = known.get(domain);
            let parsed = match live.store().bundle_fetch(domain).await {
                Ok(None) => None,
                Ok(Some(bundle)) => match before {
                    Some(parsed) if *parsed.of == bundle => Some(Arc::clone(parsed)),
                    _ => Some(Arc::new(Parsed::new(Arc::new(bundle)))),
                },
                Err(error) => {
                    let trust_domain = domain.name();
                    tracing::debug!(trust_domain, error = %error, "Federated bundle could not be read");
                    before.cloned()
                }
            };
            next.extend(parsed.map(|parsed| (domain.clone(), parsed)));
        }
        self.foreign.store(Arc::new(next));
    }

    fn foreign(&self, trust_domain: &TrustDomain) -> Option<Arc<[Certificate]>> {
        if let Some(parsed) = self.foreign.load().get(trust_domain) {
            return Some(Arc::clone(&parsed.authorities));
        }
        if self.foreign_domains.contains(trust_domain) {
            self.warn(trust_domain);
        }
        None
    }

    fn warn(&self, trust_domain: &TrustDomain) {
        let now = Instant::now();
        let mut warned = self.warned.lock();
        if warned.get(trust_domain).is_some_and(|last| now.duration_since(*last) < WARN_EVERY) {
            return;
        }
        warned.insert(trust_domain.clone(), now);
        tracing::warn!(
            subsystem_name = "endpoints",
            trust_domain = trust_domain.name(),
            "No bundle found for foreign admin trust domain; admins from this trust domain will not be able to connect. \
             Make sure this trust domain is correctly federated."
        );
    }
}

impl TrustSource for BundleTrust {
    fn authorities(&self, trust_domain: &TrustDomain) -> Option<Arc<[Certificate]>> {
        if *trust_domain != self.trust_domain {
            return self.foreign(trust_domain);
        }
        let bundle = self.changes.current()?;
        if let Some(parsed) = &*self.parsed.load()
            && Arc::ptr_eq(&parsed.of, &bundle)
        {
            return Some(parsed.authorities.clone());
        }
        let parsed = Arc::new(Parsed::new(bundle));
        self.parsed.store(Some(Arc::clone(&parsed)));
        Some(Arc::clone(&parsed.authorities))
    }
}

impl fmt::Debug for BundleTrust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BundleTrust").field("trust_domain", &self.trust_domain).finish_non_exhaustive()
    }
}
