//! Lets both sides of a node attestor speak to each other in tests.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use spire_ports::plugins::{
    AgentNodeAttestor, Attestation, AttestationStream, Challenger, Error, ErrorKind, NodeAttestor,
    PluginType, Result,
};
use tokio::sync::mpsc;

/// Files of a test.
pub(crate) struct Files(pub(crate) tempfile::TempDir);

impl Files {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> String {
        let path = self.0.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }
}

/// The way between the two: one channel a direction.
pub(crate) struct Wire {
    pub(crate) out: mpsc::Sender<Bytes>,
    pub(crate) back: mpsc::Receiver<Bytes>,
}

pub(crate) fn closed() -> Error {
    Error::new(ErrorKind::Unavailable, (PluginType::NodeAttestor, "wire"), "the other side went away")
}

impl Wire {
    async fn exchange(&mut self, message: Bytes) -> Result<Option<Bytes>> {
        self.out.send(message).await.map_err(|_| closed())?;
        Ok(self.back.recv().await)
    }
}

#[async_trait]
impl AttestationStream for Wire {
    async fn send_payload(&mut self, payload: Bytes) -> Result<Option<Bytes>> {
        self.exchange(payload).await
    }
    async fn respond(&mut self, response: Bytes) -> Result<Option<Bytes>> {
        self.exchange(response).await
    }
}

#[async_trait]
impl Challenger for Wire {
    async fn challenge(&mut self, challenge: Bytes) -> Result<Bytes> {
        self.exchange(challenge).await?.ok_or_else(closed)
    }
}

/// Lets the agent attest to the server.
pub(crate) async fn attest(
    server: Arc<dyn NodeAttestor>,
    agent: Arc<dyn AgentNodeAttestor>,
) -> Result<Attestation> {
    let (to_server, mut payloads) = mpsc::channel(1);
    let (to_agent, from_server) = mpsc::channel(1);
    let client =
        tokio::spawn(async move { agent.attest(&mut Wire { out: to_server, back: from_server }).await });
    let payload = payloads.recv().await.unwrap();
    let result = {
        let mut wire = Wire { out: to_agent, back: payloads };
        server.attest(payload, &mut wire).await
    };
    let client = client.await.unwrap();
    assert!(result.is_err() || client.is_ok(), "{client:?}");
    result
}

/// Answers every challenge with the same bytes.
pub(crate) struct Fixed(pub(crate) &'static str);

#[async_trait]
impl Challenger for Fixed {
    async fn challenge(&mut self, _: Bytes) -> Result<Bytes> {
        Ok(Bytes::from_static(self.0.as_bytes()))
    }
}
