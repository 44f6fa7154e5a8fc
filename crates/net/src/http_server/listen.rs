//! Listening as Go does.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use spire_compat::errno::errno_text;
use tokio::net::TcpListener;

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

/// Listens on `host:port` as Go's `net.Listen("tcp", …)`: no host is every address, and a name its first one.
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
    let ip = match host {
        "" => None,
        host => match host.parse() {
            Ok(ip) => Some(ip),
            Err(_) => Some(lookup(host).await?),
        },
    };
    let address = match ip {
        Some(IpAddr::V6(ip)) => format!("[{ip}]:{port}"),
        Some(ip) => format!("{ip}:{port}"),
        None => format!(":{port}"),
    };
    listen_on(ip, port).await.map_err(|source| ListenError::Bind { address, source })
}

/// Of several addresses the one of the older family, as Go takes it.
async fn lookup(host: &str) -> Result<IpAddr, ListenError> {
    let unknown = || ListenError::Lookup { host: host.to_owned() };
    let found: Vec<IpAddr> = tokio::net::lookup_host((host, 0))
        .await
        .map_err(|_| unknown())?
        .map(|address| address.ip())
        .collect();
    found.iter().find(|ip| ip.is_ipv4()).or(found.first()).copied().ok_or_else(unknown)
}

/// Listens on every address where there is none, by one socket of both families where there is IPv6.
///
/// # Errors
/// What the system says.
pub async fn listen_on(ip: Option<IpAddr>, port: u16) -> io::Result<TcpListener> {
    let on = |ip: IpAddr| TcpListener::bind((ip, port));
    match ip {
        None | Some(IpAddr::V4(Ipv4Addr::UNSPECIFIED)) => match on(Ipv6Addr::UNSPECIFIED.into()).await {
            Err(error) if error.kind() != io::ErrorKind::AddrInUse => on(Ipv4Addr::UNSPECIFIED.into()).await,
            bound => bound,
        },
        Some(ip) => on(ip).await,
    }
}

#[cfg(test)]
mod tests {
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
}
