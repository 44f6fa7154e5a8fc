//! Built-in plugins that need nothing but this machine's files: keys in memory and on disk, join tokens,
//! X.509 proof of possession, an upstream authority on disk and the unique-ID composer.

mod join_token;
mod key_manager;
mod machine;
#[cfg(test)]
mod test_ca;
mod unique_id;
mod upstream_disk;
mod x509pop;

use spire_ports::plugins::catalog::{AgentCatalog, ServerCatalog};

/// Adds the plugins of the server.
pub fn register_server(catalog: &mut ServerCatalog) {
    catalog.key_managers.add("disk", key_manager::server_disk);
    catalog.key_managers.add_fixed("memory", key_manager::memory);
    catalog.node_attestors.add("join_token", join_token::server);
    catalog.node_attestors.add("x509pop", x509pop::server::build);
    catalog.upstream_authorities.add("disk", upstream_disk::build);
    catalog.credential_composers.add_fixed("uniqueid", unique_id::build);
}

/// Adds the plugins of the agent.
pub fn register_agent(catalog: &mut AgentCatalog) {
    catalog.key_managers.add("disk", key_manager::agent_disk);
    catalog.key_managers.add_fixed("memory", key_manager::memory);
    catalog.node_attestors.add_fixed("join_token", join_token::agent);
    catalog.node_attestors.add("x509pop", x509pop::agent::build);
}
