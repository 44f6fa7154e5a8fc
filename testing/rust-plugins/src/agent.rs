//! Plugins of agents.

use std::sync::Arc;

use serde_json::json;
use spire_plugin_sdk::wire::agent::nodeattestor::v1 as attestor;
use spire_plugin_sdk::wire::agent::nodeattestor::v1::payload_or_challenge_response::Data;
use spire_plugin_sdk::wire::agent::svidstore::v1 as store;
use spire_plugin_sdk::wire::agent::workloadattestor::v1 as workload;
use spire_plugin_sdk::{Request, Response, Status, Streaming, async_trait};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::base::{Base, io};

/// Gives its value as the agent's name.
pub(crate) struct NodeAttestor(pub(crate) Arc<Base>);

#[async_trait]
impl attestor::node_attestor_server::NodeAttestor for NodeAttestor {
    type AidAttestationStream = ReceiverStream<Result<attestor::PayloadOrChallengeResponse, Status>>;

    async fn aid_attestation(
        &self,
        request: Request<Streaming<attestor::Challenge>>,
    ) -> Result<Response<Self::AidAttestationStream>, Status> {
        let name = self.0.config()?.value;
        let (answers, stream) = mpsc::channel(1);
        let mut challenges = request.into_inner();
        tokio::spawn(async move {
            let answer = |data| Ok(attestor::PayloadOrChallengeResponse { data: Some(data) });
            let payload = Data::Payload(format!("hello {name}").into());
            if answers.send(answer(payload)).await.is_err() {
                return;
            }
            if let Ok(Some(challenge)) = challenges.message().await {
                let response = [&challenge.challenge[..], b" ", name.as_bytes()].concat();
                let _ = answers.send(answer(Data::ChallengeResponse(response.into()))).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

/// Says of each process its command and the configured value.
pub(crate) struct WorkloadAttestor(pub(crate) Arc<Base>);

#[async_trait]
impl workload::workload_attestor_server::WorkloadAttestor for WorkloadAttestor {
    async fn attest(
        &self,
        request: Request<workload::AttestRequest>,
    ) -> Result<Response<workload::AttestResponse>, Status> {
        let settings = self.0.config()?;
        self.0.obey().await;
        let pid = request.into_inner().pid;
        let program = std::fs::read_link(format!("/proc/{pid}/exe"))
            .map_err(|error| Status::internal(format!("no such process: {error}")))?;
        let program = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let values = settings.value.split(',').filter(|value| !value.is_empty());
        let mut selector_values = vec![format!("exe:{program}")];
        selector_values.extend(values.map(|value| format!("value:{value}")));
        Ok(Response::new(workload::AttestResponse { selector_values }))
    }

    async fn attest_reference(
        &self,
        _: Request<workload::AttestReferenceRequest>,
    ) -> Result<Response<workload::AttestReferenceResponse>, Status> {
        Err(Status::unimplemented("by process ID only"))
    }
}

/// Writes each SVID as JSON, in a file that the first selector names.
pub(crate) struct SvidStore(pub(crate) Arc<Base>);

fn place(metadata: &[String]) -> Result<String, Status> {
    let first = metadata.first().ok_or_else(|| Status::invalid_argument("no selectors"))?;
    Ok(format!("svid-{first}"))
}

#[async_trait]
impl store::svid_store_server::SvidStore for SvidStore {
    async fn put_x509svid(
        &self,
        request: Request<store::PutX509svidRequest>,
    ) -> Result<Response<store::PutX509svidResponse>, Status> {
        let request = request.into_inner();
        if self.0.path("full")?.exists() {
            return Err(Status::resource_exhausted("the store is full"));
        }
        let svid = request.svid.unwrap_or_default();
        let text = json!({
            "ID": svid.spiffe_id,
            "Metadata": request.metadata,
            "Chain": svid.cert_chain.len(),
            "Key": svid.private_key.len(),
            "Bundle": svid.bundle.len(),
            "Federated": request.federated_bundles.keys().collect::<Vec<_>>(),
            "ExpiresAt": svid.expires_at,
        });
        self.0.note(&place(&request.metadata)?, text.to_string());
        Ok(Response::new(Default::default()))
    }

    async fn delete_x509svid(
        &self,
        request: Request<store::DeleteX509svidRequest>,
    ) -> Result<Response<store::DeleteX509svidResponse>, Status> {
        match std::fs::remove_file(self.0.path(&place(&request.into_inner().metadata)?)?) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io(error)),
            _ => Ok(Response::new(Default::default())),
        }
    }
}
