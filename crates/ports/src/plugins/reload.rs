//! New configurations for plugins that run (pkg/common/catalog/configure.go): those with a `plugin_data_file`.
//!
//! An external plugin is configured again. Of a built-in one a new object is made, which takes the place of the old,
//! unless it has what must stay ([`super::KeyManager::reconfigure`]); calls in progress end with the one that they began
//! with, and a configuration that is refused changes nothing.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use spire_compat::config::PluginConfig;
use spire_core::pki::{HashAlgorithm, KeyType, PublicKey};
use spire_core::spiffe::{Bundle, JwtAuthority, Selector, SpiffeId};
use tokio::sync::Mutex;

use super::load::Line;
use super::{
    AgentNodeAttestor, Attestation, AttestationStream, BundlePublisher, Challenger, CredentialComposer,
    JwtAuthorityUpdates, JwtSvidAttributes, Key, KeyManager, LocalBundle, MintedCa, NodeAttestor, Notifier,
    Result, StoredSvid, SvidStore, UpstreamAuthority, WorkloadAttestor, WorkloadReference, X509CaAttributes,
    X509SvidAttributes,
};

/// Takes new plugin data.
pub(super) type Apply = Box<
    dyn Fn(String) -> Pin<Box<dyn Future<Output = std::result::Result<(), String>> + Send>> + Send + Sync,
>;

/// A plugin whose data is read from a file.
pub(super) struct FromFile {
    pub(super) kind: &'static str,
    pub(super) config: PluginConfig,
    pub(super) hash: Mutex<String>,
    pub(super) apply: Apply,
}

/// What became of one plugin when its file was read again.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each says it")]
pub enum Reconfigured {
    Unchanged,
    Changed,
    Failed(String),
}

/// The plugins that can take a new configuration.
#[derive(Default)]
pub struct Reconfiguration(pub(super) Vec<FromFile>);

impl Reconfiguration {
    /// Reads the files of all plugins again and gives each plugin whose file changed its new data. Logs a line a
    /// plugin; returns type, name and outcome of each in the order of the configuration.
    pub async fn run(&self) -> Vec<(&'static str, String, Reconfigured)> {
        let mut outcomes = Vec::with_capacity(self.0.len());
        for plugin in &self.0 {
            outcomes.push((plugin.kind, plugin.config.name.clone(), plugin.reconfigure().await));
        }
        outcomes
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromFile {
    async fn reconfigure(&self) -> Reconfigured {
        let log = Line { kind: self.kind, config: &self.config };
        // One at a time, or the later of two reads might lose.
        let mut hash = self.hash.lock().await;
        let applied = match self.config.data.load_text() {
            Err(error) => Err(format!("failed to load plugin data: {error}")),
            Ok(text) => {
                let new = data_hash(&text);
                if new == *hash {
                    log.unchanged(&hash);
                    return Reconfigured::Unchanged;
                }
                (self.apply)(text).await.map(|()| new)
            }
        };
        match applied {
            Ok(new) => {
                log.reconfigured(&hash, &new);
                *hash = new;
                Reconfigured::Changed
            }
            Err(reason) => {
                log.not_reconfigured(&reason);
                Reconfigured::Failed(reason)
            }
        }
    }
}

/// What tells data apart in the log: the first half of its SHA-512, in hex.
pub(super) fn data_hash(text: &str) -> String {
    use std::fmt::Write as _;
    let digest = HashAlgorithm::Sha512.digest(text.as_bytes());
    digest.as_ref().iter().take(16).fold(String::new(), |mut hex, byte| {
        // Writing to a String cannot fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// The plugin of now.
pub struct Current<T: ?Sized> {
    name: String,
    plugin: RwLock<Arc<T>>,
}

impl<T: ?Sized> Current<T> {
    pub(super) fn new(name: String, plugin: Arc<T>) -> Self {
        Self { name, plugin: RwLock::new(plugin) }
    }

    pub(super) fn replace(&self, plugin: Arc<T>) {
        *self.plugin.write().unwrap_or_else(PoisonError::into_inner) = plugin;
    }

    pub(super) fn plugin(&self) -> Arc<T> {
        Arc::clone(&self.plugin.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Sends each call to the plugin of now.
pub(super) struct Reloadable<T: ?Sized>(pub(super) Arc<Current<T>>);

#[async_trait]
impl KeyManager for Reloadable<dyn KeyManager> {
    fn name(&self) -> &str {
        &self.0.name
    }
    async fn generate_key(&self, id: &str, key_type: KeyType) -> Result<Arc<dyn Key>> {
        self.0.plugin().generate_key(id, key_type).await
    }
    async fn key(&self, id: &str) -> Result<Option<Arc<dyn Key>>> {
        self.0.plugin().key(id).await
    }
    async fn keys(&self) -> Result<Vec<Arc<dyn Key>>> {
        self.0.plugin().keys().await
    }
}

#[async_trait]
impl NodeAttestor for Reloadable<dyn NodeAttestor> {
    fn name(&self) -> &str {
        &self.0.name
    }
    async fn attest(&self, payload: Bytes, challenger: &mut dyn Challenger) -> Result<Attestation> {
        self.0.plugin().attest(payload, challenger).await
    }
}

#[async_trait]
impl AgentNodeAttestor for Reloadable<dyn AgentNodeAttestor> {
    fn name(&self) -> &str {
        &self.0.name
    }
    async fn attest(&self, server: &mut dyn AttestationStream) -> Result<()> {
        self.0.plugin().attest(server).await
    }
}

#[async_trait]
impl WorkloadAttestor for Reloadable<dyn WorkloadAttestor> {
    fn name(&self) -> &str {
        &self.0.name
    }
    async fn attest(&self, pid: i32) -> Result<Vec<Selector>> {
        self.0.plugin().attest(pid).await
    }
    async fn attest_reference(&self, reference: &WorkloadReference) -> Result<Vec<Selector>> {
        self.0.plugin().attest_reference(reference).await
    }
}

#[async_trait]
impl SvidStore for Reloadable<dyn SvidStore> {
    fn name(&self) -> &str {
        &self.0.name
    }
    async fn put(&self, svid: &StoredSvid, metadata: &[String]) -> Result<()> {
        self.0.plugin().put(svid, metadata).await
    }
    async fn delete(&self, metadata: &[String]) -> Result<()> {
        self.0.plugin().delete(metadata).await
    }
}

#[async_trait]
impl Notifier for Reloadable<dyn Notifier> {
    fn name(&self) -> &str {
        &self.0.name
    }
    async fn bundle_loaded(&self, bundle: &Bundle) -> Result<()> {
        self.0.plugin().bundle_loaded(bundle).await
    }
    async fn bundle_updated(&self, bundle: &Bundle) -> Result<()> {
        self.0.plugin().bundle_updated(bundle).await
    }
}

#[async_trait]
impl BundlePublisher for Reloadable<dyn BundlePublisher> {
    fn name(&self) -> &str {
        &self.0.name
    }
    async fn publish(&self, bundle: &Bundle) -> Result<bool> {
        self.0.plugin().publish(bundle).await
    }
}

#[async_trait]
impl UpstreamAuthority for Reloadable<dyn UpstreamAuthority> {
    fn name(&self) -> &str {
        &self.0.name
    }
    async fn mint_x509_ca(&self, csr: &[u8], trust_domain: &SpiffeId, ttl: Duration) -> Result<MintedCa> {
        self.0.plugin().mint_x509_ca(csr, trust_domain, ttl).await
    }
    async fn publish_jwt_key(&self, key: &JwtAuthority) -> Result<(Vec<JwtAuthority>, JwtAuthorityUpdates)> {
        self.0.plugin().publish_jwt_key(key).await
    }
    async fn publish_wit_key(&self, key: &JwtAuthority) -> Result<Vec<JwtAuthority>> {
        self.0.plugin().publish_wit_key(key).await
    }
    async fn wit_keys(&self) -> Result<Vec<JwtAuthority>> {
        self.0.plugin().wit_keys().await
    }
    async fn subscribe_to_local_bundle(&self) -> Result<LocalBundle> {
        self.0.plugin().subscribe_to_local_bundle().await
    }
}

#[async_trait]
impl CredentialComposer for Reloadable<dyn CredentialComposer> {
    fn name(&self) -> &str {
        &self.0.name
    }
    async fn server_x509_ca(&self, attributes: X509CaAttributes) -> Result<X509CaAttributes> {
        self.0.plugin().server_x509_ca(attributes).await
    }
    async fn server_x509_svid(&self, attributes: X509SvidAttributes) -> Result<X509SvidAttributes> {
        self.0.plugin().server_x509_svid(attributes).await
    }
    async fn agent_x509_svid(
        &self,
        id: &SpiffeId,
        public_key: &PublicKey,
        attributes: X509SvidAttributes,
    ) -> Result<X509SvidAttributes> {
        self.0.plugin().agent_x509_svid(id, public_key, attributes).await
    }
    async fn workload_x509_svid(
        &self,
        id: &SpiffeId,
        public_key: &PublicKey,
        attributes: X509SvidAttributes,
    ) -> Result<X509SvidAttributes> {
        self.0.plugin().workload_x509_svid(id, public_key, attributes).await
    }
    async fn workload_jwt_svid(
        &self,
        id: &SpiffeId,
        attributes: JwtSvidAttributes,
    ) -> Result<JwtSvidAttributes> {
        self.0.plugin().workload_jwt_svid(id, attributes).await
    }
}
