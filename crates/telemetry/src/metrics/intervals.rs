//! Metrics of the last hour in memory, a second apart, written to the log at SIGUSR1 (go-metrics `inmem.go`,
//! `inmem_signal.go`).

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use spire_compat::gotime;
use tokio::signal::unix::{SignalKind, signal};

use super::{Kind, Point, Sink};

/// Intervals that are kept: the reference's hour of seconds.
const RETAINED: usize = 3600;

/// Values kept over all intervals, some 20 MB. The reference has no bound; beyond it the oldest intervals go.
const MAX_VALUES: usize = 100_000;

/// The metrics of the last hour.
#[derive(Debug, Default)]
pub(crate) struct Intervals {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    intervals: VecDeque<Interval>,
    values: usize,
}

#[derive(Debug, Default)]
struct Interval {
    second: i64,
    gauges: BTreeMap<String, f64>,
    counters: BTreeMap<String, Aggregate>,
    samples: BTreeMap<String, Aggregate>,
}

impl Interval {
    fn values(&self) -> usize {
        self.gauges.len() + self.counters.len() + self.samples.len()
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Aggregate {
    count: u64,
    sum: f64,
    squares: f64,
    min: f64,
    max: f64,
    updated: (i64, u32),
}

impl Aggregate {
    fn add(&mut self, value: f64, now: (i64, u32)) {
        self.count += 1;
        self.sum += value;
        self.squares += value * value;
        if self.count == 1 || value < self.min {
            self.min = value;
        }
        if self.count == 1 || value > self.max {
            self.max = value;
        }
        self.updated = now;
    }

    fn deviation(&self) -> f64 {
        let count = self.count as f64;
        let pairs = count * (count - 1.0);
        if pairs == 0.0 { 0.0 } else { ((count * self.squares - self.sum * self.sum) / pairs).sqrt() }
    }

    fn text(&self) -> String {
        let Self { count, sum, min, max, .. } = self;
        let updated = gotime::string_nanos(self.updated.0, self.updated.1);
        let deviation = self.deviation();
        if deviation == 0.0 {
            return format!("Count: {count} Sum: {sum:.3} LastUpdated: {updated}");
        }
        let mean = sum / *count as f64;
        format!(
            "Count: {count} Min: {min:.3} Mean: {mean:.3} Max: {max:.3} Stddev: {deviation:.3} Sum: {sum:.3} \
             LastUpdated: {updated}"
        )
    }
}

impl Sink for Intervals {
    fn emit(&self, point: &Point<'_>) {
        // What the dump prints; series that it would show alike are one.
        let mut key = clean(point.name, &[' ']);
        for (_, value) in point.labels {
            key.push('.');
            key.push_str(&clean(value, &[' ', ':']));
        }
        self.state.lock().add(point.kind, key, point.value, now());
    }
}

impl State {
    fn add(&mut self, kind: Kind, key: String, value: f64, now: (i64, u32)) {
        // A clock that is set back must not open a second interval of one time.
        if self.intervals.back().is_none_or(|last| last.second < now.0) {
            self.intervals.push_back(Interval { second: now.0, ..Interval::default() });
        }
        let Some(current) = self.intervals.back_mut() else { return };
        let before = current.values();
        match kind {
            Kind::Gauge => {
                current.gauges.insert(key, value);
            }
            Kind::Counter => current.counters.entry(key).or_default().add(value, now),
            Kind::Sample | Kind::Timer => current.samples.entry(key).or_default().add(value, now),
        }
        self.values += current.values() - before;
        while self.intervals.len() > 1 && (self.intervals.len() > RETAINED || self.values > MAX_VALUES) {
            let oldest = self.intervals.pop_front().unwrap_or_default();
            self.values -= oldest.values();
        }
    }
}

impl Intervals {
    /// One line a value of every interval but the last, which is not over.
    pub(crate) fn dump(&self) -> String {
        let mut state = self.state.lock();
        // The last interval may be long over where nothing came since.
        let (second, _) = now();
        if state.intervals.back().is_some_and(|last| last.second < second) {
            state.intervals.push_back(Interval { second, ..Interval::default() });
        }
        let mut text = String::new();
        let over = state.intervals.len().saturating_sub(1);
        for interval in state.intervals.iter().take(over) {
            let time = gotime::string(interval.second);
            for (name, value) in &interval.gauges {
                let _ = writeln!(text, "[{time}][G] '{name}': {value:.3}");
            }
            for (kind, values) in [("C", &interval.counters), ("S", &interval.samples)] {
                for (name, value) in values {
                    let _ = writeln!(text, "[{time}][{kind}] '{name}': {}", value.text());
                }
            }
        }
        text
    }

    /// Logs a dump at each SIGUSR1 until the future is dropped.
    pub(crate) async fn run(&self) {
        let Ok(mut signals) = signal(SignalKind::user_defined1()) else { return };
        while signals.recv().await.is_some() {
            for line in self.dump().lines() {
                tracing::info!(subsystem_name = "telemetry", "{line}");
            }
        }
    }
}

fn now() -> (i64, u32) {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    (i64::try_from(since.as_secs()).unwrap_or(i64::MAX), since.subsec_nanos())
}

fn clean(text: &str, replaced: &[char]) -> String {
    text.replace(replaced, "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dump_has_what_is_over() {
        let intervals = Intervals::default();
        let at = |second| (second, 500_000_000);
        {
            let mut state = intervals.state.lock();
            state.add(Kind::Gauge, "s.a.x".into(), 1.0, at(0));
            state.add(Kind::Gauge, "s.a.x".into(), 2.5, at(0));
            state.add(Kind::Counter, "s.c".into(), 1.0, at(0));
            state.add(Kind::Timer, "s.t".into(), 1.0, at(1));
            state.add(Kind::Timer, "s.t".into(), 4.0, at(1));
        }
        let later = "1970-01-01 00:00:01 +0000 UTC";
        assert_eq!(
            intervals.dump(),
            format!(
                "[1970-01-01 00:00:00 +0000 UTC][G] 's.a.x': 2.500\n\
                 [1970-01-01 00:00:00 +0000 UTC][C] 's.c': Count: 1 Sum: 1.000 LastUpdated: \
                 1970-01-01 00:00:00.5 +0000 UTC\n\
                 [{later}][S] 's.t': Count: 2 Min: 1.000 Mean: 2.500 Max: 4.000 Stddev: 2.121 Sum: 5.000 \
                 LastUpdated: 1970-01-01 00:00:01.5 +0000 UTC\n"
            )
        );
    }

    #[test]
    fn intervals_and_values_are_bounded() {
        let mut state = State::default();
        for second in 0..5000 {
            state.add(Kind::Counter, "x".into(), 1.0, (second, 0));
        }
        assert_eq!((state.intervals.len(), state.values), (RETAINED, RETAINED));
        for index in 0..MAX_VALUES {
            state.add(Kind::Counter, index.to_string(), 1.0, (6000 + (index / 1000) as i64, 0));
        }
        assert!(state.values <= MAX_VALUES);
        assert_eq!(state.values, state.intervals.iter().map(Interval::values).sum::<usize>());
    }
}
