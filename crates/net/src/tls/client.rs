//! Whom a client trusts and what it shows.

use std::sync::Arc;

use rustls::client::Resumption;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore};
use spire_core::pki::Certificate;
use spire_core::spiffe::SpiffeId;

use super::peer::{SpiffeVerifier, UnverifiedServer};
use super::web::{AnyNameVerifier, Unverified, WebVerifier};
use super::{ALPN_H2, ALPN_HTTP11, Authorize, Identity, TlsPolicy, TlsSetupError, TrustSource};

/// Which servers an HTTPS client of a private API believes.
#[derive(Debug, Clone)]
pub enum ServerTrust {
    /// Those with a certificate of the Web's authorities, as the system has them.
    System,
    /// Those with a certificate of one of these authorities for the name that is dialled.
    Authorities(Vec<Certificate>),
    /// Those with a certificate of one of these authorities, whatever name it is for: a kubelet that is dialled as
    /// 127.0.0.1 has a certificate for its node's name.
    AnyNameOf(Vec<Certificate>),
    /// Those with a certificate of the Web's authorities, whatever name it is for.
    AnyNameOfSystem,
    /// Whoever answers. **Not secure**: for settings that say so.
    Anybody,
}

/// A client's side of TLS. Cheap to clone.
#[derive(Debug, Clone)]
pub struct TlsClient {
    pub(super) config: Arc<ClientConfig>,
}

impl TlsClient {
    /// A gRPC client of the server `expected`, verified by the authorities of its trust domain. `identity`
    /// is shown where the server asks; it may be empty and may change.
    pub fn spiffe(
        trust: Arc<dyn TrustSource>,
        expected: SpiffeId,
        identity: Option<Arc<Identity>>,
        policy: TlsPolicy,
    ) -> Result<Self, TlsSetupError> {
        let signatures = policy.provider().signature_verification_algorithms;
        let verifier = SpiffeVerifier::new(trust, Authorize::Exactly(expected), signatures);
        Self::custom(Arc::new(verifier), identity, policy, &[ALPN_H2])
    }

    /// An HTTPS client of a bundle endpoint with the profile `https_spiffe` (SPIFFE Federation, section
    /// 5.2.2).
    pub fn spiffe_https(
        trust: Arc<dyn TrustSource>,
        expected: SpiffeId,
        policy: TlsPolicy,
    ) -> Result<Self, TlsSetupError> {
        let signatures = policy.provider().signature_verification_algorithms;
        let verifier = SpiffeVerifier::new(trust, Authorize::Exactly(expected), signatures);
        Self::custom(Arc::new(verifier), None, policy, &[ALPN_HTTP11])
    }

    /// A gRPC client that believes whoever claims to be `expected`. **Not secure**: whoever answers can
    /// give the agent a bundle of its own. Only for `insecure_bootstrap`.
    pub fn insecure_bootstrap(expected: SpiffeId, policy: TlsPolicy) -> Result<Self, TlsSetupError> {
        let signatures = policy.provider().signature_verification_algorithms;
        Self::custom(Arc::new(UnverifiedServer::new(expected, signatures)), None, policy, &[ALPN_H2])
    }

    /// An HTTPS client of servers with certificates of the Web's authorities, as the system has them.
    pub fn web(policy: TlsPolicy) -> Result<Self, TlsSetupError> {
        Self::web_with_roots(system_roots(), policy)
    }

    pub(crate) fn web_with_roots(roots: RootCertStore, policy: TlsPolicy) -> Result<Self, TlsSetupError> {
        let verifier = WebVerifier::new(roots, policy.provider());
        Self::custom(Arc::new(verifier), None, policy, &[ALPN_HTTP11])
    }

    /// An HTTPS client of a private API, such as Kubernetes'. `identity` is shown where the server asks.
    ///
    /// # Errors
    /// [`TlsSetupError`]; an authority that cannot be a trust anchor is left out.
    pub fn private(
        trust: ServerTrust,
        identity: Option<Arc<Identity>>,
        policy: TlsPolicy,
    ) -> Result<Self, TlsSetupError> {
        Self::custom(trust.verifier(policy.provider()), identity, policy, &[ALPN_HTTP11])
    }

    pub(crate) fn config(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.config)
    }

    fn custom(
        verifier: Arc<dyn ServerCertVerifier>,
        identity: Option<Arc<Identity>>,
        policy: TlsPolicy,
        alpn: &[&[u8]],
    ) -> Result<Self, TlsSetupError> {
        let builder = ClientConfig::builder_with_provider(policy.provider())
            .with_protocol_versions(policy.versions())?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let mut config = match identity {
            Some(identity) => builder.with_client_cert_resolver(identity),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        config.resumption = Resumption::disabled();
        Ok(Self { config: Arc::new(config) })
    }
}

impl ServerTrust {
    pub(super) fn verifier(self, provider: Arc<CryptoProvider>) -> Arc<dyn ServerCertVerifier> {
        match self {
            Self::System => Arc::new(WebVerifier::new(system_roots(), provider)),
            Self::Authorities(roots) => Arc::new(WebVerifier::new(root_store(&roots), provider)),
            Self::AnyNameOf(roots) => Arc::new(AnyNameVerifier::new(root_store(&roots), provider)),
            Self::AnyNameOfSystem => Arc::new(AnyNameVerifier::new(system_roots(), provider)),
            Self::Anybody => Arc::new(Unverified::new(provider)),
        }
    }
}

fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    let system = rustls_native_certs::load_native_certs();
    for error in &system.errors {
        tracing::debug!(error = %error, "System root certificates could not be read in full");
    }
    roots.add_parsable_certificates(system.certs);
    roots
}

fn root_store(authorities: &[Certificate]) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(authorities.iter().map(|a| CertificateDer::from(a.der().to_vec())));
    roots
}
