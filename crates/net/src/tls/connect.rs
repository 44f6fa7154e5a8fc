//! Dialling: TLS over TCP and unix sockets, as connectors for tonic, with the error texts of grpc-go.

use std::error::Error;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use http::Uri;
use hyper_util::rt::TokioIo;
use rustix::net::sockopt;
use rustls::pki_types::ServerName;
use rustls::{AlertDescription, CertificateError};
use spire_core::spiffe::SpiffeId;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::{TcpSocket, TcpStream, UnixStream};
use tokio_rustls::client::TlsStream;
use tower_service::Service;

use super::web::WebError;
use super::web_proxy::Proxies;
use super::{ALPN_H2, TlsClient};
use crate::address;
use crate::forward::write_to;
use spire_compat::errno::errno_text;

/// Deadline of one attempt, name, connection and handshake: grpc-go's minimum connect timeout.
const DIAL_TIMEOUT: Duration = Duration::from_secs(20);

/// What was sent and not acknowledged for so long ends a connection: its other end is gone, or the way to it. Without,
/// Linux sends again for a quarter of an hour.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(30);

/// Silence after which the other end is asked whether it is still there. That is TCP's own question: servers on grpc-go
/// end connections whose clients ask in HTTP/2 more often than every five minutes.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// Room for the first octets of a server: its SETTINGS.
const FIRST_READ: usize = 256;

/// How long an address may be silent before the next one is tried beside it.
const NEXT_ADDRESS: Duration = Duration::from_millis(250);

/// Addresses of a name that are tried in one attempt.
const ADDRESSES_MAX: usize = 16;

/// Why a server could not be reached. Its text is what grpc-go puts into the status, so a CLI prints
/// `rpc error: code = Unavailable desc = ` and this; tonic carries it over into [`tonic::Status::message`].
#[derive(Debug)]
pub enum DialError {
    /// Nothing listens there, or it cannot be reached.
    Dial {
        /// `tcp` or `unix`.
        network: &'static str,
        /// The address as shown.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// The name has no address.
    Lookup {
        /// The name.
        host: String,
        /// What the system said.
        source: io::Error,
    },
    /// [`DIAL_TIMEOUT`] passed.
    Timeout {
        /// The address as shown.
        address: String,
    },
    /// The TLS handshake failed; the verifier's own error is what is shown, where it has one.
    Handshake(io::Error),
    /// The server does not speak HTTP/2.
    NoAlpn,
    /// The server ended the connection after the handshake: with TLS 1.3 that is how it refuses our certificate.
    Preface(io::Error),
    /// The URI has no host.
    BadTarget(String),
    /// The proxy on the way gives no connection.
    Proxy {
        /// The proxy's address.
        address: String,
        /// Why.
        reason: String,
    },
    /// The address is not one of the public internet, and others are refused by configuration.
    Private {
        /// The address as shown.
        address: String,
    },
}

impl DialError {
    /// What Go's `net/http` says, which has nothing around it.
    pub(crate) fn http_text(&self) -> String {
        match self {
            Self::Handshake(error) | Self::Preface(error) => handshake_text(error),
            other => {
                let text = other.description();
                text.strip_prefix("transport: Error while dialing: ").map_or(text.clone(), str::to_owned)
            }
        }
    }

    /// The SPIFFE ID of a server that was dialled as a web server but showed an SVID.
    pub(crate) fn spiffe_server(&self) -> Option<&SpiffeId> {
        let Self::Handshake(error) = self else { return None };
        match error.get_ref()?.downcast_ref::<rustls::Error>()? {
            rustls::Error::InvalidCertificate(CertificateError::Other(other)) => {
                other.0.downcast_ref::<WebError>()?.spiffe_id.as_ref()
            }
            _ => None,
        }
    }

    /// The text within the quotes.
    fn description(&self) -> String {
        match self {
            Self::Dial { network, address, source } => {
                let cause = errno_text(source);
                format!("transport: Error while dialing: dial {network} {address}: connect: {cause}")
            }
            Self::Lookup { host, source } => {
                tracing::debug!(host, error = %source, "Name lookup failed");
                format!("transport: Error while dialing: dial tcp: lookup {host}: no such host")
            }
            Self::Timeout { address } => {
                format!("transport: Error while dialing: dial tcp {address}: i/o timeout")
            }
            Self::Proxy { address, reason } => {
                format!("transport: Error while dialing: proxy {address}: {reason}")
            }
            Self::Private { address } => {
                format!(
                    "transport: Error while dialing: dial tcp {address}: not a public address, which are the only ones allowed"
                )
            }
            Self::Handshake(error) => {
                format!("transport: authentication handshake failed: {}", handshake_text(error))
            }
            Self::Preface(error) => format!("error reading server preface: {}", handshake_text(error)),
            Self::NoAlpn => "transport: authentication handshake failed: credentials: cannot check peer: \
                 missing selected ALPN property"
                .to_owned(),
            Self::BadTarget(target) => {
                format!("transport: Error while dialing: dial tcp: address {target}: missing port in address")
            }
        }
    }
}

impl fmt::Display for DialError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Rust's escapes equal Go's for all that occurs in addresses and error texts.
        write!(f, "connection error: desc = {:?}", self.description())
    }
}

impl Error for DialError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Dial { source, .. }
            | Self::Lookup { source, .. }
            | Self::Handshake(source)
            | Self::Preface(source) => Some(source),
            Self::Timeout { .. }
            | Self::NoAlpn
            | Self::BadTarget(_)
            | Self::Proxy { .. }
            | Self::Private { .. } => None,
        }
    }
}

/// The dial error within an error of tonic or hyper, if that was the cause.
pub fn dial_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a DialError> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        next = error.source();
    }
    None
}

/// A handshake's failure in Go's words.
pub(super) fn handshake_text(error: &io::Error) -> String {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidCertificate(CertificateError::Other(other))) => other.0.to_string(),
        Some(rustls::Error::AlertReceived(alert)) => format!("remote error: tls: {}", alert_text(*alert)),
        Some(error) => format!("tls: {error}"),
        None if error.kind() == io::ErrorKind::UnexpectedEof => "EOF".to_owned(),
        None => errno_text(error),
    }
}

/// Go's words for the alerts that a server sends a client (`crypto/tls/alert.go`).
fn alert_text(alert: AlertDescription) -> String {
    let text = match alert {
        AlertDescription::HandshakeFailure => "handshake failure",
        AlertDescription::BadCertificate => "bad certificate",
        AlertDescription::UnsupportedCertificate => "unsupported certificate",
        AlertDescription::CertificateRevoked => "revoked certificate",
        AlertDescription::CertificateExpired => "expired certificate",
        AlertDescription::CertificateUnknown => "unknown certificate",
        AlertDescription::UnknownCA => "unknown certificate authority",
        AlertDescription::AccessDenied => "access denied",
        AlertDescription::ProtocolVersion => "protocol version not supported",
        AlertDescription::InsufficientSecurity => "insufficient security level",
        AlertDescription::InternalError => "internal error",
        AlertDescription::NoApplicationProtocol => "no application protocol",
        AlertDescription::CertificateRequired => "certificate required",
        other => return format!("alert({})", u8::from(other)),
    };
    text.to_owned()
}

/// Dials TLS over TCP for gRPC. Give it to [`tonic::transport::Endpoint::connect_with_connector`] with an
/// `http` URI that has the host and port. Later attempts start with other addresses of the name.
#[derive(Debug, Clone)]
pub struct TlsConnector {
    tls: TlsClient,
    attempts: Arc<AtomicUsize>,
    public_only: bool,
    from: Option<IpAddr>,
    proxies: Option<Proxies>,
}

impl TlsConnector {
    /// A connector that trusts as `tls` says.
    pub fn new(tls: TlsClient) -> Self {
        Self { tls, attempts: Arc::default(), public_only: false, from: None, proxies: None }
    }

    /// Dials from an address of this machine; the system chooses one without.
    #[must_use]
    pub fn from_address(self, from: Option<IpAddr>) -> Self {
        Self { from, ..self }
    }

    /// Dials through the proxies that there are for a host.
    #[must_use]
    pub fn through(self, proxies: Option<Proxies>) -> Self {
        Self { proxies, ..self }
    }

    /// Refuses addresses that are not of the public internet. What counts is the address that is dialled, so a name
    /// that resolves to another one at the next look is of no use.
    pub(crate) fn public_only(self, public_only: bool) -> Self {
        Self { public_only, ..self }
    }

    /// Connects and gives the stream; whether HTTP/2 was negotiated is checked if it was all that we offered.
    pub(crate) async fn dial(self, host: String, port: u16) -> Result<TlsStream<TcpStream>, DialError> {
        let address = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        tokio::time::timeout(DIAL_TIMEOUT, self.attempt(host, port))
            .await
            .unwrap_or(Err(DialError::Timeout { address }))
    }

    /// Connects without TLS.
    pub(crate) async fn dial_tcp(self, host: String, port: u16) -> Result<TcpStream, DialError> {
        let address = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        tokio::time::timeout(DIAL_TIMEOUT, self.tcp(host, port))
            .await
            .unwrap_or(Err(DialError::Timeout { address }))
    }

    async fn attempt(self, host: String, port: u16) -> Result<TlsStream<TcpStream>, DialError> {
        let name = ServerName::try_from(host.clone()).map_err(|_| DialError::BadTarget(host.clone()))?;
        let tcp = self.tcp(host, port).await?;
        tcp.set_nodelay(true).map_err(DialError::Handshake)?;
        let config = Arc::clone(&self.tls.config);
        let only_h2 = config.alpn_protocols == [ALPN_H2];
        let stream = tokio_rustls::TlsConnector::from(config)
            .connect(name, tcp)
            .await
            .map_err(DialError::Handshake)?;
        if only_h2 && stream.get_ref().1.alpn_protocol() != Some(ALPN_H2) {
            return Err(DialError::NoAlpn);
        }
        Ok(stream)
    }

    async fn tcp(&self, host: String, port: u16) -> Result<TcpStream, DialError> {
        let Some(proxy) = self.proxies.as_ref().and_then(|proxies| proxies.of(&host, port)) else {
            return self.directly(host, port).await;
        };
        let address = proxy.shown();
        let failed = |reason| DialError::Proxy { address: address.clone(), reason };
        let (host, port) = proxy.address().map_err(|reason| failed(reason.to_owned()))?;
        let stream = self.directly(host, port).await?;
        proxy.connect(stream).await.map_err(failed)
    }

    async fn directly(&self, host: String, port: u16) -> Result<TcpStream, DialError> {
        let lookup = |source| DialError::Lookup { host: host.clone(), source };
        let mut addresses: Vec<_> = tokio::net::lookup_host((host.as_str(), port))
            .await
            .map_err(lookup)?
            .take(ADDRESSES_MAX)
            .collect();
        let first = self.attempts.fetch_add(1, Ordering::Relaxed) % addresses.len().max(1);
        addresses.rotate_left(first);
        let dial = |address: SocketAddr| async move {
            if self.public_only && !address::is_public(address.ip()) {
                return Err(DialError::Private { address: address.to_string() });
            }
            let failed = |source| DialError::Dial { network: "tcp", address: address.to_string(), source };
            connect(self.from, address).await.map_err(failed)
        };
        first_of(addresses, dial).await.unwrap_or_else(|| Err(lookup(io::ErrorKind::NotFound.into())))
    }
}

/// What the first address gives that answers, or the last failure; `None` without addresses. An address that is silent holds up the
/// next for a moment only (RFC 8305, section 5; grpc-go's `pick_first` does the same).
async fn first_of<T, E, F: Future<Output = Result<T, E>>>(
    addresses: Vec<SocketAddr>,
    dial: impl Fn(SocketAddr) -> F,
) -> Option<Result<T, E>> {
    let mut waiting = addresses.into_iter();
    let mut dialling = FuturesUnordered::from_iter(waiting.next().map(&dial));
    let mut last = None;
    while !dialling.is_empty() {
        tokio::select! {
            Some(ended) = dialling.next() => {
                if ended.is_ok() {
                    return Some(ended);
                }
                last = Some(ended);
            }
            () = tokio::time::sleep(NEXT_ADDRESS), if waiting.len() > 0 => {}
        }
        dialling.extend(waiting.next().map(&dial));
    }
    last
}

async fn connect(from: Option<IpAddr>, to: SocketAddr) -> io::Result<TcpStream> {
    let stream = match from {
        None => TcpStream::connect(to).await?,
        Some(from) => {
            let socket = if from.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
            socket.bind(SocketAddr::new(from, 0))?;
            socket.connect(to).await?
        }
    };
    notice_death(&stream);
    Ok(stream)
}

/// Has the system end a connection whose other end vanished without a word. What it refuses is an improvement less, not
/// a failure.
fn notice_death(stream: &TcpStream) {
    let _ = sockopt::set_socket_keepalive(stream, true);
    let _ = sockopt::set_tcp_keepidle(stream, KEEPALIVE);
    let _ = sockopt::set_tcp_keepintvl(stream, KEEPALIVE / 3);
    let milliseconds = u32::try_from(UNACKNOWLEDGED_MAX.as_millis()).unwrap_or(u32::MAX);
    let _ = sockopt::set_tcp_user_timeout(stream, milliseconds);
}

/// A connection of which the first octets were read already.
#[derive(Debug)]
pub struct GrpcStream {
    stream: TlsStream<TcpStream>,
    first: Bytes,
}

impl GrpcStream {
    /// Waits for the server's first octets, as grpc-go does before it calls a connection ready: a server speaks
    /// first in HTTP/2 as well (RFC 9113 section 3.4), and only then is it known that it took our certificate.
    async fn open(mut stream: TlsStream<TcpStream>) -> Result<Self, DialError> {
        let mut first = BytesMut::with_capacity(FIRST_READ);
        match stream.read_buf(&mut first).await {
            Ok(0) => Err(DialError::Preface(io::ErrorKind::UnexpectedEof.into())),
            Ok(_) => Ok(Self { stream, first: first.freeze() }),
            Err(error) => Err(DialError::Preface(error)),
        }
    }
}

impl AsyncRead for GrpcStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.first.is_empty() {
            return Pin::new(&mut this.stream).poll_read(cx, buf);
        }
        let size = this.first.len().min(buf.remaining());
        buf.put_slice(&this.first.split_to(size));
        if this.first.is_empty() {
            // Gives the buffer back: connections live for long.
            this.first = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for GrpcStream {
    write_to!(stream);
}

impl Service<Uri> for TlsConnector {
    type Response = TokioIo<GrpcStream>;
    type Error = DialError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, DialError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), DialError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move {
            let (Some(host), Some(port)) = (uri.host(), uri.port_u16()) else {
                return Err(DialError::BadTarget(uri.to_string()));
            };
            let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
            let address = uri.authority().map(ToString::to_string).unwrap_or_default();
            let open = async { GrpcStream::open(connector.dial(host, port).await?).await };
            let opened = tokio::time::timeout(DIAL_TIMEOUT, open).await;
            opened.unwrap_or(Err(DialError::Timeout { address })).map(TokioIo::new)
        })
    }
}

/// Dials a unix socket. The URI that tonic gives is not looked at; use `http://localhost`, which makes the
/// authority that grpc-go sends.
#[derive(Debug, Clone)]
pub struct UnixConnector {
    path: PathBuf,
    shown: String,
}

impl UnixConnector {
    /// Dials `path`; one that starts with `@` is in the abstract namespace.
    pub fn new(path: impl AsRef<Path>) -> Self {
        let path = path.as_ref();
        Self { path: path.to_owned(), shown: path.display().to_string() }
    }

    /// As [`new`](Self::new), for SPIRE's command lines: they hand grpc-go a dialer that leaves two slashes
    /// before an absolute path, which their error messages show (`cmd/spire-server/util/util_posix.go`,
    /// dialer).
    pub fn command_line(path: impl AsRef<Path>) -> Self {
        let mut connector = Self::new(path);
        if connector.path.is_absolute() {
            connector.shown.insert_str(0, "//");
        }
        connector
    }

    /// Connects.
    pub async fn dial(&self) -> Result<UnixStream, DialError> {
        let text = self.path.to_string_lossy();
        let connected = match text.strip_prefix('@') {
            Some(name) => UnixStream::connect(format!("\0{name}")).await,
            None => UnixStream::connect(&self.path).await,
        };
        connected.map_err(|source| DialError::Dial { network: "unix", address: self.shown.clone(), source })
    }
}

impl Service<Uri> for UnixConnector {
    type Response = TokioIo<UnixStream>;
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

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::sync::atomic::AtomicU8;

    use super::*;

    fn addresses(count: u8) -> Vec<SocketAddr> {
        (1..=count).map(|last| (Ipv4Addr::new(192, 0, 2, last), 1).into()).collect()
    }

    /// The first two never say anything, the third refuses, and of the others each is there at once.
    async fn dialled(count: u8) -> (Option<Result<SocketAddr, SocketAddr>>, u8) {
        let started = AtomicU8::new(0);
        let dial = |address: SocketAddr| {
            let number = started.fetch_add(1, Ordering::Relaxed) + 1;
            async move {
                match number {
                    1 | 2 => std::future::pending().await,
                    3 => Err(address),
                    _ => Ok(address),
                }
            }
        };
        let ended = tokio::time::timeout(DIAL_TIMEOUT, first_of(addresses(count), dial)).await;
        (ended.unwrap_or(None), started.into_inner())
    }

    #[tokio::test(start_paused = true)]
    async fn silent_addresses_hold_up_the_others_for_a_moment() {
        let begun = tokio::time::Instant::now();
        assert_eq!(dialled(6).await, (Some(Ok(addresses(4)[3])), 4));
        assert_eq!(begun.elapsed(), 2 * NEXT_ADDRESS);
        assert_eq!(dialled(0).await, (None, 0));
        let begun = tokio::time::Instant::now();
        assert_eq!(dialled(3).await, (None, 3), "two are silent until the attempt's end");
        assert_eq!(begun.elapsed(), DIAL_TIMEOUT);
    }

    #[tokio::test]
    async fn the_last_failure_is_told() {
        let refused = first_of(addresses(3), async |address| Err::<(), _>(address)).await;
        assert_eq!(refused, Some(Err(addresses(3)[2])));
    }
}
