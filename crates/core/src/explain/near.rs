//! Entries that nearly match: which of their selectors a workload lacks.

use std::borrow::Borrow;
use std::cmp::Ordering;

use crate::model::Entry;
use crate::spiffe::{Selector, Selectors};

/// Selectors to show beside one that is missing. A process has one user but may have dozens of labels.
const INSTEAD_MAX: usize = 3;

/// A selector that is not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lack {
    /// What is wanted.
    pub selector: Selector,
    /// What is there and says the same thing otherwise: `unix:uid:1000` where `unix:uid:0` is wanted. A few at most.
    pub instead: Vec<Selector>,
}

/// An entry that does not match, and what it would take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Near<T> {
    /// The entry.
    pub entry: T,
    /// The selectors that are missing, at least one.
    pub lacks: Vec<Lack>,
    /// How many of its selectors are there.
    pub shared: usize,
}

/// Which of the wanted selectors are not among those that are there.
pub fn lacks(wanted: &Selectors, there: &Selectors) -> Vec<Lack> {
    let lack = |selector: &Selector| {
        let subject = subject(selector);
        let similar = there.iter().filter(|other| self::subject(other) == subject);
        Lack { selector: selector.clone(), instead: similar.take(INSTEAD_MAX).cloned().collect() }
    };
    wanted.iter().filter(|selector| !there.contains(selector)).map(lack).collect()
}

/// What a selector speaks of: its type, and its value up to the last colon.
fn subject(selector: &Selector) -> (&str, Option<&str>) {
    (selector.kind(), selector.value().rsplit_once(':').map(|(before, _)| before))
}

/// The entries that come nearest to matching, the nearest first, at most `limit`. One that matches is not among them, nor
/// is one that has nothing to do with the workload: no selector of it is there, and none that speaks of the same.
pub fn nearest<T: Borrow<Entry>>(
    entries: impl IntoIterator<Item = T>,
    workload: &Selectors,
    limit: usize,
) -> Vec<Near<T>> {
    let mut found: Vec<Near<T>> = Vec::with_capacity(limit + 1);
    for entry in entries {
        let lacks = lacks(&entry.borrow().selectors, workload);
        let shared = entry.borrow().selectors.len() - lacks.len();
        let related = shared > 0 || lacks.iter().any(|lack| !lack.instead.is_empty());
        if lacks.is_empty() || !related {
            continue;
        }
        let near = Near { entry, lacks, shared };
        let at = found.partition_point(|other| order(other, &near) != Ordering::Greater);
        if at < limit {
            found.insert(at, near);
            found.truncate(limit);
        }
    }
    found
}

/// Few missing selectors first; of those, ones where something similar is there; of those, many that are there.
fn order<T: Borrow<Entry>>(a: &Near<T>, b: &Near<T>) -> Ordering {
    let unlike = |near: &Near<T>| near.lacks.iter().filter(|lack| lack.instead.is_empty()).count();
    let key = |near: &Near<T>| (near.lacks.len(), unlike(near), std::cmp::Reverse(near.shared));
    key(a).cmp(&key(b)).then_with(|| a.entry.borrow().id.cmp(&b.entry.borrow().id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::EntryId;
    use crate::spiffe::SpiffeId;

    fn set(texts: &[&str]) -> Selectors {
        let selector = |text: &&str| {
            let (kind, value) = text.split_once(':').unwrap();
            Selector::new(kind, value).unwrap()
        };
        texts.iter().map(selector).collect()
    }

    fn entry(id: &str, selectors: &[&str]) -> Entry {
        let spiffe_id = SpiffeId::parse("spiffe://a.org/w").unwrap();
        Entry::new(EntryId::from_stored(id), spiffe_id.clone(), spiffe_id, set(selectors))
    }

    fn check(entries: &[Entry], workload: &[&str], limit: usize, expected: &[(&str, &[&str], usize)]) {
        let found = nearest(entries, &set(workload), limit);
        let found: Vec<(&str, Vec<String>, usize)> = found
            .iter()
            .map(|near| {
                let lacks = near.lacks.iter().map(|lack| {
                    let instead: Vec<String> = lack.instead.iter().map(ToString::to_string).collect();
                    format!("{} not {}", lack.selector, instead.join(","))
                });
                (near.entry.id.as_str(), lacks.collect(), near.shared)
            })
            .collect();
        let expected: Vec<(&str, Vec<String>, usize)> = expected
            .iter()
            .map(|(id, lacks, shared)| (*id, lacks.iter().map(|l| (*l).to_owned()).collect(), *shared))
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn what_lacks_least_comes_first() {
        let entries = [
            entry("far", &["k8s:ns:x"]),
            entry("two", &["unix:uid:1", "unix:gid:1", "unix:path:/x"]),
            entry("one", &["unix:uid:1", "unix:gid:0"]),
            entry("other", &["unix:uid:0", "docker:image:x"]),
            entry("matches", &["unix:uid:0"]),
            entry("label", &["k8s:pod-label:app:web", "unix:uid:0"]),
            entry("nothing", &[]),
        ];
        let workload = ["unix:uid:0", "unix:gid:0", "k8s:pod-label:app:api", "k8s:pod-label:app:v2"];
        check(
            &entries,
            &workload,
            10,
            &[
                ("label", &["k8s:pod-label:app:web not k8s:pod-label:app:api,k8s:pod-label:app:v2"], 1),
                ("one", &["unix:uid:1 not unix:uid:0"], 1),
                ("other", &["docker:image:x not "], 1),
                ("two", &["unix:gid:1 not unix:gid:0", "unix:path:/x not ", "unix:uid:1 not unix:uid:0"], 0),
            ],
        );
        check(
            &entries,
            &workload,
            1,
            &[("label", &["k8s:pod-label:app:web not k8s:pod-label:app:api,k8s:pod-label:app:v2"], 1)],
        );
        check(&entries, &["x:y"], 10, &[]);
        check(&entries, &workload, 0, &[]);
    }
}
