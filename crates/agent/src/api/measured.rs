//! Calls of a service, counted while they are open and reported when they end.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use spire_ports::observe::names::Name;
use spire_ports::observe::{Label, Metrics, names};
use tonic::Status;

use crate::runtime::code_name;

/// The calls of one service that are open, and their metrics (pkg/agent/endpoints/metrics.go).
pub(super) struct OpenCalls {
    metrics: Arc<dyn Metrics>,
    counter: Name,
    gauge: Name,
    open: Arc<AtomicU32>,
}

impl OpenCalls {
    /// Counts each call in `counter` and those that are open in `gauge`.
    pub(super) fn new(metrics: Arc<dyn Metrics>, counter: Name, gauge: Name) -> Self {
        Self { metrics, counter, gauge, open: Arc::default() }
    }

    /// A call of this method begins. Those of the agent itself have no metrics of their own.
    pub(super) fn start(&self, full_method: &'static str, is_agent: bool) -> Measured {
        let open = self.open.fetch_add(1, Ordering::Relaxed) + 1;
        self.metrics.incr_counter(self.counter, 1.0, &[]);
        self.metrics.set_gauge(self.gauge, f64::from(open), &[]);
        Measured {
            metrics: Arc::clone(&self.metrics),
            gauge: self.gauge,
            open: Arc::clone(&self.open),
            full_method,
            is_agent,
            start: Instant::now(),
            status: "OK",
        }
    }
}

/// Counts a call for as long as it is open and reports how it ended; one that the client ends counts as OK, as
/// in the reference.
pub(super) struct Measured {
    metrics: Arc<dyn Metrics>,
    gauge: Name,
    open: Arc<AtomicU32>,
    full_method: &'static str,
    is_agent: bool,
    start: Instant,
    status: &'static str,
}

impl Measured {
    /// The call ends with this status.
    pub(super) fn fail(mut self, status: Status) -> Status {
        self.status = code_name(status.code());
        status
    }
}

impl Drop for Measured {
    fn drop(&mut self) {
        let open = self.open.fetch_sub(1, Ordering::Relaxed) - 1;
        self.metrics.set_gauge(self.gauge, f64::from(open), &[]);
        if self.is_agent {
            return;
        }
        if let Some(key) = names::rpc(self.full_method) {
            let labels = [Label::new(names::label::STATUS, self.status)];
            let mut elapsed = key.to_vec();
            elapsed.push(names::ELAPSED_TIME);
            self.metrics.incr_counter(key, 1.0, &labels);
            self.metrics.measure_since(&elapsed, self.start, &labels);
        }
    }
}
