//! UpstreamAuthority `spire`: another SPIRE server signs this server's CA (nested SPIRE).
//!
//! This server is a workload of the upstream's agent: its identity, which must have a downstream entry at the upstream,
//! and whom it trusts come from that agent's Workload API. Source: the reference's
//! pkg/server/plugin/upstreamauthority/spire.

mod authority;
mod client;
mod settings;
#[cfg(test)]
mod tests;

use spire_ports::plugins::catalog::ServerCatalog;

/// The plugin's name.
const NAME: &str = "spire";

/// Adds the plugin to the server's.
pub fn register_server(catalog: &mut ServerCatalog) {
    catalog.upstream_authorities.add(NAME, authority::build);
}
