//! Two trust domains in one process: endpoints that serve and endpoints that lie, over TLS on loopback.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use spire_core::model::{BundleEndpoint as Endpoint, FederationRelationship};
use spire_core::spiffe::{Bundle, SpiffeId, TrustDomain, X509Authority};
use spire_net::http_server::{self, Answer};
use spire_net::https::HttpsClient;
use spire_net::tls::{Identity, ServerTls, TlsClient, TlsPolicy, TrustSource};
use spire_ports::datastore::{Bundles as _, DataStore, Federation as _};
use spire_ports::observe::NoMetrics;
use tokio_util::sync::CancellationToken;

use super::fetch::FetchPolicy;
use super::relationship::{Relationship, Sources};
use super::schedule::next_look;
use super::update::update;
use super::*;
use crate::api::BundleRefresher as _;
use crate::ca::{Authorities, CaConfig, CaPorts, ServerSvid};
use crate::config::{
    BundleEndpoint, BundleEndpointProfile, FederatesWith, FederationConfig, FederationProfile,
};
use crate::entries::{Intervals, LiveEntries};
use crate::testing::{FakeClock, MemoryKeys, MemoryStore};

const POLICY: TlsPolicy = TlsPolicy { require_pq_kem: false };

fn td(name: &str) -> TrustDomain {
    TrustDomain::parse(name).unwrap()
}

fn id(text: &str) -> SpiffeId {
    SpiffeId::parse(text).unwrap()
}

/// Another trust domain, with its authorities and its SVID.
struct Other {
    authorities: Arc<Authorities>,
    identity: Arc<Identity>,
    keys: Arc<MemoryKeys>,
}

impl Other {
    async fn new(name: &str) -> Self {
        let (store, keys) = (MemoryStore::new(), Arc::new(MemoryKeys::default()));
        let datastore: Arc<dyn DataStore> = store.clone();
        // Handshakes are judged by the machine's clock.
        let clock = Arc::new(crate::clock::SystemClock);
        let ports = CaPorts::new(&datastore, keys.clone(), Arc::new(NoMetrics), clock);
        let authorities = Authorities::start(CaConfig::new(td(name)), ports).await.unwrap();
        let svid = ServerSvid::start(authorities.clone()).await.unwrap().current();
        let chain: Vec<_> = svid
            .chain
            .iter()
            .map(|der| spire_core::pki::Certificate::from_der(der.clone()).unwrap())
            .collect();
        let identity = Identity::empty();
        identity.replace(&chain, &svid.key.to_pkcs8().unwrap()).unwrap();
        Self { authorities, identity, keys }
    }

    fn bundle(&self) -> Bundle {
        Bundle::clone(&self.authorities.bundle_changes().current().unwrap())
    }

    /// Serves its bundle as it should.
    async fn serve(&self, stop: &CancellationToken) -> SocketAddr {
        let config = BundleEndpoint {
            address: Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            port: 0,
            refresh_hint: Duration::from_secs(300),
            profile: BundleEndpointProfile::HttpsSpiffe,
        };
        let parts = BundleEndpointParts {
            bundle: self.authorities.bundle_changes().clone(),
            identity: self.identity.clone(),
            key_manager: self.keys.clone(),
            policy: POLICY,
        };
        let server = BundleEndpointServer::bind(&config, parts).await.unwrap();
        let address = server.local_addr().unwrap();
        tokio::spawn(server.serve(stop.clone().cancelled_owned()));
        address
    }

    /// Shows its SVID, and answers everything with this.
    async fn answer(&self, answer: impl Fn() -> Answer + Clone + Send + Sync + 'static) -> SocketAddr {
        let tls = ServerTls::https(self.identity.clone(), POLICY).unwrap();
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let handler = move |_| std::future::ready(answer());
        tokio::spawn(http_server::serve(
            http_server::incoming(&tls, listener),
            handler,
            std::future::pending(),
        ));
        address
    }
}

fn relationship(address: SocketAddr, endpoint_id: &str) -> Relationship {
    Relationship {
        endpoint_url: format!("https://{address}/"),
        endpoint: Endpoint::HttpsSpiffe(id(endpoint_id)),
    }
}

const SERVER: &str = "spiffe://b.test/spire/server";

#[tokio::test]
async fn a_bundle_is_fetched_stored_and_kept() {
    let (other, store) = (Other::new("b.test").await, MemoryStore::new());
    let address = other.serve(&CancellationToken::new()).await;
    let relationship = relationship(address, SERVER);
    let nothing = Box::pin(update(&*store, &td("b.test"), &relationship, FetchPolicy::default())).await;
    let text = "can't perform SPIFFE Authentication: local copy of bundle not found";
    assert_eq!(nothing.stored.unwrap_err().to_string(), text);

    let mut first = other.bundle();
    first.jwt_authorities.clear();
    store.bundle_set(&first).await.unwrap();
    let changed = Box::pin(update(&*store, &td("b.test"), &relationship, FetchPolicy::default())).await;
    let stored = changed.stored.unwrap().expect("the endpoint knows more");
    assert_eq!(stored.jwt_authorities.len(), 1);
    assert_eq!(stored.refresh_hint, Duration::from_secs(300), "the endpoint's hint");
    assert_eq!(store.bundle_fetch(&td("b.test")).await.unwrap(), Some(stored));

    let same = Box::pin(update(&*store, &td("b.test"), &relationship, FetchPolicy::default())).await;
    assert!(same.local.is_some());
    assert!(same.stored.unwrap().is_none(), "nothing new");
}

#[tokio::test]
async fn endpoints_that_are_somebody_else_are_refused_and_the_bundle_stays() {
    let (other, store) = (Other::new("b.test").await, MemoryStore::new());
    let address = other.serve(&CancellationToken::new()).await;
    let known = other.bundle();
    store.bundle_set(&known).await.unwrap();
    let stranger = Other::new("b.test").await;
    let stranger_address = stranger.serve(&CancellationToken::new()).await;
    let refuse = |address: SocketAddr, text: &str| {
        format!(
            "failed to fetch federated bundle from endpoint: failed to fetch bundle: Get \"https://{address}/\": {text}"
        )
    };
    let cases = [
        (
            relationship(address, "spiffe://b.test/other"),
            refuse(address, "unexpected ID \"spiffe://b.test/spire/server\""),
        ),
        (
            relationship(stranger_address, SERVER),
            refuse(
                stranger_address,
                "x509svid: could not verify leaf certificate: x509: certificate signed by unknown authority",
            ),
        ),
        (
            Relationship {
                endpoint_url: format!("https://localhost:{}/", address.port()),
                endpoint: Endpoint::HttpsWeb,
            },
            format!(
                "failed to fetch federated bundle from endpoint: failed to authenticate bundle endpoint using web \
                 authentication but the server certificate contains SPIFFE ID \"spiffe://b.test/spire/server\": maybe use \
                 https_spiffe instead of https_web: Get \"https://localhost:{}/\": tls: failed to verify certificate: x509: \
                 certificate is not valid for any names, but wanted to match localhost",
                address.port()
            ),
        ),
    ];
    for (relationship, text) in cases {
        let refused = Box::pin(update(&*store, &td("b.test"), &relationship, FetchPolicy::default())).await;
        assert_eq!(refused.stored.unwrap_err().to_string(), text);
        assert_eq!(refused.local.as_ref(), Some(&known));
    }
    let private = FetchPolicy { public_only: true, ..FetchPolicy::default() };
    let refused = Box::pin(update(&*store, &td("b.test"), &relationship(address, SERVER), private)).await;
    assert_eq!(
        refused.stored.unwrap_err().to_string(),
        refuse(
            address,
            &format!("dial tcp {address}: not a public address, which are the only ones allowed")
        )
    );
    assert_eq!(store.bundle_fetch(&td("b.test")).await.unwrap(), Some(known));
}

fn with(status: StatusCode, location: Option<&'static str>, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(http_body_util::Full::new(body.into()));
    *answer.status_mut() = status;
    if let Some(location) = location {
        answer.headers_mut().insert("location", location.parse().unwrap());
    }
    answer
}

/// Nothing that was sent may be in the error: it goes to whoever may name the URL.
#[tokio::test]
async fn answers_that_are_no_bundle_are_refused_without_a_word_of_them() {
    const SECRET: &str = "hunter2";
    let (other, store) = (Other::new("b.test").await, MemoryStore::new());
    let known = other.bundle();
    store.bundle_set(&known).await.unwrap();
    type Make = fn() -> Answer;
    let cases: [(Make, &str); 9] = [
        (
            || with(StatusCode::FOUND, Some("https://127.0.0.1:1/hunter2"), ""),
            "unexpected status 302 fetching bundle",
        ),
        (|| with(StatusCode::NOT_FOUND, None, SECRET), "unexpected status 404 fetching bundle"),
        (|| with(StatusCode::OK, None, SECRET), "failed to decode bundle: not JSON"),
        (|| with(StatusCode::OK, None, "[]"), "failed to decode bundle: malformed bundle: not an object"),
        (|| with(StatusCode::OK, None, "{}"), "failed to decode bundle: no authorities found"),
        (
            || {
                with(
                    StatusCode::OK,
                    None,
                    r#"{"keys":[{"use":"hunter2","kty":"EC","crv":"P-256","x":"","y":""}]}"#,
                )
            },
            "failed to decode bundle: malformed key",
        ),
        (
            || {
                let x = "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4";
                let y = "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM";
                let key = format!(r#"{{"use":"hunter2","kty":"EC","crv":"P-256","x":"{x}","y":"{y}"}}"#);
                with(StatusCode::OK, None, format!(r#"{{"keys":[{key}]}}"#))
            },
            "failed to decode bundle: unrecognized use for key entry 0",
        ),
        (
            || with(StatusCode::OK, None, r#"{"keys":[],"spiffe_refresh_hint":"hunter2"}"#),
            "failed to decode bundle: malformed bundle: spiffe_refresh_hint",
        ),
        (
            || with(StatusCode::OK, None, vec![b' '; (4 << 20) + 1]),
            "failed to fetch bundle: response is larger than 4194304 bytes",
        ),
    ];
    for (answer, text) in cases {
        let address = other.answer(answer).await;
        let relationship = relationship(address, SERVER);
        let refused = Box::pin(update(&*store, &td("b.test"), &relationship, FetchPolicy::default())).await;
        let error = refused.stored.unwrap_err().to_string();
        assert_eq!(error, format!("failed to fetch federated bundle from endpoint: {text}"));
        assert_eq!(store.bundle_fetch(&td("b.test")).await.unwrap().as_ref(), Some(&known));
    }
    // An empty list is a statement: the trust domain trusts nobody any more.
    let address = other.answer(|| with(StatusCode::OK, None, r#"{"keys":[]}"#)).await;
    let emptied =
        Box::pin(update(&*store, &td("b.test"), &relationship(address, SERVER), FetchPolicy::default()))
            .await;
    assert!(emptied.stored.unwrap().unwrap().x509_authorities.is_empty());
}

#[tokio::test]
async fn a_broken_datastore_is_told_and_harmless() {
    let (other, store) = (Other::new("b.test").await, MemoryStore::new());
    let address = other.serve(&CancellationToken::new()).await;
    store.bundle_set(&other.bundle()).await.unwrap();
    store.rows.lock().broken = true;
    let refused =
        Box::pin(update(&*store, &td("b.test"), &relationship(address, SERVER), FetchPolicy::default()))
            .await;
    let error = refused.stored.unwrap_err().to_string();
    assert!(error.starts_with("failed to fetch local copy of bundle for \"b.test\": "), "{error}");
}

#[derive(Debug)]
struct Trust(TrustDomain, Arc<[spire_core::pki::Certificate]>);

impl TrustSource for Trust {
    fn authorities(&self, trust_domain: &TrustDomain) -> Option<Arc<[spire_core::pki::Certificate]>> {
        (*trust_domain == self.0).then(|| self.1.clone())
    }
}

#[tokio::test]
async fn the_endpoint_answers_as_the_reference_does() {
    let other = Other::new("b.test").await;
    let address = other.serve(&CancellationToken::new()).await;
    let roots = other.bundle().x509_authorities.into_iter();
    let roots = roots.map(|a| spire_core::pki::Certificate::from_der(a.der).unwrap()).collect();
    let trust = Arc::new(Trust(td("b.test"), roots));
    let client = HttpsClient::new(TlsClient::spiffe_https(trust, id(SERVER), POLICY).unwrap());
    let ask = |method: &'static str, path: &'static str| {
        let request = Request::builder().method(method).uri(format!("https://{address}{path}"));
        client.send(request.body(Bytes::new()).unwrap())
    };
    let answer = Box::pin(ask("GET", "/?any=query")).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(answer.headers()["content-type"], "application/json");
    let text = String::from_utf8(answer.into_body().to_vec()).unwrap();
    assert!(
        text.starts_with("{\n    \"keys\": [\n        {\n            \"use\": \"x509-svid\",\n"),
        "{text}"
    );
    assert!(text.contains("\"use\": \"jwt-svid\""), "{text}");
    assert!(text.contains("    \"spiffe_sequence\": "), "{text}");
    assert!(text.ends_with("    \"spiffe_refresh_hint\": 300\n}"), "{text}");
    for (method, path, status, body) in [
        ("POST", "/", 405, "405 method not allowed\n"),
        ("PUT", "/other", 405, "405 method not allowed\n"),
        ("GET", "/other", 404, "404 page not found\n"),
        ("GET", "//", 404, "404 page not found\n"),
    ] {
        let answer = Box::pin(ask(method, path)).await.unwrap();
        assert_eq!(
            (answer.status().as_u16(), &answer.body()[..]),
            (status, body.as_bytes()),
            "{method} {path}"
        );
        assert_eq!(answer.headers()["content-type"], "text/plain; charset=utf-8");
        assert_eq!(answer.headers()["x-content-type-options"], "nosniff");
    }
    assert_eq!(Box::pin(ask("HEAD", "/")).await.unwrap().status().as_u16(), 405);

    // A change is served by the next answer, and a broken datastore is told.
    let mut changed = other.bundle();
    changed.jwt_authorities.clear();
    changed.sequence_number += 1;
    other.authorities.bundle_changes().publish(changed);
    let answer = Box::pin(ask("GET", "/")).await.unwrap();
    assert!(!String::from_utf8_lossy(answer.body()).contains("jwt-svid"));
}

/// Our side: entries of a trust domain and what follows the others.
struct Own {
    store: Arc<MemoryStore>,
    live: Arc<LiveEntries>,
    federation: Arc<Federation>,
    stop: CancellationToken,
}

impl Own {
    async fn new(configured: Vec<FederatesWith>) -> Self {
        let store = MemoryStore::new();
        let clock = FakeClock::new();
        let live = LiveEntries::load(td("a.test"), store.clone(), clock.clone(), Intervals::default())
            .await
            .unwrap();
        let config = FederationConfig { federates_with: configured, ..FederationConfig::default() };
        let stop = CancellationToken::new();
        let parts =
            FederationParts { live: live.clone(), metrics: Arc::new(NoMetrics), clock, policy: POLICY };
        let federation = Federation::new(&config, parts, stop.clone());
        Self { store, live, federation, stop }
    }

    /// Waits until the stored bundle of `b.test` is as `is_it` says.
    async fn bundle(&self, is_it: impl Fn(&Bundle) -> bool) -> Bundle {
        let mut changes = self.live.changes().bundles();
        loop {
            if let Some(bundle) = self.store.bundle_fetch(&td("b.test")).await.unwrap()
                && is_it(&bundle)
            {
                return bundle;
            }
            changes.changed().await.unwrap();
        }
    }
}

fn stored(address: SocketAddr, endpoint_id: &str) -> FederationRelationship {
    let Relationship { endpoint_url, endpoint } = relationship(address, endpoint_id);
    FederationRelationship { trust_domain: td("b.test"), endpoint_url, endpoint, bundle: None }
}

#[tokio::test]
async fn relationships_are_followed_as_they_come_change_and_go() {
    let other = Other::new("b.test").await;
    let address = other.serve(&CancellationToken::new()).await;
    let own = Own::new(Vec::new()).await;
    let running = tokio::spawn(own.federation.clone().run());
    let refresher = own.federation.clone();
    assert_eq!(refresher.refresh(&td("b.test")).await, Ok(false), "there is no relationship");

    // The relationship comes before the bundle that proves its endpoint; a first bundle is all that is waited for.
    own.store.federation_create(&stored(address, "spiffe://b.test/wrong")).await.unwrap();
    refresher.relationships_changed();
    let text = "can't perform SPIFFE Authentication: local copy of bundle not found";
    assert_eq!(refresher.refresh(&td("b.test")).await, Err(text.to_owned()));
    let mut first = other.bundle();
    first.jwt_authorities.clear();
    own.store.bundle_set(&first).await.unwrap();
    own.live.changes().bundle_changed();
    let error = refresher.refresh(&td("b.test")).await.unwrap_err();
    assert!(error.ends_with("unexpected ID \"spiffe://b.test/spire/server\""), "{error}");

    // A change of the relationship is looked at at once.
    own.store.rows.lock().relationships = vec![stored(address, SERVER)];
    refresher.relationships_changed();
    own.bundle(|bundle| bundle.jwt_authorities.len() == 1).await;
    assert_eq!(refresher.refresh(&td("b.test")).await, Ok(true));

    own.store.rows.lock().relationships.clear();
    assert_eq!(refresher.refresh(&td("b.test")).await, Ok(false), "it is gone");
    assert!(own.store.bundle_fetch(&td("b.test")).await.unwrap().is_some(), "its bundle stays");
    own.stop.cancel();
    running.await.unwrap();
}

#[tokio::test]
async fn a_configuration_that_is_read_again_counts_at_once() {
    let other = Other::new("b.test").await;
    let address = other.serve(&CancellationToken::new()).await;
    let own = Own::new(Vec::new()).await;
    let mut first = other.bundle();
    first.jwt_authorities.clear();
    own.store.bundle_set(&first).await.unwrap();
    let running = tokio::spawn(own.federation.clone().run());
    let with = |endpoint_id: &str| {
        [FederatesWith {
            trust_domain: td("b.test"),
            bundle_endpoint_url: format!("https://{address}/"),
            profile: FederationProfile::HttpsSpiffe { endpoint_spiffe_id: id(endpoint_id) },
        }]
    };
    own.federation.set_configured(&with("spiffe://b.test/wrong"));
    let error = own.federation.refresh(&td("b.test")).await.unwrap_err();
    assert!(error.ends_with("unexpected ID \"spiffe://b.test/spire/server\""), "{error}");
    own.federation.set_configured(&with(SERVER));
    own.bundle(|bundle| bundle.jwt_authorities.len() == 1).await;
    assert_eq!(own.federation.refresh(&td("b.test")).await, Ok(true));
    own.federation.set_configured(&[]);
    assert_eq!(own.federation.refresh(&td("b.test")).await, Ok(false));
    own.stop.cancel();
    running.await.unwrap();
}

#[tokio::test]
async fn the_first_bundle_starts_a_follower_that_waits_for_it() {
    let other = Other::new("b.test").await;
    let address = other.serve(&CancellationToken::new()).await;
    let own = Own::new(Vec::new()).await;
    own.store.federation_create(&stored(address, SERVER)).await.unwrap();
    let running = tokio::spawn(own.federation.clone().run());
    let mut first = other.bundle();
    first.jwt_authorities.clear();
    own.store.bundle_set(&first).await.unwrap();
    own.live.changes().bundle_changed();
    own.bundle(|bundle| bundle.jwt_authorities.len() == 1).await;
    own.stop.cancel();
    running.await.unwrap();
}

#[tokio::test]
async fn agents_hear_of_a_bundle_that_another_server_stored() {
    let other = Other::new("b.test").await;
    let address = other.serve(&CancellationToken::new()).await;
    let own = Own::new(Vec::new()).await;
    own.store.federation_create(&stored(address, SERVER)).await.unwrap();
    own.store.bundle_set(&other.bundle()).await.unwrap();
    assert_eq!(own.federation.refresh(&td("b.test")).await, Ok(true));
    let mut heard = own.live.changes().bundles();
    heard.mark_unchanged();
    // Nothing is new.
    assert_eq!(own.federation.refresh(&td("b.test")).await, Ok(true));
    assert!(!heard.has_changed().unwrap());
    // The other trust domain has a new authority, which a second server on our datastore fetches first.
    let mut grown = own.store.bundle_fetch(&td("b.test")).await.unwrap().unwrap();
    let extra = Other::new("b.test").await.bundle().x509_authorities[0].der.clone();
    grown.x509_authorities.push(X509Authority { der: extra.clone(), tainted: false });
    let mut newest = other.bundle();
    newest.x509_authorities.push(X509Authority { der: extra, tainted: false });
    newest.sequence_number += 1;
    other.authorities.bundle_changes().publish(newest);
    own.store.bundle_set(&grown).await.unwrap();
    assert_eq!(own.federation.refresh(&td("b.test")).await, Ok(true));
    assert!(heard.has_changed().unwrap());
    own.stop.cancel();
}

#[tokio::test]
async fn the_configuration_counts_and_our_own_trust_domain_never_does() {
    let configured = |name: &str, url: &str| FederatesWith {
        trust_domain: td(name),
        bundle_endpoint_url: url.to_owned(),
        profile: FederationProfile::HttpsWeb,
    };
    let store = MemoryStore::new();
    for name in ["a.test", "b.test", "c.test"] {
        let relationship = FederationRelationship {
            trust_domain: td(name),
            endpoint_url: format!("https://stored.{name}/"),
            endpoint: Endpoint::HttpsSpiffe(id("spiffe://c.test/x")),
            bundle: None,
        };
        store.federation_create(&relationship).await.unwrap();
    }
    let file = [configured("b.test", "https://configured/"), configured("a.test", "https://own/")];
    let all = Sources::new(td("a.test"), &file).current(&*store).await.unwrap();
    let shown: Vec<_> = all.iter().map(|(td, r)| (td.name(), r.endpoint_url.as_str(), r.profile())).collect();
    assert_eq!(
        shown,
        [
            ("b.test", "https://configured/", "https_web"),
            ("c.test", "https://stored.c.test/", "https_spiffe")
        ]
    );
}

#[tokio::test]
async fn the_next_look_is_within_bounds() {
    let seconds = |hint: u64| {
        let bundle = Bundle { refresh_hint: Duration::from_secs(hint), ..Bundle::empty(td("b.test")) };
        next_look(Some(&bundle)).as_secs()
    };
    assert_eq!(next_look(None).as_secs(), 60);
    for (hint, next) in [(1, 15), (60, 15), (300, 75), (86_400, 21_600), (u64::MAX, 86_400), (0, 15)] {
        assert_eq!(seconds(hint), next, "hint of {hint} s");
    }
    // Without a hint, the shortest life of an authority decides: a day and the cushion, a tenth of it, in four looks.
    let bundle = Other::new("b.test").await.bundle();
    let bundle = Bundle { refresh_hint: Duration::ZERO, ..bundle };
    assert_eq!(next_look(Some(&bundle)).as_secs(), (86_400 + 10) / 40);
}
