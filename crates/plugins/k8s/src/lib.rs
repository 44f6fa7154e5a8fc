//! Built-in plugins for Kubernetes: the `k8s_psat` NodeAttestor of both sides and the `k8s` WorkloadAttestor.
//!
//! [`api`] is the client of the Kubernetes API that all plugins of this crate share.

mod api;
mod psat;
mod workload;

use spire_ports::plugins::catalog::{AgentCatalog, ServerCatalog};

/// Adds the plugins of the server.
pub fn register_server(catalog: &mut ServerCatalog) {
    catalog.node_attestors.add("k8s_psat", psat::server::build);
}

/// Adds the plugins of the agent.
pub fn register_agent(catalog: &mut AgentCatalog) {
    catalog.node_attestors.add("k8s_psat", psat::agent::build);
    catalog.workload_attestors.add("k8s", workload::build);
}
