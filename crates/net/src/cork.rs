//! What a connection says in one turn goes out in one system call.
//!
//! HTTP/2 flushes after the head of an answer, after each 16 KiB of it and after its trailers, and each of these pieces is a
//! TLS record or two, a system call and often a reader woken for nothing. Here a flush is kept until the runtime's
//! thread has no task left that could add to it, or has run sixty (when it looks at the network anyway); then all goes out at once
//! (docs/adr/0017). What fills a record is encrypted at once, without being copied first.

use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker, ready};

use futures_util::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What a record of TLS carries at most. Full ones are encrypted as they come, from where they are; the rest waits for more.
const RECORD: usize = 16 << 10;

/// Records that wait to be sent at most: about half a thousand entries, whose reader is mostly woken once. Linux sends them in two
/// pieces.
const RECORDS_MAX: usize = 8;

/// What small answers take, head and trailers included.
const HELD_MIN: usize = 2 << 10;

/// Pieces of which one write is put together.
const PIECES_MAX: usize = 8;

/// The room that a stream needs for them, for what is held beside them, and for what encryption adds to each.
const ROOM: usize = (RECORDS_MAX + 1) * (RECORD + 256);

/// A stream that can take octets without sending them.
pub(crate) trait Keep: AsyncWrite {
    /// Makes room for so many octets, encrypted.
    fn keep_at_most(&mut self, octets: usize);

    /// Takes octets, which go out with the next flush: fewer than all, or none, where it has no room for more.
    fn keep(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize>;
}

/// A stream whose flushes wait for the end of the turn. One task must both read and write it, as those of HTTP servers do, and
/// read whenever it is woken.
#[derive(Debug)]
pub(crate) struct Corked<S> {
    stream: S,
    /// What does not fill a record yet.
    held: Vec<u8>,
    /// How much the stream keeps.
    kept: usize,
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

impl<S: Keep + Unpin> Corked<S> {
    pub(crate) fn new(mut stream: S) -> Self {
        stream.keep_at_most(ROOM);
        let turn = Arc::<Turn>::default();
        let waker = turn.clone().into();
        Self { stream, held: Vec::new(), kept: 0, is_due: false, is_awaited: false, turn, waker }
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

    /// Holds what of these pieces comes after the first `skipped` octets, up to a record. Returns how much that is.
    fn hold(&mut self, pieces: &[IoSlice<'_>], mut skipped: usize) -> usize {
        let before = self.held.len();
        for piece in pieces {
            let rest = &piece[skipped.min(piece.len())..];
            skipped -= piece.len() - rest.len();
            let rest = &rest[..rest.len().min(RECORD - self.held.len())];
            if self.held.capacity() - self.held.len() < rest.len() {
                self.make_room(rest.len());
            }
            self.held.extend_from_slice(rest);
        }
        self.held.len() - before
    }

    /// Makes room for so many octets more, little at first. Growing in place would copy all that there is room for.
    fn make_room(&mut self, wanted: usize) {
        let room = if self.held.is_empty() && wanted <= HELD_MIN { HELD_MIN } else { RECORD };
        let mut larger = Vec::with_capacity(room);
        larger.extend_from_slice(&self.held);
        self.held = larger;
    }

    /// Hands what is held to the stream, and has it send all that it keeps.
    fn poll_release(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.held.is_empty() {
            match self.stream.keep(&[IoSlice::new(&self.held)])? {
                0 => ready!(Pin::new(&mut self.stream).poll_flush(cx))?,
                taken => drop(self.held.drain(..taken)),
            }
        }
        // Most connections are silent most of the time.
        self.held = Vec::new();
        self.poll_send(cx)
    }

    /// Has the stream send all that it keeps.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // What it does not send at once is sent when the task is woken to read.
        self.is_due = true;
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        self.kept = 0;
        self.is_due = false;
        Poll::Ready(Ok(()))
    }

    /// Hands full records of what is held and of these pieces to the stream. Returns how much of the pieces it took.
    fn keep_records(&mut self, pieces: &[IoSlice<'_>], wanted: usize) -> io::Result<usize> {
        let room = RECORDS_MAX - (self.kept / RECORD).min(RECORDS_MAX);
        let mut left = ((self.held.len() + wanted) / RECORD).min(room) * RECORD;
        let mut slices = [IoSlice::new(&[]); PIECES_MAX + 1];
        let all = std::iter::once(&*self.held).chain(pieces.iter().map(|piece| &**piece));
        for (slice, piece) in slices.iter_mut().zip(all) {
            *slice = IoSlice::new(&piece[..piece.len().min(left)]);
            left -= slice.len();
        }
        let taken = self.stream.keep(&slices[..=pieces.len()])?;
        self.kept += taken;
        let of_held = taken.min(self.held.len());
        self.held.drain(..of_held);
        Ok(taken - of_held)
    }
}

impl<S: AsyncRead + Keep + Unpin> AsyncRead for Corked<S> {
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

impl<S: Keep + Unpin> AsyncWrite for Corked<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let bufs = &bufs[..bufs.len().min(PIECES_MAX)];
        let wanted: usize = bufs.iter().map(|piece| piece.len()).sum();
        loop {
            let mut taken = 0;
            if this.held.len() + wanted >= RECORD {
                if this.kept >= RECORDS_MAX * RECORD {
                    ready!(this.poll_send(cx))?;
                }
                taken = this.keep_records(bufs, wanted)?;
            }
            taken += this.hold(bufs, taken);
            if taken > 0 || wanted == 0 {
                return Poll::Ready(Ok(taken));
            }
            // The stream keeps something of its own beside ours, and has no room.
            this.kept = RECORDS_MAX * RECORD;
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.kept > 0 || !this.held.is_empty() {
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

    /// Keeps what it is given until it is flushed, as TLS does.
    struct Kept<S> {
        stream: S,
        kept: Vec<u8>,
        room: usize,
    }

    impl<S> Kept<S> {
        fn new(stream: S, room: usize) -> Self {
            Self { stream, kept: Vec::new(), room }
        }
    }

    impl<S: AsyncWrite + Unpin> Keep for Kept<S> {
        fn keep_at_most(&mut self, octets: usize) {
            self.room = self.room.min(octets);
        }

        fn keep(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
            let before = self.kept.len();
            for piece in pieces {
                let room = self.room - self.kept.len();
                self.kept.extend_from_slice(&piece[..piece.len().min(room)]);
            }
            Ok(self.kept.len() - before)
        }
    }

    impl<S: AsyncRead + Unpin> AsyncRead for Kept<S> {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Pin::new(&mut self.stream).poll_read(cx, buf)
        }
    }

    impl<S: AsyncWrite + Unpin> AsyncWrite for Kept<S> {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
            unreachable!("all goes through `keep`")
        }

        fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            let this = self.get_mut();
            while !this.kept.is_empty() {
                let written = ready!(Pin::new(&mut this.stream).poll_write(cx, &this.kept))?;
                this.kept.drain(..written);
            }
            Pin::new(&mut this.stream).poll_flush(cx)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            ready!(self.as_mut().poll_flush(cx))?;
            Pin::new(&mut self.stream).poll_shutdown(cx)
        }
    }

    #[tokio::test]
    async fn what_is_written_in_one_turn_goes_out_at_once() {
        let silent = Silent::default();
        let written = silent.0.clone();
        let (pieces, mut queue) = tokio::sync::mpsc::channel::<&[u8]>(8);
        let (begun, mut answering) = tokio::sync::mpsc::channel::<()>(8);
        let mut corked = Corked::new(Kept::new(silent, usize::MAX));
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
    async fn converse(stream: Kept<tokio::io::DuplexStream>, pieces: Vec<Vec<u8>>) {
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
        fn everything_arrives_in_order(
            lengths in prop::collection::vec(0..100_000_usize, 0..8),
            room in 1..70_000_usize,
            kept in 1..200_000_usize,
        ) {
            let pieces: Vec<Vec<u8>> = (0_u8..).zip(&lengths).map(|(n, length)| vec![n; *length]).collect();
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let received = runtime.block_on(async {
                let (ours, mut theirs) = tokio::io::duplex(room);
                tokio::spawn(converse(Kept::new(ours, kept), pieces.clone()));
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
        let mut corked = Corked::new(Kept::new(silent.clone(), usize::MAX));
        for _ in 0..100 {
            corked.write_all(&[7; 9_001]).await.unwrap();
            assert!(corked.held.len() < RECORD && corked.stream.kept.len() <= RECORDS_MAX * RECORD);
        }
        let sizes: Vec<usize> = silent.0.lock().iter().map(Vec::len).collect();
        assert_eq!(sizes, [RECORDS_MAX * RECORD; 6], "full records only");
    }
}
