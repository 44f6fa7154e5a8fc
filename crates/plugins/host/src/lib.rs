//! Built-in plugins that look at this machine's processes: the WorkloadAttestors `unix` and `slurm`.

mod slurm;
mod unix;

use spire_ports::plugins::catalog::AgentCatalog;

/// Adds the plugins of the agent.
pub fn register_agent(catalog: &mut AgentCatalog) {
    catalog.workload_attestors.add_fixed("slurm", slurm::build);
    catalog.workload_attestors.add("unix", unix::build);
}
