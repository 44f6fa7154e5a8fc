//! The agent's side: brings the token, which the kubelet replaces from time to time.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use spire_ports::plugins::catalog::Configuration;
use spire_ports::plugins::{AgentNodeAttestor, AttestationStream, Error, ErrorKind, PluginType, Result};

use super::{NAME, Payload};
use crate::api::read_text;

/// Where the token is projected to by default.
const TOKEN_PATH: &str = "/var/run/secrets/tokens/spire-agent";

struct Psat {
    cluster: String,
    token_path: String,
}

/// The attestor.
pub(crate) async fn build(configuration: Configuration) -> Result<Arc<dyn AgentNodeAttestor>> {
    let (cluster, token_path) = configuration
        .decode(|data| {
            let cluster = data.take_string("cluster")?.unwrap_or_default();
            Ok((cluster, data.take_string("token_path")?.unwrap_or_default()))
        })
        .map_err(|error| configuration.invalid(format!("unable to decode configuration: {error}")))?;
    if cluster.is_empty() {
        return Err(configuration.invalid("missing required cluster block"));
    }
    let token_path = if token_path.is_empty() { TOKEN_PATH.to_owned() } else { token_path };
    Ok(Arc::new(Psat { cluster, token_path }))
}

fn failed(kind: ErrorKind, message: String) -> Error {
    Error::new(kind, (PluginType::NodeAttestor, NAME), message)
}

#[async_trait]
impl AgentNodeAttestor for Psat {
    fn name(&self) -> &str {
        NAME
    }

    async fn attest(&self, server: &mut dyn AttestationStream) -> Result<()> {
        let path = self.token_path.clone();
        let token = tokio::task::spawn_blocking(move || match read_text(Path::new(&path)) {
            Ok(token) if token.is_empty() => Err(format!("{path:?} is empty")),
            read => read,
        });
        let token = token.await.unwrap_or_else(|error| Err(error.to_string())).map_err(|error| {
            let message = format!("unable to load token from {}: {error}", self.token_path);
            failed(ErrorKind::InvalidArgument, message)
        })?;
        let payload = Payload { cluster: self.cluster.clone(), token: token.to_string() };
        let payload = serde_json::to_vec(&payload).map_err(|error| {
            failed(ErrorKind::Internal, format!("unable to marshal PSAT token data: {error}"))
        })?;
        match server.send_payload(payload.into()).await? {
            None => Ok(()),
            Some(_) => Err(failed(ErrorKind::Internal, "the server sent a challenge".to_owned())),
        }
    }
}
