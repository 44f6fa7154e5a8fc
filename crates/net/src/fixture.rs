//! A gRPC service for this crate's tests: it ends each call with what it saw of the request.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, Empty};
use spire_core::pki::{
    Certificate, CertificateTemplate, DistinguishedName, EncodedName, Issuer, KeyType, LocalKey, Profile,
    PublicKey, SerialNumber, self_signed,
};
use spire_core::time::Timestamp;
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::transport::Server;
use tonic::transport::server::Connected;
use tower_service::Service;

static SERIAL: AtomicU64 = AtomicU64::new(1);

/// Called as `/test.Echo/...`; its trailers have `seen-*` fields.
#[derive(Debug, Clone)]
pub(crate) struct Echo;

impl NamedService for Echo {
    const NAME: &'static str = "test.Echo";
}

impl Service<Request<Body>> for Echo {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let mut trailers = HeaderMap::new();
        let mut put = |name: &'static str, value: String| {
            trailers.insert(name, HeaderValue::from_str(&value).expect("visible text"));
        };
        put("grpc-status", "0".to_owned());
        put("seen-authority", request.uri().authority().map(ToString::to_string).unwrap_or_default());
        put("seen-path", request.uri().path().to_owned());
        if let Some(agent) = request.headers().get("user-agent") {
            put("seen-user-agent", agent.to_str().expect("visible text").to_owned());
        }
        if let Some(peer) = request.extensions().get::<crate::uds::PeerInfo>() {
            put("seen-pid", peer.pid().to_string());
        }
        let connection = request.extensions().get::<crate::tls::TlsInfo>();
        if let Some(info) = connection {
            put("seen-address", info.remote_addr().to_string());
        }
        if let Some(peer) = connection.and_then(|info| info.peer()) {
            put("seen-id", peer.id().to_string());
        }
        let body = Empty::new().with_trailers(ready(Some(Ok(trailers))));
        let mut response = Response::new(Body::new(body.map_err(|never: Infallible| match never {})));
        response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
        ready(Ok(response))
    }
}

/// Serves [`Echo`] on one connection.
pub(crate) fn serve<S>(io: S)
where
    S: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
{
    let incoming = tokio_stream::once(Ok::<_, std::io::Error>(io));
    let server = Server::builder().http2_max_header_list_size(1 << 20).add_service(Echo);
    tokio::spawn(server.serve_with_incoming(incoming));
}

/// Calls [`Echo`] as a generated client would and gives the trailers, or the status.
pub(crate) async fn call(channel: &tonic::transport::Channel) -> Result<HeaderMap, tonic::Status> {
    let mut channel = channel.clone();
    std::future::poll_fn(|cx| channel.poll_ready(cx))
        .await
        .map_err(|e| tonic::Status::from_error(e.into()))?;
    let request = Request::post("/test.Echo/Call").body(Body::empty()).expect("a request");
    let response = channel.call(request).await.map_err(|e| tonic::Status::from_error(e.into()))?;
    let body = response.into_body().collect().await?;
    body.trailers().cloned().ok_or_else(|| tonic::Status::unknown("no trailers"))
}

/// Connects once, by a connection that is there already.
pub(crate) struct Once<S>(pub(crate) Option<S>);

impl<S> Service<http::Uri> for Once<S> {
    type Response = S;
    type Error = std::io::Error;
    type Future = Ready<Result<S, std::io::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), std::io::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: http::Uri) -> Self::Future {
        ready(self.0.take().ok_or_else(|| std::io::ErrorKind::NotConnected.into()))
    }
}

/// A certificate authority, and what it issued.
pub(crate) struct TestCa {
    key: LocalKey,
    pub(crate) certificate: Certificate,
}

impl TestCa {
    pub(crate) fn new(uri: &str) -> Self {
        let key = LocalKey::generate(KeyType::EcP256).expect("key");
        let subject = DistinguishedName::default_ca().encode().expect("name");
        let template = template(Profile::Ca, &subject, key.public_key(), uri);
        let signed = self_signed(&template).expect("template");
        let signature = key.sign(signed.algorithm(), signed.bytes()).expect("signature");
        let certificate = Certificate::from_der(signed.assemble(&signature)).expect("certificate");
        Self { key, certificate }
    }

    /// A certificate for `id` with its key in PKCS#8.
    pub(crate) fn issue(&self, id: &str) -> (Certificate, Vec<u8>) {
        self.issue_for(id, &[])
    }

    pub(crate) fn issue_for(&self, id: &str, dns_names: &[String]) -> (Certificate, Vec<u8>) {
        self.issue_until(id, dns_names, NEVER)
    }

    /// As [`issue_for`](Self::issue_for), valid until then.
    pub(crate) fn issue_until(
        &self,
        id: &str,
        dns_names: &[String],
        not_after: Timestamp,
    ) -> (Certificate, Vec<u8>) {
        let key = LocalKey::generate(KeyType::EcP256).expect("key");
        let subject = DistinguishedName::default_svid().encode().expect("name");
        let template = CertificateTemplate {
            dns_names,
            not_after,
            ..template(Profile::Svid, &subject, key.public_key(), id)
        };
        let signed =
            Issuer::new(&self.certificate).expect("issuer").certificate(&template).expect("template");
        let signature = self.key.sign(signed.algorithm(), signed.bytes()).expect("signature");
        let certificate = Certificate::from_der(signed.assemble(&signature)).expect("certificate");
        (certificate, key.to_pkcs8().expect("encodes").to_vec())
    }
}

/// After any time that a test may run.
const NEVER: Timestamp = Timestamp::from_unix(4_000_000_000);

fn template<'a>(
    profile: Profile,
    subject: &'a EncodedName,
    public_key: &'a PublicKey,
    uri: &'a str,
) -> CertificateTemplate<'a> {
    let (not_before, not_after) = (Timestamp::from_unix(0), NEVER);
    CertificateTemplate {
        profile,
        serial: SerialNumber::from_random(u128::from(SERIAL.fetch_add(1, Ordering::Relaxed)).to_be_bytes()),
        subject,
        not_before,
        not_after,
        public_key,
        dns_names: &[],
        uri,
        policies: &[],
        extra_extensions: &[],
    }
}
