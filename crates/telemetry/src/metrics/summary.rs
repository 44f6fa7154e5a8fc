//! Quantiles over the last ten seconds, sum and count since the start: a Prometheus summary.

use std::time::{Duration, Instant};

/// The quantiles that go-metrics asks for.
pub(crate) const QUANTILES: [(f64, &str); 3] = [(0.5, "0.5"), (0.9, "0.9"), (0.99, "0.99")];

/// Slices of the window, as client_golang has them: `MaxAge` 10 s in 5 age buckets.
const SLICES: usize = 5;
const SLICE: Duration = Duration::from_secs(2);

/// Observations kept of one slice. A slice with more keeps every second, fourth, … of them: of 1,280 values the 0.99
/// quantile is good to a place in a thousand, as go-metrics' objective is.
const KEPT: usize = 256;

/// A summary; its time is an argument.
#[derive(Debug)]
pub(crate) struct Summary {
    start: Instant,
    sum: f64,
    count: u64,
    slices: [Slice; SLICES],
}

#[derive(Debug, Default)]
struct Slice {
    /// The number of this slice since the start.
    number: u64,
    values: Vec<f32>,
    /// One in this many observations is kept.
    stride: u32,
    skipped: u32,
}

impl Summary {
    pub(crate) fn new(now: Instant) -> Self {
        Self { start: now, sum: 0.0, count: 0, slices: Default::default() }
    }

    pub(crate) fn observe(&mut self, value: f64, now: Instant) {
        self.sum += value;
        self.count += 1;
        let number = self.number(now);
        let slice = &mut self.slices[number as usize % SLICES];
        if slice.number != number {
            *slice = Slice { number, values: std::mem::take(&mut slice.values), ..Slice::default() };
            slice.values.clear();
        }
        slice.observe(value as f32);
    }

    pub(crate) fn sum(&self) -> f64 {
        self.sum
    }

    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// The values at [`QUANTILES`]; not a number where nothing was observed in the window.
    pub(crate) fn quantiles(&self, now: Instant) -> [f64; QUANTILES.len()] {
        let number = self.number(now);
        let recent = self.slices.iter().filter(|slice| number - slice.number.min(number) < SLICES as u64);
        // A value of a thinned slice stands for as many as its stride.
        let mut values: Vec<(f32, u32)> =
            recent.flat_map(|slice| slice.values.iter().map(|value| (*value, slice.stride.max(1)))).collect();
        values.sort_by(|a, b| a.0.total_cmp(&b.0));
        let total: u64 = values.iter().map(|(_, weight)| u64::from(*weight)).sum();
        QUANTILES.map(|(quantile, _)| at(&values, quantile * total as f64))
    }

    fn number(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.start).as_secs() / SLICE.as_secs()
    }
}

impl Slice {
    fn observe(&mut self, value: f32) {
        let stride = self.stride.max(1);
        self.skipped += 1;
        if self.skipped < stride {
            return;
        }
        self.skipped = 0;
        if self.values.len() == KEPT {
            let mut place = 0_usize;
            self.values.retain(|_| {
                place += 1;
                place.is_multiple_of(2)
            });
            self.stride = stride.saturating_mul(2);
        }
        self.values.push(value);
    }
}

fn at(values: &[(f32, u32)], rank: f64) -> f64 {
    let mut seen = 0.0;
    for (value, weight) in values {
        seen += f64::from(*weight);
        if seen >= rank {
            return f64::from(*value);
        }
    }
    values.last().map_or(f64::NAN, |(value, _)| f64::from(*value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_the_window_and_totals_of_all_time() {
        let start = Instant::now();
        let mut summary = Summary::new(start);
        assert!(summary.quantiles(start).iter().all(|value| value.is_nan()));
        for value in 1..=100 {
            summary.observe(f64::from(value), start);
        }
        assert_eq!(summary.quantiles(start), [50.0, 90.0, 99.0]);
        let later = start + Duration::from_secs(9);
        summary.observe(1000.0, later);
        assert_eq!(summary.quantiles(later), [51.0, 91.0, 100.0]);
        let much_later = start + Duration::from_secs(30);
        assert!(summary.quantiles(much_later).iter().all(|value| value.is_nan()));
        assert_eq!((summary.count(), summary.sum()), (101, 6050.0));
    }

    #[test]
    fn a_flood_is_thinned_evenly() {
        let start = Instant::now();
        let mut summary = Summary::new(start);
        for value in 0..100_000 {
            summary.observe(f64::from(value), start);
        }
        assert!(summary.slices.iter().all(|slice| slice.values.capacity() <= KEPT * 2));
        let [half, _, most] = summary.quantiles(start);
        assert!((48_000.0..52_000.0).contains(&half), "{half}");
        assert!((97_000.0..100_000.0).contains(&most), "{most}");
    }
}
