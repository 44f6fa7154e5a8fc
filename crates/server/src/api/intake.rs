//! What a request may send, and how long it may take to.
//!
//! Stands between the connection and the decoder. The decoder reserves what a message's head announces, so it gets a
//! message only once all of it is here; and the texts of refusals are grpc-go's.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hyper::body::Frame;
use spire_net::grpc::MESSAGE_SIZE_MAX;
use tokio::time::Sleep;
use tonic::body::Body;
use tonic::codegen::Body as HttpBody;
use tonic::{Code, Status};

use super::caller::Peer;

/// Size of a message's head: whether it is compressed, and its length.
const HEAD_SIZE: usize = 5;

/// Largest message of one request from a caller without an SVID. What such a caller may ask for has no content.
const ANONYMOUS_MESSAGE_MAX: usize = 64 << 10;

/// Largest message of a stream from a caller without an SVID: an attestation payload and CSR.
const ANONYMOUS_STREAM_MESSAGE_MAX: usize = 1 << 20;

/// What a caller has to send its one request. Streams have deadlines of their own.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Parts of messages up to this size are not counted: 500 calls of one connection hold 8 MiB.
const UNCOUNTED: usize = 16 << 10;

/// Messages of all calls that are here in part, beyond what is not counted: 64 of the largest. Tests fill it.
const UNFINISHED_MAX: usize = if cfg!(test) { 8 << 20 } else { 256 << 20 };

/// What unfinished messages hold, of all calls.
#[derive(Debug, Default)]
pub(super) struct Unfinished(AtomicUsize);

#[cfg(test)]
impl Unfinished {
    pub(super) fn size(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// The body of a request.
pub(super) struct Intake {
    from: Body,
    size_max: usize,
    unfinished: Arc<Unfinished>,
    /// The message that is not all here yet, its head included.
    held: BytesMut,
    /// Of `held`, what is counted in `unfinished`.
    counted: usize,
    /// Whole messages for the decoder.
    whole: Bytes,
    /// None for streams, whose callers may be silent.
    timeout: Option<Duration>,
    sleep: Option<Pin<Box<Sleep>>>,
    /// The sender is done.
    ended: bool,
}

impl Intake {
    /// Of a method with one request.
    pub(super) fn of_one(from: Body, peer: &Peer, unfinished: &Arc<Unfinished>) -> Self {
        let size_max = if peer.is_anonymous() { ANONYMOUS_MESSAGE_MAX } else { MESSAGE_SIZE_MAX };
        Self::new(from, size_max, Some(REQUEST_TIMEOUT), unfinished)
    }

    /// Of a method with a stream of requests.
    pub(super) fn of_stream(from: Body, peer: &Peer, unfinished: &Arc<Unfinished>) -> Self {
        let size_max = if peer.is_anonymous() { ANONYMOUS_STREAM_MESSAGE_MAX } else { MESSAGE_SIZE_MAX };
        Self::new(from, size_max, None, unfinished)
    }

    fn new(from: Body, size_max: usize, timeout: Option<Duration>, unfinished: &Arc<Unfinished>) -> Self {
        Self {
            from,
            size_max,
            unfinished: unfinished.clone(),
            held: BytesMut::new(),
            counted: 0,
            whole: Bytes::new(),
            timeout,
            sleep: None,
            ended: false,
        }
    }

    /// The first message without its head, which stays to be read; empty where there is none.
    pub(super) async fn first_message(&mut self) -> Result<Bytes, Status> {
        std::future::poll_fn(|cx| {
            while self.whole.is_empty() && !self.ended {
                match ready!(self.poll_more(cx)) {
                    Some(Ok(_)) => {}
                    Some(Err(status)) => return Poll::Ready(Err(status)),
                    None => self.ended = true,
                }
            }
            let Some(length) = message_length(&self.whole) else { return Poll::Ready(Ok(Bytes::new())) };
            if self.whole.first() != Some(&0) {
                let text = "grpc: Decompressor is not installed";
                return Poll::Ready(Err(Status::unimplemented(text)));
            }
            Poll::Ready(Ok(self.whole.slice(HEAD_SIZE..HEAD_SIZE + length)))
        })
        .await
    }

    /// Takes the next piece from the connection. A frame that is not of data is given back.
    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Option<Frame<Bytes>>, Status>>> {
        match Pin::new(&mut self.from).poll_frame(cx) {
            Poll::Pending => {
                let Some(timeout) = self.timeout else { return Poll::Pending };
                let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
                ready!(sleep.as_mut().poll(cx));
                Poll::Ready(Some(Err(Status::deadline_exceeded("the request was not sent in time"))))
            }
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Ready(Some(Err(status))) => Poll::Ready(Some(Err(status))),
            Poll::Ready(Some(Ok(frame))) => Poll::Ready(Some(match frame.into_data() {
                Ok(data) => self.take(data).map(|()| None),
                Err(other) => Ok(Some(other)),
            })),
        }
    }

    fn take(&mut self, data: Bytes) -> Result<(), Status> {
        if self.held.is_empty() && self.whole.is_empty() && self.complete(&data)? == data.len() {
            // The usual request comes in one piece and is not copied.
            self.whole = data;
            return Ok(());
        }
        self.held.extend_from_slice(&data);
        let complete = self.complete(&self.held)?;
        if complete > 0 {
            let whole = self.held.split_to(complete).freeze();
            self.whole = if self.whole.is_empty() { whole } else { [&*self.whole, &*whole].concat().into() };
        }
        self.count(self.held.len().saturating_sub(UNCOUNTED))
    }

    /// How many octets of `data` are whole messages.
    fn complete(&self, data: &[u8]) -> Result<usize, Status> {
        let mut complete = 0;
        while let Some(rest) = data.get(complete..)
            && let Some(length) = message_length(rest)
        {
            if length > self.size_max {
                let text = format!("grpc: received message larger than max ({length} vs. {})", self.size_max);
                return Err(Status::new(Code::ResourceExhausted, text));
            }
            if rest.len() < HEAD_SIZE + length {
                break;
            }
            complete += HEAD_SIZE + length;
        }
        Ok(complete)
    }

    fn count(&mut self, size: usize) -> Result<(), Status> {
        let all = &self.unfinished.0;
        if size <= self.counted {
            all.fetch_sub(self.counted - size, Ordering::Relaxed);
        } else if all.fetch_add(size - self.counted, Ordering::Relaxed) + size - self.counted > UNFINISHED_MAX
        {
            self.counted = size; // given back when we are dropped
            return Err(Status::resource_exhausted("the server is receiving too much at once"));
        }
        self.counted = size;
        Ok(())
    }
}

/// The length that a message's head says, if the head is all here.
fn message_length(data: &[u8]) -> Option<usize> {
    let &[_, a, b, c, d] = data.first_chunk::<HEAD_SIZE>()?;
    usize::try_from(u32::from_be_bytes([a, b, c, d])).ok()
}

impl Drop for Intake {
    fn drop(&mut self) {
        self.unfinished.0.fetch_sub(self.counted, Ordering::Relaxed);
    }
}

impl HttpBody for Intake {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        loop {
            if !this.whole.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut this.whole)))));
            }
            if this.ended {
                let cut = !std::mem::take(&mut this.held).is_empty();
                return Poll::Ready(cut.then(|| Err(Status::internal("unexpected EOF"))));
            }
            match ready!(this.poll_more(cx)) {
                Some(Ok(None)) => {}
                Some(Ok(Some(other))) => return Poll::Ready(Some(Ok(other))),
                Some(Err(status)) => return Poll::Ready(Some(Err(status))),
                None => this.ended = true,
            }
        }
    }
}
