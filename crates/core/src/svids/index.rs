//! From a workload's selectors to the entries that match it.

use std::collections::HashMap;

use crate::spiffe::{Selector, Selectors};

/// Finds the sets that are subsets of a given set, in time proportional to the candidates under the given
/// set's selectors and not to all sets.
///
/// Each set is filed under one anchor: of its selectors, the one that the fewest sets had when it was added.
/// A subset's anchor is in the superset, so looking under every selector of the superset finds each subset
/// exactly once. An empty set is never found: an entry without selectors matches nobody.
#[derive(Debug, Default)]
pub struct MatchIndex {
    selectors: HashMap<Selector, Filed>,
}

#[derive(Debug, Default)]
struct Filed {
    /// How many sets have this selector.
    users: u32,
    /// The sets whose anchor it is.
    anchored: Vec<(u32, Selectors)>,
}

impl MatchIndex {
    /// Adds a set under a key that is not in use.
    pub fn insert(&mut self, key: u32, set: &Selectors) {
        let Some(anchor) = set.iter().min_by_key(|s| self.selectors.get(s).map_or(0, |f| f.users)).cloned()
        else {
            return;
        };
        for selector in set {
            self.selectors.entry(selector.clone()).or_default().users += 1;
        }
        if let Some(filed) = self.selectors.get_mut(&anchor) {
            filed.anchored.push((key, set.clone()));
        }
    }

    /// Removes the set that was added under the key.
    pub fn remove(&mut self, key: u32, set: &Selectors) {
        for selector in set {
            let Some(filed) = self.selectors.get_mut(selector) else { continue };
            filed.users = filed.users.saturating_sub(1);
            if let Some(at) = filed.anchored.iter().position(|(k, _)| *k == key) {
                filed.anchored.swap_remove(at);
            }
            if filed.users == 0 {
                self.selectors.remove(selector);
            }
        }
    }

    /// The keys of the sets that are subsets of `of`, each once, in no order.
    pub fn subsets<'a>(&'a self, of: &'a Selectors) -> impl Iterator<Item = u32> + 'a {
        self.candidates(of).filter(|(_, set)| set.is_subset_of(of)).map(|(key, _)| *key)
    }

    fn candidates<'a>(&'a self, of: &'a Selectors) -> impl Iterator<Item = &'a (u32, Selectors)> + 'a {
        of.iter().filter_map(|s| self.selectors.get(s)).flat_map(|filed| &filed.anchored)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn set(numbers: &[u8]) -> Selectors {
        numbers.iter().map(|n| Selector::from_stored("t", n.to_string())).collect()
    }

    #[test]
    fn a_common_selector_does_not_make_a_lookup_slow() {
        let mut index = MatchIndex::default();
        for key in 0..10_000u32 {
            let own = Selector::from_stored("unix", format!("path:/bin/{key}"));
            index.insert(key, &[Selector::from_stored("unix", "uid:1000"), own].into_iter().collect());
        }
        let workload: Selectors =
            ["uid:1000", "path:/bin/77"].iter().map(|v| Selector::from_stored("unix", *v)).collect();
        assert_eq!(index.subsets(&workload).collect::<Vec<_>>(), [77]);
        assert!(index.candidates(&workload).count() <= 2);
    }

    #[test]
    fn the_empty_set_matches_nobody() {
        let mut index = MatchIndex::default();
        index.insert(1, &Selectors::default());
        assert_eq!(index.subsets(&set(&[1])).count(), 0);
        index.remove(1, &Selectors::default());
    }

    proptest! {
        #[test]
        fn finds_what_a_scan_finds(
            ops in prop::collection::vec((any::<bool>(), 0u32..12, prop::collection::vec(0u8..6, 1..4)), 0..60),
            workload in prop::collection::vec(0u8..6, 0..6),
        ) {
            let mut index = MatchIndex::default();
            let mut model: HashMap<u32, Selectors> = HashMap::new();
            for (add, key, numbers) in ops {
                if let Some(old) = model.remove(&key) {
                    index.remove(key, &old);
                }
                if add {
                    index.insert(key, &set(&numbers));
                    model.insert(key, set(&numbers));
                }
            }
            let workload = set(&workload);
            let mut found: Vec<u32> = index.subsets(&workload).collect();
            found.sort_unstable();
            let mut expected: Vec<u32> =
                model.iter().filter(|(_, s)| s.is_subset_of(&workload)).map(|(k, _)| *k).collect();
            expected.sort_unstable();
            prop_assert_eq!(found, expected);
            for (key, old) in model {
                index.remove(key, &old);
            }
            prop_assert!(index.selectors.is_empty());
        }
    }
}
