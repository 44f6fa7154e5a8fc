//! What a connection is made of: a TCP or unix stream.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::net::sockopt;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

/// After how much silence the other end is asked whether it is there.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// How long what we sent may stay without an acknowledgement.
const UNACKNOWLEDGED_MAX_MS: u32 = 30_000;

/// A stream of whichever kind.
pub(crate) enum Wire {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// The same for either kind.
macro_rules! either {
    ($wire:expr, $stream:ident => $do:expr) => {
        match $wire.get_mut() {
            Wire::Tcp($stream) => $do,
            Wire::Unix($stream) => $do,
        }
    };
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        either!(self, stream => Pin::new(stream).poll_read(cx, buffer))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        either!(self, stream => Pin::new(stream).poll_write(cx, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => Pin::new(stream).poll_shutdown(cx))
    }
}

/// Dials an address.
pub(crate) async fn tcp(address: std::net::SocketAddr) -> io::Result<Wire> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    // What the system refuses is an improvement less, not a failure.
    let _ = sockopt::set_socket_keepalive(&stream, true);
    let _ = sockopt::set_tcp_keepidle(&stream, KEEPALIVE);
    let _ = sockopt::set_tcp_keepintvl(&stream, KEEPALIVE / 3);
    let _ = sockopt::set_tcp_user_timeout(&stream, UNACKNOWLEDGED_MAX_MS);
    Ok(Wire::Tcp(stream))
}

/// Opens a unix socket; a path that begins with `@` is an abstract one.
pub(crate) async fn unix(path: &str) -> io::Result<Wire> {
    match path.strip_prefix('@') {
        None => Ok(Wire::Unix(UnixStream::connect(Path::new(path)).await?)),
        Some(name) => {
            // Tokio takes a name that begins with a zero for an abstract one.
            Ok(Wire::Unix(UnixStream::connect(format!("\0{name}")).await?))
        }
    }
}
