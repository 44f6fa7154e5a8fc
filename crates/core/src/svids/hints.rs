//! The same-hint rule: of entries with one hint, the oldest is served.

use std::collections::HashMap;

use crate::model::{Entry, EntryId};

/// Entries that were left out because an older one has their hint; each is worth a warning.
pub type DuplicateHints = Vec<(EntryId, Box<str>)>;

/// Keeps the items whose entry is the oldest of its hint, in their order; entries without a hint all stay.
/// Of two that were created in the same second the smaller ID counts as older
/// (pkg/agent/common/hintsfilter).
pub fn first_of_each_hint<T>(items: Vec<T>, entry: impl Fn(&T) -> &Entry) -> (Vec<T>, DuplicateHints) {
    if items.iter().filter(|item| !entry(item).hint.is_empty()).count() < 2 {
        return (items, Vec::new());
    }
    let mut oldest: HashMap<Box<str>, (i64, EntryId)> = HashMap::new();
    for item in &items {
        let entry = entry(item);
        if entry.hint.is_empty() {
            continue;
        }
        let age = (entry.created_at.unix(), entry.id.clone());
        oldest
            .entry(entry.hint.clone())
            .and_modify(|known| {
                if age < *known {
                    *known = age.clone();
                }
            })
            .or_insert(age);
    }
    let mut dropped = Vec::new();
    let kept = items
        .into_iter()
        .filter(|item| {
            let entry = entry(item);
            let keep = oldest.get(&entry.hint).is_none_or(|(_, id)| *id == entry.id);
            if !keep {
                dropped.push((entry.id.clone(), entry.hint.clone()));
            }
            keep
        })
        .collect();
    (kept, dropped)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spiffe::{Selectors, SpiffeId};
    use crate::time::Timestamp;

    fn entry(id: &str, hint: &str, created: i64) -> Entry {
        let spiffe_id = SpiffeId::parse("spiffe://a.org/w").unwrap();
        let mut entry =
            Entry::new(EntryId::from_stored(id), spiffe_id.clone(), spiffe_id, Selectors::default());
        entry.hint = hint.into();
        entry.created_at = Timestamp::from_unix(created);
        entry
    }

    fn check(entries: &[(&str, &str, i64)], kept: &[&str], dropped: &[&str]) {
        let entries: Vec<Entry> = entries.iter().map(|(id, hint, at)| entry(id, hint, *at)).collect();
        let (left, out) = first_of_each_hint(entries, |e| e);
        assert_eq!(left.iter().map(|e| e.id.as_str()).collect::<Vec<_>>(), kept);
        assert_eq!(out.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>(), dropped);
    }

    #[test]
    fn the_oldest_of_a_hint_stays() {
        check(&[("a", "", 3), ("b", "", 1)], &["a", "b"], &[]);
        check(&[("a", "x", 3), ("b", "x", 1), ("c", "y", 9)], &["b", "c"], &["a"]);
        check(&[("b", "x", 1), ("a", "x", 1)], &["a"], &["b"]);
        check(&[("a", "x", 2), ("b", "x", 3), ("c", "x", 1)], &["c"], &["a", "b"]);
    }
}
