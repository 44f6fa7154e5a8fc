//! A running plugin as each of the ports. Texts of errors are the reference's (pkg/*/plugin/*/v1.go).

mod agent_node_attestor;
mod credential_composer;
mod key_manager;
mod node_attestor;
mod notifier;
mod svid_store;
mod upstream_authority;
mod workload_attestor;

use std::sync::Arc;

use async_trait::async_trait;
use spire_ports::plugins::external::{ExternalPlugin, Side};
use spire_ports::plugins::{
    AgentNodeAttestor, BundlePublisher, CredentialComposer, KeyManager, NodeAttestor, Notifier, SvidStore,
    UpstreamAuthority, WorkloadAttestor,
};

use crate::supervise::Supervised;

impl Supervised {
    /// The plugin as whoever wraps it, if it has the service.
    fn bind<T>(self: Arc<Self>, service: &str, wrap: impl FnOnce(Arc<Self>) -> T) -> Option<T> {
        self.has(service).then(|| {
            self.warn_of_other_services(service);
            wrap(self)
        })
    }
}

#[async_trait]
impl ExternalPlugin for Supervised {
    fn services(&self) -> Vec<String> {
        Self::services(self).to_vec()
    }

    fn is_configurable(&self) -> bool {
        Self::is_configurable(self)
    }

    async fn configure(&self, data: String) -> Result<(), String> {
        Self::configure(self, data).await
    }

    async fn validate(&self, data: String) -> Vec<String> {
        Self::validate(self, data).await
    }

    async fn close(&self) {
        Self::close(self).await;
    }

    fn bundle_publisher(self: Arc<Self>) -> Option<Arc<dyn BundlePublisher>> {
        self.bind("spire.plugin.server.bundlepublisher.v1.BundlePublisher", |plugin| {
            Arc::new(notifier::External(plugin)) as Arc<dyn BundlePublisher>
        })
    }

    fn credential_composer(self: Arc<Self>) -> Option<Arc<dyn CredentialComposer>> {
        self.bind("spire.plugin.server.credentialcomposer.v1.CredentialComposer", |plugin| {
            Arc::new(credential_composer::External(plugin)) as Arc<dyn CredentialComposer>
        })
    }

    fn key_manager(self: Arc<Self>) -> Option<Arc<dyn KeyManager>> {
        match self.launch.side {
            Side::Server => self.bind("spire.plugin.server.keymanager.v1.KeyManager", key_manager::of_server),
            Side::Agent => self.bind("spire.plugin.agent.keymanager.v1.KeyManager", key_manager::of_agent),
        }
    }

    fn node_attestor(self: Arc<Self>) -> Option<Arc<dyn NodeAttestor>> {
        self.bind("spire.plugin.server.nodeattestor.v1.NodeAttestor", |plugin| {
            Arc::new(node_attestor::External(plugin)) as Arc<dyn NodeAttestor>
        })
    }

    fn agent_node_attestor(self: Arc<Self>) -> Option<Arc<dyn AgentNodeAttestor>> {
        self.bind("spire.plugin.agent.nodeattestor.v1.NodeAttestor", |plugin| {
            Arc::new(agent_node_attestor::External(plugin)) as Arc<dyn AgentNodeAttestor>
        })
    }

    fn notifier(self: Arc<Self>) -> Option<Arc<dyn Notifier>> {
        self.bind("spire.plugin.server.notifier.v1.Notifier", |plugin| {
            Arc::new(notifier::External(plugin)) as Arc<dyn Notifier>
        })
    }

    fn svid_store(self: Arc<Self>) -> Option<Arc<dyn SvidStore>> {
        self.bind("spire.plugin.agent.svidstore.v1.SVIDStore", |plugin| {
            Arc::new(svid_store::External(plugin)) as Arc<dyn SvidStore>
        })
    }

    fn upstream_authority(self: Arc<Self>) -> Option<Arc<dyn UpstreamAuthority>> {
        self.bind("spire.plugin.server.upstreamauthority.v1.UpstreamAuthority", |plugin| {
            Arc::new(upstream_authority::External(plugin)) as Arc<dyn UpstreamAuthority>
        })
    }

    fn workload_attestor(self: Arc<Self>) -> Option<Arc<dyn WorkloadAttestor>> {
        self.bind("spire.plugin.agent.workloadattestor.v1.WorkloadAttestor", |plugin| {
            Arc::new(workload_attestor::External(plugin)) as Arc<dyn WorkloadAttestor>
        })
    }
}
