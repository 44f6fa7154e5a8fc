//! Denial over real sockets: every method by callers with real certificates over TLS, and over the unix socket.

use std::future::pending;
use std::net::Ipv4Addr;

use prost::Message as _;
use spire_core::pki::{
    Certificate, CertificateTemplate, DistinguishedName, EncodedName, Issuer, Profile, PublicKey,
    SerialNumber, self_signed,
};
use spire_net::grpc::{CONNECTION_AGE_MAX, serve, serve_tcp, tcp_channel, unix_channel, unix_server};
use spire_net::tls::{
    Authorize, ClientAuth, Identity, ServerTls, TlsClient, TlsPolicy, TrustSource, UnixConnector,
};
use spire_net::uds::{PeerTracking, UnixEndpoint};
use spire_wire::api::server::agent::v1::{BanAgentRequest, DeleteAgentRequest};
use spire_wire::api::types::permission_denied_details::Reason;
use tonic::transport::Channel;

use super::callers::{IsRight, golden};
use super::*;

/// The authority of a trust domain.
#[derive(Debug)]
struct Ca {
    key: LocalKey,
    certificate: Certificate,
}

/// Until when certificates are valid that are not expired.
const LONG: i64 = 4_000_000_000;

fn name() -> EncodedName {
    DistinguishedName::default_svid().encode().unwrap()
}

fn template<'a>(
    profile: Profile,
    subject: &'a EncodedName,
    public_key: &'a PublicKey,
    uri: &'a str,
    serial: u8,
    not_after: i64,
) -> CertificateTemplate<'a> {
    let mut number = [0; 16];
    number[15] = serial;
    CertificateTemplate {
        profile,
        serial: SerialNumber::from_random(number),
        subject,
        not_before: Timestamp::from_unix(0),
        not_after: Timestamp::from_unix(not_after),
        public_key,
        dns_names: &[],
        uri,
        policies: &[],
        extra_extensions: &[],
    }
}

impl Ca {
    fn new(id: &str) -> Self {
        let key = LocalKey::generate(KeyType::EcP256).unwrap();
        let subject = name();
        let signed = self_signed(&template(Profile::Ca, &subject, key.public_key(), id, 1, LONG)).unwrap();
        let signature = key.sign(signed.algorithm(), signed.bytes()).unwrap();
        Self { certificate: Certificate::from_der(signed.assemble(&signature)).unwrap(), key }
    }

    fn issue(&self, id: &str, serial: u8, not_after: i64) -> Arc<Identity> {
        let key = LocalKey::generate(KeyType::EcP256).unwrap();
        let subject = name();
        let template = template(Profile::Svid, &subject, key.public_key(), id, serial, not_after);
        let signed = Issuer::new(&self.certificate).unwrap().certificate(&template).unwrap();
        let signature = self.key.sign(signed.algorithm(), signed.bytes()).unwrap();
        let certificate = Certificate::from_der(signed.assemble(&signature)).unwrap();
        let identity = Identity::empty();
        identity.replace(&[certificate], &key.to_pkcs8().unwrap()).unwrap();
        identity
    }
}

/// Our authority and a federated one.
#[derive(Debug)]
struct Trust {
    ours: Ca,
    theirs: Ca,
}

impl TrustSource for Trust {
    fn authorities(&self, trust_domain: &TrustDomain) -> Option<Arc<[Certificate]>> {
        match trust_domain.name() {
            "example.org" => Some([self.ours.certificate.clone()].into()),
            "other.test" => Some([self.theirs.certificate.clone()].into()),
            _ => None,
        }
    }
}

/// A world that is served on both sockets.
struct Served {
    world: World,
    trust: Arc<Trust>,
    port: u16,
    folder: tempfile::TempDir,
}

const SERVER: &str = "spiffe://example.org/spire/server";
const FOREIGN_ADMIN: &str = "spiffe://other.test/admin";

impl Served {
    async fn start() -> Self {
        let world = World::with(|deps| {
            deps.rate_limits = RateLimits { attestation: false, signing: false };
            deps.admin_ids.insert(SpiffeId::parse(FOREIGN_ADMIN).unwrap());
        })
        .await;
        let trust =
            Arc::new(Trust { ours: Ca::new("spiffe://example.org"), theirs: Ca::new("spiffe://other.test") });
        let authorize = Authorize::MemberOrOneOf {
            trust_domain: td(),
            ids: HashSet::from([SpiffeId::parse(FOREIGN_ADMIN).unwrap()]),
        };
        let clients = ClientAuth { trust: trust.clone(), authorize };
        let identity = trust.ours.issue(SERVER, 2, LONG);
        let tls = ServerTls::grpc(identity, clients, TlsPolicy::default()).unwrap();
        let tcp = tls.bind((Ipv4Addr::LOCALHOST, 0).into()).await.unwrap();
        let port = tcp.local_addr().unwrap().port();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("api.sock");
        let unix = UnixEndpoint::server(&path, PeerTracking::Pinned).bind().unwrap();
        tokio::spawn(serve_tcp(CONNECTION_AGE_MAX, world.api.tcp_service(), tcp, pending()));
        tokio::spawn(serve(unix_server().add_routes(world.api.unix_routes()), unix, pending()));
        Self { world, trust, port, folder }
    }

    fn tcp(&self, identity: Option<Arc<Identity>>) -> Channel {
        let server = SpiffeId::parse(SERVER).unwrap();
        let tls = TlsClient::spiffe(self.trust.clone(), server, identity, TlsPolicy::default()).unwrap();
        tcp_channel("127.0.0.1", self.port, tls).unwrap()
    }

    fn ours(&self, path: &str, serial: u8) -> Channel {
        self.tcp(Some(self.trust.ours.issue(&format!("spiffe://example.org{path}"), serial, LONG)))
    }

    fn unix(&self) -> Channel {
        unix_channel(UnixConnector::new(self.folder.path().join("api.sock")))
    }
}

/// Calls a method without a message: the authorisation answers, or somebody complains that it is missing.
async fn answer(channel: &Channel, path: &str) -> Status {
    let mut channel = channel.clone();
    if let Err(error) = std::future::poll_fn(|cx| channel.poll_ready(cx)).await {
        return Status::from_error(error.into());
    }
    let request = Request::builder().method("POST").uri(path).header("content-type", "application/grpc");
    match channel.call(request.body(Body::empty()).unwrap()).await {
        Ok(response) => Status::from_header_map(response.headers()).unwrap_or_else(|| Status::ok("let in")),
        Err(error) => Status::from_error(error.into()),
    }
}

fn reason(status: &Status) -> Option<Reason> {
    let details = spire_wire::rpc::Status::decode(status.details()).ok()?.details;
    Some(types::PermissionDeniedDetails::decode(&*details.first()?.value).ok()?.reason())
}

#[tokio::test]
async fn every_method_denies_wrong_callers_over_the_wire() {
    let served = Served::start().await;
    let world = &served.world;
    world.attested(AGENT).await;
    world.entry("boss", AGENT, "/boss", |e| e.admin = true).await;
    world.entry("down", AGENT, "/down", |e| e.downstream = true).await;
    let callers: Vec<(&str, Channel, IsRight)> = vec![
        ("local", served.unix(), |a| a.local),
        ("anonymous", served.tcp(None), |_| false),
        ("admin by configuration", served.ours("/admin", 3), |a| a.admin),
        ("admin by entry", served.ours("/boss", 3), |a| a.admin),
        ("federated admin", served.tcp(Some(served.trust.theirs.issue(FOREIGN_ADMIN, 3, LONG))), |a| a.admin),
        ("downstream", served.ours("/down", 3), |a| a.downstream),
        ("agent", served.ours(AGENT, 7), |a| a.agent),
        ("agent with another SVID", served.ours(AGENT, 8), |_| false),
        ("agent that is not attested", served.ours("/spire/agent/x509pop/b", 7), |_| false),
        ("workload", served.ours("/w", 3), |_| false),
    ];
    for listed in golden() {
        for (name, channel, right) in &callers {
            let status = answer(channel, listed.path).await;
            let is_served = if *name == "local" { listed.unix } else { listed.tcp };
            let expected = if !is_served {
                Some(Code::Unimplemented)
            } else if listed.allowed.any || right(listed.allowed) {
                None
            } else {
                Some(Code::PermissionDenied)
            };
            match expected {
                Some(code) => assert_eq!(status.code(), code, "{} by {name}: {status:?}", listed.path),
                None => {
                    assert_ne!(status.code(), Code::PermissionDenied, "{} by {name}: {status:?}", listed.path)
                }
            }
        }
    }
}

#[tokio::test]
async fn certificates_that_are_not_good_end_in_the_handshake() {
    let served = Served::start().await;
    served.world.attested(AGENT).await;
    let agent = format!("spiffe://example.org{AGENT}");
    let (ours, theirs) = (&served.trust.ours, &served.trust.theirs);
    let rogue = Ca::new("spiffe://example.org");
    for (what, identity) in [
        ("expired", ours.issue(&agent, 7, 1_600_000_000)),
        (
            "another trust domain, not named",
            theirs.issue("spiffe://other.test/spire/agent/x509pop/a", 7, LONG),
        ),
        ("of our name by another authority", theirs.issue(&agent, 7, LONG)),
        ("of nobody", rogue.issue(&agent, 7, LONG)),
        ("no SPIFFE ID", ours.issue("https://example.org/agent", 7, LONG)),
        ("a trust domain that is not known", ours.issue("spiffe://third.test/a", 7, LONG)),
    ] {
        let status = answer(&served.tcp(Some(identity)), "/spire.api.server.agent.v1.Agent/PostStatus").await;
        assert_eq!(status.code(), Code::Unavailable, "{what}: {status:?}");
    }
    let status = answer(&served.ours(AGENT, 7), "/spire.api.server.agent.v1.Agent/PostStatus").await;
    assert_ne!(status.code(), Code::PermissionDenied, "a good one is let in: {status:?}");
}

#[tokio::test]
async fn an_open_connection_ends_with_the_right_to_it() {
    let served = Served::start().await;
    let world = &served.world;
    world.attested(AGENT).await;
    let agent = served.ours(AGENT, 7);
    let methods = [
        "/spire.api.server.agent.v1.Agent/PostStatus",
        "/spire.api.server.bundle.v1.Bundle/GetFederatedBundle",
        "/spire.api.server.entry.v1.Entry/GetAuthorizedEntries",
        "/spire.api.server.svid.v1.SVID/BatchNewX509SVID",
        "/spire.push.v1.AgentPush/Subscribe",
    ];
    for method in methods {
        assert_ne!(answer(&agent, method).await.code(), Code::PermissionDenied, "{method}");
    }
    world.agents(local()).ban_agent(BanAgentRequest { id: wire_id(AGENT) }).await.unwrap();
    for method in methods {
        let status = answer(&agent, method).await;
        assert_eq!(
            (status.code(), reason(&status)),
            (Code::PermissionDenied, Some(Reason::AgentBanned)),
            "{method}"
        );
    }
    world.agents(local()).delete_agent(DeleteAgentRequest { id: wire_id(AGENT) }).await.unwrap();
    for method in methods {
        let status = answer(&agent, method).await;
        let evicted = (Code::PermissionDenied, Some(Reason::AgentNotAttested));
        assert_eq!((status.code(), reason(&status)), evicted, "{method}");
    }
    world.attested(AGENT).await;
    world.clock.pass(LONG - START + 1);
    let status = answer(&agent, methods[0]).await;
    assert_eq!(reason(&status), Some(Reason::AgentExpired), "{status:?}");
}
