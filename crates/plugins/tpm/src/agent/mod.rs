//! The agent's side: opens the TPM for each attestation, and answers what the server asks
//! (pkg/agent/plugin/nodeattestor/tpmdevid).

mod session;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use spire_compat::hcl::{Body, DecodeError};
use spire_ports::plugins::catalog::Configuration;
use spire_ports::plugins::{AgentNodeAttestor, AttestationStream, Error, ErrorKind, PluginType, Result};
use tokio::sync::oneshot;
use zeroize::Zeroizing;

use self::session::Session;
use crate::NAME;
use crate::machine::{blocking, read};
use crate::messages::{AttestationRequest, Base64, ChallengeRequest, ChallengeResponse, certificates};
use crate::tpm::channel::detect;

/// Where devices are looked for.
const DEVICES: &str = "/dev";

/// Settings as written.
#[derive(Default)]
struct Raw {
    certificate: String,
    private: String,
    public: String,
    passwords: Passwords,
    device: String,
}

/// What the TPM asks for before it does something.
#[derive(Clone, Default)]
struct Passwords {
    devid: Zeroizing<String>,
    owner: Zeroizing<String>,
    endorsement: Zeroizing<String>,
}

struct TpmDevid {
    device: PathBuf,
    devid: Arc<Devid>,
    passwords: Passwords,
}

/// The identity that was provisioned.
struct Devid {
    /// DER, leaf first.
    certificates: Vec<Vec<u8>>,
    /// TPMT_PUBLIC
    public: Vec<u8>,
    /// The contents of a TPM2B_PRIVATE
    private: Vec<u8>,
}

fn decode(data: &mut Body<'_>) -> std::result::Result<Raw, DecodeError> {
    let mut secret = |key| data.take_string(key).map(|value| Zeroizing::new(value.unwrap_or_default()));
    let passwords = Passwords {
        devid: secret("devid_password")?,
        owner: secret("owner_hierarchy_password")?,
        endorsement: secret("endorsement_hierarchy_password")?,
    };
    Ok(Raw {
        certificate: data.take_string("devid_cert_path")?.unwrap_or_default(),
        private: data.take_string("devid_priv_path")?.unwrap_or_default(),
        public: data.take_string("devid_pub_path")?.unwrap_or_default(),
        passwords,
        device: data.take_string("tpm_device_path")?.unwrap_or_default(),
    })
}

/// The attestor, with its identity read. The TPM is not opened before it is needed.
pub(crate) async fn build(configuration: Configuration) -> Result<Arc<dyn AgentNodeAttestor>> {
    let raw = configuration
        .decode(decode)
        .map_err(|error| configuration.invalid(format!("unable to decode configuration: {error}")))?;
    let required = [
        (&raw.certificate, "devid_cert_path"),
        (&raw.private, "devid_priv_path"),
        (&raw.public, "devid_pub_path"),
    ];
    for (value, key) in required {
        if value.is_empty() {
            return Err(configuration.invalid(format!("invalid configuration: {key} is required")));
        }
    }
    let internal = |message| configuration.error(ErrorKind::Internal, message);
    let device = if raw.device.is_empty() {
        blocking(|| detect(Path::new(DEVICES)))
            .await
            .map_err(|error| internal(format!("tpm autodetection failed: {error}")))?
    } else {
        PathBuf::from(&raw.device)
    };
    let (certificate, public, private) = (raw.certificate, raw.public, raw.private);
    let devid = blocking(move || Devid::load(&certificate, &public, &private))
        .await
        .map_err(|error| internal(format!("unable to load DevID files: {error}")))?;
    Ok(Arc::new(TpmDevid { device, devid: Arc::new(devid), passwords: raw.passwords }))
}

impl Devid {
    fn load(certificate: &str, public: &str, private: &str) -> std::result::Result<Self, String> {
        let chain = read(certificate)
            .and_then(|text| certificates(&text))
            .map_err(|error| format!("cannot load certificate(s): {error}"))?;
        let private = read(private).map_err(|error| format!("cannot load private key: {error}"))?;
        let public = read(public).map_err(|error| format!("cannot load public key: {error}"))?;
        Ok(Self {
            certificates: chain.iter().map(|certificate| certificate.der().to_vec()).collect(),
            public: without_size(public),
            private: without_size(private),
        })
    }
}

/// The contents of a TPM2B, where it is one. tpm2-tools writes keys with their size before them, other tools and the
/// reference without. No key begins with its own length, so the two cannot be mistaken for one another.
fn without_size(mut blob: Vec<u8>) -> Vec<u8> {
    let sized = matches!(*blob, [high, low, ref rest @ ..] if usize::from(u16::from_be_bytes([high, low])) == rest.len());
    if sized {
        blob.drain(..2);
    }
    blob
}

fn internal(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Internal, (PluginType::NodeAttestor, NAME), message)
}

#[async_trait]
impl AgentNodeAttestor for TpmDevid {
    fn name(&self) -> &str {
        NAME
    }

    /// The TPM is spoken to in a thread of its own, which ends, and lets go of what it loaded, whatever becomes of
    /// this future.
    async fn attest(&self, server: &mut dyn AttestationStream) -> Result<()> {
        let (payload_to, payload) = oneshot::channel();
        let (challenge_to, challenge) = oneshot::channel();
        let (device, devid, passwords) = (self.device.clone(), self.devid.clone(), self.passwords.clone());
        let answering = blocking(move || answer(&device, &devid, &passwords, payload_to, challenge));
        let answering = tokio::spawn(answering);
        // Without a payload the thread has ended and says why.
        let asked = match payload.await {
            Ok(payload) => server.send_payload(payload).await?,
            Err(_) => None,
        };
        if let Some(asked) = asked {
            // It is lost only when the thread has ended already.
            let _ = challenge_to.send(asked);
        } else {
            drop(challenge_to);
        }
        let response = answering.await.map_err(|error| internal(error.to_string()))??;
        let Some(response) = response else { return Ok(()) };
        match server.respond(response).await? {
            None => Ok(()),
            Some(_) => Err(internal("the server sent a second challenge")),
        }
    }
}

/// The whole attestation as the TPM's thread sees it: sends the payload, waits for the challenge, returns the
/// response. Without a challenge the server was content, or gone.
fn answer(
    device: &Path,
    devid: &Devid,
    passwords: &Passwords,
    payload: oneshot::Sender<Bytes>,
    challenge: oneshot::Receiver<Bytes>,
) -> Result<Option<Bytes>> {
    let mut session = Session::open(device, devid, passwords)
        .map_err(|error| internal(format!("unable to start a new TPM session: {error}")))?;
    let certificate = session
        .endorsement_certificate()
        .map_err(|error| internal(format!("unable to get endorsement certificate: {error}")))?;
    let endorsement = session
        .endorsement_public()
        .map_err(|error| internal(format!("unable to get endorsement public key: {error}")))?;
    let certified =
        session.certify_devid().map_err(|error| internal(format!("unable to certify DevID key: {error}")))?;
    let request = AttestationRequest {
        devid_certificates: Some(devid.certificates.iter().cloned().map(Base64).collect()),
        devid_public: Base64(devid.public.clone()),
        ek_certificate: Base64(certificate),
        ek_public: Base64(endorsement),
        ak_public: Base64(session.attestation_public().to_vec()),
        certified_devid: Base64(certified.attested),
        certification_signature: Base64(certified.signature),
    };
    let request = serde_json::to_vec(&request)
        .map_err(|error| internal(format!("unable to marshal attestation data: {error}")))?;
    if payload.send(request.into()).is_err() {
        return Ok(None);
    }
    let Ok(challenge) = challenge.blocking_recv() else { return Ok(None) };
    let challenge: ChallengeRequest = serde_json::from_slice(&challenge).map_err(|error| {
        let message = format!("unable to unmarshall challenges: {error}");
        Error::new(ErrorKind::InvalidArgument, (PluginType::NodeAttestor, NAME), message)
    })?;
    let signature = session.sign(&challenge.devid.0).map_err(|error| {
        internal(format!("unable to solve proof of possession challenge: failed to sign nonce: {error}"))
    })?;
    let activation = challenge
        .credential_activation
        .ok_or_else(|| internal("received empty credential activation challenge from server"))?;
    let secret = session
        .activate(&activation.credential.0, &activation.secret.0)
        .map_err(|error| internal(format!("unable to solve proof of residency challenge: {error}")))?;
    let response = ChallengeResponse { devid: Base64(signature), credential_activation: Base64(secret) };
    let response = serde_json::to_vec(&response)
        .map_err(|error| internal(format!("unable to marshal challenge response: {error}")))?;
    Ok(Some(response.into()))
}

#[cfg(test)]
mod tests;
