//! NodeAttestor, agent side: brings the proof.

use async_trait::async_trait;
use bytes::Bytes;

use super::Result;

/// Makes the proof of which node this is.
#[async_trait]
pub trait AgentNodeAttestor: Send + Sync {
    /// The plugin's name, which is the attestation type.
    fn name(&self) -> &str;
    /// Sends the payload and answers challenges until the server asks no more.
    async fn attest(&self, server: &mut dyn AttestationStream) -> Result<()>;
}

/// The way to the server that attests.
#[async_trait]
pub trait AttestationStream: Send {
    /// Sends the attestation payload. Returns a challenge, or nothing when the server is satisfied.
    async fn send_payload(&mut self, payload: Bytes) -> Result<Option<Bytes>>;
    /// Answers a challenge. Returns the next one, or nothing when the server is satisfied.
    async fn respond(&mut self, response: Bytes) -> Result<Option<Bytes>>;
}
