//! The index against a naive model, and the cases that the reference's tests name.

use std::collections::{BTreeSet, HashMap};

use proptest::prelude::*;

use super::*;
use crate::model::{Entry, EntryId};
use crate::spiffe::{Selector, Selectors, SpiffeId, TrustDomain};
use crate::time::Timestamp;

fn td() -> TrustDomain {
    TrustDomain::parse("example.org").unwrap()
}

fn id(path: &str) -> SpiffeId {
    SpiffeId::from_path(&td(), path).unwrap()
}

fn selectors(values: &[&str]) -> Selectors {
    values.iter().map(|v| Selector::new("t", *v).unwrap()).collect()
}

fn entry(name: &str, parent: &str, spiffe: &str, wants: &[&str]) -> Entry {
    Entry::new(EntryId::parse(name).unwrap(), id(parent), id(spiffe), selectors(wants))
}

fn agent(values: &[&str]) -> AgentRecord {
    agent_at(1, values)
}

fn agent_at(event: u64, values: &[&str]) -> AgentRecord {
    AgentRecord {
        selectors: selectors(values),
        expires_at: Timestamp::EPOCH,
        serial_number: "1".into(),
        event,
    }
}

fn seen(index: &Index<()>, agent: &str) -> Vec<String> {
    let mut found = Vec::new();
    index.visit_authorized(&id(agent), |r| found.push(r.id.to_string()));
    found.sort();
    for name in &found {
        assert!(index.authorized(&id(agent), &EntryId::parse(name).unwrap()).is_some(), "{name}");
    }
    found
}

fn index(entries: &[Entry]) -> Index<()> {
    let mut index = Index::new(td());
    for e in entries {
        assert!(index.upsert(Record::new(e, 1, ())));
    }
    index
}

const A: &str = "/spire/agent/join_token/a";
const B: &str = "/spire/agent/join_token/b";

#[test]
fn an_agent_sees_what_is_below_it() {
    let index = index(&[
        entry("w1", A, "/w1", &["x"]),
        entry("w2", B, "/w2", &["x"]),
        entry("below-w1", "/w1", "/w3", &["x"]),
    ]);
    assert_eq!(seen(&index, A), ["below-w1", "w1"]);
    assert_eq!(seen(&index, B), ["w2"]);
    assert_eq!(seen(&index, "/spire/agent/join_token/unknown"), [""; 0]);
}

#[test]
fn an_alias_applies_to_agents_that_have_all_its_selectors() {
    let mut index = index(&[
        entry("alias", "/spire/server", "/group", &["cluster", "zone"]),
        entry("w", "/group", "/w", &["x"]),
    ]);
    index.upsert_agent(id(A), agent(&["cluster", "zone", "more"]));
    index.upsert_agent(id(B), agent(&["cluster"]));
    assert_eq!(seen(&index, A), ["w"]);
    assert_eq!(seen(&index, B), [""; 0]);
}

#[test]
fn the_latest_write_of_an_agent_counts_in_whatever_order_they_come() {
    let mut index = index(&[]);
    assert!(index.upsert_agent(id(A), agent_at(3, &["x"])));
    assert!(!index.remove_agent(&id(A), 2), "it was attested again since");
    assert!(index.agent(&id(A)).is_some());
    assert!(index.remove_agent(&id(A), 4));
    assert!(!index.upsert_agent(id(A), agent_at(3, &["x"])), "it was removed since");
    assert!(index.agent(&id(A)).is_none());
    assert!(index.upsert_agent(id(A), agent_at(5, &["x"])));
    assert!(index.agent(&id(A)).is_some());
    assert!(index.remove_agent(&id(B), 6), "one that was never known");
    assert!(!index.upsert_agent(id(B), agent_at(5, &["x"])));
}

#[test]
fn cycles_end() {
    let index = index(&[
        entry("w1", A, "/x", &["s"]),
        entry("w2", "/x", "/y", &["s"]),
        entry("w3", "/y", "/x", &["s"]),
    ]);
    assert_eq!(seen(&index, A), ["w1", "w2", "w3"]);
}

#[test]
fn late_deltas_change_nothing() {
    let mut index = Index::new(td());
    let mut e = entry("w", A, "/w", &["s"]);
    assert!(index.upsert(Record::new(&e, 5, ())));
    e.revision = 7;
    assert!(!index.upsert(Record::new(&e, 4, ())), "older than what is here");
    assert!(index.remove(&e.id, 6));
    assert!(!index.upsert(Record::new(&e, 5, ())), "older than the deletion");
    assert!(index.is_empty());
    assert!(index.upsert(Record::new(&e, 7, ())), "created again");
    assert!(!index.remove(&e.id, 6));
    assert_eq!(index.len(), 1);
}

#[test]
fn a_snapshot_does_not_change() {
    let mut index = index(&[entry("w", A, "/w", &["s"])]);
    let before = index.clone();
    index.remove(&EntryId::parse("w").unwrap(), 9);
    assert_eq!(seen(&before, A), ["w"]);
    assert_eq!(seen(&index, A), [""; 0]);
}

#[test]
fn rights_are_summed_over_entries() {
    let mut admin = entry("a", A, "/boss", &["s"]);
    admin.admin = true;
    let mut down = entry("d", A, "/boss", &["t"]);
    down.downstream = true;
    let mut index = index(&[admin.clone(), down, entry("w", A, "/w", &["s"])]);
    assert_eq!(index.rights(&id("/boss")), Rights { admin: true, downstream: true });
    assert_eq!(index.rights(&id("/w")), Rights::default());
    index.remove(&admin.id, 2);
    assert_eq!(index.rights(&id("/boss")), Rights { admin: false, downstream: true });
}

#[test]
fn tombstones_are_bounded() {
    let mut index: Index<()> = Index::new(td());
    for n in 0..10_000_u64 {
        index.remove(&EntryId::from_stored(format!("e{n}")), n);
    }
    assert!(!index.upsert(Record::new(&entry("e9999", A, "/w", &["s"]), 9998, ())), "the newest are kept");
    assert!(index.upsert(Record::new(&entry("e1", A, "/w", &["s"]), 0, ())), "the oldest are not");
}

/// What an agent may see, found the slow way.
fn naive(entries: &HashMap<String, Entry>, agent: &SpiffeId, has: &Selectors) -> BTreeSet<String> {
    let mut reach: BTreeSet<SpiffeId> = BTreeSet::from([agent.clone()]);
    for e in entries.values() {
        if e.parent_id.path() == "/spire/server" && e.selectors.is_subset_of(has) {
            reach.insert(e.spiffe_id.clone());
        }
    }
    let mut found = BTreeSet::new();
    loop {
        let before = (reach.len(), found.len());
        for e in entries.values().filter(|e| reach.contains(&e.parent_id)).cloned().collect::<Vec<_>>() {
            found.insert(e.id.to_string());
            reach.insert(e.spiffe_id);
        }
        if before == (reach.len(), found.len()) {
            return found;
        }
    }
}

proptest! {
    #[test]
    fn agrees_with_a_naive_model(
        ops in prop::collection::vec((0..12_u8, 0..6_u8, 0..6_u8, 1..8_u8, any::<bool>()), 0..40),
        has in 0..8_u8,
    ) {
        let places = ["/spire/server", A, "/g1", "/g2", "/w1", "/w2"];
        let values = |bits: u8| -> Vec<&str> {
            ["x", "y", "z"].iter().enumerate().filter(|(i, _)| bits & (1 << i) != 0).map(|(_, v)| *v).collect()
        };
        let mut index = Index::new(td());
        let mut model: HashMap<String, Entry> = HashMap::new();
        index.upsert_agent(id(A), agent(&values(has)));
        for (event, (name, parent, spiffe, wants, delete)) in (1_u64..).zip(ops) {
            let name = format!("e{name}");
            if delete {
                index.remove(&EntryId::parse(&name).unwrap(), event);
                model.remove(&name);
            } else {
                let spiffe = places[usize::from(spiffe).max(2)];
                let e = entry(&name, places[usize::from(parent)], spiffe, &values(wants));
                index.upsert(Record::new(&e, event, ()));
                model.insert(name, e);
            }
        }
        let mut found = BTreeSet::new();
        index.visit_authorized(&id(A), |r| assert!(found.insert(r.id.to_string()), "visited twice"));
        let expected = naive(&model, &id(A), &selectors(&values(has)));
        prop_assert_eq!(&found, &expected);
        for name in model.keys() {
            let one = index.authorized(&id(A), &EntryId::parse(name).unwrap()).is_some();
            prop_assert_eq!(one, expected.contains(name), "{}", name);
        }
    }
}
