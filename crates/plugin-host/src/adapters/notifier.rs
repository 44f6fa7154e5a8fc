//! Notifier and BundlePublisher.

use std::sync::Arc;

use async_trait::async_trait;
use spire_core::spiffe::Bundle;
use spire_ports::plugins::{BundlePublisher, Notifier, Result};
use spire_wire::plugin::server::bundlepublisher::v1::PublishBundleRequest;
use spire_wire::plugin::server::bundlepublisher::v1::bundle_publisher_client::BundlePublisherClient;
use spire_wire::plugin::server::notifier::v1::notifier_client::NotifierClient;
use spire_wire::plugin::server::notifier::v1::{
    BundleLoaded, BundleUpdated, NotifyAndAdviseRequest, NotifyRequest, notify_and_advise_request,
    notify_request,
};

use crate::connection::client;
use crate::host_services::bundle as as_seen;
use crate::supervise::Supervised;

pub(super) struct External(pub(super) Arc<Supervised>);

#[async_trait]
impl Notifier for External {
    fn name(&self) -> &str {
        self.0.plugin().1
    }

    async fn bundle_loaded(&self, bundle: &Bundle) -> Result<()> {
        let event = BundleLoaded { bundle: Some(as_seen(bundle)) };
        let request =
            NotifyAndAdviseRequest { event: Some(notify_and_advise_request::Event::BundleLoaded(event)) };
        let mut client = client!(NotifierClient, self.0.channel()?);
        self.0.call(self.0.limits.call, client.notify_and_advise(request)).await?;
        Ok(())
    }

    async fn bundle_updated(&self, bundle: &Bundle) -> Result<()> {
        let event = BundleUpdated { bundle: Some(as_seen(bundle)) };
        let request = NotifyRequest { event: Some(notify_request::Event::BundleUpdated(event)) };
        let mut client = client!(NotifierClient, self.0.channel()?);
        self.0.call(self.0.limits.call, client.notify(request)).await?;
        Ok(())
    }
}

#[async_trait]
impl BundlePublisher for External {
    fn name(&self) -> &str {
        self.0.plugin().1
    }

    /// Whether the plugin wrote something it does not tell.
    async fn publish(&self, bundle: &Bundle) -> Result<bool> {
        let request = PublishBundleRequest { bundle: Some(as_seen(bundle)) };
        let mut client = client!(BundlePublisherClient, self.0.channel()?);
        self.0.call(self.0.limits.call, client.publish_bundle(request)).await?;
        Ok(true)
    }
}
