//! Sockets as a listener accepts them, or as they are dealt to the threads that serve them.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::net::sockopt;
use spire_compat::errno::errno_text;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::Sleep;

use crate::listen::canonical;

/// First and longest pause after accept fails; grpc-go's numbers.
const PAUSE_MIN: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Sockets that wait for one player to take them. More wait in the system's queue.
const HAND_MAX: usize = 64;

/// Idle time and interval of TCP keepalive, Go's default for accepted connections.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// A socket that belongs to no runtime, and its peer.
type Dealt = (std::net::TcpStream, SocketAddr);

/// Where sockets come from. Never ends.
#[derive(Debug)]
pub(super) enum Sockets {
    Accepted(Accepting),
    Dealt(mpsc::Receiver<Dealt>),
}

impl Sockets {
    pub(super) fn accepted_by(listener: TcpListener) -> Self {
        if let Err(error) = set_options(&listener) {
            tracing::warn!(error = errno_text(&error), "Connections have no keepalive");
        }
        Self::Accepted(Accepting { listener, pause: PAUSE_MIN, sleep: None })
    }

    pub(super) fn local_addr(&self) -> io::Result<SocketAddr> {
        match self {
            Self::Accepted(accepting) => accepting.listener.local_addr(),
            Self::Dealt(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    pub(super) fn deal(self, players: usize) -> (Dealer, Vec<Self>) {
        let (hands, players) = (0..players.max(1)).map(|_| mpsc::channel(HAND_MAX)).unzip();
        let dealer = Dealer { sockets: self, hands, next: 0 };
        (dealer, Vec::into_iter(players).map(Self::Dealt).collect())
    }

    /// The next socket, on the runtime that polls.
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<(TcpStream, SocketAddr)> {
        match self {
            Self::Accepted(accepting) => accepting.poll_accept(cx),
            Self::Dealt(hand) => loop {
                // Without a dealer nothing comes any more; whoever serves is told to stop by others.
                let Some((socket, remote)) = ready!(hand.poll_recv(cx)) else { return Poll::Pending };
                match TcpStream::from_std(socket) {
                    Ok(socket) => return Poll::Ready((socket, remote)),
                    Err(error) => tracing::warn!(error = errno_text(&error), "Could not take a connection"),
                }
            },
        }
    }
}

/// What Go sets on every TCP connection. Those that a listener accepts begin with what the listener has.
fn set_options(listener: &TcpListener) -> io::Result<()> {
    sockopt::set_tcp_nodelay(listener, true)?;
    sockopt::set_socket_keepalive(listener, true)?;
    sockopt::set_tcp_keepidle(listener, KEEPALIVE)?;
    sockopt::set_tcp_keepintvl(listener, KEEPALIVE)?;
    Ok(())
}

/// A listener that outlives failures of accept, such as the lack of files.
#[derive(Debug)]
pub(super) struct Accepting {
    listener: TcpListener,
    pause: Duration,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Accepting {
    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<(TcpStream, SocketAddr)> {
        loop {
            if let Some(sleep) = &mut self.sleep {
                ready!(sleep.as_mut().poll(cx));
                self.sleep = None;
            }
            match ready!(self.listener.poll_accept(cx)) {
                Ok((socket, remote)) => {
                    self.pause = PAUSE_MIN;
                    return Poll::Ready((socket, canonical(remote)));
                }
                Err(error) => {
                    tracing::warn!(error = errno_text(&error), retry_interval = ?self.pause, "Accept failed");
                    self.sleep = Some(Box::pin(tokio::time::sleep(self.pause)));
                    self.pause = (self.pause * 2).min(PAUSE_MAX);
                }
            }
        }
    }
}

/// Deals sockets to several players in turn. One that is busy is passed over.
#[derive(Debug)]
pub struct Dealer {
    sockets: Sockets,
    hands: Vec<mpsc::Sender<Dealt>>,
    next: usize,
}

impl Dealer {
    /// Deals until it is dropped, or until no player is left.
    pub async fn run(mut self) {
        while !self.hands.is_empty() {
            let (socket, remote) = poll_fn(|cx| self.sockets.poll_next(cx)).await;
            match socket.into_std() {
                Ok(socket) => self.give((socket, remote)).await,
                Err(error) => tracing::warn!(error = errno_text(&error), "Could not pass on a connection"),
            }
        }
    }

    async fn give(&mut self, mut dealt: Dealt) {
        let players = self.hands.len();
        for _ in 0..players {
            self.next = (self.next + 1) % players;
            match self.hands[self.next].try_send(dealt) {
                Ok(()) => return,
                Err(mpsc::error::TrySendError::Full(back) | mpsc::error::TrySendError::Closed(back)) => {
                    dealt = back;
                }
            }
        }
        self.hands.retain(|hand| !hand.is_closed());
        self.next = 0;
        // All are busy: the first to have room again would be better, but busy they are alike.
        if let Some(hand) = self.hands.first() {
            let _ = hand.send(dealt).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_accepted_has_the_options() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut sockets = Sockets::accepted_by(listener);
        let client = TcpStream::connect(address).await.unwrap();
        let (socket, remote) = poll_fn(|cx| sockets.poll_next(cx)).await;
        assert_eq!(remote, client.local_addr().unwrap());
        assert!(socket.nodelay().unwrap() && sockopt::socket_keepalive(&socket).unwrap());
        assert_eq!(sockopt::tcp_keepidle(&socket).unwrap(), KEEPALIVE);
        assert_eq!(sockopt::tcp_keepintvl(&socket).unwrap(), KEEPALIVE);
    }
}
