//! NodeAttestor `http_challenge`: a node proves that it answers HTTP under its name.
//!
//! The agent names a host and a port, the server sends a nonce, and fetches that nonce from there
//! (pkg/common/plugin/httpchallenge).

pub(crate) mod agent;
pub(crate) mod server;

mod fetch;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

pub(crate) const NAME: &str = "http_challenge";

/// What the agent sends first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Payload {
    hostname: String,
    agentname: String,
    port: i64,
}

/// The server's challenge.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Challenge {
    nonce: String,
}

/// Where the nonce of an agent is.
fn path(agent_name: &str) -> String {
    format!("/.well-known/spiffe/nodeattestor/http_challenge/{agent_name}/challenge")
}
