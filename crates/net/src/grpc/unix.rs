//! Serving a unix socket with little memory a connection.
//!
//! Workloads keep a connection each, with a stream that says something twice an hour. tonic's server prepares each
//! connection for HTTP/1 too, and has our answers remembered in a table for the next ones, a date among them; that is a tenth
//! of what such a connection takes. And it buffers 400 KiB for a client that does not read, who then gets one stale update
//! after the other.

use std::convert::Infallible;
use std::future::ready;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::StreamExt as _;
use http::{HeaderMap, Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::Status;
use tonic::body::Body;
use tonic::service::Routes;
use tower_service::Service as _;

use super::{
    CONNECTION_WINDOW, ERROR_RESETS_MAX, GRACEFUL_STOP_TIMEOUT, HEADER_LIST_SIZE_MAX, PING_TIMEOUT,
    SERVER_PING_INTERVAL, STREAM_WINDOW, STREAMS_MAX, Stopped,
};
use crate::uds::{PeerInfo, UnixConnection, UnixIncoming};

/// What a stream has in messages that its client does not take; one more than that many octets. The next message is made when
/// these are on their way, so that it is the newest.
const UNREAD_MAX: usize = 16 << 10;

/// Serves `incoming` until `shutdown` ends, then lets calls finish for at most [`GRACEFUL_STOP_TIMEOUT`], as
/// [`serve`](super::serve) does. The socket's file is gone when this returns. Handlers find the caller's [`PeerInfo`] in
/// the request's extensions. `services` are the names of all that `routes` has: calls of others are refused in grpc-go's
/// words.
pub async fn serve_unix(
    routes: Routes,
    services: &[&'static str],
    incoming: UnixIncoming,
    shutdown: impl Future<Output = ()>,
) -> Stopped {
    let (routes, services) = (routes.prepare(), Arc::from(services));
    let server = http2();
    let (stop, stopping) = (CancellationToken::new(), Arc::new(AtomicBool::new(false)));
    // Nothing is sent: each connection has a sender for as long as it lives.
    let (open, mut all_ended) = mpsc::channel::<Infallible>(1);
    {
        let (mut incoming, mut shutdown) = (incoming, pin!(shutdown));
        loop {
            let accepted = tokio::select! {
                biased;
                () = &mut shutdown => break,
                accepted = incoming.next() => accepted,
            };
            let Some(accepted) = accepted else { break };
            let Ok(io) = accepted else { continue };
            let calls =
                Calls { routes: routes.clone(), services: Arc::clone(&services), peer: io.peer().clone() };
            tokio::spawn(Conversation {
                connection: server.serve_connection(TokioIo::new(io), calls),
                stop: Some(Box::pin(stop.clone().cancelled_owned())),
                is_asked: false,
                stopping: Arc::clone(&stopping),
                _open: open.clone(),
            });
        }
    }
    stopping.store(true, Ordering::SeqCst);
    stop.cancel();
    drop(open);
    match timeout(GRACEFUL_STOP_TIMEOUT, all_ended.recv()).await {
        Ok(_) => Stopped::Gracefully,
        Err(_) => Stopped::Forced,
    }
}

/// The settings of [`unix_server`](super::unix_server).
fn http2() -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEADER_LIST_SIZE_MAX)
        .max_local_error_reset_streams(ERROR_RESETS_MAX)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .initial_stream_window_size(STREAM_WINDOW)
        .keep_alive_interval(SERVER_PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .max_send_buf_size(UNREAD_MAX)
        // grpc-go sends none either.
        .auto_date_header(false);
    builder
}

/// A connection until it ends, or calls end after the server was told to stop. An async block would hold what the connection
/// was made of beside it.
struct Conversation {
    connection: http2::Connection<TokioIo<UnixConnection>, Calls, TokioExecutor>,
    /// Wakes the connection's task when the server is told to stop; none from then on. It is asked when the task begins, which
    /// has one waker for its life, and not with every octet: all connections would wait for one lock.
    stop: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    is_asked: bool,
    stopping: Arc<AtomicBool>,
    _open: mpsc::Sender<Infallible>,
}

impl Future for Conversation {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        if (!this.is_asked || this.stopping.load(Ordering::SeqCst))
            && let Some(stop) = &mut this.stop
        {
            this.is_asked = true;
            if stop.as_mut().poll(cx).is_ready() {
                this.stop = None;
                Pin::new(&mut this.connection).graceful_shutdown();
            }
        }
        // How it ended is the client's concern.
        Pin::new(&mut this.connection).poll(cx).map(drop)
    }
}

/// The calls of one connection.
#[derive(Clone)]
struct Calls {
    routes: Routes,
    services: Arc<[&'static str]>,
    peer: PeerInfo,
}

impl hyper::service::Service<Request<Incoming>> for Calls {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let service =
            request.uri().path().trim_start_matches('/').rsplit_once('/').map(|(service, _)| service);
        if let Some(unknown) = service.filter(|name| !self.services.contains(name)) {
            let status = Status::unimplemented(format!("unknown service {unknown}"));
            return Box::pin(ready(Ok(status.into_http())));
        }
        let within = time_limit(request.headers());
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(self.peer.clone());
        let answer = self.routes.clone().call(request);
        match within {
            None => Box::pin(answer),
            Some(within) => Box::pin(async move {
                let late = |_| Ok(Status::cancelled("Timeout expired").into_http());
                timeout(within, answer).await.unwrap_or_else(late)
            }),
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

    /// A connection lives in a task of its own, which is to fit into 1,792 octets, head and all: the allocator's next size is 2,048.
    #[test]
    fn a_connection_is_small() {
        let size = size_of::<Conversation>();
        assert!(size <= 1664, "{size}");
    }
}
