//! What a connection says in one turn goes out in one system call.
//!
//! HTTP/2 flushes after the head of an answer, after each 16 KiB of it and after its trailers, and each of these pieces is a
//! TLS record or two, a system call and often a reader woken for nothing. Here a flush is kept until the runtime's
//! thread has no task left that could add to it, or has run sixty (when it looks at the network anyway); then all goes out at once
//! (docs/adr/0017).

use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker, ready};

use bytes::{Buf, BytesMut};
use futures_util::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

/// What is held back at most: four TLS records, and what Linux sends as one piece.
const HELD_MAX: usize = 64 << 10;

/// What small answers take, head and trailers included.
const HELD_MIN: usize = 2 << 10;

/// A stream whose flushes wait for the end of the turn. One task must both read and write it, as those of HTTP servers do, and
/// read whenever it is woken.
#[derive(Debug)]
pub(crate) struct Corked<S> {
    stream: S,
    held: BytesMut,
    /// The turn is over, and not all has gone out yet.
    is_due: bool,
    /// The runtime has our waker.
    is_awaited: bool,
    turn: Arc<Turn>,
    waker: Waker,
}

/// The end of a turn, as a waker that the runtime calls.
#[derive(Debug, Default)]
struct Turn {
    ended: AtomicBool,
    task: AtomicWaker,
}

impl Wake for Turn {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.ended.store(true, Ordering::Release);
        self.task.wake();
    }
}

impl<S> Corked<S> {
    pub(crate) fn new(stream: S) -> Self {
        let turn = Arc::<Turn>::default();
        let waker = turn.clone().into();
        Self { stream, held: BytesMut::new(), is_due: false, is_awaited: false, turn, waker }
    }

    /// Asks to be woken when the turn is over.
    fn await_end(&mut self, cx: &Context<'_>) {
        if self.is_awaited {
            return;
        }
        self.is_awaited = true;
        self.turn.task.register(cx.waker());
        // The first poll hands the waker to the runtime, which calls it when it has nothing else to run; that is all we want.
        let _ = pin!(tokio::task::yield_now()).poll(&mut Context::from_waker(&self.waker));
    }

    fn hold(&mut self, piece: &[u8]) {
        if self.held.capacity() - self.held.len() < piece.len() {
            let room = if self.held.is_empty() && piece.len() <= HELD_MIN { HELD_MIN } else { HELD_MAX };
            self.held.reserve(room - self.held.len());
        }
        self.held.extend_from_slice(piece);
    }
}

impl<S: AsyncWrite + Unpin> Corked<S> {
    /// Writes and flushes what is held.
    fn poll_release(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.held.has_remaining() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.held))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.held.advance(written);
        }
        // Most connections are silent most of the time.
        self.held = BytesMut::new();
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        self.is_due = false;
        Poll::Ready(Ok(()))
    }

    fn poll_room(&mut self, cx: &mut Context<'_>, wanted: usize) -> Poll<io::Result<()>> {
        if self.held.len() + wanted <= HELD_MAX {
            return Poll::Ready(Ok(()));
        }
        // What the stream does not take at once is flushed when the task is woken to read.
        self.is_due = true;
        self.poll_release(cx)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Corked<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.turn.ended.swap(false, Ordering::Acquire) {
            this.is_awaited = false;
            this.is_due = true;
        }
        if this.is_due
            && let Poll::Ready(Err(error)) = this.poll_release(cx)
        {
            return Poll::Ready(Err(error));
        }
        Pin::new(&mut this.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Corked<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let wanted = bufs.iter().map(|piece| piece.len()).sum::<usize>().min(HELD_MAX);
        ready!(this.poll_room(cx, wanted))?;
        let mut left = wanted;
        for piece in bufs {
            let taken = &piece[..piece.len().min(left)];
            this.hold(taken);
            left -= taken.len();
        }
        Poll::Ready(Ok(wanted))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.held.is_empty() {
            this.await_end(cx);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_release(cx))?;
        Pin::new(&mut this.stream).poll_shutdown(cx)
    }
}

impl<S: Connected> Connected for Corked<S> {
    type ConnectInfo = S::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.stream.connect_info()
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use parking_lot::Mutex;
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// A stream that never says anything and remembers how it was written to.
    #[derive(Clone, Default)]
    struct Silent(Arc<Mutex<Vec<Vec<u8>>>>);

    impl AsyncRead for Silent {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    impl AsyncWrite for Silent {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            self.0.lock().push(buf.to_vec());
            Poll::Ready(Ok(buf.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn what_is_written_in_one_turn_goes_out_at_once() {
        let silent = Silent::default();
        let written = silent.0.clone();
        let (pieces, mut queue) = tokio::sync::mpsc::channel::<&[u8]>(8);
        let (begun, mut answering) = tokio::sync::mpsc::channel::<()>(8);
        let mut corked = Corked::new(silent);
        // A connection's task: each wake reads first, then writes and flushes what others handed in, who then go on.
        tokio::spawn(poll_fn(move |cx| {
            let _ = Pin::new(&mut corked).poll_read(cx, &mut ReadBuf::new(&mut [0; 8]));
            while let Poll::Ready(Some(piece)) = queue.poll_recv(cx) {
                let _ = Pin::new(&mut corked).poll_write(cx, piece);
                let _ = Pin::new(&mut corked).poll_flush(cx);
                let _ = begun.try_send(());
            }
            Poll::<()>::Pending
        }));
        let answer = pieces.clone();
        tokio::spawn(async move {
            answering.recv().await;
            answer.try_send(b"body ").unwrap();
            answering.recv().await;
            answer.try_send(b"trailers").unwrap();
        });
        pieces.try_send(b"head ").unwrap();
        let until = |count| {
            let written = written.clone();
            async move {
                while written.lock().len() < count {
                    tokio::task::yield_now().await;
                }
            }
        };
        until(1).await;
        assert_eq!(*written.lock(), [b"head body trailers".to_vec()]);
        pieces.try_send(b"again").unwrap();
        until(2).await;
        assert_eq!(written.lock()[1], b"again");
    }

    /// Writes all pieces with a flush after each, as the task of a connection does, and shuts down.
    async fn converse(stream: tokio::io::DuplexStream, pieces: Vec<Vec<u8>>) {
        let mut corked = Corked::new(stream);
        for piece in pieces {
            let mut rest = &*piece;
            while !rest.is_empty() {
                let taken = poll_fn(|cx| {
                    let _ = Pin::new(&mut corked).poll_read(cx, &mut ReadBuf::new(&mut [0; 8]));
                    let (first, second) = rest.split_at(rest.len() / 3);
                    let both = [IoSlice::new(first), IoSlice::new(second)];
                    Pin::new(&mut corked).poll_write_vectored(cx, &both)
                });
                rest = &rest[taken.await.unwrap()..];
            }
            corked.flush().await.unwrap();
        }
        corked.shutdown().await.unwrap();
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn everything_arrives_in_order(lengths in prop::collection::vec(0..100_000_usize, 0..8), room in 1..70_000_usize) {
            let pieces: Vec<Vec<u8>> = (0_u8..).zip(&lengths).map(|(n, length)| vec![n; *length]).collect();
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let received = runtime.block_on(async {
                let (ours, mut theirs) = tokio::io::duplex(room);
                tokio::spawn(converse(ours, pieces.clone()));
                let mut received = Vec::new();
                theirs.read_to_end(&mut received).await.unwrap();
                received
            });
            prop_assert_eq!(received, pieces.concat());
        }
    }

    #[tokio::test]
    async fn no_more_is_held_than_the_bound() {
        let silent = Silent::default();
        let mut corked = Corked::new(silent.clone());
        for _ in 0..100 {
            corked.write_all(&[7; 9_001]).await.unwrap();
            assert!(corked.held.len() <= HELD_MAX);
        }
        assert!(silent.0.lock().iter().map(Vec::len).sum::<usize>() > 900_000 - HELD_MAX);
    }
}
