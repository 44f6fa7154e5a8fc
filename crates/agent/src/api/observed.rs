//! What calls of the admin and broker sockets have in common: metrics, fields of log lines, and a look at each request
//! before its service sees it (pkg/agent/endpoints: Middleware).

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::Instant;

use http::{HeaderMap, Request, Response};
use http_body_util::BodyExt as _;
use spire_net::tls::TlsUnixInfo;
use spire_net::uds::PeerInfo;
use spire_ports::observe::names::{self, Name};
use spire_ports::observe::{Label, Metrics};
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::{Code, Status};
use tower::Service;
use tracing::Instrument as _;

use crate::runtime::code_name;

/// A service whose calls are observed.
#[derive(Clone)]
pub(super) struct Observed<S> {
    inner: S,
    shared: Arc<Shared>,
}

struct Shared {
    metrics: Arc<dyn Metrics>,
    /// Counter and gauge of open calls, where the service has them.
    connections: Option<(Name, Name)>,
    open: AtomicU32,
    check: fn(&Request<Body>) -> Result<(), Status>,
}

impl<S> Observed<S> {
    /// Counts calls, and those that are open under these names where there are any.
    pub(super) fn new(inner: S, metrics: &Arc<dyn Metrics>, connections: Option<(Name, Name)>) -> Self {
        let (metrics, open) = (Arc::clone(metrics), AtomicU32::new(0));
        Self { inner, shared: Arc::new(Shared { metrics, connections, open, check: |_| Ok(()) }) }
    }

    /// Counts calls, and refuses those that `check` refuses.
    pub(super) fn checked(
        inner: S,
        metrics: &Arc<dyn Metrics>,
        check: fn(&Request<Body>) -> Result<(), Status>,
    ) -> Self {
        let (metrics, open) = (Arc::clone(metrics), AtomicU32::new(0));
        Self { inner, shared: Arc::new(Shared { metrics, connections: None, open, check }) }
    }
}

impl<S: NamedService> NamedService for Observed<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for Observed<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + NamedService,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let path = request.uri().path();
        let method = path.rsplit('/').next().unwrap_or_default();
        let service = S::NAME.rsplit('.').next().unwrap_or_default();
        let extensions = request.extensions();
        let process = extensions.get::<PeerInfo>();
        let process = process.or_else(|| extensions.get::<TlsUnixInfo>().map(TlsUnixInfo::process));
        let span = tracing::info_span!("call", method, service, pid = process.map(PeerInfo::pid));
        let mut call = Call::start(&self.shared, names::rpc(path));
        if let Err(status) = (self.shared.check)(&request) {
            call.status = code_name(status.code());
            return Box::pin(std::future::ready(Ok(status.into_http())));
        }
        let answering = self.inner.call(request).instrument(span);
        Box::pin(async move { answering.await.map(|response| call.until_end_of(response)) })
    }
}

/// A call in progress. One that the client ends while it is answered counts as OK, before that as cancelled.
struct Call {
    shared: Arc<Shared>,
    name: Option<Name>,
    start: Instant,
    status: &'static str,
}

impl Call {
    fn start(shared: &Arc<Shared>, name: Option<Name>) -> Self {
        if let Some((counter, gauge)) = shared.connections {
            let open = shared.open.fetch_add(1, Ordering::Relaxed) + 1;
            shared.metrics.incr_counter(counter, 1.0, &[]);
            shared.metrics.set_gauge(gauge, f64::from(open), &[]);
        }
        let status = code_name(Code::Cancelled);
        Self { shared: Arc::clone(shared), name, start: Instant::now(), status }
    }

    fn ended(&mut self, code: Code) {
        self.status = code_name(code);
    }

    fn until_end_of(mut self, response: Response<Body>) -> Response<Body> {
        if let Some(status) = response.extensions().get::<Status>() {
            self.status = code_name(status.code());
            return response;
        }
        self.status = code_name(Code::Ok);
        response.map(|body| {
            Body::new(body.map_frame(move |frame| {
                if let Some(trailers) = frame.trailers_ref() {
                    self.ended(code_in(trailers));
                }
                frame
            }))
        })
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let Self { shared, name, start, status } = self;
        if let Some((_, gauge)) = shared.connections {
            let open = shared.open.fetch_sub(1, Ordering::Relaxed).saturating_sub(1);
            shared.metrics.set_gauge(gauge, f64::from(open), &[]);
        }
        let Some(name) = *name else { return };
        let labels = [Label::new(names::label::STATUS, status)];
        let elapsed: Vec<&str> = name.iter().copied().chain([names::ELAPSED_TIME]).collect();
        shared.metrics.incr_counter(name, 1.0, &labels);
        shared.metrics.measure_since(&elapsed, *start, &labels);
    }
}

fn code_in(trailers: &HeaderMap) -> Code {
    trailers.get("grpc-status").map_or(Code::Unknown, |code| Code::from_bytes(code.as_bytes()))
}
