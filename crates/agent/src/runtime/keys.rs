//! The agent's own keys: which one signs, and what it asks to have signed.

use std::sync::Arc;

use spire_core::pki::{
    Certificate, CsrTemplate, DistinguishedName, KeyType, LocalKey, PrivateKeyError, PublicKey,
};
use spire_core::spiffe::SpiffeId;
use spire_ports::observe::GrpcCode;
use spire_ports::plugins::{self, Key, KeyManager};

/// The two keys that take turns (pkg/agent/plugin/keymanager/svidkeymanager.go).
const KEY_A: &str = "agent-svid-A";
const KEY_B: &str = "agent-svid-B";

/// Why a certificate signing request could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CsrError {
    /// The KeyManager failed.
    #[error(transparent)]
    KeyManager(#[from] plugins::Error),
    /// A key could not be made or could not sign.
    #[error("{0}")]
    Local(#[from] PrivateKeyError),
    /// The request could not be encoded.
    #[error("{0}")]
    Encoding(String),
}

impl GrpcCode for CsrError {
    fn grpc_code(&self) -> &'static str {
        match self {
            Self::KeyManager(error) => error.grpc_code(),
            Self::Local(_) | Self::Encoding(_) => "Unknown",
        }
    }
}

/// The agent's SVID keys in its KeyManager.
#[derive(Clone)]
pub struct SvidKeys(Arc<dyn KeyManager>);

impl SvidKeys {
    /// In this KeyManager.
    pub fn new(key_manager: Arc<dyn KeyManager>) -> Self {
        Self(key_manager)
    }

    /// The KeyManager's name.
    pub fn plugin_name(&self) -> &str {
        self.0.name()
    }

    /// The keys that are there: none, one or both.
    ///
    /// # Errors
    /// The KeyManager's.
    pub async fn existing(&self) -> plugins::Result<Vec<Arc<dyn Key>>> {
        let keys = self.0.keys().await?;
        Ok(keys.into_iter().filter(|key| key.id() == KEY_A || key.id() == KEY_B).collect())
    }

    /// A new key in the place that `current` does not have.
    ///
    /// # Errors
    /// The KeyManager's.
    pub async fn next(&self, current: Option<&dyn Key>) -> plugins::Result<Arc<dyn Key>> {
        let id = if current.is_some_and(|key| key.id() == KEY_A) { KEY_B } else { KEY_A };
        self.0.generate_key(id, KeyType::EcP256).await
    }
}

/// The key among these that belongs to the certificate.
pub(super) fn key_of(keys: &[Arc<dyn Key>], certificate: &Certificate) -> Option<Arc<dyn Key>> {
    keys.iter().find(|key| key.public_key().spki() == certificate.spki_der()).cloned()
}

/// A request for the agent's own SVID: its ID is decided by attestation, so it asks for none
/// (pkg/common/util: MakeCSRWithoutURISAN).
///
/// # Errors
/// [`CsrError`] when the key cannot sign.
pub(super) async fn agent_csr(key: &dyn Key) -> Result<Vec<u8>, CsrError> {
    let unsigned = request(key.public_key(), &[])?;
    let signature = key.sign(unsigned.algorithm(), unsigned.bytes()).await?;
    Ok(unsigned.assemble(&signature))
}

/// A request for a workload's SVID.
///
/// # Errors
/// [`CsrError`] when the key cannot sign.
pub(super) fn workload_csr(key: &LocalKey, id: &SpiffeId) -> Result<Vec<u8>, CsrError> {
    let unsigned = request(key.public_key(), &[id.as_str()])?;
    let signature = key.sign(unsigned.algorithm(), unsigned.bytes())?;
    Ok(unsigned.assemble(&signature))
}

fn request(public_key: &PublicKey, uris: &[&str]) -> Result<spire_core::pki::ToBeSigned, CsrError> {
    let subject =
        DistinguishedName::default_svid().encode().map_err(|e| CsrError::Encoding(e.to_string()))?;
    let template = CsrTemplate { subject: &subject, public_key, dns_names: &[], uris, extra_extensions: &[] };
    template.to_be_signed().map_err(|e| CsrError::Encoding(e.to_string()))
}
