//! Control groups of a test, so that a process is where one of a container would be.

use std::fs;
use std::path::{Path, PathBuf};

use spire_testkit::{Error, Result};

/// Where the system's hierarchies are.
const ROOT: &str = "/sys/fs/cgroup";

/// A hierarchy of control groups.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Hierarchy {
    /// One of version 1, which has a line of its own in `/proc/<pid>/cgroup`; on a system of version 2 that.
    Controller,
    /// That of version 2, beside those of version 1 on a hybrid system.
    Unified,
}

impl Hierarchy {
    fn root(self) -> PathBuf {
        let root = Path::new(ROOT);
        let sub = match self {
            Self::Controller => "pids",
            Self::Unified => "unified",
        };
        let folder = root.join(sub);
        if folder.is_dir() { folder } else { root.to_owned() }
    }
}

/// A group; it is removed with this value, when its processes have ended.
pub(crate) struct Cgroup {
    folders: Vec<PathBuf>,
}

impl Cgroup {
    /// Makes the group of that path, given without a slash before it.
    pub(crate) fn new(hierarchy: Hierarchy, path: &str) -> Result<Self> {
        let mut folder = hierarchy.root();
        let mut folders = Vec::new();
        for part in path.split('/') {
            folder = folder.join(part);
            if let Err(error) = fs::create_dir(&folder)
                && error.kind() != std::io::ErrorKind::AlreadyExists
            {
                return Err(Error::doing(folder.display(), error));
            }
            folders.push(folder.clone());
        }
        Ok(Self { folders })
    }

    /// A command that runs another one as a process of this group.
    pub(crate) fn command(&self, program: &Path) -> Vec<String> {
        let group = self.folders.last().map(|folder| folder.join("cgroup.procs")).unwrap_or_default();
        let script = "echo $$ > \"$0\" && exec \"$@\"";
        ["sh", "-c", script, &group.display().to_string(), &program.display().to_string()]
            .map(str::to_owned)
            .to_vec()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        for folder in self.folders.iter().rev() {
            // Other tests may have groups below it; the last one removes it.
            let _ = fs::remove_dir(folder);
        }
    }
}

/// Why no groups can be made; `None` where they can.
pub(crate) fn missing() -> Option<String> {
    let name = format!("spire-e2e-{}", std::process::id());
    for hierarchy in [Hierarchy::Controller, Hierarchy::Unified] {
        if let Err(error) = Cgroup::new(hierarchy, &name) {
            return Some(error.to_string());
        }
    }
    None
}
