//! NodeAttestor of servers.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use spire_core::spiffe::{Selector, Selectors, SpiffeId};
use spire_ports::plugins::{Attestation, Challenger, Error, ErrorKind, NodeAttestor, Result};
use spire_wire::plugin::server::nodeattestor::v1::attest_request::Request;
use spire_wire::plugin::server::nodeattestor::v1::attest_response::Response;
use spire_wire::plugin::server::nodeattestor::v1::node_attestor_client::NodeAttestorClient;
use spire_wire::plugin::server::nodeattestor::v1::{AgentAttributes, AttestRequest};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::connection::client;
use crate::supervise::Supervised;

/// Metadata by which a plugin learns where the agent's connection comes from (pkg/server/plugin/nodeattestor/v1.go).
const CLIENT_IP: &str = "x-forwarded-client-ip";

/// Challenges of one attestation; real attestors need one or two.
const CHALLENGES_MAX: usize = 32;

pub(super) struct External(pub(super) Arc<Supervised>);

impl External {
    fn internal(&self, message: impl Into<String>) -> Error {
        self.0.error(ErrorKind::Internal, message)
    }

    fn attestation(&self, told: AgentAttributes) -> Result<Attestation> {
        if told.spiffe_id.is_empty() {
            return Err(self.internal("plugin response missing agent ID"));
        }
        let agent_id = SpiffeId::parse(&told.spiffe_id)
            .map_err(|error| self.internal(format!("invalid agent ID {:?}: {error}", told.spiffe_id)))?;
        let name = self.0.plugin().1;
        let selectors: Selectors = told
            .selector_values
            .into_iter()
            .map(|value| {
                Selector::new(name, value).map_err(|error| {
                    self.internal(format!("plugin response has an invalid selector: {error}"))
                })
            })
            .collect::<Result<Vec<_>>>()?
            .into_iter()
            .collect();
        Ok(Attestation { agent_id, selectors, can_reattest: told.can_reattest })
    }
}

#[async_trait]
impl NodeAttestor for External {
    fn name(&self) -> &str {
        self.0.plugin().1
    }

    async fn attest(&self, payload: Bytes, challenger: &mut dyn Challenger) -> Result<Attestation> {
        if payload.is_empty() {
            return Err(self.0.error(ErrorKind::InvalidArgument, "payload cannot be empty"));
        }
        let closed = || self.internal("plugin closed stream unexpectedly");
        let limit = self.0.limits.call;
        let mut client = client!(NodeAttestorClient, self.0.channel()?);
        let (to_plugin, requests) = mpsc::channel(1);
        to_plugin
            .send(AttestRequest { request: Some(Request::Payload(payload)) })
            .await
            .map_err(|_| closed())?;
        let mut call = tonic::Request::new(ReceiverStream::new(requests));
        if let Some(address) = challenger.client_ip().and_then(|address| address.to_string().parse().ok()) {
            call.metadata_mut().insert(CLIENT_IP, address);
        }
        let responses = self.0.step(limit, client.attest(call)).await?;
        let mut responses = responses.into_inner();
        for _ in 0..=CHALLENGES_MAX {
            let answer = self.0.step(limit, responses.message()).await?.ok_or_else(closed)?;
            let challenge = match answer.response {
                Some(Response::AgentAttributes(told)) => return self.attestation(told),
                Some(Response::Challenge(challenge)) => challenge,
                None => {
                    return Err(self.internal("plugin response missing challenge or agent attributes"));
                }
            };
            let response = challenger.challenge(challenge).await?;
            let request = AttestRequest { request: Some(Request::ChallengeResponse(response)) };
            to_plugin.send(request).await.map_err(|_| closed())?;
        }
        Err(self.internal(format!("plugin asked more than {CHALLENGES_MAX} challenges")))
    }
}
