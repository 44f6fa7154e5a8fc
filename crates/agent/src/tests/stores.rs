//! SVIDs that go to stores.

use async_trait::async_trait;
use spire_ports::plugins::{Result, StoredSvid, SvidStore};
use tokio::sync::mpsc;

use super::*;

/// What a store was asked.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    Put { id: String, metadata: Vec<String>, federated: Vec<String> },
    Delete(Vec<String>),
}

/// A store that remembers what it was asked.
struct Recorder(mpsc::Sender<Asked>);

#[async_trait]
impl SvidStore for Recorder {
    fn name(&self) -> &str {
        "test"
    }

    async fn put(&self, svid: &StoredSvid, metadata: &[String]) -> Result<()> {
        let leaf = Certificate::from_der(svid.chain[0].clone()).unwrap();
        let key = LocalKey::from_pkcs8(&svid.private_key).unwrap();
        assert_eq!(leaf.spki_der(), &key.public_key().spki()[..], "the key is the certificate's");
        assert_eq!(leaf.not_after(), svid.expires_at);
        assert!(!svid.bundle.is_empty());
        let id = leaf.spiffe_id().unwrap().to_string();
        assert_eq!(id, svid.spiffe_id.to_string());
        let federated = svid.federated_bundles.iter().map(|(domain, _)| domain.to_string()).collect();
        self.0.try_send(Asked::Put { id, metadata: metadata.to_vec(), federated }).unwrap();
        Ok(())
    }

    async fn delete(&self, metadata: &[String]) -> Result<()> {
        self.0.try_send(Asked::Delete(metadata.to_vec())).unwrap();
        Ok(())
    }
}

fn put(metadata: &str) -> Asked {
    let id = "spiffe://test.org/stored".to_owned();
    Asked::Put { id, metadata: vec![metadata.to_owned()], federated: Vec::new() }
}

fn deleted(metadata: &str) -> Asked {
    Asked::Delete(vec![metadata.to_owned()])
}

#[tokio::test]
async fn svids_are_put_moved_and_deleted_with_their_entries() {
    let server = FakeServer::start().await;
    let stored = |value: &str, revision| types::Entry {
        store_svid: true,
        revision_number: revision,
        ..entry("stored", value)
    };
    server.change(|state| state.entries = vec![stored("one", 0), entry("web", "two")]);
    let (sender, mut asked) = mpsc::channel(16);
    let with_store = Deps { svid_stores: vec![Arc::new(Recorder(sender))], ..deps(&["one", "two"]) };
    let mut running = Running::start(&server, with_store, |_| ()).await;
    running.until(|event| *event == Event::PushConnected).await;
    assert_eq!(asked.recv().await, Some(put("one")));
    // The selectors match the workload, but the SVID is the store's.
    let (answer, _) = running.x509().await.unwrap();
    let ids: Vec<&str> = answer.svids.iter().map(|svid| svid.spiffe_id.as_str()).collect();
    assert_eq!(ids, ["spiffe://test.org/web"]);

    server.change(|state| state.entries[0] = stored("two", 1));
    assert_eq!(asked.recv().await, Some(deleted("one")));
    assert_eq!(asked.recv().await, Some(put("two")));

    // Another revision at the same place is put without a deletion.
    server.change(|state| state.entries[0] = stored("two", 2));
    assert_eq!(asked.recv().await, Some(put("two")));

    server.change(|state| drop(state.entries.remove(0)));
    assert_eq!(asked.recv().await, Some(deleted("two")));
    assert!(asked.try_recv().is_err(), "nothing else was asked");
}

/// A store that never answers.
struct Hanging(mpsc::Sender<()>);

#[async_trait]
impl SvidStore for Hanging {
    fn name(&self) -> &str {
        "hanging"
    }

    async fn put(&self, _: &StoredSvid, _: &[String]) -> Result<()> {
        self.0.try_send(()).unwrap();
        std::future::pending().await
    }

    async fn delete(&self, _: &[String]) -> Result<()> {
        std::future::pending().await
    }
}

#[tokio::test]
async fn a_store_that_hangs_delays_no_other() {
    let server = FakeServer::start().await;
    let stored = |id: &str, kind: &str| types::Entry {
        store_svid: true,
        selectors: vec![types::Selector { r#type: kind.to_owned(), value: "one".to_owned() }],
        ..entry(id, "")
    };
    server.change(|state| state.entries = vec![stored("slow", "hanging")]);
    let (sender, mut asked) = mpsc::channel(16);
    let (hung, mut hanging) = mpsc::channel(16);
    let stores: Vec<Arc<dyn SvidStore>> = vec![Arc::new(Hanging(hung)), Arc::new(Recorder(sender))];
    let with_stores = Deps { svid_stores: stores, ..deps(&["x"]) };
    let mut running = Running::start(&server, with_stores, |_| ()).await;
    running.until(|event| *event == Event::PushConnected).await;
    hanging.recv().await.unwrap();
    server.change(|state| state.entries.push(stored("stored", "test")));
    let brought = tokio::time::timeout(Duration::from_secs(10), asked.recv()).await;
    assert_eq!(brought.expect("at once"), Some(put("one")));
    running.stop().await;
}

#[tokio::test]
async fn an_svid_of_a_tainted_authority_is_replaced_once() {
    let server = FakeServer::start().await;
    server.change(|state| {
        state.entries = vec![types::Entry { store_svid: true, ..entry("stored", "one") }];
    });
    let (sender, mut asked) = mpsc::channel(16);
    let with_store = Deps { svid_stores: vec![Arc::new(Recorder(sender))], ..deps(&["x"]) };
    let mut running = Running::start(&server, with_store, |_| ()).await;
    running.until(|event| *event == Event::PushConnected).await;
    assert_eq!(asked.recv().await, Some(put("one")));
    server.change(|state| state.tainted = true);
    assert_eq!(asked.recv().await, Some(put("one")));
    // The server goes on with that authority; what it signs is kept.
    for _ in 0..3 {
        server.change(|_| ());
        running.until(|event| matches!(event, Event::Synced { .. })).await;
    }
    let again = tokio::time::timeout(Duration::from_millis(200), asked.recv()).await;
    assert!(again.is_err(), "{again:?}");
    running.stop().await;
}
