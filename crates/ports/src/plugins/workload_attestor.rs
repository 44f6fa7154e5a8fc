//! WorkloadAttestor: says what is known of a process, or of what a broker refers to.

use async_trait::async_trait;
use bytes::Bytes;
use spire_core::spiffe::{Selector, SpiffeId};

use super::{Error, ErrorKind, PluginType, Result};

/// What a broker says of the workload that it asks for: a protobuf message and its type
/// (SPIFFE Broker API: `WorkloadReference`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadReference {
    /// The type, such as `type.googleapis.com/spiffe.broker.KubernetesObjectReference`.
    pub type_url: String,
    /// The encoded message.
    pub value: Bytes,
    /// The process, where the reference is one to a process and can be read.
    pub pid: Option<i32>,
    /// The broker, which was authenticated.
    pub broker: Option<SpiffeId>,
}

/// Attests processes of this machine.
#[async_trait]
pub trait WorkloadAttestor: Send + Sync {
    /// The plugin's name, which is the type of its selectors.
    fn name(&self) -> &str;
    /// The selectors of a process; none when this attestor knows nothing of it. The caller has pinned the
    /// process and checks afterwards that it is still the same one.
    async fn attest(&self, pid: i32) -> Result<Vec<Selector>>;
    /// The selectors of what a broker refers to. An attestor without references of its own attests the process, if
    /// the reference is one to a process.
    ///
    /// # Errors
    /// [`ErrorKind::Unimplemented`] when it does not know the type of the reference.
    async fn attest_reference(&self, reference: &WorkloadReference) -> Result<Vec<Selector>> {
        match reference.pid {
            Some(pid) => self.attest(pid).await,
            None => {
                let plugin = (PluginType::WorkloadAttestor, self.name());
                Err(Error::new(ErrorKind::Unimplemented, plugin, "AttestReference not implemented"))
            }
        }
    }
}
