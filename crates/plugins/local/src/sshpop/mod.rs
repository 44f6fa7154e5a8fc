//! NodeAttestor `sshpop`: a node proves that it has the key of an SSH host certificate.
//!
//! The agent sends its certificate, the server a nonce, and the agent signs the hash of both nonces with its host key. What
//! stands here is what both sides share (pkg/common/plugin/sshpop); the formats of SSH are read by parsers of our own, since
//! the libraries for them bring cryptography with them.

pub(crate) mod agent;
pub(crate) mod server;

mod authorized;
mod certificate;
mod key;
mod private;
#[cfg(test)]
mod tests;
mod wire;

use aws_lc_rs::digest;
use serde::{Deserialize, Serialize};

use crate::json::Base64;

pub(crate) const NAME: &str = "sshpop";

const NONCE_LEN: usize = 32;

/// What the agent sends first: the certificate as SSH has it on the wire.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Payload {
    certificate: Base64,
}

/// The server's challenge.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Challenge {
    nonce: Base64,
}

/// The agent's response.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Response {
    nonce: Base64,
    signature: Option<Signature>,
}

/// A signature in the format that it names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Signature {
    format: String,
    blob: Base64,
    /// What security keys add: flags and a counter. Go prints none as null.
    #[serde(skip_serializing_if = "Option::is_none")]
    rest: Option<Base64>,
}

/// What is signed: the hash of the server's nonce and the agent's.
fn combine(challenge: &[u8], response: &[u8]) -> Result<digest::Digest, &'static str> {
    if challenge.len() != NONCE_LEN {
        return Err("invalid challenge nonce size");
    }
    if response.len() != NONCE_LEN {
        return Err("invalid response nonce size");
    }
    let mut hash = digest::Context::new(&digest::SHA256);
    hash.update(challenge);
    hash.update(response);
    Ok(hash.finish())
}
