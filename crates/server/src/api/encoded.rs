//! Answers that are encoded already: HTTP/2 takes their octets as they are.
//!
//! tonic's encoder has every message written into a buffer of its own, which for a page of entries would be one more copy of
//! a hundred kilobytes.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use bytes::Bytes;
use hyper::body::Frame;
use parking_lot::Mutex;
use tokio::task::unconstrained;
use tokio::time::{Instant, Sleep};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Body as HttpBody;
use tonic::codegen::http::{HeaderMap, HeaderValue, Response, header};

use super::route::BoxFuture;

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

/// Where a call puts its answers, one at a time. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Outbox(Arc<Mutex<Option<Encoded>>>);

impl Outbox {
    /// Waits until the connection took the answer before, and makes the next.
    pub(super) async fn send(&self, make: impl FnOnce() -> Result<Encoded, Status>) -> Result<(), Status> {
        // Who takes an answer asks for the next.
        poll_fn(|_| if self.0.lock().is_some() { Poll::Pending } else { Poll::Ready(()) }).await;
        let answer = make()?;
        *self.0.lock() = Some(answer);
        Ok(())
    }
}

/// A call that goes on while its answers are read: the connection asks it for the next one, so that it needs neither a task
/// of its own nor a queue. One whose answers nobody reads is not asked any more: it hears neither of its agent's ban nor that the
/// server stops, says nothing more, and is dropped at its time.
pub(super) struct Exchange {
    serving: BoxFuture<Result<(), Status>>,
    answers: Outbox,
    end: Instant,
    why: fn() -> Status,
}

impl Exchange {
    /// `serving` puts its answers into `answers`, and ends by itself or at `end`, for the reason `why`.
    pub(super) fn new(
        serving: impl Future<Output = Result<(), Status>> + Send + 'static,
        answers: Outbox,
        end: Instant,
        why: fn() -> Status,
    ) -> Self {
        Self { serving: Box::pin(serving), answers, end, why }
    }

    /// The response that carries the answers.
    pub(super) fn into_response(self) -> Response<Body> {
        let rest = Arc::new(Rest::new(self.serving));
        let alarm = Box::pin(tokio::time::sleep_until(self.end));
        let (waker, answers, why) = (rest.clone().into(), self.answers, self.why);
        let body = Answers { answers, rest, alarm, waker, is_set: false, why, ended: None, is_done: false };
        let mut response = Response::new(Body::new(body));
        let grpc = HeaderValue::from_static("application/grpc");
        response.headers_mut().insert(header::CONTENT_TYPE, grpc);
        response
    }
}

/// What is left of a call.
struct Rest(Mutex<Left>);

struct Left {
    /// None at the call's end, and after its time.
    serving: Option<BoxFuture<Result<(), Status>>>,
    /// Who waits for an answer.
    asking: Waker,
}

impl Rest {
    fn new(serving: BoxFuture<Result<(), Status>>) -> Self {
        Self(Mutex::new(Left { serving: Some(serving), asking: Waker::noop().clone() }))
    }

    fn poll(&self, cx: &mut Context<'_>, why: fn() -> Status) -> Poll<Status> {
        let mut left = self.0.lock();
        let Some(serving) = &mut left.serving else { return Poll::Ready(why()) };
        let Poll::Ready(ended) = serving.as_mut().poll(cx) else {
            left.asking.clone_from(cx.waker());
            return Poll::Pending;
        };
        left.serving = None;
        Poll::Ready(ended.err().unwrap_or_else(|| Status::ok("")))
    }
}

/// What the alarm does, since the connection may never ask again.
impl Wake for Rest {
    fn wake(self: Arc<Self>) {
        let mut left = self.0.lock();
        let serving = left.serving.take();
        left.asking.wake_by_ref();
        drop(left);
        drop(serving);
    }
}

/// The body of the response.
struct Answers {
    answers: Outbox,
    rest: Arc<Rest>,
    alarm: Pin<Box<Sleep>>,
    /// What the alarm calls.
    waker: Waker,
    /// The alarm has the waker.
    is_set: bool,
    why: fn() -> Status,
    /// How the call ended, until that is sent.
    ended: Option<Status>,
    is_done: bool,
}

impl Answers {
    fn set_alarm(&mut self) {
        if std::mem::replace(&mut self.is_set, true) {
            return;
        }
        // A task that has done much for now would have its waker called instead, which here means that the time is over.
        let alarm = pin!(unconstrained(self.alarm.as_mut()));
        if alarm.poll(&mut Context::from_waker(&self.waker)).is_ready() {
            self.waker.wake_by_ref();
        }
    }
}

impl HttpBody for Answers {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        if this.is_done {
            return Poll::Ready(None);
        }
        this.set_alarm();
        if this.ended.is_none()
            && let Poll::Ready(status) = this.rest.poll(cx, this.why)
        {
            this.ended = Some(status);
        }
        if let Some(answer) = this.answers.0.lock().take() {
            return Poll::Ready(Some(Ok(Frame::data(answer.0))));
        }
        let Some(status) = this.ended.take() else { return Poll::Pending };
        this.is_done = true;
        let mut trailers = HeaderMap::with_capacity(3);
        Poll::Ready(Some(status.add_header(&mut trailers).map(|()| Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.is_done
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use http_body_util::BodyExt as _;

    use super::*;

    const WHY: fn() -> Status = || Status::deadline_exceeded("too long");

    fn answer(octets: &'static [u8]) -> Result<Encoded, Status> {
        Encoded::new(octets.len(), |message| message.extend_from_slice(octets))
    }

    fn response(answers: Outbox, serving: impl Future<Output = Result<(), Status>> + Send + 'static) -> Body {
        let end = Instant::now() + Duration::from_secs(60);
        Exchange::new(serving, answers, end, WHY).into_response().into_body()
    }

    fn code(trailers: &HeaderMap) -> &str {
        trailers.get("grpc-status").unwrap().to_str().unwrap()
    }

    #[tokio::test]
    async fn answers_are_made_one_at_a_time_and_end_with_the_status() {
        let answers = Outbox::default();
        let made = Arc::new(Mutex::new(0));
        let (replies, counted) = (answers.clone(), made.clone());
        let mut body = response(answers, async move {
            for _ in 0..3 {
                replies.send(|| answer(b"abc")).await?;
                *counted.lock() += 1;
            }
            Err(Status::aborted("enough"))
        });
        for n in 1..=3 {
            let frame = body.frame().await.unwrap().unwrap();
            assert_eq!(frame.into_data().unwrap(), &b"\0\0\0\0\x03abc"[..]);
            assert_eq!(*made.lock(), n);
        }
        let trailers = body.frame().await.unwrap().unwrap().into_trailers().unwrap();
        assert_eq!(code(&trailers), "10");
        assert!(body.is_end_stream() && body.frame().await.is_none());
    }

    #[tokio::test]
    async fn many_answers_in_one_go_are_no_end() {
        const MANY: usize = 1_000;
        let answers = Outbox::default();
        let replies = answers.clone();
        let body = response(answers, async move {
            for _ in 0..MANY {
                replies.send(|| answer(b"abc")).await?;
            }
            Ok(())
        });
        // More than a task may do in one go.
        let used_up = poll_fn(|cx| {
            while tokio::task::coop::has_budget_remaining() {
                let _ = pin!(tokio::task::coop::consume_budget()).poll(cx);
            }
            Poll::Ready(())
        });
        used_up.await;
        let collected = body.collect().await.unwrap();
        assert_eq!(code(collected.trailers().unwrap()), "0");
        assert_eq!(collected.to_bytes().len(), MANY * 8);
    }

    /// Says that it was dropped.
    struct Kept(Arc<AtomicBool>);

    impl Drop for Kept {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_asks_for_is_dropped_at_its_time() {
        let answers = Outbox::default();
        let dropped = Arc::new(AtomicBool::new(false));
        let (replies, kept) = (answers.clone(), Kept(dropped.clone()));
        let mut body = response(answers, async move {
            let _kept = kept;
            replies.send(|| answer(b"abc")).await?;
            std::future::pending().await
        });
        body.frame().await.unwrap().unwrap();
        tokio::time::sleep(Duration::from_secs(59)).await;
        assert!(!dropped.load(Ordering::SeqCst));
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(dropped.load(Ordering::SeqCst), "without being asked");
        let trailers = body.frame().await.unwrap().unwrap().into_trailers().unwrap();
        assert_eq!(code(&trailers), "4");
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_is_told_that_the_time_is_over() {
        let mut body = response(Outbox::default(), std::future::pending());
        let trailers = body.frame().await.unwrap().unwrap().into_trailers().unwrap();
        assert_eq!(code(&trailers), "4");
    }
}
