//! A small HTTP listener for probes, scrapes and profiles: bounded connections, ten seconds for a header.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use spire_net::tls::ServerTls;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

/// What a listener answers.
pub(crate) type Answer = Pin<Box<dyn Future<Output = Response<Full<Bytes>>> + Send>>;

/// Answers requests.
pub(crate) type Respond = Arc<dyn Fn(Request<Incoming>) -> Answer + Send + Sync>;

/// An answer with this status, type and body.
pub(crate) fn response(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<Bytes>,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// What Go's multiplexer says of a path that it does not know.
pub(crate) fn not_found() -> Response<Full<Bytes>> {
    response(StatusCode::NOT_FOUND, "text/plain; charset=utf-8", "404 page not found\n")
}

/// Serves a listener, with TLS or without, until the future is dropped; open connections end with it.
pub(crate) async fn serve(listener: TcpListener, tls: Option<ServerTls>, respond: Respond) -> io::Result<()> {
    match tls {
        None => serve_plain(listener, respond).await,
        Some(tls) => serve_tls(listener, tls, respond).await,
    }
}

async fn serve_plain(listener: TcpListener, respond: Respond) -> io::Result<()> {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let slot = Arc::clone(&slots).acquire_owned().await.map_err(io::Error::other)?;
        match listener.accept().await {
            Ok((stream, _)) => {
                connections.spawn(connection(stream, respond.clone(), slot));
            }
            Err(error) => {
                // A peer that is gone again, or no descriptor left: neither ends the listener.
                tracing::debug!(%error, "HTTP connection was not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Handshakes are bounded by the TLS listener itself.
async fn serve_tls(listener: TcpListener, tls: ServerTls, respond: Respond) -> io::Result<()> {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut incoming = tls.incoming(listener);
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let slot = Arc::clone(&slots).acquire_owned().await.map_err(io::Error::other)?;
        match incoming.next().await {
            Some(Ok(stream)) => {
                connections.spawn(connection(stream, respond.clone(), slot));
            }
            Some(Err(error)) => tracing::debug!(%error, "HTTPS connection was not accepted"),
            None => return Ok(()),
        }
    }
}

async fn connection<S>(stream: S, respond: Respond, slot: OwnedSemaphorePermit)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let _slot = slot;
    let service = service_fn(move |request| {
        let answer = respond(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_HEADER)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(serving);
    let served = tokio::select! {
        served = &mut serving => served,
        () = tokio::time::sleep(MAX_CONNECTION_AGE) => {
            // What is being answered is answered; a peer that does not read it loses its connection.
            serving.as_mut().graceful_shutdown();
            match tokio::time::timeout(HEADER_TIMEOUT, serving).await {
                Ok(served) => served,
                Err(_) => return,
            }
        }
    };
    if let Err(error) = served {
        tracing::debug!(%error, "HTTP connection failed");
    }
}

/// Probes and scrapers are few; more than these at once are someone else.
const MAX_CONNECTIONS: usize = 64;

/// The reference's `ReadHeaderTimeout`.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection that is kept open gives its slot back in the end.
const MAX_CONNECTION_AGE: Duration = Duration::from_secs(300);

/// Room for a request line and headers; hyper's least is 8 KiB.
const MAX_HEADER: usize = 16 << 10;

/// Keeps the listener from spinning while the process has no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
