//! The keys of certificates whose place is the folder of the chains.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use spire_core::pki::{KeyType, LocalKey, PrivateKeyError, PublicKey, SignatureAlgorithm};
use spire_ports::plugins::{Error, ErrorKind, Key, KeyManager, PluginType, Result};
use zeroize::Zeroizing;

const NAME: &str = "acme";

/// Keys in memory; whoever asked for one keeps it where it belongs.
#[derive(Default)]
pub(super) struct OwnKeys(Mutex<HashMap<String, Arc<OwnKey>>>);

struct OwnKey {
    id: String,
    key: LocalKey,
}

impl OwnKeys {
    /// Takes a key that was kept.
    pub(super) fn put(&self, id: &str, key: LocalKey) {
        self.0.lock().insert(id.to_owned(), Arc::new(OwnKey { id: id.to_owned(), key }));
    }

    /// A key to be kept.
    pub(super) fn pem(&self, id: &str) -> Option<Zeroizing<String>> {
        self.0.lock().get(id)?.key.to_pkcs8_pem().ok()
    }
}

fn failed(error: PrivateKeyError) -> Error {
    Error::new(ErrorKind::Internal, (PluginType::KeyManager, NAME), error.to_string())
}

#[async_trait::async_trait]
impl KeyManager for OwnKeys {
    fn name(&self) -> &str {
        NAME
    }

    async fn generate_key(&self, id: &str, key_type: KeyType) -> Result<Arc<dyn Key>> {
        let key = LocalKey::generate(key_type).map_err(failed)?;
        let key = Arc::new(OwnKey { id: id.to_owned(), key });
        self.0.lock().insert(id.to_owned(), Arc::clone(&key));
        Ok(key)
    }

    async fn key(&self, id: &str) -> Result<Option<Arc<dyn Key>>> {
        Ok(self.0.lock().get(id).cloned().map(|key| key as Arc<dyn Key>))
    }

    async fn keys(&self) -> Result<Vec<Arc<dyn Key>>> {
        Ok(self.0.lock().values().cloned().map(|key| key as Arc<dyn Key>).collect())
    }
}

#[async_trait::async_trait]
impl Key for OwnKey {
    fn id(&self) -> &str {
        &self.id
    }

    fn public_key(&self) -> &PublicKey {
        self.key.public_key()
    }

    async fn sign(&self, algorithm: SignatureAlgorithm, message: &[u8]) -> Result<Vec<u8>> {
        self.key.sign(algorithm, message).map_err(failed)
    }
}
