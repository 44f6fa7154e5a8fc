//! The server's plugins, made from its configuration.

use std::collections::BTreeMap;
use std::sync::Arc;

use spire_compat::config::PluginConfig;
use spire_core::spiffe::TrustDomain;
use spire_ports::plugins::catalog::ServerCatalog;
use spire_ports::plugins::load::{Count, LoadError, Loader};
use spire_ports::plugins::{
    BundlePublisher, CredentialComposer, KeyManager, NodeAttestor, Notifier, PluginType, UpstreamAuthority,
};

/// Every plugin of a server but the datastore.
pub struct Plugins {
    /// Where private keys live.
    pub key_manager: Arc<dyn KeyManager>,
    /// By the attestation type that agents name.
    pub node_attestors: BTreeMap<String, Arc<dyn NodeAttestor>>,
    /// Who signs our CA; `None` for self-signed CAs.
    pub upstream_authority: Option<Arc<dyn UpstreamAuthority>>,
    /// Hooks on what is signed, in file order.
    pub credential_composers: Vec<Arc<dyn CredentialComposer>>,
    /// Who hears of the bundle.
    pub notifiers: Vec<Arc<dyn Notifier>>,
    /// Who publishes the bundle.
    pub bundle_publishers: Vec<Arc<dyn BundlePublisher>>,
}

impl Plugins {
    /// Makes the plugins in file order. `DataStore` blocks are passed over: the binary has opened it.
    ///
    /// # Errors
    /// [`LoadError`], the first that happens.
    pub async fn load(
        configs: &[PluginConfig],
        catalog: &ServerCatalog,
        trust_domain: &TrustDomain,
    ) -> Result<Self, LoadError> {
        let mut loader = Loader::new(trust_domain.clone());
        let mut key_managers = Vec::new();
        let mut upstream_authorities = Vec::new();
        let mut node_attestors = BTreeMap::new();
        let (mut credential_composers, mut notifiers, mut bundle_publishers) = (vec![], vec![], vec![]);
        for config in configs {
            use PluginType as T;
            match config.kind.as_str() {
                "DataStore" => {}
                "BundlePublisher" => bundle_publishers
                    .extend(loader.load(T::BundlePublisher, config, &catalog.bundle_publishers).await?),
                "CredentialComposer" => credential_composers
                    .extend(loader.load(T::CredentialComposer, config, &catalog.credential_composers).await?),
                "KeyManager" => {
                    key_managers.extend(loader.load(T::KeyManager, config, &catalog.key_managers).await?);
                }
                "NodeAttestor" => {
                    let plugin = loader.load(T::NodeAttestor, config, &catalog.node_attestors).await?;
                    node_attestors.extend(plugin.map(|p| (p.name().to_owned(), p)));
                }
                "Notifier" => notifiers.extend(loader.load(T::Notifier, config, &catalog.notifiers).await?),
                "UpstreamAuthority" => upstream_authorities
                    .extend(loader.load(T::UpstreamAuthority, config, &catalog.upstream_authorities).await?),
                _ => return Err(loader.unsupported(config)),
            }
        }
        loader.check(PluginType::UpstreamAuthority, Count::AtMostOne)?;
        loader.check(PluginType::KeyManager, Count::ExactlyOne)?;
        let key_manager = key_managers.pop().ok_or_else(|| LoadError::Constraint {
            kind: PluginType::KeyManager.as_str(),
            reason: "expected exactly 1 but got 0".to_owned(),
        })?;
        Ok(Self {
            key_manager,
            node_attestors,
            upstream_authority: upstream_authorities.pop(),
            credential_composers,
            notifiers,
            bundle_publishers,
        })
    }
}
