//! Node attestation: how the agent gets its SVID (the reference's `pkg/agent/attestor/node`).

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use spire_core::pki::Certificate;
use spire_core::spiffe::{Bundle, SpiffeId, X509Authority};
use spire_core::time::Timestamp;
use spire_ports::observe::{Call, GrpcCode, Logged, Metrics, names};
use spire_ports::plugins::{self, AgentNodeAttestor, AttestationStream, ErrorKind, Key, PluginType};
use spire_wire::api::server::agent::v1::{
    AgentX509svidParams, AttestAgentRequest, AttestAgentResponse, agent_client::AgentClient,
    attest_agent_request, attest_agent_response,
};
use spire_wire::api::types;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use super::bootstrap::FirstTrust;
use super::client::{CallError, ClientSetupError, RPC_TIMEOUT, ServerClient};
use super::clock::Clock;
use super::convert::{self, ConvertError};
use super::keys::{CsrError, SvidKeys, agent_csr, key_of};
use super::options::Options;
use super::status::{GoStatus, code_name};
use super::storage::Storage;
use super::trust::Trust;

/// An SVID that expires within this counts as expired (pkg/agent/attestor/node: IsSVIDExpired).
const CLOCK_SKEW: std::time::Duration = std::time::Duration::from_secs(1);

/// Challenges that a server may send for one attestation; the plugins of the reference send three at most.
const MAX_CHALLENGES: u32 = 64;

/// Why the agent was not attested.
#[derive(Debug, thiserror::Error)]
pub enum AttestError {
    /// There is no trust in the server.
    #[error("load bundle: no certs in bundle")]
    NoBundle,
    /// An SVID is stored and no bundle: somebody changed the file.
    #[error("SVID loaded but no bundle in cache")]
    SvidWithoutBundle,
    /// The keys cannot be listed.
    #[error("unable to load private key: {0}")]
    LoadKey(plugins::Error),
    /// A key cannot be made.
    #[error("unable to generate private key: {0}")]
    GenerateKey(plugins::Error),
    /// No request could be made with the key.
    #[error("failed to generate CSR for attestation: {0}")]
    Csr(#[from] CsrError),
    /// The connection cannot be set up.
    #[error("create attestation client: {0}")]
    Client(#[from] ClientSetupError),
    /// The server, or the way to it, failed.
    #[error("{doing}: {}", GoStatus(status))]
    Server {
        /// What was tried.
        doing: &'static str,
        /// The answer.
        status: Box<Status>,
    },
    /// The server's answer cannot be used.
    #[error("failed to parse attestation response: {0}")]
    Response(#[from] ConvertError),
    /// The node attestor failed.
    #[error(transparent)]
    Plugin(plugins::Error),
    /// The server gave an identity that is not an agent's of the trust domain.
    #[error("failed to parse attestation response: {0}")]
    Identity(String),
    /// The server attested the agent and does not give its bundle.
    #[error("failed to get updated bundle: {0}")]
    Bundle(CallError),
}

impl AttestError {
    /// The server's answer, when there was one.
    pub fn status(&self) -> Option<&Status> {
        match self {
            Self::Server { status, .. } => Some(status),
            Self::Bundle(error) => Some(&error.status),
            _ => None,
        }
    }

    /// Whether trying again is of no use.
    pub fn is_permission_denied(&self) -> bool {
        let plugin = matches!(self, Self::Plugin(e) if e.kind == ErrorKind::PermissionDenied);
        plugin || self.status().is_some_and(|s| s.code() == Code::PermissionDenied)
    }
}

impl GrpcCode for AttestError {
    fn grpc_code(&self) -> &'static str {
        match self {
            Self::LoadKey(error) | Self::GenerateKey(error) | Self::Plugin(error) => error.grpc_code(),
            Self::Csr(error) => error.grpc_code(),
            _ => self.status().map_or("Unknown", |status| code_name(status.code())),
        }
    }
}

/// An agent's SVID with its key.
#[derive(Clone)]
pub struct AgentSvid {
    /// Leaf and intermediates; never empty.
    pub chain: Vec<Certificate>,
    /// The leaf's key, in the KeyManager.
    pub key: Arc<dyn Key>,
    /// Whether the agent renews by attesting again.
    pub reattestable: bool,
    id: SpiffeId,
}

impl AgentSvid {
    /// Checks that the chain's leaf is an agent of the trust domain.
    ///
    /// # Errors
    /// [`AttestError::Identity`] when it is not.
    pub fn new(
        chain: Vec<Certificate>,
        key: Arc<dyn Key>,
        reattestable: bool,
        options: &Options,
    ) -> Result<Self, AttestError> {
        let leaf = chain.first().ok_or_else(|| AttestError::Identity("empty SVID cert chain".to_owned()))?;
        let id = leaf.spiffe_id().map_err(|e| AttestError::Identity(e.to_string()))?;
        if !id.is_member_of(&options.trust_domain) {
            return Err(AttestError::Identity(format!(
                "{:?} is not a member of trust domain {:?}",
                id.as_str(),
                options.trust_domain.name()
            )));
        }
        Ok(Self { chain, key, reattestable, id })
    }

    /// The leaf.
    pub fn leaf(&self) -> &Certificate {
        // The constructor refuses an empty chain.
        self.chain.first().unwrap_or_else(|| unreachable!("checked by the constructor"))
    }

    /// Who the agent is.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// Whether the SVID is of no use any more.
    pub fn is_expired(&self, now: Timestamp) -> bool {
        now + CLOCK_SKEW >= self.leaf().not_after()
    }
}

/// What attestation gave: an SVID, fresh or stored, and the authorities to trust.
pub(super) struct Attested {
    /// The agent's SVID.
    pub svid: AgentSvid,
    /// The bundle of the trust domain; from storage it has X.509 authorities only.
    pub bundle: Bundle,
    /// Whether the server attested the agent just now.
    pub fresh: bool,
}

/// Attests the agent, or finds that it still has a good SVID.
pub(super) struct NodeAttestation<'a> {
    /// The settings.
    pub options: &'a Options,
    /// Where SVID and bundle are kept.
    pub storage: &'a Storage,
    /// The agent's keys.
    pub keys: &'a SvidKeys,
    /// Who makes the proof.
    pub attestor: &'a dyn AgentNodeAttestor,
    /// Where calls are counted.
    pub metrics: &'a dyn Metrics,
    /// The time.
    pub clock: Clock,
}

impl NodeAttestation<'_> {
    /// Attests the agent unless its stored SVID and key are good. What the server gives is stored before this
    /// returns, so that a crash after it needs no second attestation.
    ///
    /// # Errors
    /// [`AttestError`] says why there is no SVID.
    pub(super) async fn run(&self, trust: FirstTrust) -> Result<Attested, AttestError> {
        let domain = &self.options.trust_domain;
        let authorities = match trust {
            FirstTrust::Insecure => None,
            FirstTrust::Authorities(found) if found.is_empty() => return Err(AttestError::NoBundle),
            FirstTrust::Authorities(found) => Some(found),
        };
        match authorities {
            None => tracing::info!(subsystem_name = "attestor", "Bundle is not found"),
            Some(_) => {
                tracing::info!(
                    subsystem_name = "attestor",
                    trust_domain_id = domain.id_string(),
                    "Bundle loaded"
                );
            }
        }
        let existing = self.keys.existing().await.map_err(AttestError::LoadKey)?;
        match (self.stored(&existing), authorities) {
            (Ok(svid), Some(authorities)) => {
                tracing::info!(subsystem_name = "attestor", spiffe_id = %svid.id(), trust_domain_id = domain.id_string(), "SVID loaded");
                let mut bundle = Bundle::empty(domain.clone());
                bundle.x509_authorities = authorities
                    .iter()
                    .map(|c| X509Authority { der: c.der().clone(), tainted: false })
                    .collect();
                Ok(Attested { svid, bundle, fresh: false })
            }
            (Ok(_), None) => Err(AttestError::SvidWithoutBundle),
            (Err(old_key), authorities) => {
                let key = self.keys.next(old_key.as_deref()).await.map_err(AttestError::GenerateKey)?;
                tracing::info!(subsystem_name = "attestor", "SVID is not found. Starting node attestation");
                let attested = self.attest(key, authorities).await?;
                tracing::info!(
                    subsystem_name = "attestor", spiffe_id = %attested.svid.id(),
                    reattestable = attested.svid.reattestable, "Node attestation was successful"
                );
                self.store(&attested);
                Ok(attested)
            }
        }
    }

    /// The stored SVID with its key when both are good, else the key whose place must not be reused.
    fn stored(&self, existing: &[Arc<dyn Key>]) -> Result<AgentSvid, Option<Arc<dyn Key>>> {
        let Some(stored) = self.storage.svid() else {
            tracing::debug!(
                subsystem_name = "attestor",
                "No pre-existing agent SVID found. Will perform node attestation"
            );
            if !existing.is_empty() {
                tracing::warn!(
                    subsystem_name = "attestor",
                    "Keys recovered, but no SVID found. Generating new keypair"
                );
            }
            return Err(None);
        };
        let key = stored.chain.first().and_then(|leaf| key_of(existing, leaf));
        let Some(key) = key else {
            let what = if existing.is_empty() { "no keys" } else { "no SVID key" };
            tracing::warn!(
                subsystem_name = "attestor",
                "SVID recovered, but {what} found. Generating new keypair"
            );
            return Err(None);
        };
        match AgentSvid::new(stored.chain, Arc::clone(&key), stored.reattestable, self.options) {
            Ok(svid) if !svid.is_expired(self.clock.now()) => Ok(svid),
            Ok(svid) => {
                let expiry = Logged::Time(svid.leaf().not_after().unix());
                tracing::warn!(
                    subsystem_name = "attestor",
                    expiry = expiry.value(),
                    "SVID key recovered, but SVID is expired. Generating new keypair"
                );
                Err(Some(key))
            }
            Err(error) => {
                tracing::warn!(subsystem_name = "attestor", error = %error, "Could not get agent SVID from path");
                Err(Some(key))
            }
        }
    }

    async fn attest(
        &self,
        key: Arc<dyn Key>,
        authorities: Option<Vec<Certificate>>,
    ) -> Result<Attested, AttestError> {
        let mut call = Call::start(self.metrics, names::agent::NODE_ATTESTOR_NEW_SVID);
        call.label(names::label::ATTESTOR, self.attestor.name());
        let result = self.new_svid(key, authorities).await;
        call.done_with(&result);
        result
    }

    async fn new_svid(
        &self,
        key: Arc<dyn Key>,
        authorities: Option<Vec<Certificate>>,
    ) -> Result<Attested, AttestError> {
        let client = match authorities {
            Some(authorities) => {
                let trust = Trust::new(self.options.trust_domain.clone(), authorities);
                ServerClient::new(self.options, trust, None)?
            }
            None => {
                tracing::warn!(
                    subsystem_name = "attestor",
                    "Insecure bootstrap enabled; skipping server certificate verification"
                );
                ServerClient::insecure(self.options)?
            }
        };
        let svid = attest_with(&client, self.attestor, key, self.options).await?;
        let bundle = client.bundle().await.map_err(AttestError::Bundle)?;
        Ok(Attested { svid, bundle, fresh: true })
    }

    fn store(&self, attested: &Attested) {
        let svid = &attested.svid;
        let stored = self.storage.store_svid(&svid.chain, svid.reattestable);
        let bundle = super::trust::certificates(&attested.bundle);
        if let Err(error) = stored.and_then(|()| self.storage.store_bundle(&bundle)) {
            // The agent works without; it attests again after a restart, which a full disk must not prevent.
            tracing::warn!(subsystem_name = "attestor", error = %error, "Could not store SVID");
        }
    }
}

/// Lets the node attestor prove who the node is, and takes the SVID that the server gives for the key.
///
/// # Errors
/// [`AttestError`]: the server's refusal comes before the plugin's own account of it.
pub(super) async fn attest_with(
    client: &ServerClient,
    attestor: &dyn AgentNodeAttestor,
    key: Arc<dyn Key>,
    options: &Options,
) -> Result<AgentSvid, AttestError> {
    let csr = agent_csr(&*key).await?;
    let mut dialogue = Dialogue::new(client, attestor.name(), csr);
    let outcome = attestor.attest(&mut dialogue).await;
    if let Some(failure) = dialogue.failure {
        return Err(failure);
    }
    outcome.map_err(AttestError::Plugin)?;
    let result =
        dialogue.result.ok_or_else(|| AttestError::Identity("attest response is missing SVID".to_owned()))?;
    let svid =
        result.svid.ok_or_else(|| AttestError::Identity("attest response is missing SVID".to_owned()))?;
    AgentSvid::new(convert::chain(svid.cert_chain)?, key, result.reattestable, options)
}

/// The attestation stream, opened by its first message.
struct Dialogue<'a> {
    client: &'a ServerClient,
    attestor: String,
    csr: Bytes,
    stream: Option<(mpsc::Sender<AttestAgentRequest>, Streaming<AttestAgentResponse>)>,
    challenges: u32,
    result: Option<attest_agent_response::Result>,
    failure: Option<AttestError>,
}

impl<'a> Dialogue<'a> {
    fn new(client: &'a ServerClient, attestor: &str, csr: Vec<u8>) -> Self {
        Self {
            client,
            attestor: attestor.to_owned(),
            csr: csr.into(),
            stream: None,
            challenges: 0,
            result: None,
            failure: None,
        }
    }

    async fn exchange(&mut self, step: attest_agent_request::Step) -> Result<Option<Bytes>, AttestError> {
        let request = AttestAgentRequest { step: Some(step) };
        let answer = tokio::time::timeout(RPC_TIMEOUT, self.send_and_receive(request))
            .await
            .unwrap_or_else(|_| Err(Status::deadline_exceeded("context deadline exceeded")));
        let doing = "failed to receive attestation response";
        let answer = answer.map_err(|status| AttestError::Server { doing, status: Box::new(status) })?;
        match answer.step {
            Some(attest_agent_response::Step::Challenge(challenge)) if self.challenges < MAX_CHALLENGES => {
                self.challenges += 1;
                Ok(Some(challenge))
            }
            Some(attest_agent_response::Step::Result(result)) => {
                self.result = Some(result);
                // Closes our side of the stream.
                self.stream = None;
                Ok(None)
            }
            _ => Err(AttestError::Identity("attest response is missing SVID".to_owned())),
        }
    }

    async fn send_and_receive(&mut self, request: AttestAgentRequest) -> Result<AttestAgentResponse, Status> {
        let answers = match &mut self.stream {
            Some((requests, answers)) => {
                requests.send(request).await.map_err(|_| Status::unavailable("stream is closed"))?;
                answers
            }
            none => {
                let (requests, outgoing) = mpsc::channel(1);
                // The channel has room; a server may answer nothing, not even headers, before the first message.
                requests.try_send(request).map_err(|_| Status::internal("stream is closed"))?;
                let answers = AgentClient::new(self.client.connection().channel)
                    .attest_agent(ReceiverStream::new(outgoing))
                    .await?;
                &mut none.insert((requests, answers.into_inner())).1
            }
        };
        answers.message().await?.ok_or_else(|| Status::unknown("EOF"))
    }

    /// Keeps the failure for [`attest_with`] and tells the plugin.
    fn tell(&mut self, outcome: Result<Option<Bytes>, AttestError>) -> plugins::Result<Option<Bytes>> {
        outcome.map_err(|failure| {
            let error = plugins::Error::new(
                ErrorKind::Unknown,
                (PluginType::NodeAttestor, &self.attestor),
                failure.to_string(),
            );
            self.failure = Some(failure);
            error
        })
    }
}

#[async_trait]
impl AttestationStream for Dialogue<'_> {
    async fn send_payload(&mut self, payload: Bytes) -> plugins::Result<Option<Bytes>> {
        let step = attest_agent_request::Step::Params(attest_agent_request::Params {
            data: Some(types::AttestationData { r#type: self.attestor.clone(), payload }),
            params: Some(AgentX509svidParams { csr: self.csr.clone() }),
        });
        let outcome = self.exchange(step).await;
        self.tell(outcome)
    }

    async fn respond(&mut self, response: Bytes) -> plugins::Result<Option<Bytes>> {
        let outcome = self.exchange(attest_agent_request::Step::ChallengeResponse(response)).await;
        self.tell(outcome)
    }
}
