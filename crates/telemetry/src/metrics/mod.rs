//! Metrics to the sinks of the `telemetry` section (the reference's `pkg/common/telemetry`, which is go-metrics).
//!
//! Emitting never waits: Prometheus and M3 keep sums, StatsD and DogStatsD have a bounded queue, and what does not
//! fit is dropped. [`Telemetry::run`] does what takes time.

mod datagram;
mod intervals;
mod m3;
mod naming;
mod process;
mod prometheus;
mod scrape;
mod series;
mod statsd;
mod summary;
mod thrift;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use futures_util::future::{BoxFuture, join_all};
use spire_compat::config::TelemetryConfig;
use spire_ports::observe::{Label, Metrics};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

pub use datagram::AddressError;
pub use m3::M3Error;
pub use process::{Heap, HeapProbe};
pub use scrape::{OwnTls, ScrapeTlsError};

use intervals::Intervals;
use m3::M3;
use naming::{CleanLabel, Naming};
use prometheus::Prometheus;
use scrape::Scrape;
use statsd::{DogStatsd, Statsd};

/// How often go-metrics sends its runtime gauges.
const RUNTIME_INTERVAL: Duration = Duration::from_secs(1);

/// How often the reference sends the uptime (`pkg/common/uptime`).
const UPTIME_INTERVAL: Duration = Duration::from_secs(10);

/// How metrics are made.
#[derive(Clone, Debug)]
pub struct TelemetryOptions {
    /// `telemetry` of the configuration.
    pub config: TelemetryConfig,
    /// `spire_server` or `spire_agent`: the first part of each name unless `MetricPrefix` says another.
    pub service: &'static str,
    /// The name of the trust domain, for the label.
    pub trust_domain: String,
    /// What the scraped endpoint's TLS may use.
    pub own_tls: OwnTls,
    /// Asks the allocator.
    pub heap: HeapProbe,
}

/// Why metrics could not be started.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// A StatsD or DogStatsD address is none.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// An M3 sink cannot be made.
    #[error(transparent)]
    M3(#[from] M3Error),
    /// The TLS of the Prometheus endpoint cannot be made.
    #[error("failed to create TLS config for Prometheus: {0}")]
    ScrapeTls(#[from] ScrapeTlsError),
}

/// What a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Counter,
    Gauge,
    Sample,
    Timer,
}

impl Kind {
    /// As go-metrics' type prefix has it.
    fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Sample => "sample",
            Self::Timer => "timer",
        }
    }
}

/// One emission, as sinks see it.
#[derive(Debug)]
pub(crate) struct Point<'a> {
    pub(crate) kind: Kind,
    /// The prefix and the key, joined by dots.
    pub(crate) name: &'a str,
    /// The key alone.
    pub(crate) key: &'a [&'a str],
    pub(crate) value: f64,
    /// Sanitised and filtered.
    pub(crate) labels: &'a [CleanLabel<'a>],
}

/// Takes metrics, without waiting.
pub(crate) trait Sink: Send + Sync {
    fn emit(&self, point: &Point<'_>);

    /// Whether filters see the type as the second part of the name.
    fn type_in_name(&self) -> bool {
        false
    }

    /// Names, labels or filters changed: series that are kept have the old ones.
    fn renamed(&self) {}
}

/// The metrics of a process: what is emitted goes to every configured sink. Without a sink, emitting costs nothing.
pub struct Telemetry {
    options: TelemetryOptions,
    host: String,
    started: Instant,
    naming: ArcSwap<Naming>,
    sinks: Vec<Arc<dyn Sink>>,
    prometheus: Option<(Arc<Prometheus>, Scrape)>,
    intervals: Option<Arc<Intervals>>,
    statsd: Vec<Arc<Statsd>>,
    dog_statsd: Vec<Arc<DogStatsd>>,
    m3: Vec<Arc<M3>>,
}

impl fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Telemetry").field("sinks", &self.sinks.len()).finish_non_exhaustive()
    }
}

impl Telemetry {
    /// Makes the sinks; nothing is sent and no port is taken before [`Telemetry::run`].
    ///
    /// # Errors
    /// [`TelemetryError`], which stops the process as in the reference.
    pub fn new(options: TelemetryOptions) -> Result<Arc<Self>, TelemetryError> {
        let config = &options.config;
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let naming = Naming::new(config, options.service, &options.trust_domain, &host);
        let dog = config.dog_statsd.iter().map(|sink| DogStatsd::new(&sink.address).map(Arc::new));
        let dog_statsd: Vec<Arc<DogStatsd>> = dog.collect::<Result<_, _>>()?;
        let intervals = config.in_mem.then(Arc::<Intervals>::default);
        let prometheus = match &config.prometheus {
            Some(config) => Some((Arc::<Prometheus>::default(), Scrape::new(config, &options.own_tls)?)),
            None => None,
        };
        let statsd = config.statsd.iter().map(|sink| Statsd::new(&sink.address).map(Arc::new));
        let statsd: Vec<Arc<Statsd>> = statsd.collect::<Result<_, _>>()?;
        // The service tag is the service's name whatever the prefix is.
        let m3 =
            config.m3.iter().map(|sink| M3::new(options.service, &sink.address, &sink.env).map(Arc::new));
        let m3: Vec<Arc<M3>> = m3.collect::<Result<_, _>>()?;
        let mut sinks: Vec<Arc<dyn Sink>> = Vec::new();
        sinks.extend(dog_statsd.iter().map(|sink| Arc::clone(sink) as Arc<dyn Sink>));
        sinks.extend(intervals.iter().map(|sink| Arc::clone(sink) as Arc<dyn Sink>));
        sinks.extend(prometheus.iter().map(|(sink, _)| Arc::clone(sink) as Arc<dyn Sink>));
        sinks.extend(statsd.iter().map(|sink| Arc::clone(sink) as Arc<dyn Sink>));
        sinks.extend(m3.iter().map(|sink| Arc::clone(sink) as Arc<dyn Sink>));
        let naming = ArcSwap::from_pointee(naming);
        let started = Instant::now();
        Ok(Arc::new(Self {
            options,
            host,
            started,
            naming,
            sinks,
            prometheus,
            intervals,
            statsd,
            dog_statsd,
            m3,
        }))
    }

    /// Serves and sends until cancelled.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        if self.sinks.is_empty() {
            return;
        }
        let mut work: Vec<BoxFuture<'_, ()>> =
            vec![Box::pin(self.emit_runtime()), Box::pin(self.emit_uptime())];
        work.extend(self.dog_statsd.iter().map(|sink| Box::pin(sink.run()) as BoxFuture<'_, ()>));
        work.extend(self.statsd.iter().map(|sink| Box::pin(sink.run()) as BoxFuture<'_, ()>));
        work.extend(self.m3.iter().map(|sink| Box::pin(sink.run()) as BoxFuture<'_, ()>));
        work.extend(self.intervals.iter().map(|sink| Box::pin(sink.run()) as BoxFuture<'_, ()>));
        if let Some((sink, scrape)) = &self.prometheus {
            self.announce(scrape);
            work.push(Box::pin(scrape.run(Arc::clone(sink), self.options.heap)));
        }
        tokio::select! {
            () = stop.cancelled() => {}
            _ = join_all(work) => {}
        }
    }

    /// Takes new names, labels and filters, and the endpoint's certificate from its files. `config` must have the
    /// same sinks; gives what changed, by key.
    ///
    /// # Errors
    /// The certificate cannot be used; then nothing changes.
    pub fn reload(&self, config: &TelemetryConfig) -> Result<Vec<&'static str>, ScrapeTlsError> {
        let mut changed = Vec::new();
        if let Some((_, scrape)) = &self.prometheus
            && scrape.reload()?
        {
            changed.push("telemetry.Prometheus.tls");
        }
        let options = &self.options;
        let naming = Naming::new(config, options.service, &options.trust_domain, &self.host);
        if **self.naming.load() != naming {
            self.naming.store(Arc::new(naming));
            for sink in &self.sinks {
                sink.renamed();
            }
            changed.push("telemetry");
        }
        Ok(changed)
    }

    /// The text that Prometheus would get now; `None` without that sink.
    pub fn scrape(&self) -> Option<String> {
        let (sink, _) = self.prometheus.as_ref()?;
        Some(sink.text(&process::families(self.options.heap)))
    }

    fn announce(&self, scrape: &Scrape) {
        if scrape.host != "localhost" {
            tracing::warn!(
                subsystem_name = "telemetry",
                "Agent is now configured to accept remote network connections for Prometheus stats collection. \
                 Please ensure access to this port is tightly controlled"
            );
        }
        tracing::info!(
            host = scrape.host,
            port = scrape.port,
            subsystem_name = "telemetry",
            "Starting prometheus exporter"
        );
    }

    async fn emit_runtime(&self) {
        let mut ticks = interval(RUNTIME_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            for (name, value) in process::runtime_gauges(self.options.heap) {
                self.set_gauge(&["runtime", name], value, &[]);
            }
        }
    }

    async fn emit_uptime(&self) {
        let mut ticks = interval(UPTIME_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let uptime = self.started.elapsed().as_secs_f64() * 1000.0;
            self.set_gauge(spire_ports::observe::names::common::UPTIME_IN_MS, uptime, &[]);
        }
    }

    fn emit(&self, kind: Kind, key: &[&str], value: f64, labels: &[Label<'_>]) {
        if self.sinks.is_empty() {
            return;
        }
        let naming = self.naming.load();
        let name = joined(&naming.prefix, None, key);
        let labels = naming.labels(labels);
        let point = Point { kind, name: &name, key, value, labels: &labels };
        let allowed = naming.allows(&name);
        for sink in &self.sinks {
            let allowed = if sink.type_in_name() {
                naming.allows(&joined(&naming.prefix, Some(kind.as_str()), key))
            } else {
                allowed
            };
            if allowed {
                sink.emit(&point);
            }
        }
    }
}

impl Metrics for Telemetry {
    fn incr_counter(&self, key: &[&str], value: f32, labels: &[Label<'_>]) {
        self.emit(Kind::Counter, key, value.into(), labels);
    }

    fn set_gauge(&self, key: &[&str], value: f64, labels: &[Label<'_>]) {
        self.emit(Kind::Gauge, key, value, labels);
    }

    fn add_sample(&self, key: &[&str], value: f32, labels: &[Label<'_>]) {
        self.emit(Kind::Sample, key, value.into(), labels);
    }

    fn measure_since(&self, key: &[&str], start: Instant, labels: &[Label<'_>]) {
        self.emit(Kind::Timer, key, start.elapsed().as_secs_f64() * 1000.0, labels);
    }
}

fn joined(prefix: &str, kind: Option<&str>, key: &[&str]) -> String {
    let mut name = String::with_capacity(96);
    name.push_str(prefix);
    for part in kind.iter().chain(key) {
        // An empty prefix is no part.
        if !name.is_empty() {
            name.push('.');
        }
        name.push_str(part);
    }
    name
}

#[cfg(test)]
mod tests;
