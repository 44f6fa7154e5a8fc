//! The accept loop of a unix socket, as the stream that a tonic server takes.

use std::io;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{Instant, Sleep};
use tonic::transport::server::Connected;

use super::limits::{Gate, Permit};
use super::peer::PeerTable;
use super::{ConnectionLimits, PeerInfo, PeerTracking, SocketFile};
use crate::authority::AuthorityGuard;
use crate::forward::write_to;
use crate::preface::PrefaceDeadline;
use spire_compat::errno::errno_text;

/// First and longest pause after accept fails, typically for want of file descriptors; grpc-go's numbers
/// (`server.go`, `Serve`).
const PAUSE_MIN: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Refusals are logged at most this often, so that who is refused cannot fill the log as well.
const REFUSAL_LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Accepts handled before other tasks get their turn.
const ACCEPTS_PER_POLL: usize = 64;

/// The connections of one unix socket. Never ends and never yields an error: a peer that cannot be
/// identified or is beyond the limits is disconnected, and accept is tried again after a pause. Dropping it
/// removes the socket.
#[derive(Debug)]
pub struct UnixIncoming {
    listener: UnixListener,
    file: SocketFile,
    peers: PeerTable,
    gate: Arc<Gate>,
    pause: Duration,
    sleep: Option<Pin<Box<Sleep>>>,
    refusals: Refusals,
}

#[derive(Debug, Default)]
struct Refusals {
    logged: Option<Instant>,
    unlogged: u64,
}

impl UnixIncoming {
    pub(super) fn new(
        listener: UnixListener,
        file: SocketFile,
        tracking: PeerTracking,
        limits: ConnectionLimits,
    ) -> Self {
        Self {
            listener,
            file,
            peers: PeerTable::new(tracking),
            gate: Gate::new(limits),
            pause: PAUSE_MIN,
            sleep: None,
            refusals: Refusals::default(),
        }
    }

    /// Path of the socket.
    pub fn path(&self) -> &std::path::Path {
        &self.file.path
    }

    fn admit(&mut self, stream: UnixStream) -> Option<UnixConnection> {
        let peer = match self.peers.identify(stream.as_fd()) {
            Ok(peer) => peer,
            Err(error) => {
                self.refusals.log(&error, None);
                return None;
            }
        };
        match self.gate.enter(peer.uid()) {
            Ok(permit) => {
                let preface = PrefaceDeadline::start();
                Some(UnixConnection { io: AuthorityGuard::new(stream), peer, preface, _permit: permit })
            }
            Err(full) => {
                self.refusals.log(&full, Some(&peer));
                None
            }
        }
    }
}

impl Refusals {
    fn log(&mut self, error: &dyn std::error::Error, peer: Option<&PeerInfo>) {
        let now = Instant::now();
        if self.logged.is_some_and(|logged| now.duration_since(logged) < REFUSAL_LOG_INTERVAL) {
            self.unlogged += 1;
            return;
        }
        tracing::warn!(
            error = %error,
            caller_uid = peer.map(PeerInfo::uid),
            pid = peer.map(PeerInfo::pid),
            others = (self.unlogged > 0).then_some(self.unlogged),
            "Connection failed during accept"
        );
        *self = Self { logged: Some(now), unlogged: 0 };
    }
}

impl Stream for UnixIncoming {
    type Item = io::Result<UnixConnection>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        for _ in 0..ACCEPTS_PER_POLL {
            if let Some(sleep) = &mut this.sleep {
                ready!(sleep.as_mut().poll(cx));
                this.sleep = None;
            }
            match ready!(this.listener.poll_accept(cx)) {
                Ok((stream, _)) => {
                    this.pause = PAUSE_MIN;
                    if let Some(connection) = this.admit(stream) {
                        return Poll::Ready(Some(Ok(connection)));
                    }
                }
                Err(error) => {
                    tracing::warn!(error = errno_text(&error), retry_interval = ?this.pause, "Accept failed");
                    this.sleep = Some(Box::pin(tokio::time::sleep(this.pause)));
                    this.pause = (this.pause * 2).min(PAUSE_MAX);
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

/// An accepted connection of a known peer.
#[derive(Debug)]
pub struct UnixConnection {
    io: AuthorityGuard<UnixStream>,
    peer: PeerInfo,
    preface: PrefaceDeadline,
    _permit: Permit,
}

impl UnixConnection {
    /// Who is at the other end.
    pub fn peer(&self) -> &PeerInfo {
        &self.peer
    }

    /// The socket of a connection from which nothing has been read, for TLS.
    pub(crate) fn into_socket(self) -> (UnixStream, PeerInfo, Permit) {
        (self.io.into_io(), self.peer, self._permit)
    }
}

impl Connected for UnixConnection {
    type ConnectInfo = PeerInfo;

    fn connect_info(&self) -> PeerInfo {
        self.peer.clone()
    }
}

impl AsyncRead for UnixConnection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let read = Pin::new(&mut this.io).poll_read(cx, buf);
        this.preface.check(cx, read, buf.filled().len() - before)
    }
}

impl AsyncWrite for UnixConnection {
    write_to!(io);
}
