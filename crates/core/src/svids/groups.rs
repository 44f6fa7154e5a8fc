//! Selector sets of workloads that somebody looks at, and which of them an entry touches.

use std::collections::HashMap;

use crate::spiffe::{Selector, Selectors};

/// The tracked selector sets. Several subscribers with equal sets are one group.
#[derive(Debug, Default)]
pub(super) struct Groups {
    /// Whether the identities of the set are pinned: a subscriber is there.
    sets: HashMap<Selectors, bool>,
    by_selector: HashMap<Selector, Vec<Selectors>>,
}

impl Groups {
    /// Tracks a set, not pinned; nothing changes when it is tracked already.
    pub(super) fn track(&mut self, set: &Selectors) {
        if self.sets.contains_key(set) {
            return;
        }
        self.sets.insert(set.clone(), false);
        for selector in set {
            self.by_selector.entry(selector.clone()).or_default().push(set.clone());
        }
    }

    /// Stops tracking.
    pub(super) fn forget(&mut self, set: &Selectors) {
        if self.sets.remove(set).is_none() {
            return;
        }
        for selector in set {
            if let Some(sets) = self.by_selector.get_mut(selector) {
                sets.retain(|s| s != set);
                if sets.is_empty() {
                    self.by_selector.remove(selector);
                }
            }
        }
    }

    /// Pins or unpins a tracked set; returns whether that changed anything.
    pub(super) fn set_pinned(&mut self, set: &Selectors, pinned: bool) -> bool {
        self.sets.get_mut(set).is_some_and(|was| std::mem::replace(was, pinned) != pinned)
    }

    pub(super) fn is_pinned(&self, set: &Selectors) -> bool {
        self.sets.get(set).copied().unwrap_or(false)
    }

    /// The tracked sets that an entry with these selectors matches.
    pub(super) fn matched_by<'a>(&'a self, entry: &'a Selectors) -> impl Iterator<Item = &'a Selectors> + 'a {
        let fewest = entry.iter().map(|s| self.by_selector.get(s).map_or(&[][..], Vec::as_slice));
        fewest.min_by_key(|sets| sets.len()).unwrap_or_default().iter().filter(|set| entry.is_subset_of(set))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Selectors> {
        self.sets.keys()
    }
}
