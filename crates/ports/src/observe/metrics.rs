//! The metrics port: what a sink must do, a sink that drops everything, and the reference's "call" metric.

use std::sync::Arc;
use std::time::Instant;

/// A label of a metric: a static name, and a value that sinks sanitise as they need.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Label<'a> {
    /// The label's name, one of [`super::names::label`] for our own metrics.
    pub name: &'a str,
    /// The label's value, as the application has it.
    pub value: &'a str,
}

impl<'a> Label<'a> {
    /// A label of this name and value.
    pub const fn new(name: &'a str, value: &'a str) -> Self {
        Self { name, value }
    }
}

/// Where metrics go. A key is the list of a name's parts ([`super::names`]); each sink joins them in its own way.
///
/// The reference's interface is `pkg/common/telemetry/metrics.go`. Implementations must not block and must bound
/// the number of series they keep.
pub trait Metrics: Send + Sync {
    /// Adds `value` to a counter.
    fn incr_counter(&self, key: &[&str], value: f32, labels: &[Label<'_>]);

    /// Sets a gauge, which keeps its last value.
    fn set_gauge(&self, key: &[&str], value: f64, labels: &[Label<'_>]);

    /// Adds an observation, of which quantiles are computed. Times are in milliseconds.
    fn add_sample(&self, key: &[&str], value: f32, labels: &[Label<'_>]);

    /// Adds the milliseconds that passed since `start` as a sample.
    fn measure_since(&self, key: &[&str], start: Instant, labels: &[Label<'_>]) {
        self.add_sample(key, start.elapsed().as_secs_f32() * 1000.0, labels);
    }
}

impl<M: Metrics + ?Sized> Metrics for Arc<M> {
    fn incr_counter(&self, key: &[&str], value: f32, labels: &[Label<'_>]) {
        (**self).incr_counter(key, value, labels);
    }

    fn set_gauge(&self, key: &[&str], value: f64, labels: &[Label<'_>]) {
        (**self).set_gauge(key, value, labels);
    }

    fn add_sample(&self, key: &[&str], value: f32, labels: &[Label<'_>]) {
        (**self).add_sample(key, value, labels);
    }

    fn measure_since(&self, key: &[&str], start: Instant, labels: &[Label<'_>]) {
        (**self).measure_since(key, start, labels);
    }
}

/// An error that has, or carries, the code of a gRPC status. A call that fails with it is counted under that code, as
/// the reference's calls are, whose errors wrap the statuses of plugins and servers (pkg/common/telemetry/call.go).
pub trait GrpcCode {
    /// The code's name as Go prints it; `Unknown` for an error without one.
    fn grpc_code(&self) -> &'static str;
}

/// Drops every metric: no sink is configured.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoMetrics;

impl Metrics for NoMetrics {
    fn incr_counter(&self, _: &[&str], _: f32, _: &[Label<'_>]) {}

    fn set_gauge(&self, _: &[&str], _: f64, _: &[Label<'_>]) {}

    fn add_sample(&self, _: &[&str], _: f32, _: &[Label<'_>]) {}

    fn measure_since(&self, _: &[&str], _: Instant, _: &[Label<'_>]) {}
}

/// A call that is being measured: [`Call::done`] emits a counter and a sample `<key>.elapsed_time`, both with the
/// labels and `status`. A call that is dropped before it is done (its future was cancelled) counts as `Canceled`.
///
/// The reference's is `CallCounter` of `pkg/common/telemetry/call.go`.
#[derive(Debug)]
pub struct Call<'m, M: Metrics + ?Sized> {
    metrics: &'m M,
    key: &'m [&'m str],
    start: Instant,
    labels: Vec<(&'static str, String)>,
    finished: bool,
}

impl<'m, M: Metrics + ?Sized> Call<'m, M> {
    /// Starts to measure a call of this name.
    pub fn start(metrics: &'m M, key: &'m [&'m str]) -> Self {
        Self { metrics, key, start: Instant::now(), labels: Vec::new(), finished: false }
    }

    /// Adds a label to both metrics.
    pub fn label(&mut self, name: &'static str, value: impl Into<String>) {
        self.labels.push((name, value.into()));
    }

    /// Forgets the call: nothing is emitted.
    pub fn discard(mut self) {
        self.finished = true;
    }

    /// Emits the metrics. `status` is the name of the gRPC code as Go prints it: `OK`, `NotFound`, `Unknown`, …
    pub fn done(mut self, status: &str) {
        self.emit(status);
    }

    /// Emits the metrics with the status `OK`, or the code of the error.
    pub fn done_with<T, E: GrpcCode>(self, result: &Result<T, E>) {
        self.done(result.as_ref().map_or_else(GrpcCode::grpc_code, |_| "OK"));
    }

    fn emit(&mut self, status: &str) {
        if std::mem::replace(&mut self.finished, true) {
            return;
        }
        let mut labels: Vec<Label<'_>> =
            self.labels.iter().map(|(name, value)| Label::new(name, value)).collect();
        labels.push(Label::new(super::names::label::STATUS, status));
        self.metrics.incr_counter(self.key, 1.0, &labels);
        let mut elapsed = Vec::with_capacity(self.key.len() + 1);
        elapsed.extend_from_slice(self.key);
        elapsed.push(super::names::ELAPSED_TIME);
        self.metrics.measure_since(&elapsed, self.start, &labels);
    }
}

impl<M: Metrics + ?Sized> Drop for Call<'_, M> {
    fn drop(&mut self) {
        self.emit("Canceled");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::super::names;
    use super::*;
    use crate::plugins::{Error, ErrorKind, PluginType};

    #[derive(Default)]
    struct Recorder(Mutex<Vec<String>>);

    impl Recorder {
        fn push(&self, kind: &str, key: &[&str], labels: &[Label<'_>]) {
            let labels: Vec<String> = labels.iter().map(|l| format!("{}={}", l.name, l.value)).collect();
            self.0.lock().unwrap().push(format!("{kind} {} {}", key.join("."), labels.join(",")));
        }
    }

    impl Metrics for Recorder {
        fn incr_counter(&self, key: &[&str], _: f32, labels: &[Label<'_>]) {
            self.push("counter", key, labels);
        }

        fn set_gauge(&self, key: &[&str], _: f64, labels: &[Label<'_>]) {
            self.push("gauge", key, labels);
        }

        fn add_sample(&self, key: &[&str], _: f32, labels: &[Label<'_>]) {
            self.push("sample", key, labels);
        }
    }

    #[test]
    fn a_call_emits_a_counter_and_its_elapsed_time() {
        let recorder = Recorder::default();
        let mut call = Call::start(&recorder, names::agent::NODE_ATTESTOR_NEW_SVID);
        call.label(names::label::ATTESTOR, "join_token");
        call.done("OK");
        assert_eq!(
            *recorder.0.lock().unwrap(),
            [
                "counter node.attestor.new_svid attestor=join_token,status=OK",
                "sample node.attestor.new_svid.elapsed_time attestor=join_token,status=OK",
            ]
        );
    }

    #[test]
    fn a_dropped_call_counts_as_cancelled_and_a_discarded_one_not_at_all() {
        let recorder = Recorder::default();
        Call::start(&recorder, names::agent::NODE_ATTEST).discard();
        assert!(recorder.0.lock().unwrap().is_empty());
        drop(Call::start(&recorder, names::agent::NODE_ATTEST));
        assert_eq!(recorder.0.lock().unwrap()[0], "counter node.attest status=Canceled");
    }

    #[test]
    fn a_failed_call_is_counted_by_its_code() {
        let plugin = (PluginType::KeyManager, "disk");
        let refused = Err::<(), _>(Error::new(ErrorKind::PermissionDenied, plugin, "no"));
        let recorder: Arc<dyn Metrics> = Arc::new(Recorder::default());
        Call::start(&*recorder, names::server::SVID_ROTATE).done_with(&refused);
        let recorder = Recorder::default();
        Call::start(&recorder, names::server::SVID_ROTATE).done_with(&refused);
        Call::start(&recorder, names::server::SVID_ROTATE).done_with(&Ok::<_, Error>(()));
        let seen = recorder.0.lock().unwrap();
        assert_eq!(seen[0], "counter svid.rotate status=PermissionDenied");
        assert_eq!(seen[2], "counter svid.rotate status=OK");
    }
}
