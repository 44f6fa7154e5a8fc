//! A database with what servers of several releases, in several time zones, have left in it.

use std::path::Path;

use rusqlite::Connection;
use spire_core::model::{Attributes, BundleEndpoint, EntryFilter, EntryId, NodeFilter, Paging};
use spire_core::spiffe::{SpiffeId, TrustDomain};
use spire_core::time::Timestamp;
use spire_ports::datastore::{
    Bundles, Consistency, Entries, Events, Federation, JoinTokens, Journals, Nodes,
};
use spire_store::{SqlConfig, SqlStore};

/// The moment that the fixture writes in several ways.
const THEN: Timestamp = Timestamp::from_unix(1_700_000_000);

async fn open(dir: &Path) -> SqlStore {
    let path = dir.join("datastore.sqlite3");
    let config = SqlConfig::sqlite(path.to_str().unwrap());
    SqlStore::open(&config).unwrap().close().await;
    Connection::open(&path).unwrap().execute_batch(include_str!("fixtures/older-server.sql")).unwrap();
    SqlStore::open(&config).unwrap()
}

fn names(entries: &[spire_core::model::Entry]) -> Vec<&str> {
    entries.iter().map(|entry| entry.id.as_str()).collect()
}

#[tokio::test]
async fn entries_are_read_and_bad_ones_skipped() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let all = store.entry_list(&EntryFilter::default(), None, Consistency::Current).await.unwrap().items;
    assert_eq!(names(&all), ["tokyo", "bare", "last"]);
    let tokyo = &all[0];
    assert_eq!(
        tokyo.selectors.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["docker:label:a:b", "unix:uid:0"]
    );
    assert_eq!(tokyo.dns_names.iter().map(|name| &**name).collect::<Vec<_>>(), ["z.test", "a.test"]);
    assert_eq!(*tokyo.federates_with, [TrustDomain::parse("foreign.test").unwrap()]);
    assert_eq!((tokyo.x509_svid_ttl, tokyo.jwt_svid_ttl, tokyo.revision), (60, 61, 3));
    assert!(tokyo.admin && tokyo.downstream && !tokyo.store_svid);
    let both = Attributes { disable_x509_svid_prefetch: true, jwt_svid_include_jti: true };
    assert_eq!((tokyo.attributes, all[1].attributes, all[2].attributes), (Some(both), None, None));
    assert_eq!(tokyo.created_at, THEN, "rounds down, and knows the time zone");
    assert_eq!(all[1].created_at.unix(), THEN.unix() + 1, "rounds up");
    // A page of nothing but a row that cannot be read is not the end.
    let page = |token: &str| Paging { token: token.into(), size: 1 };
    let next =
        store.entry_list(&EntryFilter::default(), Some(&page("2")), Consistency::Current).await.unwrap();
    assert_eq!((names(&next.items), next.next.as_str()), (vec!["last"], "4"));
    assert_eq!(store.entry_fetch(&EntryId::from_stored("unreadable")).await, Ok(None));
}

#[tokio::test]
async fn nodes_are_compared_by_time_and_not_by_text() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let id = |name: &str| SpiffeId::parse(&format!("spiffe://example.org/spire/agent/{name}")).unwrap();
    let nodes = store
        .node_list(&NodeFilter { fetch_selectors: true, ..NodeFilter::default() }, None)
        .await
        .unwrap()
        .items;
    assert_eq!(nodes.iter().map(|node| node.spiffe_id.clone()).collect::<Vec<_>>(), [id("a"), id("b")]);
    assert_eq!((nodes[0].expires_at, nodes[0].can_reattest, &*nodes[0].agent_version), (THEN, false, ""));
    assert_eq!(nodes[1].new_expires_at.map(Timestamp::unix), Some(1_700_003_601));
    assert_eq!((nodes[0].selectors.len(), nodes[1].selectors.len()), (0, 1));
    let valid = async |at: i64| {
        let filter = NodeFilter { valid_at: Some(Timestamp::from_unix(at)), ..NodeFilter::default() };
        store.node_list(&filter, None).await.unwrap().items.len()
    };
    // The text of the first has a later hour than its time.
    assert_eq!(
        (valid(THEN.unix()).await, valid(THEN.unix() + 1).await, valid(THEN.unix() + 2).await),
        (2, 1, 0)
    );
    let pruned = store.nodes_prune(Timestamp::from_unix(THEN.unix() + 1), true, 10).await.unwrap();
    assert_eq!(pruned.into_iter().map(|written| written.value).collect::<Vec<_>>(), [id("a")]);
}

#[tokio::test]
async fn the_rest_is_read_and_bad_rows_skipped() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let bundles = store.bundle_list(None).await.unwrap().items;
    assert_eq!(
        bundles.iter().map(|b| b.trust_domain.name()).collect::<Vec<_>>(),
        ["example.org", "foreign.test"]
    );
    assert_eq!((bundles[0].sequence_number, bundles[0].refresh_hint.as_secs()), (5, 300));
    assert_eq!(
        (bundles[0].jwt_authorities[0].kid.as_str(), bundles[0].jwt_authorities[0].not_after),
        ("a", THEN)
    );
    let federation = store.federation_list(None).await.unwrap().items;
    assert_eq!(federation.len(), 2);
    assert!(matches!(&federation[0].endpoint, BundleEndpoint::HttpsSpiffe(id) if id.path() == "/endpoint"));
    assert_eq!((federation[0].bundle.is_some(), federation[1].bundle.is_some()), (true, false));
    let events = store.node_events(1, 1).await.unwrap();
    assert_eq!(events.iter().map(|event| event.id).collect::<Vec<_>>(), [3], "2 is not an id");
    store.events_prune(Timestamp::from_unix(THEN.unix() + 1)).await.unwrap();
    assert_eq!(store.node_events(0, 10).await.unwrap().len(), 1);
    assert_eq!(store.join_token_fetch("token").await.unwrap().unwrap().expires_at, THEN);
    assert!(store.journal_fetch("aa").await.unwrap().is_some());
    assert!(store.journal_fetch("bb").await.is_err());
    store.journals_prune(THEN).await.unwrap();
    assert_eq!(store.journal_fetch("aa").await, Ok(None));
    assert!(store.journal_fetch("bb").await.is_err(), "what cannot be read is kept");
}
