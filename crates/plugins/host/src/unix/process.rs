//! One process, through its directory in `/proc`, which is opened once.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use aws_lc_rs::digest;
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags};
use spire_compat::errno::path_error;

/// `status` is under 2 KiB plus 11 bytes a group; the kernel allows 65,536 groups.
const MAX_STATUS_BYTES: u64 = 1 << 20;

/// Who the process runs as.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Status {
    /// The effective user.
    pub(super) uid: u32,
    /// The effective group.
    pub(super) gid: u32,
    /// Supplementary groups, in the kernel's order.
    pub(super) groups: Vec<u32>,
}

pub(super) struct Process {
    directory: OwnedFd,
    path: PathBuf,
}

impl Process {
    /// Holds the process: when it ends, reads fail rather than tell of another of the same number.
    pub(super) fn open(proc: &Path, pid: i32) -> Result<Self, String> {
        let path = proc.join(pid.to_string());
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(&path, flags, Mode::empty()).map_err(|error| match error {
            rustix::io::Errno::NOENT => "failed to get process: process does not exist".to_owned(),
            error => format!("failed to get process: {}", path_error("open", path.display(), &error.into())),
        })?;
        Ok(Self { directory, path })
    }

    /// Users and groups.
    pub(super) fn status(&self) -> Result<Status, String> {
        let mut text = String::new();
        self.open_file("status")
            .and_then(|file| file.take(MAX_STATUS_BYTES).read_to_string(&mut text))
            .map_err(|error| format!("UIDs lookup: {}", self.describe("open", "status", &error)))?;
        parse_status(&text)
    }

    /// Where the executable is, in the mount namespace of the process.
    pub(super) fn path(&self) -> Result<String, String> {
        let link = rustix::fs::readlinkat(&self.directory, "exe", Vec::new())
            .map_err(|error| format!("path lookup: {}", self.describe("readlink", "exe", &error.into())))?;
        link.into_string().map_err(|_| "path lookup: path is not UTF-8".to_owned())
    }

    /// The SHA-256 of the executable that runs, in hex, even if its file was replaced since.
    pub(super) fn sha256(&self, limit: i64) -> Result<String, String> {
        let failed =
            |what, error: io::Error| format!("SHA256 digest: {}", self.describe(what, "exe", &error));
        let mut file = self.open_file("exe").map_err(|error| failed("open", error))?;
        if limit > 0 {
            let size = file.metadata().map_err(|error| failed("stat", error))?.len();
            if i64::try_from(size).is_ok_and(|size| size > limit) {
                let path = self.path.join("exe");
                return Err(format!(
                    "SHA256 digest: workload {} exceeds size limit ({size} > {limit})",
                    path.display()
                ));
            }
        }
        let mut hash = digest::Context::new(&digest::SHA256);
        let mut chunk = vec![0; 128 << 10];
        loop {
            match file.read(&mut chunk) {
                Ok(0) => return Ok(hex::encode(hash.finish())),
                Ok(len) => hash.update(&chunk[..len]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(failed("read", error)),
            }
        }
    }

    fn open_file(&self, name: &str) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        Ok(File::from(rustix::fs::openat(&self.directory, name, flags, Mode::empty())?))
    }

    fn describe(&self, operation: &str, name: &str, error: &io::Error) -> String {
        path_error(operation, self.path.join(name).display(), error)
    }
}

/// Reads the lines `Uid`, `Gid` (real, effective, saved, file system) and `Groups` of proc_pid_status(5).
pub(super) fn parse_status(text: &str) -> Result<Status, String> {
    let field = |name: &str| {
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap_or_default()
    };
    let numbers = |name: &str, what: &str| {
        field(name)
            .split_ascii_whitespace()
            .map(|number| number.parse::<u32>().map_err(|_| format!("{what} lookup: malformed {name}")))
            .collect::<Result<Vec<u32>, String>>()
    };
    let effective = |name: &str, what: &str| {
        let ids = numbers(name, what)?;
        ids.get(1).or(ids.first()).copied().ok_or_else(|| format!("{what} lookup: no {what} for process"))
    };
    Ok(Status {
        uid: effective("Uid", "UIDs")?,
        gid: effective("Gid", "GIDs")?,
        groups: numbers("Groups", "supplementary GIDs")?,
    })
}
