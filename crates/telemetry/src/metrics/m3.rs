//! M3 over UDP: what changed, once a second (the reference's `pkg/common/telemetry/m3.go` on tally's reporter).

use std::borrow::Cow;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use spire_compat::duration::GoDuration;
use spire_compat::errno::errno_text;
use tokio::net::UdpSocket;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::datagram::{AddressError, Peer, SEND_TIMEOUT, udp};
use super::series::{AtomicFloat, Series};
use super::thrift::{self, Metric, Value};
use super::{Kind, Point, Sink};

const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// The largest packet of tally's reporter, less the room for a call's name, lengths and common tags.
const BATCH_MAX: usize = 32_768 - 1024;

/// Upper bounds of a time's buckets, in milliseconds; the last bucket has none.
const TIMES: [u32; 20] = [
    0, 10, 25, 50, 75, 100, 200, 300, 400, 500, 600, 800, 1000, 2000, 5000, 10_000, 15_000, 20_000, 25_000,
    30_000,
];

/// Upper bounds of a value's buckets.
const VALUES: [f64; 6] = [0.0, 1.0, 10.0, 100.0, 1000.0, 10_000.0];

/// One M3 collector.
#[derive(Debug)]
pub(crate) struct M3 {
    address: String,
    /// `service` and `env`, on every batch.
    common: [(&'static str, String); 2],
    series: Series<One>,
}

/// Why there is no reporter.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum M3Error {
    /// The reporter needs to know its environment.
    #[error("env common tag is required")]
    NoEnv,
    /// The address is none.
    #[error(transparent)]
    Address(#[from] AddressError),
}

#[derive(Debug)]
struct One {
    name: String,
    tags: Vec<(String, String)>,
    value: Kept,
}

#[derive(Debug)]
enum Kept {
    Counter(AtomicI64),
    Gauge { value: AtomicFloat, changed: AtomicBool },
    Times([AtomicI64; TIMES.len() + 1]),
    Values([AtomicI64; VALUES.len() + 1]),
}

impl Kept {
    fn new(kind: Kind) -> Self {
        match kind {
            Kind::Counter => Self::Counter(AtomicI64::new(0)),
            Kind::Gauge => Self::Gauge { value: AtomicFloat::default(), changed: AtomicBool::new(false) },
            Kind::Timer => Self::Times(Default::default()),
            Kind::Sample => Self::Values(Default::default()),
        }
    }

    fn take(&self, value: f64) {
        match self {
            Self::Counter(counter) => {
                counter.fetch_add(value as i64, Ordering::Relaxed);
            }
            Self::Gauge { value: kept, changed } => {
                kept.store(value);
                changed.store(true, Ordering::Relaxed);
            }
            // Whole milliseconds, as the reference cuts them.
            Self::Times(counts) => count(counts, TIMES.iter().position(|b| value.trunc() <= f64::from(*b))),
            Self::Values(counts) => count(counts, VALUES.iter().position(|b| value <= *b)),
        }
    }
}

fn count(counts: &[AtomicI64], bucket: Option<usize>) {
    if let Some(count) = counts.get(bucket.unwrap_or(counts.len() - 1)) {
        count.fetch_add(1, Ordering::Relaxed);
    }
}

impl M3 {
    pub(crate) fn new(service: &str, address: &str, env: &str) -> Result<Self, M3Error> {
        if env.is_empty() {
            return Err(M3Error::NoEnv);
        }
        Peer::udp(address)?;
        let common = [("service", service.to_owned()), ("env", env.to_owned())];
        Ok(Self { address: address.to_owned(), common, series: Series::default() })
    }

    /// Reports until the future is dropped.
    pub(crate) async fn run(&self) {
        let mut ticks = interval(REPORT_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut socket = None;
        let mut told = false;
        let mut sequence = 0;
        loop {
            ticks.tick().await;
            let batches = self.batches(&mut sequence);
            match self.send(&mut socket, &batches).await {
                Ok(()) => told = false,
                Err(error) => {
                    socket = None;
                    if !std::mem::replace(&mut told, true) {
                        tracing::warn!(
                            subsystem_name = "telemetry", address = self.address,
                            error = %errno_text(&error),
                            "Metrics cannot be sent; they are dropped until they can"
                        );
                    }
                }
            }
        }
    }

    async fn send(&self, socket: &mut Option<UdpSocket>, batches: &[Vec<u8>]) -> io::Result<()> {
        let socket = match socket {
            Some(socket) => socket,
            None => socket.insert(udp(&self.address).await?),
        };
        for batch in batches {
            // What the socket's buffer does not take is lost, as UDP loses it.
            if let Ok(sent) = timeout(SEND_TIMEOUT, socket.send(batch)).await {
                sent?;
            }
        }
        Ok(())
    }

    /// What changed since the last call, in packets.
    fn batches(&self, sequence: &mut u32) -> Vec<Vec<u8>> {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let nanos = i64::try_from(since.as_nanos()).unwrap_or(i64::MAX);
        let mut encoded = Vec::new();
        self.series.each(|_, one| one.report(|metric| encoded.push(thrift::metric(metric, nanos))));
        let common: Vec<(&str, &str)> = self.common.iter().map(|(name, value)| (*name, &**value)).collect();
        let mut batches = Vec::new();
        let mut start = 0;
        let mut size = 0;
        for (index, metric) in encoded.iter().enumerate() {
            if size + metric.len() > BATCH_MAX && index > start {
                batches.push((start, index));
                (start, size) = (index, 0);
            }
            size += metric.len();
        }
        if start < encoded.len() {
            batches.push((start, encoded.len()));
        }
        let make = |(from, to): (usize, usize)| {
            *sequence = sequence.wrapping_add(1);
            thrift::batch(*sequence, &encoded[from..to], &common)
        };
        batches.into_iter().map(make).collect()
    }
}

impl Sink for M3 {
    /// Filters see `service.counter.name`, as go-metrics with type prefixes makes it.
    fn type_in_name(&self) -> bool {
        true
    }

    fn emit(&self, point: &Point<'_>) {
        // The reference takes the service and the type off again and joins the rest.
        let name = point.key.join("_");
        let mut key = format!("{:?}{name}", point.kind);
        for (name, value) in point.labels {
            key.extend([";", name, "=", value]);
        }
        let owned = |text: &Cow<'_, str>| text.clone().into_owned();
        let tags = || point.labels.iter().map(|(name, value)| (owned(name), owned(value))).collect();
        let make = || One { name: name.clone(), tags: tags(), value: Kept::new(point.kind) };
        self.series.with(&key, make, |one| one.value.take(point.value));
    }

    fn renamed(&self) {
        self.series.clear();
    }
}

impl One {
    fn report(&self, mut out: impl FnMut(&Metric<'_>)) {
        let tags: Vec<(&str, &str)> = self.tags.iter().map(|(name, value)| (&**name, &**value)).collect();
        let mut metric = Metric { name: &self.name, value: Value::Count(0), tags };
        match &self.value {
            Kept::Counter(counter) => {
                let count = counter.swap(0, Ordering::Relaxed);
                if count != 0 {
                    metric.value = Value::Count(count);
                    out(&metric);
                }
            }
            Kept::Gauge { value, changed } => {
                if changed.swap(false, Ordering::Relaxed) {
                    metric.value = Value::Gauge(value.load());
                    out(&metric);
                }
            }
            Kept::Times(counts) => buckets(&metric, counts, time_range, out),
            Kept::Values(counts) => buckets(&metric, counts, value_range, out),
        }
    }
}

/// A count for each bucket in which something fell, with the bucket's number and range as tags.
fn buckets(
    metric: &Metric<'_>,
    counts: &[AtomicI64],
    range: impl Fn(usize) -> String,
    mut out: impl FnMut(&Metric<'_>),
) {
    for (bucket, count) in counts.iter().enumerate() {
        let count = count.swap(0, Ordering::Relaxed);
        if count == 0 {
            continue;
        }
        let (id, range) = (format!("{bucket:04}"), range(bucket));
        let mut tags = metric.tags.clone();
        tags.extend([("bucketid", id.as_str()), ("bucket", range.as_str())]);
        out(&Metric { name: metric.name, value: Value::Count(count), tags });
    }
}

fn time_range(bucket: usize) -> String {
    let bound = |index: usize| match TIMES.get(index) {
        Some(0) => "0".to_owned(),
        Some(millis) => GoDuration::from(Duration::from_millis(u64::from(*millis))).to_string(),
        None => "infinity".to_owned(),
    };
    let from = bucket.checked_sub(1).map_or_else(|| "-infinity".to_owned(), bound);
    format!("{from}-{}", bound(bucket))
}

fn value_range(bucket: usize) -> String {
    let bound = |index: usize| match VALUES.get(index) {
        Some(value) => format!("{value:.6}"),
        None => "infinity".to_owned(),
    };
    let from = bucket.checked_sub(1).map_or_else(|| "-infinity".to_owned(), bound);
    format!("{from}-{}", bound(bucket))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reported(m3: &M3) -> Vec<String> {
        let mut all = Vec::new();
        m3.series.each(|_, one| {
            one.report(|metric| {
                let tags: Vec<String> = metric.tags.iter().map(|(n, v)| format!("{n}={v}")).collect();
                all.push(format!("{} {:?} {}", metric.name, metric.value, tags.join(" ")));
            });
        });
        all.sort();
        all
    }

    #[test]
    fn what_changed_is_reported_once() {
        let m3 = M3::new("spire_server", "127.0.0.1:1", "test").unwrap();
        let labels = [("status".into(), "OK".into())];
        for (kind, key, value) in [
            (Kind::Counter, "calls", 1.0),
            (Kind::Counter, "calls", 1.0),
            (Kind::Gauge, "level", 0.5),
            (Kind::Timer, "time", 10.9),
            (Kind::Timer, "time", 11.0),
            (Kind::Timer, "time", 0.2),
            (Kind::Timer, "time", 40_000.0),
            (Kind::Sample, "size", 2.0),
        ] {
            m3.emit(&Point { kind, name: "", key: &["rpc", key], value, labels: &labels });
        }
        assert_eq!(
            reported(&m3),
            [
                "rpc_calls Count(2) status=OK",
                "rpc_level Gauge(0.5) status=OK",
                "rpc_size Count(1) status=OK bucketid=0002 bucket=1.000000-10.000000",
                "rpc_time Count(1) status=OK bucketid=0000 bucket=-infinity-0",
                "rpc_time Count(1) status=OK bucketid=0001 bucket=0-10ms",
                "rpc_time Count(1) status=OK bucketid=0002 bucket=10ms-25ms",
                "rpc_time Count(1) status=OK bucketid=0020 bucket=30s-infinity",
            ]
        );
        assert!(reported(&m3).is_empty());
    }

    #[test]
    fn packets_are_bounded() {
        let m3 = M3::new("spire_server", "127.0.0.1:1", "test").unwrap();
        for index in 0..2000 {
            let labels = [("peer".into(), format!("{index:050}").into())];
            m3.emit(&Point { kind: Kind::Counter, name: "", key: &["x"], value: 1.0, labels: &labels });
        }
        let batches = m3.batches(&mut 0);
        assert!(batches.len() > 2 && batches.iter().all(|batch| batch.len() <= 32_768));
        assert!(m3.batches(&mut 0).is_empty());
    }

    #[test]
    fn an_environment_is_required() {
        assert_eq!(M3::new("s", "h:1", "").unwrap_err().to_string(), "env common tag is required");
    }
}
