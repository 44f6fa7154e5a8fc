//! A deadline for the first words of an HTTP/2 client.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

/// Size of what an HTTP/2 client sends first (RFC 9113 section 3.4).
const PREFACE_SIZE: usize = 24;

/// What a client has for it. grpc-go gives 120 s for handshake and preface together, which lets silent clients hold
/// their places for as long.
const PREFACE_TIMEOUT: Duration = Duration::from_secs(20);

/// Ends a connection whose client does not begin to speak. Costs nothing once it has spoken.
#[derive(Debug)]
pub(crate) struct PrefaceDeadline(Option<Box<Waiting>>);

#[derive(Debug)]
struct Waiting {
    deadline: Instant,
    /// Made when there first is something to wait for.
    sleep: Option<Pin<Box<Sleep>>>,
    left: usize,
}

impl PrefaceDeadline {
    /// For a connection that was just accepted.
    pub(crate) fn start() -> Self {
        let deadline = Instant::now() + PREFACE_TIMEOUT;
        Self(Some(Box::new(Waiting { deadline, sleep: None, left: PREFACE_SIZE })))
    }

    /// For a connection that may say something else.
    pub(crate) fn none() -> Self {
        Self(None)
    }

    /// Looks at the outcome of a read that gave `count` octets if it is ready.
    pub(crate) fn check(
        &mut self,
        cx: &mut Context<'_>,
        read: Poll<io::Result<()>>,
        count: usize,
    ) -> Poll<io::Result<()>> {
        let Some(waiting) = &mut self.0 else { return read };
        if read.is_ready() {
            waiting.left = waiting.left.saturating_sub(count);
            if waiting.left == 0 {
                self.0 = None;
            }
            return read;
        }
        let deadline = waiting.deadline;
        let sleep = waiting.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        match sleep.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}
