//! NodeAttestor `join_token`. The token itself is judged by the server's agent API and brought by the
//! agent's start; what stands here answers when that did not happen.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use spire_ports::plugins::catalog::Configuration;
use spire_ports::plugins::{
    AgentNodeAttestor, Attestation, AttestationStream, Challenger, Error, ErrorKind, NodeAttestor,
    PluginType, Result,
};

const NAME: &str = "join_token";
const PLUGIN: (PluginType, &str) = (PluginType::NodeAttestor, NAME);

struct JoinToken;

/// The server's side. Settings are accepted and not used, as in the reference.
pub(crate) async fn server(configuration: Configuration) -> Result<Arc<dyn NodeAttestor>> {
    configuration
        .decode(|_| Ok(()))
        .map_err(|_| configuration.invalid("plugin configuration is malformed"))?;
    Ok(Arc::new(JoinToken))
}

/// The agent's side, which takes no settings.
pub(crate) async fn agent(_: Configuration) -> Result<Arc<dyn AgentNodeAttestor>> {
    Ok(Arc::new(JoinToken))
}

#[async_trait]
impl NodeAttestor for JoinToken {
    fn name(&self) -> &str {
        NAME
    }

    async fn attest(&self, _: Bytes, _: &mut dyn Challenger) -> Result<Attestation> {
        let message = "join token attestation is currently implemented within the server";
        Err(Error::new(ErrorKind::Unimplemented, PLUGIN, message))
    }
}

#[async_trait]
impl AgentNodeAttestor for JoinToken {
    fn name(&self) -> &str {
        NAME
    }

    async fn attest(&self, _: &mut dyn AttestationStream) -> Result<()> {
        Err(Error::new(ErrorKind::InvalidArgument, PLUGIN, "join token was not provided"))
    }
}

#[cfg(test)]
mod tests {
    use super::{Bytes, ErrorKind, NAME, PluginType, Result, agent, async_trait, server};
    use crate::test_ca::{configuration, refusal};
    use spire_ports::plugins::{AttestationStream, Challenger};

    /// Nothing may be said to it.
    struct Nobody;

    #[async_trait]
    impl Challenger for Nobody {
        async fn challenge(&mut self, _: Bytes) -> Result<Bytes> {
            panic!("no challenge is needed")
        }
    }

    #[async_trait]
    impl AttestationStream for Nobody {
        async fn send_payload(&mut self, _: Bytes) -> Result<Option<Bytes>> {
            panic!("there is no payload")
        }
        async fn respond(&mut self, _: Bytes) -> Result<Option<Bytes>> {
            panic!("there is no challenge")
        }
    }

    #[tokio::test]
    async fn both_sides_answer_as_the_reference() {
        let of = |data| configuration(PluginType::NodeAttestor, NAME, data);
        let found = refusal(server(of("x = 1")).await.unwrap().attest(Bytes::new(), &mut Nobody).await);
        let message = "join token attestation is currently implemented within the server";
        assert_eq!(found, (ErrorKind::Unimplemented, message.to_owned()));
        let found = refusal(agent(of("")).await.unwrap().attest(&mut Nobody).await);
        assert_eq!(found, (ErrorKind::InvalidArgument, "join token was not provided".to_owned()));
    }
}
