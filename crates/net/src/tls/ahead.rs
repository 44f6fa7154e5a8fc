//! What a TLS connection reads from its socket, in fewer calls.
//!
//! rustls asks for 4 KiB at a time, so a list of IDs or a batch of signing requests would be a dozen system calls. Here a read
//! that was filled is followed by a large one, whose rest waits until it is asked for.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::io::poll_read_buf;

use crate::forward::write_to;

/// A large read, and so what is kept of a connection at most: two TLS records.
const AHEAD: usize = 32 << 10;

/// A stream that reads ahead while much comes; while little comes it keeps nothing.
#[derive(Debug)]
pub(super) struct Ahead<S> {
    stream: S,
    kept: BytesMut,
    /// The last read was filled, so there may be more.
    is_filled: bool,
}

impl<S> Ahead<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, kept: BytesMut::new(), is_filled: false }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Ahead<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let stream = Pin::new(&mut this.stream);
        if this.kept.is_empty() && !this.is_filled {
            ready!(stream.poll_read(cx, buf))?;
            this.is_filled = buf.remaining() == 0;
            return Poll::Ready(Ok(()));
        }
        if this.kept.is_empty() {
            // Dropped again if there is nothing yet.
            let mut kept = BytesMut::with_capacity(AHEAD);
            let read = ready!(poll_read_buf(stream, cx, &mut kept))?;
            this.is_filled = read >= AHEAD;
            this.kept = kept;
        }
        let taken = this.kept.len().min(buf.remaining());
        buf.put_slice(&this.kept[..taken]);
        this.kept.advance(taken);
        if this.kept.is_empty() {
            this.kept = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Ahead<S> {
    write_to!(stream);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// Counts reads of a stream that has all that it will say.
    struct Counted<'a> {
        rest: &'a [u8],
        reads: usize,
    }

    impl AsyncRead for Counted<'_> {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            self.reads += 1;
            let taken = self.rest.len().min(buf.remaining());
            buf.put_slice(&self.rest[..taken]);
            self.rest = &self.rest[taken..];
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn much_is_few_reads_and_little_is_not_kept() {
        let all = vec![7; 100_000];
        let mut ahead = Ahead::new(Counted { rest: &all, reads: 0 });
        let mut piece = [0; 4096];
        let mut read = 0;
        while read < all.len() {
            read += ahead.read(&mut piece).await.unwrap();
            assert!(ahead.kept.len() <= AHEAD);
        }
        assert_eq!((ahead.stream.reads, ahead.kept.capacity()), (4, 0));

        let mut ahead = Ahead::new(Counted { rest: &all[..4095], reads: 0 });
        assert_eq!(ahead.read(&mut piece).await.unwrap(), 4095);
        assert_eq!((ahead.kept.capacity(), ahead.is_filled), (0, false));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn everything_arrives_in_order(
            lengths in prop::collection::vec(1..100_000_usize, 0..6),
            asked in 1..20_000_usize,
            room in 1..70_000_usize,
        ) {
            let said: Vec<u8> = (1_u8..).zip(&lengths).flat_map(|(n, length)| vec![n; *length]).collect();
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let heard = runtime.block_on(async {
                let (mut theirs, ours) = tokio::io::duplex(room);
                let saying = async {
                    theirs.write_all(&said).await.unwrap();
                    theirs.shutdown().await.unwrap();
                };
                let hearing = async {
                    let (mut ahead, mut heard, mut piece) = (Ahead::new(ours), Vec::new(), vec![0; asked]);
                    loop {
                        let read = ahead.read(&mut piece).await.unwrap();
                        if read == 0 {
                            return heard;
                        }
                        heard.extend_from_slice(&piece[..read]);
                    }
                };
                tokio::join!(saying, hearing).1
            });
            prop_assert!(heard == said);
        }
    }
}
