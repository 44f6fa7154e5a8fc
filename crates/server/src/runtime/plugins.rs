//! The server's plugins, made from its configuration.

use std::collections::BTreeMap;
use std::sync::Arc;

use spire_compat::config::PluginConfig;
use spire_ports::plugins::catalog::ServerCatalog;
use spire_ports::plugins::external::{ExternalPlugins, Side};
use spire_ports::plugins::load::{Count, LoadError, Loader, Reconfiguration, Unloading};
use spire_ports::plugins::{
    BundlePublisher, CredentialComposer, Host, KeyManager, NodeAttestor, Notifier, PluginType,
    UpstreamAuthority,
};

use crate::config::ServerConfig;

/// Every plugin of a server but the datastore.
pub(super) struct Plugins {
    /// Where private keys live.
    pub(super) key_manager: Arc<dyn KeyManager>,
    /// By the attestation type that agents name.
    pub(super) node_attestors: BTreeMap<String, Arc<dyn NodeAttestor>>,
    /// Who signs our CA; `None` for self-signed CAs.
    pub(super) upstream_authority: Option<Arc<dyn UpstreamAuthority>>,
    /// Hooks on what is signed, in file order.
    pub(super) credential_composers: Vec<Arc<dyn CredentialComposer>>,
    /// Who hears of the bundle.
    pub(super) notifiers: Vec<Arc<dyn Notifier>>,
    /// Who publishes the bundle.
    pub(super) bundle_publishers: Vec<Arc<dyn BundlePublisher>>,
    /// What gives them new configurations.
    pub(super) reconfiguration: Reconfiguration,
    /// What ends them.
    pub(super) unloading: Unloading,
}

impl Plugins {
    /// Makes the plugins in file order. `DataStore` blocks are passed over: the binary has opened it.
    ///
    /// # Errors
    /// [`LoadError`], the first that happens; what was loaded before has ended then.
    pub(super) async fn load(
        config: &ServerConfig,
        catalog: &ServerCatalog,
        external: Option<Arc<dyn ExternalPlugins>>,
        host: Host,
    ) -> Result<Self, LoadError> {
        let loader = Loader::new(config.trust_domain.clone(), host).with_external(Side::Server, external);
        let mut loaded = Loaded::new(loader);
        let complete = loaded.add_all(config, catalog).await;
        let key_manager = complete.and_then(|()| {
            loaded.key_managers.pop().ok_or_else(|| LoadError::Constraint {
                kind: PluginType::KeyManager.as_str(),
                reason: "expected exactly 1 but got 0".to_owned(),
            })
        });
        let (unloading, reconfiguration) = loaded.loader.into_parts();
        let key_manager = match key_manager {
            Ok(key_manager) => key_manager,
            Err(error) => {
                unloading.unload().await;
                return Err(error);
            }
        };
        Ok(Self {
            key_manager,
            node_attestors: loaded.node_attestors,
            upstream_authority: loaded.upstream_authorities.pop(),
            credential_composers: loaded.credential_composers,
            notifiers: loaded.notifiers,
            bundle_publishers: loaded.bundle_publishers,
            reconfiguration,
            unloading,
        })
    }
}

/// What plugins say of their configuration, by plugin as the reference names them (`KeyManager "disk"`).
///
/// # Errors
/// What is wrong with the list of plugins itself: an unknown type or name, too few or too many of a type.
pub async fn validate(
    config: &ServerConfig,
    catalog: &ServerCatalog,
    external: Option<Arc<dyn ExternalPlugins>>,
) -> Result<BTreeMap<String, Vec<String>>, LoadError> {
    let loader = Loader::new(config.trust_domain.clone(), Host::none());
    let mut loaded = Loaded::new(loader.with_external(Side::Server, external).validating());
    let notes = loaded.notes(config, catalog).await;
    loaded.loader.into_parts().0.unload().await;
    notes
}

struct Loaded {
    loader: Loader,
    key_managers: Vec<Arc<dyn KeyManager>>,
    node_attestors: BTreeMap<String, Arc<dyn NodeAttestor>>,
    upstream_authorities: Vec<Arc<dyn UpstreamAuthority>>,
    credential_composers: Vec<Arc<dyn CredentialComposer>>,
    notifiers: Vec<Arc<dyn Notifier>>,
    bundle_publishers: Vec<Arc<dyn BundlePublisher>>,
}

impl Loaded {
    fn new(loader: Loader) -> Self {
        Self {
            loader,
            key_managers: Vec::new(),
            node_attestors: BTreeMap::new(),
            upstream_authorities: Vec::new(),
            credential_composers: Vec::new(),
            notifiers: Vec::new(),
            bundle_publishers: Vec::new(),
        }
    }

    async fn add_all(&mut self, config: &ServerConfig, catalog: &ServerCatalog) -> Result<(), LoadError> {
        for plugin in &config.plugins {
            self.add(plugin, catalog).await?;
        }
        self.check_counts()
    }

    async fn notes(
        &mut self,
        config: &ServerConfig,
        catalog: &ServerCatalog,
    ) -> Result<BTreeMap<String, Vec<String>>, LoadError> {
        let mut notes = BTreeMap::new();
        for plugin in &config.plugins {
            let loaded = self.add(plugin, catalog).await;
            self.loader.note(&mut notes, plugin, loaded)?;
        }
        // A plugin that refused its configuration would be missed for the wrong reason.
        if notes.is_empty() {
            self.check_counts()?;
        }
        Ok(notes)
    }

    async fn add(&mut self, config: &PluginConfig, catalog: &ServerCatalog) -> Result<(), LoadError> {
        use PluginType as T;
        let loader = &mut self.loader;
        match config.kind.as_str() {
            "DataStore" => {}
            "BundlePublisher" => {
                let plugin = loader.load(T::BundlePublisher, config, &catalog.bundle_publishers).await?;
                self.bundle_publishers.extend(plugin);
            }
            "CredentialComposer" => {
                let plugin =
                    loader.load(T::CredentialComposer, config, &catalog.credential_composers).await?;
                self.credential_composers.extend(plugin);
            }
            "KeyManager" => {
                self.key_managers.extend(loader.load(T::KeyManager, config, &catalog.key_managers).await?);
            }
            "NodeAttestor" => {
                let plugin = loader.load(T::NodeAttestor, config, &catalog.node_attestors).await?;
                self.node_attestors.extend(plugin.map(|p| (p.name().to_owned(), p)));
            }
            "Notifier" => self.notifiers.extend(loader.load(T::Notifier, config, &catalog.notifiers).await?),
            "UpstreamAuthority" => {
                let plugin = loader.load(T::UpstreamAuthority, config, &catalog.upstream_authorities).await?;
                self.upstream_authorities.extend(plugin);
            }
            _ => return Err(loader.unsupported(config)),
        }
        Ok(())
    }

    /// How many plugins of each type a server has (pkg/server/catalog).
    fn check_counts(&self) -> Result<(), LoadError> {
        self.loader.check(PluginType::UpstreamAuthority, Count::AtMostOne)?;
        self.loader.check(PluginType::KeyManager, Count::ExactlyOne)
    }
}
