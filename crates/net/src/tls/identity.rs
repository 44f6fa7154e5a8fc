//! The certificate and key that we show, which change while connections come and go.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use rustls::client::ResolvesClientCert;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::{CertifiedKey, SigningKey};
use rustls::{InconsistentKeys, SignatureScheme};
use spire_core::pki::Certificate;

/// Our certificate chain and private key, empty at first. A change counts from the next handshake on;
/// readers never lock.
#[derive(Default)]
pub struct Identity {
    current: ArcSwapOption<CertifiedKey>,
}

/// Why a certificate and key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// There is no certificate.
    #[error("no certificates found")]
    Empty,
    /// The key cannot be used or does not belong to the certificate.
    #[error("private key: {0}")]
    Key(#[from] rustls::Error),
}

impl Identity {
    /// An empty one: a server with it refuses handshakes, a client with it shows no certificate.
    pub fn empty() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Takes a chain, leaf first, and the leaf's private key in PKCS#8 DER, in memory as SPIRE keeps the
    /// server's and the agent's. The previous pair stays in use if this one does not match.
    pub fn replace(&self, chain: &[Certificate], pkcs8: &[u8]) -> Result<(), IdentityError> {
        if chain.is_empty() {
            return Err(IdentityError::Empty);
        }
        let key = any_supported_type(&PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pkcs8)))?;
        let chain = chain.iter().map(|c| CertificateDer::from(c.der().to_vec())).collect();
        let certified = CertifiedKey::new(chain, key);
        certified.keys_match()?;
        self.current.store(Some(Arc::new(certified)));
        Ok(())
    }

    /// Takes a chain, leaf first, and what signs for the leaf: for a key that stays with a KeyManager. The
    /// previous pair stays in use if the key says that it does not match.
    pub fn replace_signer(
        &self,
        chain: &[Certificate],
        key: Arc<dyn SigningKey>,
    ) -> Result<(), IdentityError> {
        if chain.is_empty() {
            return Err(IdentityError::Empty);
        }
        let chain = chain.iter().map(|c| CertificateDer::from(c.der().to_vec())).collect();
        let certified = CertifiedKey::new(chain, key);
        match certified.keys_match() {
            Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => {}
            Err(error) => return Err(error.into()),
        }
        self.current.store(Some(Arc::new(certified)));
        Ok(())
    }

    /// Shows nothing from now on.
    pub fn clear(&self) {
        self.current.store(None);
    }

    /// Whether there is something to show.
    pub fn is_empty(&self) -> bool {
        self.current.load().is_none()
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("is_empty", &self.is_empty()).finish_non_exhaustive()
    }
}

impl ResolvesServerCert for Identity {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.current.load_full()
    }
}

impl ResolvesClientCert for Identity {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.current.load_full()
    }

    fn has_certs(&self) -> bool {
        !self.is_empty()
    }
}
