//! Series by name and labels: bounded, and found without a lock that writers share.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use parking_lot::RwLock;

/// Series that one table keeps. A server with every RPC called by every kind of caller has a thousand; labels with
/// values from outside must not fill the memory.
pub(crate) const MAX_SERIES: usize = 10_000;

/// A power of two, so that writers of new series rarely meet.
const SHARDS: usize = 16;

/// Series by key. A known series is found under a read lock of one shard; a scrape takes the same.
#[derive(Debug)]
pub(crate) struct Series<V> {
    shards: [RwLock<HashMap<String, V>>; SHARDS],
    hasher: RandomState,
    count: AtomicUsize,
    full: AtomicBool,
}

impl<V> Default for Series<V> {
    fn default() -> Self {
        Self {
            shards: Default::default(),
            hasher: RandomState::new(),
            count: AtomicUsize::new(0),
            full: AtomicBool::new(false),
        }
    }
}

impl<V> Series<V> {
    /// Gives the series of this key to `update`, made by `make` if it is new. What would be one series too many is
    /// dropped, which is logged once.
    pub(crate) fn with(&self, key: &str, make: impl FnOnce() -> V, update: impl FnOnce(&V)) {
        let shard = &self.shards[self.hasher.hash_one(key) as usize % SHARDS];
        if let Some(value) = shard.read().get(key) {
            return update(value);
        }
        if self.count.load(Ordering::Relaxed) >= MAX_SERIES {
            if !self.full.swap(true, Ordering::Relaxed) {
                tracing::warn!(
                    subsystem_name = "telemetry",
                    limit = MAX_SERIES,
                    "Too many metric series; new ones are dropped"
                );
            }
            return;
        }
        let mut shard = shard.write();
        if !shard.contains_key(key) {
            self.count.fetch_add(1, Ordering::Relaxed);
        }
        update(shard.entry(key.to_owned()).or_insert_with(make));
    }

    /// Looks at each series; a shard at a time is locked for reading.
    pub(crate) fn each(&self, mut look: impl FnMut(&str, &V)) {
        for shard in &self.shards {
            for (key, value) in &*shard.read() {
                look(key, value);
            }
        }
    }

    /// Forgets every series.
    pub(crate) fn clear(&self) {
        for shard in &self.shards {
            let mut shard = shard.write();
            self.count.fetch_sub(shard.len(), Ordering::Relaxed);
            shard.clear();
        }
        self.full.store(false, Ordering::Relaxed);
    }
}

/// A float that many may change at once.
#[derive(Debug, Default)]
pub(crate) struct AtomicFloat(AtomicU64);

impl AtomicFloat {
    pub(crate) fn load(&self) -> f64 {
        f64::from_bits(self.0.load(Ordering::Relaxed))
    }

    pub(crate) fn store(&self, value: f64) {
        self.0.store(value.to_bits(), Ordering::Relaxed);
    }

    pub(crate) fn add(&self, value: f64) {
        let sum = |bits| Some((f64::from_bits(bits) + value).to_bits());
        // The closure never refuses.
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_bounded_and_known_ones_go_on() {
        let series: Series<AtomicFloat> = Series::default();
        for index in 0..MAX_SERIES + 5 {
            series.with(&index.to_string(), AtomicFloat::default, |value| value.add(1.0));
        }
        series.with("0", AtomicFloat::default, |value| value.add(1.0));
        let mut count = 0;
        let mut first = 0.0;
        series.each(|key, value| {
            count += 1;
            if key == "0" {
                first = value.load();
            }
        });
        assert_eq!((count, first), (MAX_SERIES, 2.0));
        series.clear();
        series.with("new", AtomicFloat::default, |value| value.add(1.0));
        let mut keys = Vec::new();
        series.each(|key, _| keys.push(key.to_owned()));
        assert_eq!(keys, ["new"]);
    }

    #[test]
    fn adding_from_many_threads_loses_nothing() {
        let series: Series<AtomicFloat> = Series::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        series.with("x", AtomicFloat::default, |value| value.add(1.0));
                    }
                });
            }
        });
        series.each(|_, value| assert_eq!(value.load(), 4000.0));
    }
}
