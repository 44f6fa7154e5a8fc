//! Clients that are slow, silent, large or many, on loopback.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::client::TlsStream;

use super::*;
use crate::fixture::TestCa;
use crate::https::HttpsClient;
use crate::tls::{Identity, TlsClient, TlsPolicy};

struct Server {
    address: SocketAddr,
    roots: RootCertStore,
}

impl Server {
    async fn start(stop: impl Future<Output = ()> + Send + 'static) -> Self {
        let ca = TestCa::new("");
        let identity = Identity::empty();
        let (certificate, key) = ca.issue_for("", &["localhost".to_owned()]);
        identity.replace(&[certificate], &key).expect("a pair");
        let tls = ServerTls::https(identity, TlsPolicy::default()).expect("a configuration");
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("bound");
        let address = listener.local_addr().expect("an address");
        let handler = |head: Parts| async move {
            match head.uri.path() {
                "/" => document("text/plain", Bytes::from(format!("{} {:?}", head.method, head.version))),
                _ => error(StatusCode::NOT_FOUND, "404 page not found"),
            }
        };
        tokio::spawn(serve(incoming(&tls, listener), handler, stop));
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from(ca.certificate.der().to_vec())).expect("an authority");
        Self { address, roots }
    }

    async fn connect(&self, alpn: &[&[u8]]) -> TlsStream<TcpStream> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(self.roots.clone())
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        let tcp = TcpStream::connect(self.address).await.expect("connects");
        let name = ServerName::try_from("localhost").expect("a name");
        tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await.expect("a handshake")
    }

    async fn get(&self, path: &str) -> Result<Bytes, crate::https::FetchError> {
        let tls =
            TlsClient::web_with_roots(self.roots.clone(), TlsPolicy::default()).expect("a configuration");
        HttpsClient::new(tls).get(&format!("https://localhost:{}{path}", self.address.port())).await
    }
}

/// What a raw request is answered with, to the end of the connection.
async fn raw(server: &Server, request: &[u8]) -> String {
    let mut io = server.connect(&[b"http/1.1"]).await;
    io.write_all(request).await.expect("sent");
    let mut answer = Vec::new();
    // A server that has seen enough may reset instead of closing.
    let _ = io.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn documents_and_errors_are_answered_as_go_does() {
    let server = Server::start(std::future::pending()).await;
    assert_eq!(server.get("/?x=y").await.expect("a document"), "GET HTTP/1.1");
    let answer = raw(&server, b"GET /other HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 404 Not Found\r\n"), "{answer}");
    for header in ["content-type: text/plain; charset=utf-8\r\n", "x-content-type-options: nosniff\r\n"] {
        assert!(answer.contains(header), "{answer}");
    }
    assert!(answer.ends_with("\r\n\r\n404 page not found\n"), "{answer}");
    let old = raw(&server, b"GET / HTTP/1.0\r\n\r\n").await;
    assert!(old.ends_with("GET HTTP/1.0"), "{old}");
}

#[tokio::test]
async fn http2_is_served_to_who_asks_for_it() {
    let server = Server::start(std::future::pending()).await;
    let io = server.connect(&[b"h2"]).await;
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(io)).await;
    let (mut sender, connection) = handshake.expect("HTTP/2");
    tokio::spawn(connection);
    let request = Request::get("https://localhost/").body(Full::<Bytes>::default()).expect("a request");
    let answer = sender.send_request(request).await.expect("an answer");
    let body = http_body_util::BodyExt::collect(answer.into_body()).await.expect("a body").to_bytes();
    assert_eq!(body, "GET HTTP/2.0");
}

#[tokio::test]
async fn large_heads_are_refused() {
    let server = Server::start(std::future::pending()).await;
    let mut request = b"GET / HTTP/1.1\r\nhost: x\r\nx: ".to_vec();
    request.resize(HEAD_SIZE_MAX + 1024, b'x');
    let answer = raw(&server, &request).await;
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    assert_eq!(server.get("/").await.expect("others are served"), "GET HTTP/1.1");
}

#[tokio::test]
async fn silent_connections_end_and_others_are_served_meanwhile() {
    let server = Server::start(std::future::pending()).await;
    let mut silent = server.connect(&[b"http/1.1"]).await;
    silent.write_all(b"GET / HT").await.expect("sent");
    assert_eq!(server.get("/").await.expect("others are served"), "GET HTTP/1.1");
    tokio::time::pause();
    let mut answer = Vec::new();
    let _ = silent.read_to_end(&mut answer).await;
    assert!(!String::from_utf8_lossy(&answer).contains("200 OK"));
}

#[tokio::test]
async fn one_address_has_a_bounded_share() {
    let server = Server::start(std::future::pending()).await;
    let mut held = Vec::new();
    for _ in 0..CONNECTIONS_PER_ADDRESS_MAX {
        let mut io = server.connect(&[b"http/1.1"]).await;
        io.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("sent");
        assert_ne!(io.read(&mut [0; 64]).await.expect("an answer"), 0);
        held.push(io);
    }
    server.get("/").await.expect_err("no place for one more");
    held.pop();
    // The place is given back when the server sees the end.
    while server.get("/").await.is_err() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_stop_ends_it() {
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let server = Server::start(async { drop(stopped.await) }).await;
    server.get("/").await.expect("served");
    drop(stop);
    while server.get("/").await.is_ok() {
        tokio::task::yield_now().await;
    }
}
