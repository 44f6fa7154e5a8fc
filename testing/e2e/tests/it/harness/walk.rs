//! A walkthrough: a folder that a reader of it has, and the lines that he types there.

use std::path::{Path, PathBuf};
use std::process::Command;

use spire_testkit::{Daemon, Error, Output, Result, Run, place};
use tempfile::TempDir;

use crate::harness::programs;

/// The user that walkthroughs run workloads as. It need not be in the user database.
pub(crate) const WORKLOAD_UID: u32 = 1000;

/// The reader's folder, which has `bin/` with the programs.
pub(crate) struct Walk {
    folder: TempDir,
}

impl Walk {
    /// A folder with copies of the programs in `bin`, which another user may run.
    pub(crate) fn new(bin: &str) -> Result<Self> {
        let walk = Self { folder: place::folder()? };
        let programs = programs::under_test();
        std::fs::create_dir_all(walk.path(bin)).map_err(|error| Error::doing(bin, error))?;
        for (from, name) in [(programs.server(), "spire-server"), (programs.agent(), "spire-agent")] {
            std::fs::copy(&from, walk.path(bin).join(name))
                .map_err(|error| Error::doing(from.display(), error))?;
        }
        Ok(walk)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A file of `testing/e2e/samples`, as `name` in the folder.
    pub(crate) fn sample(&self, sample: &str, name: &str) -> Result<()> {
        let Some((_, text)) = SAMPLES.iter().find(|(known, _)| *known == sample) else {
            return Err(Error::new(format!("no sample {sample}")));
        };
        place::write(&self.path(name), text)
    }

    /// A line typed by root.
    pub(crate) fn typed(&self, line: &str) -> Result<Output> {
        Run::new("sh").args(&["-c", line]).within(self.folder.path()).output()
    }

    /// A line typed by root that succeeds.
    pub(crate) fn works(&self, line: &str) -> Result<Output> {
        self.typed(line)?.success().map_err(|error| Error::doing(line, error))
    }

    /// A line typed by the workload's user.
    pub(crate) fn typed_by_workload(&self, line: &str) -> Result<Output> {
        let shell = Run::as_user(WORKLOAD_UID, Path::new("sh"));
        shell.args(&["-c", line]).within(self.folder.path()).output()
    }

    /// A line typed with `&` behind it.
    pub(crate) fn background(&self, name: &str, line: &str) -> Result<Daemon> {
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("exec {line}")]).current_dir(self.folder.path());
        Daemon::spawn(name, shell)
    }
}

/// The samples are part of the test binary: a walkthrough has a `/tmp` of its own, and the checkout may be in the other one.
const SAMPLES: &[(&str, &str)] = &[
    ("000-agent.conf", include_str!("../../../samples/000-agent.conf")),
    ("000-server-old.conf", include_str!("../../../samples/000-server-old.conf")),
    ("000-server.conf", include_str!("../../../samples/000-server.conf")),
    ("001-agent.conf", include_str!("../../../samples/001-agent.conf")),
    ("001-server-old.conf", include_str!("../../../samples/001-server-old.conf")),
    ("001-server.conf", include_str!("../../../samples/001-server.conf")),
    ("003-agent.conf", include_str!("../../../samples/003-agent.conf")),
    ("003-server.conf", include_str!("../../../samples/003-server.conf")),
    ("upstream-ca.cnf", include_str!("../../../samples/upstream-ca.cnf")),
];
