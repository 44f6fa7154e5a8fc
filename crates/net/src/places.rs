//! Counted places, so many a key: what one address or identity may hold of something at once.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use parking_lot::Mutex;

/// Places by key. Keys that hold none take no memory.
#[derive(Debug)]
pub(crate) struct Places<K: Eq + Hash> {
    per_key: usize,
    counts: Mutex<HashMap<K, usize>>,
}

/// One place, given back when dropped.
#[derive(Debug)]
pub(crate) struct Place<K: Eq + Hash + Clone> {
    places: Arc<Places<K>>,
    key: K,
}

impl<K: Eq + Hash + Clone> Places<K> {
    pub(crate) fn new(per_key: usize) -> Arc<Self> {
        Arc::new(Self { per_key, counts: Mutex::default() })
    }

    /// A place for `key`; none where it holds all that it may.
    pub(crate) fn enter(self: &Arc<Self>, key: K) -> Option<Place<K>> {
        let mut counts = self.counts.lock();
        let held = counts.get(&key).copied().unwrap_or(0);
        if held >= self.per_key {
            return None;
        }
        counts.insert(key.clone(), held + 1);
        Some(Place { places: Arc::clone(self), key })
    }
}

impl<K: Eq + Hash + Clone> Drop for Place<K> {
    fn drop(&mut self) {
        let mut counts = self.places.counts.lock();
        match counts.get_mut(&self.key) {
            Some(held) if *held > 1 => *held -= 1,
            _ => drop(counts.remove(&self.key)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_come_back_and_keys_do_not_stay() {
        let places = Places::new(2);
        let first = places.enter("a").expect("first");
        let _second = places.enter("a").expect("second");
        assert!(places.enter("a").is_none());
        drop(places.enter("b").expect("another key"));
        drop(first);
        let _third = places.enter("a").expect("a place that came back");
        assert_eq!(places.counts.lock().len(), 1);
    }
}
