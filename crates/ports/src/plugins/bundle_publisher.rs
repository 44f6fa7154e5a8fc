//! BundlePublisher: puts the server's bundle where others find it.

use async_trait::async_trait;
use spire_core::spiffe::Bundle;

use super::Result;

/// Publishes the server's own bundle.
#[async_trait]
pub trait BundlePublisher: Send + Sync {
    /// The plugin's name.
    fn name(&self) -> &str;
    /// Publishes the bundle; returns whether something was written.
    async fn publish(&self, bundle: &Bundle) -> Result<bool>;
}
