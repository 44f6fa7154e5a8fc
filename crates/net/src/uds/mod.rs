//! Unix sockets: listeners whose connections know the process at the other end.
//!
//! [`UnixEndpoint::bind`] makes the socket with the modes that SPIRE uses; [`UnixIncoming`] is the stream of
//! connections that a tonic server takes. Each connection carries a [`PeerInfo`], which handlers find in the
//! request's extensions.

mod incoming;
mod limits;
mod peer;
#[cfg(test)]
mod tests;

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;

pub use self::incoming::{UnixConnection, UnixIncoming};
pub use self::limits::{CONNECTIONS_MAX, CONNECTIONS_PER_USER_MAX, ConnectionLimits, raise_open_file_limit};
pub use self::peer::{PeerError, PeerInfo, PinnedProcess};

pub(crate) use self::limits::Permit;

use spire_compat::errno::errno_text;

/// Mode of the server's socket, and of the agent's admin and broker sockets (behind the directory's mode).
pub const RESTRICTED_SOCKET_MODE: u32 = 0o770;

/// Mode of the agent's Workload API socket: who may have an identity is decided by attestation, not by the
/// file.
pub const PUBLIC_SOCKET_MODE: u32 = 0o777;

/// Mode of the directory of the server's socket.
pub const RESTRICTED_DIRECTORY_MODE: u32 = 0o750;

/// Mode asked for the directories of the agent's sockets; the process umask is applied to it.
pub const PUBLIC_DIRECTORY_MODE: u32 = 0o755;

/// Whether connections are tied to the process that made them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerTracking {
    /// The process is pinned at accept; a connection whose process cannot be found is refused. The Workload
    /// API, admin and broker sockets need it, and the server's with the audit log.
    Pinned,
    /// Only the credentials that the kernel gives are kept.
    CredentialsOnly,
}

/// How a unix socket is made.
#[derive(Debug, Clone)]
pub struct UnixEndpoint {
    /// Path of the socket.
    pub path: PathBuf,
    /// Mode of directories that have to be made for it, before the umask.
    pub directory_mode: u32,
    /// Mode of the socket, whatever the umask.
    pub socket_mode: u32,
    /// What is known of peers.
    pub tracking: PeerTracking,
    /// Bounds on open connections.
    pub limits: ConnectionLimits,
}

/// Why a socket could not be made. Texts as Go's, since operators search for them.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The directory is missing and could not be made.
    #[error("mkdir {}: {}", path.display(), errno_text(source))]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The socket could not be bound.
    #[error("listen unix {}: bind: {}", path.display(), errno_text(source))]
    Bind {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The socket's mode could not be set.
    #[error("unable to change UDS permissions: chmod {}: {}", path.display(), errno_text(source))]
    Mode {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl UnixEndpoint {
    /// SPIRE server's API socket: `/tmp/spire-server/private/api.sock` by default.
    pub fn server(path: impl Into<PathBuf>, tracking: PeerTracking) -> Self {
        Self {
            path: path.into(),
            directory_mode: RESTRICTED_DIRECTORY_MODE,
            socket_mode: RESTRICTED_SOCKET_MODE,
            tracking,
            limits: ConnectionLimits::from_open_file_limit(),
        }
    }

    /// SPIRE agent's Workload API socket: `/tmp/spire-agent/public/api.sock` by default.
    pub fn workload(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            directory_mode: PUBLIC_DIRECTORY_MODE,
            socket_mode: PUBLIC_SOCKET_MODE,
            tracking: PeerTracking::Pinned,
            limits: ConnectionLimits::from_open_file_limit(),
        }
    }

    /// SPIRE agent's admin and broker sockets.
    pub fn agent_restricted(path: impl Into<PathBuf>) -> Self {
        Self { socket_mode: RESTRICTED_SOCKET_MODE, ..Self::workload(path) }
    }

    /// Makes the missing directories. [`bind`](Self::bind) does it too; the agent does it first for its
    /// public socket, since the umask is tightened between the two.
    pub fn create_directory(&self) -> Result<(), BindError> {
        let Some(directory) = self.path.parent().filter(|parent| !parent.as_os_str().is_empty()) else {
            return Ok(());
        };
        DirBuilder::new()
            .recursive(true)
            .mode(self.directory_mode)
            .create(directory)
            .map_err(|source| BindError::Directory { path: directory.to_owned(), source })
    }

    /// Makes the socket and listens. A socket that an earlier process left is removed; any other file is not,
    /// and then the bind fails with "address already in use".
    ///
    /// Needs a tokio runtime.
    pub fn bind(&self) -> Result<UnixIncoming, BindError> {
        self.create_directory()?;
        remove_stale_socket(&self.path);
        let bind_error = |source| BindError::Bind { path: self.path.clone(), source };
        let listener = UnixListener::bind(&self.path).map_err(bind_error)?;
        let file = SocketFile::of(&self.path).map_err(bind_error)?;
        fs::set_permissions(&self.path, Permissions::from_mode(self.socket_mode))
            .map_err(|source| BindError::Mode { path: self.path.clone(), source })?;
        Ok(UnixIncoming::new(listener, file, self.tracking, self.limits))
    }
}

fn remove_stale_socket(path: &Path) {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket());
    if is_socket && let Err(error) = fs::remove_file(path) {
        // The bind that follows fails and says more.
        let error = errno_text(&error);
        tracing::debug!(path = %path.display(), error, "Stale socket could not be removed");
    }
}

/// The socket's file, removed when the listener goes unless another process has put its own there since.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl SocketFile {
    fn of(path: &Path) -> io::Result<Self> {
        let metadata = fs::symlink_metadata(path)?;
        Ok(Self { path: path.to_owned(), device: metadata.dev(), inode: metadata.ino() })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == (self.device, self.inode));
        if ours {
            // Nothing is lost where it fails: the next start removes a stale socket.
            let _ = fs::remove_file(&self.path);
        }
    }
}
