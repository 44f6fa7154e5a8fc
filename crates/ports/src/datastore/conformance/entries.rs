//! Cases of [`Entries`](crate::datastore::Entries), listings apart.

use std::sync::Arc;

use spire_core::model::{Attributes, Entry, EntryFilter, EntryMask};
use spire_core::time::Timestamp;

use super::{FIRST, NOW, SECOND, bundle, domain, entry, entry_id, id, selectors};
use crate::datastore::{Consistency, Creation, DataStore, Error, Written};

async fn create(store: &dyn DataStore, wanted: Entry) -> Written<Entry> {
    match store.entries_create(vec![wanted]).await.unwrap().remove(0) {
        Ok(Creation::Created(written)) => written,
        other => panic!("not created: {other:?}"),
    }
}

fn full_entry() -> Entry {
    let mut wanted = entry("full", "/parent", "/workload", &["unix:uid:0", "docker:label:a:b"]);
    wanted.x509_svid_ttl = 1;
    wanted.jwt_svid_ttl = 2;
    wanted.federates_with = [domain("a.test"), domain("b.test")].into();
    wanted.admin = true;
    wanted.downstream = true;
    wanted.expires_at = NOW;
    wanted.dns_names = ["z.test".into(), "a.test".into(), "m.test".into()].into();
    wanted.hint = "internal".into();
    wanted.attributes = Some(Attributes { disable_x509_svid_prefetch: true, jwt_svid_include_jti: true });
    wanted
}

async fn foreign_bundles(store: &dyn DataStore) {
    for (name, authority) in [("a.test", FIRST), ("b.test", SECOND)] {
        store.bundle_create(&bundle(name, &[authority])).await.unwrap();
    }
}

/// Every field survives; the order of DNS names too.
pub async fn a_created_entry_reads_back(store: Arc<dyn DataStore>) {
    foreign_bundles(&*store).await;
    let mut wanted = full_entry();
    assert_eq!(store.entry_fetch(&wanted.id).await, Ok(None));
    let written = create(&*store, wanted.clone()).await;
    assert!(written.value.created_at > Timestamp::EPOCH);
    wanted.created_at = written.value.created_at;
    assert_eq!(written.value, wanted);
    assert_eq!(store.entry_fetch(&wanted.id).await, Ok(Some(wanted.clone())));
    let mut stored = entry("stored", "/parent", "/stored", &["disk:group:a", "disk:path:b"]);
    stored.store_svid = true;
    stored.created_at = create(&*store, stored.clone()).await.value.created_at;
    assert_eq!(store.entry_fetch(&stored.id).await, Ok(Some(stored)));
}

/// SPIFFE ID, parent and selectors together are unique; each alone is not.
pub async fn a_similar_entry_is_returned(store: Arc<dyn DataStore>) {
    let first = create(&*store, entry("first", "/p", "/w", &["a:1", "a:2"])).await;
    let same = entry("second", "/p", "/w", &["a:2", "a:1"]);
    let outcome = store.entries_create(vec![same]).await.unwrap().remove(0);
    assert_eq!(outcome, Ok(Creation::Similar(first.value.clone())));
    assert_eq!(store.entry_fetch(&entry_id("second")).await, Ok(None));
    for other in [
        entry("fewer", "/p", "/w", &["a:1"]),
        entry("more", "/p", "/w", &["a:1", "a:2", "a:3"]),
        entry("parent", "/q", "/w", &["a:1", "a:2"]),
        entry("id", "/p", "/v", &["a:1", "a:2"]),
    ] {
        create(&*store, other).await;
    }
    // Within one batch too.
    let twins = vec![entry("x", "/p", "/twin", &["a:1"]), entry("y", "/p", "/twin", &["a:1"])];
    let outcomes = store.entries_create(twins).await.unwrap();
    assert!(matches!(&outcomes[0], Ok(Creation::Created(w)) if w.value.id == entry_id("x")), "{outcomes:?}");
    assert!(matches!(&outcomes[1], Ok(Creation::Similar(e)) if e.id == entry_id("x")), "{outcomes:?}");
    // Where very many entries share a SPIFFE ID, and where they share a parent.
    for (n, wide) in [("i", "/wide"), ("p", "")] {
        let many: Vec<Entry> = (0..150)
            .map(|i| match wide {
                "" => entry(&format!("{n}{i}"), "/wide", &format!("/n{i}"), &["a:1"]),
                id => entry(&format!("{n}{i}"), &format!("/n{i}"), id, &["a:1"]),
            })
            .collect();
        store.entries_create(many.clone()).await.unwrap();
        for outcome in store.entries_create(many).await.unwrap() {
            assert!(matches!(outcome, Ok(Creation::Similar(_))), "{outcome:?}");
        }
    }
}

/// An outcome an item, in order; a failed item leaves nothing behind.
pub async fn one_bad_item_spares_the_others(store: Arc<dyn DataStore>) {
    create(&*store, entry("taken", "/p", "/taken", &["a:1"])).await;
    let mut twice = entry("twice", "/p", "/twice", &["a:1"]);
    twice.dns_names = ["same.test".into(), "same.test".into()].into();
    let batch = vec![
        entry("one", "/p", "/one", &["a:1"]),
        entry("taken", "/p", "/other", &["a:1"]),
        entry("none", "/p", "/none", &[]),
        twice,
        entry("two", "/p", "/two", &["a:1"]),
    ];
    let outcomes = store.entries_create(batch).await.unwrap();
    assert!(matches!(outcomes[0], Ok(Creation::Created(_))), "{outcomes:?}");
    assert!(matches!(outcomes[1], Err(Error::AlreadyExists(_))), "{outcomes:?}");
    assert!(matches!(outcomes[2], Err(Error::Invalid(_))), "{outcomes:?}");
    assert!(matches!(outcomes[3], Err(Error::AlreadyExists(_))), "{outcomes:?}");
    assert!(matches!(outcomes[4], Ok(Creation::Created(_))), "{outcomes:?}");
    let page = store.entry_list(&EntryFilter::default(), None, Consistency::Current).await.unwrap();
    let ids: Vec<_> = page.items.iter().map(|e| e.id.as_str()).collect();
    assert_eq!(ids, ["taken", "one", "two"]);
    assert_eq!(store.entry_events(0, 100).await.unwrap().len(), 3);
    let updates = vec![
        (entry("gone", "/p", "/g", &["a:1"]), EntryMask::ALL),
        (entry("one", "/p", "/1", &["a:1"]), EntryMask::ALL),
    ];
    let outcomes = store.entries_update(updates).await.unwrap();
    assert_eq!(outcomes[0], Err(Error::NotFound));
    assert_eq!(outcomes[1].as_ref().unwrap().value.spiffe_id, id("/1"));
    let outcomes = store.entries_delete(&[entry_id("gone"), entry_id("one")]).await.unwrap();
    assert_eq!(outcomes[0], Err(Error::NotFound));
    assert_eq!(outcomes[1].as_ref().unwrap().value.id, entry_id("one"));
}

/// The texts are the reference's.
pub async fn stored_rules_hold(store: Arc<dyn DataStore>) {
    let good = entry("e", "/p", "/w", &["a:1", "b:1"]);
    let mut mixed = good.clone();
    mixed.store_svid = true;
    let mut prefetch = entry("e", "/p", "/w", &["a:1"]);
    prefetch.store_svid = true;
    prefetch.attributes = Some(Attributes { disable_x509_svid_prefetch: true, jwt_svid_include_jti: false });
    let mut x509_ttl = good.clone();
    x509_ttl.x509_svid_ttl = -1;
    let mut jwt_ttl = good.clone();
    jwt_ttl.jwt_svid_ttl = -1;
    let mut bad_id = good.clone();
    bad_id.id = spire_core::model::EntryId::from_stored("no spaces");
    for (bad, reason) in [
        (entry("e", "/p", "/w", &[]), "invalid registration entry: missing selector list"),
        (
            mixed.clone(),
            "invalid registration entry: selector types must be the same when store SVID is enabled",
        ),
        (prefetch, "specifying cache behaviour is incompatible with storable SVIDs"),
        (x509_ttl, "invalid registration entry: X509SvidTtl is not set"),
        (jwt_ttl, "invalid registration entry: JwtSvidTtl is not set"),
        (bad_id, "invalid registration entry: entry ID contains invalid characters"),
    ] {
        let outcome = store.entries_create(vec![bad]).await.unwrap().remove(0);
        assert_eq!(outcome.unwrap_err().to_string(), format!("datastore-validation: {reason}"));
    }
    create(&*store, good.clone()).await;
    let mask = EntryMask { store_svid: true, ..EntryMask::NONE };
    let outcome = store.entries_update(vec![(mixed, mask)]).await.unwrap().remove(0);
    assert!(matches!(outcome, Err(Error::Invalid(_))), "{outcome:?}");
    let kept = store.entry_fetch(&good.id).await.unwrap().unwrap();
    assert!(!kept.store_svid && kept.revision == 0);
}

/// Only masked fields change; the revision always grows.
pub async fn updates_follow_their_mask(store: Arc<dyn DataStore>) {
    foreign_bundles(&*store).await;
    let mut expected = create(&*store, entry("full", "/p", "/w", &["a:1"])).await.value;
    let update = full_entry();
    let masks = [
        EntryMask::NONE,
        EntryMask { spiffe_id: true, parent_id: true, ..EntryMask::NONE },
        EntryMask { selectors: true, hint: true, ..EntryMask::NONE },
        EntryMask { x509_svid_ttl: true, jwt_svid_ttl: true, expires_at: true, ..EntryMask::NONE },
        EntryMask { admin: true, downstream: true, ..EntryMask::NONE },
        EntryMask { federates_with: true, dns_names: true, attributes: true, ..EntryMask::NONE },
        EntryMask::ALL,
    ];
    for mask in masks {
        expected.apply(&update, mask);
        expected.revision += 1;
        let written = store.entries_update(vec![(update.clone(), mask)]).await.unwrap().remove(0).unwrap();
        assert_eq!(written.value, expected, "{mask:?}");
        assert_eq!(store.entry_fetch(&update.id).await, Ok(Some(expected.clone())), "{mask:?}");
    }
    let mut cleared = entry("full", "/p", "/w", &["a:1"]);
    cleared.created_at = expected.created_at;
    cleared.revision = expected.revision + 1;
    store.entries_update(vec![(cleared.clone(), EntryMask::ALL)]).await.unwrap().remove(0).unwrap();
    assert_eq!(store.entry_fetch(&cleared.id).await, Ok(Some(cleared)));
}

/// Selectors that were replaced no longer match.
pub async fn updates_of_children_replace_them(store: Arc<dyn DataStore>) {
    create(&*store, entry("e", "/p", "/w", &["a:1", "a:2"])).await;
    let update = entry("e", "/p", "/w", &["a:2", "a:3"]);
    let mask = EntryMask { selectors: true, ..EntryMask::NONE };
    store.entries_update(vec![(update, mask)]).await.unwrap().remove(0).unwrap();
    for (wanted, found) in [("a:1", 0), ("a:2", 1), ("a:3", 1)] {
        let filter = EntryFilter {
            selectors: Some(spire_core::model::SelectorMatch {
                selectors: selectors(&[wanted]),
                how: spire_core::model::SetMatch::Any,
            }),
            ..EntryFilter::default()
        };
        assert_eq!(store.entry_count(&filter).await, Ok(found), "{wanted}");
    }
}

/// The whole entry comes back, once.
pub async fn deletion_returns_what_was_there(store: Arc<dyn DataStore>) {
    foreign_bundles(&*store).await;
    let written = create(&*store, full_entry()).await;
    let deleted = store.entries_delete(&[entry_id("full")]).await.unwrap().remove(0).unwrap();
    assert_eq!(deleted.value, written.value);
    assert!(deleted.event > written.event);
    assert_eq!(store.entry_fetch(&entry_id("full")).await, Ok(None));
    assert_eq!(store.entries_delete(&[entry_id("full")]).await.unwrap(), [Err(Error::NotFound)]);
    // What belonged to it does not cling to the next entry.
    let next = entry("next", "/p", "/w", &["a:1"]);
    let created = create(&*store, next).await.value;
    assert_eq!(store.entry_fetch(&entry_id("next")).await, Ok(Some(created)));
}

/// Those without an expiry stay; a call takes at most its limit.
pub async fn expired_entries_are_pruned(store: Arc<dyn DataStore>) {
    for (name, expiry) in [("never", 0), ("a", 10), ("b", 19), ("c", 20), ("d", 12)] {
        let mut wanted = entry(name, "/p", &format!("/{name}"), &["a:1"]);
        wanted.expires_at = Timestamp::from_unix(expiry);
        create(&*store, wanted).await;
    }
    let (before, _) = store.latest_events().await.unwrap();
    let names =
        |pruned: Vec<Written<Entry>>| pruned.iter().map(|w| w.value.id.to_string()).collect::<Vec<_>>();
    assert_eq!(names(store.entries_prune(Timestamp::from_unix(20), 2).await.unwrap()), ["a", "b"]);
    assert_eq!(names(store.entries_prune(Timestamp::from_unix(20), 2).await.unwrap()), ["d"]);
    assert!(store.entries_prune(Timestamp::from_unix(20), 2).await.unwrap().is_empty());
    assert_eq!(store.entry_count(&EntryFilter::default()).await, Ok(2));
    assert_eq!(store.entry_events(before, 10).await.unwrap().len(), 3);
}

/// Unknown ids are left out.
pub async fn many_ids_are_fetched_at_once(store: Arc<dyn DataStore>) {
    let all: Vec<Entry> = (0..300)
        .map(|i| entry(&format!("e{i}"), "/p", &format!("/w{i}"), &["a:1", &format!("b:{i}")]))
        .collect();
    store.entries_create(all.clone()).await.unwrap();
    let mut wanted: Vec<_> = all.iter().step_by(7).map(|e| e.id.clone()).collect();
    let known = wanted.len();
    wanted.extend([entry_id("unknown"), spire_core::model::EntryId::from_stored("\"],[")]);
    let mut found = store.entries_fetch(&wanted).await.unwrap();
    found.sort_by_key(|e| e.spiffe_id.as_str()[22..].parse::<u32>().unwrap());
    assert_eq!(found.len(), known);
    for (found, wanted) in found.iter().zip(all.iter().step_by(7)) {
        assert_eq!((&found.id, &found.selectors), (&wanted.id, &wanted.selectors));
    }
    assert!(store.entries_fetch(&[]).await.unwrap().is_empty());
}

/// However many ask for it at once.
pub async fn concurrent_creation_makes_one_entry(store: Arc<dyn DataStore>) {
    let tasks: Vec<_> = (0..40)
        .map(|i| {
            let store = store.clone();
            let wanted = entry(&format!("e{i}"), "/p", "/w", &["a:1"]);
            tokio::spawn(async move { store.entries_create(vec![wanted]).await.unwrap().remove(0).unwrap() })
        })
        .collect();
    let mut created = 0;
    for task in tasks {
        created += u32::from(matches!(task.await.unwrap(), Creation::Created(_)));
    }
    assert_eq!(created, 1);
    assert_eq!(store.entry_count(&EntryFilter::default()).await, Ok(1));
}

/// And an entry names each bundle once.
pub async fn federation_needs_a_bundle(store: Arc<dyn DataStore>) {
    let mut wanted = entry("e", "/p", "/w", &["a:1"]);
    wanted.federates_with = [domain("unknown.test")].into();
    let outcome = store.entries_create(vec![wanted.clone()]).await.unwrap().remove(0);
    let reason = "unable to find federated bundle \"spiffe://unknown.test\"";
    assert_eq!(outcome, Err(Error::NoBundle(reason.into())));
    foreign_bundles(&*store).await;
    wanted.federates_with = [domain("b.test"), domain("a.test"), domain("b.test")].into();
    let created = create(&*store, wanted).await.value;
    assert_eq!(*created.federates_with, [domain("a.test"), domain("b.test")]);
    assert_eq!(store.entry_fetch(&entry_id("e")).await, Ok(Some(created)));
}
