//! Listings against a naive model: every combination of filters, whole and in pages.

use std::collections::BTreeSet;
use std::sync::Arc;

use spire_core::model::{Entry, EntryFilter, EntryMask, FederatesWithMatch, SelectorMatch, SetMatch};
use spire_core::spiffe::TrustDomain;

use super::{Dice, FIRST, bundle, domain, entry, id, paging, selectors};
use crate::datastore::{Consistency, Creation, DataStore, Error};

const PARENTS: &[&str] = &["/p1", "/p2", "/p3"];
const IDS: &[&str] = &["/a", "/b", "/c", "/d"];
const SELECTORS: &[&str] = &["unix:uid:1", "unix:uid:2", "docker:it's", "k8s:a:b:c", "x:[\"\\"];
const DOMAINS: &[&str] = &["one.test", "two.test", "three.test"];
const HINTS: &[&str] = &["", "internal", "external"];
const MATCHES: [SetMatch; 4] = [SetMatch::Exact, SetMatch::Subset, SetMatch::Superset, SetMatch::Any];

fn random_entry(dice: &mut Dice, name: &str) -> Entry {
    let mut wanted = dice.some(SELECTORS);
    if wanted.is_empty() {
        wanted.push(dice.one(SELECTORS));
    }
    let mut entry = entry(name, dice.one(PARENTS), dice.one(IDS), &wanted);
    entry.federates_with = dice.some(DOMAINS).into_iter().map(domain).collect();
    entry.hint = dice.one(HINTS).into();
    entry.downstream = dice.flip();
    entry
}

fn random_filter(dice: &mut Dice) -> EntryFilter {
    let how = |dice: &mut Dice| MATCHES[usize::try_from(dice.roll(4)).unwrap()];
    let wanted = dice.some(SELECTORS);
    let domains = dice.some(DOMAINS);
    EntryFilter {
        spiffe_id: dice.flip().then(|| id(dice.one(IDS))),
        parent_id: dice.flip().then(|| id(dice.one(PARENTS))),
        selectors: (dice.flip() && !wanted.is_empty())
            .then(|| SelectorMatch { selectors: selectors(&wanted), how: how(dice) }),
        federates_with: (dice.flip() && !domains.is_empty()).then(|| FederatesWithMatch {
            trust_domains: domains.iter().map(|name| domain(name)).collect(),
            how: how(dice),
        }),
        hint: (dice.roll(4) == 0).then(|| dice.one(HINTS).to_owned()),
        downstream: (dice.roll(4) == 0).then(|| dice.flip()),
    }
}

fn matches(filter: &EntryFilter, entry: &Entry) -> bool {
    let sets = |how, row: &BTreeSet<_>, wanted: &BTreeSet<_>| match how {
        SetMatch::Exact => row == wanted,
        SetMatch::Subset => !row.is_empty() && row.is_subset(wanted),
        SetMatch::Superset => row.is_superset(wanted),
        SetMatch::Any => !row.is_disjoint(wanted),
    };
    let texts = |all: &spire_core::spiffe::Selectors| all.iter().map(ToString::to_string).collect();
    let names = |all: &[TrustDomain]| all.iter().map(ToString::to_string).collect();
    filter.spiffe_id.as_ref().is_none_or(|wanted| entry.spiffe_id == *wanted)
        && filter.parent_id.as_ref().is_none_or(|wanted| entry.parent_id == *wanted)
        && filter.hint.as_ref().is_none_or(|wanted| *entry.hint == **wanted)
        && filter.downstream.is_none_or(|wanted| entry.downstream == wanted)
        && filter
            .selectors
            .as_ref()
            .is_none_or(|wanted| sets(wanted.how, &texts(&entry.selectors), &texts(&wanted.selectors)))
        && filter.federates_with.as_ref().is_none_or(|wanted| {
            sets(wanted.how, &names(&entry.federates_with), &names(&wanted.trust_domains))
        })
}

/// Creates, updates and deletes at random, then compares listings, pages and counts.
pub async fn entries_as_a_naive_model_lists_them(store: Arc<dyn DataStore>) {
    for name in DOMAINS {
        store.bundle_create(&bundle(name, &[FIRST])).await.unwrap();
    }
    let mut dice = Dice(0x5EED);
    let mut model: Vec<Entry> = Vec::new();
    for round in 0..200 {
        let wanted = random_entry(&mut dice, &format!("e{round}"));
        let similar = model.iter().find(|e| {
            e.spiffe_id == wanted.spiffe_id
                && e.parent_id == wanted.parent_id
                && e.selectors == wanted.selectors
        });
        match store.entries_create(vec![wanted]).await.unwrap().remove(0).unwrap() {
            Creation::Created(written) => {
                assert_eq!(similar, None);
                model.push(written.value);
            }
            Creation::Similar(found) => assert_eq!(Some(&found), similar),
        }
        let index = usize::try_from(dice.roll(u64::try_from(model.len()).unwrap())).unwrap();
        if dice.roll(3) == 0 {
            // Selectors and IDs stay, so that similar entries remain unique in the model.
            let update = random_entry(&mut dice, model[index].id.as_str());
            let mask = EntryMask { federates_with: true, hint: true, downstream: true, ..EntryMask::NONE };
            let written = store.entries_update(vec![(update, mask)]).await.unwrap().remove(0).unwrap();
            model[index] = written.value;
        } else if dice.roll(5) == 0 {
            let deleted = store.entries_delete(&[model[index].id.clone()]).await.unwrap().remove(0).unwrap();
            assert_eq!(deleted.value, model.remove(index));
        }
    }
    assert!(model.len() > 80, "too few to mean anything: {}", model.len());
    let mut found = 0;
    for round in 0..300 {
        let filter = if round == 0 { EntryFilter::default() } else { random_filter(&mut dice) };
        let expected: Vec<_> = model.iter().filter(|entry| matches(&filter, entry)).cloned().collect();
        found += expected.len();
        let all = store.entry_list(&filter, None, Consistency::Current).await.unwrap();
        assert_eq!(all.items, expected, "{filter:?}");
        assert_eq!(all.next, "");
        let count = store.entry_count(&filter).await.unwrap();
        assert_eq!(usize::try_from(count).unwrap(), expected.len(), "{filter:?}");
        let size = u32::try_from(1 + dice.roll(20)).unwrap();
        let mut paged = Vec::new();
        let mut token = String::new();
        loop {
            let page = store
                .entry_list(&filter, Some(&paging(size, &token)), Consistency::TolerateStale)
                .await
                .unwrap();
            assert!(page.items.len() <= usize::try_from(size).unwrap());
            assert_eq!(page.items.is_empty(), page.next.is_empty());
            if page.items.is_empty() {
                break;
            }
            paged.extend(page.items);
            token = page.next;
        }
        assert_eq!(paged, expected, "{filter:?} by {size}");
    }
    assert!(found > 1000, "filters that match nothing prove nothing: {found}");
}

/// A token is a number of 32 bits; a page has a size; a set that is asked for is not empty.
pub async fn bad_paging_is_refused(store: Arc<dyn DataStore>) {
    let list = async |filter: EntryFilter, size: u32, token: &str| {
        store.entry_list(&filter, Some(&paging(size, &token.to_owned())), Consistency::Current).await
    };
    let all = EntryFilter::default;
    let zero = list(all(), 0, "").await;
    assert_eq!(zero, Err(Error::Invalid("cannot paginate with pagesize = 0".into())));
    for token in ["x", "+5", "-1", "4294967296"] {
        let bad = list(all(), 1, token).await;
        assert_eq!(bad, Err(Error::Invalid(format!("could not parse token '{token}'"))));
    }
    let past = list(all(), 1, &u32::MAX.to_string()).await.unwrap();
    assert!(past.items.is_empty() && past.next.is_empty());
    let nothing = EntryFilter {
        selectors: Some(SelectorMatch { selectors: selectors(&[]), how: SetMatch::Any }),
        ..all()
    };
    assert_eq!(list(nothing, 1, "").await, Err(Error::Invalid("cannot list by empty selector set".into())));
}
