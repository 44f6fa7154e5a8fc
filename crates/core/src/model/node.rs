//! Attested nodes (agents) and join tokens.

use super::SelectorMatch;
use crate::spiffe::{Selectors, SpiffeId};
use crate::time::Timestamp;

/// An attested node: the agent on it and what is known of its SVID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// The agent's ID.
    pub spiffe_id: SpiffeId,
    /// Name of the node attestor that attested it.
    pub attestation_type: Box<str>,
    /// Serial number of the agent's SVID, decimal; empty when the agent is banned.
    pub serial_number: Box<str>,
    /// When that SVID expires.
    pub expires_at: Timestamp,
    /// Serial number of a renewed SVID that the agent has not used yet; empty when there is none.
    pub new_serial_number: Box<str>,
    /// When the renewed SVID expires.
    pub new_expires_at: Option<Timestamp>,
    /// Whether the agent may attest again with the same proof.
    pub can_reattest: bool,
    /// What the agent last said its version is.
    pub agent_version: Box<str>,
    /// Selectors of its attestation; empty where the query did not ask for them.
    pub selectors: Selectors,
}

impl Node {
    /// Whether the agent is banned: its row stays, its serial number is emptied.
    pub fn is_banned(&self) -> bool {
        self.serial_number.is_empty() && self.new_serial_number.is_empty()
    }
}

/// Fields of a node that an update sets; `None` leaves a field as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeUpdate {
    /// Serial number of the current SVID.
    pub serial_number: Option<Box<str>>,
    /// Its expiry.
    pub expires_at: Option<Timestamp>,
    /// Serial number of a renewed SVID; empty clears it.
    pub new_serial_number: Option<Box<str>>,
    /// Its expiry; the inner `None` clears it.
    pub new_expires_at: Option<Option<Timestamp>>,
    /// Whether the agent may attest again.
    pub can_reattest: Option<bool>,
    /// The agent's version.
    pub agent_version: Option<Box<str>>,
}

/// Which nodes a listing or count wants; all that are set must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFilter {
    /// Attested by this node attestor.
    pub attestation_type: Option<String>,
    /// Banned ones only, or only others.
    pub banned: Option<bool>,
    /// Expired before this time.
    pub expires_before: Option<Timestamp>,
    /// Not expired at this time.
    pub valid_at: Option<Timestamp>,
    /// Selectors compared as a set.
    pub selectors: Option<SelectorMatch>,
    /// Those that can re-attest, or only others.
    pub can_reattest: Option<bool>,
    /// Whether each node comes with its selectors.
    pub fetch_selectors: bool,
}

/// A join token: a secret that admits one agent once.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// The secret; it never goes to a log.
    pub token: String,
    /// When it stops working.
    pub expires_at: Timestamp,
}

impl std::fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JoinToken").field("expires_at", &self.expires_at).finish_non_exhaustive()
    }
}
