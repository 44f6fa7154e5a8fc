//! Which authorities the agent's TLS trusts now.

use std::sync::Arc;

use arc_swap::ArcSwap;
use spire_core::pki::Certificate;
use spire_core::spiffe::{Bundle, TrustDomain};
use spire_net::tls::TrustSource;

/// The X.509 authorities of the agent's trust domain, which may change at any time.
#[derive(Debug)]
pub(crate) struct Trust {
    trust_domain: TrustDomain,
    authorities: ArcSwap<Arc<[Certificate]>>,
}

impl Trust {
    /// Trusts these.
    pub(crate) fn new(trust_domain: TrustDomain, authorities: Vec<Certificate>) -> Arc<Self> {
        Arc::new(Self { trust_domain, authorities: ArcSwap::from_pointee(authorities.into()) })
    }

    /// Trusts these from the next handshake on.
    pub(super) fn replace(&self, authorities: Vec<Certificate>) {
        self.authorities.store(Arc::new(authorities.into()));
    }

    /// The authorities that are trusted.
    pub(super) fn current(&self) -> Arc<[Certificate]> {
        Arc::clone(&self.authorities.load())
    }
}

impl TrustSource for Trust {
    fn authorities(&self, trust_domain: &TrustDomain) -> Option<Arc<[Certificate]>> {
        (*trust_domain == self.trust_domain).then(|| self.current())
    }
}

/// The X.509 authorities of a bundle, parsed. Those that cannot be read are left out; the bundle was checked
/// when it came.
pub(super) fn certificates(bundle: &Bundle) -> Vec<Certificate> {
    bundle.x509_authorities.iter().filter_map(|a| Certificate::from_der(a.der.clone()).ok()).collect()
}
