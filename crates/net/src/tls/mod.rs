//! TLS whose peers are SPIFFE IDs.
//!
//! - [`TlsIncoming`] accepts mutual TLS for a tonic server: handshakes run in tasks of their own, with a
//!   deadline and bounds, and each connection carries a [`TlsInfo`] with the [`VerifiedPeer`], if the
//!   client showed a certificate.
//! - [`TlsConnector`] dials for a tonic client; [`TlsClient`] says whom it trusts.
//! - [`Identity`] is what we show, and may change at any time; [`CertificateFiles`] follow files on disk, and
//!   [`key_signer`] uses a key that stays with its KeyManager.
//!
//! One crypto library, named explicitly; TLS 1.2 at least; no session tickets and no resumption, since
//! trust may change between two connections and each must be verified against the authorities of its
//! moment.

mod accept;
mod ahead;
mod client;
mod clients;
mod connect;
mod files;
mod identity;
mod key;
mod peer;
mod signatures;
mod sockets;
#[cfg(test)]
mod tests;
mod unix;
mod upgrade;
mod web;
mod web_proxy;

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{self, cipher_suite, kx_group};
use rustls::{SupportedCipherSuite, SupportedProtocolVersion};
use spire_core::pki::Certificate;
use spire_core::spiffe::{SpiffeId, TrustDomain};

pub use self::accept::{ClientAuth, ServerTls, TlsConnection, TlsIncoming, TlsInfo};
pub use self::client::{ServerTrust, TlsClient};
pub use self::clients::{ClientsError, LateTrust};
pub use self::connect::{DialError, GrpcStream, TlsConnector, UnixConnector, dial_error};
pub use self::files::{CertificateFiles, CertificateFilesError};
pub use self::identity::{Identity, IdentityError};
pub use self::key::key_signer;
pub use self::peer::{PeerError, VerifiedPeer};
pub use self::sockets::Dealer;
pub use self::unix::{TlsUnixConnection, TlsUnixConnector, TlsUnixIncoming, TlsUnixInfo};
pub use self::upgrade::{TlsVersions, UpgradeOptions};
pub use self::web_proxy::Proxies;

/// ALPN name of HTTP/2, which gRPC is.
pub(crate) const ALPN_H2: &[u8] = b"h2";

/// ALPN name of HTTP/1.1.
pub(crate) const ALPN_HTTP11: &[u8] = b"http/1.1";

/// ALPN name of an ACME authority that checks a challenge (RFC 8737, section 6.2).
pub(crate) const ALPN_ACME: &[u8] = b"acme-tls/1";

/// Gives the X.509 authorities in force, by trust domain. Asked at each handshake; must not block.
pub trait TrustSource: fmt::Debug + Send + Sync {
    /// The authorities of `trust_domain`, or `None` where there is no bundle.
    fn authorities(&self, trust_domain: &TrustDomain) -> Option<Arc<[Certificate]>>;
}

/// Which of the verified peers may connect.
#[derive(Debug, Clone)]
pub enum Authorize {
    /// Whoever an authority of a known trust domain vouches for.
    Any,
    /// This one.
    Exactly(SpiffeId),
    /// These.
    OneOf(HashSet<SpiffeId>),
    /// The members of a trust domain, and these (the server's `admin_ids` from federated trust domains).
    MemberOrOneOf {
        /// The trust domain.
        trust_domain: TrustDomain,
        /// Others.
        ids: HashSet<SpiffeId>,
    },
}

impl Authorize {
    /// The text is go-spiffe's (`spiffeid/match.go`) or SPIRE's (`pkg/server/endpoints/auth.go`).
    fn check(&self, id: &SpiffeId) -> Result<(), PeerError> {
        match self {
            Self::Any => Ok(()),
            Self::Exactly(expected) if expected == id => Ok(()),
            Self::OneOf(ids) if ids.contains(id) => Ok(()),
            Self::Exactly(_) | Self::OneOf(_) => Err(PeerError::UnexpectedId(id.clone())),
            Self::MemberOrOneOf { trust_domain, ids } => {
                if id.is_member_of(trust_domain) || ids.contains(id) {
                    Ok(())
                } else {
                    Err(PeerError::UnexpectedTrustDomain(id.clone()))
                }
            }
        }
    }
}

/// What is asked of all TLS connections beyond the defaults (SPIRE `pkg/common/tlspolicy`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TlsPolicy {
    /// Only key exchanges that resist quantum computers, hence TLS 1.3 (`require_pq_kem`).
    pub require_pq_kem: bool,
}

impl TlsPolicy {
    fn provider(self) -> Arc<CryptoProvider> {
        let mut provider = aws_lc_rs::default_provider();
        provider.cipher_suites = CIPHER_SUITES.to_vec();
        if self.require_pq_kem {
            provider.kx_groups = vec![kx_group::X25519MLKEM768, kx_group::SECP256R1MLKEM768];
        }
        Arc::new(provider)
    }

    fn versions(self) -> &'static [&'static SupportedProtocolVersion] {
        const TLS13: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];
        if self.require_pq_kem { TLS13 } else { rustls::DEFAULT_VERSIONS }
    }
}

/// In Go's order (crypto/tls, cipherSuitesPreferenceOrder), so that what is agreed upon is what SPIRE's servers and agents would
/// agree upon. AES-128 comes with SHA-256, for which processors have instructions; AES-256 with SHA-384, for which they have none.
const CIPHER_SUITES: &[SupportedCipherSuite] = &[
    cipher_suite::TLS13_AES_128_GCM_SHA256,
    cipher_suite::TLS13_AES_256_GCM_SHA384,
    cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    cipher_suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
    cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    cipher_suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
    cipher_suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
    cipher_suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
];

/// A TLS configuration that the library refuses; with a fixed provider this cannot happen at run time.
#[derive(Debug, thiserror::Error)]
#[error("TLS configuration: {0}")]
pub struct TlsSetupError(#[from] rustls::Error);
