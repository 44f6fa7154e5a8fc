//! The one line that a plugin writes to its standard output before it serves:
//! `core version | plugin version | network | address | protocol | certificate` (go-plugin: client.go, Start).

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

/// go-plugin's own version of this line.
const CORE_VERSION: &str = "1";
/// SPIRE's version of what is spoken after it.
const PLUGIN_VERSION: &str = "1";
/// Longest first line. A real one has some sixty bytes, or two thousand with a certificate.
pub(crate) const LINE_MAX: usize = 16 << 10;
/// From this length on the sixth field is a certificate; older plugins put other things there.
const CERTIFICATE_MIN: usize = 50;

/// Where a plugin listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

/// Why the line is none that we can use. Texts are go-plugin's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HandshakeError {
    #[error("Unrecognized remote plugin message: {0}")]
    Unrecognized(String),
    #[error("Unrecognized remote plugin message: \nFailed to read any lines from plugin's stdout")]
    Nothing,
    #[error("error parsing core protocol version: {0:?} is not a number")]
    CoreNotANumber(String),
    #[error(
        "incompatible core API version with plugin. Plugin version: {0}, Core version: 1\n\nTo fix this, the plugin \
         usually only needs to be recompiled.\nPlease report this to the plugin author"
    )]
    Core(String),
    #[error("Error parsing protocol version {0:?}: not a number")]
    VersionNotANumber(String),
    #[error("incompatible API version with plugin. Plugin version: {0}, Client versions: [1]")]
    Version(String),
    #[error("unknown address type: {0}")]
    Network(String),
    #[error("invalid address of the plugin: {0}")]
    Address(String),
    #[error("unsupported plugin protocol {0:?}. Supported: [grpc]")]
    Protocol(String),
    #[error("the plugin asks for TLS, which its host does not offer")]
    Tls,
}

/// Reads the line, and finds the address that it names.
pub(crate) async fn parse(line: &str) -> Result<Address, HandshakeError> {
    let line = line.trim();
    let parts: Vec<&str> = line.split('|').collect();
    let [core, version, network, address, rest @ ..] = parts.as_slice() else {
        return Err(HandshakeError::Unrecognized(line.chars().take(512).collect()));
    };
    let number = |text: &str| text.parse::<i64>().is_ok();
    match *core {
        CORE_VERSION => {}
        core if number(core) => return Err(HandshakeError::Core(core.to_owned())),
        core => return Err(HandshakeError::CoreNotANumber(core.to_owned())),
    }
    match *version {
        PLUGIN_VERSION => {}
        version if number(version) => return Err(HandshakeError::Version(version.to_owned())),
        version => return Err(HandshakeError::VersionNotANumber(version.to_owned())),
    }
    let address = match *network {
        // A relative path is below the working directory, which the plugin has from us.
        "unix" if !address.is_empty() && !address.starts_with('@') => Address::Unix(PathBuf::from(address)),
        "tcp" => match loopback(address).await {
            Some(address) => Address::Tcp(address),
            None => return Err(HandshakeError::Address((*address).to_owned())),
        },
        "unix" => return Err(HandshakeError::Address((*address).to_owned())),
        _ => return Err(HandshakeError::Network((*address).to_owned())),
    };
    match rest.first() {
        Some(&"grpc") => {}
        Some(protocol) => return Err(HandshakeError::Protocol((*protocol).to_owned())),
        // What says nothing speaks the protocol before gRPC.
        None => return Err(HandshakeError::Protocol("netrpc".to_owned())),
    }
    if rest.get(1).is_some_and(|certificate| certificate.len() > CERTIFICATE_MIN) {
        return Err(HandshakeError::Tls);
    }
    Ok(address)
}

/// Where to call a plugin that listens on `host:port`. Nobody is known by this connection, so it must not leave the machine; go-plugin
/// would call any address.
async fn loopback(said: &str) -> Option<SocketAddr> {
    let (host, port) = said.rsplit_once(':')?;
    // As Go calls them: no host and the address of all hosts are this one.
    if matches!(host, "" | "0.0.0.0" | "[::]") {
        return Some((Ipv4Addr::LOCALHOST, port.parse().ok()?).into());
    }
    let found: Vec<SocketAddr> = tokio::net::lookup_host(said).await.ok()?.collect();
    let first = found.iter().find(|address| address.is_ipv4()).or(found.first())?;
    first.ip().to_canonical().is_loopback().then_some(*first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_of_plugins() {
        let unix = Ok(Address::Unix("/tmp/plugin1".into()));
        let tcp = Ok(Address::Tcp("127.0.0.1:1234".parse().expect("an address")));
        let long = "x".repeat(CERTIFICATE_MIN + 1);
        for (line, expected) in [
            ("1|1|unix|/tmp/plugin1|grpc|", unix.clone()),
            ("1|1|unix|/tmp/plugin1|grpc", unix.clone()),
            ("  1|1|unix|/tmp/plugin1|grpc|old extra|true\r", unix),
            ("1|1|tcp|127.0.0.1:1234|grpc|", tcp.clone()),
            ("1|1|tcp|localhost:1234|grpc", tcp.clone()),
            ("1|1|tcp|[::]:1234|grpc", tcp.clone()),
            ("1|1|tcp|0.0.0.0:1234|grpc", tcp.clone()),
            ("1|1|tcp|:1234|grpc", tcp),
            ("1|1|unix|p|grpc", Ok(Address::Unix("p".into()))),
            ("hello", Err(HandshakeError::Unrecognized("hello".into()))),
            ("", Err(HandshakeError::Unrecognized(String::new()))),
            ("1|1|unix", Err(HandshakeError::Unrecognized("1|1|unix".into()))),
            ("x|1|unix|/p|grpc", Err(HandshakeError::CoreNotANumber("x".into()))),
            ("2|1|unix|/p|grpc", Err(HandshakeError::Core("2".into()))),
            ("1|y|unix|/p|grpc", Err(HandshakeError::VersionNotANumber("y".into()))),
            ("1|2|unix|/p|grpc", Err(HandshakeError::Version("2".into()))),
            ("1|1|udp|/p|grpc", Err(HandshakeError::Network("/p".into()))),
            ("1|1|unix||grpc", Err(HandshakeError::Address(String::new()))),
            ("1|1|unix|@p|grpc", Err(HandshakeError::Address("@p".into()))),
            ("1|1|tcp|1234|grpc", Err(HandshakeError::Address("1234".into()))),
            ("1|1|tcp|:x|grpc", Err(HandshakeError::Address(":x".into()))),
            ("1|1|tcp|192.0.2.1:80|grpc", Err(HandshakeError::Address("192.0.2.1:80".into()))),
            ("1|1|unix|/p", Err(HandshakeError::Protocol("netrpc".into()))),
            ("1|1|unix|/p|netrpc", Err(HandshakeError::Protocol("netrpc".into()))),
            (&format!("1|1|unix|/p|grpc|{long}"), Err(HandshakeError::Tls)),
        ] {
            assert_eq!(parse(line).await, expected, "{line}");
        }
    }
}
