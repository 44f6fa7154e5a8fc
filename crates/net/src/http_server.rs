//! A few documents over HTTPS for anybody who asks: bundle endpoints and the like.
//!
//! Whoever connects is a stranger, so everything has a bound: connections in all and for one address, the time for a
//! request's head, its size, streams of one connection, and the life of a connection, which ends a client that reads
//! its answer a byte a minute. Bodies of requests are not read.

mod kept;
mod paced;

use std::convert::Infallible;
use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use http::header::{CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use http::request::Parts;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::places::Places;
use crate::tls::{ServerTls, TlsConnection, TlsIncoming};

pub use kept::{Client, PlainListener, serve_plain, serve_tls, tls_incoming};

/// What is answered.
pub type Answer = Response<Full<Bytes>>;

/// Connections of a listener. Its clients come every few minutes for a moment.
const CONNECTIONS_MAX: usize = 1024;
/// Connections of one address: all the clients behind one NAT.
const CONNECTIONS_PER_ADDRESS_MAX: usize = 64;
/// For the head of a request, and between two requests of a connection (the reference's ReadHeaderTimeout).
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Largest head of a request; a GET without cookies has 200 bytes.
const HEAD_SIZE_MAX: usize = 16 << 10;
/// Streams of one HTTP/2 connection: there is one document.
const STREAMS_MAX: u32 = 8;
/// From then on a connection takes no new requests, and after [`LAST_ANSWERS`] it is closed.
const CONNECTION_LIFETIME: Duration = Duration::from_secs(60);
/// For answers on their way when a connection or the server ends.
const LAST_ANSWERS: Duration = Duration::from_secs(5);

/// Listens with the bounds that [`serve`] needs.
pub fn incoming(tls: &ServerTls, listener: TcpListener) -> TlsIncoming {
    tls.incoming_limited(listener, CONNECTIONS_MAX)
}

/// Answers requests until `stop` is there, then lets answers finish. `incoming` comes from [`incoming`](fn@incoming).
pub async fn serve<H, F>(mut incoming: TlsIncoming, handler: H, stop: impl Future<Output = ()>)
where
    H: Fn(Parts) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Answer> + Send + 'static,
{
    let addresses = Places::new(CONNECTIONS_PER_ADDRESS_MAX);
    let mut connections = JoinSet::new();
    let mut stop = pin!(stop);
    loop {
        tokio::select! {
            () = &mut stop => break,
            // A connection's end gives back its place; a panic in one costs that one.
            Some(_) = connections.join_next() => {}
            accepted = incoming.next() => {
                let Some(Ok(connection)) = accepted else { continue };
                let address = connection.info().remote_addr();
                let Some(place) = addresses.enter(address.ip()) else {
                    tracing::debug!(caller_addr = %address, "Too many connections of one address");
                    continue;
                };
                let handler = handler.clone();
                connections.spawn(async move {
                    let _place = place;
                    converse(connection, handler).await;
                });
            }
        }
    }
    drop(incoming);
    let ended = async { while connections.join_next().await.is_some() {} };
    // What is left is aborted when the set is dropped.
    let _ = tokio::time::timeout(LAST_ANSWERS, ended).await;
}

async fn converse<H, F>(mut connection: TlsConnection, handler: H)
where
    H: Fn(Parts) -> F + Send + Sync + 'static,
    F: Future<Output = Answer> + Send + 'static,
{
    if connection.is_acme() {
        let _ = tokio::time::timeout(HEAD_TIMEOUT, connection.shutdown()).await;
        return;
    }
    let is_http2 = connection.is_http2();
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = handler(request.into_parts().0);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let io = TokioIo::new(connection);
    if is_http2 {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS_MAX)
            .max_header_list_size(HEAD_SIZE_MAX as u32)
            .keep_alive_interval(HEAD_TIMEOUT)
            .keep_alive_timeout(HEAD_TIMEOUT);
        let mut conversation = pin!(builder.serve_connection(io, service));
        tokio::select! {
            // How a stranger's connection ends is nobody's concern.
            _ = conversation.as_mut() => return,
            () = tokio::time::sleep(CONNECTION_LIFETIME) => conversation.as_mut().graceful_shutdown(),
        }
        let _ = tokio::time::timeout(LAST_ANSWERS, conversation).await;
    } else {
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(HEAD_SIZE_MAX);
        let mut conversation = pin!(builder.serve_connection(io, service));
        tokio::select! {
            _ = conversation.as_mut() => return,
            () = tokio::time::sleep(CONNECTION_LIFETIME) => conversation.as_mut().graceful_shutdown(),
        }
        let _ = tokio::time::timeout(LAST_ANSWERS, conversation).await;
    }
}

/// What Go's `http.Error` answers.
pub fn error(status: StatusCode, text: &str) -> Answer {
    let mut answer = Response::new(Full::from(format!("{text}\n")));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    answer
}

/// A document of this type.
pub fn document(content_type: &'static str, body: Bytes) -> Answer {
    let mut answer = Response::new(Full::new(body));
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}

#[cfg(test)]
mod tests;
