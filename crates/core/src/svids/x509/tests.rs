//! The cache of X.509-SVIDs: its rules one by one, and all of them against a plain scan.

use proptest::prelude::*;
use zeroize::Zeroizing;

use super::*;
use crate::model::Attributes;
use crate::spiffe::{Selector, SpiffeId};

fn now(seconds: i64) -> Timestamp {
    Timestamp::from_unix(seconds)
}

fn set(names: &[&str]) -> Selectors {
    names.iter().map(|n| Selector::from_stored("t", *n)).collect()
}

fn domain(name: &str) -> TrustDomain {
    TrustDomain::parse(name).unwrap()
}

fn entry(id: &str, selectors: &[&str], revision: i64) -> Entry {
    let spiffe_id = SpiffeId::parse(&format!("spiffe://a.org/{id}")).unwrap();
    let mut entry = Entry::new(EntryId::from_stored(id), spiffe_id.clone(), spiffe_id, set(selectors));
    entry.revision = revision;
    entry
}

fn svid(from: i64, to: i64) -> Arc<X509Svid> {
    Arc::new(X509Svid {
        spiffe_id: SpiffeId::parse("spiffe://a.org/e").unwrap(),
        chain: Vec::new(),
        private_key: Zeroizing::new(Vec::new()),
        not_before: now(from),
        not_after: now(to),
    })
}

fn cache(max_svids: usize) -> X509Cache {
    X509Cache::new(Bundle::empty(domain("a.org")), Rotation::default(), Limits { max_svids })
}

fn upsert(cache: &mut X509Cache, entries: Vec<Entry>, at: i64) -> Vec<Effect> {
    cache.apply(Delta { upserts: entries, ..Delta::default() }, now(at))
}

fn issue(cache: &mut X509Cache, id: &str, at: i64) -> Vec<Effect> {
    let id = EntryId::from_stored(id);
    let revision = cache.entry(&id).map_or(0, |e| e.revision);
    cache.issued(&id, revision, svid(at, at + 100), now(at), Jitter::from_random(u64::MAX / 2))
}

fn wanted(cache: &mut X509Cache, at: i64) -> Vec<String> {
    cache.stale(now(at), usize::MAX).0.iter().map(|s| s.entry.id.to_string()).collect()
}

fn views(effects: &[Effect]) -> Vec<Selectors> {
    effects
        .iter()
        .filter_map(|e| match e {
            Effect::ViewChanged(set) => Some(set.clone()),
            _ => None,
        })
        .collect()
}

#[test]
fn an_entry_is_fetched_served_and_renewed_at_half_its_life() {
    let mut cache = cache(10);
    let workload = set(&["x", "y"]);
    cache.pin(&workload, now(0));
    let effects = upsert(&mut cache, vec![entry("e", &["x"], 0)], 0);
    assert_eq!(views(&effects), std::slice::from_ref(&workload));
    assert!(cache.view(&workload).is_incomplete());
    assert_eq!(cache.next_stale(), Some(Timestamp::EPOCH));
    assert_eq!(wanted(&mut cache, 0), ["e"]);
    assert_eq!(views(&issue(&mut cache, "e", 0)), std::slice::from_ref(&workload));
    assert!(!cache.view(&workload).is_incomplete());
    assert_eq!(cache.next_stale(), Some(now(50)));
    assert!(wanted(&mut cache, 49).is_empty());
    assert_eq!(wanted(&mut cache, 50), ["e"]);
    assert!(cache.view(&workload).has_identity(), "the old SVID is served until the new one is there");
    issue(&mut cache, "e", 50);
    assert!(wanted(&mut cache, 99).is_empty());
}

#[test]
fn another_revision_makes_the_svid_stale_even_while_one_is_on_its_way() {
    let mut cache = cache(10);
    upsert(&mut cache, vec![entry("e", &["x"], 0)], 0);
    assert_eq!(wanted(&mut cache, 0), ["e"]);
    upsert(&mut cache, vec![entry("e", &["x"], 1)], 0);
    let id = EntryId::from_stored("e");
    cache.issued(&id, 0, svid(0, 100), now(0), Jitter::from_random(0));
    assert_eq!(wanted(&mut cache, 0), ["e"], "the answer was for revision 0");
    cache.issued(&id, 1, svid(0, 100), now(0), Jitter::from_random(0));
    assert!(wanted(&mut cache, 0).is_empty());
}

#[test]
fn a_change_inside_the_certificate_is_told_with_the_new_svid() {
    let mut cache = cache(10);
    let workload = set(&["x"]);
    cache.pin(&workload, now(0));
    upsert(&mut cache, vec![entry("e", &["x"], 0)], 0);
    issue(&mut cache, "e", 0);
    let mut renamed = entry("e", &["x"], 1);
    renamed.spiffe_id = SpiffeId::parse("spiffe://a.org/renamed").unwrap();
    assert!(views(&upsert(&mut cache, vec![renamed.clone()], 1)).is_empty());
    assert_eq!(views(&issue(&mut cache, "e", 1)), std::slice::from_ref(&workload));
    // What stands beside the certificate is told at once.
    renamed.revision = 2;
    renamed.hint = "h".into();
    assert_eq!(views(&upsert(&mut cache, vec![renamed], 2)), [workload]);
}

#[test]
fn an_svid_that_is_past_its_half_life_when_it_comes_is_not_renewed_at_once() {
    let mut cache = cache(10);
    upsert(&mut cache, vec![entry("e", &["x"], 0)], 100);
    let id = EntryId::from_stored("e");
    // Backdated by ten seconds, as servers sign.
    cache.issued(&id, 0, svid(90, 108), now(100), Jitter::from_random(0));
    assert!(wanted(&mut cache, 101).is_empty());
    assert_eq!(wanted(&mut cache, 102), ["e"]);
    cache.issued(&id, 0, svid(90, 99), now(102), Jitter::from_random(0));
    assert!(wanted(&mut cache, 102).is_empty(), "expired on arrival: a second, not a loop");
    assert_eq!(wanted(&mut cache, 103), ["e"]);
}

#[test]
fn a_removed_entry_takes_its_svid_along_and_tells_the_workload() {
    let mut cache = cache(10);
    let workload = set(&["x"]);
    cache.pin(&workload, now(0));
    upsert(&mut cache, vec![entry("e", &["x"], 0)], 0);
    issue(&mut cache, "e", 0);
    let removals = vec![EntryId::from_stored("e"), EntryId::from_stored("unknown")];
    let effects = cache.apply(Delta { removals, ..Delta::default() }, now(1));
    assert_eq!(views(&effects), std::slice::from_ref(&workload));
    assert_eq!((cache.svid_count(), cache.entry_count()), (0, 0));
    assert!(!cache.view(&workload).has_identity());
    assert_eq!(cache.next_stale(), None);
    assert!(issue(&mut cache, "e", 1).is_empty(), "an answer that comes too late is dropped");
}

#[test]
fn prefetching_stops_at_the_limit_and_skips_entries_that_do_not_want_it() {
    let mut cache = cache(2);
    let mut lazy = entry("a", &["lazy"], 0);
    lazy.attributes = Some(Attributes { disable_x509_svid_prefetch: true, ..Attributes::default() });
    upsert(&mut cache, vec![lazy, entry("b", &["x"], 0), entry("c", &["y"], 0), entry("d", &["z"], 0)], 0);
    assert_eq!(wanted(&mut cache, 0), ["b", "c"]);
    cache.pin(&set(&["lazy"]), now(0));
    assert_eq!(
        wanted(&mut cache, 0),
        ["a", "b", "c"],
        "a workload that waits comes first and past the limit"
    );
}

#[test]
fn the_least_recently_used_svid_gives_way_and_a_pinned_one_never() {
    let mut cache = cache(2);
    upsert(&mut cache, vec![entry("a", &["x"], 0), entry("b", &["y"], 0), entry("c", &["z"], 0)], 0);
    issue(&mut cache, "a", 1);
    issue(&mut cache, "b", 2);
    cache.pin(&set(&["x"]), now(3));
    cache.pin(&set(&["z"]), now(3));
    let effects = issue(&mut cache, "c", 3);
    let evicted: Vec<_> =
        effects.iter().filter(|e| matches!(e, Effect::SvidEvicted(e) if e.id.as_str() == "b")).collect();
    assert_eq!(evicted.len(), 1);
    cache.pin(&set(&["y"]), now(4));
    assert_eq!(wanted(&mut cache, 4), ["b"]);
    issue(&mut cache, "b", 4);
    assert_eq!(cache.svid_count(), 3, "all are pinned, so the limit gives");
    cache.unpin(&set(&["x"]), now(9));
    cache.forget(&set(&["y"]), now(5));
    cache.apply(Delta::default(), now(9));
    assert_eq!(cache.svid_count(), 2);
    assert!(cache.view(&set(&["x"])).has_identity(), "x was used after y");
}

#[test]
fn store_entries_stay_apart_and_may_change_sides() {
    let mut cache = cache(10);
    let workload = set(&["x"]);
    cache.pin(&workload, now(0));
    let mut stored = entry("e", &["x"], 0);
    stored.store_svid = true;
    upsert(&mut cache, vec![stored.clone()], 0);
    assert!(cache.matching(&workload).is_empty() && wanted(&mut cache, 0).is_empty());
    assert_eq!(cache.store_entries().count(), 1);
    upsert(&mut cache, vec![entry("e", &["x"], 1)], 0);
    assert_eq!((cache.matching(&workload).len(), cache.store_entries().count()), (1, 0));
    issue(&mut cache, "e", 0);
    stored.revision = 2;
    assert_eq!(views(&upsert(&mut cache, vec![stored], 0)).len(), 1);
    assert_eq!((cache.matching(&workload).len(), cache.svid_count()), (0, 0));
}

#[test]
fn bundles_reach_those_who_federate() {
    let mut cache = cache(10);
    let (federated, alone) = (set(&["x"]), set(&["y"]));
    cache.pin(&federated, now(0));
    cache.track(&alone);
    let mut first = entry("e", &["x"], 0);
    first.federates_with = [domain("b.org")].into();
    upsert(&mut cache, vec![first, entry("f", &["y"], 0)], 0);
    issue(&mut cache, "e", 0);
    assert_eq!(cache.view(&federated).missing_bundles.len(), 1);
    let bundles = |names: &[&str]| Delta {
        bundles: Some(names.iter().map(|n| (domain(n), Bundle::empty(domain(n)))).collect()),
        ..Delta::default()
    };
    let effects = cache.apply(bundles(&["a.org", "b.org"]), now(0));
    assert_eq!(views(&effects), std::slice::from_ref(&federated));
    assert_eq!(cache.view(&federated).federated.len(), 1);
    assert!(cache.apply(bundles(&["a.org", "b.org"]), now(0)).is_empty(), "nothing changed");
    let effects = cache.apply(bundles(&[]), now(0));
    assert_eq!(views(&effects), [federated], "one's own bundle stays");
    assert_eq!(cache.bundles().len(), 1);
    let mut own = Bundle::empty(domain("a.org"));
    own.sequence_number = 7;
    let delta = Delta { bundles: Some(BTreeMap::from([(domain("a.org"), own)])), ..Delta::default() };
    assert_eq!(views(&cache.apply(delta, now(0))).len(), 2, "everybody sees one's own bundle");
}

#[test]
fn tainted_svids_are_replaced_in_batches() {
    let mut cache = cache(1000);
    let ids: Vec<String> = (0..150).map(|n| format!("e{n:03}")).collect();
    upsert(&mut cache, ids.iter().map(|id| entry(id, &["x"], 0)).collect(), 0);
    for id in &ids {
        issue(&mut cache, id, 0);
    }
    assert_eq!(cache.taint(now(10), |_| true), 150);
    assert_eq!(wanted(&mut cache, 10).len(), 100);
    assert_eq!(cache.next_stale(), Some(Timestamp::EPOCH));
    for id in wanted(&mut cache, 10) {
        issue(&mut cache, &id, 10);
    }
    assert_eq!(cache.next_stale(), Some(now(15)));
    assert_eq!(wanted(&mut cache, 15).len(), 50);
}

#[test]
fn a_refused_entry_is_asked_for_later_each_time() {
    let mut cache = cache(10);
    upsert(&mut cache, vec![entry("e", &["x"], 0)], 0);
    let id = EntryId::from_stored("e");
    for (at, next) in [(0, 1), (1, 3), (3, 7)] {
        assert_eq!(wanted(&mut cache, at), ["e"]);
        cache.refused(&id, now(at));
        assert!(wanted(&mut cache, at).is_empty());
        assert_eq!(cache.next_stale(), Some(now(next)));
    }
    for _ in 0..100 {
        cache.refused(&id, now(7));
    }
    assert_eq!(cache.next_stale(), Some(now(7 + 240)));
}

/// What a plain scan of everything would say.
#[derive(Default)]
struct Model {
    entries: BTreeMap<String, Entry>,
    issued: BTreeMap<String, i64>,
}

#[derive(Clone, Debug)]
enum Op {
    Upsert(u8, Vec<u8>),
    Remove(u8),
    Issue(u8),
    Pin(Vec<u8>),
    Unpin(Vec<u8>),
}

fn op() -> impl Strategy<Value = Op> {
    let selectors = || prop::collection::vec(0u8..4, 1..4);
    prop_oneof![
        (0u8..6, selectors()).prop_map(|(id, s)| Op::Upsert(id, s)),
        (0u8..6).prop_map(Op::Remove),
        (0u8..6).prop_map(Op::Issue),
        selectors().prop_map(Op::Pin),
        selectors().prop_map(Op::Unpin),
    ]
}

fn numbers(n: &[u8]) -> Vec<String> {
    n.iter().map(u8::to_string).collect()
}

fn numbered(n: &[u8]) -> Selectors {
    let names = numbers(n);
    set(&names.iter().map(String::as_str).collect::<Vec<_>>())
}

proptest! {
    #[test]
    fn agrees_with_a_scan(ops in prop::collection::vec(op(), 0..60)) {
        let mut cache = cache(1000);
        let mut model = Model::default();
        let mut pinned: BTreeSet<Vec<String>> = BTreeSet::new();
        let mut seen: HashMap<Selectors, Vec<(String, i64)>> = HashMap::new();
        for (at, op) in (0i64..).zip(ops) {
            let effects = match op {
                Op::Upsert(id, selectors) => {
                    let names = numbers(&selectors);
                    let entry = entry(&id.to_string(), &names.iter().map(String::as_str).collect::<Vec<_>>(), at);
                    model.entries.insert(id.to_string(), entry.clone());
                    upsert(&mut cache, vec![entry], at)
                }
                Op::Remove(id) => {
                    model.entries.remove(&id.to_string());
                    model.issued.remove(&id.to_string());
                    let removals = vec![EntryId::from_stored(id.to_string())];
                    cache.apply(Delta { removals, ..Delta::default() }, now(at))
                }
                Op::Issue(id) => {
                    if model.entries.contains_key(&id.to_string()) {
                        model.issued.insert(id.to_string(), at);
                    }
                    issue(&mut cache, &id.to_string(), at)
                }
                Op::Pin(s) => {
                    cache.pin(&numbered(&s), now(at));
                    let mut key = numbers(&s);
                    key.sort();
                    key.dedup();
                    pinned.insert(key);
                    seen.entry(numbered(&s)).or_default();
                    let view = shown(&cache, &numbered(&s));
                    seen.insert(numbered(&s), view);
                    Vec::new()
                }
                Op::Unpin(s) => {
                    cache.forget(&numbered(&s), now(at));
                    let mut key = numbers(&s);
                    key.sort();
                    key.dedup();
                    pinned.remove(&key);
                    seen.remove(&numbered(&s));
                    Vec::new()
                }
            };
            for set in views(&effects) {
                let view = shown(&cache, &set);
                seen.insert(set, view);
            }
            // Whoever follows the effects sees what a scan would show.
            for (set, view) in &seen {
                let expected: Vec<(String, i64)> = model
                    .entries
                    .values()
                    .filter(|e| e.selectors.is_subset_of(set))
                    .map(|e| (e.id.to_string(), model.issued.get(e.id.as_str()).copied().unwrap_or(-1)))
                    .collect();
                prop_assert_eq!(view, &expected);
            }
            prop_assert_eq!(cache.svid_count(), model.issued.len());
            for record in cache.records.values() {
                let pins = pinned
                    .iter()
                    .filter(|p| record.entry.selectors.is_subset_of(&set(&p.iter().map(String::as_str).collect::<Vec<_>>())))
                    .count();
                prop_assert_eq!(usize::try_from(record.pins).unwrap(), pins);
            }
        }
        // Everything without an SVID is wanted, and nothing that is gone.
        let missing: BTreeSet<String> = model
            .entries
            .keys()
            .filter(|id| !model.issued.contains_key(*id))
            .cloned()
            .collect();
        let wanted: BTreeSet<String> = wanted(&mut cache, 0).into_iter().collect();
        prop_assert!(missing.is_subset(&wanted));
        prop_assert!(wanted.iter().all(|id| model.entries.contains_key(id)));
    }
}

fn shown(cache: &X509Cache, set: &Selectors) -> Vec<(String, i64)> {
    cache
        .view(set)
        .matches
        .iter()
        .map(|m| (m.entry.id.to_string(), m.svid.as_ref().map_or(-1, |s| s.not_before.unix())))
        .collect()
}

/// SVIDs that came while the clock ran ahead are replaced once it is set right; a server whose clock is ahead of ours is
/// another matter.
#[test]
fn a_clock_that_is_set_back_makes_svids_of_the_future_stale() {
    let mut cache = cache(10);
    upsert(&mut cache, vec![entry("a", &["x"], 0), entry("b", &["x"], 0)], 0);
    issue(&mut cache, "a", 0);
    let ahead = svid(30, 130);
    cache.issued(&EntryId::from_stored("b"), 0, ahead, now(1), Jitter::from_random(0));
    assert!(wanted(&mut cache, 2).is_empty(), "not valid yet, and good all the same");
    assert_eq!(wanted(&mut cache, 5000), ["a", "b"]);
    issue(&mut cache, "a", 5000);
    issue(&mut cache, "b", 5000);
    cache.refused(&EntryId::from_stored("b"), now(5000));
    assert!(wanted(&mut cache, 5001).is_empty());
    assert_eq!(wanted(&mut cache, 40), ["a", "b"]);
    issue(&mut cache, "a", 40);
    issue(&mut cache, "b", 40);
    assert!(wanted(&mut cache, 41).is_empty());
}
