//! Mutual TLS between our own two sides, on loopback.

use std::collections::HashMap;
use std::collections::HashSet;
use std::convert::Infallible;
use std::future::pending;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::StreamExt as _;
use parking_lot::Mutex;
use rustix::net::sockopt;
use spire_core::pki::Certificate;
use spire_core::spiffe::{SpiffeId, TrustDomain};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::oneshot;
use tonic::Code;
use tonic::service::Routes;

use super::peer::UnverifiedServer;
use super::{
    Authorize, ClientAuth, Identity, IdentityError, Proxies, ServerTls, TlsClient, TlsConnector, TlsPolicy,
    TlsSetupError, TrustSource,
};
use crate::fixture::{Echo, TestCa, call};
use crate::grpc::{Stopped, TcpTarget, graceful, serve, serve_tcp, tcp_channel, tcp_server};

const SERVER: &str = "spiffe://a.test/spire/server";
const AGENT: &str = "spiffe://a.test/spire/agent/x";

#[derive(Debug, Default)]
struct Bundles(Mutex<HashMap<String, Arc<[Certificate]>>>);

impl Bundles {
    fn of(cas: &[(&str, &TestCa)]) -> Arc<Self> {
        let bundles = Self::default();
        for (name, ca) in cas {
            bundles.put(name, ca);
        }
        Arc::new(bundles)
    }

    fn put(&self, name: &str, ca: &TestCa) {
        self.0.lock().insert(name.to_owned(), [ca.certificate.clone()].into());
    }
}

impl TrustSource for Bundles {
    fn authorities(&self, trust_domain: &TrustDomain) -> Option<Arc<[Certificate]>> {
        self.0.lock().get(trust_domain.name()).cloned()
    }
}

fn id(text: &str) -> SpiffeId {
    SpiffeId::parse(text).expect("valid")
}

fn identity(ca: &TestCa, id: &str) -> Arc<Identity> {
    let identity = Identity::empty();
    let (certificate, key) = ca.issue(id);
    identity.replace(&[certificate], &key).expect("a pair");
    identity
}

fn members(ids: &[&str]) -> Authorize {
    let trust_domain = TrustDomain::parse("a.test").expect("valid");
    Authorize::MemberOrOneOf { trust_domain, ids: ids.iter().map(|text| id(text)).collect::<HashSet<_>>() }
}

#[tokio::test]
async fn old_connections_are_replaced_under_calls() {
    let ca = TestCa::new("spiffe://a.test");
    let trust = Bundles::of(&[("a.test", &ca)]);
    let clients = ClientAuth { trust: trust.clone(), authorize: members(&[]) };
    let tls = ServerTls::grpc(identity(&ca, SERVER), clients, ANY).expect("a configuration");
    let incoming = tls.bind((Ipv4Addr::LOCALHOST, 0).into()).await.expect("bound");
    let port = incoming.local_addr().expect("an address").port();
    let accepted = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&accepted);
    let incoming = incoming.inspect(move |_| {
        count.fetch_add(1, Ordering::Relaxed);
    });
    let (stop, stopped) = oneshot::channel::<()>();
    let stopped = async {
        let _ = stopped.await;
    };
    let server = tokio::spawn(graceful(stopped, |signal| async {
        serve_tcp(Duration::from_millis(50), Routes::new(Echo), incoming, signal).await;
        Ok::<_, Infallible>(())
    }));
    let client = TlsClient::spiffe(trust, id(SERVER), None, ANY).expect("a configuration");
    let channel = tcp_channel("127.0.0.1", port, client).expect("an address");
    // More often than there are ages.
    let mut served = 0;
    while accepted.load(Ordering::Relaxed) < 40 {
        match call(&channel).await {
            Ok(_) => served += 1,
            // Not sent: hyper had it in its queue when the connection was to end.
            Err(status) => assert_eq!(status.code(), Code::Cancelled, "{status}"),
        }
    }
    assert!(served > 40, "{served}");
    stop.send(()).expect("it runs");
    drop(channel);
    assert_eq!(server.await.expect("task").expect("served"), Stopped::Gracefully);
}

#[tokio::test]
async fn a_server_that_vanishes_is_noticed() {
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("bound");
    let port = listener.local_addr().expect("an address").port();
    let ca = TestCa::new("spiffe://a.test");
    let client = TlsClient::spiffe(Bundles::of(&[("a.test", &ca)]), id(SERVER), None, ANY).expect("settings");
    for from in [None, Some(Ipv4Addr::LOCALHOST.into())] {
        let connector = TlsConnector::new(client.clone()).from_address(from);
        let stream = connector.dial_tcp("127.0.0.1".to_owned(), port).await.expect("it listens");
        assert_eq!(sockopt::tcp_user_timeout(&stream), Ok(30_000));
        assert_eq!(sockopt::socket_keepalive(&stream), Ok(true));
        assert_eq!(sockopt::tcp_keepidle(&stream), Ok(Duration::from_secs(30)));
    }
}

/// A proxy that asks for a password and leads everybody to one place.
async fn proxy(to: SocketAddr, heads: Arc<Mutex<Vec<String>>>) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("bound");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        loop {
            let (mut client, _) = listener.accept().await.expect("a client");
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                head.push(char::from(client.read_u8().await.expect("a head")));
            }
            let known = head.contains("Proxy-Authorization: Basic dXNlcjpzZWNyZXQ=\r\n");
            heads.lock().push(head);
            if !known {
                let refusal = "HTTP/1.1 407 Proxy Authentication Required\r\n\r\n";
                client.write_all(refusal.as_bytes()).await.expect("it reads");
                continue;
            }
            client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.expect("it reads");
            tokio::spawn(async move {
                let mut server = tokio::net::TcpStream::connect(to).await.expect("it listens");
                tokio::io::copy_bidirectional(&mut client, &mut server).await
            });
        }
    });
    address
}

#[tokio::test]
async fn a_proxy_leads_to_the_server() {
    let ca = TestCa::new("spiffe://a.test");
    let trust = Bundles::of(&[("a.test", &ca)]);
    let server = start(identity(&ca, SERVER), trust.clone(), members(&[]), ANY).await;
    let heads = Arc::<Mutex<Vec<String>>>::default();
    let proxy = proxy(server, Arc::clone(&heads)).await;
    let channel = |proxy: String| {
        let own = Some(identity(&ca, AGENT));
        let client = TlsClient::spiffe(trust.clone(), id(SERVER), own, ANY).expect("settings");
        let connector = TlsConnector::new(client).through(Some(Proxies::new(&proxy, "")));
        TcpTarget::new("server.example", 8081, connector).expect("an address").channel()
    };
    let trailers = call(&channel(format!("http://user:secret@{proxy}"))).await.expect("answered");
    assert_eq!(trailers["seen-id"], AGENT, "the proxy sees nothing of TLS");
    let head = heads.lock().remove(0);
    assert!(
        head.starts_with("CONNECT server.example:8081 HTTP/1.1\r\nHost: server.example:8081\r\n"),
        "{head}"
    );
    for (address, reason) in [
        (format!("http://{proxy}"), "tunnel error: proxy authorization required"),
        (format!("socks5://{proxy}"), "proxies other than http:// are not supported"),
    ] {
        let status = call(&channel(address)).await.expect_err("no connection");
        let text =
            format!("connection error: desc = \"transport: Error while dialing: proxy {proxy}: {reason}\"");
        assert_eq!((status.code(), status.message()), (Code::Unavailable, &*text));
    }
}

async fn start(
    identity: Arc<Identity>,
    trust: Arc<Bundles>,
    authorize: Authorize,
    policy: TlsPolicy,
) -> SocketAddr {
    let tls = ServerTls::grpc(identity, ClientAuth { trust, authorize }, policy).expect("a configuration");
    let incoming = tls.bind((Ipv4Addr::LOCALHOST, 0).into()).await.expect("bound");
    let address = incoming.local_addr().expect("an address");
    tokio::spawn(serve(tcp_server().add_service(Echo), incoming, pending()));
    address
}

/// One call on a connection of its own: the ID that the server saw, or the status.
async fn seen(
    address: SocketAddr,
    client: Result<TlsClient, TlsSetupError>,
) -> Result<String, tonic::Status> {
    let channel =
        tcp_channel("127.0.0.1", address.port(), client.expect("a configuration")).expect("an address");
    let trailers = call(&channel).await?;
    Ok(trailers.get("seen-id").map(|id| id.to_str().expect("text").to_owned()).unwrap_or_default())
}

const ANY: TlsPolicy = TlsPolicy { require_pq_kem: false };

#[tokio::test]
async fn both_sides_know_each_other() {
    let ca = TestCa::new("spiffe://a.test");
    let trust = Bundles::of(&[("a.test", &ca)]);
    let address = start(identity(&ca, SERVER), trust.clone(), members(&[]), ANY).await;
    let agent = Some(identity(&ca, AGENT));
    assert_eq!(
        seen(address, TlsClient::spiffe(trust.clone(), id(SERVER), agent, ANY)).await.expect("served"),
        AGENT
    );
    let nobody = TlsClient::spiffe(trust.clone(), id(SERVER), None, ANY);
    assert_eq!(seen(address, nobody).await.expect("served"), "");
    let empty = TlsClient::spiffe(trust.clone(), id(SERVER), Some(Identity::empty()), ANY);
    assert_eq!(seen(address, empty).await.expect("served"), "");
    assert_eq!(seen(address, TlsClient::insecure_bootstrap(id(SERVER), ANY)).await.expect("served"), "");
}

#[tokio::test]
async fn a_server_that_is_not_the_expected_one_is_refused() {
    let (ca, other) = (TestCa::new("spiffe://a.test"), TestCa::new("spiffe://a.test"));
    let trust = Bundles::of(&[("a.test", &ca)]);
    let cases = [
        (identity(&ca, AGENT), r#"unexpected ID \"spiffe://a.test/spire/agent/x\""#),
        (identity(&other, SERVER), "x509: certificate signed by unknown authority"),
        (identity(&ca, "spiffe://b.test/spire/server"), "no X.509 bundle for trust domain"),
    ];
    for (server, text) in cases {
        let address = start(server, trust.clone(), members(&[]), ANY).await;
        let status = seen(address, TlsClient::spiffe(trust.clone(), id(SERVER), None, ANY)).await;
        let status = status.expect_err("not the server");
        assert_eq!(status.code(), Code::Unavailable, "{text}");
        let start = r#"connection error: desc = "transport: authentication handshake failed: "#;
        assert!(
            status.message().starts_with(start) && status.message().contains(text),
            "{}",
            status.message()
        );
    }
    let address = start(identity(&other, AGENT), trust, members(&[]), ANY).await;
    let status =
        seen(address, TlsClient::insecure_bootstrap(id(SERVER), ANY)).await.expect_err("claims another");
    assert!(status.message().contains("expected server SPIFFE ID"), "{}", status.message());
}

#[tokio::test]
async fn clients_are_verified_and_authorized() {
    let (ca, foreign, rogue) =
        (TestCa::new("spiffe://a.test"), TestCa::new("spiffe://b.test"), TestCa::new("spiffe://a.test"));
    let trust = Bundles::of(&[("a.test", &ca), ("b.test", &foreign)]);
    let admin = "spiffe://b.test/admin";
    let address = start(identity(&ca, SERVER), trust.clone(), members(&[admin]), ANY).await;
    let client = |who| TlsClient::spiffe(trust.clone(), id(SERVER), Some(who), ANY);
    assert_eq!(seen(address, client(identity(&foreign, admin))).await.expect("an admin"), admin);
    for (ca, who) in [
        (&foreign, "spiffe://b.test/other"), // not an admin
        (&rogue, AGENT),                     // signed by nobody that is known
        (&ca, admin),                        // signed by another trust domain
    ] {
        let status = seen(address, client(identity(ca, who))).await.expect_err(who);
        assert_eq!(status.code(), Code::Unavailable);
        assert_eq!(
            status.message(),
            r#"connection error: desc = "error reading server preface: remote error: tls: bad certificate""#
        );
    }
    seen(address, client(identity(&ca, AGENT))).await.expect("a member");
}

#[tokio::test]
async fn changes_count_from_the_next_connection_on() {
    let (ca, next) = (TestCa::new("spiffe://a.test"), TestCa::new("spiffe://a.test"));
    let trust = Bundles::of(&[("a.test", &ca)]);
    let (server, agent) = (identity(&ca, SERVER), identity(&ca, AGENT));
    let address = start(server.clone(), trust.clone(), members(&[]), ANY).await;
    let client =
        TlsClient::spiffe(trust.clone(), id(SERVER), Some(agent.clone()), ANY).expect("a configuration");
    assert_eq!(seen(address, Ok(client.clone())).await.expect("served"), AGENT);

    trust.put("a.test", &next);
    seen(address, Ok(client.clone())).await.expect_err("the authority is gone, and nothing is resumed");
    for (slot, name) in [(&server, SERVER), (&agent, "spiffe://a.test/spire/agent/y")] {
        let (certificate, key) = next.issue(name);
        slot.replace(&[certificate], &key).expect("a pair");
    }
    assert_eq!(seen(address, Ok(client.clone())).await.expect("served"), "spiffe://a.test/spire/agent/y");
    server.clear();
    seen(address, Ok(client)).await.expect_err("nothing to show");
}

#[test]
fn a_key_of_another_certificate_is_refused() {
    let ca = TestCa::new("spiffe://a.test");
    let ((certificate, _), (_, key)) = (ca.issue(SERVER), ca.issue(SERVER));
    let identity = Identity::empty();
    assert!(matches!(identity.replace(std::slice::from_ref(&certificate), &key), Err(IdentityError::Key(_))));
    assert!(matches!(identity.replace(&[], &key), Err(IdentityError::Empty)));
    assert!(matches!(identity.replace(&[certificate], b"no key"), Err(IdentityError::Key(_))));
    assert!(identity.is_empty());
}

#[tokio::test]
async fn post_quantum_key_exchange_can_be_required() {
    const PQ: TlsPolicy = TlsPolicy { require_pq_kem: true };
    let ca = TestCa::new("spiffe://a.test");
    let trust = Bundles::of(&[("a.test", &ca)]);
    let address = start(identity(&ca, SERVER), trust.clone(), members(&[]), PQ).await;
    for policy in [PQ, ANY] {
        seen(address, TlsClient::spiffe(trust.clone(), id(SERVER), None, policy)).await.expect("both can");
    }
    let client = TlsClient::spiffe(trust, id(SERVER), None, ANY).expect("a configuration");
    let mut config = rustls::ClientConfig::clone(&client.config);
    let mut provider = rustls::crypto::CryptoProvider::clone(config.crypto_provider());
    provider.kx_groups.retain(|group| group.name() == rustls::NamedGroup::X25519);
    config = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let status =
        seen(address, Ok(TlsClient { config: Arc::new(config) })).await.expect_err("no common group");
    assert!(status.message().contains("remote error: tls: handshake failure"), "{}", status.message());
}

#[tokio::test]
async fn a_silent_client_holds_up_nobody_and_http1_is_refused() {
    let ca = TestCa::new("spiffe://a.test");
    let trust = Bundles::of(&[("a.test", &ca)]);
    let address = start(identity(&ca, SERVER), trust.clone(), members(&[]), ANY).await;
    let _silent = tokio::net::TcpStream::connect(address).await.expect("connects");
    seen(address, TlsClient::spiffe(trust.clone(), id(SERVER), None, ANY)).await.expect("served");

    let http1 = TlsClient::spiffe_https(trust, id(SERVER), ANY).expect("a configuration");
    let error = TlsConnector::new(http1).dial("127.0.0.1".to_owned(), address.port()).await;
    let error = error.expect_err("no common protocol").to_string();
    assert!(error.contains("remote error: tls: no application protocol"), "{error}");
}

#[tokio::test]
async fn a_chain_of_a_hundred_certificates_is_refused() {
    let ca = TestCa::new("spiffe://a.test");
    let trust = Bundles::of(&[("a.test", &ca)]);
    let address = start(identity(&ca, SERVER), trust.clone(), members(&[]), ANY).await;
    let (leaf, key) = ca.issue(AGENT);
    let long = Identity::empty();
    let mut chain = vec![leaf];
    chain.resize(101, ca.certificate.clone());
    long.replace(&chain, &key).expect("a pair");
    let client = TlsClient::spiffe(trust.clone(), id(SERVER), Some(long), ANY);
    let status = seen(address, client).await.expect_err("too long");
    assert_eq!(status.code(), Code::Unavailable, "{}", status.message());
    seen(address, TlsClient::spiffe(trust, id(SERVER), Some(identity(&ca, AGENT)), ANY))
        .await
        .expect("served");
}

/// A client that speaks TLS and then nothing.
async fn handshaken(
    address: SocketAddr,
    client: &TlsClient,
) -> std::io::Result<tokio_rustls::client::TlsStream<tokio::net::TcpStream>> {
    let tcp = tokio::net::TcpStream::connect(address).await?;
    let connector = tokio_rustls::TlsConnector::from(client.config.clone());
    connector.connect(rustls::pki_types::ServerName::try_from("spire").expect("a name"), tcp).await
}

#[tokio::test]
async fn the_cipher_is_the_one_that_go_would_agree_upon() {
    let ca = TestCa::new("spiffe://a.test");
    let trust = Bundles::of(&[("a.test", &ca)]);
    let address = start(identity(&ca, SERVER), trust.clone(), members(&[]), ANY).await;
    let client = TlsClient::spiffe(trust, id(SERVER), None, ANY).expect("a configuration");
    let stream = handshaken(address, &client).await.expect("a handshake");
    let suite = stream.get_ref().1.negotiated_cipher_suite().expect("agreed").suite();
    assert_eq!(suite, rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);

    // Nor does it matter what a client would rather have: the library's own order begins with AES-256.
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let verifier = UnverifiedServer::new(id(SERVER), provider.signature_verification_algorithms);
    let mut config = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = handshaken(address, &TlsClient { config: Arc::new(config) }).await.expect("a handshake");
    let suite = stream.get_ref().1.negotiated_cipher_suite().expect("agreed").suite();
    assert_eq!(suite, rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
}

/// Whether the server ended a connection.
async fn is_ended(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> bool {
    use tokio::io::AsyncReadExt as _;
    let mut space = [0; 1024];
    loop {
        match stream.read(&mut space).await {
            Ok(0) | Err(_) => return true,
            Ok(_) => {}
        }
    }
}

#[tokio::test(start_paused = true)]
async fn who_never_begins_to_speak_is_disconnected() {
    let ca = TestCa::new("spiffe://a.test");
    let trust = Bundles::of(&[("a.test", &ca)]);
    let address = start(identity(&ca, SERVER), trust.clone(), members(&[]), ANY).await;
    let mut silent = tokio::net::TcpStream::connect(address).await.expect("connects");
    assert!(is_ended(&mut silent).await, "no handshake");
    let client = TlsClient::spiffe(trust, id(SERVER), None, ANY).expect("a configuration");
    let mut mute = handshaken(address, &client).await.expect("a handshake");
    assert!(is_ended(&mut mute).await, "no preface");
}

#[tokio::test]
async fn connections_of_one_identity_and_of_nobody_are_bounded() {
    let ca = TestCa::new("spiffe://a.test");
    let trust = Bundles::of(&[("a.test", &ca)]);
    let address = start(identity(&ca, SERVER), trust.clone(), members(&[]), ANY).await;
    let greedy =
        TlsClient::spiffe(trust.clone(), id(SERVER), Some(identity(&ca, AGENT)), ANY).expect("a client");
    let mut held = Vec::new();
    for _ in 0..64 {
        let mut connection = handshaken(address, &greedy).await.expect("a place");
        // The server's first frame shows that the connection was taken.
        use tokio::io::AsyncReadExt as _;
        connection.read_u8().await.expect("settings");
        held.push(connection);
    }
    let mut one_more = handshaken(address, &greedy).await.expect("TLS 1.3 tells later");
    assert!(is_ended(&mut one_more).await, "64 are enough");
    let other = Some(identity(&ca, "spiffe://a.test/spire/agent/y"));
    seen(address, TlsClient::spiffe(trust.clone(), id(SERVER), other, ANY)).await.expect("another agent");
    seen(address, TlsClient::spiffe(trust, id(SERVER), None, ANY)).await.expect("a new node");
}

/// Sends a PROXY header and then makes one call; the address that the server saw, or why not.
async fn behind_proxy(address: SocketAddr, header: &[u8], client: &TlsClient) -> Result<String, String> {
    use tokio::io::AsyncWriteExt as _;
    let mut tcp = tokio::net::TcpStream::connect(address).await.map_err(|e| e.to_string())?;
    tcp.write_all(header).await.map_err(|e| e.to_string())?;
    let connector = tokio_rustls::TlsConnector::from(client.config.clone());
    let name = rustls::pki_types::ServerName::try_from("spire").expect("a name");
    let tls = connector.connect(name, tcp).await.map_err(|e| e.to_string())?;
    let channel = tonic::transport::Endpoint::from_static("http://spire")
        .connect_with_connector(crate::fixture::Once(Some(hyper_util::rt::TokioIo::new(tls))))
        .await
        .map_err(|e| e.to_string())?;
    let trailers = call(&channel).await.map_err(|e| e.to_string())?;
    Ok(trailers.get("seen-address").map(|a| a.to_str().expect("text").to_owned()).unwrap_or_default())
}

#[tokio::test]
async fn trusted_proxies_say_who_the_client_is_and_others_may_not() {
    let ca = TestCa::new("spiffe://a.test");
    let trust = Bundles::of(&[("a.test", &ca)]);
    let client = TlsClient::spiffe(trust.clone(), id(SERVER), None, ANY).expect("a configuration");
    let listen = async |proxies: Option<bool>| {
        let clients = ClientAuth { trust: trust.clone(), authorize: members(&[]) };
        let tls = ServerTls::grpc(identity(&ca, SERVER), clients, ANY).expect("a configuration");
        let mut incoming = tls.bind((Ipv4Addr::LOCALHOST, 0).into()).await.expect("bound");
        if let Some(trusted) = proxies {
            incoming = incoming.behind(crate::proxy::TrustedProxies::new(move |_| trusted));
        }
        let address = incoming.local_addr().expect("an address");
        tokio::spawn(serve(tcp_server().add_service(Echo), incoming, pending()));
        address
    };
    let v1 = b"PROXY TCP4 10.1.2.3 127.0.0.1 12345 8081\r\n";
    let v2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x0a\x01\x02\x03\x7f\0\0\x01\x30\x39\x1f\x91";
    let trusting = listen(Some(true)).await;
    assert_eq!(behind_proxy(trusting, v1, &client).await, Ok("10.1.2.3:12345".to_owned()));
    assert_eq!(behind_proxy(trusting, v2, &client).await, Ok("10.1.2.3:12345".to_owned()));
    let itself = behind_proxy(trusting, b"PROXY UNKNOWN\r\n", &client).await.expect("served");
    assert!(itself.starts_with("127.0.0.1:"), "{itself}");
    let directly = behind_proxy(trusting, b"", &client).await.expect("a header is not required");
    assert!(directly.starts_with("127.0.0.1:"), "{directly}");
    behind_proxy(trusting, b"PROXY TCP4 nowhere 127.0.0.1 1 2\r\n", &client).await.expect_err("malformed");

    let distrusting = listen(Some(false)).await;
    behind_proxy(distrusting, v1, &client).await.expect_err("may not say it");
    behind_proxy(distrusting, v2, &client).await.expect_err("may not say it");
    behind_proxy(distrusting, b"", &client).await.expect("served");
    let plain = listen(None).await;
    behind_proxy(plain, v1, &client).await.expect_err("not TLS");
    behind_proxy(plain, b"", &client).await.expect("served");
}

/// As Go's: agents come by either family, and one of IPv4 has the same name on every listener.
#[tokio::test]
async fn a_listener_on_every_address_serves_both_families() {
    let ca = TestCa::new("spiffe://a.test");
    let trust = Bundles::of(&[("a.test", &ca)]);
    let client = TlsClient::spiffe(trust.clone(), id(SERVER), None, ANY).expect("a configuration");
    let clients = ClientAuth { trust, authorize: members(&[]) };
    let tls = ServerTls::grpc(identity(&ca, SERVER), clients, ANY).expect("a configuration");
    let incoming = tls.bind((Ipv4Addr::UNSPECIFIED, 0).into()).await.expect("bound");
    let trusted = |peer: std::net::IpAddr| peer.is_ipv4();
    let incoming = incoming.behind(crate::proxy::TrustedProxies::new(trusted));
    let port = incoming.local_addr().expect("an address").port();
    tokio::spawn(serve(tcp_server().add_service(Echo), incoming, pending()));
    let by = |ip: std::net::IpAddr| SocketAddr::new(ip, port);
    let ipv4 = by(Ipv4Addr::LOCALHOST.into());
    let peer = behind_proxy(ipv4, b"", &client).await.expect("served");
    assert!(peer.starts_with("127.0.0.1:"), "{peer}");
    let header = b"PROXY TCP6 ::ffff:10.1.2.3 ::1 12345 8081\r\n";
    assert_eq!(behind_proxy(ipv4, header, &client).await, Ok("10.1.2.3:12345".to_owned()));
    let localhost = std::net::Ipv6Addr::LOCALHOST;
    if tokio::net::TcpListener::bind((localhost, 0)).await.is_ok() {
        let peer = behind_proxy(by(localhost.into()), b"", &client).await.expect("served");
        assert!(peer.starts_with("[::1]:"), "{peer}");
    }
}
