//! Accepting TLS connections: many handshakes at once, each with a deadline, none able to hold up the others.

use std::io::{self, IoSlice, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::Stream;
use rustls::ServerConfig;
use rustls::server::{NoServerSessionStorage, ResolvesServerCert};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::PollSemaphore;
use tonic::transport::server::Connected;

use super::ahead::Ahead;
use super::peer::{SpiffeVerifier, with_peer};
use super::sockets::{Dealer, Sockets};
use super::{
    ALPN_ACME, ALPN_H2, ALPN_HTTP11, Authorize, Identity, TlsPolicy, TlsSetupError, TrustSource, VerifiedPeer,
};
use crate::cork::Keep;
use crate::forward::write_to;
use crate::listen::{canonical, listen_on};
use crate::places::{Place, Places};
use crate::preface::PrefaceDeadline;
use crate::proxy::{self, TrustedProxies};
use spire_core::spiffe::SpiffeId;

/// Deadline of a handshake: three round trips on the worst of links. grpc-go gives 120 s, which lets a
/// silent client hold its place for as long.
pub(super) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(20);

/// Handshakes in progress, on all threads together. With the 20 s above, silent clients can take all places only by 50 connections a
/// second from several addresses.
const HANDSHAKES_MAX: usize = 1024;

/// Handshakes in progress for one address: room for the agents behind one NAT, a quarter of all places.
const HANDSHAKES_PER_ADDRESS_MAX: usize = HANDSHAKES_MAX / 4;

/// Part of this process's files that a listener beside the API may take: a flood of it must leave room for agents.
const SIDE_LISTENER_SHARE: usize = 8;
/// Open connections of clients that showed no certificate, in all and from one address. They are there to be attested or to
/// read the bundle, which takes a moment; a NAT in front of a whole fleet that starts at once fits.
const ANONYMOUS_MAX: usize = 4096;
const ANONYMOUS_PER_ADDRESS_MAX: usize = 512;

/// Open connections of one identity. An agent holds one or two; downstream servers that share an identity have room.
const CONNECTIONS_PER_IDENTITY_MAX: usize = 64;

/// How clients are asked for certificates.
#[derive(Debug)]
pub struct ClientAuth {
    /// The authorities that vouch for clients.
    pub trust: Arc<dyn TrustSource>,
    /// Which clients may connect. A client without a certificate always may: what it can do is for the API
    /// to say.
    pub authorize: Authorize,
}

impl ClientAuth {
    pub(super) fn verifier(self, policy: TlsPolicy) -> SpiffeVerifier {
        let signatures = policy.provider().signature_verification_algorithms;
        SpiffeVerifier::new(self.trust, self.authorize, signatures)
    }
}

/// A server's side of TLS. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ServerTls {
    config: Arc<ServerConfig>,
    requires_h2: bool,
}

impl ServerTls {
    /// For gRPC: HTTP/2 only, client certificates asked for.
    pub fn grpc(
        identity: Arc<Identity>,
        clients: ClientAuth,
        policy: TlsPolicy,
    ) -> Result<Self, TlsSetupError> {
        Self::spiffe(identity, clients.verifier(policy), policy, &[ALPN_H2])
    }

    /// For gRPC whose clients must show an X.509-SVID: HTTP/2 only.
    pub fn mutual_grpc(
        identity: Arc<Identity>,
        clients: ClientAuth,
        policy: TlsPolicy,
    ) -> Result<Self, TlsSetupError> {
        Self::spiffe(identity, clients.verifier(policy).mandatory(), policy, &[ALPN_H2])
    }

    pub(super) fn spiffe(
        identity: Arc<Identity>,
        verifier: SpiffeVerifier,
        policy: TlsPolicy,
        alpn: &[&[u8]],
    ) -> Result<Self, TlsSetupError> {
        let config = ServerConfig::builder_with_provider(policy.provider())
            .with_protocol_versions(policy.versions())?
            .with_client_cert_verifier(Arc::new(verifier))
            .with_cert_resolver(identity);
        Ok(Self::finish(config, alpn))
    }

    /// The library's acceptor, for connections that are not TCP.
    pub(super) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.config))
    }

    /// For HTTPS, such as the bundle endpoint: HTTP/1.1 and 2, clients show nothing.
    pub fn https(identity: Arc<Identity>, policy: TlsPolicy) -> Result<Self, TlsSetupError> {
        Self::web(identity, policy, &[ALPN_H2, ALPN_HTTP11])
    }

    /// As [`ServerTls::https`], for a resolver that also answers an ACME authority.
    pub(crate) fn https_acme(
        resolver: Arc<dyn ResolvesServerCert>,
        policy: TlsPolicy,
    ) -> Result<Self, TlsSetupError> {
        Self::web(resolver, policy, &[ALPN_H2, ALPN_HTTP11, ALPN_ACME])
    }

    pub(super) fn web(
        resolver: Arc<dyn ResolvesServerCert>,
        policy: TlsPolicy,
        alpn: &[&[u8]],
    ) -> Result<Self, TlsSetupError> {
        let config = ServerConfig::builder_with_provider(policy.provider())
            .with_protocol_versions(policy.versions())?
            .with_no_client_auth()
            .with_cert_resolver(resolver);
        Ok(Self::finish(config, alpn))
    }

    pub(super) fn finish(mut config: ServerConfig, alpn: &[&[u8]]) -> Self {
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        // As Go: what costs us least of what the client can do.
        config.ignore_client_order = true;
        Self { config: Arc::new(config), requires_h2: alpn == [ALPN_H2] }
    }

    /// Listens on `address`, where `0.0.0.0` and `[::]` are every address of both families. Needs a tokio runtime.
    pub async fn bind(&self, address: SocketAddr) -> io::Result<TlsIncoming> {
        Ok(self.incoming(listen_on(address).await?))
    }

    /// The TLS connections of a listener.
    pub fn incoming(&self, listener: TcpListener) -> TlsIncoming {
        let open_files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let bounds = Arc::new(Bounds::new(connections_max(open_files)));
        TlsIncoming::new(self.clone(), Sockets::accepted_by(listener), bounds, None)
    }

    /// As [`ServerTls::incoming`], with at most `max` connections and an eighth of the files that this process may
    /// open: for a listener beside the API.
    pub fn incoming_limited(&self, listener: TcpListener, max: usize) -> TlsIncoming {
        let mut incoming = self.incoming(listener);
        let share = incoming.bounds.open.available_permits() / SIDE_LISTENER_SHARE;
        incoming.bounded(Bounds::new(max.min(share).max(8)));
        incoming
    }

    /// From an accepted socket to a connection. `proxied` says whether the peer is a trusted proxy, where there are any.
    async fn handshake(
        self,
        (mut tcp, mut remote): (TcpStream, SocketAddr),
        proxied: Option<bool>,
        bounds: Arc<Bounds>,
        permit: OwnedSemaphorePermit,
    ) -> io::Result<TlsConnection> {
        let local = canonical(tcp.local_addr()?);
        let mut place = None;
        let handshake = async {
            if let Some(trusted) = proxied {
                let client = proxy::client(&mut tcp, trusted).await.map_err(io::Error::other)?;
                remote = client.unwrap_or(remote);
                if trusted {
                    // The proxy's own address has no bound, so that one of its clients cannot hold up the others.
                    place = Some(
                        bounds
                            .handshakes
                            .enter(remote.ip())
                            .ok_or_else(|| full("handshakes of one address"))?,
                    );
                }
            }
            TlsAcceptor::from(self.config).accept(Ahead::new(tcp)).await
        };
        let (stream, peer) = with_peer(tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake)).await;
        let stream = stream.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        drop(place);
        let is_http2 = stream.get_ref().1.alpn_protocol() == Some(ALPN_H2);
        // As grpc-go since 1.67: a client that did not negotiate HTTP/2 is refused rather than guessed at.
        if self.requires_h2 && !is_http2 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "missing selected ALPN property"));
        }
        let place = if self.requires_h2 { Some(bounds.admit(remote.ip(), peer.as_ref())?) } else { None };
        let preface = if is_http2 { PrefaceDeadline::start() } else { PrefaceDeadline::none() };
        let info = TlsInfo { remote, local, peer };
        Ok(TlsConnection { stream, info, preface, _permit: permit, _place: place })
    }
}

fn full(of: &str) -> io::Error {
    io::Error::other(format!("too many {of}"))
}

/// Connections of one TCP listener: three quarters of the files that this process may open, since a flood
/// must leave some for the datastore and the sockets.
fn connections_max(open_files: Option<u64>) -> usize {
    let files = open_files.map_or(usize::MAX, |files| usize::try_from(files).unwrap_or(usize::MAX));
    (files / 4).saturating_mul(3).clamp(8, Semaphore::MAX_PERMITS)
}

/// Established TLS connections of a listener. Never ends and never yields an error: failed handshakes are
/// logged at debug, since anybody can cause them. Who comes when all handshakes are taken waits in the backlog; who comes
/// when all connections are, or all of its address, is closed.
#[derive(Debug)]
pub struct TlsIncoming {
    tls: ServerTls,
    sockets: Sockets,
    handshakes: JoinSet<Option<TlsConnection>>,
    /// Those of `bounds`.
    turns: PollSemaphore,
    bounds: Arc<Bounds>,
    proxies: Option<TrustedProxies>,
}

impl TlsIncoming {
    fn new(tls: ServerTls, sockets: Sockets, bounds: Arc<Bounds>, proxies: Option<TrustedProxies>) -> Self {
        let turns = PollSemaphore::new(Arc::clone(&bounds.turns));
        Self { tls, sockets, handshakes: JoinSet::new(), turns, bounds, proxies }
    }

    fn bounded(&mut self, bounds: Bounds) {
        self.turns = PollSemaphore::new(Arc::clone(&bounds.turns));
        self.bounds = Arc::new(bounds);
    }

    /// Takes the client's address from the PROXY header of trusted proxies, and refuses headers of others.
    #[must_use]
    pub fn behind(mut self, proxies: TrustedProxies) -> Self {
        self.proxies = Some(proxies);
        self
    }

    /// Where it listens. An error where its sockets are dealt to it.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.sockets.local_addr()
    }

    /// Deals what the listener accepts to `players`, who are each to be polled on a runtime of their own; bounds are for
    /// all of them together. Nothing is accepted before the dealer runs, nor after it was dropped.
    pub fn deal(self, players: usize) -> (Dealer, Vec<Self>) {
        let (dealer, hands) = self.sockets.deal(players);
        let player =
            |sockets| Self::new(self.tls.clone(), sockets, Arc::clone(&self.bounds), self.proxies.clone());
        (dealer, hands.into_iter().map(player).collect())
    }

    /// Starts handshakes as long as there are turns.
    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            // The semaphore is never closed. A turn that meets no socket goes back at once.
            let Some(turn) = ready!(self.turns.poll_acquire(cx)) else { return Poll::Pending };
            let (tcp, remote) = ready!(self.sockets.poll_next(cx));
            self.start(tcp, remote, turn);
        }
    }

    fn start(&mut self, tcp: TcpStream, remote: SocketAddr, turn: OwnedSemaphorePermit) {
        let proxied = self.proxies.as_ref().map(|proxies| proxies.trusts(remote.ip()));
        let place = match proxied {
            Some(true) => None,
            _ => match self.bounds.handshakes.enter(remote.ip()) {
                Some(place) => Some(place),
                None => {
                    tracing::debug!(caller_addr = %remote, "Too many handshakes of one address");
                    return;
                }
            },
        };
        let Ok(permit) = Arc::clone(&self.bounds.open).try_acquire_owned() else {
            tracing::debug!(caller_addr = %remote, "Too many connections");
            return;
        };
        let (tls, bounds) = (self.tls.clone(), Arc::clone(&self.bounds));
        self.handshakes.spawn(async move {
            let result = tls.handshake((tcp, remote), proxied, bounds, permit).await;
            drop((place, turn));
            result
                .inspect_err(
                    |error| tracing::debug!(caller_addr = %remote, error = %error, "TLS handshake failed"),
                )
                .ok()
        });
    }
}

impl Stream for TlsIncoming {
    type Item = io::Result<TlsConnection>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            let accepting = this.poll_accept(cx);
            match this.handshakes.poll_join_next(cx) {
                Poll::Ready(Some(Ok(Some(connection)))) => return Poll::Ready(Some(Ok(connection))),
                // A failed handshake, or a panic in one, costs that connection.
                Poll::Ready(Some(_)) => {}
                Poll::Ready(None) | Poll::Pending => {
                    // `poll_accept` only stops to wait, so one of the two wakes us.
                    debug_assert!(accepting.is_pending());
                    return Poll::Pending;
                }
            }
        }
    }
}

/// What the connections of a listener share.
#[derive(Debug)]
struct Bounds {
    open: Arc<Semaphore>,
    /// Handshakes in progress, in all.
    turns: Arc<Semaphore>,
    /// Handshakes in progress, by address.
    handshakes: Arc<Places<IpAddr>>,
    anonymous: Arc<Semaphore>,
    anonymous_by_address: Arc<Places<IpAddr>>,
    by_identity: Arc<Places<SpiffeId>>,
}

/// The place of an established connection.
#[derive(Debug)]
enum PeerPlace {
    Identity(#[expect(dead_code, reason = "held")] Place<SpiffeId>),
    Anonymous(#[expect(dead_code, reason = "held")] (OwnedSemaphorePermit, Place<IpAddr>)),
}

impl Bounds {
    fn new(open: usize) -> Self {
        Self {
            open: Arc::new(Semaphore::new(open)),
            turns: Arc::new(Semaphore::new(HANDSHAKES_MAX)),
            handshakes: Places::new(HANDSHAKES_PER_ADDRESS_MAX),
            anonymous: Arc::new(Semaphore::new(ANONYMOUS_MAX)),
            anonymous_by_address: Places::new(ANONYMOUS_PER_ADDRESS_MAX),
            by_identity: Places::new(CONNECTIONS_PER_IDENTITY_MAX),
        }
    }

    fn admit(&self, address: IpAddr, peer: Option<&VerifiedPeer>) -> io::Result<PeerPlace> {
        if let Some(peer) = peer {
            let place = self.by_identity.enter(peer.id().clone());
            return place.map(PeerPlace::Identity).ok_or_else(|| full("connections of one identity"));
        }
        let place = self.anonymous_by_address.enter(address);
        let place = place.ok_or_else(|| full("connections without a certificate from one address"))?;
        let permit = Arc::clone(&self.anonymous).try_acquire_owned();
        let permit = permit.map_err(|_| full("connections without a certificate"))?;
        Ok(PeerPlace::Anonymous((permit, place)))
    }
}

/// What handlers know of a TLS connection; in the request's extensions.
#[derive(Debug, Clone)]
pub struct TlsInfo {
    remote: SocketAddr,
    local: SocketAddr,
    peer: Option<VerifiedPeer>,
}

impl TlsInfo {
    /// The client's address.
    pub fn remote_addr(&self) -> SocketAddr {
        self.remote
    }

    /// Our address.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// The client, if it showed a certificate (which then was verified).
    pub fn peer(&self) -> Option<&VerifiedPeer> {
        self.peer.as_ref()
    }
}

/// An established connection.
#[derive(Debug)]
pub struct TlsConnection {
    stream: TlsStream<Ahead<TcpStream>>,
    info: TlsInfo,
    preface: PrefaceDeadline,
    _permit: OwnedSemaphorePermit,
    _place: Option<PeerPlace>,
}

impl TlsConnection {
    /// What is known of it.
    pub fn info(&self) -> &TlsInfo {
        &self.info
    }

    /// Whether HTTP/2 was negotiated; on a gRPC listener always.
    pub fn is_http2(&self) -> bool {
        self.stream.get_ref().1.alpn_protocol() == Some(ALPN_H2)
    }

    /// Whether it is an ACME authority's look at a challenge, which ends with the handshake.
    pub(crate) fn is_acme(&self) -> bool {
        self.stream.get_ref().1.alpn_protocol() == Some(ALPN_ACME)
    }
}

impl Connected for TlsConnection {
    type ConnectInfo = TlsInfo;

    fn connect_info(&self) -> TlsInfo {
        self.info.clone()
    }
}

impl Keep for TlsConnection {
    fn keep_at_most(&mut self, octets: usize) {
        self.stream.get_mut().1.set_buffer_limit(Some(octets));
    }

    fn keep(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        self.stream.get_mut().1.writer().write_vectored(pieces)
    }
}

impl AsyncRead for TlsConnection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(cx, buf);
        this.preface.check(cx, read, buf.filled().len() - before)
    }
}

impl AsyncWrite for TlsConnection {
    write_to!(stream);
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::net::TcpStream;
    use tokio::sync::mpsc;

    use super::*;

    /// A listener's part that has one accepted socket, and the silent client at its other end.
    async fn lane(tls: &ServerTls, bounds: &Arc<Bounds>) -> (TlsIncoming, TcpStream) {
        let listener = crate::listen("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (socket, remote) = listener.accept().await.unwrap();
        let (give, hand) = mpsc::channel(1);
        give.send((socket.into_std().unwrap(), remote)).await.unwrap();
        (TlsIncoming::new(tls.clone(), Sockets::Dealt(hand), Arc::clone(bounds), None), client)
    }

    /// Starts what it may start now.
    async fn look(lane: &mut TlsIncoming) {
        assert!(poll_fn(|cx| Poll::Ready(lane.poll_accept(cx))).await.is_pending());
    }

    #[tokio::test]
    async fn handshakes_are_bounded_over_all_threads() {
        let tls = ServerTls::https(Identity::empty(), TlsPolicy::default()).unwrap();
        let bounds = Arc::new(Bounds { turns: Arc::new(Semaphore::new(1)), ..Bounds::new(8) });
        let (mut first, silent) = lane(&tls, &bounds).await;
        let (mut second, _client) = lane(&tls, &bounds).await;
        look(&mut first).await;
        look(&mut second).await;
        assert_eq!((first.handshakes.len(), second.handshakes.len()), (1, 0));
        drop(silent);
        assert!(first.handshakes.join_next().await.is_some_and(|ended| ended.unwrap().is_none()));
        // It was the next in line, has no socket for its turn, and passes it on.
        look(&mut first).await;
        look(&mut second).await;
        assert_eq!((first.handshakes.len(), second.handshakes.len()), (0, 1));
    }
}
