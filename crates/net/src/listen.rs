//! Listening as Go does, and peers named as Go names them.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use rustix::net::sockopt;
use spire_compat::errno::errno_text;
use tokio::net::{TcpListener, TcpSocket};

/// Connections that wait to be accepted, as many as tokio's own listeners have.
const BACKLOG: u32 = 1024;

/// Why there is no listener. The texts are Go's.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The port cannot be had.
    #[error("listen tcp {address}: bind: {}", errno_text(source))]
    Bind {
        /// What it should have listened on.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// The address is none.
    #[error("listen tcp: address {address}: {reason}")]
    Address {
        /// The address as given.
        address: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// The host has no address.
    #[error("listen tcp: lookup {host}: no such host")]
    Lookup {
        /// The host.
        host: String,
    },
}

/// Listens on `host:port` as Go's `net.Listen("tcp", …)`: no host is every address, and a name the first of its addresses, of IPv4
/// where it has one.
///
/// # Errors
/// [`ListenError`].
pub async fn listen(address: &str) -> Result<TcpListener, ListenError> {
    let wrong = |reason| ListenError::Address { address: address.to_owned(), reason };
    let (host, port) = address.rsplit_once(':').ok_or_else(|| wrong("missing port in address"))?;
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    if bare.is_none() && host.contains(':') {
        return Err(wrong("too many colons in address"));
    }
    let host = bare.unwrap_or(host);
    let port: u16 = match port {
        "" => 0,
        "http" => 80,
        "https" => 443,
        number => number.parse().map_err(|_| wrong("invalid port"))?,
    };
    if host.is_empty() {
        let listening = listen_on((Ipv4Addr::UNSPECIFIED, port).into()).await;
        return listening.map_err(|source| ListenError::Bind { address: format!(":{port}"), source });
    }
    let address = match host.parse() {
        Ok(ip) => SocketAddr::new(ip, port),
        Err(_) => lookup(host, port).await?,
    };
    listen_on(address).await.map_err(|source| ListenError::Bind { address: address.to_string(), source })
}

async fn lookup(host: &str, port: u16) -> Result<SocketAddr, ListenError> {
    let unknown = || ListenError::Lookup { host: host.to_owned() };
    let found: Vec<SocketAddr> =
        tokio::net::lookup_host((host, port)).await.map_err(|_| unknown())?.collect();
    first(&found).ok_or_else(unknown)
}

/// Of several addresses the first of the older family, as Go takes it: probes and scrapers of `localhost` come by 127.0.0.1.
fn first(found: &[SocketAddr]) -> Option<SocketAddr> {
    found.iter().find(|address| address.is_ipv4()).or(found.first()).copied()
}

/// Listens on `address`. `0.0.0.0` and `[::]` both stand for every address of both families, by one socket, as in Go; where the
/// machine has no IPv6, `0.0.0.0` stands for those of IPv4.
///
/// # Errors
/// What the system says.
pub async fn listen_on(address: SocketAddr) -> io::Result<TcpListener> {
    if !address.ip().is_unspecified() {
        return TcpListener::bind(address).await;
    }
    match both_families(address.port()) {
        Err(error) if address.is_ipv4() && lacks_ipv6(&error) => TcpListener::bind(address).await,
        listening => listening,
    }
}

/// The system's default may be that a socket of IPv6 serves that family alone, so it is said.
fn both_families(port: u16) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v6()?;
    sockopt::set_ipv6_v6only(&socket, false)?;
    socket.set_reuseaddr(true)?;
    socket.bind((Ipv6Addr::UNSPECIFIED, port).into())?;
    socket.listen(BACKLOG)
}

/// Anything but a port that is taken: the attempt without IPv6 says what else is wrong.
fn lacks_ipv6(error: &io::Error) -> bool {
    error.kind() != io::ErrorKind::AddrInUse
}

/// An address of IPv4 as such, also where the socket says it as IPv6: one peer must not have two names in logs, bounds and rate
/// limits.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V6(v6) => match v6.ip().to_ipv4_mapped() {
            Some(ip) => SocketAddr::from((ip, v6.port())),
            // With the zone of a link's address.
            None => address,
        },
        SocketAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;
    use tokio::net::TcpStream;

    use super::*;

    #[tokio::test]
    async fn addresses_are_read_as_go_reads_them() {
        for address in ["127.0.0.1:0", "[::1]:0", ":0", "localhost:0", "0.0.0.0:", "[::]:0"] {
            let bound = listen(address).await;
            // A machine without IPv6 has none of its addresses.
            assert!(bound.is_ok() || address.starts_with('['), "{address}: {bound:?}");
        }
        for (address, text) in [
            ("x", "listen tcp: address x: missing port in address"),
            ("::1", "listen tcp: address ::1: too many colons in address"),
            ("127.0.0.1:x", "listen tcp: address 127.0.0.1:x: invalid port"),
            ("192.0.2.1:0", "listen tcp 192.0.2.1:0: bind: cannot assign requested address"),
        ] {
            assert_eq!(listen(address).await.unwrap_err().to_string(), text);
        }
        let taken = listen("127.0.0.1:0").await.unwrap();
        let address = taken.local_addr().unwrap();
        let text = format!("listen tcp {address}: bind: address already in use");
        assert_eq!(listen(&address.to_string()).await.unwrap_err().to_string(), text);
    }

    #[tokio::test]
    async fn every_address_is_those_of_both_families() {
        let machine_has_ipv6 = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).await.is_ok();
        for every in ["0.0.0.0:0", "[::]:0", ":0"] {
            if !machine_has_ipv6 && every.starts_with('[') {
                continue;
            }
            let listener = listen(every).await.unwrap();
            let port = listener.local_addr().unwrap().port();
            let client = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
            let (_, peer) = listener.accept().await.unwrap();
            assert_eq!(canonical(peer), client.local_addr().unwrap(), "{every}");
            if machine_has_ipv6 {
                let client = TcpStream::connect((Ipv6Addr::LOCALHOST, port)).await.unwrap();
                let (_, peer) = listener.accept().await.unwrap();
                assert_eq!(canonical(peer), client.local_addr().unwrap(), "{every}");
            }
        }
    }

    #[test]
    fn ipv4_is_enough_where_there_is_no_ipv6() {
        for (errno, lacks) in
            [(Errno::AFNOSUPPORT, true), (Errno::ADDRNOTAVAIL, true), (Errno::ADDRINUSE, false)]
        {
            assert_eq!(lacks_ipv6(&errno.into()), lacks);
        }
    }

    #[test]
    fn a_name_is_its_first_address_of_ipv4() {
        let addresses =
            |texts: &[&str]| -> Vec<SocketAddr> { texts.iter().map(|t| t.parse().unwrap()).collect() };
        for (found, taken) in [
            (&["[::1]:80", "127.0.0.1:80", "127.0.0.2:80"][..], Some("127.0.0.1:80")),
            (&["[::1]:80", "[::2]:80"], Some("[::1]:80")),
            (&[], None),
        ] {
            assert_eq!(first(&addresses(found)), taken.map(|text| text.parse().unwrap()));
        }
    }

    #[test]
    fn peers_have_one_name() {
        for (said, name) in [
            ("[::ffff:10.1.2.3]:4", "10.1.2.3:4"),
            ("10.1.2.3:4", "10.1.2.3:4"),
            ("[fd00::1]:4", "[fd00::1]:4"),
            ("[fe80::1%2]:4", "[fe80::1%2]:4"),
        ] {
            assert_eq!(canonical(said.parse().unwrap()).to_string(), name);
        }
    }
}
