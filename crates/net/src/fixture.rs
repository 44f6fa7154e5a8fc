//! A gRPC service for this crate's tests: it ends each call with what it saw of the request.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::task::{Context, Poll};

use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, Empty};
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::transport::Server;
use tonic::transport::server::Connected;
use tower_service::Service;

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
