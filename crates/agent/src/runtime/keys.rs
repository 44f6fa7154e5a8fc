//! The agent's own keys: which one signs, and TLS with a key that never leaves its KeyManager.

use std::fmt;
use std::sync::Arc;

use futures_util::FutureExt;
use rustls::pki_types::SubjectPublicKeyInfoDer;
use rustls::sign::{Signer, SigningKey};
use rustls::{SignatureAlgorithm as TlsFamily, SignatureScheme};
use spire_core::pki::{
    Certificate, CsrTemplate, DistinguishedName, KeyType, LocalKey, PrivateKeyError, PublicKey,
    SignatureAlgorithm,
};
use spire_core::spiffe::SpiffeId;
use spire_ports::plugins::{self, Key, KeyManager};
use tokio::runtime::{Handle, RuntimeFlavor};

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

/// A KeyManager's key as rustls wants it, so that TLS needs no copy of the private key.
pub(super) struct TlsKey(Arc<dyn Key>);

impl TlsKey {
    /// Signs handshakes with this key.
    pub(super) fn signer(key: Arc<dyn Key>) -> Arc<dyn SigningKey> {
        Arc::new(Self(key))
    }
}

impl fmt::Debug for TlsKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TlsKey").field(&self.0.id()).finish()
    }
}

impl SigningKey for TlsKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        let able = schemes(self.0.public_key().key_type()?);
        let (scheme, algorithm) = able.iter().find(|(scheme, _)| offered.contains(scheme))?;
        Some(Box::new(TlsSigner { key: Arc::clone(&self.0), scheme: *scheme, algorithm: *algorithm }))
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        Some(SubjectPublicKeyInfoDer::from(&self.0.public_key().spki()[..]))
    }

    fn algorithm(&self) -> TlsFamily {
        match self.0.public_key().key_type() {
            Some(KeyType::Rsa2048 | KeyType::Rsa4096) => TlsFamily::RSA,
            _ => TlsFamily::ECDSA,
        }
    }
}

/// The schemes of a key type, best first.
fn schemes(key_type: KeyType) -> &'static [(SignatureScheme, SignatureAlgorithm)] {
    match key_type {
        KeyType::EcP256 => &[(SignatureScheme::ECDSA_NISTP256_SHA256, SignatureAlgorithm::EcdsaSha256)],
        KeyType::EcP384 => &[(SignatureScheme::ECDSA_NISTP384_SHA384, SignatureAlgorithm::EcdsaSha384)],
        KeyType::Rsa2048 | KeyType::Rsa4096 => &[
            (SignatureScheme::RSA_PSS_SHA256, SignatureAlgorithm::RsaPssSha256),
            (SignatureScheme::RSA_PKCS1_SHA256, SignatureAlgorithm::RsaPkcs1Sha256),
        ],
    }
}

struct TlsSigner {
    key: Arc<dyn Key>,
    scheme: SignatureScheme,
    algorithm: SignatureAlgorithm,
}

impl fmt::Debug for TlsSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsSigner").field("scheme", &self.scheme).finish_non_exhaustive()
    }
}

impl Signer for TlsSigner {
    /// rustls signs synchronously. A built-in KeyManager answers at once; for one in another process this
    /// thread waits while the runtime moves other tasks elsewhere.
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        let failed = |error: plugins::Error| rustls::Error::General(error.to_string());
        let mut signature = self.key.sign(self.algorithm, message);
        if let Some(done) = (&mut signature).now_or_never() {
            return done.map_err(failed);
        }
        match Handle::try_current() {
            Ok(handle) if handle.runtime_flavor() == RuntimeFlavor::MultiThread => {
                tokio::task::block_in_place(|| handle.block_on(signature)).map_err(failed)
            }
            _ => Err(rustls::Error::General("the key manager needs a multi-threaded runtime".to_owned())),
        }
    }

    fn scheme(&self) -> SignatureScheme {
        self.scheme
    }
}
