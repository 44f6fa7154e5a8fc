//! The key manager with its calls measured (pkg/common/telemetry/agent/keymanager).

use std::sync::Arc;

use async_trait::async_trait;
use spire_core::pki::KeyType;
use spire_ports::observe::names::agent as metric;
use spire_ports::observe::{Call, Metrics};
use spire_ports::plugins::{Key, KeyManager, Result};

/// A key manager whose calls are measured. Signing is not, as in the reference.
pub(crate) struct MeteredKeys {
    keys: Arc<dyn KeyManager>,
    metrics: Arc<dyn Metrics>,
}

impl MeteredKeys {
    pub(crate) fn new(keys: Arc<dyn KeyManager>, metrics: Arc<dyn Metrics>) -> Arc<Self> {
        Arc::new(Self { keys, metrics })
    }
}

#[async_trait]
impl KeyManager for MeteredKeys {
    fn name(&self) -> &str {
        self.keys.name()
    }

    async fn generate_key(&self, id: &str, key_type: KeyType) -> Result<Arc<dyn Key>> {
        let call = Call::start(&*self.metrics, metric::AGENT_KEY_MANAGER_GENERATE_KEY);
        let key = self.keys.generate_key(id, key_type).await;
        call.done(code(&key));
        key
    }

    async fn key(&self, id: &str) -> Result<Option<Arc<dyn Key>>> {
        let call = Call::start(&*self.metrics, metric::AGENT_KEY_MANAGER_GET_KEY);
        let key = self.keys.key(id).await;
        // The reference's key managers answer NotFound for a key that there is not.
        call.done(if matches!(key, Ok(None)) { "NotFound" } else { code(&key) });
        key
    }

    async fn keys(&self) -> Result<Vec<Arc<dyn Key>>> {
        let call = Call::start(&*self.metrics, metric::AGENT_KEY_MANAGER_GET_KEYS);
        let keys = self.keys.keys().await;
        call.done(code(&keys));
        keys
    }
}

fn code<T>(result: &Result<T>) -> &'static str {
    result.as_ref().map_or_else(|error| error.kind.code(), |_| "OK")
}
