//! TLS on the stream of a connection, where it is wanted.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use spire_net::tls::TlsClient;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::tls::{ChannelBinding, TlsConnect, TlsStream};
use tokio_rustls::client;

use crate::remote::stream::Wire;

/// Goes on in TLS where the server is willing.
pub(super) struct Upgrade {
    pub(super) tls: TlsClient,
    /// The name that the certificate must be for.
    pub(super) host: String,
}

impl TlsConnect<Wire> for Upgrade {
    type Stream = Encrypted;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Encrypted>> + Send>>;

    fn connect(self, stream: Wire) -> Self::Future {
        Box::pin(async move { self.tls.handshake(&self.host, stream).await.map(Encrypted) })
    }
}

/// A stream in TLS.
pub(super) struct Encrypted(client::TlsStream<Wire>);

impl TlsStream for Encrypted {
    fn channel_binding(&self) -> ChannelBinding {
        // The reference's driver has none.
        ChannelBinding::none()
    }
}

impl AsyncRead for Encrypted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Encrypted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
