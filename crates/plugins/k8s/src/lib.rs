//! Built-in plugins for k8s.

use spire_ports::plugins::catalog::AgentCatalog;

/// Adds the plugins of the agent.
pub fn register_agent(_: &mut AgentCatalog) {}
