//! Cases of [`Bundles`](crate::datastore::Bundles).

use std::sync::Arc;
use std::time::Duration;

use super::{
    EXPIRED, FIRST, FIRST_KEY, NOW, SECOND, SECOND_KEY, bundle, domain, entry, entry_id, jwt, paging,
};
use crate::datastore::{BundleMask, DataStore, DeleteMode, Error};

/// Every field survives.
pub async fn a_created_bundle_reads_back(store: Arc<dyn DataStore>) {
    let mut wanted = bundle("example.org", &[FIRST, SECOND]);
    wanted.x509_authorities[1].tainted = true;
    wanted.jwt_authorities = vec![jwt("a", 5), jwt("b", 6)];
    wanted.jwt_authorities[0].tainted = true;
    wanted.wit_authorities = vec![jwt("w", 7)];
    wanted.refresh_hint = Duration::from_secs(300);
    wanted.sequence_number = 42;
    assert_eq!(store.bundle_fetch(&domain("example.org")).await, Ok(None));
    assert_eq!(store.bundle_create(&wanted).await, Ok(wanted.clone()));
    assert_eq!(store.bundle_fetch(&domain("example.org")).await, Ok(Some(wanted)));
    assert_eq!(store.bundle_count().await, Ok(1));
}

/// A trust domain has one bundle.
pub async fn create_refuses_a_second_one(store: Arc<dyn DataStore>) {
    let first = bundle("example.org", &[FIRST]);
    store.bundle_create(&first).await.unwrap();
    let second = store.bundle_create(&bundle("example.org", &[SECOND])).await;
    assert!(matches!(second, Err(Error::AlreadyExists(_))), "{second:?}");
    assert_eq!(store.bundle_fetch(&domain("example.org")).await, Ok(Some(first)));
}

/// Set does not mind.
pub async fn set_makes_or_replaces(store: Arc<dyn DataStore>) {
    for authority in [FIRST, SECOND] {
        let wanted = bundle("example.org", &[authority]);
        assert_eq!(store.bundle_set(&wanted).await, Ok(wanted.clone()));
        assert_eq!(store.bundle_fetch(&domain("example.org")).await, Ok(Some(wanted)));
    }
}

/// What the mask leaves out stays.
pub async fn update_replaces_masked_parts(store: Arc<dyn DataStore>) {
    let mut update = bundle("example.org", &[SECOND]);
    update.sequence_number = 9;
    update.refresh_hint = Duration::from_secs(1);
    assert_eq!(store.bundle_update(&update, BundleMask::ALL).await, Err(Error::NotFound));
    let mut stored = bundle("example.org", &[FIRST]);
    stored.jwt_authorities = vec![jwt("a", 5)];
    store.bundle_create(&stored).await.unwrap();
    let only_hint = BundleMask {
        x509_authorities: false,
        jwt_authorities: false,
        wit_authorities: false,
        refresh_hint: true,
        sequence_number: false,
    };
    stored.refresh_hint = update.refresh_hint;
    assert_eq!(store.bundle_update(&update, only_hint).await, Ok(stored.clone()));
    assert_eq!(store.bundle_fetch(&domain("example.org")).await, Ok(Some(stored)));
    assert_eq!(store.bundle_update(&update, BundleMask::ALL).await, Ok(update.clone()));
    assert_eq!(store.bundle_fetch(&domain("example.org")).await, Ok(Some(update)));
}

/// The sequence number grows with the content, and only then.
pub async fn append_counts_changes_only(store: Arc<dyn DataStore>) {
    let first = bundle("example.org", &[FIRST]);
    assert_eq!(store.bundle_append(&first).await, Ok(first.clone()));
    assert_eq!(store.bundle_append(&first).await.unwrap().sequence_number, 0);
    let mut addition = bundle("example.org", &[SECOND, FIRST]);
    addition.jwt_authorities = vec![jwt("a", 5)];
    let merged = store.bundle_append(&addition).await.unwrap();
    assert_eq!(merged.sequence_number, 1);
    assert_eq!(merged.x509_authorities, bundle("example.org", &[FIRST, SECOND]).x509_authorities);
    assert_eq!(merged.jwt_authorities, addition.jwt_authorities);
    assert_eq!(store.bundle_fetch(&domain("example.org")).await, Ok(Some(merged)));
}

/// All, and page by page.
pub async fn list_pages_in_row_order(store: Arc<dyn DataStore>) {
    let names = ["c.test", "a.test", "b.test"];
    for name in names {
        store.bundle_create(&bundle(name, &[FIRST])).await.unwrap();
    }
    let all = store.bundle_list(None).await.unwrap();
    assert_eq!(all.items.iter().map(|b| b.trust_domain.name()).collect::<Vec<_>>(), names);
    assert_eq!(all.next, "");
    let mut token = String::new();
    let mut seen = Vec::new();
    for expected in [2, 1, 0] {
        let page = store.bundle_list(Some(&paging(2, &token))).await.unwrap();
        assert_eq!(page.items.len(), expected);
        seen.extend(page.items);
        token = page.next;
        assert_eq!(token.is_empty(), expected == 0);
    }
    assert_eq!(seen, all.items);
}

/// Restrict refuses, dissociate unlinks, delete deletes; the entries concerned get events.
pub async fn delete_follows_its_mode(store: Arc<dyn DataStore>) {
    let foreign = domain("foreign.test");
    assert_eq!(store.bundle_delete(&foreign, DeleteMode::Restrict).await, Err(Error::NotFound));
    for mode in [DeleteMode::Dissociate, DeleteMode::Delete] {
        store.bundle_create(&bundle("foreign.test", &[FIRST])).await.unwrap();
        let mut linked = entry("linked", "/parent", "/linked", &["a:1"]);
        linked.federates_with = [foreign.clone()].into();
        let other = entry("other", "/parent", "/other", &["a:1"]);
        for outcome in store.entries_create(vec![linked, other]).await.unwrap() {
            outcome.unwrap();
        }
        let refusal = store.bundle_delete(&foreign, DeleteMode::Restrict).await.unwrap_err();
        let text = "datastore-sql: cannot delete bundle; federated with 1 registration entries";
        assert_eq!((refusal.to_string().as_str(), matches!(refusal, Error::InUse(_))), (text, true));
        let (before, _) = store.latest_events().await.unwrap();
        store.bundle_delete(&foreign, mode).await.unwrap();
        assert_eq!(store.bundle_fetch(&foreign).await, Ok(None));
        let events = store.entry_events(before, 10).await.unwrap();
        assert_eq!(events.into_iter().map(|e| e.key).collect::<Vec<_>>(), [entry_id("linked")]);
        let left = store.entry_fetch(&entry_id("linked")).await.unwrap();
        match mode {
            DeleteMode::Delete => assert_eq!(left, None),
            _ => {
                assert!(left.unwrap().federates_with.is_empty());
                store.entries_delete(&[entry_id("linked")]).await.unwrap();
            }
        }
        assert!(store.entry_fetch(&entry_id("other")).await.unwrap().is_some());
        store.entries_delete(&[entry_id("other")]).await.unwrap();
    }
}

/// Expired authorities of every kind go; the sequence number grows once.
pub async fn prune_drops_what_expired(store: Arc<dyn DataStore>) {
    assert_eq!(store.bundle_prune(&domain("example.org"), NOW).await, Ok(false));
    let mut stored = bundle("example.org", &[EXPIRED, FIRST]);
    stored.jwt_authorities = vec![jwt("old", NOW.unix()), jwt("new", NOW.unix() + 1)];
    stored.wit_authorities = vec![jwt("w", NOW.unix() + 1)];
    store.bundle_create(&stored).await.unwrap();
    assert_eq!(store.bundle_prune(&domain("example.org"), NOW).await, Ok(true));
    stored.x509_authorities.remove(0);
    stored.jwt_authorities.remove(0);
    stored.sequence_number = 1;
    assert_eq!(store.bundle_fetch(&domain("example.org")).await, Ok(Some(stored)));
    assert_eq!(store.bundle_prune(&domain("example.org"), NOW).await, Ok(false));
}

/// A bundle is never emptied.
pub async fn prune_keeps_the_last_authority(store: Arc<dyn DataStore>) {
    let stored = bundle("example.org", &[EXPIRED]);
    store.bundle_create(&stored).await.unwrap();
    let refusal = store.bundle_prune(&domain("example.org"), NOW).await;
    assert!(matches!(refusal, Err(Error::Invalid(_))), "{refusal:?}");
    assert_eq!(store.bundle_fetch(&domain("example.org")).await, Ok(Some(stored)));
}

/// Taint, then revoke; nothing else.
pub async fn x509_authorities_are_tainted_then_revoked(store: Arc<dyn DataStore>) {
    let own = domain("example.org");
    assert_eq!(store.x509_authority_taint(&own, FIRST_KEY).await, Err(Error::NotFound));
    store.bundle_create(&bundle("example.org", &[FIRST, SECOND])).await.unwrap();
    let missing = "no ca found with provided subject key ID";
    assert_eq!(store.x509_authority_taint(&own, "00").await, Err(Error::Missing(missing.into())));
    let untainted = "it is not possible to revoke an untainted root CA";
    assert_eq!(store.x509_authority_revoke(&own, FIRST_KEY).await, Err(Error::Invalid(untainted.into())));
    store.x509_authority_taint(&own, FIRST_KEY).await.unwrap();
    let twice = "root CA is already tainted";
    assert_eq!(store.x509_authority_taint(&own, FIRST_KEY).await, Err(Error::Invalid(twice.into())));
    let tainted = store.bundle_fetch(&own).await.unwrap().unwrap();
    assert_eq!(tainted.x509_authorities.iter().map(|a| a.tainted).collect::<Vec<_>>(), [true, false]);
    assert_eq!(tainted.sequence_number, 1);
    store.x509_authority_revoke(&own, FIRST_KEY).await.unwrap();
    let revoked = store.bundle_fetch(&own).await.unwrap().unwrap();
    assert_eq!(revoked.x509_authorities, bundle("example.org", &[SECOND]).x509_authorities);
    assert_eq!(revoked.sequence_number, 2);
    let gone = "no root CA found with provided subject key ID";
    assert_eq!(store.x509_authority_revoke(&own, FIRST_KEY).await, Err(Error::Missing(gone.into())));
    assert!(matches!(store.x509_authority_revoke(&own, SECOND_KEY).await, Err(Error::Invalid(_))));
}

/// The same for keys that sign tokens.
pub async fn jwt_authorities_are_tainted_then_revoked(store: Arc<dyn DataStore>) {
    let own = domain("example.org");
    assert_eq!(store.jwt_authority_taint(&own, "a").await, Err(Error::NotFound));
    let mut stored = bundle("example.org", &[FIRST]);
    stored.jwt_authorities = vec![jwt("a", 5), jwt("b", 6)];
    store.bundle_create(&stored).await.unwrap();
    let missing = Error::Missing("no JWT Key found with provided key ID".into());
    assert_eq!(store.jwt_authority_taint(&own, "c").await, Err(missing.clone()));
    assert_eq!(store.jwt_authority_revoke(&own, "c").await, Err(missing));
    let untainted = "it is not possible to revoke an untainted key";
    assert_eq!(store.jwt_authority_revoke(&own, "a").await, Err(Error::Invalid(untainted.into())));
    let tainted = store.jwt_authority_taint(&own, "a").await.unwrap();
    assert!(tainted.tainted && tainted.kid == "a");
    let twice = "key is already tainted";
    assert_eq!(store.jwt_authority_taint(&own, "a").await, Err(Error::Invalid(twice.into())));
    assert_eq!(store.jwt_authority_revoke(&own, "a").await, Ok(tainted));
    let left = store.bundle_fetch(&own).await.unwrap().unwrap();
    assert_eq!(left.jwt_authorities, [jwt("b", 6)]);
    assert_eq!(left.sequence_number, 2);
}

/// The same for keys of WIT-SVIDs, which are others than those of JWT-SVIDs.
pub async fn wit_authorities_are_tainted_then_revoked(store: Arc<dyn DataStore>) {
    let own = domain("example.org");
    assert_eq!(store.wit_authority_taint(&own, "a").await, Err(Error::NotFound));
    let mut stored = bundle("example.org", &[FIRST]);
    stored.jwt_authorities = vec![jwt("j", 5)];
    stored.wit_authorities = vec![jwt("a", 5), jwt("b", 6)];
    store.bundle_create(&stored).await.unwrap();
    let missing = Error::Missing("no WIT Key found with provided key ID".into());
    assert_eq!(store.wit_authority_taint(&own, "j").await, Err(missing.clone()));
    assert_eq!(store.wit_authority_revoke(&own, "c").await, Err(missing));
    assert!(matches!(store.wit_authority_revoke(&own, "a").await, Err(Error::Invalid(_))));
    let tainted = store.wit_authority_taint(&own, "a").await.unwrap();
    assert!(tainted.tainted && tainted.kid == "a");
    assert!(matches!(store.wit_authority_taint(&own, "a").await, Err(Error::Invalid(_))));
    assert_eq!(store.wit_authority_revoke(&own, "a").await, Ok(tainted));
    let left = store.bundle_fetch(&own).await.unwrap().unwrap();
    assert_eq!((left.wit_authorities, left.jwt_authorities), (vec![jwt("b", 6)], vec![jwt("j", 5)]));
    assert_eq!(left.sequence_number, 2);
}
