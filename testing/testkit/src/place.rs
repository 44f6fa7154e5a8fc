//! Folders and ports of a test's own.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU16, Ordering};

use tempfile::TempDir;

use crate::error::{Error, Result};

/// Ports handed out lie below the range that Linux takes for outgoing connections, which would collide.
const FIRST_PORT: u16 = 20_000;
const PORTS: u16 = 12_000;
/// How many taken ports in a row mean that something else is wrong.
const TRIES: usize = 500;

/// An empty folder that others may enter (workloads of another user do) and that goes with the value.
///
/// Its name is short: paths of unix sockets have 107 bytes.
///
/// # Errors
/// It cannot be made.
pub fn folder() -> Result<TempDir> {
    let folder = tempfile::Builder::new()
        .prefix("spire-")
        .rand_bytes(8)
        .tempdir()
        .map_err(|error| Error::doing("making a folder", error))?;
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))
        .map_err(|error| Error::doing("opening the folder to others", error))?;
    Ok(folder)
}

/// A TCP port of 127.0.0.1 that was free a moment ago and is not handed out twice by this process.
///
/// # Errors
/// None is free.
pub fn port() -> Result<u16> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Two test processes at once start at different places.
    let start = u16::try_from(u64::from(std::process::id()) * 97 % u64::from(PORTS)).unwrap_or(0);
    (0..TRIES)
        .map(|_| FIRST_PORT + (start + NEXT.fetch_add(1, Ordering::Relaxed)) % PORTS)
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .ok_or_else(|| Error::new("no free port"))
}

/// Permission bits of a file, such as `0o600`.
///
/// # Errors
/// There is no such file.
pub fn mode(path: &Path) -> Result<u32> {
    let meta = fs::symlink_metadata(path).map_err(|error| Error::doing(path.display(), error))?;
    Ok(meta.mode() & 0o7777)
}

/// The text of a file.
///
/// # Errors
/// It cannot be read, or is not UTF-8.
pub fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(|error| Error::doing(path.display(), error))
}

/// Writes a file, making its folder.
///
/// # Errors
/// It cannot be written.
pub fn write(path: &Path, text: &str) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(|error| Error::doing(folder.display(), error))?;
    }
    fs::write(path, text).map_err(|error| Error::doing(path.display(), error))
}

/// A copy of a folder's plain files and folders (sockets are left out), with their modes.
///
/// # Errors
/// Something cannot be read or written.
pub fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    let fail = |error: std::io::Error| Error::doing(format!("copying {}", from.display()), error);
    fs::create_dir_all(to).map_err(fail)?;
    for entry in fs::read_dir(from).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        let kind = entry.file_type().map_err(fail)?;
        let target = to.join(entry.file_name());
        if kind.is_dir() {
            copy_folder(&entry.path(), &target)?;
        } else if kind.is_file() {
            fs::copy(entry.path(), &target).map_err(fail)?;
        }
    }
    Ok(())
}
