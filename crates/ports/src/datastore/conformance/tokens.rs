//! Cases of [`JoinTokens`](crate::datastore::JoinTokens).

use std::sync::Arc;

use spire_core::model::JoinToken;
use spire_core::time::Timestamp;

use crate::datastore::{DataStore, Error};

fn token(text: &str, expiry: i64) -> JoinToken {
    JoinToken { token: text.into(), expires_at: Timestamp::from_unix(expiry) }
}

/// And is unique until then.
pub async fn a_token_is_consumed_once(store: Arc<dyn DataStore>) {
    assert_eq!(store.join_token_consume("t").await, Ok(None));
    store.join_token_create(&token("t", 5)).await.unwrap();
    let again = store.join_token_create(&token("t", 6)).await;
    assert!(matches!(again, Err(Error::AlreadyExists(_))), "{again:?}");
    assert_eq!(store.join_token_consume("T").await, Ok(None));
    assert_eq!(store.join_token_consume("t").await, Ok(Some(token("t", 5))));
    assert_eq!(store.join_token_consume("t").await, Ok(None));
}

/// One of them gets it.
pub async fn fifty_callers_share_one_token(store: Arc<dyn DataStore>) {
    for round in 0..5 {
        let text = format!("t{round}");
        store.join_token_create(&token(&text, 5)).await.unwrap();
        let tasks: Vec<_> = (0..50)
            .map(|_| {
                let (store, text) = (store.clone(), text.clone());
                tokio::spawn(async move { store.join_token_consume(&text).await.unwrap() })
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
        assert_eq!(store.join_token_consume(text).await.unwrap().is_some(), there, "{text}");
    }
}
