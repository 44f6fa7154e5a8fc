//! The agent's calls to its server.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use parking_lot::Mutex;
use spire_core::model::{Entry, EntryId};
use spire_core::pki::{Certificate, UnverifiedJws};
use spire_core::spiffe::{Bundle, SpiffeId, TrustDomain};
use spire_core::svids::JwtSvid;
use spire_core::time::Timestamp;
use spire_net::grpc::tcp_channel;
use spire_net::tls::{Identity, TlsClient, TlsPolicy, TlsSetupError, TrustSource};
use spire_ports::observe::GrpcCode;
use spire_wire::api::server::agent::v1::{
    AgentX509svidParams, PostStatusRequest, RenewAgentRequest, agent_client::AgentClient,
};
use spire_wire::api::server::bundle::v1::{
    GetBundleRequest, GetFederatedBundleRequest, bundle_client::BundleClient,
};
use spire_wire::api::server::entry::v1::{GetAuthorizedEntriesRequest, entry_client::EntryClient};
use spire_wire::api::server::svid::v1::{
    BatchNewWitsvidRequest, BatchNewX509svidRequest, NewJwtsvidRequest, NewWitsvidParams, NewX509svidParams,
    svid_client::SvidClient,
};
use spire_wire::api::types;
use spire_wire::push::{SubscribeRequest, Update, agent_push_client::AgentPushClient};
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};

use super::backoff::{Backoff, random};
use super::convert::{self, ConvertError};
use super::options::Options;
use super::status::{GoStatus, code_name};

/// The longest that a call may take (pkg/agent/client: rpcTimeout).
pub(super) const RPC_TIMEOUT: Duration = Duration::from_secs(30);

/// Federated bundles that are fetched at once (pkg/agent/client: maxBundleWorkers).
const BUNDLE_WORKERS: usize = 10;

/// First wait between attempts to get a JWT-SVID (pkg/agent/client: jwtSVIDRetryInterval).
const JWT_RETRY: Duration = Duration::from_secs(1);

/// A call that failed: what was tried, and the server's or the network's answer.
#[derive(Debug, thiserror::Error)]
#[error("{doing}: {}", GoStatus(status))]
pub struct CallError {
    /// What was tried.
    pub doing: &'static str,
    /// The answer.
    pub status: Box<Status>,
}

impl CallError {
    fn new(doing: &'static str) -> impl FnOnce(Status) -> Self {
        move |status| Self { doing, status: Box::new(status) }
    }

    pub(super) fn timeout(doing: &'static str) -> Self {
        Self { doing, status: Box::new(Status::deadline_exceeded("context deadline exceeded")) }
    }

    pub(super) fn malformed(doing: &'static str, error: &ConvertError) -> Self {
        Self { doing, status: Box::new(Status::internal(error.to_string())) }
    }
}

impl GrpcCode for CallError {
    fn grpc_code(&self) -> &'static str {
        code_name(self.status.code())
    }
}

/// One item of a batch of X.509-SVIDs.
#[derive(Debug)]
pub(super) enum Signed {
    /// The chain.
    Chain(Vec<Certificate>),
    /// The server would not sign: code and message.
    Refused(i32, String),
}

/// A connection to the server that is made when it is needed and can be dropped.
#[derive(Debug)]
pub(super) struct ServerClient {
    host: String,
    port: u16,
    tls: TlsClient,
    /// The connection, and the first one, which proved that the address is well formed.
    channel: Mutex<Channel>,
}

impl ServerClient {
    /// A client of the server that the options name, trusted as `trust` says at each handshake. `identity` is
    /// what the agent shows; none while it is being attested.
    ///
    /// # Errors
    /// [`TlsSetupError`] cannot happen with a fixed crypto library.
    pub(super) fn new(
        options: &Options,
        trust: Arc<dyn TrustSource>,
        identity: Option<Arc<Identity>>,
    ) -> Result<Self, ClientSetupError> {
        let policy = TlsPolicy { require_pq_kem: options.require_pq_kem };
        let server = SpiffeId::server(&options.trust_domain);
        Self::with_tls(options, TlsClient::spiffe(trust, server, identity, policy)?)
    }

    /// A client that believes whoever claims to be the server. Only for `insecure_bootstrap`.
    ///
    /// # Errors
    /// As [`ServerClient::new`].
    pub(super) fn insecure(options: &Options) -> Result<Self, ClientSetupError> {
        let policy = TlsPolicy { require_pq_kem: options.require_pq_kem };
        let server = SpiffeId::server(&options.trust_domain);
        Self::with_tls(options, TlsClient::insecure_bootstrap(server, policy)?)
    }

    fn with_tls(options: &Options, tls: TlsClient) -> Result<Self, ClientSetupError> {
        let (host, port) = (options.server_host.clone(), options.server_port);
        let channel = tcp_channel(&host, port, tls.clone())
            .map_err(|_| ClientSetupError::Address(options.server_address()))?;
        Ok(Self { host, port, tls, channel: Mutex::new(channel) })
    }

    /// Drops the connection: the next call makes a new one, which shows the identity of that moment.
    pub(super) fn release(&self) {
        // The same arguments made a channel before, so this cannot fail; the old one would do too.
        if let Ok(fresh) = tcp_channel(&self.host, self.port, self.tls.clone()) {
            *self.channel.lock() = fresh;
        }
    }

    /// The connection. It dials when it is first used and dials again after it broke.
    pub(super) fn channel(&self) -> Channel {
        self.channel.lock().clone()
    }

    /// Tells the server which version runs here.
    ///
    /// # Errors
    /// [`CallError`], as for every call.
    pub(super) async fn post_status(&self, version: &str) -> Result<(), CallError> {
        let request = PostStatusRequest { agent_version: version.to_owned(), ..PostStatusRequest::default() };
        let answer = AgentClient::new(self.channel()).post_status(timed(request)).await;
        answer.map(drop).map_err(CallError::new("failed to post agent status"))
    }

    /// A new SVID for the agent.
    pub(super) async fn renew_agent(&self, csr: Vec<u8>) -> Result<Vec<Certificate>, CallError> {
        const DOING: &str = "failed to renew agent";
        let request = RenewAgentRequest { params: Some(AgentX509svidParams { csr: csr.into() }) };
        let answer = AgentClient::new(self.channel()).renew_agent(timed(request)).await;
        let svid = answer.map_err(CallError::new(DOING))?.into_inner().svid.unwrap_or_default();
        convert::chain(svid.cert_chain).map_err(|e| CallError::malformed(DOING, &e))
    }

    /// Every entry that the agent is authorised for. Malformed ones are left out with a warning.
    pub(super) async fn authorized_entries(&self) -> Result<Vec<Entry>, CallError> {
        let request = GetAuthorizedEntriesRequest { output_mask: Some(entry_mask()) };
        let answer = EntryClient::new(self.channel()).get_authorized_entries(timed(request)).await;
        let entries =
            answer.map_err(CallError::new("failed to fetch authorized entries"))?.into_inner().entries;
        Ok(entries.into_iter().filter_map(well_formed).collect())
    }

    /// The bundle of the trust domain and those of the named ones that the server knows. A bundle that cannot
    /// be read is left out with a warning.
    pub(super) async fn bundles(&self, federated: Vec<TrustDomain>) -> Result<Vec<Bundle>, CallError> {
        let mut messages = vec![self.own_bundle().await?];
        let mut fetches = stream::iter(federated)
            .map(|domain| self.federated_bundle(domain))
            .buffer_unordered(BUNDLE_WORKERS);
        while let Some(fetched) = fetches.next().await {
            messages.extend(fetched?);
        }
        Ok(messages.into_iter().filter_map(readable).collect())
    }

    /// The bundle of the trust domain, which must be readable.
    pub(super) async fn bundle(&self) -> Result<Bundle, CallError> {
        let message = self.own_bundle().await?;
        convert::bundle(message).map_err(|e| CallError::malformed("failed to parse trust domain bundle", &e))
    }

    async fn own_bundle(&self) -> Result<types::Bundle, CallError> {
        let answer = BundleClient::new(self.channel()).get_bundle(timed(GetBundleRequest::default())).await;
        Ok(answer.map_err(CallError::new("failed to fetch bundle"))?.into_inner())
    }

    async fn federated_bundle(&self, domain: TrustDomain) -> Result<Option<types::Bundle>, CallError> {
        let request = GetFederatedBundleRequest { trust_domain: domain.name().to_owned(), output_mask: None };
        let answer = BundleClient::new(self.channel()).get_federated_bundle(timed(request)).await;
        match answer {
            Ok(bundle) => Ok(Some(bundle.into_inner())),
            Err(status) if status.code() == Code::NotFound => {
                tracing::warn!(federated_bundle = %domain.id_string(), error = %GoStatus(&status), "Federated bundle not found");
                Ok(None)
            }
            Err(status) => Err(CallError::new("failed to fetch federated bundle")(status)),
        }
    }

    /// X.509-SVIDs for entries, in the order of the requests.
    pub(super) async fn new_x509_svids(
        &self,
        requests: Vec<(EntryId, Vec<u8>)>,
    ) -> Result<Vec<Signed>, CallError> {
        let params = requests
            .into_iter()
            .map(|(id, csr)| NewX509svidParams { entry_id: id.as_str().to_owned(), csr: csr.into() })
            .collect();
        let answer = SvidClient::new(self.channel())
            .batch_new_x509svid(timed(BatchNewX509svidRequest { params }))
            .await;
        let results =
            answer.map_err(CallError::new("failed to batch new X509 SVID(s)"))?.into_inner().results;
        let signed = results.into_iter().map(|result| {
            let status = result.status.unwrap_or_default();
            match result.svid {
                Some(svid) if status.code == 0 => match convert::chain(svid.cert_chain) {
                    Ok(chain) => Signed::Chain(chain),
                    Err(error) => Signed::Refused(Code::Internal.into(), error.to_string()),
                },
                _ => Signed::Refused(status.code, status.message),
            }
        });
        Ok(signed.collect())
    }

    /// A JWT-SVID. Failures that may pass are tried again until the timeout.
    pub(super) async fn new_jwt_svid(
        &self,
        entry_id: &EntryId,
        audience: &[String],
        timeout: Duration,
    ) -> Result<(SpiffeId, JwtSvid), CallError> {
        const DOING: &str = "failed to fetch JWT SVID";
        let attempts = async {
            let mut backoff = Backoff::new(JWT_RETRY);
            loop {
                let request =
                    NewJwtsvidRequest { entry_id: entry_id.as_str().to_owned(), audience: audience.to_vec() };
                let answer = SvidClient::new(self.channel()).new_jwtsvid(timed(request)).await;
                match answer {
                    Ok(answer) => return jwt_svid(answer.into_inner().svid),
                    Err(status) if is_retriable(status.code()) => {
                        tracing::debug!(error = %GoStatus(&status), "Failed to fetch JWT SVID; retrying");
                        tokio::time::sleep(backoff.next(random()).unwrap_or(JWT_RETRY)).await;
                    }
                    Err(status) => return Err(status),
                }
            }
        };
        match tokio::time::timeout(timeout, attempts).await {
            Ok(answer) => answer.map_err(CallError::new(DOING)),
            Err(_) => Err(CallError::timeout(DOING)),
        }
    }

    /// WIT-SVIDs for entries and keys, in the order of the requests.
    pub(super) async fn new_wit_svids(
        &self,
        params: Vec<NewWitsvidParams>,
    ) -> Result<Vec<Result<types::Witsvid, types::Status>>, CallError> {
        let answer =
            SvidClient::new(self.channel()).batch_new_witsvid(timed(BatchNewWitsvidRequest { params })).await;
        let results = answer.map_err(CallError::new("failed to batch new WIT-SVID(s)"))?.into_inner().results;
        let signed =
            results.into_iter().map(|result| match (result.svid, result.status.unwrap_or_default()) {
                (Some(svid), status) if status.code == 0 => Ok(svid),
                (_, status) => Err(status),
            });
        Ok(signed.collect())
    }

    /// Hints about changes, from a server of ours.
    pub(super) async fn subscribe(&self, last_seen: Option<u64>) -> Result<Streaming<Update>, CallError> {
        // The stream is open as long as it is of use, so it has no deadline.
        let request = SubscribeRequest { last_seen };
        let answer = AgentPushClient::new(self.channel()).subscribe(request).await;
        Ok(answer.map_err(CallError::new("failed to subscribe to changes"))?.into_inner())
    }
}

/// Why no client could be made.
#[derive(Debug, thiserror::Error)]
pub enum ClientSetupError {
    /// The TLS settings are refused.
    #[error(transparent)]
    Tls(#[from] TlsSetupError),
    /// The address is not a host and port.
    #[error("invalid server address {0:?}")]
    Address(String),
}

fn timed<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(RPC_TIMEOUT);
    request
}

/// The fields that an agent needs of an entry (pkg/agent/client: entryOutputMask).
pub(super) fn entry_mask() -> types::EntryMask {
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
        ..types::EntryMask::default()
    }
}

/// The entry, or nothing and a warning.
pub(super) fn well_formed(message: types::Entry) -> Option<Entry> {
    let (id, revision) = (message.id.clone(), message.revision_number);
    convert::entry(message)
        .inspect_err(|error| {
            tracing::warn!(
                entry_id = id, revision_number = revision, error = %error,
                "Received malformed entry from SPIRE server; are the server and agent versions compatible?"
            );
        })
        .ok()
}

fn readable(message: types::Bundle) -> Option<Bundle> {
    convert::bundle(message)
        .inspect_err(|error| {
            tracing::warn!(
                error = %error,
                "Received malformed bundle from SPIRE server; are the server and agent versions compatible?"
            );
        })
        .ok()
}

fn jwt_svid(svid: Option<types::Jwtsvid>) -> Result<(SpiffeId, JwtSvid), Status> {
    let svid = svid.ok_or_else(|| Status::unknown("JWTSVID response missing SVID"))?;
    let problem = match (svid.issued_at, svid.expires_at) {
        (0, _) => Some("JWTSVID missing issued at"),
        (_, 0) => Some("JWTSVID missing expires at"),
        (issued, expires) if issued > expires => Some("JWTSVID issued after it has expired"),
        _ => None,
    };
    if let Some(problem) = problem {
        return Err(Status::unknown(problem));
    }
    let id = convert::spiffe_id(svid.id.as_ref())
        .map_err(|e| Status::unknown(format!("could not parse JWT-SVID SPIFFE ID: {e}")))?;
    let key_id = UnverifiedJws::parse(&svid.token)
        .map_err(|e| Status::unknown(format!("failed to parse JWT-SVID: {e}")))?
        .kid()
        .into();
    let jwt = JwtSvid {
        token: svid.token.into(),
        key_id,
        issued_at: Timestamp::from_unix(svid.issued_at),
        expires_at: Timestamp::from_unix(svid.expires_at),
    };
    Ok((id, jwt))
}

/// pkg/agent/client: isRetriable.
fn is_retriable(code: Code) -> bool {
    !matches!(
        code,
        Code::Unknown
            | Code::Cancelled
            | Code::DeadlineExceeded
            | Code::InvalidArgument
            | Code::Unimplemented
    )
}

#[cfg(test)]
mod tests {
    use super::super::status::is_unknown_authority;
    use super::super::trust::Trust;
    use super::*;
    use crate::fixture::{FakeServer, TestCa, domain, options};

    #[tokio::test]
    async fn a_server_is_trusted_by_its_authority_only() {
        let server = FakeServer::start().await;
        let folder = tempfile::tempdir().unwrap();
        let options = options(&server, folder.path());
        let client = |ca: &TestCa| {
            ServerClient::new(&options, Trust::new(domain(), vec![ca.certificate().clone()]), None).unwrap()
        };
        assert_eq!(client(&server.ca).bundle().await.unwrap().x509_authorities.len(), 1);
        let error = client(&TestCa::new()).bundle().await.unwrap_err();
        assert!(is_unknown_authority(&error), "{error}");
        assert_eq!(error.status.code(), Code::Unavailable);
        assert_eq!(server.count("GetBundle"), 1, "the other client came no further than the handshake");
        let insecure = ServerClient::insecure(&options).unwrap();
        assert_eq!(insecure.bundle().await.unwrap().x509_authorities.len(), 1);
    }

    #[test]
    fn a_jwt_svid_must_be_whole() {
        let whole = types::Jwtsvid {
            token: TestCa::new().jwt("spiffe://test.org/w", &["a".to_owned()], Duration::from_secs(9)),
            id: Some(types::Spiffeid { trust_domain: "test.org".to_owned(), path: "/w".to_owned() }),
            expires_at: 9,
            issued_at: 1,
            hint: String::new(),
        };
        assert_eq!(&*jwt_svid(Some(whole.clone())).unwrap().1.key_id, "kid-1");
        type Spoil = fn(&mut types::Jwtsvid);
        let cases: [(Spoil, &str); 5] = [
            (|s| s.issued_at = 0, "JWTSVID missing issued at"),
            (|s| s.expires_at = 0, "JWTSVID missing expires at"),
            (|s| s.issued_at = 10, "JWTSVID issued after it has expired"),
            (
                |s| s.id = None,
                "could not parse JWT-SVID SPIFFE ID: invalid SPIFFE ID: request must specify SPIFFE ID",
            ),
            (
                |s| s.token = "x".to_owned(),
                "failed to parse JWT-SVID: go-jose/go-jose: compact JWS format must have three parts",
            ),
        ];
        for (spoil, expected) in cases {
            let mut spoilt = whole.clone();
            spoil(&mut spoilt);
            assert_eq!(jwt_svid(Some(spoilt)).unwrap_err().message(), expected);
        }
        assert_eq!(jwt_svid(None).unwrap_err().message(), "JWTSVID response missing SVID");
    }
}
