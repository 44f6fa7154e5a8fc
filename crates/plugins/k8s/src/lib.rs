//! Built-in plugins for Kubernetes: the `k8s` WorkloadAttestor.
//!
//! It reads its settings and finds out whether a process is in a container. Asking the kubelet about the
//! pod is not built yet, and [`attest`](spire_ports::plugins::WorkloadAttestor::attest) says so.

mod settings;

use std::io::Read as _;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use spire_compat::errno::path_error;
use spire_core::containers::Container;
use spire_core::spiffe::Selector;
use spire_ports::plugins::catalog::{AgentCatalog, Configuration};
use spire_ports::plugins::{Error, ErrorKind, PluginType, Result, WorkloadAttestor};

const NAME: &str = "k8s";

/// Far more than the kernel writes for a process; mountinfo grows with mounts, of which there may be
/// 100,000.
const MAX_PROC_BYTES: u64 = 32 << 20;

/// Adds the plugins of the agent.
pub fn register_agent(catalog: &mut AgentCatalog) {
    catalog.workload_attestors.add(NAME, build);
}

async fn build(configuration: Configuration) -> Result<Arc<dyn WorkloadAttestor>> {
    let settings = settings::read(&configuration)?;
    if settings.use_new_locator {
        tracing::info!(
            external = false,
            plugin_name = NAME,
            plugin_type = "WorkloadAttestor",
            "Using the new container locator"
        );
    } else {
        tracing::warn!(
            external = false,
            plugin_name = NAME,
            plugin_type = "WorkloadAttestor",
            "Using the legacy container locator. This option will be removed in a future release."
        );
    }
    tracing::warn!(
        external = false,
        plugin_name = NAME,
        plugin_type = "WorkloadAttestor",
        "Attestation of containers is not built yet; workloads in containers get no k8s selectors"
    );
    Ok(Arc::new(Kubernetes { proc: "/proc".into() }))
}

struct Kubernetes {
    proc: PathBuf,
}

#[async_trait]
impl WorkloadAttestor for Kubernetes {
    fn name(&self) -> &str {
        NAME
    }

    async fn attest(&self, pid: i32) -> Result<Vec<Selector>> {
        let failed = |kind, message| Error::new(kind, (PluginType::WorkloadAttestor, NAME), message);
        match self.container(pid) {
            Ok(None) => Ok(Vec::new()),
            Ok(Some(container)) => {
                let (id, pod) = (container.id(), container.pod_uid().unwrap_or("unknown"));
                let message =
                    format!("attestation of containers is not built yet (container {id}, pod {pod})");
                Err(failed(ErrorKind::Unimplemented, message))
            }
            Err(message) => Err(failed(ErrorKind::Internal, message)),
        }
    }
}

impl Kubernetes {
    /// The container of the process, if it is in one.
    fn container(&self, pid: i32) -> std::result::Result<Option<Container>, String> {
        let cgroups = self.read(pid, "cgroup")?;
        let found = Container::from_cgroups(&cgroups, true).map_err(|error| error.to_string())?;
        if found.is_some() {
            return Ok(found);
        }
        Container::from_mountinfo(&self.read(pid, "mountinfo")?, true).map_err(|error| error.to_string())
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
