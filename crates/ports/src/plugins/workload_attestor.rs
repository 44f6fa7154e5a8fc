//! WorkloadAttestor: says what is known of a process.

use async_trait::async_trait;
use spire_core::spiffe::Selector;

use super::Result;

/// Attests processes of this machine.
#[async_trait]
pub trait WorkloadAttestor: Send + Sync {
    /// The plugin's name, which is the type of its selectors.
    fn name(&self) -> &str;
    /// The selectors of a process; none when this attestor knows nothing of it. The caller has pinned the
    /// process and checks afterwards that it is still the same one.
    async fn attest(&self, pid: i32) -> Result<Vec<Selector>>;
}
