//! The server's side: which hosts and ports it believes (pkg/server/plugin/nodeattestor/httpchallenge).

use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use bytes::Bytes;
use spire_compat::quote::quote;
use spire_compat::regexp::Regexp;
use spire_core::spiffe::{Selector, SpiffeId, TrustDomain};
use spire_ports::plugins::catalog::Configuration;
use spire_ports::plugins::{
    Attestation, Challenger, Error, ErrorKind, Host, NodeAttestor, PluginType, Result,
};

use super::{Challenge, NAME, Payload, fetch};
use crate::machine::random;

const NONCE_LEN: usize = 32;

/// Ports below this only root binds, so that who answers there owns the machine.
const ROOT_PORTS_END: i64 = 1024;

const AGENT_NAME_MAX: usize = 32;

/// Settings as written.
#[derive(Default)]
struct Raw {
    allowed_dns_patterns: Vec<String>,
    required_port: Option<i64>,
    allow_non_root_ports: Option<bool>,
    tofu: Option<bool>,
    refuse_private_targets: bool,
}

struct HttpChallenge {
    trust_domain: TrustDomain,
    host: Host,
    allowed: Vec<Regexp>,
    required_port: Option<i64>,
    allow_non_root_ports: bool,
    tofu: bool,
    refuse_private_targets: bool,
}

/// The attestor.
pub(crate) async fn build(configuration: Configuration) -> Result<Arc<dyn NodeAttestor>> {
    let raw = configuration
        .decode(|data| {
            Ok(Raw {
                allowed_dns_patterns: data.take_string_list("allowed_dns_patterns")?.unwrap_or_default(),
                required_port: data.take_int("required_port")?,
                allow_non_root_ports: data.take_bool("allow_non_root_ports")?,
                tofu: data.take_bool("tofu")?,
                refuse_private_targets: data.take_bool("refuse_private_targets")?.unwrap_or_default(),
            })
        })
        .map_err(|error| configuration.invalid(format!("unable to decode configuration: {error}")))?;
    let compile = |pattern: &String| {
        Regexp::new(pattern).map_err(|error| {
            let pattern = quote(pattern);
            configuration.invalid(format!("cannot compile allowed_dns_pattern: {pattern}, {error}"))
        })
    };
    let allowed = raw.allowed_dns_patterns.iter().map(compile).collect::<Result<Vec<_>>>()?;
    let tofu = raw.tofu.unwrap_or(true);
    let needs_tofu = match raw.required_port {
        Some(port) => port >= ROOT_PORTS_END,
        None => raw.allow_non_root_ports.unwrap_or(true),
    };
    if needs_tofu && !tofu {
        let text = "you can not turn off trust on first use (TOFU) when non-root ports are allowed";
        return Err(configuration.invalid(text));
    }
    let Configuration { trust_domain, host, .. } = configuration;
    Ok(Arc::new(HttpChallenge {
        trust_domain,
        host,
        allowed,
        required_port: raw.required_port,
        allow_non_root_ports: raw.allow_non_root_ports.unwrap_or(true),
        tofu,
        refuse_private_targets: raw.refuse_private_targets,
    }))
}

fn failed(kind: ErrorKind, message: impl Into<String>) -> Error {
    Error::new(kind, (PluginType::NodeAttestor, NAME), message)
}

#[async_trait]
impl NodeAttestor for HttpChallenge {
    fn name(&self) -> &str {
        NAME
    }

    async fn attest(&self, payload: Bytes, challenger: &mut dyn Challenger) -> Result<Attestation> {
        let agent = self.parse(&payload)?;
        let nonce = random::<NONCE_LEN>()
            .map_err(|error| failed(ErrorKind::Internal, format!("unable to generate challenge: {error}")))?;
        let challenge = Challenge { nonce: URL_SAFE.encode(nonce) };
        let text = serde_json::to_vec(&challenge)
            .map_err(|error| failed(ErrorKind::Internal, format!("unable to marshal challenge: {error}")))?;
        // The response says only that the agent is ready.
        challenger.challenge(text.into()).await?;
        tracing::debug!(
            external = false,
            plugin_name = NAME,
            plugin_type = "NodeAttestor",
            "Verifying challenge"
        );
        fetch::verify(&agent, &challenge.nonce, self.refuse_private_targets).await.map_err(|error| {
            failed(ErrorKind::PermissionDenied, format!("challenge verification failed: {error}"))
        })?;
        let agent_id = SpiffeId::agent(&self.trust_domain, &format!("/{NAME}/{}", agent.hostname))
            .map_err(|error| failed(ErrorKind::Internal, format!("failed to make spiffe id: {error}")))?;
        if self.tofu {
            self.host.assess_tofu((PluginType::NodeAttestor, NAME), &agent_id).await?;
        }
        let selectors = Selector::new(NAME, format!("hostname:{}", agent.hostname)).into_iter().collect();
        Ok(Attestation { agent_id, selectors, can_reattest: !self.tofu })
    }
}

impl HttpChallenge {
    /// What the agent says, as far as it is allowed.
    fn parse(&self, payload: &[u8]) -> Result<Payload> {
        let invalid = |message: String| failed(ErrorKind::InvalidArgument, message);
        if payload.is_empty() {
            return Err(invalid("missing attestation payload".to_owned()));
        }
        let agent: Payload = serde_json::from_slice(payload)
            .map_err(|error| invalid(format!("failed to unmarshal data: {error}")))?;
        if self.required_port.is_some_and(|port| port != agent.port) {
            let port = agent.port;
            return Err(invalid(format!("port {port} is not allowed to be used by this server")));
        }
        if !self.allow_non_root_ports && agent.port >= ROOT_PORTS_END {
            return Err(invalid(format!("port {} is not allowed to be >= 1024", agent.port)));
        }
        if !is_agent_name(&agent.agentname) {
            return Err(invalid("agent name is not valid".to_owned()));
        }
        if agent.hostname == "localhost" {
            let text = "you can not use localhost as a hostname";
            return Err(failed(ErrorKind::PermissionDenied, text));
        }
        if !self.allowed.is_empty() && !self.allowed.iter().any(|it| it.is_match(&agent.hostname)) {
            let text = "the requested hostname is not allowed to connect";
            return Err(failed(ErrorKind::PermissionDenied, text));
        }
        Ok(agent)
    }
}

fn is_agent_name(name: &str) -> bool {
    name.len() <= AGENT_NAME_MAX
        && name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}
