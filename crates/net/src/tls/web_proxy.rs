//! The proxy that the environment names, which is asked for connections with CONNECT.

use std::future::{Ready, ready};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::Uri;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tower_service::Service;

/// Where connections go through a proxy. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Proxies(Arc<Matcher>);

/// The proxy for one connection.
pub(super) struct Proxy {
    target: Uri,
    found: Intercept,
}

impl Proxies {
    /// Those of the environment: `HTTPS_PROXY` for all names and addresses but those in `NO_PROXY`, or both in lower case, as
    /// Go reads them.
    pub fn from_environment() -> Self {
        let read = |name: &str| {
            let found = std::env::var(name).or_else(|_| std::env::var(name.to_lowercase()));
            found.unwrap_or_default()
        };
        Self::new(&read("HTTPS_PROXY"), &read("NO_PROXY"))
    }

    /// This proxy, `http://user:password@host:port` or less of it, for all but those in the list: names with all below them,
    /// addresses, networks, `*`.
    pub fn new(proxy: &str, except: &str) -> Self {
        let items: Vec<&str> = except.split(',').map(str::trim).collect();
        // The library's star stands for names only, and not for a part of one.
        let proxy = if items.contains(&"*") { "" } else { proxy };
        let names: Vec<&str> = items.iter().map(|item| item.strip_prefix('*').unwrap_or(item)).collect();
        Self(Arc::new(Matcher::builder().https(proxy.to_owned()).no(names.join(",")).build()))
    }

    /// The proxy for a host (an address without brackets) and port. This machine is reached without.
    pub(super) fn of(&self, host: &str, port: u16) -> Option<Proxy> {
        let is_ours = host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
        let bracketed = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        let target = format!("https://{bracketed}:{port}").parse().ok().filter(|_| !is_ours)?;
        Some(Proxy { found: self.0.intercept(&target)?, target })
    }
}

impl Proxy {
    /// Host and port of the proxy, or why it cannot be used.
    pub(super) fn address(&self) -> Result<(String, u16), &'static str> {
        let uri = self.found.uri();
        if uri.scheme_str() != Some("http") {
            return Err("proxies other than http:// are not supported");
        }
        let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
        Ok((host.to_owned(), uri.port_u16().unwrap_or(80)))
    }

    /// `host:port` of the proxy, for errors. A password is not in it.
    pub(super) fn shown(&self) -> String {
        self.found.uri().authority().map(ToString::to_string).unwrap_or_default()
    }

    /// Asks for the connection, over one to the proxy. What is read belongs to the target from then on.
    ///
    /// # Errors
    /// Why the proxy does not give it.
    pub(super) async fn connect(self, stream: TcpStream) -> Result<TcpStream, String> {
        let mut tunnel = Tunnel::new(self.found.uri().clone(), Open(Some(stream)));
        if let Some(authorization) = self.found.basic_auth() {
            tunnel = tunnel.with_auth(authorization.clone());
        }
        tunnel.call(self.target).await.map(TokioIo::into_inner).map_err(|error| error.to_string())
    }
}

/// Gives the connection that is open already.
struct Open(Option<TcpStream>);

impl Service<Uri> for Open {
    type Response = TokioIo<TcpStream>;
    type Error = io::Error;
    type Future = Ready<io::Result<Self::Response>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        ready(self.0.take().map(TokioIo::new).ok_or_else(|| io::ErrorKind::NotConnected.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxies_are_for_whom_the_lists_say() {
        let proxies =
            Proxies::new("http://user:secret@proxy.example:3128", "inside.example, 10.0.0.0/8, *.c.example");
        for (host, expected) in [
            ("server.example", true),
            ("203.0.113.7", true),
            ("2001:db8::1", true),
            ("inside.example", false),
            ("a.inside.example", false),
            ("10.1.2.3", false),
            ("b.c.example", false),
            ("localhost", false),
            ("127.0.0.1", false),
            ("::1", false),
        ] {
            assert_eq!(proxies.of(host, 8081).is_some(), expected, "{host}");
        }
        let proxy = proxies.of("2001:db8::1", 8081).expect("not excepted");
        assert_eq!(proxy.target, "https://[2001:db8::1]:8081");
        assert_eq!(proxy.shown(), "proxy.example:3128");
        assert_eq!(proxy.address(), Ok(("proxy.example".to_owned(), 3128)));
        assert!(Proxies::new("", "").of("server.example", 1).is_none());
        for host in ["server.example", "203.0.113.7"] {
            assert!(Proxies::new("http://p", "*").of(host, 1).is_none());
        }
        let https = Proxies::new("https://p:1", "").of("server.example", 1).expect("a proxy");
        https.address().expect_err("TLS to a proxy is not supported");
    }
}
