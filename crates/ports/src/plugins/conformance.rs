//! What every key manager must do, as functions that its tests call. They panic where a key manager does not do it.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use spire_core::pki::{KeyType, SignatureAlgorithm};

use super::{ErrorKind, Key, KeyManager, PluginType};

const MESSAGE: &[u8] = b"what is to be signed";

/// The algorithms that a key of this type must sign with: for certificates and tokens, and for TLS.
fn algorithms(key_type: KeyType) -> &'static [SignatureAlgorithm] {
    use SignatureAlgorithm as A;
    match key_type {
        KeyType::EcP256 => &[A::EcdsaSha256],
        KeyType::EcP384 => &[A::EcdsaSha384],
        KeyType::Rsa2048 | KeyType::Rsa4096 => &[
            A::RsaPkcs1Sha256,
            A::RsaPkcs1Sha384,
            A::RsaPkcs1Sha512,
            A::RsaPssSha256,
            A::RsaPssSha384,
            A::RsaPssSha512,
        ],
    }
}

async fn listed(keys: &dyn KeyManager) -> BTreeMap<String, Bytes> {
    let all = keys.keys().await.expect("keys");
    all.iter().map(|key| (key.id().to_owned(), key.public_key().spki().clone())).collect()
}

async fn check_signatures(key: &dyn Key, key_type: KeyType) {
    assert_eq!(key.public_key().key_type(), Some(key_type));
    for algorithm in algorithms(key_type) {
        let signature = key.sign(*algorithm, MESSAGE).await.expect("sign");
        key.public_key().verify(*algorithm, MESSAGE, &signature).expect("the signature verifies");
        key.public_key().verify(*algorithm, b"something else", &signature).expect_err("of another message");
    }
    let unfit = match key_type {
        KeyType::EcP256 | KeyType::EcP384 => SignatureAlgorithm::RsaPkcs1Sha256,
        KeyType::Rsa2048 | KeyType::Rsa4096 => SignatureAlgorithm::EcdsaSha256,
    };
    key.sign(unfit, MESSAGE).await.expect_err("an algorithm of another family");
}

/// The suite of [`KeyManager`]. `open` gives the key manager, empty at first; when `durable`, each further
/// call opens what the last one stored.
///
/// # Panics
/// Where the adapter does something else than the port says.
pub async fn key_manager<F, Fut>(open: F, durable: bool)
where
    F: Fn() -> Fut,
    Fut: Future<Output = Arc<dyn KeyManager>>,
{
    let keys = open().await;
    assert!(listed(&*keys).await.is_empty());
    assert!(keys.key("x509-CA-A").await.expect("key").is_none());

    let refused = keys.generate_key("", KeyType::EcP256).await.err().expect("an empty id is refused");
    assert_eq!(refused.kind, ErrorKind::InvalidArgument);
    assert_eq!(refused.plugin, (PluginType::KeyManager, keys.name().to_owned()));

    for key_type in KeyType::ALL {
        let key = keys.generate_key(key_type.as_str(), key_type).await.expect("generate");
        assert_eq!(key.id(), key_type.as_str());
        check_signatures(&*key, key_type).await;
        let found = keys.key(key_type.as_str()).await.expect("key").expect("the key just made");
        assert_eq!(found.public_key(), key.public_key());
    }
    assert_eq!(listed(&*keys).await.len(), KeyType::ALL.len());

    // Replacing gives another key, and who holds the old one can still use it.
    let old = keys.key("ec-p256").await.expect("key").expect("made above");
    let new = keys.generate_key("ec-p256", KeyType::EcP256).await.expect("generate");
    assert_ne!(old.public_key(), new.public_key());
    check_signatures(&*old, KeyType::EcP256).await;
    check_signatures(&*new, KeyType::EcP256).await;
    let before = listed(&*keys).await;
    assert_eq!(before.len(), KeyType::ALL.len());
    assert_eq!(before["ec-p256"], new.public_key().spki());

    // Many at once: none is lost.
    let ids: Vec<String> = (0..8).map(|i| format!("parallel-{i}")).collect();
    let mut made = Vec::new();
    for id in &ids {
        let (keys, id) = (Arc::clone(&keys), id.clone());
        made.push(tokio::spawn(async move { keys.generate_key(&id, KeyType::EcP256).await.map(|_| ()) }));
    }
    for task in made {
        task.await.expect("join").expect("generate");
    }
    let before = listed(&*keys).await;
    assert!(ids.iter().all(|id| before.contains_key(id)));

    drop((keys, old, new));
    let keys = open().await;
    if durable {
        assert_eq!(listed(&*keys).await, before);
        for key_type in KeyType::ALL {
            let key = keys.key(key_type.as_str()).await.expect("key").expect("stored");
            check_signatures(&*key, key_type).await;
        }
    }
}
