//! NodeAttestor, server side: proves which node an agent runs on.

use std::net::IpAddr;

use async_trait::async_trait;
use bytes::Bytes;
use spire_core::spiffe::{Selectors, SpiffeId};

use super::Result;

/// Checks the proof that an agent sends.
#[async_trait]
pub trait NodeAttestor: Send + Sync {
    /// The plugin's name, which is the attestation type that agents name.
    fn name(&self) -> &str;
    /// Judges a payload, asking the agent as often as needed through `challenger`.
    async fn attest(&self, payload: Bytes, challenger: &mut dyn Challenger) -> Result<Attestation>;
}

/// The way to the agent that is being attested.
#[async_trait]
pub trait Challenger: Send {
    /// Sends a challenge and returns the response to it.
    async fn challenge(&mut self, challenge: Bytes) -> Result<Bytes>;
    /// The address that the agent's connection comes from, which may be that of a proxy; nothing where it is unknown
    /// (the reference's metadata `X-Forwarded-Client-IP`).
    fn client_ip(&self) -> Option<IpAddr> {
        None
    }
}

/// What an attestation established.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attestation {
    /// The agent's ID.
    pub agent_id: SpiffeId,
    /// Selectors of the node.
    pub selectors: Selectors,
    /// Whether the agent may attest again with the same proof.
    pub can_reattest: bool,
}
