//! Answers that are encoded already: HTTP/2 takes their octets as they are.
//!
//! tonic's encoder has every message written into a buffer of its own, which for a page of entries would be one more copy of
//! a hundred kilobytes.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::Frame;
use tokio::sync::mpsc;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Body as HttpBody;
use tonic::codegen::http::{HeaderMap, HeaderValue, Response, header};

/// What stands before a message of gRPC: whether it is compressed, and its length in four octets.
const HEAD_LEN: usize = 5;

/// A message with its head.
#[derive(Debug)]
pub(super) struct Encoded(Bytes);

impl Encoded {
    /// The message that `write` appends; `len` is how long it will be, or about that.
    pub(super) fn new(len: usize, write: impl FnOnce(&mut Vec<u8>)) -> Result<Self, Status> {
        let mut octets = Vec::with_capacity(HEAD_LEN + len);
        octets.extend([0; HEAD_LEN]);
        write(&mut octets);
        let len = u32::try_from(octets.len() - HEAD_LEN)
            .map_err(|_| Status::resource_exhausted("the answer is larger than 4 GiB"))?;
        octets[1..HEAD_LEN].copy_from_slice(&len.to_be_bytes());
        Ok(Self(octets.into()))
    }
}

/// Answers on their way to the connection. Whoever sends them ends the call by a status, or by dropping the sender.
pub(super) type Answers = mpsc::Receiver<Result<Encoded, Status>>;

/// The response that carries the answers.
pub(super) fn response(answers: Result<Answers, Status>) -> Response<Body> {
    match answers {
        Err(status) => status.into_http(),
        Ok(answers) => {
            let mut response = Response::new(Body::new(EncodedBody(Some(answers))));
            let grpc = HeaderValue::from_static("application/grpc");
            response.headers_mut().insert(header::CONTENT_TYPE, grpc);
            response
        }
    }
}

/// `None` once the status was sent.
struct EncodedBody(Option<Answers>);

impl HttpBody for EncodedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        let Some(answers) = &mut this.0 else { return Poll::Ready(None) };
        let status = match ready!(answers.poll_recv(cx)) {
            Some(Ok(message)) => return Poll::Ready(Some(Ok(Frame::data(message.0)))),
            Some(Err(status)) => status,
            None => Status::ok(""),
        };
        this.0 = None;
        let mut trailers = HeaderMap::with_capacity(3);
        Poll::Ready(Some(status.add_header(&mut trailers).map(|()| Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }
}
