//! Names of users and groups from `/etc/passwd` and `/etc/group`.
//!
//! The files are read again when they change. NSS (LDAP, sssd, systemd's dynamic users) is not asked: it
//! is loaded code, which a static binary without `unsafe` cannot call. docs/differences.md says so.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::RwLock;

/// Larger files are not accounts of one machine; names of the rest are not found.
const MAX_FILE_BYTES: u64 = 8 << 20;

/// Names by number, out of one file.
pub(super) struct Names {
    path: PathBuf,
    /// Fields that a line must have to count.
    fields: usize,
    read: RwLock<Read>,
}

#[derive(Clone, Default)]
struct Read {
    /// What the file was when it was read; `None` when there was none.
    version: Option<Version>,
    names: Arc<HashMap<u32, String>>,
}

/// What changes when a file does: device, inode, size, and both times in nanoseconds.
type Version = (u64, u64, u64, (i64, i64), (i64, i64));

impl Names {
    /// Lines of passwd(5): name, password, uid, gid, …
    pub(super) fn users(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), fields: 6, read: RwLock::default() }
    }

    /// Lines of group(5): name, password, gid, members.
    pub(super) fn groups(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), fields: 4, read: RwLock::default() }
    }

    /// The name of a number, if the file has one now.
    pub(super) fn find(&self, id: u32) -> Option<String> {
        let version = version(&std::fs::metadata(&self.path).ok()?);
        {
            let read = self.read.read();
            if read.version == Some(version) {
                return read.names.get(&id).cloned();
            }
        }
        let fresh = self.load()?;
        let name = fresh.names.get(&id).cloned();
        *self.read.write() = fresh;
        name
    }

    fn load(&self) -> Option<Read> {
        let file = File::open(&self.path).ok()?;
        let version = version(&file.metadata().ok()?);
        let mut text = Vec::new();
        file.take(MAX_FILE_BYTES).read_to_end(&mut text).ok()?;
        let names = parse(&String::from_utf8_lossy(&text), self.fields);
        Some(Read { version: Some(version), names: Arc::new(names) })
    }
}

fn version(metadata: &std::fs::Metadata) -> Version {
    (
        metadata.dev(),
        metadata.ino(),
        metadata.size(),
        (metadata.mtime(), metadata.mtime_nsec()),
        (metadata.ctime(), metadata.ctime_nsec()),
    )
}

/// The first line of a number counts. Comments, and the `+` and `-` lines of NIS, are passed over (Go's
/// os/user, lookup_unix.go).
pub(super) fn parse(text: &str, fields: usize) -> HashMap<u32, String> {
    let mut names = HashMap::new();
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
        let parts: Vec<&str> = line.splitn(fields + 1, ':').collect();
        let [name, _, id, ..] = parts.as_slice() else { continue };
        if parts.len() < fields || name.is_empty() || name.starts_with(['+', '-']) {
            continue;
        }
        if let Ok(id) = id.parse() {
            names.entry(id).or_insert_with(|| (*name).to_owned());
        }
    }
    names
}
