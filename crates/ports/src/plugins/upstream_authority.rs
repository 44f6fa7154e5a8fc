//! UpstreamAuthority: another authority that signs this server's CA.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use spire_core::spiffe::{JwtAuthority, SpiffeId, X509Authority};
use tokio::sync::mpsc;

use super::{Error, ErrorKind, PluginType, Result};

/// Roots of the upstream trust, each time they change. Bounded; the sender waits. The stream ends when the
/// plugin has no more to say or the receiver is dropped.
pub type X509AuthorityUpdates = mpsc::Receiver<Result<Vec<X509Authority>>>;

/// JWT keys of the upstream trust, each time they change.
pub type JwtAuthorityUpdates = mpsc::Receiver<Result<Vec<JwtAuthority>>>;

/// X.509 and JWT authorities of the upstream trust that are not ours, each time they change.
pub type LocalBundleUpdates = mpsc::Receiver<Result<(Vec<X509Authority>, Vec<JwtAuthority>)>>;

/// Authorities that an upstream keeps for this server's trust domain, without signing anything of it.
#[derive(Debug)]
pub struct LocalBundle {
    /// X.509 roots now.
    pub x509_authorities: Vec<X509Authority>,
    /// JWT keys now.
    pub jwt_authorities: Vec<JwtAuthority>,
    /// Both as they change later.
    pub updates: LocalBundleUpdates,
}

/// A signed intermediate CA.
#[derive(Debug)]
pub struct MintedCa {
    /// The CA certificate first, then intermediates up to but without the root; DER.
    pub chain: Vec<Bytes>,
    /// The roots that trust it now.
    pub roots: Vec<X509Authority>,
    /// The roots as they change later.
    pub updates: X509AuthorityUpdates,
}

/// Signs CAs of this server.
#[async_trait]
pub trait UpstreamAuthority: Send + Sync {
    /// The plugin's name.
    fn name(&self) -> &str;
    /// Signs the CSR (PKCS#10, DER) of a CA of the trust domain. The lifetime is a wish.
    async fn mint_x509_ca(&self, csr: &[u8], trust_domain: &SpiffeId, ttl: Duration) -> Result<MintedCa>;
    /// Publishes a JWT key upstream. Returns the upstream's keys now and as they change later. Most
    /// authorities answer [`super::ErrorKind::Unimplemented`], which is tolerated.
    async fn publish_jwt_key(&self, key: &JwtAuthority) -> Result<(Vec<JwtAuthority>, JwtAuthorityUpdates)>;
    /// Follows the authorities that the upstream keeps for this trust domain. Most have none to tell, and
    /// answer [`ErrorKind::Unimplemented`], which is tolerated.
    async fn subscribe_to_local_bundle(&self) -> Result<LocalBundle> {
        let text = "fetching upstream trust bundle is unsupported";
        Err(Error::new(ErrorKind::Unimplemented, (PluginType::UpstreamAuthority, self.name()), text))
    }
}
