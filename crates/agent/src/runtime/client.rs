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
use spire_net::grpc::TcpTarget;
use spire_net::tls::{Identity, Proxies, TlsClient, TlsConnector, TlsPolicy, TlsSetupError, TrustSource};
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
use tonic::{Code, Request, Response, Status, Streaming};

use super::convert::{self, ConvertError};
use super::options::Options;
use super::status::{GoStatus, code_name};

/// The longest that a call may take (pkg/agent/client: rpcTimeout).
pub(super) const RPC_TIMEOUT: Duration = Duration::from_secs(30);

/// Federated bundles that are fetched at once (pkg/agent/client: maxBundleWorkers).
const BUNDLE_WORKERS: usize = 10;

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

    pub(super) fn malformed(doing: &'static str, error: &ConvertError) -> Self {
        Self { doing, status: Box::new(Status::internal(error.to_string())) }
    }
}

impl GrpcCode for CallError {
    fn grpc_code(&self) -> &'static str {
        code_name(self.status.code())
    }
}

/// Why there is no JWT-SVID.
#[derive(Debug, thiserror::Error)]
pub enum JwtError {
    /// None could be had.
    #[error(transparent)]
    New(CallError),
    /// The one that is cached has expired, and no other could be had (pkg/agent/manager/manager.go: FetchJWTSVID).
    #[error("unable to renew JWT for \"{spiffe_id}\" (err={cause})")]
    Renew {
        /// Whose it was.
        spiffe_id: SpiffeId,
        /// Why there is no other.
        cause: CallError,
    },
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
    target: TcpTarget,
    connection: Mutex<Connection>,
}

/// A connection, and the how many-eth of its client it is.
#[derive(Clone, Debug)]
pub(super) struct Connection {
    number: u64,
    pub(super) channel: Channel,
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
        let connector = TlsConnector::new(tls).through(Some(Proxies::from_environment()));
        let target = TcpTarget::new(&options.server_host, options.server_port, connector)
            .map_err(|_| ClientSetupError::Address(options.server_address()))?;
        let connection = Mutex::new(Connection { number: 0, channel: target.channel() });
        Ok(Self { target, connection })
    }

    /// Drops the connection: the next call makes a new one, which shows the identity of that moment.
    pub(super) fn release(&self) {
        let mut connection = self.connection.lock();
        *connection = self.next(&connection);
    }

    fn next(&self, last: &Connection) -> Connection {
        Connection { number: last.number + 1, channel: self.target.channel() }
    }

    /// The connection. It dials when it is first used and dials again after it broke.
    pub(super) fn connection(&self) -> Connection {
        self.connection.lock().clone()
    }

    /// Drops the connection on which a call failed, unless it is gone already (pkg/agent/client: release): its other end
    /// may have vanished without a word, and another server of the same name may be better off. A server that does not
    /// know a method is none the worse for it.
    pub(super) fn failed(&self, used: &Connection, status: &Status) {
        let mut connection = self.connection.lock();
        if status.code() != Code::Unimplemented && connection.number == used.number {
            *connection = self.next(&connection);
        }
    }

    /// One call within `timeout`.
    async fn call<T, R, F>(
        &self,
        timeout: Duration,
        message: T,
        call: impl FnOnce(Channel, Request<T>) -> F,
    ) -> Result<R, Status>
    where
        F: Future<Output = Result<Response<R>, Status>>,
    {
        let used = self.connection();
        let mut request = Request::new(message);
        // Which the server is told; tonic waits so long for the head of the answer only.
        request.set_timeout(timeout);
        let answer = tokio::time::timeout(timeout, call(used.channel.clone(), request)).await;
        let answer = match answer {
            Ok(Ok(answer)) => return Ok(answer.into_inner()),
            // tonic's word for the same.
            Ok(Err(status)) if status.code() == Code::Cancelled && status.message() == "Timeout expired" => {
                timed_out()
            }
            Ok(Err(status)) => status,
            Err(_) => timed_out(),
        };
        self.failed(&used, &answer);
        Err(answer)
    }

    /// Tells the server which version runs here.
    ///
    /// # Errors
    /// [`CallError`], as for every call.
    pub(super) async fn post_status(&self, version: &str) -> Result<(), CallError> {
        let request = PostStatusRequest { agent_version: version.to_owned(), ..PostStatusRequest::default() };
        let answer = self
            .call(RPC_TIMEOUT, request, async |channel, r| AgentClient::new(channel).post_status(r).await)
            .await;
        answer.map(drop).map_err(CallError::new("failed to post agent status"))
    }

    /// A new SVID for the agent.
    pub(super) async fn renew_agent(&self, csr: Vec<u8>) -> Result<Vec<Certificate>, CallError> {
        const DOING: &str = "failed to renew agent";
        let request = RenewAgentRequest { params: Some(AgentX509svidParams { csr: csr.into() }) };
        let answer = self
            .call(RPC_TIMEOUT, request, async |channel, r| AgentClient::new(channel).renew_agent(r).await)
            .await;
        let svid = answer.map_err(CallError::new(DOING))?.svid.unwrap_or_default();
        convert::chain(svid.cert_chain).map_err(|e| CallError::malformed(DOING, &e))
    }

    /// Every entry that the agent is authorised for. Malformed ones are left out with a warning.
    pub(super) async fn authorized_entries(&self) -> Result<Vec<Entry>, CallError> {
        let request = GetAuthorizedEntriesRequest { output_mask: Some(entry_mask()) };
        let answer = self
            .call(RPC_TIMEOUT, request, async |channel, r| {
                EntryClient::new(channel).get_authorized_entries(r).await
            })
            .await;
        let entries = answer.map_err(CallError::new("failed to fetch authorized entries"))?.entries;
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
        let request = GetBundleRequest::default();
        let answer = self
            .call(RPC_TIMEOUT, request, async |channel, r| BundleClient::new(channel).get_bundle(r).await)
            .await;
        answer.map_err(CallError::new("failed to fetch bundle"))
    }

    async fn federated_bundle(&self, domain: TrustDomain) -> Result<Option<types::Bundle>, CallError> {
        let request = GetFederatedBundleRequest { trust_domain: domain.name().to_owned(), output_mask: None };
        let get = async |channel, r| match BundleClient::new(channel).get_federated_bundle(r).await {
            Ok(answer) => Ok(answer.map(Some)),
            Err(status) if status.code() == Code::NotFound => {
                tracing::warn!(federated_bundle = %domain.id_string(), error = %GoStatus(&status), "Federated bundle not found");
                Ok(Response::new(None))
            }
            Err(status) => Err(status),
        };
        let answer = self.call(RPC_TIMEOUT, request, get).await;
        answer.map_err(CallError::new("failed to fetch federated bundle"))
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
        let request = BatchNewX509svidRequest { params };
        let answer = self
            .call(RPC_TIMEOUT, request, async |channel, r| {
                SvidClient::new(channel).batch_new_x509svid(r).await
            })
            .await;
        let results = answer.map_err(CallError::new("failed to batch new X509 SVID(s)"))?.results;
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

    /// A JWT-SVID, within `timeout`.
    pub(super) async fn new_jwt_svid(
        &self,
        entry_id: &EntryId,
        audience: &[String],
        timeout: Duration,
    ) -> Result<(SpiffeId, JwtSvid), CallError> {
        let request =
            NewJwtsvidRequest { entry_id: entry_id.as_str().to_owned(), audience: audience.to_vec() };
        let answer = self
            .call(timeout, request, async |channel, r| SvidClient::new(channel).new_jwtsvid(r).await)
            .await;
        answer.and_then(|answer| jwt_svid(answer.svid)).map_err(CallError::new("failed to fetch JWT SVID"))
    }

    /// WIT-SVIDs for entries and keys, in the order of the requests.
    pub(super) async fn new_wit_svids(
        &self,
        params: Vec<NewWitsvidParams>,
    ) -> Result<Vec<Result<types::Witsvid, types::Status>>, CallError> {
        let request = BatchNewWitsvidRequest { params };
        let answer = self
            .call(RPC_TIMEOUT, request, async |channel, r| {
                SvidClient::new(channel).batch_new_witsvid(r).await
            })
            .await;
        let results = answer.map_err(CallError::new("failed to batch new WIT-SVID(s)"))?.results;
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
        let used = self.connection();
        let answer = AgentPushClient::new(used.channel.clone()).subscribe(request).await;
        let answer = answer.inspect_err(|status| self.failed(&used, status));
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

/// What grpc-go says when a call took too long.
pub(super) fn timed_out() -> Status {
    Status::deadline_exceeded("context deadline exceeded")
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

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

    #[tokio::test]
    async fn a_connection_on_which_a_call_failed_is_left() {
        let server = FakeServer::start().await;
        let folder = tempfile::tempdir().unwrap();
        let options = options(&server, folder.path());
        let trust = Trust::new(domain(), vec![server.ca.certificate().clone()]);
        let client = ServerClient::new(&options, trust, None).unwrap();
        let connections = || server.connections.load(Ordering::Relaxed);
        for _ in 0..2 {
            client.bundle().await.unwrap();
        }
        assert_eq!(connections(), 1);
        server.change(|state| {
            state.failures.push(("BatchNewX509SVID", Status::unimplemented("an old server")));
            state.silent.push("NewJWTSVID");
        });
        client.new_x509_svids(Vec::new()).await.unwrap_err();
        client.bundle().await.unwrap();
        assert_eq!(connections(), 1, "the server is well");

        // It answers nothing more, as if it were gone without a word. Calls that fail together leave it once.
        let (id, audience) = (EntryId::from_stored("web"), ["a".to_owned()]);
        let ask = || client.new_jwt_svid(&id, &audience, Duration::from_millis(100));
        let (one, other) = tokio::join!(ask(), ask());
        for failed in [one, other] {
            let expected = "failed to fetch JWT SVID: rpc error: code = DeadlineExceeded desc = context deadline exceeded";
            assert_eq!(failed.unwrap_err().to_string(), expected);
        }
        assert_eq!(client.connection().number, 1);
        client.bundle().await.unwrap();
        assert_eq!(connections(), 2);
        server.change(|state| state.failures.push(("GetBundle", Status::internal("no database"))));
        client.bundle().await.unwrap_err();
        server.change(|state| state.failures.clear());
        client.bundle().await.unwrap();
        assert_eq!(connections(), 3);
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
