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
    Ok(Arc::new(LocalKeys(Arc::new(Shared { name: "memory", file: None, ..Shared::default() }))))
}

/// The server's `disk`: `keys_path` names the file.
pub(crate) async fn server_disk(configuration: Configuration) -> Result<Arc<dyn KeyManager>> {
    let path = configuration
        .decode(|data| data.take_string("keys_path"))
        .map_err(|error| configuration.invalid(format!("unable to decode configuration: {error}")))?
        .filter(|path| !path.is_empty())
        .ok_or_else(|| configuration.invalid("keys_path is required"))?;
    open(configuration, PathBuf::from(path)).await
}

/// The agent's `disk`: `keys.json` in `directory`, which is made when it does not exist.
pub(crate) async fn agent_disk(configuration: Configuration) -> Result<Arc<dyn KeyManager>> {
    let directory = configuration
        .decode(|data| data.take_string("directory"))
        .map_err(|error| configuration.invalid(format!("unable to decode configuration: {error}")))?
        .filter(|path| !path.is_empty())
        .ok_or_else(|| configuration.invalid("directory must be configured"))?;
    let path = PathBuf::from(directory);
    let file = path.join("keys.json");
    blocking(move || verify_directory(&path)).await.map_err(|error| {
        configuration.error(ErrorKind::FailedPrecondition, format!("directory validation failed: {error}"))
    })?;
    open(configuration, file).await
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

async fn open(configuration: Configuration, path: PathBuf) -> Result<Arc<dyn KeyManager>> {
    let file = KeysFile::new(path);
    let (file, loaded) = blocking(move || {
        let loaded = file.load();
        (file, loaded)
    })
    .await;
    let keys = loaded.map_err(|error| configuration.error(error.kind(), error.to_string()))?;
    Ok(Arc::new(LocalKeys(Arc::new(Shared {
        name: "disk",
        file: Some(file),
        keys: RwLock::new(keys),
        writer: Arc::default(),
    }))))
}

struct LocalKeys(Arc<Shared>);

#[derive(Default)]
struct Shared {
    name: &'static str,
    file: Option<KeysFile>,
    keys: RwLock<Keys>,
    /// Held while a key is put in its place, until file and memory agree again.
    writer: Arc<Mutex<()>>,
}

impl Shared {
    fn error(&self, kind: ErrorKind, message: impl Into<String>) -> Error {
        Error::new(kind, (PluginType::KeyManager, self.name), message)
    }

    /// Puts a key in its place: first in the file, then in memory.
    fn store(&self, key: Arc<StoredKey>) -> Result<()> {
        if let Some(file) = &self.file {
            let mut keys = self.keys.read().clone();
            keys.insert(key.id.clone(), Arc::clone(&key));
            file.store(&keys).map_err(|error| {
                let message = format!("failed to generate key: unable to write entries: {error}");
                self.error(ErrorKind::Internal, message)
            })?;
        }
        self.keys.write().insert(key.id.clone(), key);
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
        if shared.file.is_none() {
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
