//! The server's checks `server` and `catalog.datastore` (pkg/server/server.go: CheckHealth;
//! pkg/server/datastore/datastore_health.go).

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use spire_core::model::Paging;
use spire_net::grpc::unix_channel;
use spire_net::tls::UnixConnector;
use spire_ports::datastore::DataStore;
use spire_ports::observe::{HealthCheck, HealthState};
use spire_wire::api::server::bundle::v1::GetBundleRequest;
use spire_wire::api::server::bundle::v1::bundle_client::BundleClient;
use tonic::transport::Channel;

/// How long a check may take. The reference has no bound, so that one hanging call would end all checks.
const CHECK_TIMEOUT: Duration = Duration::from_secs(30);

/// The bundle can be had through the server's own socket.
pub(super) struct OwnSocket {
    channel: Channel,
}

impl OwnSocket {
    pub(super) fn new(path: &Path) -> Arc<Self> {
        Arc::new(Self { channel: unix_channel(UnixConnector::new(path)) })
    }

    async fn fetch(&self) -> Result<(), String> {
        let mut client = BundleClient::new(self.channel.clone());
        let request = client.get_bundle(GetBundleRequest::default());
        match tokio::time::timeout(CHECK_TIMEOUT, request).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(status)) => Err(format!("unable to fetch bundle: {}", crate::api::status_text(&status))),
            Err(_) => Err("unable to fetch bundle: context deadline exceeded".to_owned()),
        }
    }
}

#[async_trait]
impl HealthCheck for OwnSocket {
    async fn check_health(&self) -> HealthState {
        of("get_bundle_err", self.fetch().await)
    }
}

/// Bundles can be listed.
pub(super) struct Store(pub(super) Arc<dyn DataStore>);

#[async_trait]
impl HealthCheck for Store {
    async fn check_health(&self) -> HealthState {
        let one = Paging { token: String::new(), size: 1 };
        let listed = tokio::time::timeout(CHECK_TIMEOUT, self.0.bundle_list(Some(&one))).await;
        let listed = match listed {
            Ok(listed) => listed.map(|_| ()).map_err(|error| error.to_string()),
            Err(_) => Err("context deadline exceeded".to_owned()),
        };
        of("list_bundle_err", listed)
    }
}

fn of(name: &'static str, result: Result<(), String>) -> HealthState {
    let error = result.err();
    HealthState::of_error(name, error.as_ref().map(|error| error as &dyn std::fmt::Display))
}
