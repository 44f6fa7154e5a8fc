//! A gRPC server on a unix socket with fixed answers, for everything that the commands call. It writes down what it was
//! asked, so that requests can be compared octet by octet.

use std::convert::Infallible;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::UnixListener;

mod answers;

/// A call as it came in: path and message.
pub(crate) type Asked = (String, Bytes);

/// The calls so far.
#[derive(Clone, Default)]
pub(crate) struct Log {
    asked: Arc<Mutex<Vec<Asked>>>,
    refusing: Arc<AtomicBool>,
}

impl Log {
    /// Takes the calls out.
    pub(crate) fn take(&self) -> Vec<Asked> {
        std::mem::take(&mut self.asked.lock().expect("no test panics while it holds this"))
    }

    /// From now on, every call is an invalid argument.
    #[allow(dead_code, reason = "not all tests need it")]
    pub(crate) fn refuse(&self) {
        self.refusing.store(true, Ordering::Relaxed);
    }

    fn refuses(&self) -> bool {
        self.refusing.load(Ordering::Relaxed)
    }

    fn push(&self, asked: Asked) {
        self.asked.lock().expect("no test panics while it holds this").push(asked);
    }
}

/// Serves on `socket` until the runtime ends.
pub(crate) fn start(socket: &Path, log: Log) {
    let listener = UnixListener::bind(socket).expect("a socket in a folder of our own");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let log = log.clone();
            tokio::spawn(async move {
                let service = service_fn(move |request| handle(request, log.clone()));
                let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                // A client that goes away is no failure.
                let _ = connection.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
}

type Body = StreamBody<futures::Iter>;

/// A stream over frames that are there already.
mod futures {
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use super::{Bytes, Frame, Infallible};

    pub(crate) struct Iter(pub(crate) std::vec::IntoIter<Frame<Bytes>>);

    impl tokio_stream::Stream for Iter {
        type Item = Result<Frame<Bytes>, Infallible>;

        fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
            Poll::Ready(self.0.next().map(Ok))
        }
    }
}

async fn handle(request: Request<Incoming>, log: Log) -> Result<Response<Body>, Infallible> {
    let path = request.uri().path().to_owned();
    let security = request.headers().contains_key("workload.spiffe.io");
    let body = request.into_body().collect().await.map(|b| b.to_bytes()).unwrap_or_default();
    let message = body.get(5..).map(|m| body.slice_ref(m)).unwrap_or_default();
    log.push((path.clone(), message.clone()));
    let answer = if log.refuses() {
        Err((3, "refused".to_owned()))
    } else if path.starts_with("/SpiffeWorkloadAPI/") && !security {
        Err((3, "security header missing from request".to_owned()))
    } else {
        answers::answer(&path, &message)
    };
    Ok(response(answer))
}

fn response(answer: Result<Vec<u8>, (i32, String)>) -> Response<Body> {
    let mut frames = Vec::new();
    let (status, text) = match answer {
        Ok(message) => {
            let mut framed = BytesMut::with_capacity(message.len() + 5);
            framed.put_u8(0);
            framed.put_u32(u32::try_from(message.len()).expect("small answers"));
            framed.put_slice(&message);
            frames.push(Frame::data(framed.freeze()));
            (0, String::new())
        }
        Err(failure) => failure,
    };
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from(status));
    trailers.insert("grpc-message", HeaderValue::try_from(text).expect("texts that we wrote"));
    frames.push(Frame::trailers(trailers));
    let response = Response::builder().header("content-type", "application/grpc");
    response.body(StreamBody::new(futures::Iter(frames.into_iter()))).expect("headers that we wrote")
}
