//! Mutual TLS between our own two sides, on loopback.

use std::collections::HashMap;
use std::collections::HashSet;
use std::future::pending;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use parking_lot::Mutex;
use spire_core::pki::Certificate;
use spire_core::spiffe::{SpiffeId, TrustDomain};
use tonic::Code;

use super::{
    Authorize, ClientAuth, Identity, IdentityError, ServerTls, TlsClient, TlsPolicy, TlsSetupError,
    TrustSource,
};
use crate::fixture::{Echo, TestCa, call};
use crate::grpc::{serve, tcp_channel, tcp_server};

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
    let error = super::TlsConnector::new(http1).dial("127.0.0.1".to_owned(), address.port()).await;
    let error = error.expect_err("no common protocol").to_string();
    assert!(error.contains("remote error: tls: no application protocol"), "{error}");
}
