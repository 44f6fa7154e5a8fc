//! The little of gRPC that a service with ready-made answers needs (the gRPC over HTTP/2 protocol).
//!
//! tonic encodes a message for each stream. Our answers are the same bytes for every workload with the same
//! selectors, so they are framed once and every stream sends a reference to them: nothing is copied, and a
//! stream that waits holds no buffer.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_util::{Stream, StreamExt};
use http::{HeaderMap, HeaderValue, Request, Response, header};
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::Frame;
use prost::Message;
use tonic::body::Body;
use tonic::{Code, Status};

/// Flag octet and length before each message.
const PREFIX: usize = 5;

/// The longest request. A token to validate is at most 64 KiB; audiences are short.
const REQUEST_MAX: usize = 256 * 1024;

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

/// Reads the only message of a request.
pub(super) async fn read<M: Message + Default>(body: Body) -> Result<M, Status> {
    let collected = Limited::new(body, REQUEST_MAX).collect().await;
    let mut bytes = collected
        .map_err(|error| match error.downcast::<http_body_util::LengthLimitError>() {
            Ok(_) => Status::resource_exhausted("grpc: received message larger than max"),
            Err(error) => Status::cancelled(error.to_string()),
        })?
        .to_bytes();
    if bytes.is_empty() {
        return Err(Status::internal("EOF"));
    }
    if bytes.len() < PREFIX {
        return Err(Status::internal("unexpected EOF"));
    }
    let compressed = bytes.get_u8() != 0;
    let len = bytes.get_u32() as usize;
    if compressed {
        return Err(Status::unimplemented("grpc: Decompressor is not installed for grpc-encoding"));
    }
    if bytes.len() != len {
        return Err(Status::internal("unexpected EOF"));
    }
    M::decode(bytes).map_err(|error| Status::internal(format!("grpc: error unmarshalling request: {error}")))
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
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
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

    async fn check(bytes: &'static [u8], expected: Result<usize, Code>) {
        let read = read::<JwtsvidRequest>(Body::new(Full::new(Bytes::from_static(bytes)))).await;
        assert_eq!(read.map(|r| r.audience.len()).map_err(|s| s.code()), expected, "{bytes:?}");
    }

    #[tokio::test]
    async fn a_request_is_one_whole_message() {
        check(b"\0\0\0\0\x03\x0a\x01a", Ok(1)).await;
        check(b"\0\0\0\0\0", Ok(0)).await;
        check(b"", Err(Code::Internal)).await;
        check(b"\0\0\0\0", Err(Code::Internal)).await;
        check(b"\0\0\0\0\x04\x0a\x01a", Err(Code::Internal)).await;
        check(b"\0\xff\xff\xff\xff\x0a\x01a", Err(Code::Internal)).await;
        check(b"\x01\0\0\0\0", Err(Code::Unimplemented)).await;
        check(b"\0\0\0\0\x02\xff\xff", Err(Code::Internal)).await;
        let long = Body::new(Full::new(Bytes::from(vec![0; REQUEST_MAX + 1])));
        assert_eq!(read::<JwtsvidRequest>(long).await.unwrap_err().code(), Code::ResourceExhausted);
    }

    #[test]
    fn a_frame_has_flag_and_length() {
        let framed =
            Framed::new(&JwtsvidRequest { audience: vec!["a".to_owned()], spiffe_id: String::new() });
        assert_eq!(&framed.0[..], b"\0\0\0\0\x03\x0a\x01a");
    }
}
