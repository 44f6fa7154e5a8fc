//! What `spire dev` asks of its own server and agent, over the same sockets as anybody.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use spire_core::pki::{Certificate, pem};
use spire_core::spiffe::SpiffeId;
use spire_core::time::Timestamp;
use spire_net::grpc::unix_channel;
use spire_net::tls::UnixConnector;
use spire_wire::api::server::agent::v1::agent_client::AgentClient;
use spire_wire::api::server::bundle::v1::bundle_client::BundleClient;
use spire_wire::api::server::entry::v1::entry_client::EntryClient;
use spire_wire::api::server::{agent::v1 as agent, bundle::v1 as bundle, entry::v1 as entry};
use spire_wire::api::types;
use spire_wire::workload::X509svidRequest;
use spire_wire::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Request};

use super::TRUST_DOMAIN;
use super::options::Workload;

/// The alias that stands for the one node, so that entries outlive its agent's ID.
const NODE: &str = "/node";

/// How long a join token is good for: it is used at once.
const TOKEN_TTL_SECONDS: i32 = 60;

/// The server's API.
pub(super) struct Server(Channel);

impl Server {
    /// On its socket.
    pub(super) fn connect(socket: &Path) -> Self {
        Self(channel(socket))
    }

    /// The trust bundle, PEM.
    pub(super) async fn bundle(&self) -> Result<String> {
        let request = bundle::GetBundleRequest::default();
        let answer = BundleClient::new(self.0.clone()).get_bundle(request).await?.into_inner();
        Ok(pem::encode_certificates(answer.x509_authorities.iter().map(|a| a.asn1.as_ref())))
    }

    /// A token for an agent that becomes the node.
    pub(super) async fn join_token(&self) -> Result<String> {
        let request = agent::CreateJoinTokenRequest {
            ttl: TOKEN_TTL_SECONDS,
            token: String::new(),
            agent_id: Some(id(NODE)),
        };
        Ok(AgentClient::new(self.0.clone()).create_join_token(request).await?.into_inner().value)
    }

    /// Registers workloads that are not registered yet.
    pub(super) async fn register(&self, workloads: &[Workload]) -> Result<()> {
        let entries = workloads
            .iter()
            .map(|(spiffe_id, selector)| types::Entry {
                spiffe_id: Some(id(spiffe_id.path())),
                parent_id: Some(id(NODE)),
                selectors: vec![types::Selector {
                    r#type: selector.kind().to_owned(),
                    value: selector.value().to_owned(),
                }],
                ..Default::default()
            })
            .collect();
        let request = entry::BatchCreateEntryRequest { entries, output_mask: None };
        let answer = EntryClient::new(self.0.clone()).batch_create_entry(request).await?.into_inner();
        for (result, (spiffe_id, _)) in answer.results.iter().zip(workloads) {
            let status = result.status.clone().unwrap_or_default();
            if status.code != Code::Ok as i32 && status.code != Code::AlreadyExists as i32 {
                bail!("registering {spiffe_id}: {}", status.message);
            }
        }
        Ok(())
    }
}

/// An identity that a workload was given.
pub(super) struct Fetched {
    pub(super) id: SpiffeId,
    pub(super) expires_at: Timestamp,
}

/// Fetches the caller's X.509-SVIDs as any workload does.
pub(super) async fn fetch_x509(socket: &Path) -> Result<Vec<Fetched>, tonic::Status> {
    let mut request = Request::new(X509svidRequest {});
    request.metadata_mut().insert("workload.spiffe.io", MetadataValue::from_static("true"));
    let mut answers =
        SpiffeWorkloadApiClient::new(channel(socket)).fetch_x509svid(request).await?.into_inner();
    let answer =
        answers.message().await?.ok_or_else(|| tonic::Status::unavailable("the agent sent nothing"))?;
    let malformed =
        |error: &dyn std::fmt::Display| tonic::Status::internal(format!("malformed SVID: {error}"));
    answer
        .svids
        .iter()
        .map(|svid| {
            let chain = Certificate::many_from_der(svid.x509_svid.clone(), 16).map_err(|e| malformed(&e))?;
            let leaf = chain.first().ok_or_else(|| malformed(&"no certificate"))?;
            Ok(Fetched { id: leaf.spiffe_id().map_err(|e| malformed(&e))?, expires_at: leaf.not_after() })
        })
        .collect()
}

/// Waits until the calling user has an identity. The server pushes it, so this is short; the caller bounds it.
pub(super) async fn wait_for_identity(socket: &Path) -> Result<()> {
    loop {
        match fetch_x509(socket).await {
            Ok(_) => return Ok(()),
            // Not there yet.
            Err(status) if status.code() == Code::PermissionDenied => {}
            Err(status) => return Err(status).context("asking the agent"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn channel(socket: &Path) -> Channel {
    unix_channel(UnixConnector::new(socket))
}

fn id(path: &str) -> types::Spiffeid {
    types::Spiffeid { trust_domain: TRUST_DOMAIN.to_owned(), path: path.to_owned() }
}
