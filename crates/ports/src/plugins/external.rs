//! Plugins that are programs of their own, as the loader sees them. Who runs them is decided in the binaries.

use std::pin::Pin;
use std::sync::Arc;

use async_trait::async_trait;
use spire_core::spiffe::TrustDomain;

use super::catalog::Configuration;
use super::reload::{Current, Reloadable};
use super::{
    AgentNodeAttestor, BundlePublisher, CredentialComposer, Host, KeyManager, NodeAttestor, Notifier,
    PluginType, SvidStore, UpstreamAuthority, WorkloadAttestor,
};

/// Which program a plugin works for: some types have the same name and another service on either side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each says it")]
pub enum Side {
    Server,
    Agent,
}

/// What an external plugin is started from.
#[derive(Clone, Debug)]
pub struct Launch {
    /// For whom.
    pub side: Side,
    /// The plugin's type.
    pub kind: PluginType,
    /// Its name.
    pub name: String,
    /// `plugin_cmd`.
    pub path: String,
    /// `plugin_args`.
    pub args: Vec<String>,
    /// `plugin_checksum`: SHA-256 in hex; empty where none is configured.
    pub checksum: String,
    /// The trust domain of the server or agent.
    pub trust_domain: TrustDomain,
    /// What the plugin may ask.
    pub host: Host,
}

/// Runs programs as plugins.
#[async_trait]
pub trait ExternalPlugins: Send + Sync {
    /// Starts the program, and has initialised it when this returns.
    ///
    /// # Errors
    /// Why it is not running, as the reference says it (pkg/common/catalog/external.go); nothing is left of it.
    async fn launch(&self, launch: Launch) -> Result<Arc<dyn ExternalPlugin>, String>;
}

/// A program that runs as a plugin. Calls fail while it is down; who runs it starts it again.
#[async_trait]
pub trait ExternalPlugin: Send + Sync {
    /// The services that it says it has.
    fn services(&self) -> Vec<String>;
    /// Whether it takes a configuration.
    fn is_configurable(&self) -> bool;
    /// Configures it, now and whenever it is started again.
    ///
    /// # Errors
    /// What it said, as Go prints a gRPC error. The configuration before stays.
    async fn configure(&self, data: String) -> Result<(), String>;
    /// Asks what it says of a configuration. Empty where it has nothing to say or cannot be asked.
    async fn validate(&self, data: String) -> Vec<String>;
    /// Ends it. Calls fail from now on.
    async fn close(&self);

    /// As a bundle publisher, if it is one; and so on below.
    fn bundle_publisher(self: Arc<Self>) -> Option<Arc<dyn BundlePublisher>>;
    /// As a credential composer.
    fn credential_composer(self: Arc<Self>) -> Option<Arc<dyn CredentialComposer>>;
    /// As a key manager of its side.
    fn key_manager(self: Arc<Self>) -> Option<Arc<dyn KeyManager>>;
    /// As a server's node attestor.
    fn node_attestor(self: Arc<Self>) -> Option<Arc<dyn NodeAttestor>>;
    /// As an agent's node attestor.
    fn agent_node_attestor(self: Arc<Self>) -> Option<Arc<dyn AgentNodeAttestor>>;
    /// As a notifier.
    fn notifier(self: Arc<Self>) -> Option<Arc<dyn Notifier>>;
    /// As an SVID store.
    fn svid_store(self: Arc<Self>) -> Option<Arc<dyn SvidStore>>;
    /// As an upstream authority.
    fn upstream_authority(self: Arc<Self>) -> Option<Arc<dyn UpstreamAuthority>>;
    /// As a workload attestor.
    fn workload_attestor(self: Arc<Self>) -> Option<Arc<dyn WorkloadAttestor>>;
}

/// A plugin port, for the loader: how an external plugin becomes it, and how a built-in one is replaced.
pub trait Port: Send + Sync + 'static {
    /// The external plugin as this type, if it has that service.
    fn bind(plugin: Arc<dyn ExternalPlugin>) -> Option<Arc<Self>>;
    /// A plugin whose calls go to what is current.
    fn reloadable(current: Arc<Current<Self>>) -> Arc<Self>;
    /// Gives a built-in plugin a new configuration. `None` where a new object is made from it.
    fn reconfigure<'a>(&'a self, configuration: &'a Configuration) -> Reconfiguring<'a>;
}

/// What [`Port::reconfigure`] does.
pub type Reconfiguring<'a> = Pin<Box<dyn Future<Output = Option<super::Result<()>>> + Send + 'a>>;

macro_rules! ports {
    ($($port:ident: $bind:ident, $reconfigure:expr;)*) => {$(
        impl Port for dyn $port {
            fn bind(plugin: Arc<dyn ExternalPlugin>) -> Option<Arc<Self>> {
                plugin.$bind()
            }

            fn reloadable(current: Arc<Current<Self>>) -> Arc<Self> {
                Arc::new(Reloadable(current))
            }

            fn reconfigure<'a>(&'a self, configuration: &'a Configuration) -> Reconfiguring<'a> {
                $reconfigure(self, configuration)
            }
        }
    )*};
}

fn make_anew<'a, T: ?Sized>(_: &'a T, _: &'a Configuration) -> Reconfiguring<'a> {
    Box::pin(std::future::ready(None))
}

ports! {
    AgentNodeAttestor: agent_node_attestor, make_anew;
    BundlePublisher: bundle_publisher, make_anew;
    CredentialComposer: credential_composer, make_anew;
    KeyManager: key_manager, <dyn KeyManager as KeyManager>::reconfigure;
    NodeAttestor: node_attestor, make_anew;
    Notifier: notifier, make_anew;
    SvidStore: svid_store, make_anew;
    UpstreamAuthority: upstream_authority, make_anew;
    WorkloadAttestor: workload_attestor, make_anew;
}
