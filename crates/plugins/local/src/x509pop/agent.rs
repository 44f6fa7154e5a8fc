//! The agent's side: brings the chain and signs the challenge. The files are read at each attestation, so
//! that a renewed certificate is used without a restart (pkg/agent/plugin/nodeattestor/x509pop).

use std::sync::Arc;

use async_trait::async_trait;
use spire_core::pki::{LocalKey, PrivateKeyError};
use spire_ports::plugins::catalog::Configuration;
use spire_ports::plugins::{AgentNodeAttestor, AttestationStream, Error, ErrorKind, PluginType, Result};

use super::server::certificates;
use super::{Base64, Challenge, NAME, Payload};
use crate::machine::{blocking, read};

/// `private_key_path`, `certificate_path`, `intermediates_path`.
#[derive(Clone, Default)]
struct Settings {
    key: String,
    certificate: String,
    intermediates: String,
    endpoint_socket: String,
}

struct X509Pop {
    settings: Settings,
}

/// The attestor, whose files must be good at start.
pub(crate) async fn build(configuration: Configuration) -> Result<Arc<dyn AgentNodeAttestor>> {
    let settings = configuration
        .decode(|data| {
            Ok(Settings {
                key: data.take_string("private_key_path")?.unwrap_or_default(),
                certificate: data.take_string("certificate_path")?.unwrap_or_default(),
                intermediates: data.take_string("intermediates_path")?.unwrap_or_default(),
                endpoint_socket: data.take_string("spiffe_endpoint_socket")?.unwrap_or_default(),
            })
        })
        .map_err(|error| configuration.invalid(format!("unable to decode configuration: {error}")))?;
    if !settings.endpoint_socket.is_empty() {
        return Err(configuration.error(
            ErrorKind::FailedPrecondition,
            "not built yet: spiffe_endpoint_socket; use private_key_path and certificate_path",
        ));
    }
    for (value, key) in [(&settings.key, "private_key_path"), (&settings.certificate, "certificate_path")] {
        if value.is_empty() {
            return Err(configuration.invalid(format!("{key} is required")));
        }
    }
    let files = settings.clone();
    blocking(move || files.load()).await.map_err(|error| configuration.invalid(error))?;
    Ok(Arc::new(X509Pop { settings }))
}

impl Settings {
    /// The payload as JSON, and the key. Texts of errors are those of Go's tls.LoadX509KeyPair.
    fn load(&self) -> std::result::Result<(Vec<u8>, LocalKey), String> {
        let unusable = |error| format!("unable to load keypair: {error}");
        let text = read(&self.certificate).map_err(unusable)?;
        let key = read(&self.key).map_err(unusable)?;
        let mut chain = certificates(&text).map_err(|error| {
            unusable(match error.as_str() {
                "no certificates found in file" => {
                    "tls: failed to find any PEM data in certificate input".to_owned()
                }
                _ => error,
            })
        })?;
        let key = LocalKey::from_pem(&key).map_err(|error| {
            unusable(match error {
                PrivateKeyError::NoPem => "tls: failed to find any PEM data in key input".to_owned(),
                error => format!("tls: failed to parse private key: {error}"),
            })
        })?;
        if chain[0].spki_der() != &key.public_key().spki()[..] {
            return Err(unusable("tls: private key does not match public key".to_owned()));
        }
        if !self.intermediates.trim().is_empty() {
            let more = read(&self.intermediates).and_then(|text| certificates(&text));
            chain.extend(more.map_err(|error| format!("unable to load intermediate certificates: {error}"))?);
        }
        let certificates = chain.iter().map(|certificate| Base64(certificate.der().to_vec())).collect();
        let payload = serde_json::to_vec(&Payload { certificates: Some(certificates) })
            .map_err(|error| format!("unable to marshal attestation data: {error}"))?;
        Ok((payload, key))
    }
}

fn failed(kind: ErrorKind, message: impl Into<String>) -> Error {
    Error::new(kind, (PluginType::NodeAttestor, NAME), message)
}

#[async_trait]
impl AgentNodeAttestor for X509Pop {
    fn name(&self) -> &str {
        NAME
    }

    async fn attest(&self, server: &mut dyn AttestationStream) -> Result<()> {
        let settings = self.settings.clone();
        let (payload, key) = blocking(move || settings.load())
            .await
            .map_err(|error| failed(ErrorKind::InvalidArgument, error))?;
        let Some(challenge) = server.send_payload(payload.into()).await? else { return Ok(()) };
        let challenge: Challenge = serde_json::from_slice(&challenge).map_err(|error| {
            failed(ErrorKind::Internal, format!("unable to unmarshal challenge: {error}"))
        })?;
        let response = blocking(move || challenge.respond(&key)).await.map_err(|error| {
            failed(ErrorKind::Internal, format!("failed to calculate challenge response: {error}"))
        })?;
        let response = serde_json::to_vec(&response).map_err(|error| {
            failed(ErrorKind::Internal, format!("unable to marshal challenge response: {error}"))
        })?;
        match server.respond(response.into()).await? {
            None => Ok(()),
            Some(_) => Err(failed(ErrorKind::Internal, "the server sent a second challenge")),
        }
    }
}
