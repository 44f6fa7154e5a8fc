//! The folder that is kept between runs.

use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{FlockOperation, flock};

use super::options::Options;

/// A unix socket's path has at most 107 bytes.
const SOCKET_PATH_MAX: usize = 107;

/// What marks a folder as ours, so that `-reset` never empties another one.
const MARK: &str = "spire-dev.lock";

/// An opened folder; another `spire dev` cannot have it at the same time.
pub(super) struct Folder {
    path: PathBuf,
    _lock: File,
}

impl Folder {
    /// Makes or opens the folder, emptied if that was asked for.
    pub(super) fn open(options: &Options) -> Result<Self> {
        let path = match &options.data {
            Some(path) => std::path::absolute(path)?,
            None => default_path()?,
        };
        // Others may pass through to the Workload API's socket, which is for everybody; what is secret has modes
        // of its own.
        DirBuilder::new()
            .recursive(true)
            .mode(0o711)
            .create(&path)
            .with_context(|| path.display().to_string())?;
        let path = path.canonicalize()?;
        let owner = fs::metadata(&path)?.uid();
        ensure!(owner == rustix::process::getuid().as_raw(), "{} belongs to another user", path.display());
        let mark = path.join(MARK);
        if !mark.exists() && path.read_dir()?.next().is_some() {
            bail!("{} has other files in it; choose another folder with -data", path.display());
        }
        let lock = File::create(&mark).with_context(|| mark.display().to_string())?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            bail!("another spire dev uses {}; stop it or choose another folder with -data", path.display());
        }
        let folder = Self { path, _lock: lock };
        if options.reset {
            folder.empty()?;
        }
        ensure!(
            folder.agent_socket().as_os_str().len() <= SOCKET_PATH_MAX,
            "{} is too long for a socket; choose a shorter folder with -data",
            folder.path.display()
        );
        Ok(folder)
    }

    fn empty(&self) -> Result<()> {
        for entry in self.path.read_dir()? {
            let entry = entry?;
            if entry.file_name() == MARK {
                continue;
            }
            let path = entry.path();
            let removed =
                if entry.file_type()?.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.with_context(|| path.display().to_string())?;
        }
        Ok(())
    }

    /// Where the server keeps its keys and database.
    pub(super) fn server(&self) -> PathBuf {
        self.path.join("server")
    }

    /// Where the agent keeps its keys and SVID.
    pub(super) fn agent(&self) -> PathBuf {
        self.path.join("agent")
    }

    /// The server's API socket.
    pub(super) fn server_socket(&self) -> PathBuf {
        self.path.join("server.sock")
    }

    /// The Workload API socket.
    pub(super) fn agent_socket(&self) -> PathBuf {
        self.path.join("agent.sock")
    }

    /// The log of both.
    pub(super) fn log(&self) -> PathBuf {
        self.path.join("spire.log")
    }

    /// The bundle that the agent starts its trust with.
    pub(super) fn bundle(&self) -> PathBuf {
        self.path.join("bundle.pem")
    }

    /// Writes that bundle.
    pub(super) fn write_bundle(&self, pem: &str) -> Result<()> {
        fs::write(self.bundle(), pem).with_context(|| self.bundle().display().to_string())
    }

    /// Forgets the agent, so that it can join anew.
    pub(super) fn forget_agent(&self) -> Result<()> {
        match fs::remove_dir_all(self.agent()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Whether an agent has joined from this folder before.
    pub(super) fn has_agent(&self) -> bool {
        self.agent().join("agent-data.json").exists()
    }
}

fn default_path() -> Result<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| Path::new(value).is_absolute());
    if let Some(data) = set("XDG_DATA_HOME") {
        return Ok(Path::new(&data).join("spire-dev"));
    }
    let home = set("HOME").context("HOME is not set; choose a folder with -data")?;
    Ok(Path::new(&home).join(".local/share/spire-dev"))
}
