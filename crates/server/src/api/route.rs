//! Routes: from a method's name to its handler, through authorisation.
//!
//! We dispatch ourselves and do not implement the generated service traits, for two reasons. A handler here must take
//! a caller proof, and the route takes from the proof's type who may call, so that a method without a check cannot be
//! written down. And answers may be messages that are encoded already ([`Reply`]).

use std::collections::HashMap;
use std::convert::Infallible;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::{Buf, Bytes};
use futures_util::Stream;
use prost::{DecodeError, Message};
use spire_net::grpc::{MESSAGE_SIZE_MAX, time_limit};
use spire_ports::observe::{self, names};
use tokio::sync::Notify;
use tonic::body::Body;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::{Request, Response};
use tonic::server::{Grpc, ServerStreamingService, StreamingService, UnaryService};
use tonic::{Code, Status, Streaming};
use tower::Service;
use tracing::Instrument as _;
use tracing::field::Empty;

use super::Api;
use super::audit::Audit;
use super::caller::{Allowed, Denial, Granted, Peer, Proof};
use super::encoded::Exchange;
use super::intake::Intake;
use super::judge::{Judge, Shown};
use super::measured::{Answers, MeasuredCall};
use super::status::{code_name, fail, fail_with};

/// A boxed future, as services return.
pub(super) type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// A stream of answers.
pub(crate) type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Encoding starts with this much, since most answers are small and each open stream keeps its buffer. Larger answers
/// grow it.
const ENCODE_BUFFER: usize = 1024;

/// Messages that are ready at once are sent together up to this size.
const ENCODE_YIELD: usize = 32 * 1024;

/// How long a call waits for its turn where calls are limited. An attestation ends after this long, too.
const TURN_MAX: std::time::Duration = std::time::Duration::from_secs(120);

/// Where a method is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Listeners {
    Both,
    UnixOnly,
    TcpOnly,
}

/// What a method does for a caller that was let in.
type Run = Box<dyn Fn(Arc<Call>, Granted, Request<Body>) -> BoxFuture<Response<Body>> + Send + Sync>;

/// One method.
pub(crate) struct Route {
    /// Such as `/spire.api.server.agent.v1.Agent/CountAgents`.
    pub(super) path: &'static str,
    /// Who may call, from the type of the handler's proof.
    pub(super) allowed: Allowed,
    pub(super) listeners: Listeners,
    answers: Answers,
    /// Whether the caller sends one request or a stream of them.
    requests: Requests,
    run: Run,
}

/// What a method takes.
#[derive(Clone, Copy)]
enum Requests {
    /// One request with one answer, which a user's policy may look into.
    Shown(Shown),
    /// One request with a stream of answers.
    One,
    Stream,
}

impl Route {
    pub(super) fn unix_only(mut self) -> Self {
        self.listeners = Listeners::UnixOnly;
        self
    }

    pub(crate) fn tcp_only(mut self) -> Self {
        self.listeners = Listeners::TcpOnly;
        self
    }

    fn answers(self, answers: Answers) -> Self {
        Self { answers, ..self }
    }

    fn new<P: Proof, F>(path: &'static str, requests: Requests, run: F) -> Self
    where
        F: Fn(Arc<Call>, P, Request<Body>) -> BoxFuture<Response<Body>> + Send + Sync + 'static,
    {
        Self {
            path,
            allowed: P::ALLOWED,
            listeners: Listeners::Both,
            answers: Answers::One,
            requests,
            run: Box::new(move |call, granted, request| match P::from_granted(granted) {
                Ok(proof) => run(call, proof, request),
                Err(why) => {
                    let status = fail(Code::Internal, why);
                    call.audit.failure(&status);
                    Box::pin(std::future::ready(status.into_http()))
                }
            }),
        }
    }
}

/// A method with one request and one answer.
pub(super) fn unary<P, Q, A, H, F>(path: &'static str, handler: H) -> Route
where
    P: Proof,
    Q: Message + Default + Send + 'static,
    A: Reply,
    H: Fn(Arc<Call>, P, Q) -> F + Copy + Send + Sync + 'static,
    F: Future<Output = Result<A, Status>> + Send + 'static,
{
    Route::new(path, Requests::Shown(shown::<Q>), move |call: Arc<Call>, proof: P, request| {
        let bound = Bound { handler, with: Some((call, proof)), answer: PhantomData::<fn() -> A> };
        Box::pin(async move { grpc::<Q, A>().unary(bound, request).await })
    })
}

/// A method with a stream of requests and a stream of answers.
pub(super) fn streaming<P, Q, A, H, F>(path: &'static str, handler: H) -> Route
where
    P: Proof,
    Q: Message + Default + Send + 'static,
    A: Reply,
    H: Fn(Arc<Call>, P, Streaming<Q>) -> F + Copy + Send + Sync + 'static,
    F: Future<Output = Result<Replies<A>, Status>> + Send + 'static,
{
    Route::new(path, Requests::Stream, move |call: Arc<Call>, proof: P, request| {
        let bound = Bound { handler, with: Some((call, proof)), answer: PhantomData::<fn() -> A> };
        Box::pin(async move { grpc::<Q, A>().streaming(bound, request).await })
    })
    .answers(Answers::Stream)
}

/// As [`streaming`], for answers that are encoded already.
pub(super) fn exchange<P, Q, H>(path: &'static str, handler: H) -> Route
where
    P: Proof,
    Q: Asked + Send + 'static,
    H: Fn(Arc<Call>, P, Streaming<Q>) -> Result<Exchange, Status> + Copy + Send + Sync + 'static,
{
    Route::new(path, Requests::Stream, move |call: Arc<Call>, proof: P, request| {
        let begun = requests(request)
            .and_then(|requests| handler(call.clone(), proof, requests))
            .inspect_err(|status| call.audit.failure(status));
        Box::pin(std::future::ready(begun.map_or_else(|status| status.into_http(), Exchange::into_response)))
    })
    .answers(Answers::UntilCancelled)
}

/// The requests of a stream. Compressed ones are refused in tonic's words, which `Grpc` says for all other methods.
fn requests<Q: Asked + Send + 'static>(request: Request<Body>) -> Result<Streaming<Q>, Status> {
    match request.headers().get("grpc-encoding").map(|encoding| encoding.to_str()) {
        None | Some(Ok("identity")) => {
            let decoder = MessageDecoder(PhantomData);
            Ok(Streaming::new_request(decoder, request.into_body(), None, Some(MESSAGE_SIZE_MAX)))
        }
        Some(encoding) => {
            let encoding = encoding.unwrap_or_default();
            Err(Status::unimplemented(format!(
                "Content is compressed with `{encoding}` which isn't supported"
            )))
        }
    }
}

/// A method with one request and a stream of answers.
pub(crate) fn server_streaming<P, Q, A, H, F>(path: &'static str, handler: H) -> Route
where
    P: Proof,
    Q: Message + Default + Send + 'static,
    A: Reply,
    H: Fn(Arc<Call>, P, Q) -> F + Copy + Send + Sync + 'static,
    F: Future<Output = Result<Replies<A>, Status>> + Send + 'static,
{
    Route::new(path, Requests::One, move |call: Arc<Call>, proof: P, request| {
        let bound = Bound { handler, with: Some((call, proof)), answer: PhantomData::<fn() -> A> };
        Box::pin(async move { grpc::<Q, A>().server_streaming(bound, request).await })
    })
    .answers(Answers::Stream)
}

/// A request as our decoder understands it, encoded again: a policy must not see anything else than the handler.
fn shown<Q: Message + Default>(message: Bytes) -> Result<Vec<u8>, Status> {
    decoded::<Q>(message).map(|message| message.encode_to_vec())
}

fn decoded<Q: Message + Default>(message: impl Buf) -> Result<Q, Status> {
    let length = message.remaining();
    Q::decode(message).map_err(|error| malformed(&error, length))
}

/// The answer to a message of this length that cannot be decoded.
pub(super) fn malformed(error: &DecodeError, length: usize) -> Status {
    tracing::debug!(error = %error, length, "Malformed message");
    Status::internal(format!("grpc: failed to unmarshal the received message: {error}"))
}

fn grpc<Q: Message + Default + Send + 'static, A: Reply>() -> Grpc<MessageCodec<A, Q>> {
    Grpc::new(MessageCodec(PhantomData)).max_decoding_message_size(MESSAGE_SIZE_MAX)
}

/// A handler with what it is called with, as the service of one call.
struct Bound<H, P, A> {
    handler: H,
    with: Option<(Arc<Call>, P)>,
    answer: PhantomData<fn() -> A>,
}

impl<H, P, A> Bound<H, P, A> {
    fn take(&mut self) -> (Arc<Call>, P) {
        // `Grpc` calls its service once.
        self.with.take().unwrap_or_else(|| unreachable!("one call a service"))
    }
}

impl<H, P, Q, A, F> UnaryService<Q> for Bound<H, P, A>
where
    P: Send + 'static,
    A: Reply,
    H: Fn(Arc<Call>, P, Q) -> F,
    F: Future<Output = Result<A, Status>> + Send + 'static,
{
    type Response = A;
    type Future = Answering<A>;

    fn call(&mut self, request: tonic::Request<Q>) -> Self::Future {
        let (call, proof) = self.take();
        let answer = (self.handler)(call.clone(), proof, request.into_inner());
        Answering { call, answer: Some(Box::pin(answer)) }
    }
}

/// A handler at work. Dropped before its end, since the client cancelled or its deadline passed, it goes on as a task of its
/// own: what it began to write is finished, and each call has its line in the audit log.
struct Answering<A: Reply> {
    call: Arc<Call>,
    /// None at its end, and where it panicked.
    answer: Option<BoxFuture<Result<A, Status>>>,
}

impl<A: Reply> Future for Answering<A> {
    type Output = Result<tonic::Response<A>, Status>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let Some(mut answer) = this.answer.take() else { return Poll::Pending };
        let Poll::Ready(answered) = answer.as_mut().poll(cx) else {
            this.answer = Some(answer);
            return Poll::Pending;
        };
        Poll::Ready(answered.map(tonic::Response::new).inspect_err(|status| this.call.audit.failure(status)))
    }
}

impl<A: Reply> Drop for Answering<A> {
    fn drop(&mut self) {
        let Some(answer) = self.answer.take() else { return };
        let call = self.call.clone();
        let place = call.api.abandoned.clone().try_acquire_owned();
        let (Ok(place), Ok(runtime)) = (place, tokio::runtime::Handle::try_current()) else {
            call.audit.failure(&Status::cancelled("context canceled"));
            return;
        };
        call.client_gone.notify_one();
        let finish = async move {
            if let Err(status) = answer.await {
                call.audit.failure(&status);
            }
            drop(place);
        };
        runtime.spawn(finish.in_current_span());
    }
}

impl<H, P, Q, A, F> StreamingService<Q> for Bound<H, P, A>
where
    P: Send + 'static,
    A: Reply,
    H: Fn(Arc<Call>, P, Streaming<Q>) -> F,
    F: Future<Output = Result<Replies<A>, Status>> + Send + 'static,
{
    type Response = A;
    type ResponseStream = Replies<A>;
    type Future = BoxFuture<Result<tonic::Response<Replies<A>>, Status>>;

    fn call(&mut self, request: tonic::Request<Streaming<Q>>) -> Self::Future {
        let (call, proof) = self.take();
        let answers = (self.handler)(call, proof, request.into_inner());
        Box::pin(async move { answers.await.map(tonic::Response::new) })
    }
}

impl<H, P, Q, A, F> ServerStreamingService<Q> for Bound<H, P, A>
where
    P: Send + 'static,
    A: Reply,
    H: Fn(Arc<Call>, P, Q) -> F,
    F: Future<Output = Result<Replies<A>, Status>> + Send + 'static,
{
    type Response = A;
    type ResponseStream = Replies<A>;
    type Future = BoxFuture<Result<tonic::Response<Replies<A>>, Status>>;

    fn call(&mut self, request: tonic::Request<Q>) -> Self::Future {
        let (call, proof) = self.take();
        let answers = (self.handler)(call.clone(), proof, request.into_inner());
        Box::pin(async move {
            answers.await.map(tonic::Response::new).inspect_err(|status| call.audit.failure(status))
        })
    }
}

/// A request that can be read: any message, or one that knows a cheaper way.
pub(super) trait Asked: Sized {
    /// Decodes the message that the buffer holds.
    fn read(buffer: &mut DecodeBuf<'_>) -> Result<Self, Status>;
}

impl<M: Message + Default> Asked for M {
    fn read(buffer: &mut DecodeBuf<'_>) -> Result<Self, Status> {
        decoded(buffer)
    }
}

/// An answer that can write itself: any message, or what is encoded already.
pub(crate) trait Reply: Send + 'static {
    /// Appends the encoded message.
    fn write(self, buffer: &mut EncodeBuf<'_>) -> Result<(), Status>;
}

impl<M: Message + 'static> Reply for M {
    fn write(self, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        self.encode(buffer).map_err(|error| Status::internal(error.to_string()))
    }
}

struct MessageCodec<A, Q>(PhantomData<fn() -> (A, Q)>);

struct MessageEncoder<A>(PhantomData<fn() -> A>);

struct MessageDecoder<Q>(PhantomData<fn() -> Q>);

impl<A: Reply, Q: Message + Default + Send + 'static> Codec for MessageCodec<A, Q> {
    type Encode = A;
    type Decode = Q;
    type Encoder = MessageEncoder<A>;
    type Decoder = MessageDecoder<Q>;

    fn encoder(&mut self) -> Self::Encoder {
        MessageEncoder(PhantomData)
    }

    fn decoder(&mut self) -> Self::Decoder {
        MessageDecoder(PhantomData)
    }
}

impl<A: Reply> Encoder for MessageEncoder<A> {
    type Item = A;
    type Error = Status;

    fn encode(&mut self, item: A, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        item.write(buffer)
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(ENCODE_BUFFER, ENCODE_YIELD)
    }
}

impl<Q: Asked> Decoder for MessageDecoder<Q> {
    type Item = Q;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Q>, Status> {
        Q::read(buffer).map(Some)
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(ENCODE_BUFFER, ENCODE_YIELD)
    }
}

/// One call, as its handler sees it.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) api: Arc<Api>,
    pub(crate) peer: Peer,
    pub(crate) audit: Audit,
    path: &'static str,
    /// Until when the client waits for the answer, where it says so.
    deadline: Option<Instant>,
    /// Told once the client is gone while the handler goes on.
    client_gone: Notify,
}

impl Call {
    /// Waits for the caller's turn where the method is limited by the caller's address. Calls through the unix socket
    /// are not limited. `what` completes the text of the refusal.
    pub(super) async fn limit(
        &self,
        bucket: super::limits::Bucket,
        count: usize,
        what: &str,
    ) -> Result<(), Status> {
        let Some(address) = self.peer.address() else { return Ok(()) };
        let limits = self.api.limits.load_full();
        let Some(limiter) = limits.of(bucket) else { return Ok(()) };
        let measured =
            names::rate_limit(self.path).map(|name| observe::Call::start(&*self.api.deps.metrics, name));
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        // Who would wait longer is refused at once, so that a flood does not fill the memory with what waits.
        let longest = Instant::now() + TURN_MAX;
        let deadline = self.deadline.map_or(longest, |deadline| deadline.min(longest));
        let (code, why) = tokio::select! {
            biased;
            waited = limiter.wait(address.ip(), count, Some(deadline)) => match waited {
                Ok(()) => {
                    if let Some(measured) = measured {
                        measured.done("OK");
                    }
                    return Ok(());
                }
                Err(error) => (Code::ResourceExhausted, error.to_string()),
            },
            () = self.client_gone.notified() => (Code::Cancelled, "context canceled".to_owned()),
        };
        if let Some(measured) = measured {
            measured.done(code_name(code));
        }
        Err(fail_with(code, &format!("rejecting request due to {what}"), why))
    }
}

/// The methods of one listener as a service.
#[derive(Clone)]
pub struct ApiService {
    api: Arc<Api>,
    routes: Arc<HashMap<&'static str, Route>>,
}

impl ApiService {
    pub(super) fn new(api: Arc<Api>, routes: impl Iterator<Item = Route>) -> Self {
        Self { api, routes: Arc::new(routes.map(|route| (route.path, route)).collect()) }
    }

    #[cfg(test)]
    pub(super) fn paths(&self) -> impl Iterator<Item = (&'static str, Allowed)> + '_ {
        self.routes.values().map(|route| (route.path, route.allowed))
    }

    async fn serve(self, request: Request<Body>) -> Response<Body> {
        let Some(route) = self.routes.get(request.uri().path()) else {
            return self.unknown(request.uri().path()).into_http();
        };
        let Some(peer) = Peer::of(&request) else {
            return Status::internal("no peer information available").into_http();
        };
        let (service, method) = log_names(route.path);
        let span = tracing::info_span!(
            "rpc",
            subsystem_name = "api",
            service,
            method,
            request_id = %uuid::Uuid::new_v4(),
            caller_addr = peer.address().map(tracing::field::display),
            caller_id = peer.id().map(tracing::field::display),
            authorized_as = "nobody",
            authorized_via = "",
            caller_uid = Empty,
            caller_gid = Empty,
            caller_path = Empty,
        );
        self.clone().authorized(route, peer, request).instrument(span).await
    }

    async fn authorized(self, route: &Route, peer: Peer, request: Request<Body>) -> Response<Body> {
        let measured =
            names::rpc(route.path).map(|name| MeasuredCall::start(self.api.deps.metrics.clone(), name));
        let (parts, body) = request.into_parts();
        let unfinished = &self.api.unfinished;
        let mut body = match route.requests {
            Requests::Stream => Intake::of_stream(body, &peer, unfinished),
            Requests::Shown(_) | Requests::One => Intake::of_one(body, &peer, unfinished),
        };
        let granted = match &self.api.judge {
            None => self.api.authorizer.authorize(&peer, route.allowed).await,
            Some(judge) => self.judged(judge, route, &peer, &mut body).await,
        };
        let request = Request::from_parts(parts, Body::new(body));
        let response = match granted {
            Err(denial) => denial.into_status(route.path).into_http(),
            Ok(granted) => {
                let span = tracing::Span::current();
                let (authorized_as, authorized_via) = granted.log_fields();
                tracing::record_all!(span, authorized_as, authorized_via);
                let audit = Audit::new(self.api.deps.audit_log_enabled);
                match audit_caller(&audit, &peer, &span) {
                    Ok(()) => {
                        let deadline = time_limit(request.headers()).map(|limit| Instant::now() + limit);
                        let call = Arc::new(Call {
                            api: self.api.clone(),
                            peer,
                            audit,
                            path: route.path,
                            deadline,
                            client_gone: Notify::new(),
                        });
                        (route.run)(call, granted, request).await
                    }
                    Err(status) => (*status).into_http(),
                }
            }
        };
        match measured {
            Some(measured) => measured.until_end_of(response, route.answers),
            None => response,
        }
    }

    /// What the user's policy says of a call. It may look into the one request of a call, so that is read first.
    async fn judged(
        &self,
        judge: &Judge,
        route: &Route,
        peer: &Peer,
        body: &mut Intake,
    ) -> Result<Granted, Denial> {
        let failed = |status: Status| Denial::Failed(Box::new(status));
        let request = match route.requests {
            Requests::Shown(shown) => {
                let message = body.first_message().await.map_err(failed)?;
                Some(shown(message).map_err(failed)?)
            }
            Requests::One | Requests::Stream => None,
        };
        let allowed = judge.allowed(peer, route.path, request).await?;
        self.api.authorizer.authorize_by_policy(peer, allowed).await
    }

    /// As grpc-go says it.
    fn unknown(&self, path: &str) -> Status {
        let Some((service, method)) = path.strip_prefix('/').unwrap_or(path).rsplit_once('/') else {
            return Status::unimplemented(format!("malformed method name: {path:?}"));
        };
        let known =
            self.routes.keys().any(|route| route[1..].rsplit_once('/').is_some_and(|(s, _)| s == service));
        Status::unimplemented(if known {
            format!("unknown method {method} for service {service}")
        } else {
            format!("unknown service {service}")
        })
    }
}

impl std::fmt::Debug for ApiService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiService").field("methods", &self.routes.len()).finish_non_exhaustive()
    }
}

impl Service<Request<Body>> for ApiService {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let serving = self.clone().serve(request);
        Box::pin(async move { Ok(serving.await) })
    }
}

/// Who the local caller is, in the audit log. A process that is gone is refused, as the reference does
/// (pkg/server/api/middleware/audit.go).
fn audit_caller(audit: &Audit, peer: &Peer, span: &tracing::Span) -> Result<(), Box<Status>> {
    let Peer::Local(Some(process)) = peer else { return Ok(()) };
    if !audit.enabled() {
        return Ok(());
    }
    span.record("caller_uid", process.uid());
    span.record("caller_gid", process.gid());
    if let Ok(path) = process.executable() {
        span.record("caller_path", tracing::field::display(path.display()));
    }
    process.check_alive().map_err(|error| Box::new(Status::internal(format!("peertracker fails: {error}"))))
}

/// Service and method as the log names them (pkg/common/api/middleware/names.go).
fn log_names(path: &'static str) -> (&'static str, &'static str) {
    let (service, method) = path[1..].rsplit_once('/').unwrap_or((path, ""));
    let service = match service {
        "grpc.health.v1.Health" => "Health",
        "spire.api.server.logger.v1.Logger" => "Logger",
        other => other.strip_prefix("spire.api.server.").unwrap_or(other),
    };
    (service, method)
}
