//! Which built-in plugins there are, and how each is made from its configuration.
//!
//! The binaries fill a catalog; server and agent look plugins up in it by the names that the configuration
//! gives, and so never name a concrete plugin.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use spire_compat::hcl::{Body, DecodeError, Fragment, UnusedKeys};
use spire_core::spiffe::TrustDomain;

use super::{
    AgentNodeAttestor, BundlePublisher, CredentialComposer, Error, ErrorKind, Host, KeyManager, NodeAttestor,
    Notifier, PluginType, Result, SvidStore, UpstreamAuthority, WorkloadAttestor,
};

/// What a plugin is made from.
#[derive(Clone, Debug)]
pub struct Configuration {
    /// The plugin's type and name, for errors.
    pub plugin: (PluginType, String),
    /// The trust domain of the server or agent.
    pub trust_domain: TrustDomain,
    /// `plugin_data` as written; `None` when there is none.
    pub data: Option<Fragment>,
    /// What the plugin may ask of the server or agent. Services may start only after the plugin was made.
    pub host: Host,
}

impl Configuration {
    /// A configuration of a plugin that asks nothing of its host.
    pub fn new(plugin: (PluginType, &str), trust_domain: TrustDomain, data: Option<Fragment>) -> Self {
        Self { plugin: (plugin.0, plugin.1.to_owned()), trust_domain, data, host: Host::none() }
    }

    /// A refusal of this configuration, as the plugin says it.
    pub fn invalid(&self, message: impl Into<String>) -> Error {
        self.error(ErrorKind::InvalidArgument, message)
    }

    /// Another failure to make the plugin, as the plugin says it.
    pub fn error(&self, kind: ErrorKind, message: impl Into<String>) -> Error {
        Error::new(kind, (self.plugin.0, &self.plugin.1), message)
    }

    /// Reads `plugin_data` with `read`; without data every setting has its default. A key that `read` did not ask for gets a
    /// warning.
    ///
    /// # Errors
    /// [`DecodeError`]: that of `read`, or that `plugin_data` is a single value.
    pub fn decode<T: Default>(
        &self,
        read: impl FnOnce(&mut Body<'_>) -> std::result::Result<T, DecodeError>,
    ) -> std::result::Result<T, DecodeError> {
        let Some(data) = &self.data else { return Ok(T::default()) };
        let mut body = data.body()?;
        let unused = body.collect_unused();
        let decoded = read(&mut body)?;
        drop(body);
        warn_of_unused((self.plugin.0.as_str(), &self.plugin.1), &unused);
        Ok(decoded)
    }
}

/// Warns of the keys of a plugin's data that nothing asked for. `plugin` is its type and name.
pub fn warn_of_unused(plugin: (&str, &str), unused: &UnusedKeys) {
    for key in unused.take() {
        let positions: Vec<String> = key.positions.iter().map(ToString::to_string).collect();
        tracing::warn!(
            external = false,
            plugin_name = plugin.1,
            plugin_type = plugin.0,
            subsystem_name = "catalog",
            key = key.name,
            position = positions.join(" and "),
            "Unknown key in plugin_data is ignored"
        );
    }
}

/// Makes a plugin. Called once a configuration; may do IO, such as reading key files.
pub type Factory<T> =
    Arc<dyn Fn(Configuration) -> Pin<Box<dyn Future<Output = Result<Arc<T>>> + Send>> + Send + Sync>;

/// The built-in plugins of one type, by name.
pub struct Builtins<T: ?Sized> {
    by_name: BTreeMap<&'static str, Builtin<T>>,
}

/// One built-in plugin.
pub struct Builtin<T: ?Sized> {
    /// Makes it.
    pub make: Factory<T>,
    /// Whether it takes a configuration; one that takes none is not said to be configured.
    pub configurable: bool,
}

impl<T: ?Sized> Builtins<T> {
    /// Adds a plugin.
    pub fn add<F, Fut>(&mut self, name: &'static str, make: F)
    where
        F: Fn(Configuration) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Arc<T>>> + Send + 'static,
    {
        let make: Factory<T> = Arc::new(move |configuration| Box::pin(make(configuration)));
        self.by_name.insert(name, Builtin { make, configurable: true });
    }

    /// Adds a plugin that takes no configuration.
    pub fn add_fixed<F, Fut>(&mut self, name: &'static str, make: F)
    where
        F: Fn(Configuration) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Arc<T>>> + Send + 'static,
    {
        let make: Factory<T> = Arc::new(move |configuration| Box::pin(make(configuration)));
        self.by_name.insert(name, Builtin { make, configurable: false });
    }

    /// The plugin of that name.
    pub fn find(&self, name: &str) -> Option<&Builtin<T>> {
        self.by_name.get(name)
    }

    /// All names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.by_name.keys().copied()
    }
}

impl<T: ?Sized> Default for Builtins<T> {
    fn default() -> Self {
        Self { by_name: BTreeMap::new() }
    }
}

impl<T: ?Sized> fmt::Debug for Builtins<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.names()).finish()
    }
}

/// The built-in plugins of a server. `DataStore` is not among them: the binary opens the store.
#[derive(Debug, Default)]
#[expect(missing_docs, reason = "each is the plugin type of that name")]
pub struct ServerCatalog {
    pub bundle_publishers: Builtins<dyn BundlePublisher>,
    pub credential_composers: Builtins<dyn CredentialComposer>,
    pub key_managers: Builtins<dyn KeyManager>,
    pub node_attestors: Builtins<dyn NodeAttestor>,
    pub notifiers: Builtins<dyn Notifier>,
    pub upstream_authorities: Builtins<dyn UpstreamAuthority>,
}

/// The built-in plugins of an agent.
#[derive(Debug, Default)]
#[expect(missing_docs, reason = "each is the plugin type of that name")]
pub struct AgentCatalog {
    pub key_managers: Builtins<dyn KeyManager>,
    pub node_attestors: Builtins<dyn AgentNodeAttestor>,
    pub svid_stores: Builtins<dyn SvidStore>,
    pub workload_attestors: Builtins<dyn WorkloadAttestor>,
}
