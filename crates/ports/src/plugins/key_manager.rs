//! KeyManager: where private keys live. They never leave it; callers get signatures.

use std::sync::Arc;

use async_trait::async_trait;
use spire_core::pki::{KeyType, PublicKey, SignatureAlgorithm};

use super::Result;
use super::catalog::Configuration;

/// Keeps private keys by id and signs with them. Both server and agent have exactly one.
#[async_trait]
pub trait KeyManager: Send + Sync {
    /// The plugin's name, such as `disk`.
    fn name(&self) -> &str;
    /// Makes a key under the id, replacing the one that was there. It is stored when this returns.
    async fn generate_key(&self, id: &str, key_type: KeyType) -> Result<Arc<dyn Key>>;
    /// The key of that id, if there is one.
    async fn key(&self, id: &str) -> Result<Option<Arc<dyn Key>>>;
    /// All keys.
    async fn keys(&self) -> Result<Vec<Arc<dyn Key>>>;
    /// Takes a new configuration while it keeps its keys. `None`, as here, where one that is made from it can take its
    /// place. A configuration that is refused changes nothing.
    async fn reconfigure(&self, _: &Configuration) -> Option<Result<()>> {
        None
    }
}

/// One key. It keeps working after its id was given to another key, until it is dropped.
#[async_trait]
pub trait Key: Send + Sync {
    /// Its id, such as `x509-CA-A`.
    fn id(&self) -> &str;
    /// Its public side.
    fn public_key(&self) -> &PublicKey;
    /// Signs the message, which is hashed as the algorithm says. ECDSA signatures come in ASN.1 DER.
    async fn sign(&self, algorithm: SignatureAlgorithm, message: &[u8]) -> Result<Vec<u8>>;
}
