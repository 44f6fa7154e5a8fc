//! The keys file: `{"keys": {"<id>": "<base64 of PKCS#8>"}}`, tab-indented with sorted ids, as the
//! reference writes and reads it (pkg/server/plugin/keymanager/disk).

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use spire_compat::errno::{errno_text, path_error};
use spire_compat::files::read_open;
use spire_compat::quote::quote;
use spire_core::pki::{LocalKey, PrivateKeyError};
use spire_ports::plugins::ErrorKind;
use zeroize::{Zeroize as _, Zeroizing};

use super::{Keys, StoredKey};
use crate::machine::MAX_FILE_BYTES;

/// Why the keys cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub(super) enum LoadError {
    /// The file cannot be read. The text is Go's.
    #[error("{0}")]
    Read(String),
    /// Everyone on the machine can read the file.
    #[error("keys file {path} has mode {mode:04o}: everyone can read the private keys in it; use 0600")]
    WorldReadable {
        /// The file.
        path: String,
        /// Its permission bits.
        mode: u32,
    },
    /// Not JSON of the form that we write.
    #[error("unable to decode keys JSON: {0}")]
    Json(String),
    /// A key in it is not PKCS#8 of a kind that we know.
    #[error("unable to parse key {}: {error}", quote(id))]
    Key {
        /// Its id.
        id: String,
        /// What is wrong with it.
        error: PrivateKeyError,
    },
    /// A key of a size that is not configurable, RSA with 3072 bits for example.
    #[error("unable to make entry {}: unsupported key size", quote(id))]
    Size {
        /// Its id.
        id: String,
    },
}

impl LoadError {
    pub(super) fn kind(&self) -> ErrorKind {
        match self {
            Self::Read(_) => ErrorKind::Unknown,
            Self::WorldReadable { .. } => ErrorKind::FailedPrecondition,
            _ => ErrorKind::Internal,
        }
    }
}

#[derive(PartialEq, Eq)]
pub(super) struct KeysFile {
    path: PathBuf,
}

/// Contents of the file, wiped when dropped.
#[derive(Default, Deserialize)]
struct Document {
    #[serde(default)]
    keys: Option<BTreeMap<String, Option<String>>>,
}

impl Drop for Document {
    fn drop(&mut self) {
        for key in self.keys.iter_mut().flat_map(BTreeMap::values_mut).flatten() {
            key.zeroize();
        }
    }
}

impl KeysFile {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// The keys in the file; none when there is no file yet.
    pub(super) fn load(&self) -> Result<Keys, LoadError> {
        let path = self.path.display();
        let failed = |what, error: io::Error| LoadError::Read(path_error(what, &path, &error));
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Keys::new()),
            Err(error) => return Err(failed("open", error)),
        };
        let metadata = file.metadata().map_err(|error| failed("stat", error))?;
        let mode = metadata.mode() & 0o7777;
        if metadata.is_file() && mode & 0o004 != 0 {
            return Err(LoadError::WorldReadable { path: path.to_string(), mode });
        }
        if metadata.is_file() && mode & 0o040 != 0 {
            tracing::warn!(path = %path, mode = %format_args!("{mode:04o}"), "Keys file can be read by its group");
        }
        let text = read_open(file, metadata.len(), MAX_FILE_BYTES).map_err(|error| failed("read", error))?;
        if text.trim_ascii_start().starts_with(b"[") {
            // serde takes a list for a structure; Go does not.
            return Err(LoadError::Json("an object is wanted, not a list".to_owned()));
        }
        let document: Document =
            serde_json::from_slice(&text).map_err(|error| LoadError::Json(error.to_string()))?;
        let mut keys = Keys::new();
        for (id, encoded) in document.keys.iter().flatten() {
            let encoded = encoded.as_deref().unwrap_or_default();
            let der = STANDARD
                .decode(encoded)
                .map(Zeroizing::new)
                .map_err(|error| LoadError::Json(format!("key {}: {error}", quote(id))))?;
            let local =
                LocalKey::from_pkcs8(&der).map_err(|error| LoadError::Key { id: id.clone(), error })?;
            if local.public_key().key_type().is_none() {
                return Err(LoadError::Size { id: id.clone() });
            }
            let key = StoredKey { id: id.clone(), plugin: "disk", local: Arc::new(local) };
            keys.insert(id.clone(), Arc::new(key));
        }
        Ok(keys)
    }

    /// Writes all keys. When this returns they are on disk, and when it fails the file is what it was.
    pub(super) fn store(&self, keys: &Keys) -> Result<(), String> {
        let text = encode(keys).map_err(|error| error.to_string())?;
        let temporary = temporary_path(&self.path);
        let written = write_new(&temporary, &text).and_then(|()| {
            std::fs::rename(&temporary, &self.path).map_err(|error| {
                let (from, to) = (temporary.display(), self.path.display());
                format!("rename {from} {to}: {}", errno_text(&error))
            })
        });
        if written.is_err() {
            // Half a file of keys is of no use to anyone; that it may not exist is no news.
            let _ = std::fs::remove_file(&temporary);
            return written;
        }
        // Without this the rename may be lost with the power.
        let directory = match self.path.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        File::open(directory)
            .and_then(|directory| directory.sync_all())
            .map_err(|error| path_error("sync", directory.display(), &error))
    }
}

/// In the same folder, since renaming is atomic only within a file system.
fn temporary_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    PathBuf::from(name)
}

/// Writes a file that nobody else can read at any moment, and waits until it is on disk.
fn write_new(path: &Path, text: &[u8]) -> Result<(), String> {
    let failed = |what, error: io::Error| path_error(what, path.display(), &error);
    // One that an interrupted write left may have been opened by someone, or be a link.
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("remove", error)),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(|error| failed("open", error))?;
    // A umask such as 0277 would leave a file that the next start cannot read.
    file.set_permissions(Permissions::from_mode(0o600)).map_err(|error| failed("chmod", error))?;
    file.write_all(text).map_err(|error| failed("write", error))?;
    file.sync_all().map_err(|error| failed("sync", error))
}

/// The file's text. The buffer is made large enough at once, so that no copy of a key stays behind.
fn encode(keys: &Keys) -> Result<Zeroizing<Vec<u8>>, PrivateKeyError> {
    let mut encoded = Vec::with_capacity(keys.len());
    for (id, key) in keys {
        let der = key.local.to_pkcs8()?;
        encoded.push((
            serde_json::Value::from(id.as_str()).to_string(),
            Zeroizing::new(STANDARD.encode(&der[..])),
        ));
    }
    let size: usize = encoded.iter().map(|(id, key)| id.len() + key.len() + 16).sum();
    let mut text = Zeroizing::new(Vec::with_capacity(size + 64));
    text.extend_from_slice(b"{\n\t\"keys\": {");
    for (index, (id, key)) in encoded.iter().enumerate() {
        text.extend_from_slice(if index == 0 { b"\n\t\t" } else { b",\n\t\t" });
        for part in [id.as_bytes(), b": \"", key.as_bytes(), b"\""] {
            text.extend_from_slice(part);
        }
    }
    text.extend_from_slice(if encoded.is_empty() { b"}\n}" } else { b"\n\t}\n}" });
    Ok(text)
}
