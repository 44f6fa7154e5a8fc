//! The server's listeners: TLS for agents and downstream servers, a unix socket for administrators.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use futures_util::StreamExt as _;
use futures_util::stream::{self, FuturesUnordered};
use spire_core::pki::Certificate;
use spire_net::grpc::{self, Stopped};
use spire_net::lanes::Lanes;
use spire_net::proxy::TrustedProxies;
use spire_net::tls::{
    Authorize, ClientAuth, Identity, IdentityError, ServerTls, TlsIncoming, TlsPolicy, TlsSetupError,
};
use spire_net::uds::{BindError, PeerTracking, UnixEndpoint, UnixIncoming};
use spire_ports::observe::Logged;
use tokio_util::sync::CancellationToken;

use super::trust::BundleTrust;
use crate::api::Api;
use crate::ca::{Authorities, ServerSvid, ServerX509Svid};
use crate::config::ServerConfig;

/// Why the server cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The TCP port. The text is Go's.
    #[error("listen tcp {address}: bind: {}", spire_net::errno_text(source))]
    Tcp {
        /// What it should have listened on.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The unix socket.
    #[error(transparent)]
    Unix(#[from] BindError),
    /// TLS.
    #[error(transparent)]
    Tls(#[from] TlsSetupError),
    /// The server's own SVID cannot be shown.
    #[error("unable to use the server SVID: {0}")]
    Identity(String),
    /// Threads for connections.
    #[error("unable to start threads for connections: {0}")]
    Threads(io::Error),
    /// A thread for connections ended; the text is why.
    #[error("server API listener: a thread for connections ended unexpectedly: {0}")]
    Thread(String),
    /// A listener broke.
    #[error("server API listener: {0}")]
    Serve(#[from] tonic::transport::Error),
}

/// Shows this SVID in handshakes from now on.
pub(super) fn show(identity: &Identity, svid: &ServerX509Svid) -> Result<(), ListenError> {
    let refused = |error: &dyn std::fmt::Display| ListenError::Identity(error.to_string());
    let chain: Vec<Certificate> = svid
        .chain
        .iter()
        .map(|der| Certificate::from_der(der.clone()))
        .collect::<Result<_, _>>()
        .map_err(|e| refused(&e))?;
    let key = svid.key.to_pkcs8().map_err(|e| refused(&e))?;
    identity.replace(&chain, &key).map_err(|e: IdentityError| refused(&e))
}

/// Serves both listeners until `stop`, following the server's SVID as it is renewed.
pub(super) async fn serve(
    config: &ServerConfig,
    api: Arc<Api>,
    identity: Arc<Identity>,
    svid: Arc<ServerSvid>,
    authorities: Arc<Authorities>,
    ready: CancellationToken,
    stop: CancellationToken,
) -> Result<(), ListenError> {
    tracing::debug!(subsystem_name = "endpoints", "Initializing API endpoints");
    let changes = authorities.bundle_changes().clone();
    let trust = BundleTrust::new(config.trust_domain.clone(), changes, &config.admin_ids);
    let tcp = bind_tcp(config, &identity, trust.clone()).await?;
    let lanes = Lanes::start().map_err(ListenError::Threads)?;
    let unix = bind_unix(config)?;
    let address = tcp.local_addr().unwrap_or(config.bind_address).to_string();
    let on_tcp = Listener { network: "tcp", address };
    let on_unix = Listener { network: "unix", address: config.socket_path.display().to_string() };
    on_tcp.started();
    on_unix.started();
    ready.cancel();

    // When one listener ends, by order or by itself, the other ends too.
    let both = stop.child_token();
    let broken = OnceLock::new();
    let (streams, stopping) = (api.clone(), both.clone());
    tokio::spawn(async move {
        stopping.cancelled().await;
        streams.end_streams();
    });
    let tcp = end_with(
        &both,
        grpc::graceful(on_tcp.stopping(both.clone()), |signal| async {
            serve_tcp(tcp, &lanes, &api, signal, &broken).await;
            Ok(())
        }),
    );
    let unix = end_with(
        &both,
        grpc::graceful(on_unix.stopping(both.clone()), |signal| {
            grpc::unix_server().add_routes(api.unix_routes()).serve_with_incoming_shutdown(unix, signal)
        }),
    );
    let follow = async { tokio::join!(follow_svid(svid, identity), trust.follow(&api.deps.live)) };
    let (tcp, unix) = tokio::select! {
        ended = async { tokio::join!(tcp, unix) } => ended,
        _ = follow => (Ok(Stopped::Gracefully), Ok(Stopped::Gracefully)),
    };
    on_unix.stopped(unix)?;
    on_tcp.stopped(tcp.map_err(|never: Infallible| match never {}))?;
    broken.into_inner().map_or(Ok(()), |reason| Err(ListenError::Thread(reason)))
}

/// Serves each connection on the thread to which it is dealt. A thread that breaks ends them all, and says why in `broken`:
/// what is dealt to it would be answered by nobody.
async fn serve_tcp(
    incoming: TlsIncoming,
    lanes: &Lanes,
    api: &Arc<Api>,
    signal: grpc::Signal,
    broken: &OnceLock<String>,
) {
    let stop = CancellationToken::new();
    let (dealer, hands) = incoming.deal(lanes.handles().len());
    let mut serving: FuturesUnordered<_> = std::iter::zip(lanes.handles(), hands)
        .map(|(lane, hand)| {
            let stopped = stop.clone().cancelled_owned();
            lane.spawn(grpc::serve_tcp(grpc::CONNECTION_AGE_MAX, api.tcp_service(), hand, stopped))
        })
        .collect();
    let first = tokio::select! {
        () = dealer.run() => None,
        () = signal => None,
        ended = serving.next() => ended,
    };
    stop.cancel();
    let mut ended = stream::iter(first).chain(serving);
    while let Some(served) = ended.next().await {
        if let Err(error) = served {
            tracing::error!(error = %error, "A thread for connections ended unexpectedly; stopping");
            let _ = broken.set(error.to_string());
        }
    }
}

/// What the log says of a listener (pkg/server/endpoints/endpoints.go).
struct Listener {
    network: &'static str,
    address: String,
}

impl Listener {
    fn started(&self) {
        tracing::info!(
            address = self.address,
            network = self.network,
            subsystem_name = "endpoints",
            "Starting Server APIs"
        );
    }

    /// Waits until it is to stop, and says so.
    fn stopping(&self, stop: CancellationToken) -> impl Future<Output = ()> + Send + 'static {
        let (address, network) = (self.address.clone(), self.network);
        async move {
            stop.cancelled().await;
            for message in ["Stopping Server APIs", "Attempting graceful stop"] {
                tracing::info!(address, network, subsystem_name = "endpoints", "{message}");
            }
        }
    }

    fn stopped(&self, ended: Result<Stopped, tonic::transport::Error>) -> Result<(), ListenError> {
        let Self { network, address } = self;
        let how = match ended {
            Ok(Stopped::Gracefully) => "Graceful stop successful",
            Ok(Stopped::Forced) => "Graceful stop unsuccessful, forced stop after 10s",
            Err(error) => {
                tracing::error!(
                    address, network, subsystem_name = "endpoints", error = %error,
                    "Server APIs stopped prematurely"
                );
                return Err(error.into());
            }
        };
        for message in [how, "Server APIs have stopped"] {
            tracing::info!(address, network, subsystem_name = "endpoints", "{message}");
        }
        Ok(())
    }
}

async fn end_with<T>(token: &CancellationToken, serving: impl Future<Output = T>) -> T {
    let ended = serving.await;
    token.cancel();
    ended
}

/// Never ends while the SVID's owner lives, which is as long as the server.
async fn follow_svid(svid: Arc<ServerSvid>, identity: Arc<Identity>) {
    let mut renewed = svid.subscribe();
    while renewed.changed().await.is_ok() {
        let current = renewed.borrow_and_update().clone();
        if let Err(error) = show(&identity, &current) {
            tracing::error!(error = %error, "Could not show the renewed server SVID; the old one stays");
        }
    }
}

async fn bind_tcp(
    config: &ServerConfig,
    identity: &Arc<Identity>,
    trust: Arc<BundleTrust>,
) -> Result<TlsIncoming, ListenError> {
    let authorize = Authorize::MemberOrOneOf {
        trust_domain: config.trust_domain.clone(),
        ids: config.admin_ids.iter().cloned().collect(),
    };
    let policy = TlsPolicy { require_pq_kem: config.experimental.require_pq_kem };
    let clients = ClientAuth { trust, authorize };
    let tls = ServerTls::grpc(identity.clone(), clients, policy)?;
    let address = config.bind_address;
    let incoming = tls.bind(address).await.map_err(|source| ListenError::Tcp { address, source })?;
    let proxies = config.proxy_protocol_trusted_cidrs.clone();
    if proxies.is_empty() {
        return Ok(incoming);
    }
    tracing::info!(
        trusted_cidrs = Logged::list(&proxies).value(),
        subsystem_name = "endpoints",
        "PROXY protocol enabled on TCP listener"
    );
    Ok(incoming.behind(TrustedProxies::new(move |peer| proxies.iter().any(|range| range.contains(peer)))))
}

fn bind_unix(config: &ServerConfig) -> Result<UnixIncoming, ListenError> {
    // Only the audit log says which process called.
    let tracking =
        if config.audit_log_enabled { PeerTracking::Pinned } else { PeerTracking::CredentialsOnly };
    Ok(UnixEndpoint::server(&config.socket_path, tracking).bind()?)
}
