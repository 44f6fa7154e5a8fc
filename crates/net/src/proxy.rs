//! The PROXY protocol: who the client of a proxy is, as the proxy says (haproxy.org, proxy-protocol.txt, versions 1
//! and 2).
//!
//! The rules are those of SPIRE's `proxy_protocol_trusted_cidrs` (pkg/server/endpoints/endpoints.go,
//! wrapListenerWithProxyProtocol): a trusted peer may send a header, and then counts as the address in it; any other peer
//! that sends one is refused. What a header cannot do is say more than an address: a client behind a proxy is never
//! local, whatever family the header names.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::TcpStream;

use crate::listen::canonical;

/// Longest header of version 1 with its CRLF, by the specification.
const V1_SIZE_MAX: usize = 107;

/// What every header of version 2 starts with.
const V2_SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
const V2_HEAD_SIZE: usize = 16;

/// Octets after the head of a version 2 header. The specification allows 65,535; addresses and the fields that proxies
/// really send fit in this (go-proxyproto has the same bound).
const V2_BODY_SIZE_MAX: usize = 4096;

/// Two IPv6 addresses and ports, the longest that we read.
const V2_ADDRESSES_SIZE_MAX: usize = 36;

/// Why a connection's PROXY header is refused.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// The peer is not a trusted proxy.
    #[error("proxyproto: upstream connection sent PROXY header but isn't allowed to send one")]
    Untrusted,
    /// It begins like a header and is none.
    #[error("proxyproto: can't read the PROXY header: {0}")]
    Malformed(&'static str),
    /// The connection broke.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Which peers may say for whom they speak.
#[derive(Clone)]
pub struct TrustedProxies(Arc<dyn Fn(IpAddr) -> bool + Send + Sync>);

impl TrustedProxies {
    /// Those whose address `trusts`. IPv4 addresses written as IPv6 come as IPv4.
    pub fn new(trusts: impl Fn(IpAddr) -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(trusts))
    }

    pub(crate) fn trusts(&self, address: IpAddr) -> bool {
        (self.0)(address.to_canonical())
    }
}

impl fmt::Debug for TrustedProxies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TrustedProxies")
    }
}

/// The client's address, if a header says one. What follows the header is left in the socket.
pub(crate) async fn client(tcp: &mut TcpStream, trusted: bool) -> Result<Option<SocketAddr>, ProxyError> {
    let mut first = [0];
    // A TLS client starts with the octet 22, so one octet tells.
    let count = tcp.peek(&mut first).await?;
    if count == 0 || !begins_header(first[0]) {
        return Ok(None);
    }
    if !trusted {
        return Err(ProxyError::Untrusted);
    }
    read(tcp).await
}

fn begins_header(octet: u8) -> bool {
    matches!(octet, b'P' | b'\r')
}

/// Reads a header that is there; an address of IPv4 written as IPv6 comes as IPv4. `None` where the proxy speaks for itself (`UNKNOWN`, `LOCAL`).
///
/// # Errors
/// [`ProxyError::Malformed`] when it is no header of version 1 or 2; [`ProxyError::Io`] when it ends early.
pub async fn read(from: &mut (impl AsyncRead + Unpin)) -> Result<Option<SocketAddr>, ProxyError> {
    let client = match from.read_u8().await? {
        b'P' => read_v1(from).await?,
        b'\r' => read_v2(from).await?,
        _ => return Err(ProxyError::Malformed("not a PROXY header")),
    };
    Ok(client.map(canonical))
}

/// Octet by octet, since the end of the line is the end of the header, and what comes after it is not ours.
async fn read_v1(from: &mut (impl AsyncRead + Unpin)) -> Result<Option<SocketAddr>, ProxyError> {
    let mut line = [0; V1_SIZE_MAX];
    line[0] = b'P';
    for end in 1..V1_SIZE_MAX {
        let octet = from.read_u8().await?;
        line[end] = octet;
        if octet == b'\n' {
            let line = line.get(..end).and_then(|line| line.strip_suffix(b"\r"));
            return parse_v1(line.ok_or(ProxyError::Malformed("the line does not end in CRLF"))?);
        }
    }
    Err(ProxyError::Malformed("the line of version 1 is too long"))
}

fn parse_v1(line: &[u8]) -> Result<Option<SocketAddr>, ProxyError> {
    const BAD: ProxyError = ProxyError::Malformed("the line of version 1 is malformed");
    let text = std::str::from_utf8(line).map_err(|_| BAD)?;
    let mut words = text.split(' ');
    if words.next() != Some("PROXY") {
        return Err(BAD);
    }
    let family = words.next().ok_or(BAD)?;
    if family == "UNKNOWN" {
        return Ok(None);
    }
    let words: Vec<&str> = words.take(5).collect();
    let &[source, destination, source_port, destination_port] = &words[..] else { return Err(BAD) };
    let address = |text: &str| -> Result<IpAddr, ProxyError> {
        match family {
            "TCP4" => text.parse::<Ipv4Addr>().map(IpAddr::from).map_err(|_| BAD),
            "TCP6" => text.parse::<Ipv6Addr>().map(IpAddr::from).map_err(|_| BAD),
            _ => Err(BAD),
        }
    };
    let port = |text: &str| -> Result<u16, ProxyError> {
        let plain =
            text.bytes().all(|octet| octet.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
        plain.then(|| text.parse().ok()).flatten().ok_or(BAD)
    };
    let source = SocketAddr::new(address(source)?, port(source_port)?);
    // The destination is not used, but a header with a bad one is not a header.
    address(destination)?;
    port(destination_port)?;
    Ok(Some(source))
}

async fn read_v2(from: &mut (impl AsyncRead + Unpin)) -> Result<Option<SocketAddr>, ProxyError> {
    let mut head = [0; V2_HEAD_SIZE];
    head[0] = b'\r';
    from.read_exact(&mut head[1..]).await?;
    let [signature @ .., command, family, length_high, length_low] = head;
    if signature != V2_SIGNATURE {
        return Err(ProxyError::Malformed("the signature of version 2 is wrong"));
    }
    let is_local = match command {
        0x20 => true,
        0x21 => false,
        _ => return Err(ProxyError::Malformed("version or command is unknown")),
    };
    // Octets of the address block, and whether it says an IP address over a stream.
    let (address_size, usable) = match family {
        0x00 => (0, false),
        0x11 => (12, true),
        0x12 => (12, false),
        0x21 => (36, true),
        0x22 => (36, false),
        0x31 | 0x32 => (216, false),
        _ => return Err(ProxyError::Malformed("address family or protocol is unknown")),
    };
    if !is_local && !usable {
        // A unix socket or a datagram cannot be what the client used to reach a TCP listener. SPIRE would take the
        // client for a local one.
        return Err(ProxyError::Malformed("address family or protocol is not that of a TCP client"));
    }
    let length = usize::from(u16::from_be_bytes([length_high, length_low]));
    if length > V2_BODY_SIZE_MAX || (!is_local && length < address_size) {
        return Err(ProxyError::Malformed("the length is wrong"));
    }
    if is_local {
        skip(from, length).await?;
        return Ok(None);
    }
    let mut addresses = [0; V2_ADDRESSES_SIZE_MAX];
    let addresses = addresses.get_mut(..address_size).ok_or(ProxyError::Malformed("the length is wrong"))?;
    from.read_exact(addresses).await?;
    skip(from, length - address_size).await?;
    source_v2(addresses, family).map(Some).ok_or(ProxyError::Malformed("the length is wrong"))
}

/// Takes octets that mean nothing to us.
async fn skip(from: &mut (impl AsyncRead + Unpin), mut count: usize) -> Result<(), ProxyError> {
    let mut space = [0; 256];
    while count > 0 {
        let size = count.min(space.len());
        from.read_exact(&mut space[..size]).await?;
        count -= size;
    }
    Ok(())
}

/// Source address and port; the destination stands between them.
fn source_v2(body: &[u8], family: u8) -> Option<SocketAddr> {
    let (address, port): (IpAddr, _) = if family == 0x11 {
        (<[u8; 4]>::try_from(body.get(..4)?).ok()?.into(), body.get(8..10)?)
    } else {
        (<[u8; 16]>::try_from(body.get(..16)?).ok()?.into(), body.get(32..34)?)
    };
    Some(SocketAddr::new(address, u16::from_be_bytes(port.try_into().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a header says, and what of the input it leaves.
    async fn parsed(mut input: &[u8]) -> Result<(Option<String>, &[u8]), String> {
        let client = read(&mut input).await.map_err(|error| error.to_string())?;
        Ok((client.map(|address| address.to_string()), input))
    }

    fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let mut header = V2_SIGNATURE.to_vec();
        header.extend([command, family]);
        header.extend(u16::try_from(body.len()).expect("short").to_be_bytes());
        header.extend(body);
        header
    }

    #[tokio::test]
    async fn version_1() {
        let good: &[(&str, Option<&str>)] = &[
            ("PROXY TCP4 10.1.2.3 127.0.0.1 12345 8081\r\n", Some("10.1.2.3:12345")),
            ("PROXY TCP6 fd00::1 ::1 1 0\r\n", Some("[fd00::1]:1")),
            ("PROXY TCP6 ::ffff:10.1.2.3 ::1 1 2\r\n", Some("10.1.2.3:1")),
            ("PROXY UNKNOWN\r\n", None),
            ("PROXY UNKNOWN anything at all\r\n", None),
        ];
        for (header, client) in good {
            let input = format!("{header}rest");
            let expected = (client.map(str::to_owned), &b"rest"[..]);
            assert_eq!(parsed(input.as_bytes()).await, Ok(expected), "{header}");
        }
        for bad in [
            "PROXY\r\n",
            "PROXYx TCP4 10.1.2.3 127.0.0.1 1 2\r\n",
            "PROXY  TCP4 10.1.2.3 127.0.0.1 1 2\r\n",
            "PROXY TCP4 10.1.2.3 127.0.0.1 1 2 3\r\n",
            "PROXY TCP4 10.1.2.3 127.0.0.1 1\r\n",
            "PROXY TCP4 10.1.2.3 127.0.0.1 01 2\r\n",
            "PROXY TCP4 10.1.2.3 127.0.0.1 +1 2\r\n",
            "PROXY TCP4 10.1.2.3 127.0.0.1 65536 2\r\n",
            "PROXY TCP4 10.1.2.3 127.0.0.1 1 65536\r\n",
            "PROXY TCP4 fd00::1 ::1 1 2\r\n",
            "PROXY TCP6 10.1.2.3 127.0.0.1 1 2\r\n",
            "PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n",
            "PROXY UDP4 10.1.2.3 127.0.0.1 1 2\r\n",
            "PROXY TCP4 10.1.2.3 nowhere 1 2\r\n",
            "PROXY TCP4 10.1.2.3 127.0.0.1 1 2\n",
            "PRI * HTTP/2.0\r\n",
            "X\r\n",
        ] {
            parsed(bad.as_bytes()).await.expect_err(bad);
        }
        let endless = vec![b'P'; 4096];
        let error = parsed(&endless).await.expect_err("no end");
        assert_eq!(error, "proxyproto: can't read the PROXY header: the line of version 1 is too long");
        parsed(b"PROXY TCP4 10.1.").await.expect_err("cut short");
    }

    #[tokio::test]
    async fn version_2() {
        let v4 = [10, 1, 2, 3, 127, 0, 0, 1, 0x30, 0x39, 0x1f, 0x91];
        let mut v6 = [0; 36];
        v6[0] = 0xfd;
        v6[15] = 1;
        v6[33] = 7;
        let with_fields = [&v4[..], &[0xea; 100][..]].concat();
        let good: Vec<(Vec<u8>, Option<&str>)> = vec![
            (v2(0x21, 0x11, &v4), Some("10.1.2.3:12345")),
            (v2(0x21, 0x11, &with_fields), Some("10.1.2.3:12345")),
            (v2(0x21, 0x21, &v6), Some("[fd00::1]:7")),
            (v2(0x20, 0x00, &[]), None),
            (v2(0x20, 0x11, &[]), None),
            (v2(0x20, 0x31, &[1; 7]), None),
        ];
        for (header, client) in good {
            let input = [&header[..], b"rest"].concat();
            let expected = (client.map(str::to_owned), &b"rest"[..]);
            assert_eq!(parsed(&input).await, Ok(expected), "{header:?}");
        }
        let mut wrong_signature = v2(0x21, 0x11, &v4);
        wrong_signature[5] = b'x';
        for bad in [
            wrong_signature,
            v2(0x11, 0x11, &v4),
            v2(0x22, 0x11, &v4),
            v2(0x21, 0x13, &v4),
            v2(0x20, 0x13, &v4),
            v2(0x21, 0x00, &[]),
            v2(0x21, 0x12, &v4),
            v2(0x21, 0x31, &[b'/'; 216]),
            v2(0x21, 0x11, &v4[..11]),
            v2(0x21, 0x21, &v4),
            v2(0x21, 0x11, &[0; V2_BODY_SIZE_MAX + 1]),
            v2(0x20, 0x00, &[0; V2_BODY_SIZE_MAX + 1]),
            v2(0x21, 0x11, &v4)[..20].to_vec(),
        ] {
            parsed(&bad).await.expect_err("not a header");
        }
    }
}
