//! HTTPS for clients that must show a certificate: the metrics endpoint.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use rustls::pki_types::CertificateDer;
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use spire_core::pki::Certificate;
use spire_core::spiffe::TrustDomain;

use super::{ALPN_HTTP11, ClientAuth, Identity, ServerTls, TlsPolicy, TlsSetupError, TrustSource};

/// Why clients cannot be verified.
#[derive(Debug, thiserror::Error)]
pub enum ClientsError {
    /// The library refuses the configuration.
    #[error(transparent)]
    Setup(#[from] TlsSetupError),
    /// An authority cannot be one.
    #[error("client authority: {0}")]
    Authority(#[from] rustls::Error),
    /// There is no authority.
    #[error("client authorities: {0}")]
    Authorities(#[from] VerifierBuilderError),
}

impl ServerTls {
    /// HTTP/1.1 over TLS for whoever connects.
    pub fn http(identity: Arc<Identity>, policy: TlsPolicy) -> Result<Self, TlsSetupError> {
        Self::web(identity, policy, &[ALPN_HTTP11])
    }

    /// HTTP/1.1 over TLS for clients whose certificate one of these authorities signed.
    pub fn http_signed_clients(
        identity: Arc<Identity>,
        authorities: &[Certificate],
        policy: TlsPolicy,
    ) -> Result<Self, ClientsError> {
        let mut roots = RootCertStore::empty();
        for authority in authorities {
            roots.add(CertificateDer::from(authority.der().to_vec()))?;
        }
        let provider = policy.provider();
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build()?;
        let config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(policy.versions())
            .map_err(TlsSetupError::from)?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(identity);
        Ok(Self::finish(config, &[ALPN_HTTP11]))
    }

    /// HTTP/1.1 over TLS for clients with an X.509-SVID that `clients` lets in.
    pub fn http_spiffe_clients(
        identity: Arc<Identity>,
        clients: ClientAuth,
        policy: TlsPolicy,
    ) -> Result<Self, TlsSetupError> {
        Self::spiffe(identity, clients.verifier(policy).mandatory(), policy, &[ALPN_HTTP11])
    }
}

/// Authorities that are known only once the process has started; until then nobody is trusted.
#[derive(Default)]
pub struct LateTrust(ArcSwapOption<Arc<dyn TrustSource>>);

impl LateTrust {
    /// Trusts nobody yet.
    pub fn empty() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Trusts as this source says from now on.
    pub fn fill(&self, source: Arc<dyn TrustSource>) {
        self.0.store(Some(Arc::new(source)));
    }
}

impl TrustSource for LateTrust {
    fn authorities(&self, trust_domain: &TrustDomain) -> Option<Arc<[Certificate]>> {
        self.0.load().as_ref()?.authorities(trust_domain)
    }
}

impl fmt::Debug for LateTrust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LateTrust").field("is_filled", &self.0.load().is_some()).finish()
    }
}
