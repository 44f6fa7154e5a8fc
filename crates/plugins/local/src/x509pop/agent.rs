//! The agent's side: brings the chain and signs the challenge. Files and the Workload API are read at each attestation, so
//! that a renewed certificate is used without a restart (pkg/agent/plugin/nodeattestor/x509pop).

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use spire_core::pki::{Certificate, LocalKey, MAX_CHAIN_LEN, PrivateKeyError};
use spire_net::grpc::workload_channel;
use spire_ports::plugins::catalog::Configuration;
use spire_ports::plugins::{AgentNodeAttestor, AttestationStream, Error, ErrorKind, PluginType, Result};
use spire_wire::workload::X509svidRequest;
use spire_wire::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use tonic::metadata::MetadataValue;
use tonic::{Request, Status};

use super::server::certificates;
use super::{Challenge, NAME, Payload};
use crate::json::Base64;
use crate::machine::{blocking, read};

/// The longest that the Workload API may take: it answers when the agent there knows this process.
const WORKLOAD_API_TIMEOUT: Duration = Duration::from_secs(60);

/// `private_key_path`, `certificate_path`, `intermediates_path`.
#[derive(Clone, Default)]
struct Files {
    key: String,
    certificate: String,
    intermediates: String,
}

/// Where chain and key come from.
enum Source {
    Files(Files),
    /// An SVID of the Workload API at this address (`spiffe_endpoint_socket`).
    WorkloadApi(String),
}

struct X509Pop {
    source: Source,
}

/// The attestor, whose files must be good at start.
pub(crate) async fn build(configuration: Configuration) -> Result<Arc<dyn AgentNodeAttestor>> {
    let (files, socket) = configuration
        .decode(|data| {
            let files = Files {
                key: data.take_string("private_key_path")?.unwrap_or_default(),
                certificate: data.take_string("certificate_path")?.unwrap_or_default(),
                intermediates: data.take_string("intermediates_path")?.unwrap_or_default(),
            };
            Ok((files, data.take_string("spiffe_endpoint_socket")?.unwrap_or_default()))
        })
        .map_err(|error| configuration.invalid(format!("unable to decode configuration: {error}")))?;
    if !socket.is_empty() {
        return Ok(Arc::new(X509Pop { source: Source::WorkloadApi(socket) }));
    }
    for (value, key) in [(&files.key, "private_key_path"), (&files.certificate, "certificate_path")] {
        if value.is_empty() {
            return Err(configuration.invalid(format!("{key} is required")));
        }
    }
    let tried = files.clone();
    blocking(move || tried.load()).await.map_err(|error| configuration.invalid(error))?;
    Ok(Arc::new(X509Pop { source: Source::Files(files) }))
}

impl Files {
    /// The chain and the key. Texts of errors are those of Go's tls.LoadX509KeyPair.
    fn load(&self) -> std::result::Result<(Vec<Certificate>, LocalKey), String> {
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
        Ok((chain, key))
    }
}

impl Source {
    async fn load(&self) -> Result<(Vec<Certificate>, LocalKey)> {
        match self {
            Self::Files(files) => {
                let files = files.clone();
                blocking(move || files.load())
                    .await
                    .map_err(|error| failed(ErrorKind::InvalidArgument, error))
            }
            Self::WorkloadApi(address) => {
                let fetched = tokio::time::timeout(WORKLOAD_API_TIMEOUT, fetch_svid(address)).await;
                fetched.unwrap_or_else(|_| Err("context deadline exceeded".to_owned())).map_err(|error| {
                    let message = format!("unable to fetch SVID from workload API: {error}");
                    failed(ErrorKind::Unavailable, message)
                })
            }
        }
    }
}

/// The first SVID that a Workload API gives this process.
async fn fetch_svid(address: &str) -> std::result::Result<(Vec<Certificate>, LocalKey), String> {
    let channel = workload_channel(address)
        .ok_or("workload endpoint socket URI must have a \"tcp\" or \"unix\" scheme")?;
    let mut request = Request::new(X509svidRequest {});
    request.metadata_mut().insert("workload.spiffe.io", MetadataValue::from_static("true"));
    let fetch = async {
        let mut answers = SpiffeWorkloadApiClient::new(channel).fetch_x509svid(request).await?.into_inner();
        answers.message().await?.ok_or_else(|| Status::unknown("EOF"))
    };
    let answer = fetch
        .await
        .map_err(|status| format!("rpc error: code = {:?} desc = {}", status.code(), status.message()))?;
    let svid = answer.svids.into_iter().next().ok_or("there were no SVIDs in the response")?;
    let chain =
        Certificate::many_from_der(svid.x509_svid, MAX_CHAIN_LEN).map_err(|error| error.to_string())?;
    let key = LocalKey::from_pkcs8(&svid.x509_svid_key).map_err(|error| error.to_string())?;
    match chain.first() {
        None => Err("no certificates in the SVID".to_owned()),
        Some(leaf) if leaf.spki_der() != &key.public_key().spki()[..] => {
            Err("the SVID's key is not its certificate's".to_owned())
        }
        Some(_) => Ok((chain, key)),
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
        let (chain, key) = self.source.load().await?;
        let certificates = chain.iter().map(|certificate| Base64(certificate.der().to_vec())).collect();
        let payload = serde_json::to_vec(&Payload { certificates }).map_err(|error| {
            failed(ErrorKind::Internal, format!("unable to marshal attestation data: {error}"))
        })?;
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
