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

/// X.509 and JWT authorities of our trust domain as the upstream has them, each time they change. A failure that passes
/// does not end the stream.
pub type LocalBundleUpdates = mpsc::Receiver<Result<(Vec<X509Authority>, Vec<JwtAuthority>)>>;

/// The bundle of our trust domain as the upstream has it, what was tainted there included.
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
    /// Publishes a JWT key upstream. Returns the upstream's keys now and as they change later.
    ///
    /// # Errors
    /// [`ErrorKind::Unimplemented`] from most authorities, which is tolerated.
    async fn publish_jwt_key(&self, key: &JwtAuthority) -> Result<(Vec<JwtAuthority>, JwtAuthorityUpdates)>;
    /// Publishes a WIT key upstream and returns the upstream's keys. The plugin protocol of the reference has no such
    /// call, so only authorities that are built in can.
    ///
    /// # Errors
    /// [`ErrorKind::Unimplemented`] from those that cannot, which is tolerated.
    async fn publish_wit_key(&self, _key: &JwtAuthority) -> Result<Vec<JwtAuthority>> {
        let text = "publishing WIT keys upstream is unsupported";
        Err(Error::new(ErrorKind::Unimplemented, (PluginType::UpstreamAuthority, self.name()), text))
    }
    /// The upstream's WIT keys now; asked with each update of [`UpstreamAuthority::subscribe_to_local_bundle`], which
    /// comes for changes of these keys, too.
    ///
    /// # Errors
    /// [`ErrorKind::Unimplemented`] from those that have none to tell, which is tolerated.
    async fn wit_keys(&self) -> Result<Vec<JwtAuthority>> {
        let text = "fetching upstream WIT keys is unsupported";
        Err(Error::new(ErrorKind::Unimplemented, (PluginType::UpstreamAuthority, self.name()), text))
    }
    /// Follows the authorities that the upstream keeps for this trust domain.
    ///
    /// # Errors
    /// [`ErrorKind::Unimplemented`] from most, which have none to tell; it is tolerated.
    async fn subscribe_to_local_bundle(&self) -> Result<LocalBundle> {
        let text = "fetching upstream trust bundle is unsupported";
        Err(Error::new(ErrorKind::Unimplemented, (PluginType::UpstreamAuthority, self.name()), text))
    }
}
