//! Whose certificates the server believes: its own trust domain's, from the bundle of now.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use spire_core::pki::Certificate;
use spire_core::spiffe::{Bundle, TrustDomain};
use spire_net::tls::TrustSource;

use crate::ca::BundleChanges;

/// The authorities of the server's trust domain, parsed once a change and not once a handshake.
pub(super) struct BundleTrust {
    trust_domain: TrustDomain,
    changes: Arc<BundleChanges>,
    parsed: ArcSwapOption<Parsed>,
}

struct Parsed {
    of: Arc<Bundle>,
    authorities: Arc<[Certificate]>,
}

impl BundleTrust {
    /// Follows the server's own bundle.
    pub(super) fn new(trust_domain: TrustDomain, changes: Arc<BundleChanges>) -> Self {
        Self { trust_domain, changes, parsed: ArcSwapOption::empty() }
    }
}

impl TrustSource for BundleTrust {
    fn authorities(&self, trust_domain: &TrustDomain) -> Option<Arc<[Certificate]>> {
        if *trust_domain != self.trust_domain {
            return None;
        }
        let bundle = self.changes.current()?;
        if let Some(parsed) = &*self.parsed.load()
            && Arc::ptr_eq(&parsed.of, &bundle)
        {
            return Some(parsed.authorities.clone());
        }
        // An authority that cannot be parsed signs nothing that we would believe; the others still count.
        let authorities: Arc<[Certificate]> = bundle
            .x509_authorities
            .iter()
            .filter_map(|authority| Certificate::from_der(authority.der.clone()).ok())
            .collect();
        self.parsed.store(Some(Arc::new(Parsed { of: bundle, authorities: authorities.clone() })));
        Some(authorities)
    }
}

impl fmt::Debug for BundleTrust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BundleTrust").field("trust_domain", &self.trust_domain).finish_non_exhaustive()
    }
}
