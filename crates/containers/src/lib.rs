//! What the plugins of container engines share: which container a process of this machine is in, read from `/proc`.
//!
//! The rules for the texts are pure and stand in [`spire_core::containers`]; here they meet files.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use spire_compat::errno::path_error;
use spire_core::containers::{self, Container, LocateError};
use spire_ports::plugins::ErrorKind;

/// Far more than the kernel writes for a process; mountinfo grows with mounts, of which there may be 100,000.
const MAX_PROC_BYTES: u64 = 32 << 20;

/// Finds containers (pkg/common/containerinfo, pkg/agent/common/cgroups).
#[derive(Clone, Debug)]
pub struct Locator {
    proc: PathBuf,
    plugin: &'static str,
    with_pod: bool,
    verbose: bool,
}

/// What is known of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Located {
    /// The container that it is in, if it is in one.
    pub container: Option<Container>,
    /// Its cgroup paths, one a hierarchy.
    pub cgroups: Vec<String>,
}

/// Why there is no answer. The texts are the reference's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ContainerError {
    /// Its cgroups cannot be read.
    #[error("unable to obtain cgroups: {0}")]
    Cgroups(String),
    /// Its mounts cannot be read.
    #[error("failed to parse mount info at {path:?}: {reason}")]
    Mounts {
        /// The file.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// The texts are malformed, or name different containers.
    #[error(transparent)]
    Locate(LocateError),
}

impl ContainerError {
    /// The code that the reference answers with.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Locate(LocateError::PodUids(..) | LocateError::ContainerIds(..)) => {
                ErrorKind::FailedPrecondition
            }
            _ => ErrorKind::Internal,
        }
    }
}

impl Locator {
    /// A locator of containers, and with `with_pod` of their pods, for the plugin of that name. `verbose` logs what it
    /// reads, at DEBUG (`verbose_container_locator_logs`).
    pub fn new(plugin: &'static str, with_pod: bool, verbose: bool) -> Self {
        Self { proc: "/proc".into(), plugin, with_pod, verbose }
    }

    /// Reads another folder than `/proc`.
    pub fn at(self, proc: impl Into<PathBuf>) -> Self {
        Self { proc: proc.into(), ..self }
    }

    /// The container of a process. One that is gone is in none.
    ///
    /// # Errors
    /// [`ContainerError`] where that cannot be told for certain.
    pub async fn locate(&self, pid: i32) -> Result<Located, ContainerError> {
        let locator = self.clone();
        blocking(move || locator.locate_now(pid)).await
    }

    /// The cgroup paths of a process.
    ///
    /// # Errors
    /// [`ContainerError::Cgroups`], also where the process is gone.
    pub async fn cgroups(&self, pid: i32) -> Result<Vec<String>, ContainerError> {
        let path = self.path(pid, "cgroup");
        blocking(move || {
            let text = read(&path).map_err(|error| failed_to_open(&path, &error))?;
            paths(&text)
        })
        .await
    }

    fn path(&self, pid: i32, name: &str) -> PathBuf {
        self.proc.join(pid.to_string()).join(name)
    }

    /// The cgroup file comes first: the kernel writes it, and a workload cannot forge it. The mounts are a workload's own, so
    /// they are asked only where the cgroups tell of no container at all.
    fn locate_now(&self, pid: i32) -> Result<Located, ContainerError> {
        let path = self.path(pid, "cgroup");
        let text = match read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(failed_to_open(&path, &error)),
        };
        let cgroups = paths(&text)?;
        if self.verbose {
            let (plugin_name, total) = (self.plugin, cgroups.len());
            for (index, path) in (1..).zip(&cgroups) {
                tracing::debug!(
                    external = false,
                    plugin_name,
                    plugin_type = "WorkloadAttestor",
                    index,
                    total,
                    path,
                    "PID cgroup enumerated"
                );
            }
        }
        let mut container = self.agreed(Container::from_cgroups(&text, self.with_pod))?;
        if container.is_none() {
            container = self.mounted(&self.path(pid, "mountinfo"))?;
        }
        Ok(Located { container, cgroups })
    }

    fn mounted(&self, path: &Path) -> Result<Option<Container>, ContainerError> {
        let failed = |reason| ContainerError::Mounts { path: path.display().to_string(), reason };
        let text = match read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(path_error("open", path.display(), &error))),
        };
        let mounts = containers::mounts(&text).map_err(|error| failed(error.to_string()))?;
        if self.verbose {
            let (plugin_name, total) = (self.plugin, mounts.len());
            for (index, mount) in (1..).zip(&mounts) {
                tracing::debug!(
                    external = false,
                    plugin_name,
                    plugin_type = "WorkloadAttestor",
                    index,
                    total,
                    r#type = mount.kind,
                    root = mount.root,
                    "PID mount enumerated"
                );
            }
        }
        self.agreed(Container::from_mountinfo(&text, self.with_pod))
    }

    /// What was found, unless the lines contradict each other.
    fn agreed(
        &self,
        found: Result<Option<Container>, LocateError>,
    ) -> Result<Option<Container>, ContainerError> {
        let plugin_name = self.plugin;
        match &found {
            Err(LocateError::PodUids(previous, current)) => tracing::debug!(
                external = false,
                plugin_name,
                plugin_type = "WorkloadAttestor",
                previous,
                current,
                "Workload pod UID conflict"
            ),
            Err(LocateError::ContainerIds(previous, current)) => tracing::debug!(
                external = false,
                plugin_name,
                plugin_type = "WorkloadAttestor",
                previous,
                current,
                "Workload container ID conflict"
            ),
            _ => {}
        }
        found.map_err(ContainerError::Locate)
    }
}

/// Runs what reads files outside the async workers: the mounts of a busy node are megabytes.
async fn blocking<T: Send + 'static>(
    read: impl FnOnce() -> Result<T, ContainerError> + Send + 'static,
) -> Result<T, ContainerError> {
    let done = tokio::task::spawn_blocking(read).await;
    done.unwrap_or_else(|error| Err(ContainerError::Cgroups(error.to_string())))
}

fn paths(text: &str) -> Result<Vec<String>, ContainerError> {
    let paths = containers::cgroup_paths(text).map_err(ContainerError::Locate)?;
    Ok(paths.into_iter().map(str::to_owned).collect())
}

fn failed_to_open(path: &Path, error: &io::Error) -> ContainerError {
    ContainerError::Cgroups(path_error("open", path.display(), error))
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(MAX_PROC_BYTES).read_to_end(&mut text));
    match read {
        Ok(_) => Ok(String::from_utf8_lossy(&text).into_owned()),
        // A process that ends while its files are read.
        Err(error) if error.raw_os_error() == Some(ESRCH) => Err(io::ErrorKind::NotFound.into()),
        Err(error) => Err(error),
    }
}

/// No such process (errno(3)).
const ESRCH: i32 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "09bc3d7ade839efec32b6bec4ec79d099027a668ddba043083ec21d3c3b8f1e6";
    const POD: &str = "2c48913c-b29f-11e7-9350-020968147796";

    #[tokio::test]
    async fn cgroups_count_first_and_mounts_only_where_they_say_nothing() {
        let proc = tempfile::tempdir().unwrap();
        std::fs::create_dir(proc.path().join("7")).unwrap();
        let mount = |id: &str, kind: &str| format!("1 2 0:1 /pod{POD}/{id} /sys rw - {kind} c rw\n");
        let other = ID.replace('0', "1");
        let found = |id: &str, pod: Option<&str>| Ok(Some((id.to_owned(), pod.map(str::to_owned))));
        let table = [
            // cgroup v2, v1, hybrid, and a namespace of cgroups of its own.
            (format!("0::/kubepods/pod{POD}/{ID}\n"), String::new(), found(ID, Some(POD))),
            (
                format!("2:cpu:/kubepods/pod{POD}/{ID}\n1:pids:/kubepods/pod{POD}/{ID}\n"),
                String::new(),
                found(ID, Some(POD)),
            ),
            (format!("2:cpu:/docker/{ID}\n0::/docker/{ID}\n"), String::new(), found(ID, None)),
            ("0::/\n".to_owned(), mount(ID, "cgroup2"), found(ID, Some(POD))),
            ("2:cpu:/\n0::/\n".to_owned(), mount(ID, "cgroup"), found(ID, Some(POD))),
            // A forged mount does not count where the kernel says which container it is.
            (format!("0::/docker/{ID}\n"), mount(&other, "cgroup2"), found(ID, None)),
            ("0::/user.slice\n".to_owned(), mount(ID, "ext4"), Ok(None)),
            ("x\n".to_owned(), String::new(), Err(ErrorKind::Internal)),
            ("0::/\n".to_owned(), "nonsense\n".to_owned(), Err(ErrorKind::Internal)),
            (
                format!("1:a:/docker/{ID}\n0::/docker/{other}\n"),
                String::new(),
                Err(ErrorKind::FailedPrecondition),
            ),
        ];
        let locator = Locator::new("k8s", true, true).at(proc.path());
        for (cgroup, mountinfo, expected) in table {
            std::fs::write(proc.path().join("7/cgroup"), &cgroup).unwrap();
            std::fs::write(proc.path().join("7/mountinfo"), mountinfo).unwrap();
            let result = locator.locate(7).await;
            let seen = result.map_err(|error| error.kind()).map(|located| {
                let container = located.container?;
                Some((container.id().to_owned(), container.pod_uid().map(str::to_owned)))
            });
            assert_eq!(seen, expected, "{cgroup}");
        }
        // As in the reference, a process that is gone is in no container.
        assert_eq!(locator.locate(8).await, Ok(Located::default()));
        let error = locator.cgroups(8).await.unwrap_err().to_string();
        assert!(error.starts_with("unable to obtain cgroups: open "), "{error}");
        assert!(error.ends_with("8/cgroup: no such file or directory"), "{error}");
    }
}
