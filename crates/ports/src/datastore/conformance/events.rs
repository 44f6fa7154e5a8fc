//! Cases of [`Events`](crate::datastore::Events).

use std::sync::Arc;

use spire_core::model::{EntryMask, NodeUpdate};
use spire_core::time::Timestamp;

use super::{entry, entry_id, id, node, selectors};
use crate::datastore::{Creation, DataStore, Event};

/// Creation, update, deletion and pruning each append one event, whose id the write returns.
pub async fn every_write_appends_one(store: Arc<dyn DataStore>) {
    assert_eq!(store.latest_events().await, Ok((0, 0)));
    let mut wanted = entry("e", "/p", "/w", &["a:1"]);
    wanted.expires_at = Timestamp::from_unix(5);
    let mut events = Vec::new();
    match store.entries_create(vec![wanted.clone()]).await.unwrap().remove(0).unwrap() {
        Creation::Created(written) => events.push(written.event),
        Creation::Similar(_) => panic!("there is none"),
    }
    // A similar entry writes nothing.
    store.entries_create(vec![wanted.clone()]).await.unwrap();
    let update = store.entries_update(vec![(wanted.clone(), EntryMask::ALL)]).await.unwrap().remove(0);
    events.push(update.unwrap().event);
    events.push(store.entries_delete(&[entry_id("e")]).await.unwrap().remove(0).unwrap().event);
    store.entries_create(vec![wanted]).await.unwrap();
    events.push(store.latest_events().await.unwrap().0);
    events.push(store.entries_prune(Timestamp::from_unix(6), 10).await.unwrap().remove(0).event);
    let logged: Vec<_> = events.iter().map(|id| Event { id: *id, key: entry_id("e") }).collect();
    assert_eq!(store.entry_events(0, 100).await, Ok(logged));

    let agent = node("/spire/agent/a");
    let mut events = vec![
        store.node_attest(&agent).await.unwrap().event,
        store.node_update(&agent.spiffe_id, &NodeUpdate::default()).await.unwrap().event,
        store.node_selectors_set(&agent.spiffe_id, &selectors(&["x:1"])).await.unwrap(),
        store.node_delete(&agent.spiffe_id).await.unwrap().event,
        store.node_attest(&agent).await.unwrap().event,
    ];
    let far = Timestamp::from_unix(agent.expires_at.unix() + 1);
    events.push(store.nodes_prune(far, true, 10).await.unwrap().remove(0).event);
    let logged: Vec<_> = events.iter().map(|id| Event { id: *id, key: agent.spiffe_id.clone() }).collect();
    assert_eq!(store.node_events(0, 100).await, Ok(logged));
    assert_eq!(store.latest_events().await, Ok((5, 6)));
}

/// Oldest first, after an id, no more than asked for; and one by one.
pub async fn reads_are_bounded_and_ordered(store: Arc<dyn DataStore>) {
    let batch = (0..10).map(|i| entry(&format!("e{i}"), "/p", &format!("/w{i}"), &["a:1"])).collect();
    store.entries_create(batch).await.unwrap();
    for i in 0..3 {
        store.node_selectors_set(&id(&format!("/spire/agent/{i}")), &selectors(&[])).await.unwrap();
    }
    let all = store.entry_events(0, 100).await.unwrap();
    assert_eq!(all.len(), 10);
    assert!(all.windows(2).all(|pair| pair[0].id < pair[1].id));
    assert_eq!(store.entry_events(all[3].id, 4).await.unwrap(), all[4..8]);
    assert_eq!(store.entry_events(all[9].id, 4).await, Ok(Vec::new()));
    let ids = [all[9].id + 1, all[7].id, all[2].id];
    assert_eq!(store.entry_events_among(&ids).await, Ok(vec![all[2].clone(), all[7].clone()]));
    assert_eq!(store.entry_events_among(&[]).await, Ok(Vec::new()));
    let nodes = store.node_events(0, 2).await.unwrap();
    assert_eq!(
        nodes.iter().map(|e| e.key.clone()).collect::<Vec<_>>(),
        [id("/spire/agent/0"), id("/spire/agent/1")]
    );
    assert_eq!(store.node_events_among(&[nodes[1].id, 99]).await.unwrap(), nodes[1..]);
    assert_eq!(store.latest_events().await, Ok((all[9].id, 3)));
}

/// A reader that starts after a pruning must not take old numbers for new ones.
pub async fn pruned_ids_are_not_reused(store: Arc<dyn DataStore>) {
    let agent = id("/spire/agent/a");
    let first = store.node_selectors_set(&agent, &selectors(&[])).await.unwrap();
    store.events_prune(Timestamp::from_unix(1_000_000_000)).await.unwrap();
    assert_eq!(store.node_events(0, 10).await.unwrap().len(), 1);
    let tomorrow =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() + 86_400;
    store.events_prune(Timestamp::from_unix(i64::try_from(tomorrow).unwrap())).await.unwrap();
    assert_eq!(store.node_events(0, 10).await, Ok(Vec::new()));
    assert_eq!(store.latest_events().await, Ok((0, first)));
    assert!(store.node_selectors_set(&agent, &selectors(&[])).await.unwrap() > first);
}
