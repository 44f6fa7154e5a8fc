//! SVIDStore: puts SVIDs where workloads that cannot ask the agent find them.

use async_trait::async_trait;
use bytes::Bytes;
use spire_core::spiffe::{SpiffeId, TrustDomain};
use spire_core::time::Timestamp;

use super::Result;

/// What is stored for one entry.
#[derive(Clone)]
pub struct StoredSvid {
    /// The identity.
    pub spiffe_id: SpiffeId,
    /// Leaf and intermediates, DER.
    pub chain: Vec<Bytes>,
    /// The private key, PKCS#8 DER. Never logged.
    pub private_key: Bytes,
    /// Roots of the identity's trust domain, DER.
    pub bundle: Vec<Bytes>,
    /// Roots of the trust domains that the entry federates with.
    pub federated_bundles: Vec<(TrustDomain, Vec<Bytes>)>,
    /// When the SVID expires.
    pub expires_at: Timestamp,
}

/// Stores SVIDs elsewhere.
#[async_trait]
pub trait SvidStore: Send + Sync {
    /// The plugin's name, which is the selector type of its entries.
    fn name(&self) -> &str;
    /// Stores an SVID; `metadata` are the selector values without type.
    async fn put(&self, svid: &StoredSvid, metadata: &[String]) -> Result<()>;
    /// Removes what was stored for these selector values.
    async fn delete(&self, metadata: &[String]) -> Result<()>;
}
