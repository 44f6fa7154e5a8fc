//! A connection of HTTP/2 and the calls on it, with little work and little memory each.
//!
//! tonic's server prepares each connection for HTTP/1 too, has our answers remembered in a table for the next ones, a date among
//! them, and hands each call through half a dozen layers that we have no use for.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::Either;
use http::{HeaderMap, Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Sleep, timeout};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::Status;
use tonic::body::Body;
use tower_service::Service;

use super::{
    CONNECTION_WINDOW, ERROR_RESETS_MAX, HEADER_LIST_SIZE_MAX, PING_TIMEOUT, SERVER_PING_INTERVAL,
    STREAM_WINDOW,
};

/// The settings of [`unix_server`](super::unix_server), for connections that are served here; the two must stay alike.
pub(super) fn http2(streams_max: u32) -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(streams_max)
        .max_header_list_size(HEADER_LIST_SIZE_MAX)
        .max_local_error_reset_streams(ERROR_RESETS_MAX)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .initial_stream_window_size(STREAM_WINDOW)
        .keep_alive_interval(SERVER_PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        // grpc-go sends none either.
        .auto_date_header(false);
    builder
}

/// Tells all conversations of a server to end. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Stop {
    token: CancellationToken,
    /// The same, to be read without a lock.
    is_told: Arc<AtomicBool>,
}

impl Stop {
    pub(super) fn tell(&self) {
        self.is_told.store(true, Ordering::SeqCst);
        self.token.cancel();
    }
}

/// A service of calls, which is always ready, as ours and those of tonic are.
pub(super) trait Serve:
    Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send + 'static>
    + Clone
    + Send
    + 'static
{
}

impl<S> Serve for S where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send + 'static>
        + Clone
        + Send
        + 'static
{
}

/// A connection until it ends, or calls end after it was told to stop or became old. It must be a task of its own, whose first poll
/// always registers its timer. An async block would hold what the connection was made of beside it. `K` is kept for as long.
pub(super) struct Conversation<IO, S: Serve, P: Clone + Send + Sync + 'static, K> {
    connection: http2::Connection<TokioIo<IO>, Calls<S, P>, TokioExecutor>,
    /// Wakes the connection's task when the server is told to stop; none from then on. It is asked when the task begins, which
    /// has one waker for its life, and not with every octet: all connections would wait for one lock.
    stop: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    is_told: Arc<AtomicBool>,
    /// How old it may become.
    age: Option<Pin<Box<Sleep>>>,
    is_begun: bool,
    _kept: K,
}

impl<IO, S, P, K> Conversation<IO, S, P, K>
where
    IO: AsyncRead + AsyncWrite + Unpin,
    S: Serve,
    P: Clone + Send + Sync + 'static,
{
    pub(super) fn new(
        server: &http2::Builder<TokioExecutor>,
        io: IO,
        calls: Calls<S, P>,
        stop: &Stop,
        age: Option<Duration>,
        kept: K,
    ) -> Self {
        Self {
            connection: server.serve_connection(TokioIo::new(io), calls),
            stop: Some(Box::pin(stop.token.clone().cancelled_owned())),
            is_told: stop.is_told.clone(),
            age: age.map(|age| Box::pin(tokio::time::sleep(age))),
            is_begun: false,
            _kept: kept,
        }
    }

    /// Whether it is time to end, said once.
    fn is_over(&mut self, cx: &mut Context<'_>) -> bool {
        let is_begun = std::mem::replace(&mut self.is_begun, true);
        let Some(stop) = &mut self.stop else { return false };
        let is_told = (!is_begun || self.is_told.load(Ordering::SeqCst)) && stop.as_mut().poll(cx).is_ready();
        let is_old = self
            .age
            .as_mut()
            .is_some_and(|age| if is_begun { age.is_elapsed() } else { age.as_mut().poll(cx).is_ready() });
        if is_told || is_old {
            (self.stop, self.age) = (None, None);
        }
        is_told || is_old
    }
}

impl<IO, S, P, K> Future for Conversation<IO, S, P, K>
where
    IO: AsyncRead + AsyncWrite + Unpin,
    S: Serve,
    P: Clone + Send + Sync + 'static,
    K: Unpin,
{
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        if this.is_over(cx) {
            Pin::new(&mut this.connection).graceful_shutdown();
        }
        // How it ended is the client's concern.
        Pin::new(&mut this.connection).poll(cx).map(drop)
    }
}

/// The calls of one connection. Handlers find what is known of the `peer` in the request's extensions.
#[derive(Clone)]
pub(super) struct Calls<S, P> {
    pub(super) service: S,
    pub(super) peer: P,
}

type Limited = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

impl<S: Serve, P: Clone + Send + Sync + 'static> hyper::service::Service<Request<Incoming>> for Calls<S, P> {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<S::Future, Limited>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let within = time_limit(request.headers());
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(self.peer.clone());
        let answer = self.service.clone().call(request);
        match within {
            None => Either::Left(answer),
            Some(within) => Either::Right(Box::pin(async move {
                let late = |_| Ok(Status::cancelled("Timeout expired").into_http());
                timeout(within, answer).await.unwrap_or_else(late)
            })),
        }
    }
}

/// What the client says it waits for an answer (gRPC over HTTP/2: Timeout), where it says it well.
pub fn time_limit(headers: &HeaderMap) -> Option<Duration> {
    let (unit, digits) = headers.get("grpc-timeout")?.as_bytes().split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let count = digits.iter().fold(0, |count: u64, digit| count * 10 + u64::from(digit - b'0'));
    match unit {
        b'H' => Some(Duration::from_secs(count * 3600)),
        b'M' => Some(Duration::from_secs(count * 60)),
        b'S' => Some(Duration::from_secs(count)),
        b'm' => Some(Duration::from_millis(count)),
        b'u' => Some(Duration::from_micros(count)),
        b'n' => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn time_limits_are_read() {
        let read = |value: &'static [u8]| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", HeaderValue::from_bytes(value).expect("a value"));
            time_limit(&headers)
        };
        assert_eq!(time_limit(&HeaderMap::new()), None);
        assert_eq!(read(b"20S"), Some(Duration::from_secs(20)));
        assert_eq!(read(b"99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        assert_eq!(read(b"2M"), Some(Duration::from_secs(120)));
        assert_eq!(read(b"7m"), Some(Duration::from_millis(7)));
        assert_eq!(read(b"7u"), Some(Duration::from_micros(7)));
        assert_eq!(read(b"007n"), Some(Duration::from_nanos(7)));
        for none in [&b""[..], b"S", b"7", b"123456789S", b"-1S", b"+1S", b"1s", b"1\xffS", b"1 S"] {
            assert_eq!(read(none), None, "{none:?}");
        }
    }
}
