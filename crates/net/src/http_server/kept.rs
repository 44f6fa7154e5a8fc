//! Documents for clients that keep their connections: proxies and load balancers in front of us, and those who come
//! without one. Over TLS, or without on TCP or a unix socket.
//!
//! What Go's `net/http` lets through here lets through too, and answers look as its answers do: names of headers, their
//! order and the date are the handler's. Bounds that Go has not are constants of this file and of `paced`.

use std::convert::Infallible;
use std::future::{Future, ready};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use http::Request;
use http::request::Parts;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::paced::Paced;
use super::{Answer, HEAD_TIMEOUT, LAST_ANSWERS, STREAMS_MAX};
use crate::listen::canonical;
use crate::places::Places;
use crate::tls::{ServerTls, TlsConnection, TlsIncoming};

/// Connections of a listener. With [`HEAD_SIZE_MAX`] a hostile crowd can make us hold 64 MiB.
const CONNECTIONS_MAX: usize = 2048;
/// Part of this process's files that connections may take.
const FILES_SHARE: u64 = 4;
/// Connections of one address over TLS: half of all, since a load balancer may be all that connects.
const CONNECTIONS_PER_ADDRESS_MAX: usize = CONNECTIONS_MAX / 2;
/// Largest head of a request. The reference takes 1 MiB; a proxy adds some hundred bytes to its client's.
const HEAD_SIZE_MAX: usize = 32 << 10;
/// From then on an HTTP/2 connection takes no new requests: its client knows from the protocol that it may ask again.
const HTTP2_LIFETIME: Duration = Duration::from_secs(300);
/// First and longest pause after accept fails; Go's numbers.
const PAUSE_MIN: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client {
    /// Absent on a unix socket.
    pub address: Option<SocketAddr>,
    /// Whether the connection is encrypted.
    pub is_tls: bool,
}

/// A listener without TLS.
#[derive(Debug)]
pub enum PlainListener {
    /// A port.
    Tcp(TcpListener),
    /// A socket; its file is the caller's to remove.
    Unix(UnixListener),
}

/// Listens with the bounds that [`serve_tls`] needs.
pub fn tls_incoming(tls: &ServerTls, listener: TcpListener) -> TlsIncoming {
    tls.incoming_limited(listener, CONNECTIONS_MAX)
}

/// Answers requests without TLS until `stop` is there, then lets answers finish. Who comes when all places are taken
/// waits in the system's queue.
pub async fn serve_plain<H>(listener: PlainListener, handler: H, stop: impl Future<Output = ()>)
where
    H: Fn(&Parts, Client) -> Answer + Clone + Send + Sync + 'static,
{
    let open_files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let share = usize::try_from(open_files.unwrap_or(u64::MAX) / FILES_SHARE).unwrap_or(usize::MAX);
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX.min(share).max(8)));
    let mut connections = JoinSet::new();
    let mut stop = pin!(stop);
    let (ending, ended) = tokio::sync::watch::channel(false);
    let mut pause = PAUSE_MIN;
    loop {
        let accept = async {
            // The semaphore is never closed.
            let place = Arc::clone(&places).acquire_owned().await.map_err(io::Error::other)?;
            Ok::<_, io::Error>((accept(&listener).await?, place))
        };
        tokio::select! {
            () = &mut stop => break,
            Some(_) = connections.join_next() => {}
            accepted = accept => match accepted {
                Ok((accepted, place)) => {
                    pause = PAUSE_MIN;
                    let (handler, ended) = (handler.clone(), ended.clone());
                    connections.spawn(async move {
                        let _place = place;
                        match accepted {
                            Accepted::Tcp(stream, address) => {
                                let client = Client { address: Some(address), is_tls: false };
                                let _ = stream.set_nodelay(true);
                                converse(stream, false, client, handler, ended).await;
                            }
                            Accepted::Unix(stream) => {
                                let client = Client { address: None, is_tls: false };
                                converse(stream, false, client, handler, ended).await;
                            }
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(error = spire_compat::errno::errno_text(&error), retry_interval = ?pause, "Accept failed");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                }
            }
        }
    }
    drop(listener);
    let _ = ending.send(true);
    finish(connections).await;
}

/// Answers requests over TLS until `stop` is there, then lets answers finish. `incoming` comes from [`tls_incoming`].
pub async fn serve_tls<H>(mut incoming: TlsIncoming, handler: H, stop: impl Future<Output = ()>)
where
    H: Fn(&Parts, Client) -> Answer + Clone + Send + Sync + 'static,
{
    let addresses: Arc<Places<IpAddr>> = Places::new(CONNECTIONS_PER_ADDRESS_MAX);
    let mut connections = JoinSet::new();
    let mut stop = pin!(stop);
    let (ending, ended) = tokio::sync::watch::channel(false);
    loop {
        tokio::select! {
            () = &mut stop => break,
            Some(_) = connections.join_next() => {}
            accepted = incoming.next() => {
                let Some(Ok(connection)) = accepted else { continue };
                let address = connection.info().remote_addr();
                let Some(place) = addresses.enter(address.ip()) else {
                    tracing::debug!(caller_addr = %address, "Too many connections of one address");
                    continue;
                };
                let (handler, ended) = (handler.clone(), ended.clone());
                connections.spawn(async move {
                    let _place = place;
                    encrypted(connection, handler, ended).await;
                });
            }
        }
    }
    drop(incoming);
    let _ = ending.send(true);
    finish(connections).await;
}

async fn encrypted<H>(mut connection: TlsConnection, handler: H, ended: tokio::sync::watch::Receiver<bool>)
where
    H: Fn(&Parts, Client) -> Answer + Send + Sync + 'static,
{
    if connection.is_acme() {
        let _ = tokio::time::timeout(HEAD_TIMEOUT, connection.shutdown()).await;
        return;
    }
    let client = Client { address: Some(connection.info().remote_addr()), is_tls: true };
    let is_http2 = connection.is_http2();
    converse(connection, is_http2, client, handler, ended).await;
}

enum Accepted {
    Tcp(tokio::net::TcpStream, SocketAddr),
    Unix(tokio::net::UnixStream),
}

async fn accept(listener: &PlainListener) -> io::Result<Accepted> {
    match listener {
        PlainListener::Tcp(listener) => {
            listener.accept().await.map(|(stream, address)| Accepted::Tcp(stream, canonical(address)))
        }
        PlainListener::Unix(listener) => listener.accept().await.map(|(stream, _)| Accepted::Unix(stream)),
    }
}

/// What is left after [`LAST_ANSWERS`] is aborted when the set is dropped.
async fn finish(mut connections: JoinSet<()>) {
    let ended = async { while connections.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(LAST_ANSWERS, ended).await;
}

async fn converse<S, H>(
    stream: S,
    is_http2: bool,
    client: Client,
    handler: H,
    mut ended: tokio::sync::watch::Receiver<bool>,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    H: Fn(&Parts, Client) -> Answer + Send + Sync + 'static,
{
    let service = service_fn(move |request: Request<Incoming>| {
        ready(Ok::<_, Infallible>(handler(&request.into_parts().0, client)))
    });
    // How a stranger's connection ends is nobody's concern.
    if is_http2 {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS_MAX)
            .max_header_list_size(HEAD_SIZE_MAX as u32)
            .keep_alive_interval(HEAD_TIMEOUT)
            .keep_alive_timeout(HEAD_TIMEOUT);
        let mut conversation = pin!(builder.serve_connection(TokioIo::new(stream), service));
        tokio::select! {
            _ = conversation.as_mut() => return,
            _ = ended.wait_for(|ended| *ended) => {}
            () = tokio::time::sleep(HTTP2_LIFETIME) => {}
        }
        conversation.as_mut().graceful_shutdown();
        let _ = tokio::time::timeout(LAST_ANSWERS, conversation).await;
    } else {
        let mut builder = http1::Builder::new();
        // `Paced` bounds the head, as well as what hyper has no bound for.
        builder.header_read_timeout(None).max_buf_size(HEAD_SIZE_MAX).title_case_headers(true);
        // Documents are short: head and body in one piece cost less than a list of two.
        builder.writev(false);
        let mut conversation = pin!(builder.serve_connection(TokioIo::new(Paced::new(stream)), service));
        tokio::select! {
            _ = conversation.as_mut() => return,
            _ = ended.wait_for(|ended| *ended) => {}
        }
        conversation.as_mut().graceful_shutdown();
        let _ = tokio::time::timeout(LAST_ANSWERS, conversation).await;
    }
}
