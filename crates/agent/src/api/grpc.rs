//! The little of gRPC that a service with ready-made answers needs (the gRPC over HTTP/2 protocol).
//!
//! tonic encodes a message for each stream. Our answers are the same bytes for every workload with the same
//! selectors, so they are framed once and every stream sends a reference to them: nothing is copied, and a
//! stream that waits holds no buffer.

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::{Stream, StreamExt};
use http::{HeaderMap, HeaderValue, Request, Response, header};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use prost::Message;
use tonic::body::Body;
use tonic::{Code, Status};

/// Flag octet and length before each message.
const PREFIX: usize = 5;

/// A message with its frame, to be sent by any number of streams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Framed(Bytes);

impl Framed {
    /// Encodes a message.
    pub(crate) fn new(message: &impl Message) -> Self {
        let len = message.encoded_len();
        let mut buffer = BytesMut::with_capacity(PREFIX + len);
        buffer.put_u8(0);
        buffer.put_u32(u32::try_from(len).unwrap_or(u32::MAX));
        // The buffer has room for the whole message, the only way to fail.
        let _ = message.encode(&mut buffer);
        Self(buffer.freeze())
    }

    /// A message that was encoded in parts, to be sent one after the other: parts that others share are not copied.
    ///
    /// # Errors
    /// `ResourceExhausted` for a message that no frame can hold.
    pub(super) fn parts(message: Vec<Bytes>) -> Result<Vec<Self>, Status> {
        let too_large = |_| Status::resource_exhausted("grpc: message too large");
        let len = u32::try_from(message.iter().map(Bytes::len).sum::<usize>()).map_err(too_large)?;
        let mut prefix = BytesMut::with_capacity(PREFIX);
        prefix.put_u8(0);
        prefix.put_u32(len);
        let filled = message.into_iter().filter(|part| !part.is_empty());
        Ok(std::iter::once(prefix.freeze()).chain(filled).map(Self).collect())
    }
}

/// Whether the request is a gRPC call at all.
pub(super) fn is_grpc<B>(request: &Request<B>) -> bool {
    let kind = request.headers().get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    kind.is_some_and(|kind| kind.starts_with(b"application/grpc"))
}

/// The answer of a unary call.
pub(crate) fn unary(answer: Result<Framed, Status>) -> Response<Body> {
    match answer {
        Ok(message) => {
            let body = Full::new(message.0).with_trailers(async { Some(Ok(trailers(&Status::ok("")))) });
            respond(Body::new(body))
        }
        Err(status) => status.into_http(),
    }
}

/// The answer of a streaming call: messages until the stream ends with a status.
pub(crate) fn streaming<S>(messages: S) -> Response<Body>
where
    S: Stream<Item = Result<Framed, Status>> + Send + 'static,
{
    let frames = messages.map(|item| {
        Ok::<_, Status>(match item {
            Ok(message) => Frame::data(message.0),
            Err(status) => Frame::trailers(trailers(&status)),
        })
    });
    respond(Body::new(StreamBody::new(frames)))
}

fn respond(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    let mut kind = HeaderValue::from_static("application/grpc");
    // Not for the header table, which would be made for this line alone: most connections have one call.
    kind.set_sensitive(true);
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

fn trailers(status: &Status) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    if status.add_header(&mut trailers).is_err() {
        trailers.insert(Status::GRPC_STATUS, HeaderValue::from(Code::Internal as i32));
    }
    trailers
}

#[cfg(test)]
mod tests {
    use spire_wire::workload::JwtsvidRequest;

    use super::*;

    #[test]
    fn a_frame_has_flag_and_length() {
        let framed =
            Framed::new(&JwtsvidRequest { audience: vec!["a".to_owned()], spiffe_id: String::new() });
        assert_eq!(&framed.0[..], b"\0\0\0\0\x03\x0a\x01a");
    }
}
