//! NodeAttestor `tpm_devid`, both sides: a node proves that the key of its DevID certificate lives in a TPM whose
//! manufacturer is trusted.
//!
//! 1. The agent loads the DevID key into its TPM, makes an attestation key (AK) there and lets it certify the DevID
//!    key. It sends the certificates of the DevID and of the TPM's endorsement key (EK) with the public areas of all
//!    three keys.
//! 2. The server verifies both certificates and what the AK certified. It asks for a signature with the DevID key,
//!    and for a secret that only the TPM with that EK and that AK gives back.
//!
//! [`tpm`] speaks to TPMs without a C library. The crates that marshal TPM commands bring either libtss2, or many
//! times the code of the dozen commands that are needed, with `unsafe` casts of what a peer sent.

mod agent;
mod machine;
mod messages;
mod server;
#[cfg(test)]
mod test_ca;
mod tpm;

use spire_ports::plugins::catalog::{AgentCatalog, ServerCatalog};

/// The plugin's name, which is the attestation type.
pub(crate) const NAME: &str = "tpm_devid";

/// Adds the plugins of the server.
pub fn register_server(catalog: &mut ServerCatalog) {
    catalog.node_attestors.add(NAME, server::build);
}

/// Adds the plugins of the agent.
pub fn register_agent(catalog: &mut AgentCatalog) {
    catalog.node_attestors.add(NAME, agent::build);
}
