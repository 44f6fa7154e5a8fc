//! WorkloadAttestor `unix`: user, groups, executable and its digest.
//!
//! The directory of the process in `/proc` is opened once, and everything is read through it, so that all
//! selectors are of one process even if its number is given to another meanwhile. Which selectors there
//! are, their order and the texts of failures are the reference's
//! (pkg/agent/plugin/workloadattestor/unix/unix_posix.go).

mod accounts;
mod process;

#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use spire_core::spiffe::Selector;
use spire_ports::plugins::catalog::Configuration;
use spire_ports::plugins::{Error, ErrorKind, PluginType, Result, WorkloadAttestor};

use accounts::Names;
use process::{Process, Status};

const NAME: &str = "unix";

/// `discover_workload_path` and `workload_size_limit`.
#[derive(Clone, Copy, Debug, Default)]
struct Settings {
    discover_path: bool,
    /// In bytes; zero is no limit, and with a negative one nothing is hashed.
    size_limit: i64,
}

struct Unix {
    settings: Settings,
    proc: PathBuf,
    users: Names,
    groups: Names,
}

/// The attestor. `HOST_PROC` names another place of `/proc`, as in the reference.
pub(crate) async fn build(configuration: Configuration) -> Result<Arc<dyn WorkloadAttestor>> {
    let settings = configuration
        .decode(|data| {
            Ok(Settings {
                discover_path: data.take_bool("discover_workload_path")?.unwrap_or_default(),
                size_limit: data.take_int("workload_size_limit")?.unwrap_or_default(),
            })
        })
        .map_err(|error| configuration.invalid(format!("failed to decode configuration: {error}")))?;
    let proc = std::env::var_os("HOST_PROC").filter(|path| !path.is_empty()).unwrap_or("/proc".into());
    Ok(Arc::new(Attestor(Arc::new(Unix {
        settings,
        proc: proc.into(),
        users: Names::users("/etc/passwd"),
        groups: Names::groups("/etc/group"),
    }))))
}

struct Attestor(Arc<Unix>);

#[async_trait]
impl WorkloadAttestor for Attestor {
    fn name(&self) -> &str {
        NAME
    }

    async fn attest(&self, pid: i32) -> Result<Vec<Selector>> {
        let values = if self.0.settings.discover_path {
            // Hashing a binary reads a disk, for seconds perhaps.
            let unix = Arc::clone(&self.0);
            tokio::task::spawn_blocking(move || unix.values(pid))
                .await
                .unwrap_or_else(|error| Err(format!("attestation was interrupted: {error}")))
        } else {
            // Without that it is a read of /proc and two stats: microseconds.
            self.0.values(pid)
        };
        let failed = |message| Error::new(ErrorKind::Internal, (PluginType::WorkloadAttestor, NAME), message);
        values
            .map_err(failed)?
            .into_iter()
            .map(|value| Selector::new(NAME, value).map_err(|error| failed(error.to_string())))
            .collect()
    }
}

impl Unix {
    /// The selector values, or why there are none.
    fn values(&self, pid: i32) -> std::result::Result<Vec<String>, String> {
        let process = Process::open(&self.proc, pid)?;
        let Status { uid, gid, groups } = process.status()?;
        let mut values = vec![format!("uid:{uid}")];
        values.extend(self.users.find(uid).map(|user| format!("user:{user}")));
        values.push(format!("gid:{gid}"));
        values.extend(self.groups.find(gid).map(|group| format!("group:{group}")));
        for gid in groups {
            values.push(format!("supplementary_gid:{gid}"));
            values.extend(self.groups.find(gid).map(|group| format!("supplementary_group:{group}")));
        }
        if self.settings.discover_path {
            values.push(format!("path:{}", process.path()?));
            if self.settings.size_limit >= 0 {
                values.push(format!("sha256:{}", process.sha256(self.settings.size_limit)?));
            }
        }
        Ok(values)
    }
}
