//! Cases of [`Journals`](crate::datastore::Journals).

use std::sync::Arc;

use spire_core::model::{AuthorityStatus, CaJournal, KeyRecord, SlotName, X509CaRecord};
use spire_core::time::Timestamp;

use crate::datastore::{DataStore, Error, StoredJournal};

fn x509(not_after: i64) -> X509CaRecord {
    X509CaRecord {
        slot: SlotName::A,
        issued_at: Timestamp::from_unix(1),
        not_after: Timestamp::from_unix(not_after),
        certificate: vec![1, 2, 3].into(),
        upstream_chain: vec![vec![4].into(), vec![5, 6].into()],
        status: AuthorityStatus::Active,
        authority_id: "aa".into(),
        upstream_authority_id: "bb".into(),
    }
}

fn key(not_after: i64, status: AuthorityStatus) -> KeyRecord {
    KeyRecord {
        slot: SlotName::B,
        issued_at: Timestamp::from_unix(2),
        not_after: Timestamp::from_unix(not_after),
        kid: "kid".into(),
        public_key: vec![7, 8].into(),
        status,
        authority_id: "kid".into(),
    }
}

/// Every field survives.
pub async fn a_journal_reads_back(store: Arc<dyn DataStore>) {
    let journal = CaJournal {
        x509: vec![x509(10), X509CaRecord { upstream_chain: Vec::new(), ..x509(20) }],
        jwt: vec![key(10, AuthorityStatus::Old), key(20, AuthorityStatus::Prepared)],
        wit: vec![key(30, AuthorityStatus::Unknown)],
    };
    assert_eq!(store.journal_fetch("aa").await, Ok(None));
    let id = store.journal_set(None, "aa", &journal).await.unwrap();
    let stored = StoredJournal { id, active_x509_authority_id: "aa".into(), journal };
    assert_eq!(store.journal_fetch("aa").await, Ok(Some(stored)));
    assert!(matches!(store.journal_fetch("").await, Err(Error::Invalid(_))));
}

/// However often it is stored, and whichever authority is active by then.
pub async fn a_journal_keeps_its_row(store: Arc<dyn DataStore>) {
    let first = store.journal_set(None, "aa", &CaJournal::default()).await.unwrap();
    let other = store.journal_set(None, "bb", &CaJournal::default()).await.unwrap();
    assert_ne!(first, other);
    let journal = CaJournal { x509: vec![x509(10)], ..CaJournal::default() };
    assert_eq!(store.journal_set(Some(first), "cc", &journal).await, Ok(first));
    assert_eq!(store.journal_fetch("aa").await, Ok(None));
    let stored = store.journal_fetch("cc").await.unwrap().unwrap();
    assert_eq!((stored.id, stored.journal), (first, journal.clone()));
    assert_eq!(store.journal_set(Some(first + 100), "dd", &journal).await, Err(Error::NotFound));
}

/// One authority that is valid keeps the whole journal.
pub async fn only_stale_journals_are_pruned(store: Arc<dyn DataStore>) {
    let old = || key(10, AuthorityStatus::Old);
    let new = || key(11, AuthorityStatus::Active);
    for (name, x509, jwt, wit) in [
        ("stale", vec![x509(9), x509(10)], vec![old()], vec![old()]),
        ("x509", vec![x509(9), x509(11)], vec![old()], vec![]),
        ("jwt", vec![x509(9)], vec![old(), new()], vec![]),
        ("wit", vec![x509(9)], vec![], vec![new()]),
    ] {
        store.journal_set(None, name, &CaJournal { x509, jwt, wit }).await.unwrap();
    }
    store.journals_prune(Timestamp::from_unix(10)).await.unwrap();
    for (name, there) in [("stale", false), ("x509", true), ("jwt", true), ("wit", true)] {
        assert_eq!(store.journal_fetch(name).await.unwrap().is_some(), there, "{name}");
    }
}
