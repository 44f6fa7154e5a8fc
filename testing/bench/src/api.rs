//! The clients that put the load on.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use spire_core::pki::{Certificate, CsrTemplate, DistinguishedName, KeyType, LocalKey};
use spire_core::spiffe::{SpiffeId, TrustDomain};
use spire_net::grpc::{tcp_channel_from, unix_channel};
use spire_net::tls::{Identity, TlsClient, TlsPolicy, TrustSource, UnixConnector};
use spire_wire::api::server::agent::v1 as agent;
use spire_wire::api::server::agent::v1::agent_client::AgentClient;
use spire_wire::api::server::bundle::v1 as bundle;
use spire_wire::api::server::bundle::v1::bundle_client::BundleClient;
use spire_wire::api::server::entry::v1 as entry;
use spire_wire::api::server::entry::v1::entry_client::EntryClient;
use spire_wire::api::types;
use spire_wire::health::{HealthCheckRequest, health_client::HealthClient};
use tonic::transport::Channel;

/// Bytes that a client takes in one message: listings of thousands of entries are larger than gRPC's default.
pub(crate) const MESSAGE_MAX: usize = 64 << 20;

/// A channel to a unix socket.
pub(crate) fn unix(socket: &Path) -> Channel {
    unix_channel(UnixConnector::new(socket))
}

/// Whether a gRPC server on the socket says that it serves.
pub(crate) async fn is_serving(socket: &Path) -> bool {
    if !socket.exists() {
        return false;
    }
    let answer = HealthClient::new(unix(socket)).check(HealthCheckRequest::default()).await;
    answer.is_ok_and(|a| a.get_ref().status == 1)
}

/// An ID of the benchmark's trust domain on the wire.
pub(crate) fn id(path: &str) -> types::Spiffeid {
    types::Spiffeid { trust_domain: "example.org".into(), path: path.into() }
}

/// Makes a join token.
pub(crate) async fn join_token(channel: &Channel) -> Result<String> {
    let request = agent::CreateJoinTokenRequest { ttl: 600, ..Default::default() };
    Ok(AgentClient::new(channel.clone()).create_join_token(request).await?.into_inner().value)
}

/// An entry for tests: `unix:uid:<uid>` and one selector that is its own.
pub(crate) fn new_entry(parent: &str, path: &str, selectors: &[&str]) -> types::Entry {
    types::Entry {
        spiffe_id: Some(id(path)),
        parent_id: Some(id(parent)),
        selectors: selectors
            .iter()
            .map(|value| types::Selector { r#type: "unix".into(), value: (*value).into() })
            .collect(),
        ..Default::default()
    }
}

/// Creates entries and returns their IDs; fails if one is refused.
pub(crate) async fn create_entries(channel: &Channel, entries: Vec<types::Entry>) -> Result<Vec<String>> {
    let request = entry::BatchCreateEntryRequest { entries, output_mask: None };
    let mut client = EntryClient::new(channel.clone()).max_decoding_message_size(MESSAGE_MAX);
    let answer = client.batch_create_entry(request).await?.into_inner();
    answer
        .results
        .into_iter()
        .map(|result| match result.entry {
            Some(entry) if result.status.as_ref().is_some_and(|s| s.code == 0) => Ok(entry.id),
            _ => bail!("entry refused: {:?}", result.status),
        })
        .collect()
}

/// A key and a CSR with it.
pub(crate) fn csr(uri: Option<&str>) -> Result<(LocalKey, Bytes)> {
    let key = LocalKey::generate(KeyType::EcP256)?;
    let subject = DistinguishedName::default_svid().encode()?;
    let uris: Vec<&str> = uri.into_iter().collect();
    let request = CsrTemplate {
        subject: &subject,
        public_key: key.public_key(),
        dns_names: &[],
        uris: &uris,
        extra_extensions: &[],
    }
    .to_be_signed()?;
    let signature = key.sign(request.algorithm(), request.bytes())?;
    Ok((key, request.assemble(&signature).into()))
}

#[derive(Debug)]
struct Roots(Arc<[Certificate]>);

impl TrustSource for Roots {
    fn authorities(&self, _: &TrustDomain) -> Option<Arc<[Certificate]>> {
        Some(self.0.clone())
    }
}

/// How agents reach one server.
pub(crate) struct AgentSide {
    roots: Arc<Roots>,
    port: u16,
}

/// An attested agent: its ID and a channel with its SVID.
pub(crate) struct AttestedAgent {
    pub(crate) id: SpiffeId,
    pub(crate) channel: Channel,
}

impl AgentSide {
    /// Reads the server's bundle from its socket.
    pub(crate) async fn new(socket: &Channel, port: u16) -> Result<Self> {
        let request = bundle::GetBundleRequest::default();
        let answer = BundleClient::new(socket.clone()).get_bundle(request).await?.into_inner();
        let roots = answer
            .x509_authorities
            .into_iter()
            .map(|a| Ok(Certificate::from_der(a.asn1)?))
            .collect::<Result<Vec<_>>>()?;
        Ok(Self { roots: Arc::new(Roots(roots.into())), port })
    }

    /// A new connection, with an identity or without one.
    pub(crate) fn connect(&self, identity: Option<Arc<Identity>>) -> Result<Channel> {
        self.connect_from(None, identity)
    }

    /// The same from an address of this machine.
    pub(crate) fn connect_from(
        &self,
        from: Option<IpAddr>,
        identity: Option<Arc<Identity>>,
    ) -> Result<Channel> {
        let server = SpiffeId::parse("spiffe://example.org/spire/server")?;
        let tls = TlsClient::spiffe(self.roots.clone(), server, identity, TlsPolicy::default())?;
        Ok(tcp_channel_from(from, "127.0.0.1", self.port, tls)?)
    }

    /// Attests with a join token on a new connection, as an agent does.
    pub(crate) async fn attest(&self, token: String, csr: Bytes) -> Result<types::X509svid> {
        self.attest_from(None, token, csr).await
    }

    /// The same from an address of this machine.
    pub(crate) async fn attest_from(
        &self,
        from: Option<IpAddr>,
        token: String,
        csr: Bytes,
    ) -> Result<types::X509svid> {
        let params = agent::attest_agent_request::Params {
            data: Some(types::AttestationData {
                r#type: "join_token".into(),
                payload: token.into_bytes().into(),
            }),
            params: Some(agent::AgentX509svidParams { csr }),
        };
        let request =
            agent::AttestAgentRequest { step: Some(agent::attest_agent_request::Step::Params(params)) };
        let mut client = AgentClient::new(self.connect_from(from, None)?);
        let mut answers = client.attest_agent(tokio_stream::iter([request])).await?.into_inner();
        let answer = answers.message().await?.context("no answer")?;
        match answer.step {
            Some(agent::attest_agent_response::Step::Result(result)) => result.svid.context("no SVID"),
            other => bail!("unexpected answer {other:?}"),
        }
    }

    /// Attests a new agent and connects with its SVID.
    pub(crate) async fn join(&self, socket: &Channel) -> Result<AttestedAgent> {
        let (key, csr) = csr(None)?;
        let svid = self.attest(join_token(socket).await?, csr).await?;
        let chain = svid
            .cert_chain
            .into_iter()
            .map(|der| Ok(Certificate::from_der(der)?))
            .collect::<Result<Vec<_>>>()?;
        let identity = Identity::empty();
        identity.replace(&chain, &key.to_pkcs8()?)?;
        let id = chain.first().context("empty chain")?.spiffe_id()?;
        Ok(AttestedAgent { id, channel: self.connect(Some(identity))? })
    }
}

/// What SPIRE's agent asks for of each entry (pkg/agent/client/client.go).
pub(crate) fn agent_mask() -> types::EntryMask {
    types::EntryMask {
        spiffe_id: true,
        selectors: true,
        federates_with: true,
        admin: true,
        downstream: true,
        revision_number: true,
        store_svid: true,
        hint: true,
        additional_attributes: true,
        created_at: true,
        ..Default::default()
    }
}
