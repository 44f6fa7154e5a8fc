//! TLS with a key that never leaves its KeyManager.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::FutureExt;
use rustls::pki_types::SubjectPublicKeyInfoDer;
use rustls::sign::{Signer, SigningKey};
use rustls::{SignatureAlgorithm as TlsFamily, SignatureScheme};
use spire_core::pki::{KeyType, SignatureAlgorithm};
use spire_ports::plugins::{self, Key};
use tokio::runtime::{Handle, RuntimeFlavor};

/// Handshakes that wait for one key at a time. Each holds a thread while another process signs; more than this means
/// that the KeyManager hangs or that somebody floods us.
const WAITING_MAX: usize = 64;

/// Signs handshakes with this key, so that TLS needs no copy of the private key.
pub fn key_signer(key: Arc<dyn Key>) -> Arc<dyn SigningKey> {
    Arc::new(TlsKey { key, waiting: Arc::default() })
}

struct TlsKey {
    key: Arc<dyn Key>,
    waiting: Arc<AtomicUsize>,
}

impl fmt::Debug for TlsKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TlsKey").field(&self.key.id()).finish()
    }
}

impl SigningKey for TlsKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        let able = schemes(self.key.public_key().key_type()?);
        let (scheme, algorithm) = *able.iter().find(|(scheme, _)| offered.contains(scheme))?;
        let (key, waiting) = (Arc::clone(&self.key), Arc::clone(&self.waiting));
        Some(Box::new(TlsSigner { key, waiting, scheme, algorithm }))
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        Some(SubjectPublicKeyInfoDer::from(&self.key.public_key().spki()[..]))
    }

    fn algorithm(&self) -> TlsFamily {
        match self.key.public_key().key_type() {
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
    waiting: Arc<AtomicUsize>,
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
        let handle = match Handle::try_current() {
            Ok(handle) if handle.runtime_flavor() == RuntimeFlavor::MultiThread => handle,
            _ => {
                let text = "the key manager needs a multi-threaded runtime";
                return Err(rustls::Error::General(text.to_owned()));
            }
        };
        let _place = Place::take(&self.waiting).ok_or_else(|| {
            rustls::Error::General("too many handshakes wait for the key manager".to_owned())
        })?;
        tokio::task::block_in_place(|| handle.block_on(signature)).map_err(failed)
    }

    fn scheme(&self) -> SignatureScheme {
        self.scheme
    }
}

/// One of [`WAITING_MAX`] waiting handshakes.
struct Place<'a>(&'a AtomicUsize);

impl<'a> Place<'a> {
    fn take(waiting: &'a AtomicUsize) -> Option<Self> {
        if waiting.fetch_add(1, Ordering::AcqRel) >= WAITING_MAX {
            waiting.fetch_sub(1, Ordering::AcqRel);
            return None;
        }
        Some(Self(waiting))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}
