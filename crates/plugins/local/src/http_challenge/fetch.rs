//! Fetches a nonce from where an agent says. The agent chose the address, so this follows no redirect, tells nothing of what
//! it got, and takes neither long nor much.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use spire_compat::errno::errno_text;
use tokio::net::TcpStream;

use super::{Payload, path};

/// The longest that it may take in all.
const TIMEOUT: Duration = Duration::from_secs(10);

/// How much of an answer is read: a nonce has 44 bytes and a newline.
const BODY_MAX: usize = 64;

/// How many addresses of a name are tried.
const ADDRESSES_MAX: usize = 8;

/// Room for the head of an answer.
const HEAD_MAX: usize = 16 * 1024;

/// Checks that the agent's nonce stands where it says (httpchallenge.VerifyChallenge).
///
/// # Errors
/// Why not, without anything of what was fetched.
pub(super) async fn verify(agent: &Payload, nonce: &str, refuse_private: bool) -> Result<(), String> {
    if agent.hostname.is_empty() {
        return Err("hostname must be set".to_owned());
    }
    if agent.agentname.is_empty() {
        return Err("agentname must be set".to_owned());
    }
    if agent.port <= 0 {
        return Err("port is invalid".to_owned());
    }
    if agent.hostname.contains('/') {
        return Err("hostname can not contain a slash".to_owned());
    }
    if agent.hostname.contains(':') {
        return Err("hostname can not contain a colon".to_owned());
    }
    if agent.agentname.contains('.') {
        return Err("agentname can not contain a dot".to_owned());
    }
    // It becomes a segment of the agent's ID, so nothing else can succeed.
    if !agent.hostname.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte)) {
        return Err("hostname can only have letters, digits, dots, dashes and underscores".to_owned());
    }
    let url = format!("http://{}:{}{}", agent.hostname, agent.port, path(&agent.agentname));
    let fetched = tokio::time::timeout(TIMEOUT, fetch(agent, refuse_private)).await;
    let body = fetched
        .unwrap_or_else(|_| Err("context deadline exceeded".to_owned()))
        .map_err(|error| format!("Get \"{url}\": {error}"))?;
    // What anybody can see needs no comparison in constant time.
    if body.trim_ascii() == nonce.as_bytes() {
        Ok(())
    } else {
        Err("expected nonce was not found in HTTP response".to_owned())
    }
}

async fn fetch(agent: &Payload, refuse_private: bool) -> Result<BytesMut, String> {
    let port =
        u16::try_from(agent.port).map_err(|_| format!("dial tcp: address {}: invalid port", agent.port))?;
    let stream = connect(&agent.hostname, port, refuse_private).await?;
    let failed = |error: hyper::Error| match error.is_incomplete_message() {
        true => "EOF".to_owned(),
        false => "malformed HTTP response".to_owned(),
    };
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .max_buf_size(HEAD_MAX)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(failed)?;
    let host = if port == 80 { agent.hostname.clone() } else { format!("{}:{port}", agent.hostname) };
    let request = Request::get(path(&agent.agentname))
        .header(header::HOST, host)
        .header(header::USER_AGENT, "spire")
        .body(Empty::<Bytes>::new())
        .map_err(|_| "invalid URL".to_owned())?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(failed)?;
        if is_redirect(response.status()) {
            return Err("http redirects are disabled".to_owned());
        }
        let mut body = response.into_body();
        let mut start = BytesMut::new();
        while let Some(frame) = body.frame().await {
            if let Ok(data) = frame.map_err(failed)?.into_data() {
                start.extend_from_slice(&data[..data.len().min(BODY_MAX - start.len())]);
            }
            if start.len() == BODY_MAX {
                break;
            }
        }
        Ok(start)
    };
    // The connection only moves while it is polled; it ends with this function.
    tokio::pin!(answer);
    tokio::select! {
        biased;
        result = &mut answer => result,
        ended = connection => match ended {
            Err(error) => Err(failed(error)),
            Ok(()) => answer.await,
        },
    }
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

async fn connect(host: &str, port: u16, refuse_private: bool) -> Result<TcpStream, String> {
    let addresses = tokio::net::lookup_host((host, port))
        .await
        .map_err(|_| format!("dial tcp: lookup {host}: no such host"))?;
    let mut last = format!("dial tcp: lookup {host}: no such host");
    for address in addresses.take(ADDRESSES_MAX) {
        // The address that is checked is the one that is dialled: the name is not asked again.
        if refuse_private && !is_public(address.ip()) {
            last = "dial tcp: the address is private, and refuse_private_targets is set".to_owned();
            continue;
        }
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = refused(address, &error),
        }
    }
    Err(last)
}

fn refused(address: SocketAddr, error: &io::Error) -> String {
    format!("dial tcp {address}: connect: {}", errno_text(error))
}

/// Whether an address is one of the Internet's at large.
fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            !(v4.is_private()
                || v4.is_loopback()
                || v4.is_link_local()
                || v4.is_broadcast()
                || v4.is_documentation()
                || v4.is_multicast()
                || a == 0
                || a >= 240
                // Carriers' networks, benchmarks and protocol assignments.
                || (a == 100 && (64..128).contains(&b))
                || (a == 198 && (18..20).contains(&b))
                || (a == 192 && b == 0))
        }
        IpAddr::V6(v6) => {
            let first = v6.segments()[0];
            // Global unicast is 2000::/3; of it documentation, and what carries IPv4, is left out.
            first & 0xe000 == 0x2000
                && first != 0x2002
                && !(first == 0x2001 && v6.segments()[1] < 0x200)
                && !(first == 0x2001 && v6.segments()[1] == 0xdb8)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::is_public;

    #[test]
    fn private_addresses_are_known() {
        let private = [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "255.255.255.255",
            "224.0.0.1",
            "192.0.2.1",
            "198.18.0.1",
            "::1",
            "::",
            "fe80::1",
            "fd00::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "2001:db8::1",
            "2002:7f00:1::",
            "64:ff9b::7f00:1",
        ];
        for address in private {
            assert!(!is_public(address.parse().unwrap()), "{address}");
        }
        for address in ["8.8.8.8", "172.32.0.1", "2a00:1450::1", "::ffff:8.8.8.8"] {
            assert!(is_public(address.parse().unwrap()), "{address}");
        }
    }
}
