//! The metrics of a call, which for a stream of answers end with the stream (pkg/common/api/middleware/metrics.go).

use std::sync::Arc;
use std::time::Instant;

use http_body_util::BodyExt as _;
use spire_ports::observe::names::{self, Name};
use spire_ports::observe::{Label, Metrics};
use tonic::body::Body;
use tonic::codegen::http::{HeaderMap, Response};
use tonic::{Code, Status};

use super::status::code_name;

/// A call in progress. Dropped before its end, it counts as cancelled.
pub(super) struct MeasuredCall {
    metrics: Arc<dyn Metrics>,
    name: Name,
    start: Instant,
    ended: bool,
    /// How it counts if it is dropped now.
    dropped: Code,
}

/// What a call answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answers {
    One,
    Stream,
    /// A stream that clients end by cancelling once they have what they asked for, which is no failure.
    UntilCancelled,
}

impl MeasuredCall {
    pub(super) fn start(metrics: Arc<dyn Metrics>, name: Name) -> Self {
        Self { metrics, name, start: Instant::now(), ended: false, dropped: Code::Cancelled }
    }

    /// Ends with this response, or with its body where that is a stream.
    pub(super) fn until_end_of(mut self, response: Response<Body>, answers: Answers) -> Response<Body> {
        if let Some(status) = response.extensions().get::<Status>() {
            self.end(code_name(status.code()));
        } else if answers != Answers::One {
            return response.map(|body| {
                Body::new(body.map_frame(move |frame| {
                    if answers == Answers::UntilCancelled && frame.is_data() {
                        self.dropped = Code::Ok;
                    }
                    if let Some(trailers) = frame.trailers_ref() {
                        self.end(code_name(code_in(trailers)));
                    }
                    frame
                }))
            });
        } else {
            self.end(code_name(Code::Ok));
        }
        response
    }

    fn end(&mut self, status: &str) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let labels = [Label::new(names::label::STATUS, status)];
        let elapsed: Vec<&str> = self.name.iter().copied().chain([names::ELAPSED_TIME]).collect();
        self.metrics.incr_counter(self.name, 1.0, &labels);
        self.metrics.measure_since(&elapsed, self.start, &labels);
    }
}

impl Drop for MeasuredCall {
    fn drop(&mut self) {
        self.end(code_name(self.dropped));
    }
}

fn code_in(trailers: &HeaderMap) -> Code {
    trailers.get("grpc-status").map_or(Code::Unknown, |code| Code::from_bytes(code.as_bytes()))
}

#[cfg(test)]
mod tests {
    use spire_telemetry::InMem;

    use super::*;

    const NAME: Name = &["rpc", "x"];

    fn counted(metrics: &InMem) -> Vec<String> {
        let counters = metrics.all().into_iter().filter(|(key, _)| !key.contains("elapsed_time"));
        counters.map(|(key, series)| format!("{key} {}", series.count)).collect()
    }

    #[tokio::test]
    async fn a_stream_ends_with_its_trailers_or_its_client() {
        let metrics = Arc::new(InMem::new());
        let call = || MeasuredCall::start(metrics.clone(), NAME);
        call().until_end_of(Status::not_found("x").into_http(), Answers::Stream);
        assert_eq!(counted(&metrics), ["rpc.x;status=NotFound 1"]);
        drop(call().until_end_of(Response::new(Body::empty()), Answers::One));
        drop(call().until_end_of(Response::new(Body::empty()), Answers::Stream));
        drop(call());
        let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), "5".parse().unwrap())]);
        let body = http_body_util::Full::new(bytes::Bytes::from_static(b"x"))
            .with_trailers(std::future::ready(Some(Ok(trailers))));
        let response = call().until_end_of(Response::new(Body::new(body)), Answers::Stream);
        assert_eq!(counted(&metrics).len(), 3, "the stream is still open: {:?}", counted(&metrics));
        response.into_body().collect().await.unwrap();
        assert_eq!(
            counted(&metrics),
            ["rpc.x;status=Canceled 2", "rpc.x;status=NotFound 2", "rpc.x;status=OK 1"]
        );
    }

    #[tokio::test]
    async fn an_exchange_that_its_client_ends_after_an_answer_went_well() {
        let metrics = Arc::new(InMem::new());
        let exchange = || {
            let body = http_body_util::Full::new(bytes::Bytes::from_static(b"x"));
            let call = MeasuredCall::start(metrics.clone(), NAME);
            call.until_end_of(Response::new(Body::new(body)), Answers::UntilCancelled)
        };
        drop(exchange());
        assert_eq!(counted(&metrics), ["rpc.x;status=Canceled 1"]);
        exchange().into_body().frame().await.unwrap().unwrap();
        assert_eq!(counted(&metrics), ["rpc.x;status=Canceled 1", "rpc.x;status=OK 1"]);
    }
}
