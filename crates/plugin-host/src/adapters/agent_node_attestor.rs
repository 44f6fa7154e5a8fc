//! NodeAttestor of agents.

use std::sync::Arc;

use async_trait::async_trait;
use spire_ports::plugins::{AgentNodeAttestor, AttestationStream, Error, ErrorKind, Result};
use spire_wire::plugin::agent::nodeattestor::v1::Challenge;
use spire_wire::plugin::agent::nodeattestor::v1::node_attestor_client::NodeAttestorClient;
use spire_wire::plugin::agent::nodeattestor::v1::payload_or_challenge_response::Data;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::connection::client;
use crate::supervise::Supervised;

pub(super) struct External(pub(super) Arc<Supervised>);

impl External {
    fn internal(&self, message: &str) -> Error {
        self.0.error(ErrorKind::Internal, message)
    }
}

#[async_trait]
impl AgentNodeAttestor for External {
    fn name(&self) -> &str {
        self.0.plugin().1
    }

    async fn attest(&self, server: &mut dyn AttestationStream) -> Result<()> {
        let limit = self.0.limits.call;
        let mut client = client!(NodeAttestorClient, self.0.channel()?);
        let (to_plugin, challenges) = mpsc::channel(1);
        let answers = self.0.step(limit, client.aid_attestation(ReceiverStream::new(challenges))).await?;
        let mut answers = answers.into_inner();
        let closed = || self.internal("plugin closed stream before returning attestation data");
        let first = self.0.step(limit, answers.message()).await?.ok_or_else(closed)?;
        let payload = match first.data {
            Some(Data::Payload(payload)) if !payload.is_empty() => payload,
            _ => return Err(self.internal("plugin response missing attestation payload")),
        };
        let mut next = server.send_payload(payload).await?;
        // Whoever attests bounds how often it asks.
        while let Some(challenge) = next {
            let closed = || self.internal("plugin closed stream before handling the challenge");
            to_plugin.send(Challenge { challenge }).await.map_err(|_| closed())?;
            let answer = self.0.step(limit, answers.message()).await?.ok_or_else(closed)?;
            let response = match answer.data {
                Some(Data::ChallengeResponse(response)) if !response.is_empty() => response,
                _ => return Err(self.internal("plugin response missing challenge response")),
            };
            next = server.respond(response).await?;
        }
        Ok(())
    }
}
