//! KeyManager `memory` and `disk`, of server and agent: keys in this process, kept in a file or not.
//!
//! Callers hold keys as objects and sign with them; nothing is locked then. Making a key goes through one
//! writer at a time: the file is complete on disk before anyone can see the new key, and when it cannot be
//! written the old key stays in place, in memory and on disk.

mod keys_file;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::RwLock;
use spire_compat::errno::path_error;
use spire_core::pki::{KeyType, LocalKey, PublicKey, SignatureAlgorithm};
use spire_ports::plugins::catalog::Configuration;
use spire_ports::plugins::{Error, ErrorKind, Key, KeyManager, PluginType, Result};
use tokio::sync::Mutex;

use crate::machine::blocking;
use keys_file::KeysFile;

/// Keys by id.
type Keys = BTreeMap<String, Arc<StoredKey>>;

/// The server's and the agent's `memory`: keys live as long as the process.
pub(crate) async fn memory(_: Configuration) -> Result<Arc<dyn KeyManager>> {
    Ok(Arc::new(LocalKeys(Arc::new(Shared { name: "memory", disk: None, ..Shared::default() }))))
}

/// The server's `disk`: `keys_path` names the file.
pub(crate) async fn server_disk(configuration: Configuration) -> Result<Arc<dyn KeyManager>> {
    open(configuration, Place::KeysPath).await
}

/// The agent's `disk`: `keys.json` in `directory`, which is made when it does not exist.
pub(crate) async fn agent_disk(configuration: Configuration) -> Result<Arc<dyn KeyManager>> {
    open(configuration, Place::Directory).await
}

/// What a configuration of `disk` names.
#[derive(Clone, Copy)]
enum Place {
    KeysPath,
    Directory,
}

impl Place {
    /// The path of the file. A folder exists, and can be written into, when this returns it.
    async fn path(self, configuration: &Configuration) -> Result<PathBuf> {
        let (key, missing) = match self {
            Self::KeysPath => ("keys_path", "keys_path is required"),
            Self::Directory => ("directory", "directory must be configured"),
        };
        let path = configuration
            .decode(|data| data.take_string(key))
            .map_err(|error| configuration.invalid(format!("unable to decode configuration: {error}")))?
            .filter(|path| !path.is_empty())
            .map(PathBuf::from)
            .ok_or_else(|| configuration.invalid(missing))?;
        let Self::Directory = self else { return Ok(path) };
        let file = path.join("keys.json");
        blocking(move || verify_directory(&path)).await.map_err(|error| {
            let message = format!("directory validation failed: {error}");
            configuration.error(ErrorKind::FailedPrecondition, message)
        })?;
        Ok(file)
    }
}

/// Makes the directory and tries to write in it, so that a wrong one fails at start rather than when the
/// first key is stored.
fn verify_directory(directory: &std::path::Path) -> std::result::Result<(), String> {
    use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};

    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(|error| path_error("mkdir", directory.display(), &error))?;
    let probe = directory.join(".probe");
    std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&probe)
        .map_err(|error| path_error("open", probe.display(), &error))?;
    // Left behind it harms nothing, so this is not a reason to refuse.
    let _ = std::fs::remove_file(&probe);
    Ok(())
}

async fn open(configuration: Configuration, place: Place) -> Result<Arc<dyn KeyManager>> {
    let file = KeysFile::new(place.path(&configuration).await?);
    let (file, loaded) = blocking(move || {
        let loaded = file.load();
        (file, loaded)
    })
    .await;
    let keys = loaded.map_err(|error| configuration.error(error.kind(), error.to_string()))?;
    Ok(Arc::new(LocalKeys(Arc::new(Shared {
        name: "disk",
        disk: Some(Disk { place, file: RwLock::new(file) }),
        keys: RwLock::new(keys),
        writer: Arc::default(),
    }))))
}

struct LocalKeys(Arc<Shared>);

#[derive(Default)]
struct Shared {
    name: &'static str,
    disk: Option<Disk>,
    keys: RwLock<Keys>,
    /// Held while a key is put in its place or another file is taken, until file and memory agree again.
    writer: Arc<Mutex<()>>,
}

/// Where keys are kept.
struct Disk {
    place: Place,
    file: RwLock<KeysFile>,
}

impl Shared {
    fn error(&self, kind: ErrorKind, message: impl Into<String>) -> Error {
        Error::new(kind, (PluginType::KeyManager, self.name), message)
    }

    /// Puts a key in its place: first in the file, then in memory.
    fn store(&self, key: Arc<StoredKey>) -> Result<()> {
        if let Some(disk) = &self.disk {
            let mut keys = self.keys.read().clone();
            keys.insert(key.id.clone(), Arc::clone(&key));
            disk.file.read().store(&keys).map_err(|error| {
                let message = format!("failed to generate key: unable to write entries: {error}");
                self.error(ErrorKind::Internal, message)
            })?;
        }
        self.keys.write().insert(key.id.clone(), key);
        Ok(())
    }

    /// Keeps the keys in another file from now on: those that there are at once, or a restart would not find them.
    fn move_to(&self, disk: &Disk, file: KeysFile) -> Result<()> {
        if *disk.file.read() == file {
            return Ok(());
        }
        file.store(&self.keys.read())
            .map_err(|error| self.error(ErrorKind::Internal, format!("unable to write entries: {error}")))?;
        *disk.file.write() = file;
        Ok(())
    }
}

#[async_trait]
impl KeyManager for LocalKeys {
    fn name(&self) -> &str {
        self.0.name
    }

    async fn generate_key(&self, id: &str, key_type: KeyType) -> Result<Arc<dyn Key>> {
        let shared = Arc::clone(&self.0);
        if id.is_empty() {
            return Err(
                shared.error(ErrorKind::InvalidArgument, "failed to generate key: key id is required")
            );
        }
        let id = id.to_owned();
        // An RSA key takes up to seconds; the writer is not held for that.
        let made = match key_type {
            KeyType::EcP256 | KeyType::EcP384 => LocalKey::generate(key_type),
            KeyType::Rsa2048 | KeyType::Rsa4096 => blocking(move || LocalKey::generate(key_type)).await,
        };
        let local = made
            .map_err(|error| shared.error(ErrorKind::Internal, format!("failed to generate key: {error}")))?;
        let key = Arc::new(StoredKey { id, plugin: shared.name, local: Arc::new(local) });
        let writer = Arc::clone(&shared.writer).lock_owned().await;
        if shared.disk.is_none() {
            shared.store(Arc::clone(&key))?;
            return Ok(key);
        }
        // The writer goes along, so that a caller who stops waiting does not let two writes meet.
        blocking(move || {
            let _writer = writer;
            shared.store(Arc::clone(&key))?;
            Ok(key as Arc<dyn Key>)
        })
        .await
    }

    async fn key(&self, id: &str) -> Result<Option<Arc<dyn Key>>> {
        Ok(self.0.keys.read().get(id).map(|key| Arc::clone(key) as Arc<dyn Key>))
    }

    async fn keys(&self) -> Result<Vec<Arc<dyn Key>>> {
        Ok(self.0.keys.read().values().map(|key| Arc::clone(key) as Arc<dyn Key>).collect())
    }

    /// The file is read at the start only (pkg/server/plugin/keymanager/disk): what signs now is in memory.
    async fn reconfigure(&self, configuration: &Configuration) -> Option<Result<()>> {
        let shared = Arc::clone(&self.0);
        let file = match shared.disk.as_ref()?.place.path(configuration).await {
            Ok(path) => KeysFile::new(path),
            Err(error) => return Some(Err(error)),
        };
        let writer = Arc::clone(&shared.writer).lock_owned().await;
        blocking(move || {
            let _writer = writer;
            Some(shared.move_to(shared.disk.as_ref()?, file))
        })
        .await
    }
}

/// A key with its id.
pub(crate) struct StoredKey {
    id: String,
    plugin: &'static str,
    local: Arc<LocalKey>,
}

#[async_trait]
impl Key for StoredKey {
    fn id(&self) -> &str {
        &self.id
    }

    fn public_key(&self) -> &PublicKey {
        self.local.public_key()
    }

    async fn sign(&self, algorithm: SignatureAlgorithm, message: &[u8]) -> Result<Vec<u8>> {
        let signed = if self.public_key().key_type() == Some(KeyType::Rsa4096) {
            // Over a millisecond: too long between two awaits. Others take microseconds, less than a hop
            // to another thread.
            let (local, message) = (Arc::clone(&self.local), message.to_vec());
            blocking(move || local.sign(algorithm, &message)).await
        } else {
            self.local.sign(algorithm, message)
        };
        signed.map_err(|error| {
            let message =
                format!("failed to sign data: keypair {:?} signing operation failed: {error}", self.id);
            Error::new(ErrorKind::Internal, (PluginType::KeyManager, self.plugin), message)
        })
    }
}
