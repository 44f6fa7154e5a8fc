//! gRPC servers and clients with the settings of grpc-go where the defaults of hyper differ in ways that a
//! peer notices.

use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::time::Duration;

use futures_util::Stream;
use http::Uri;
use spire_ports::plugins::ErrorKind;
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::transport::server::{Connected, Router};
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Code, Status};

use crate::tls::{TlsClient, TlsConnector, UnixConnector};

mod conversation;
mod tcp;
mod unix;

pub use conversation::time_limit;
pub use tcp::serve_tcp;
pub use unix::serve_unix;

/// Largest message that is received, either side: grpc-go's default. Generated services have the same
/// default; say it where another is wanted.
pub const MESSAGE_SIZE_MAX: usize = 4 << 20;

/// Age from which a TCP connection is asked to end, so that its certificate is verified anew and load moves
/// to other servers (SPIRE `pkg/server/endpoints/endpoints.go`, defaultMaxConnectionAge). With [`serve_tcp`] a tenth more
/// or less.
pub const CONNECTION_AGE_MAX: Duration = Duration::from_secs(3 * 60);

/// What a graceful stop waits for calls in progress (SPIRE's gracefulStopTimeout).
pub const GRACEFUL_STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// Open streams of one connection. grpc-go has no bound; a client that wants more waits, so this only needs
/// to be larger than what one connection has open at once (a stream a workload for those who subscribe on
/// behalf of a node).
const STREAMS_MAX: u32 = 4096;

/// The same for TCP, where an agent has a few calls at once and anybody may connect.
const TCP_STREAMS_MAX: u32 = 512;

/// Size of metadata. grpc-go takes 16 MiB of a request; its own clients never send more than 8 KiB unless told to, and each
/// open stream may make us hold this much.
const HEADER_LIST_SIZE_MAX: u32 = 64 << 10;

/// Streams that a client may make us reset by protocol errors before its connection ends. tonic has no bound.
const ERROR_RESETS_MAX: usize = 1024;

/// Flow-control windows. Large for the connection since streams of small messages must not run into the
/// limit that h2 sets to tiny frames in flight (half of this window), moderate for a stream.
const CONNECTION_WINDOW: u32 = 4 << 20;
const STREAM_WINDOW: u32 = 256 << 10;

/// grpc-go's server pings a connection that was silent for two hours, and gives up 20 s later.
const SERVER_PING_INTERVAL: Duration = Duration::from_secs(2 * 60 * 60);
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// A server for TCP; give its router and a [`TlsIncoming`](crate::tls::TlsIncoming) to [`serve`]. For servers of tests: where many
/// agents call, [`serve_tcp`] takes less time.
pub fn tcp_server() -> Server {
    unix_server().max_concurrent_streams(TCP_STREAMS_MAX).max_connection_age(CONNECTION_AGE_MAX)
}

/// A server for unix sockets; give its router and a [`UnixIncoming`](crate::uds::UnixIncoming) to [`serve`]. Where many
/// clients keep connections, [`serve_unix`] takes less memory.
pub fn unix_server() -> Server {
    Server::builder()
        .max_concurrent_streams(STREAMS_MAX)
        .http2_max_header_list_size(HEADER_LIST_SIZE_MAX)
        .http2_max_local_error_reset_streams(Some(ERROR_RESETS_MAX))
        .initial_connection_window_size(CONNECTION_WINDOW)
        .initial_stream_window_size(STREAM_WINDOW)
        .http2_keepalive_interval(Some(SERVER_PING_INTERVAL))
        .http2_keepalive_timeout(Some(PING_TIMEOUT))
}

/// The status code of a plugin's failure, which has the same name.
pub fn plugin_code(kind: ErrorKind) -> Code {
    match kind {
        ErrorKind::Canceled => Code::Cancelled,
        ErrorKind::Unknown => Code::Unknown,
        ErrorKind::InvalidArgument => Code::InvalidArgument,
        ErrorKind::DeadlineExceeded => Code::DeadlineExceeded,
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::AlreadyExists => Code::AlreadyExists,
        ErrorKind::PermissionDenied => Code::PermissionDenied,
        ErrorKind::ResourceExhausted => Code::ResourceExhausted,
        ErrorKind::FailedPrecondition => Code::FailedPrecondition,
        ErrorKind::Aborted => Code::Aborted,
        ErrorKind::OutOfRange => Code::OutOfRange,
        ErrorKind::Unimplemented => Code::Unimplemented,
        ErrorKind::Internal => Code::Internal,
        ErrorKind::Unavailable => Code::Unavailable,
        ErrorKind::DataLoss => Code::DataLoss,
        ErrorKind::Unauthenticated => Code::Unauthenticated,
    }
}

/// How a server ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// All calls had ended ("Graceful stop successful").
    Gracefully,
    /// Calls were still going on after [`GRACEFUL_STOP_TIMEOUT`] ("Graceful stop unsuccessful, forced stop
    /// after 10s"). What remains of their connections ends with the runtime.
    Forced,
}

/// Serves `incoming` until `shutdown` ends, then lets calls finish for at most [`GRACEFUL_STOP_TIMEOUT`].
/// The listener, and a unix socket's file with it, is gone when this returns.
pub async fn serve<I, IO, IE>(
    router: Router,
    incoming: I,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<Stopped, tonic::transport::Error>
where
    I: Stream<Item = Result<IO, IE>>,
    IO: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
    IE: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    graceful(shutdown, |signal| router.serve_with_incoming_shutdown(incoming, signal)).await
}

/// As [`serve`], for other servers: `serving` gets the signal to stop, and ends once all calls have.
pub async fn graceful<S, E>(
    shutdown: impl Future<Output = ()> + Send + 'static,
    serving: impl FnOnce(Signal) -> S,
) -> Result<Stopped, E>
where
    S: Future<Output = Result<(), E>>,
{
    let (stopping, stopped) = tokio::sync::oneshot::channel();
    let signal = Box::pin(async {
        shutdown.await;
        // The receiver waits below for as long as the server runs.
        let _ = stopping.send(());
    });
    let deadline = async {
        match stopped.await {
            Ok(()) => tokio::time::sleep(GRACEFUL_STOP_TIMEOUT).await,
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        served = serving(signal) => served.map(|()| Stopped::Gracefully),
        () = deadline => Ok(Stopped::Forced),
    }
}

/// Ends when the server shall stop.
pub type Signal = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A channel to a SPIRE server over TCP and TLS. It connects when first used, and again when the connection
/// is lost. Errors of the connection come as `Unavailable` with the text of
/// [`DialError`](crate::tls::DialError).
pub fn tcp_channel(host: &str, port: u16, tls: TlsClient) -> Result<Channel, io::Error> {
    tcp_channel_from(None, host, port, tls)
}

/// As [`tcp_channel`], from an address of this machine.
pub fn tcp_channel_from(
    from: Option<IpAddr>,
    host: &str,
    port: u16,
    tls: TlsClient,
) -> Result<Channel, io::Error> {
    Ok(TcpTarget::new(host, port, TlsConnector::new(tls).from_address(from))?.channel())
}

/// A SPIRE server that is dialled again and again, over TCP and TLS.
#[derive(Debug, Clone)]
pub struct TcpTarget {
    endpoint: Endpoint,
    connector: TlsConnector,
}

impl TcpTarget {
    /// The server at a host and port. Nothing is dialled yet.
    ///
    /// # Errors
    /// Host and port make no address.
    pub fn new(host: &str, port: u16, connector: TlsConnector) -> Result<Self, io::Error> {
        let authority =
            if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        let invalid = |error| io::Error::new(io::ErrorKind::InvalidInput, error);
        // The connector makes it TLS; "https" would have tonic look for its own.
        let dialled: Uri = format!("http://{authority}").parse().map_err(invalid)?;
        let shown: Uri = format!("https://{authority}").parse().map_err(invalid)?;
        Ok(Self { endpoint: endpoint(dialled).origin(shown), connector })
    }

    /// A channel with a connection of its own, as [`tcp_channel`] makes it. Its first attempt goes to the address of the
    /// name that follows the one of the last attempt, also of an earlier channel.
    pub fn channel(&self) -> Channel {
        self.endpoint.connect_with_connector_lazy(self.connector.clone())
    }
}

/// A channel to a unix socket, connected when first used.
pub fn unix_channel(connector: UnixConnector) -> Channel {
    endpoint(Uri::from_static("http://localhost")).connect_with_connector_lazy(connector)
}

/// A channel to a Workload API at `unix:///path`, `unix:path` or `tcp://host:port`, without TLS as the specification has
/// it; nothing for another address.
pub fn workload_channel(address: &str) -> Option<Channel> {
    if let Some(path) = address.strip_prefix("unix://").or_else(|| address.strip_prefix("unix:")) {
        return Some(unix_channel(UnixConnector::new(path)));
    }
    let authority = address.strip_prefix("tcp://")?;
    Some(Endpoint::from_shared(format!("http://{authority}")).ok()?.connect_lazy())
}

/// The name of a code as Go prints it.
pub fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}

/// A status as grpc-go prints it: `rpc error: code = NotFound desc = entry not found`.
pub fn status_text(status: &Status) -> String {
    format!("rpc error: code = {} desc = {}", code_name(status.code()), status.message())
}

fn endpoint(uri: Uri) -> Endpoint {
    Endpoint::from(uri)
        .http2_max_header_list_size(HEADER_LIST_SIZE_MAX)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .initial_stream_window_size(STREAM_WINDOW)
}

#[cfg(test)]
mod hostile_tests;
#[cfg(test)]
mod tests;
