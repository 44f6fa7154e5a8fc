//! Documents from servers that answer as we say, on loopback and unix sockets.

use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};

use super::{DOCUMENT_SIZE_MAX, HttpsClient};
use crate::fixture::TestCa;
use crate::tls::{Identity, ServerTls, TlsClient, TlsPolicy};

/// Reads one request and sends `answer`.
async fn answer<S: AsyncRead + AsyncWrite + Unpin>(mut io: S, answer: Vec<u8>) -> String {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        request.push(io.read_u8().await.expect("a request"));
    }
    // A client that has seen enough closes before it has all.
    let _ = io.write_all(&answer).await;
    let _ = io.shutdown().await;
    String::from_utf8(request).expect("text")
}

/// Gets a document through a unix socket; the result, with what the server saw.
async fn over_unix(response: Vec<u8>) -> (Result<String, String>, String) {
    over_unix_from("http://localhost/bundle?a=b", response).await
}

async fn over_unix_from(url: &str, response: Vec<u8>) -> (Result<String, String>, String) {
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("bundle.sock");
    let listener = UnixListener::bind(&path).expect("bound");
    let server =
        tokio::spawn(async move { answer(listener.accept().await.expect("a client").0, response).await });
    let client = HttpsClient::new(nobody()).over_unix_socket(&path);
    let result = client.get(url).await;
    let result =
        result.map(|body| String::from_utf8(body.to_vec()).expect("text")).map_err(|e| e.to_string());
    (result, server.await.expect("task"))
}

fn nobody() -> TlsClient {
    TlsClient::web_with_roots(RootCertStore::empty(), TlsPolicy::default()).expect("a configuration")
}

fn ok(body: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

#[tokio::test]
async fn a_document_comes_through_a_unix_socket() {
    let (body, request) = over_unix(ok("the bundle")).await;
    assert_eq!(body.expect("a document"), "the bundle");
    assert!(request.starts_with("GET /bundle?a=b HTTP/1.1\r\n"), "{request}");
    assert!(request.contains("host: localhost\r\n"), "{request}");
}

#[tokio::test]
async fn user_info_is_sent_and_not_told() {
    for (url, header) in [
        ("http://localhost/x", None),
        ("http://me:p%40ss%3A@localhost/x", Some("Basic bWU6cEBzczo=")),
        ("http://token@localhost/x", Some("Basic dG9rZW46")),
        ("http://:secret@localhost/x", Some("Basic OnNlY3JldA==")),
    ] {
        let (body, request) = over_unix_from(url, ok("x")).await;
        body.expect("a document");
        let sent = request.lines().find_map(|line| line.strip_prefix("authorization: "));
        assert_eq!(sent, header, "{url}");
        assert!(request.contains("host: localhost\r\n"), "{request}");
        let error = over_unix_from(url, b"nonsense\r\n\r\n".to_vec()).await.0.expect_err("no HTTP");
        for secret in ["p%40ss", "token", "secret"] {
            assert!(!error.contains(secret), "{error}");
        }
    }
    // Nobody listens, the URL is none, the scheme is not ours.
    for url in ["https://me:secret@127.0.0.1:1/", "https://me:secret@[::1/x", "ftp://me:secret@x/"] {
        let error = HttpsClient::new(nobody()).get(url).await.expect_err(url).to_string();
        assert!(error.contains("me:***@") && !error.contains("secret"), "{error}");
    }
}

#[test]
fn urls_are_shown_without_secrets() {
    for (url, shown) in [
        ("https://a.test/p@th?q=x:y@z#f@g", "https://a.test/p@th?q=x:y@z#f@g"),
        ("https://me:pa:ss@w@a.test:8443/x", "https://me:***@a.test:8443/x"),
        ("https://token@a.test", "https://***@a.test"),
        ("https://me:@a.test?x", "https://me:***@a.test?x"),
        ("no url", "no url"),
    ] {
        assert_eq!(super::redacted(url), shown);
    }
}

#[tokio::test]
async fn what_is_no_bounded_document_is_an_error() {
    let mut endless = b"HTTP/1.1 200 OK\r\n\r\n".to_vec();
    endless.resize(endless.len() + DOCUMENT_SIZE_MAX + 1, b'x');
    let cases: [(Vec<u8>, &str); 5] = [
        (
            b"HTTP/1.1 302 Found\r\nlocation: http://localhost/other\r\ncontent-length: 0\r\n\r\n".to_vec(),
            "302 Found",
        ),
        (b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n".to_vec(), "404 Not Found"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nshort".to_vec(), "reading the response: "),
        (endless, "response is larger than 4194304 bytes"),
        (b"nonsense\r\n\r\n".to_vec(), "Get \"http://localhost/bundle?a=b\": "),
    ];
    for (response, text) in cases {
        let error = over_unix(response).await.0.expect_err(text);
        assert!(error.starts_with(text), "{error}");
    }
}

#[tokio::test]
async fn urls_that_cannot_be_used_are_refused() {
    for (url, text) in [
        ("http://localhost/x", "http is only allowed over a unix socket"),
        ("ftp://localhost/x", "unsupported protocol scheme"),
        ("/x", "unsupported protocol scheme"),
        ("https://[::1/x", "not a URL"),
    ] {
        let error = HttpsClient::new(nobody()).get(url).await.expect_err(text).to_string();
        assert!(error.ends_with(text), "{error}");
    }
}

#[tokio::test]
async fn a_web_server_is_verified_by_its_name() {
    let ca = TestCa::new("");
    let identity = Identity::empty();
    let (certificate, key) = ca.issue_for("", &["localhost".to_owned()]);
    identity.replace(&[certificate], &key).expect("a pair");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let port = listener.local_addr().expect("an address").port();
    let tls = ServerTls::https(Arc::clone(&identity), TlsPolicy::default()).expect("a configuration");
    tokio::spawn(async move {
        let mut incoming = std::pin::pin!(tls.incoming(listener));
        while let Some(Ok(connection)) = futures_util::StreamExt::next(&mut incoming).await {
            assert!(!connection.is_http2());
            answer(connection, ok("over TLS")).await;
        }
    });
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(ca.certificate.der().to_vec())).expect("an authority");
    let trusting = TlsClient::web_with_roots(roots, TlsPolicy::default()).expect("a configuration");
    let client = HttpsClient::new(trusting);
    assert_eq!(client.get(&format!("https://localhost:{port}/")).await.expect("a document"), "over TLS");
    let error = client.get(&format!("https://127.0.0.1:{port}/")).await.expect_err("another name");
    assert_eq!(
        error.to_string(),
        format!(
            "Get \"https://127.0.0.1:{port}/\": tls: failed to verify certificate: x509: cannot validate certificate \
             for 127.0.0.1 because it doesn't contain any IP SANs"
        )
    );
    let error = HttpsClient::new(nobody()).get(&format!("https://localhost:{port}/")).await;
    let error = error.expect_err("nobody is trusted").to_string();
    assert!(
        error.ends_with("tls: failed to verify certificate: x509: certificate signed by unknown authority"),
        "{error}"
    );
}

/// Somebody configured the profile of the web for an endpoint that shows an SVID.
#[tokio::test]
async fn a_server_with_an_svid_is_recognised_where_one_of_the_web_was_expected() {
    let ca = TestCa::new("spiffe://a.test");
    let identity = Identity::empty();
    let (certificate, key) = ca.issue("spiffe://a.test/spire/server");
    identity.replace(&[certificate], &key).expect("a pair");
    let tls = ServerTls::https(identity, TlsPolicy::default()).expect("a configuration");
    let mut incoming = tls.bind(([127, 0, 0, 1], 0).into()).await.expect("bound");
    let port = incoming.local_addr().expect("an address").port();
    tokio::spawn(async move { while futures_util::StreamExt::next(&mut incoming).await.is_some() {} });
    let error = HttpsClient::new(nobody()).get(&format!("https://localhost:{port}/")).await;
    let error = error.expect_err("not of the web");
    assert_eq!(
        error.spiffe_server().map(ToString::to_string).as_deref(),
        Some("spiffe://a.test/spire/server")
    );
    let text = "x509: certificate is not valid for any names, but wanted to match localhost";
    assert!(error.to_string().ends_with(text), "{error}");
}

#[tokio::test]
async fn addresses_that_are_not_public_are_refused_where_that_is_asked_for() {
    for host in ["127.0.0.1:1", "localhost:1", "[::1]:1", "10.0.0.1", "169.254.169.254"] {
        let url = format!("https://{host}/");
        let error =
            HttpsClient::new(nobody()).public_only(true).get(&url).await.expect_err("private").to_string();
        assert!(error.ends_with("not a public address, which are the only ones allowed"), "{error}");
    }
}
