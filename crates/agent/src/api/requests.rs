//! Requests that come one after the other on a stream, bounded for each stream and each caller.

use std::collections::HashMap;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use http_body_util::BodyExt;
use parking_lot::Mutex;
use prost::Message;
use tonic::Status;
use tonic::body::Body;

/// Flag octet and length before each message.
const PREFIX: usize = 5;

/// The longest request of a stream. Envoy names all its extensions in the first one of a stream, about 100 KiB, and its
/// operator's metadata.
pub(super) const STREAMED_MAX: usize = 1 << 20;

/// The longest only request of a call. A token to validate is at most 64 KiB; audiences are short.
const ONLY_MAX: usize = 256 << 10;

/// For how long the only request of a call may come. Clients send it with the call itself; who takes longer holds a call open
/// and says nothing.
const ONLY_WITHIN: Duration = Duration::from_secs(30);

/// An unfinished request of this size, a frame, counts against nobody.
const UNCOUNTED: usize = 16 << 10;

/// What one process may have in unfinished requests: those of some hundred streams that open at once.
const CALLER_MAX: usize = 32 << 20;

/// Octets of unfinished requests, by the process that sends them.
#[derive(Debug, Default)]
pub(super) struct Unfinished(Mutex<HashMap<u32, usize>>);

/// The requests of a stream, in order.
pub(super) struct Requests<M> {
    body: Body,
    buffer: BytesMut,
    longest: usize,
    counted: Counted,
    of: PhantomData<fn() -> M>,
}

struct Counted {
    all: Arc<Unfinished>,
    pid: u32,
    octets: usize,
}

impl Counted {
    /// Counts so many octets instead of those before; false when that is too much.
    fn set(&mut self, octets: usize) -> bool {
        let octets = if octets > UNCOUNTED { octets } else { 0 };
        if octets == self.octets {
            return true;
        }
        let mut all = self.all.0.lock();
        let of_caller = all.entry(self.pid).or_default();
        *of_caller = (*of_caller + octets).saturating_sub(self.octets);
        self.octets = octets;
        let fits = *of_caller <= CALLER_MAX;
        if *of_caller == 0 {
            all.remove(&self.pid);
        }
        fits
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.set(0);
    }
}

impl<M: Message + Default> Requests<M> {
    /// Those that this process sends, each of `longest` octets at most.
    pub(super) fn new(body: Body, longest: usize, pid: u32, all: Arc<Unfinished>) -> Self {
        let counted = Counted { all, pid, octets: 0 };
        Self { body, buffer: BytesMut::new(), longest, counted, of: PhantomData }
    }

    /// The only one, of a call that has one.
    ///
    /// # Errors
    /// As [`Self::next`]; and where there is none or more than one, or it does not come in time.
    async fn only(mut self) -> Result<M, Status> {
        let message = self.next().await?.ok_or_else(|| Status::internal("EOF"))?;
        match self.next().await? {
            None => Ok(message),
            Some(_) => Err(Status::internal("more than one request")),
        }
    }

    /// The next one; none when the client sends no more. May be dropped at any await and called again.
    ///
    /// # Errors
    /// The status for a request that is too long or no message; `Cancelled` when the connection or the stream ended.
    pub(super) async fn next(&mut self) -> Result<Option<M>, Status> {
        loop {
            if let Some(message) = self.take()? {
                return Ok(Some(message));
            }
            let Some(frame) = self.body.frame().await else {
                return if self.buffer.is_empty() {
                    Ok(None)
                } else {
                    Err(Status::internal("unexpected EOF"))
                };
            };
            let Ok(data) = frame.map_err(|error| Status::cancelled(error.message()))?.into_data() else {
                continue;
            };
            self.buffer.extend_from_slice(&data);
            if !self.counted.set(self.buffer.len()) {
                return Err(Status::resource_exhausted("too much of unfinished requests"));
            }
        }
    }

    /// The first message in the buffer, if it is there as a whole.
    fn take(&mut self) -> Result<Option<M>, Status> {
        let Some((mut prefix, rest)) = self.buffer.split_at_checked(PREFIX) else { return Ok(None) };
        let compressed = prefix.get_u8() != 0;
        let len = prefix.get_u32() as usize;
        if compressed {
            return Err(Status::unimplemented("grpc: Decompressor is not installed for grpc-encoding"));
        }
        if len > self.longest {
            let text = format!("grpc: received message larger than max ({len} vs. {})", self.longest);
            return Err(Status::resource_exhausted(text));
        }
        if rest.len() < len {
            return Ok(None);
        }
        self.buffer.advance(PREFIX);
        let message = M::decode(self.buffer.split_to(len).freeze());
        if self.buffer.is_empty() {
            // A stream that waits holds no buffer.
            self.buffer = BytesMut::new();
        }
        self.counted.set(self.buffer.len());
        message
            .map(Some)
            .map_err(|error| Status::internal(format!("grpc: error unmarshalling request: {error}")))
    }
}

/// Reads the only request of a call.
///
/// # Errors
/// As [`Requests::only`].
pub(super) async fn read<M: Message + Default>(
    body: Body,
    pid: u32,
    all: &Arc<Unfinished>,
) -> Result<M, Status> {
    let requests = Requests::new(body, ONLY_MAX, pid, Arc::clone(all));
    match tokio::time::timeout(ONLY_WITHIN, requests.only()).await {
        Ok(read) => read,
        Err(_) => Err(Status::deadline_exceeded("the request did not come in time")),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures_util::stream;
    use http_body_util::StreamBody;
    use hyper::body::Frame;
    use spire_wire::workload::JwtsvidRequest;
    use tonic::Code;

    use super::*;

    fn requests(parts: &[&[u8]], all: &Arc<Unfinished>) -> Requests<JwtsvidRequest> {
        let frames: Vec<_> =
            parts.iter().map(|part| Ok::<_, Status>(Frame::data(Bytes::copy_from_slice(part)))).collect();
        Requests::new(Body::new(StreamBody::new(stream::iter(frames))), STREAMED_MAX, 7, Arc::clone(all))
    }

    #[tokio::test]
    async fn messages_come_whole_and_in_order_however_they_were_cut() {
        let wire = b"\0\0\0\0\x03\x0a\x01a\0\0\0\0\0\0\0\0\0\x03\x0a\x01b";
        for size in 1..=wire.len() {
            let mut requests = requests(&wire.chunks(size).collect::<Vec<_>>(), &Arc::default());
            let mut audiences = Vec::new();
            while let Some(request) = requests.next().await.unwrap() {
                audiences.push(request.audience.concat());
            }
            assert_eq!(audiences, ["a", "", "b"], "in pieces of {size}");
        }
    }

    #[tokio::test]
    async fn what_is_no_message_is_refused() {
        let long = u32::try_from(STREAMED_MAX + 1).unwrap().to_be_bytes();
        let long = [&[0][..], &long].concat();
        for (wire, code) in [
            (&b"\0\0\0\0"[..], Code::Internal),
            (b"\0\0\0\0\x04\x0a\x01a", Code::Internal),
            (b"\0\0\0\0\x02\xff\xff", Code::Internal),
            (b"\x01\0\0\0\0", Code::Unimplemented),
            (&long, Code::ResourceExhausted),
        ] {
            assert_eq!(requests(&[wire], &Arc::default()).next().await.unwrap_err().code(), code, "{wire:?}");
        }
    }

    #[tokio::test]
    async fn a_call_has_one_whole_request() {
        let check = async |parts: &[&'static [u8]], expected: Result<usize, Code>| {
            let frames: Vec<_> =
                parts.iter().map(|part| Ok::<_, Status>(Frame::data(Bytes::from_static(part)))).collect();
            let body = Body::new(StreamBody::new(stream::iter(frames)));
            let all = Arc::default();
            let read = read::<JwtsvidRequest>(body, 7, &all).await;
            assert_eq!(read.map(|r| r.audience.len()).map_err(|s| s.code()), expected, "{parts:?}");
            assert!(all.0.lock().is_empty());
        };
        check(&[b"\0\0\0\0\x03\x0a\x01a"], Ok(1)).await;
        check(&[b"\0\0\0\0\x03", b"\x0a\x01a"], Ok(1)).await;
        check(&[b"\0\0\0\0\0"], Ok(0)).await;
        check(&[], Err(Code::Internal)).await;
        check(&[b"\0\0\0\0"], Err(Code::Internal)).await;
        check(&[b"\0\0\0\0\x04\x0a\x01a"], Err(Code::Internal)).await;
        check(&[b"\0\0\0\0\0\0\0\0\0\0"], Err(Code::Internal)).await;
        check(&[b"\0\0\x04\0\0", &[0; ONLY_MAX]], Err(Code::Internal)).await;
        check(&[b"\0\0\x04\0\x01"], Err(Code::ResourceExhausted)).await;
        check(&[b"\x01\0\0\0\0"], Err(Code::Unimplemented)).await;
        check(&[b"\0\0\0\0\x02\xff\xff"], Err(Code::Internal)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_says_nothing_ends() {
        let silent = StreamBody::new(stream::pending::<Result<Frame<Bytes>, Status>>());
        let all = Arc::default();
        let ended = read::<JwtsvidRequest>(Body::new(silent), 7, &all).await.unwrap_err();
        assert_eq!(ended.code(), Code::DeadlineExceeded);
    }

    #[tokio::test]
    async fn a_caller_cannot_leave_more_than_its_share_unfinished() {
        let all = Arc::<Unfinished>::default();
        let unfinished = [&[0, 0, 0x10, 0, 0][..], &vec![0; STREAMED_MAX - 1]].concat();
        let mut held = Vec::new();
        let refused = loop {
            // The body ends early, which is the only other way that this fails.
            let mut requests = requests(&[&unfinished], &all);
            let error = requests.next().await.unwrap_err();
            if error.code() == Code::ResourceExhausted {
                break error;
            }
            held.push(requests);
        };
        assert_eq!(refused.message(), "too much of unfinished requests");
        assert_eq!(held.len(), CALLER_MAX / (unfinished.len()), "{}", held.len());
        drop(held);
        assert!(all.0.lock().is_empty());
    }
}
