//! The agent's side: brings the host's certificate and signs the challenge. The files are read at each attestation, so that a
//! renewed certificate is used without a restart (pkg/agent/plugin/nodeattestor/sshpop).

use std::sync::Arc;

use async_trait::async_trait;
use spire_ports::plugins::catalog::Configuration;
use spire_ports::plugins::{AgentNodeAttestor, AttestationStream, Error, ErrorKind, PluginType, Result};

use super::authorized::first_key;
use super::certificate::Certificate;
use super::private::Signer;
use super::{Challenge, NAME, NONCE_LEN, Payload, Response, combine};
use crate::json::Base64;
use crate::machine::{blocking, random, read};

const DEFAULT_KEY: &str = "/etc/ssh/ssh_host_rsa_key";
const DEFAULT_CERTIFICATE: &str = "/etc/ssh/ssh_host_rsa_key-cert.pub";

/// `host_key_path`, `host_cert_path`.
#[derive(Clone, Default)]
struct Files {
    key: String,
    certificate: String,
}

struct SshPop {
    files: Files,
}

/// The attestor, whose files must be good at start.
pub(crate) async fn build(configuration: Configuration) -> Result<Arc<dyn AgentNodeAttestor>> {
    let mut files = configuration
        .decode(|data| {
            Ok(Files {
                key: data.take_string("host_key_path")?.unwrap_or_default(),
                certificate: data.take_string("host_cert_path")?.unwrap_or_default(),
            })
        })
        .map_err(|error| configuration.invalid(format!("failed to decode configuration: {error}")))?;
    for (path, default) in [(&mut files.key, DEFAULT_KEY), (&mut files.certificate, DEFAULT_CERTIFICATE)] {
        if path.is_empty() {
            default.clone_into(path);
        }
    }
    let tried = files.clone();
    blocking(move || tried.load()).await.map_err(|error| configuration.invalid(error))?;
    Ok(Arc::new(SshPop { files }))
}

impl Files {
    fn load(&self) -> std::result::Result<(Certificate, Signer), String> {
        let key = read(&self.key).map_err(|error| format!("failed to read host key file: {error}"))?;
        let text =
            read(&self.certificate).map_err(|error| format!("failed to read host cert file: {error}"))?;
        let unusable = |error: String| format!("failed to get cert and signer from pem: {error}");
        let signer = Signer::from_pem(&key).map_err(unusable)?;
        let blob = first_key(&String::from_utf8_lossy(&text)).map_err(unusable)?;
        let certificate = Certificate::parse(&blob)
            .map_err(unusable)?
            .ok_or_else(|| unusable("pubkey isn't a certificate".to_owned()))?;
        if signer.public_key().map_err(unusable)? != certificate.key {
            return Err(unusable("host certificate is not of the host key".to_owned()));
        }
        Ok((certificate, signer))
    }
}

fn internal(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Internal, (PluginType::NodeAttestor, NAME), message)
}

#[async_trait]
impl AgentNodeAttestor for SshPop {
    fn name(&self) -> &str {
        NAME
    }

    async fn attest(&self, server: &mut dyn AttestationStream) -> Result<()> {
        let files = self.files.clone();
        let (certificate, signer) = blocking(move || files.load()).await.map_err(|error| {
            Error::new(ErrorKind::InvalidArgument, (PluginType::NodeAttestor, NAME), error)
        })?;
        let payload = serde_json::to_vec(&Payload { certificate: Base64(certificate.blob().to_vec()) })
            .map_err(|error| internal(format!("failed to marshal attestation data: {error}")))?;
        let Some(challenge) = server.send_payload(payload.into()).await? else { return Ok(()) };
        let challenge: Challenge = serde_json::from_slice(&challenge)
            .map_err(|error| internal(format!("failed to unmarshal challenge request: {error}")))?;
        let nonce =
            random::<NONCE_LEN>().map_err(|error| internal(format!("failed to generate nonce: {error}")))?;
        let message = combine(&challenge.nonce.0, &nonce)
            .map_err(|error| internal(format!("failed to combine nonces: {error}")))?;
        let signature = blocking(move || signer.sign(message.as_ref()))
            .await
            .map_err(|error| internal(format!("failed to sign data: {error}")))?;
        let response = Response { nonce: Base64(nonce.to_vec()), signature: Some(signature) };
        let response = serde_json::to_vec(&response)
            .map_err(|error| internal(format!("failed to marshal response: {error}")))?;
        match server.respond(response.into()).await? {
            None => Ok(()),
            Some(_) => Err(internal("the server sent a second challenge")),
        }
    }
}
