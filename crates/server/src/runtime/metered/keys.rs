//! The key manager with its calls measured.

use std::sync::Arc;

use async_trait::async_trait;
use spire_core::pki::{KeyType, PublicKey, SignatureAlgorithm};
use spire_ports::observe::names::server as metric;
use spire_ports::observe::{Call, Metrics};
use spire_ports::plugins::{Key, KeyManager, Result};

/// A key manager whose calls, and those of its keys, are measured.
pub(in crate::runtime) struct MeteredKeys {
    keys: Arc<dyn KeyManager>,
    metrics: Arc<dyn Metrics>,
}

impl MeteredKeys {
    pub(in crate::runtime) fn new(keys: Arc<dyn KeyManager>, metrics: Arc<dyn Metrics>) -> Arc<Self> {
        Arc::new(Self { keys, metrics })
    }

    fn wrap(&self, key: Arc<dyn Key>) -> Arc<dyn Key> {
        Arc::new(MeteredKey { key, metrics: Arc::clone(&self.metrics) })
    }
}

#[async_trait]
impl KeyManager for MeteredKeys {
    fn name(&self) -> &str {
        self.keys.name()
    }

    async fn generate_key(&self, id: &str, key_type: KeyType) -> Result<Arc<dyn Key>> {
        let call = Call::start(&*self.metrics, metric::SERVER_KEY_MANAGER_GENERATE_KEY);
        let key = self.keys.generate_key(id, key_type).await;
        call.done(code(&key));
        key.map(|key| self.wrap(key))
    }

    async fn key(&self, id: &str) -> Result<Option<Arc<dyn Key>>> {
        let call = Call::start(&*self.metrics, metric::SERVER_KEY_MANAGER_GET_PUBLIC_KEY);
        let key = self.keys.key(id).await;
        // The reference's key managers answer NotFound for a key that there is not.
        call.done(if matches!(key, Ok(None)) { "NotFound" } else { code(&key) });
        key.map(|key| key.map(|key| self.wrap(key)))
    }

    async fn keys(&self) -> Result<Vec<Arc<dyn Key>>> {
        let call = Call::start(&*self.metrics, metric::SERVER_KEY_MANAGER_GET_PUBLIC_KEYS);
        let keys = self.keys.keys().await;
        call.done(code(&keys));
        keys.map(|keys| keys.into_iter().map(|key| self.wrap(key)).collect())
    }
}

struct MeteredKey {
    key: Arc<dyn Key>,
    metrics: Arc<dyn Metrics>,
}

#[async_trait]
impl Key for MeteredKey {
    fn id(&self) -> &str {
        self.key.id()
    }

    fn public_key(&self) -> &PublicKey {
        self.key.public_key()
    }

    async fn sign(&self, algorithm: SignatureAlgorithm, message: &[u8]) -> Result<Vec<u8>> {
        let call = Call::start(&*self.metrics, metric::SERVER_KEY_MANAGER_SIGN_DATA);
        let signature = self.key.sign(algorithm, message).await;
        call.done(code(&signature));
        signature
    }
}

fn code<T>(result: &Result<T>) -> &'static str {
    result.as_ref().map_or_else(|error| error.kind.code(), |_| "OK")
}
