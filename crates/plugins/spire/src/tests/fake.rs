//! An upstream: a Workload API that gives one identity, and a server with the calls that the plugin makes.

use std::convert::Infallible;
use std::future::{Future, pending, ready};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request as HttpRequest, Response as HttpResponse};
use parking_lot::Mutex;
use spire_core::pki::{
    Certificate, CertificateTemplate, DistinguishedName, EncodedName, Issuer, KeyType, LocalKey, Profile,
    PublicKey, SerialNumber, VerifiedCsr, self_signed,
};
use spire_core::spiffe::TrustDomain;
use spire_core::time::Timestamp;
use spire_net::grpc::{serve, tcp_server, unix_server};
use spire_net::tls::{Authorize, ClientAuth, Identity, ServerTls, TlsInfo, TlsPolicy, TrustSource};
use spire_wire::api::server::bundle::v1::*;
use spire_wire::api::server::svid::v1::*;
use spire_wire::api::types;
use spire_wire::workload::{X509svid, X509svidRequest, X509svidResponse};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::body::Body;
use tonic::server::{Grpc, NamedService};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;
use tower::{Service, service_fn};

/// An authority with its key.
pub(crate) struct Ca {
    key: LocalKey,
    pub(crate) certificate: Certificate,
}

impl Ca {
    pub(crate) fn new() -> Self {
        let key = LocalKey::generate(KeyType::EcP256).unwrap();
        let subject = DistinguishedName::default_ca().encode().unwrap();
        let signed =
            self_signed(&template(Profile::Ca, &subject, key.public_key(), "spiffe://example.org")).unwrap();
        let signature = key.sign(signed.algorithm(), signed.bytes()).unwrap();
        Self { certificate: Certificate::from_der(signed.assemble(&signature)).unwrap(), key }
    }

    fn issue(&self, profile: Profile, key: &PublicKey, uri: &str) -> Certificate {
        let subject = DistinguishedName::default_svid().encode().unwrap();
        let signed = Issuer::new(&self.certificate)
            .unwrap()
            .certificate(&template(profile, &subject, key, uri))
            .unwrap();
        let signature = self.key.sign(signed.algorithm(), signed.bytes()).unwrap();
        Certificate::from_der(signed.assemble(&signature)).unwrap()
    }

    /// An SVID with its key in PKCS#8.
    fn svid(&self, id: &str) -> (Certificate, Vec<u8>) {
        let key = LocalKey::generate(KeyType::EcP256).unwrap();
        (self.issue(Profile::Svid, key.public_key(), id), key.to_pkcs8().unwrap().to_vec())
    }
}

fn template<'a>(
    profile: Profile,
    subject: &'a EncodedName,
    public_key: &'a PublicKey,
    uri: &'a str,
) -> CertificateTemplate<'a> {
    CertificateTemplate {
        profile,
        serial: SerialNumber::from_random([5; 16]),
        subject,
        // Valid at any time that a test may run.
        not_before: Timestamp::from_unix(0),
        not_after: Timestamp::from_unix(4_000_000_000),
        public_key,
        dns_names: &[],
        uri,
        policies: &[],
        extra_extensions: &[],
    }
}

#[derive(Debug)]
struct Trust(Arc<[Certificate]>);

impl TrustSource for Trust {
    fn authorities(&self, trust_domain: &TrustDomain) -> Option<Arc<[Certificate]>> {
        (trust_domain.name() == "example.org").then(|| Arc::clone(&self.0))
    }
}

/// What the upstream says, and what it was asked.
pub(crate) struct State {
    pub(crate) bundle: types::Bundle,
    /// The answer to every call, where set.
    pub(crate) failure: Option<Status>,
    /// Whether it knows WIT-SVIDs.
    pub(crate) wit: bool,
    /// Callers of NewDownstreamX509CA with the lifetimes that they wanted.
    asked: Vec<(String, i32)>,
}

pub(crate) struct Upstream {
    folder: tempfile::TempDir,
    pub(crate) port: u16,
    pub(crate) ca: Arc<Ca>,
    shared: Shared,
}

#[derive(Clone)]
struct Shared {
    state: Arc<Mutex<State>>,
    ca: Arc<Ca>,
    /// Calls of GetBundle.
    fetches: watch::Sender<u64>,
}

impl Upstream {
    pub(crate) async fn start() -> Self {
        let ca = Arc::new(Ca::new());
        let server = ca.svid("spiffe://example.org/spire/server");
        Self::serving(ca, server).await
    }

    /// One whose server shows a certificate of another authority than the Workload API vouches for.
    pub(crate) async fn with_server_of(other: Ca) -> Self {
        let server = other.svid("spiffe://example.org/spire/server");
        Self::serving(Arc::new(Ca::new()), server).await
    }

    async fn serving(ca: Arc<Ca>, server: (Certificate, Vec<u8>)) -> Self {
        let asn1 = ca.certificate.der().clone();
        let bundle = types::Bundle {
            trust_domain: "example.org".into(),
            x509_authorities: vec![types::X509Certificate { asn1, tainted: false }],
            ..types::Bundle::default()
        };
        let state = State { bundle, failure: None, wit: false, asked: Vec::new() };
        let shared = Shared {
            state: Arc::new(Mutex::new(state)),
            ca: Arc::clone(&ca),
            fetches: watch::Sender::new(0),
        };
        let identity = Identity::empty();
        identity.replace(&[server.0], &server.1).unwrap();
        let trust = Arc::new(Trust([ca.certificate.clone()].into()));
        let clients = ClientAuth { trust, authorize: Authorize::Any };
        let tls = ServerTls::grpc(identity, clients, TlsPolicy::default()).unwrap();
        let incoming = tls.bind(([127, 0, 0, 1], 0).into()).await.unwrap();
        let port = incoming.local_addr().unwrap().port();
        let services =
            tcp_server().add_service(SvidService(shared.clone())).add_service(BundleService(shared.clone()));
        tokio::spawn(serve(services, incoming, pending()));
        let upstream = Self { folder: tempfile::tempdir().unwrap(), port, ca, shared };
        let listener = UnixListener::bind(upstream.socket()).unwrap();
        let workload_api = unix_server().add_service(WorkloadService(upstream.shared.clone()));
        tokio::spawn(workload_api.serve_with_incoming(UnixListenerStream::new(listener)));
        upstream
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("agent.sock")
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.shared.state.lock());
    }

    pub(crate) fn bundle(&self) -> types::Bundle {
        self.shared.state.lock().bundle.clone()
    }

    pub(crate) fn asked(&self) -> Vec<(String, i32)> {
        self.shared.state.lock().asked.clone()
    }

    /// Waits until the bundle as it is now was fetched.
    pub(crate) async fn seen_again(&self) {
        let mut fetches = self.shared.fetches.subscribe();
        let now = *fetches.borrow_and_update();
        // One may be on its way that has read the state already.
        fetches.wait_for(|count| *count >= now + 2).await.unwrap();
    }

    /// Waits until nobody fetches the bundle any more.
    pub(crate) async fn quiet(&self) {
        let mut fetches = self.shared.fetches.subscribe();
        while tokio::time::timeout(Duration::from_millis(200), fetches.changed()).await.is_ok() {}
    }
}

impl Shared {
    fn check(&self) -> Result<(), Status> {
        self.state.lock().failure.clone().map_or(Ok(()), Err)
    }

    fn sign(
        &self,
        request: &Request<NewDownstreamX509caRequest>,
    ) -> Result<Response<NewDownstreamX509caResponse>, Status> {
        self.check()?;
        let peer = request.extensions().get::<TlsInfo>().and_then(TlsInfo::peer);
        let peer = peer.map(|peer| peer.id().to_string()).unwrap_or_default();
        let request = request.get_ref();
        self.state.lock().asked.push((peer, request.preferred_ttl));
        let csr = VerifiedCsr::from_der(request.csr.clone()).unwrap();
        let ca = self.ca.issue(Profile::Ca, csr.public_key(), "spiffe://example.org");
        let own = self.ca.certificate.der().clone();
        let answer = NewDownstreamX509caResponse {
            ca_cert_chain: vec![ca.der().clone()],
            x509_authorities: vec![own],
        };
        Ok(Response::new(answer))
    }

    fn bundle(&self) -> Result<Response<types::Bundle>, Status> {
        let answer = self.check().map(|()| Response::new(self.state.lock().bundle.clone()));
        self.fetches.send_modify(|count| *count += 1);
        answer
    }

    fn publish_jwt(
        &self,
        request: Request<PublishJwtAuthorityRequest>,
    ) -> Result<Response<PublishJwtAuthorityResponse>, Status> {
        self.check()?;
        let keys = &mut self.state.lock().bundle.jwt_authorities;
        keys.extend(request.into_inner().jwt_authority);
        Ok(Response::new(PublishJwtAuthorityResponse { jwt_authorities: keys.clone() }))
    }

    fn publish_wit(
        &self,
        request: Request<PublishWitAuthorityRequest>,
    ) -> Result<Response<PublishWitAuthorityResponse>, Status> {
        self.check()?;
        let mut state = self.state.lock();
        if !state.wit {
            return Err(Status::unimplemented("WIT-SVID functionality is not yet implemented"));
        }
        let keys = &mut state.bundle.wit_authorities;
        keys.extend(request.into_inner().wit_authority);
        Ok(Response::new(PublishWitAuthorityResponse { wit_authorities: keys.clone() }))
    }

    /// The identity of a downstream server.
    fn identity(&self) -> X509svidResponse {
        let id = "spiffe://example.org/downstream";
        let (certificate, key) = self.ca.svid(id);
        let svid = X509svid {
            spiffe_id: id.to_owned(),
            x509_svid: certificate.der().clone(),
            x509_svid_key: Bytes::from(key),
            bundle: self.ca.certificate.der().clone(),
            hint: String::new(),
        };
        X509svidResponse { svids: vec![svid], ..X509svidResponse::default() }
    }
}

type Answer = Pin<Box<dyn Future<Output = Result<HttpResponse<Body>, Infallible>> + Send>>;

macro_rules! grpc_service {
    ($service:ident, $name:literal, |$shared:ident, $method:ident, $request:ident| $body:expr) => {
        #[derive(Clone)]
        struct $service(Shared);

        impl NamedService for $service {
            const NAME: &'static str = $name;
        }

        impl Service<HttpRequest<Body>> for $service {
            type Response = HttpResponse<Body>;
            type Error = Infallible;
            type Future = Answer;

            fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
                Poll::Ready(Ok(()))
            }

            fn call(&mut self, $request: HttpRequest<Body>) -> Answer {
                let $shared = self.0.clone();
                let path = $request.uri().path().to_owned();
                let $method = path.rsplit('/').next().unwrap_or_default().to_owned();
                Box::pin(async move { Ok($body) })
            }
        }
    };
}

grpc_service!(SvidService, "spire.api.server.svid.v1.SVID", |shared, method, request| {
    match &*method {
        "NewDownstreamX509CA" => {
            let answer = service_fn(move |r| ready(shared.sign(&r)));
            Grpc::new(ProstCodec::default()).unary(answer, request).await
        }
        _ => Status::unimplemented("").into_http(),
    }
});

grpc_service!(BundleService, "spire.api.server.bundle.v1.Bundle", |shared, method, request| {
    match &*method {
        "GetBundle" => {
            let answer = service_fn(move |_: Request<GetBundleRequest>| ready(shared.bundle()));
            Grpc::new(ProstCodec::default()).unary(answer, request).await
        }
        "PublishJWTAuthority" => {
            let answer = service_fn(move |r| ready(shared.publish_jwt(r)));
            Grpc::new(ProstCodec::default()).unary(answer, request).await
        }
        "PublishWITAuthority" => {
            let answer = service_fn(move |r| ready(shared.publish_wit(r)));
            Grpc::new(ProstCodec::default()).unary(answer, request).await
        }
        _ => Status::unimplemented("").into_http(),
    }
});

grpc_service!(WorkloadService, "SpiffeWorkloadAPI", |shared, method, request| {
    match &*method {
        "FetchX509SVID" => {
            let answer = service_fn(move |_: Request<X509svidRequest>| {
                // The stream stays open, as an agent's does.
                let first = tokio_stream::once(Ok::<_, Status>(shared.identity()));
                ready(Ok::<_, Status>(Response::new(first.chain(tokio_stream::pending()))))
            });
            Grpc::new(ProstCodec::default()).server_streaming(answer, request).await
        }
        _ => Status::unimplemented("").into_http(),
    }
});
