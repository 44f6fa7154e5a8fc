//! Metrics in memory: sums by name and labels, for tests and for a dump on request.

use std::collections::HashMap;

use parking_lot::Mutex;
use spire_ports::observe::{Label, Metrics};

/// Keeps every series in memory. At [`InMem::MAX_SERIES`] series, further ones are dropped and counted.
#[derive(Debug, Default)]
pub struct InMem {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    series: HashMap<String, Series>,
    dropped: u64,
}

/// What one series saw.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Series {
    /// How often it was emitted.
    pub count: u64,
    /// The sum of the values of a counter or sample.
    pub sum: f64,
    /// The value that came last, which is a gauge's value.
    pub last: f64,
    /// The smallest value.
    pub min: f64,
    /// The largest value.
    pub max: f64,
}

impl InMem {
    /// Labels with values from outside must not fill the memory.
    pub const MAX_SERIES: usize = 10_000;

    /// No series yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The series of this key, such as `server_ca.sign.x509_svid` or `node.attest;status=OK` (labels sorted by
    /// name, each behind a semicolon).
    pub fn series(&self, key: &str) -> Option<Series> {
        self.state.lock().series.get(key).copied()
    }

    /// All series by key, sorted.
    pub fn all(&self) -> Vec<(String, Series)> {
        let mut all: Vec<_> =
            self.state.lock().series.iter().map(|(key, series)| (key.clone(), *series)).collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    }

    /// How many values were dropped because there were too many series.
    pub fn dropped(&self) -> u64 {
        self.state.lock().dropped
    }

    fn add(&self, key: &[&str], value: f64, labels: &[Label<'_>]) {
        let key = series_key(key, labels);
        let mut state = self.state.lock();
        let full = state.series.len() >= Self::MAX_SERIES;
        if full && !state.series.contains_key(&key) {
            state.dropped += 1;
            return;
        }
        let series =
            state.series.entry(key).or_insert(Series { min: value, max: value, ..Series::default() });
        series.count += 1;
        series.sum += value;
        series.last = value;
        series.min = series.min.min(value);
        series.max = series.max.max(value);
    }
}

impl Metrics for InMem {
    fn incr_counter(&self, key: &[&str], value: f32, labels: &[Label<'_>]) {
        self.add(key, value.into(), labels);
    }

    fn set_gauge(&self, key: &[&str], value: f64, labels: &[Label<'_>]) {
        self.add(key, value, labels);
    }

    fn add_sample(&self, key: &[&str], value: f32, labels: &[Label<'_>]) {
        self.add(key, value.into(), labels);
    }
}

fn series_key(key: &[&str], labels: &[Label<'_>]) -> String {
    let mut labels = labels.to_vec();
    labels.sort_unstable();
    labels.iter().fold(key.join("."), |key, label| key + ";" + label.name + "=" + label.value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_meet_in_their_series() {
        let metrics = InMem::new();
        let status = Label::new("status", "OK");
        let attestor = Label::new("attestor", "x");
        metrics.incr_counter(&["node", "attest"], 1.0, &[status, attestor]);
        metrics.incr_counter(&["node", "attest"], 2.0, &[attestor, status]);
        metrics.set_gauge(&["started"], 1.0, &[]);
        let keys: Vec<String> = metrics.all().into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys, ["node.attest;attestor=x;status=OK", "started"]);
        let series = metrics.series("node.attest;attestor=x;status=OK").unwrap();
        assert_eq!(series, Series { count: 2, sum: 3.0, last: 2.0, min: 1.0, max: 2.0 });
    }

    #[test]
    fn series_are_bounded() {
        let metrics = InMem::new();
        for index in 0..InMem::MAX_SERIES + 5 {
            metrics.incr_counter(&["x"], 1.0, &[Label::new("peer", &index.to_string())]);
        }
        metrics.incr_counter(&["x"], 1.0, &[Label::new("peer", "0")]);
        assert_eq!(metrics.all().len(), InMem::MAX_SERIES);
        assert_eq!(metrics.dropped(), 5);
        assert_eq!(metrics.series("x;peer=0").unwrap().count, 2);
    }
}
