//! A connection whose peer must not take its time.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use super::HEAD_TIMEOUT;

/// Between two requests. Longer than the proxies' own (nginx: 60 s), so that the proxy and not we end a connection that it
/// may be about to use. The reference waits for ever.
const IDLE_TIMEOUT: Duration = Duration::from_secs(75);
/// For an answer to be taken, a few kilobytes.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Nothing of a request came yet.
    Idle,
    /// A request is coming.
    Head,
    /// An answer does not go out.
    Stalled,
}

/// Reads and writes until the peer is late: ten seconds for a request's head (the reference's ReadHeaderTimeout), then
/// bounds that the reference lacks. The timer is set anew only while there is nothing to do, not at each request.
#[derive(Debug)]
pub(super) struct Paced<S> {
    stream: S,
    phase: Phase,
    deadline: Instant,
    sleep: Pin<Box<Sleep>>,
}

impl<S> Paced<S> {
    pub(super) fn new(stream: S) -> Self {
        let deadline = Instant::now() + HEAD_TIMEOUT;
        Self { stream, phase: Phase::Head, deadline, sleep: Box::pin(sleep_until(deadline)) }
    }

    fn enter(&mut self, phase: Phase) {
        if self.phase == phase {
            return;
        }
        self.phase = phase;
        self.deadline = Instant::now()
            + match phase {
                Phase::Idle => IDLE_TIMEOUT,
                Phase::Head => HEAD_TIMEOUT,
                Phase::Stalled => WRITE_TIMEOUT,
            };
    }

    /// Asked while there is nothing to do.
    fn poll_late<T>(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if self.deadline < self.sleep.deadline() {
            self.sleep.as_mut().reset(self.deadline);
        }
        while self.sleep.as_mut().poll(cx).is_ready() {
            if Instant::now() >= self.deadline {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            // It was set for an earlier request.
            let deadline = self.deadline;
            self.sleep.as_mut().reset(deadline);
        }
        Poll::Pending
    }

    fn sent<T>(&mut self, cx: &mut Context<'_>, sent: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if sent.is_ready() {
            self.enter(Phase::Idle);
            return sent;
        }
        self.enter(Phase::Stalled);
        self.poll_late(cx)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Paced<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if read.is_ready() {
            self.enter(Phase::Head);
            return read;
        }
        self.poll_late(cx)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let sent = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.sent(cx, sent)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let sent = Pin::new(&mut self.stream).poll_write_vectored(cx, buffers);
        self.sent(cx, sent)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.stream).poll_flush(cx) {
            Poll::Ready(flushed) => Poll::Ready(flushed),
            Poll::Pending => self.sent(cx, Poll::Pending),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.stream).poll_shutdown(cx) {
            Poll::Ready(shut) => Poll::Ready(shut),
            Poll::Pending => self.sent(cx, Poll::Pending),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    async fn lasts<T>(work: impl Future<Output = io::Result<T>>) -> Duration {
        let start = Instant::now();
        assert_eq!(work.await.err().map(|error| error.kind()), Some(io::ErrorKind::TimedOut));
        start.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_has_ten_seconds_however_it_comes() {
        let (_client, server) = duplex(64);
        assert_eq!(lasts(Paced::new(server).read_u8()).await, HEAD_TIMEOUT);

        let (mut client, server) = duplex(64);
        let dripping = async {
            for _ in 0..100 {
                if client.write_all(b"x").await.is_err() {
                    break;
                }
                tokio::time::sleep(Duration::from_secs(3)).await;
            }
        };
        let mut paced = Paced::new(server);
        let all = async {
            while paced.read_u8().await? == b'x' {}
            Ok(())
        };
        let reading = lasts(all);
        tokio::select! {
            () = dripping => panic!("a drop at a time goes on for ever"),
            lasted = reading => assert_eq!(lasted, HEAD_TIMEOUT),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn between_requests_there_is_more_time_and_the_next_head_has_ten_seconds_again() {
        let (mut client, server) = duplex(64);
        let mut paced = Paced::new(server);
        client.write_all(b"ab").await.unwrap();
        paced.read_exact(&mut [0; 2]).await.unwrap();
        paced.write_all(b"answer").await.unwrap();
        assert_eq!(lasts(paced.read_u8()).await, IDLE_TIMEOUT);

        let (mut client, server) = duplex(64);
        let mut paced = Paced::new(server);
        paced.write_all(b"answer").await.unwrap();
        tokio::time::advance(IDLE_TIMEOUT / 2).await;
        client.write_all(b"a").await.unwrap();
        paced.read_u8().await.unwrap();
        assert_eq!(lasts(paced.read_u8()).await, HEAD_TIMEOUT);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_is_not_read_ends_the_connection() {
        let (_client, server) = duplex(4);
        assert_eq!(lasts(Paced::new(server).write_all(b"more than fits")).await, WRITE_TIMEOUT);
    }
}
