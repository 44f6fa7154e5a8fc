//! What lies between agent and server, and may change what passes.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use serde_json::Value;
use spire_ports::plugins::{
    AgentNodeAttestor, Attestation, AttestationStream, Challenger, Error, ErrorKind, NodeAttestor,
    PluginType, Result,
};
use tokio::sync::mpsc;

/// Sees every message, and may change it.
pub(crate) trait Meddler: Send {
    fn payload(&mut self, _payload: &mut Value) {}
    fn challenge(&mut self, _challenge: &mut Value) {}
    fn response(&mut self, _response: &mut Value) {}
}

/// Passes all on as it is.
pub(crate) struct Honest;

impl Meddler for Honest {}

struct Stream {
    out: mpsc::Sender<Bytes>,
    back: mpsc::Receiver<Bytes>,
}

fn closed() -> Error {
    Error::new(ErrorKind::Unavailable, (PluginType::NodeAttestor, "tpm_devid"), "the other side went away")
}

impl Stream {
    async fn exchange(&mut self, message: Bytes) -> Result<Option<Bytes>> {
        self.out.send(message).await.map_err(|_| closed())?;
        Ok(self.back.recv().await)
    }
}

#[async_trait]
impl AttestationStream for Stream {
    async fn send_payload(&mut self, payload: Bytes) -> Result<Option<Bytes>> {
        self.exchange(payload).await
    }
    async fn respond(&mut self, response: Bytes) -> Result<Option<Bytes>> {
        self.exchange(response).await
    }
}

struct Asked<'a> {
    stream: Stream,
    meddler: &'a mut dyn Meddler,
}

#[async_trait]
impl Challenger for Asked<'_> {
    async fn challenge(&mut self, challenge: Bytes) -> Result<Bytes> {
        let challenge = changed(&challenge, |value| self.meddler.challenge(value));
        let response = self.stream.exchange(challenge).await?.ok_or_else(closed)?;
        Ok(changed(&response, |value| self.meddler.response(value)))
    }
}

fn changed(message: &[u8], change: impl FnOnce(&mut Value)) -> Bytes {
    let mut value = serde_json::from_slice(message).unwrap();
    change(&mut value);
    serde_json::to_vec(&value).unwrap().into()
}

/// What the server says, and what the agent.
pub(crate) struct Attested {
    pub(crate) server: Result<Attestation>,
    pub(crate) agent: Result<()>,
}

impl Attested {
    /// The text of the server's refusal.
    pub(crate) fn refusal(&self) -> String {
        match &self.server {
            Ok(_) => "it attested".to_owned(),
            Err(error) => error.message.clone(),
        }
    }

    /// The text of the agent's failure.
    pub(crate) fn failure(&self) -> String {
        match &self.agent {
            Ok(()) => "it did not fail".to_owned(),
            Err(error) => error.message.clone(),
        }
    }
}

/// Lets the agent attest to the server.
pub(crate) async fn attest(
    server: &dyn NodeAttestor,
    agent: Arc<dyn AgentNodeAttestor>,
    meddler: &mut dyn Meddler,
) -> Attested {
    let (to_server, mut from_agent) = mpsc::channel(1);
    let (to_agent, from_server) = mpsc::channel(1);
    let client =
        tokio::spawn(async move { agent.attest(&mut Stream { out: to_server, back: from_server }).await });
    let server = match from_agent.recv().await {
        Some(payload) => {
            let payload = changed(&payload, |value| meddler.payload(value));
            let stream = Stream { out: to_agent, back: from_agent };
            server.attest(payload, &mut Asked { stream, meddler }).await
        }
        None => {
            drop(to_agent);
            Err(closed())
        }
    };
    Attested { server, agent: client.await.unwrap() }
}
