//! TLS over unix sockets: the agent's broker socket, and what brokers dial it with.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::Stream;
use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::task::JoinSet;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;
use tower_service::Service;

use super::accept::HANDSHAKE_TIMEOUT;
use super::peer::with_peer;
use super::{ALPN_H2, DialError, ServerTls, TlsClient, UnixConnector, VerifiedPeer};
use crate::authority::AuthorityGuard;
use crate::forward::write_to;
use crate::preface::PrefaceDeadline;
use crate::uds::{PeerInfo, Permit, UnixConnection, UnixIncoming};

/// Handshakes in progress. Whoever connects may open the socket's folder, so this only bounds a fault.
const HANDSHAKES_MAX: usize = 256;

/// The TLS connections of a unix socket for gRPC. Never ends and never yields an error.
#[derive(Debug)]
pub struct TlsUnixIncoming {
    tls: ServerTls,
    incoming: UnixIncoming,
    handshakes: JoinSet<Option<TlsUnixConnection>>,
}

impl TlsUnixIncoming {
    /// TLS on the connections of `incoming`, which must not have been served otherwise.
    pub fn new(tls: ServerTls, incoming: UnixIncoming) -> Self {
        Self { tls, incoming, handshakes: JoinSet::new() }
    }
}

impl Stream for TlsUnixIncoming {
    type Item = io::Result<TlsUnixConnection>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            let mut accepted = false;
            if this.handshakes.len() < HANDSHAKES_MAX
                && let Poll::Ready(next) = Pin::new(&mut this.incoming).poll_next(cx)
            {
                let Some(Ok(connection)) = next else { return Poll::Ready(None) };
                this.handshakes.spawn(handshake(this.tls.clone(), connection));
                accepted = true;
            }
            match this.handshakes.poll_join_next(cx) {
                Poll::Ready(Some(Ok(Some(connection)))) => return Poll::Ready(Some(Ok(connection))),
                // A failed handshake, or a panic in one, costs that connection.
                Poll::Ready(Some(_)) => {}
                // Whichever is pending wakes us: the socket, or the handshakes when there are too many.
                Poll::Ready(None) | Poll::Pending if accepted => {}
                Poll::Ready(None) | Poll::Pending => return Poll::Pending,
            }
        }
    }
}

async fn handshake(tls: ServerTls, connection: UnixConnection) -> Option<TlsUnixConnection> {
    let (socket, process, permit) = connection.into_socket();
    let accepting = tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.acceptor().accept(socket));
    let (accepted, peer) = with_peer(accepting).await;
    let failed = |error: io::Error| {
        tracing::debug!(pid = process.pid(), error = %error, "TLS handshake failed");
    };
    let stream = match accepted {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            failed(error);
            return None;
        }
        Err(_) => {
            failed(io::ErrorKind::TimedOut.into());
            return None;
        }
    };
    if stream.get_ref().1.alpn_protocol() != Some(ALPN_H2) {
        failed(io::Error::new(io::ErrorKind::InvalidData, "missing selected ALPN property"));
        return None;
    }
    Some(TlsUnixConnection {
        io: AuthorityGuard::new(stream),
        info: TlsUnixInfo { process, peer },
        preface: PrefaceDeadline::start(),
        _permit: permit,
    })
}

/// What handlers know of the connection; in the request's extensions.
#[derive(Debug, Clone)]
pub struct TlsUnixInfo {
    process: PeerInfo,
    peer: Option<VerifiedPeer>,
}

impl TlsUnixInfo {
    /// The process at the other end.
    pub fn process(&self) -> &PeerInfo {
        &self.process
    }

    /// The client, if it showed a certificate (which then was verified).
    pub fn peer(&self) -> Option<&VerifiedPeer> {
        self.peer.as_ref()
    }
}

/// An established connection.
#[derive(Debug)]
pub struct TlsUnixConnection {
    io: AuthorityGuard<TlsStream<UnixStream>>,
    info: TlsUnixInfo,
    preface: PrefaceDeadline,
    _permit: Permit,
}

impl Connected for TlsUnixConnection {
    type ConnectInfo = TlsUnixInfo;

    fn connect_info(&self) -> TlsUnixInfo {
        self.info.clone()
    }
}

impl AsyncRead for TlsUnixConnection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let read = Pin::new(&mut this.io).poll_read(cx, buf);
        this.preface.check(cx, read, buf.filled().len() - before)
    }
}

impl AsyncWrite for TlsUnixConnection {
    write_to!(io);
}

/// Dials TLS over a unix socket for gRPC. The URI that tonic gives is not looked at; use `http://localhost`.
#[derive(Debug, Clone)]
pub struct TlsUnixConnector {
    tls: TlsClient,
    unix: UnixConnector,
}

impl TlsUnixConnector {
    /// A connector that dials as `unix` says and trusts as `tls` says.
    pub fn new(tls: TlsClient, unix: UnixConnector) -> Self {
        Self { tls, unix }
    }

    async fn dial(self) -> Result<tokio_rustls::client::TlsStream<UnixStream>, DialError> {
        let socket = self.unix.dial().await?;
        // What is verified is the SPIFFE ID; the name only has to be one.
        let name =
            ServerName::try_from("localhost").map_err(|_| DialError::BadTarget("localhost".to_owned()))?;
        let connecting = tokio_rustls::TlsConnector::from(self.tls.config()).connect(name, socket);
        let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, connecting).await;
        stream.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(DialError::Handshake)
    }
}

impl Service<Uri> for TlsUnixConnector {
    type Response = TokioIo<tokio_rustls::client::TlsStream<UnixStream>>;
    type Error = DialError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, DialError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), DialError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move { connector.dial().await.map(TokioIo::new) })
    }
}
