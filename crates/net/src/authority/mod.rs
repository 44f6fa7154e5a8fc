//! Accepts the `:authority` that gRPC clients put on unix sockets and that our HTTP/2 library refuses.
//!
//! gRPC C-core (Python, C++, Ruby, PHP), grpc-java and grpcurl send the socket's path, escaped or not, or
//! nothing (`%2Ftmp%2Fagent.sock`, `/tmp/agent.sock`, an empty value). `h2` answers such a request with
//! RST_STREAM(PROTOCOL_ERROR), since the value is no URI authority, and has no switch for it. The authority
//! means nothing on a unix socket, so [`AuthorityGuard`] replaces it before `h2` sees it.
//!
//! It looks at the first header block of a connection. Where the authority is valid, as with grpc-go, Envoy
//! and tonic, it steps aside for good: from then on a read is one branch away from the socket. Otherwise
//! every header block of the connection is decoded and written again as literals (see
//! [`hpack`](crate::hpack)).
//!
//! That first block goes on without Huffman coding. `h2` keeps 4 KiB a connection for strings that it decodes, a page of
//! memory from the first one on; most connections have one call, and leave that page untouched.

mod frames;
#[cfg(test)]
mod tests;

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

use self::frames::{Progress, Rewriter};
use crate::forward::write_to;

/// What one read takes from the socket while frames are looked at.
const READ_SIZE: usize = 4096;

/// Capacity that the buffer of a rewritten connection keeps between reads.
const KEPT_CAPACITY: usize = 2 * READ_SIZE;

/// A server-side connection that replaces an `:authority` the HTTP/2 library would refuse by `localhost`.
#[derive(Debug)]
pub struct AuthorityGuard<S> {
    io: S,
    inspection: Option<Box<Inspection>>,
}

#[derive(Debug)]
struct Inspection {
    rewriter: Rewriter,
    /// Octets that are ready for the reader.
    out: BytesMut,
    /// The first request was fine: drain `out`, then step aside.
    stepping_aside: bool,
}

impl<S> AuthorityGuard<S> {
    /// Wraps an accepted connection from which nothing has been read yet.
    pub fn new(io: S) -> Self {
        let inspection =
            Inspection { rewriter: Rewriter::new(), out: BytesMut::new(), stepping_aside: false };
        Self { io, inspection: Some(Box::new(inspection)) }
    }

    /// The wrapped connection.
    pub fn io(&self) -> &S {
        &self.io
    }

    /// Unwraps a connection from which nothing has been read yet.
    pub(crate) fn into_io(self) -> S {
        self.io
    }
}

impl Inspection {
    /// Feeds what the socket gave.
    fn push(&mut self, input: &[u8]) -> io::Result<()> {
        match self.rewriter.push(input, &mut self.out) {
            Ok(Progress::More) => Ok(()),
            Ok(Progress::StepAside { consumed }) => {
                self.out.extend_from_slice(input.get(consumed..).unwrap_or_default());
                self.stepping_aside = true;
                Ok(())
            }
            Err(violation) => Err(io::Error::new(io::ErrorKind::InvalidData, violation)),
        }
    }

    /// Moves ready octets to the reader.
    fn drain(&mut self, buf: &mut ReadBuf<'_>) {
        let size = self.out.len().min(buf.remaining());
        buf.put_slice(self.out.get(..size).unwrap_or_default());
        self.out.advance(size);
        if self.out.is_empty() && self.out.capacity() > KEPT_CAPACITY {
            self.out = BytesMut::new();
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for AuthorityGuard<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let Some(inspection) = &mut this.inspection else {
            return Pin::new(&mut this.io).poll_read(cx, buf);
        };
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            if !inspection.out.is_empty() {
                inspection.drain(buf);
                if inspection.stepping_aside && inspection.out.is_empty() {
                    this.inspection = None;
                }
                return Poll::Ready(Ok(()));
            }
            let mut space = [MaybeUninit::uninit(); READ_SIZE];
            let mut input = ReadBuf::uninit(&mut space);
            ready!(Pin::new(&mut this.io).poll_read(cx, &mut input))?;
            if input.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            inspection.push(input.filled())?;
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for AuthorityGuard<S> {
    write_to!(io);
}

impl<S: Connected> Connected for AuthorityGuard<S> {
    type ConnectInfo = S::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.io.connect_info()
    }
}
