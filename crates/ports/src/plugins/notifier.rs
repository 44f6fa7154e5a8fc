//! Notifier: hears of the server's bundle.

use async_trait::async_trait;
use spire_core::spiffe::Bundle;

use super::Result;

/// Is told of the server's own bundle.
#[async_trait]
pub trait Notifier: Send + Sync {
    /// The plugin's name.
    fn name(&self) -> &str;
    /// The bundle was loaded at start; a failure stops the start.
    async fn bundle_loaded(&self, bundle: &Bundle) -> Result<()>;
    /// The bundle changed; a failure is logged.
    async fn bundle_updated(&self, bundle: &Bundle) -> Result<()>;
}
