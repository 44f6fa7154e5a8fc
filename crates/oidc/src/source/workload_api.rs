//! A Workload API, such as a SPIRE agent's.

use std::fmt;
use std::path::Path;

use async_trait::async_trait;
use spire_core::pki::{PublicKey, bundle_doc};
use spire_core::spiffe::TrustDomain;
use spire_net::grpc::{status_text, unix_channel};
use spire_net::tls::UnixConnector;
use spire_wire::workload::JwtBundlesRequest;
use spire_wire::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Request, Status};

use super::Source;
use crate::document::JwtKey;

/// Without this field an agent refuses a call (SPIFFE Workload API, section 4.1).
const SECURITY_HEADER: &str = "workload.spiffe.io";

/// Asks an agent for the JWT bundle of a trust domain (support/oidc-discovery-provider/workload_api.go).
pub struct WorkloadApiSource {
    client: SpiffeWorkloadApiClient<Channel>,
    trust_domain: TrustDomain,
}

impl WorkloadApiSource {
    /// Asks the agent at this socket.
    pub fn new(socket_path: &Path, trust_domain: TrustDomain) -> Self {
        // As the reference, which makes the path absolute when it starts.
        let socket_path = spire_compat::config::absolute_path(socket_path);
        Self {
            client: SpiffeWorkloadApiClient::new(unix_channel(UnixConnector::new(socket_path))),
            trust_domain,
        }
    }

    async fn bundle(&self) -> Result<Option<Vec<u8>>, Status> {
        let mut request = Request::new(JwtBundlesRequest {});
        request.metadata_mut().insert(SECURITY_HEADER, MetadataValue::from_static("true"));
        let mut answers = self.client.clone().fetch_jwt_bundles(request).await?.into_inner();
        let answer = answers.message().await?.ok_or_else(|| Status::unknown("EOF"))?;
        let ours = |id: &str| id.strip_prefix("spiffe://").unwrap_or(id) == self.trust_domain.name();
        Ok(answer.bundles.into_iter().find_map(|(id, bundle)| ours(&id).then(|| bundle.into())))
    }
}

#[async_trait]
impl Source for WorkloadApiSource {
    async fn keys(&self) -> Option<Vec<JwtKey>> {
        let bundle = match self.bundle().await {
            Ok(Some(bundle)) => bundle,
            Ok(None) => {
                let trust_domain_id = self.trust_domain.id_string();
                tracing::error!(trust_domain_id, "No bundle for trust domain in Workload API response");
                return None;
            }
            Err(status) => {
                tracing::warn!(error = status_text(&status), "Failed to fetch JWKS from the Workload API");
                return None;
            }
        };
        let keys =
            bundle_doc::parse_jwks(&bundle).map_err(|error| error.to_string()).and_then(|authorities| {
                let key = |kid, spki| PublicKey::from_spki(spki).map(|key| JwtKey { kid, key });
                let keys = authorities.into_iter().map(|authority| key(authority.kid, authority.public_key));
                keys.collect::<Result<Vec<_>, _>>().map_err(|error| error.to_string())
            });
        match keys {
            Ok(mut keys) => {
                // An agent of SPIRE gives the same keys in another order each time.
                keys.sort_by(|a, b| a.kid.cmp(&b.kid));
                Some(keys)
            }
            Err(error) => {
                let error = format!("jwtbundle: {error}");
                tracing::warn!(error, "Failed to fetch JWKS from the Workload API");
                None
            }
        }
    }
}

impl fmt::Debug for WorkloadApiSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkloadApiSource").field("trust_domain", &self.trust_domain).finish_non_exhaustive()
    }
}
