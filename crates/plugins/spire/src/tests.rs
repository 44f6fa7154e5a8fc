//! Against an upstream server and a Workload API of these tests.

mod fake;

use std::time::Duration;

use spire_compat::hcl;
use spire_core::pki::{Certificate, CsrTemplate, DistinguishedName, KeyType, LocalKey};
use spire_core::spiffe::{JwtAuthority, TrustDomain};
use spire_core::time::Timestamp;
use spire_ports::plugins::catalog::Configuration;
use spire_ports::plugins::{ErrorKind, LocalBundle, PluginType, UpstreamAuthority};
use spire_wire::api::types;
use tonic::Status;

use self::fake::{Ca, Upstream};
use crate::authority::Spire;
use crate::settings;

fn configuration(data: &str) -> Configuration {
    let data = hcl::parse(data).unwrap().into();
    Configuration::new((PluginType::UpstreamAuthority, "spire"), trust_domain(), Some(data))
}

fn trust_domain() -> TrustDomain {
    TrustDomain::parse("example.org").unwrap()
}

#[test]
fn settings_are_checked_in_the_order_of_the_reference() {
    for (data, message) in [
        ("server_address = {", None),
        ("", Some("server_address is required")),
        ("server_address = \"a\"", Some("server_port is required")),
        ("server_address = \"a\" server_port = \"1\"", Some("workload_api_socket is required")),
        (
            "server_address = \"a\" server_port = \"1\" experimental { workload_api_named_pipe_name = \"p\" }",
            Some(
                "configuration: workload_api_named_pipe_name is not supported on this platform; please use \
                 workload_api_socket instead",
            ),
        ),
        (
            "server_address = \"a\" server_port = \"http\" workload_api_socket = \"/s\"",
            Some("server_port must be a port number, not \"http\""),
        ),
        ("server_address = [\"a\"]", Some("plugin configuration is malformed")),
    ] {
        let Some(message) = message else {
            assert!(hcl::parse(data).is_err());
            continue;
        };
        let error = settings::read(&configuration(data)).unwrap_err();
        assert_eq!((error.kind, &*error.message), (ErrorKind::InvalidArgument, message), "{data}");
    }
    let data = "server_address = \"a\"\nserver_port = 8081\nworkload_api_socket = \"agent.sock\"\n\
                experimental { require_pq_kem = true }";
    let read = settings::read(&configuration(data)).unwrap();
    assert_eq!((&*read.host, read.port, read.require_pq_kem), ("a", 8081, true));
    assert_eq!(read.socket, std::env::current_dir().unwrap().join("agent.sock"));
}

fn plugin(upstream: &Upstream) -> Spire {
    let data = format!(
        "server_address = \"127.0.0.1\"\nserver_port = {}\nworkload_api_socket = \"{}\"",
        upstream.port,
        upstream.socket().display()
    );
    Spire::new(settings::read(&configuration(&data)).unwrap(), trust_domain(), Duration::from_millis(10))
}

fn csr() -> Vec<u8> {
    let key = LocalKey::generate(KeyType::EcP256).unwrap();
    let template = CsrTemplate {
        subject: &DistinguishedName::default().encode().unwrap(),
        public_key: key.public_key(),
        dns_names: &[],
        uris: &["spiffe://example.org"],
        extra_extensions: &[],
    };
    let tbs = template.to_be_signed().unwrap();
    let signature = key.sign(tbs.algorithm(), tbs.bytes()).unwrap();
    tbs.assemble(&signature)
}

fn key(kid: &str) -> JwtAuthority {
    let public_key = LocalKey::generate(KeyType::EcP256).unwrap().public_key().spki().clone();
    JwtAuthority {
        kid: kid.into(),
        public_key,
        not_after: Timestamp::from_unix(4_000_000_000),
        tainted: false,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ca_comes_with_its_chain_and_the_roots_that_are_tainted() {
    let upstream = Upstream::start().await;
    let old = Ca::new();
    upstream.change(|state| {
        let asn1 = old.certificate.der().clone();
        state.bundle.x509_authorities.push(types::X509Certificate { asn1, tainted: true });
    });
    let plugin = plugin(&upstream);
    let minted = plugin.mint_x509_ca(&csr(), &trust_domain().id(), Duration::from_secs(3600)).await.unwrap();
    let chain: Vec<_> = minted.chain.iter().map(|der| Certificate::from_der(der.clone()).unwrap()).collect();
    assert_eq!(chain.len(), 1);
    assert!(chain[0].is_ca());
    let roots: Vec<_> = minted.roots.iter().map(|root| (root.der.clone(), root.tainted)).collect();
    let ca = upstream.ca.certificate.der().clone();
    assert_eq!(roots, [(ca, false), (old.certificate.der().clone(), true)]);
    let asked = upstream.asked();
    assert_eq!(asked, [("spiffe://example.org/downstream".to_owned(), 3600)]);
    assert!({ minted.updates }.recv().await.is_none(), "the bundle is followed by another stream");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_go_up() {
    let upstream = Upstream::start().await;
    let plugin = plugin(&upstream);
    let (ours, theirs) = (key("ours"), key("theirs"));
    upstream.change(|state| {
        state.bundle.jwt_authorities.push(types::JwtKey {
            public_key: theirs.public_key.clone(),
            key_id: theirs.kid.clone(),
            expires_at: theirs.not_after.unix(),
            tainted: false,
        });
    });
    let (keys, _) = plugin.publish_jwt_key(&ours).await.unwrap();
    assert_eq!(keys, [theirs, ours.clone()]);
    // An upstream without WIT-SVIDs is another matter than one that fails.
    let error = plugin.publish_wit_key(&ours).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unimplemented);
    upstream.change(|state| state.wit = true);
    assert_eq!(plugin.publish_wit_key(&ours).await.unwrap(), std::slice::from_ref(&ours));
    upstream.change(|state| state.failure = Some(Status::permission_denied("not for you")));
    let error = plugin.publish_jwt_key(&ours).await.unwrap_err();
    assert_eq!(
        (error.kind, &*error.message),
        (
            ErrorKind::Internal,
            "failed to push JWT authority: rpc error: code = PermissionDenied desc = not for you"
        )
    );
    assert_eq!(plugin.publish_wit_key(&ours).await.unwrap_err().kind, ErrorKind::Internal);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bundle_is_followed_over_failures() {
    let upstream = Upstream::start().await;
    let plugin = plugin(&upstream);
    let LocalBundle { x509_authorities, jwt_authorities, mut updates } =
        plugin.subscribe_to_local_bundle().await.unwrap();
    assert_eq!((x509_authorities.len(), jwt_authorities.len()), (1, 0));
    upstream.change(|state| state.bundle.x509_authorities[0].tainted = true);
    let tainted = updates.recv().await.unwrap().unwrap();
    assert!(tainted.0[0].tainted);
    upstream.change(|state| state.failure = Some(Status::unavailable("down")));
    upstream.seen_again().await;
    upstream.change(|state| {
        state.failure = None;
        state.bundle.wit_authorities.push(types::WitKey {
            public_key: key("w").public_key,
            key_id: "w".to_owned(),
            expires_at: 0,
            tainted: false,
        });
    });
    // It is told of WIT keys that there is something new.
    assert_eq!(updates.recv().await.unwrap().unwrap(), tainted);
    assert_eq!(plugin.wit_keys().await.unwrap()[0].kid, "w");
    // What cannot be true changes nothing.
    for broken in [
        types::Bundle { trust_domain: "other.org".into(), ..upstream.bundle() },
        types::Bundle {
            x509_authorities: vec![types::X509Certificate::default(); 1025],
            ..upstream.bundle()
        },
        types::Bundle { jwt_authorities: vec![types::JwtKey::default()], ..upstream.bundle() },
        types::Bundle {
            x509_authorities: vec![types::X509Certificate { asn1: "x".into(), tainted: false }],
            ..upstream.bundle()
        },
    ] {
        let good = upstream.bundle();
        upstream.change(|state| state.bundle = broken);
        upstream.seen_again().await;
        upstream.change(|state| state.bundle = good);
    }
    upstream.change(|state| state.bundle.wit_authorities.clear());
    assert_eq!(updates.recv().await.unwrap().unwrap(), tainted);
    assert!(plugin.wit_keys().await.unwrap().is_empty());
    drop(updates);
    // Nobody listens: the polling ends, and so does the connection with the plugin.
    drop(plugin);
    upstream.quiet().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_follows_the_bundle_hears_when_another_plugin_takes_the_place() {
    let upstream = Upstream::start().await;
    let plugin = plugin(&upstream);
    let mut updates = plugin.subscribe_to_local_bundle().await.unwrap().updates;
    drop(plugin);
    assert!(updates.recv().await.is_none(), "who follows subscribes again, at the new one");
    upstream.quiet().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_read_as_the_reference_says_them() {
    let upstream = Upstream::start().await;
    let plugin = plugin(&upstream);
    upstream.change(|state| state.failure = Some(Status::permission_denied("no downstream entry")));
    let id = trust_domain().id();
    let error = plugin.mint_x509_ca(&csr(), &id, Duration::ZERO).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "upstreamauthority(spire): unable to request a new Downstream X509CA: rpc error: code = PermissionDenied desc = \
         no downstream entry"
    );
    let error = plugin.subscribe_to_local_bundle().await.unwrap_err();
    assert_eq!(
        error.message,
        "failed to fetch bundle from upstream server: rpc error: code = Internal desc = failed to get bundle: rpc \
         error: code = PermissionDenied desc = no downstream entry"
    );
    // A server that no authority of the Workload API vouches for is not spoken to.
    let stranger = Upstream::with_server_of(Ca::new()).await;
    let error = self::plugin(&stranger).mint_x509_ca(&csr(), &id, Duration::ZERO).await.unwrap_err();
    assert!(error.message.contains("code = Unavailable"), "{error}");
    assert!(stranger.asked().is_empty());
}
