//! Lines to a StatsD listener: a bounded queue, packets, and a peer that may be slow, absent or not yet known.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use parking_lot::Mutex;
use spire_compat::errno::errno_text;
use tokio::net::{UdpSocket, UnixDatagram};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout, timeout_at};

/// Lines that wait for the sender, as in go-metrics. What comes beyond is dropped, never waited for.
const QUEUE: usize = 4096;

/// The largest packet, as in go-metrics: an Ethernet frame less the headers of tunnels.
const PACKET_MAX: usize = 1400;

/// How long a line waits for others to share its packet, as in go-metrics.
const FLUSH_INTERVAL: Duration = Duration::from_millis(100);

/// How long lines are thrown away after the peer could not be reached, as in go-metrics.
const PAUSE: Duration = Duration::from_secs(5);

/// How long a packet may wait for room in the socket's buffer.
pub(crate) const SEND_TIMEOUT: Duration = Duration::from_millis(100);

/// Where packets go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    Udp(String),
    Unix(PathBuf),
}

impl Peer {
    /// `host:port`; a host without a port is no address.
    pub(crate) fn udp(address: &str) -> Result<Self, AddressError> {
        let port = address.rsplit_once(':').map(|(_, port)| port);
        match port {
            Some(port) if port.parse::<u16>().is_ok() => Ok(Self::Udp(address.to_owned())),
            Some(_) => Err(AddressError { address: address.to_owned(), reason: "invalid port" }),
            None => Err(AddressError { address: address.to_owned(), reason: "missing port in address" }),
        }
    }
}

/// An address that cannot be one.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("address {address}: {reason}")]
pub struct AddressError {
    address: String,
    reason: &'static str,
}

/// The sender's end of the queue, and the receiver until it runs.
#[derive(Debug)]
pub(crate) struct Datagrams {
    peer: Peer,
    queue: mpsc::Sender<String>,
    waiting: Mutex<Option<mpsc::Receiver<String>>>,
}

impl Datagrams {
    pub(crate) fn new(peer: Peer) -> Self {
        let (queue, waiting) = mpsc::channel(QUEUE);
        Self { peer, queue, waiting: Mutex::new(Some(waiting)) }
    }

    /// Queues a line, which ends with a newline, or drops it where the queue is full.
    pub(crate) fn push(&self, line: String) {
        let _ = self.queue.try_send(line);
    }

    /// Sends packets until the future is dropped. Runs once.
    pub(crate) async fn run(&self) {
        let Some(mut lines) = self.waiting.lock().take() else { return };
        let mut told = false;
        loop {
            let Err(error) = self.send_until_error(&mut lines, &mut told).await else { return };
            // A peer that stays away would fill the log; that it is away is said once until it is back.
            if !std::mem::replace(&mut told, true) {
                tracing::warn!(
                    subsystem_name = "telemetry",
                    address = ?self.peer,
                    error = %errno_text(&error),
                    "Metrics cannot be sent; they are dropped until they can"
                );
            }
            let pause = sleep(PAUSE);
            tokio::pin!(pause);
            loop {
                tokio::select! {
                    () = &mut pause => break,
                    line = lines.recv() => if line.is_none() { return },
                }
            }
        }
    }

    async fn send_until_error(&self, lines: &mut mpsc::Receiver<String>, told: &mut bool) -> io::Result<()> {
        let socket = Socket::connect(&self.peer).await?;
        let mut packet = String::with_capacity(PACKET_MAX);
        while let Some(line) = lines.recv().await {
            packet.push_str(&line);
            let flush = Instant::now() + FLUSH_INTERVAL;
            while let Ok(Some(line)) = timeout_at(flush, lines.recv()).await {
                if packet.len() + line.len() > PACKET_MAX {
                    socket.send(&packet).await?;
                    packet.clear();
                }
                packet.push_str(&line);
            }
            socket.send(&packet).await?;
            packet.clear();
            *told = false;
        }
        Ok(())
    }
}

enum Socket {
    Udp(UdpSocket),
    Unix(UnixDatagram),
}

impl Socket {
    async fn connect(peer: &Peer) -> io::Result<Self> {
        match peer {
            Peer::Udp(address) => udp(address).await.map(Self::Udp),
            Peer::Unix(path) => {
                let socket = UnixDatagram::unbound()?;
                socket.connect(path)?;
                Ok(Self::Unix(socket))
            }
        }
    }

    /// Waits for the peer a moment only: what its buffer does not take is lost, as UDP loses it.
    async fn send(&self, packet: &str) -> io::Result<()> {
        let sent = match self {
            Self::Udp(socket) => timeout(SEND_TIMEOUT, socket.send(packet.as_bytes())).await,
            Self::Unix(socket) => timeout(SEND_TIMEOUT, socket.send(packet.as_bytes())).await,
        };
        sent.map_or(Ok(()), |sent| sent.map(drop))
    }
}

/// A socket to the first address of `host:port`, looked up now.
pub(crate) async fn udp(address: &str) -> io::Result<UdpSocket> {
    let found = tokio::net::lookup_host(address).await?.next();
    let peer = found.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no such host"))?;
    let any = if peer.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(peer).await?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    async fn received(socket: &UdpSocket) -> String {
        let mut buffer = [0; 2048];
        let length = socket.recv(&mut buffer).await.unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    #[tokio::test]
    async fn lines_share_packets_of_bounded_size() {
        let listener = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let sender = Arc::new(Datagrams::new(Peer::udp(&address).unwrap()));
        let line = format!("{}\n", "x".repeat(599));
        for _ in 0..3 {
            sender.push(line.clone());
        }
        let running = tokio::spawn(async move { sender.run().await });
        assert_eq!(received(&listener).await, line.repeat(2));
        assert_eq!(received(&listener).await, line);
        running.abort();
    }

    #[tokio::test]
    async fn an_absent_peer_costs_nothing() {
        let sender = Datagrams::new(Peer::Unix("/does/not/exist".into()));
        for _ in 0..QUEUE * 2 {
            sender.push("x:1|c\n".to_owned());
        }
        assert_eq!(sender.queue.capacity(), 0);
    }

    #[test]
    fn addresses_need_a_port() {
        assert_eq!(
            Peer::udp("localhost").unwrap_err().to_string(),
            "address localhost: missing port in address"
        );
        assert_eq!(Peer::udp("h:x").unwrap_err().to_string(), "address h:x: invalid port");
        assert_eq!(Peer::udp("h:1"), Ok(Peer::Udp("h:1".into())));
    }
}
