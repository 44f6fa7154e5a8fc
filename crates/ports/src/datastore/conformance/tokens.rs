//! Cases of [`JoinTokens`](crate::datastore::JoinTokens).

use std::sync::Arc;

use spire_core::model::{JoinToken, Node};
use spire_core::time::Timestamp;

use super::{node, selectors};
use crate::datastore::{DataStore, Error};

fn token(text: &str, expiry: i64) -> JoinToken {
    JoinToken { token: text.into(), expires_at: Timestamp::from_unix(expiry) }
}

/// And is unique until then.
pub async fn a_token_is_there_until_it_is_deleted(store: Arc<dyn DataStore>) {
    assert_eq!(store.join_token_fetch("t").await, Ok(None));
    store.join_token_create(&token("t", 5)).await.unwrap();
    let again = store.join_token_create(&token("t", 6)).await;
    assert!(matches!(again, Err(Error::AlreadyExists(_))), "{again:?}");
    assert_eq!(store.join_token_fetch("T").await, Ok(None));
    assert_eq!(store.join_token_fetch("t").await, Ok(Some(token("t", 5))));
    assert_eq!(store.join_token_delete("T").await, Ok(false));
    assert_eq!(store.join_token_delete("t").await, Ok(true));
    assert_eq!(store.join_token_delete("t").await, Ok(false));
    assert_eq!(store.join_token_fetch("t").await, Ok(None));
}

/// The token goes as the node comes; without it nothing is written.
pub async fn a_token_admits_one_node(store: Arc<dyn DataStore>) {
    let mut first = node("/spire/agent/join_token/t");
    first.selectors = selectors(&["x:1"]);
    store.join_token_create(&token("t", 5)).await.unwrap();
    store.join_token_create(&token("other", 5)).await.unwrap();
    assert_eq!(store.node_attest_by_token(&first, "T").await, Ok(None));
    assert_eq!(store.node_fetch(&first.spiffe_id).await, Ok(None));
    let (_, before) = store.latest_events().await.unwrap();
    let written = store.node_attest_by_token(&first, "t").await.unwrap().unwrap();
    assert_eq!(written.value, first);
    assert_eq!(
        store.node_events(before, 10).await.unwrap().iter().map(|e| e.id).collect::<Vec<_>>(),
        [written.event]
    );
    assert_eq!(store.node_fetch(&first.spiffe_id).await, Ok(Some(first.clone())));
    assert_eq!(store.join_token_fetch("t").await, Ok(None));
    assert_eq!(store.join_token_fetch("other").await, Ok(Some(token("other", 5))));

    let second = Node { serial_number: "2".into(), ..first.clone() };
    assert_eq!(store.node_attest_by_token(&second, "t").await, Ok(None));
    assert_eq!(store.node_fetch(&first.spiffe_id).await, Ok(Some(first)));
    assert_eq!(store.latest_events().await.unwrap().1, written.event);
}

/// One of them gets it.
pub async fn fifty_callers_share_one_token(store: Arc<dyn DataStore>) {
    for round in 0..5 {
        let text = format!("t{round}");
        store.join_token_create(&token(&text, 5)).await.unwrap();
        let tasks: Vec<_> = (0..50)
            .map(|n| {
                let (store, text) = (store.clone(), text.clone());
                tokio::spawn(async move {
                    let agent =
                        Node { serial_number: n.to_string().into(), ..node("/spire/agent/join_token/t") };
                    store.node_attest_by_token(&agent, &text).await.unwrap()
                })
            })
            .collect();
        let mut got = 0;
        for task in tasks {
            got += u32::from(task.await.unwrap().is_some());
        }
        assert_eq!(got, 1);
    }
}

/// Those that expire at that very time stay.
pub async fn expired_tokens_are_pruned(store: Arc<dyn DataStore>) {
    for (text, expiry) in [("a", 9), ("b", 10), ("c", 11)] {
        store.join_token_create(&token(text, expiry)).await.unwrap();
    }
    store.join_tokens_prune(Timestamp::from_unix(10)).await.unwrap();
    for (text, there) in [("a", false), ("b", true), ("c", true)] {
        assert_eq!(store.join_token_fetch(text).await.unwrap().is_some(), there, "{text}");
    }
}
