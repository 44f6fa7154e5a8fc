//! The API socket of a SPIRE server.

use std::fmt;

use async_trait::async_trait;
use spire_core::pki::PublicKey;
use spire_net::grpc::{status_text, workload_channel};
use spire_wire::api::server::bundle::v1::GetBundleRequest;
use spire_wire::api::server::bundle::v1::bundle_client::BundleClient;
use spire_wire::api::types::BundleMask;
use tonic::transport::Channel;

use super::Source;
use crate::document::JwtKey;

/// Asks a server for its bundle (support/oidc-discovery-provider/server_api.go).
pub struct ServerApiSource {
    /// Absent for an address that is none.
    client: Option<BundleClient<Channel>>,
}

impl ServerApiSource {
    /// Asks the server at `unix:…`.
    pub fn new(address: &str) -> Self {
        Self { client: workload_channel(address).map(BundleClient::new) }
    }
}

#[async_trait]
impl Source for ServerApiSource {
    async fn keys(&self) -> Option<Vec<JwtKey>> {
        let mut client = self.client.clone()?;
        let output_mask = Some(BundleMask { jwt_authorities: true, ..BundleMask::default() });
        let bundle = match client.get_bundle(GetBundleRequest { output_mask }).await {
            Ok(answer) => answer.into_inner(),
            Err(status) => {
                tracing::warn!(error = status_text(&status), "Failed to fetch bundle");
                return None;
            }
        };
        let keys =
            bundle.jwt_authorities.into_iter().filter_map(|key| match PublicKey::from_spki(key.public_key) {
                Ok(public) => Some(JwtKey { kid: key.key_id, key: public }),
                Err(error) => {
                    tracing::warn!(error = %error, kid = key.key_id, "Malformed public key in bundle");
                    None
                }
            });
        Some(keys.collect())
    }
}

impl fmt::Debug for ServerApiSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerApiSource").finish_non_exhaustive()
    }
}
