//! Built-in plugins for Docker and Podman: the `docker` WorkloadAttestor.
//!
//! It reads its settings and finds out whether a process is in a container. Asking the engine about the
//! container is not built yet, and [`attest`](spire_ports::plugins::WorkloadAttestor::attest) says so.

mod matchers;
mod settings;

use std::io::Read as _;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use spire_compat::errno::path_error;
use spire_core::containers::{self, Container};
use spire_core::spiffe::Selector;
use spire_ports::plugins::catalog::{AgentCatalog, Configuration};
use spire_ports::plugins::{Error, ErrorKind, PluginType, Result, WorkloadAttestor};

use settings::Settings;

const NAME: &str = "docker";

/// Far more than the kernel writes for a process; mountinfo grows with mounts, of which there may be
/// 100,000.
const MAX_PROC_BYTES: u64 = 32 << 20;

/// Adds the plugins of the agent.
pub fn register_agent(catalog: &mut AgentCatalog) {
    catalog.workload_attestors.add(NAME, build);
}

async fn build(configuration: Configuration) -> Result<Arc<dyn WorkloadAttestor>> {
    let settings = Settings::read(&configuration)?;
    if settings.matchers.is_some() {
        tracing::warn!(
            external = false,
            plugin_name = NAME,
            plugin_type = "WorkloadAttestor",
            "Using the legacy container locator with custom cgroup matchers. This feature will be removed in \
             a future release."
        );
    }
    tracing::warn!(
        external = false,
        plugin_name = NAME,
        plugin_type = "WorkloadAttestor",
        "Attestation of containers is not built yet; workloads in containers get no docker selectors"
    );
    Ok(Arc::new(Docker { settings, proc: "/proc".into() }))
}

struct Docker {
    settings: Settings,
    proc: PathBuf,
}

#[async_trait]
impl WorkloadAttestor for Docker {
    fn name(&self) -> &str {
        NAME
    }

    async fn attest(&self, pid: i32) -> Result<Vec<Selector>> {
        let failed = |kind, message| Error::new(kind, (PluginType::WorkloadAttestor, NAME), message);
        match self.container(pid) {
            Ok(None) => Ok(Vec::new()),
            Ok(Some(id)) => Err(failed(
                ErrorKind::Unimplemented,
                format!("attestation of containers is not built yet (container {id})"),
            )),
            Err(message) => Err(failed(ErrorKind::Internal, message)),
        }
    }
}

impl Docker {
    /// The container of the process, if it is in one.
    fn container(&self, pid: i32) -> std::result::Result<Option<String>, String> {
        let cgroups = self.read(pid, "cgroup")?;
        if let Some(matchers) = &self.settings.matchers {
            let paths = containers::cgroup_paths(&cgroups).map_err(|error| error.to_string())?;
            return matchers.find(&paths);
        }
        let mut found = Container::from_cgroups(&cgroups, false).map_err(|error| error.to_string())?;
        if found.is_none() {
            let mounts = self.read(pid, "mountinfo")?;
            found = Container::from_mountinfo(&mounts, false).map_err(|error| error.to_string())?;
        }
        Ok(found.map(|container| container.id().to_owned()))
    }

    /// A file of the process; empty when the process is gone.
    fn read(&self, pid: i32, name: &str) -> std::result::Result<String, String> {
        let path = self.proc.join(pid.to_string()).join(name);
        let mut text = Vec::new();
        let read =
            std::fs::File::open(&path).and_then(|file| file.take(MAX_PROC_BYTES).read_to_end(&mut text));
        match read {
            Ok(_) => Ok(String::from_utf8_lossy(&text).into_owned()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
            Err(error) => Err(path_error("open", path.display(), &error)),
        }
    }
}

#[cfg(test)]
mod tests;
