//! Built-in plugins that need nothing but this machine's files: keys in memory and on disk, join tokens,
//! X.509 proof of possession, an upstream authority on disk, the unique-ID composer and SVIDs stored on disk.

mod agent_path;
mod http_challenge;
mod join_token;
mod json;
mod key_manager;
mod machine;
mod sshpop;
mod svid_disk;
#[cfg(test)]
mod test_ca;
#[cfg(test)]
mod test_wire;
mod unique_id;
mod upstream_disk;
mod x509pop;

use spire_ports::plugins::catalog::{AgentCatalog, ServerCatalog};

/// Adds the plugins of the server.
pub fn register_server(catalog: &mut ServerCatalog) {
    catalog.key_managers.add("disk", key_manager::server_disk);
    catalog.key_managers.add_fixed("memory", key_manager::memory);
    catalog.node_attestors.add("http_challenge", http_challenge::server::build);
    catalog.node_attestors.add("join_token", join_token::server);
    catalog.node_attestors.add("sshpop", sshpop::server::build);
    catalog.node_attestors.add("x509pop", x509pop::server::build);
    catalog.upstream_authorities.add("disk", upstream_disk::build);
    catalog.credential_composers.add_fixed("uniqueid", unique_id::build);
}

/// Adds the plugins of the agent.
pub fn register_agent(catalog: &mut AgentCatalog) {
    catalog.key_managers.add("disk", key_manager::agent_disk);
    catalog.key_managers.add_fixed("memory", key_manager::memory);
    catalog.node_attestors.add("http_challenge", http_challenge::agent::build);
    catalog.node_attestors.add_fixed("join_token", join_token::agent);
    catalog.node_attestors.add("sshpop", sshpop::agent::build);
    catalog.node_attestors.add("x509pop", x509pop::agent::build);
    catalog.svid_stores.add(svid_disk::NAME, svid_disk::build);
}
