//! The bundle endpoint (pkg/server/endpoints/bundle): `GET /` over HTTPS.

use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;

use http::request::Parts;
use http::{Method, StatusCode};
use spire_compat::duration::GoDuration;
use spire_net::acme::{Acme, AcmeConfig};
use spire_net::http_server::{self, Answer};
use spire_net::tls::{
    CertificateFiles, CertificateFilesError, Identity, ServerTls, TlsIncoming, TlsPolicy, TlsSetupError,
};
use spire_ports::plugins::KeyManager;

use super::document::{Document, DocumentError};
use crate::ca::BundleChanges;
use crate::config::{BundleEndpoint, BundleEndpointProfile};

const SUBSYSTEM: &str = "bundle_endpoint";
const ACME_SUBSYSTEM: &str = "bundle_acme";
/// What the reference's keys of certificates start with (acme_auth.go).
const ACME_KEY_PREFIX: &str = "bundle-acme-";

/// Why the bundle endpoint cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// The port. The text is Go's.
    #[error("listen tcp {address}: bind: {}", spire_net::errno_text(source))]
    Bind {
        /// What it should have listened on.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// The certificate files.
    #[error("failed to load certificate: {0}")]
    Files(#[from] CertificateFilesError),
    /// TLS.
    #[error(transparent)]
    Tls(#[from] TlsSetupError),
}

/// What the bundle endpoint needs of the server.
pub struct BundleEndpointParts {
    /// Our own bundle.
    pub bundle: Arc<BundleChanges>,
    /// Our SVID, for the profile `https_spiffe`.
    pub identity: Arc<Identity>,
    /// Where the key of a certificate of an ACME authority is kept.
    pub key_manager: Arc<dyn KeyManager>,
    /// What is asked of TLS.
    pub policy: TlsPolicy,
}

/// A bundle endpoint that listens.
pub struct BundleEndpointServer {
    incoming: TlsIncoming,
    document: Arc<Document>,
    /// What keeps the certificate fresh; ends never.
    certificate: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl BundleEndpointServer {
    /// Reads the certificate files, if there are, and listens.
    ///
    /// # Errors
    /// [`EndpointError`].
    pub async fn bind(config: &BundleEndpoint, parts: BundleEndpointParts) -> Result<Self, EndpointError> {
        let shown = shown(config);
        tracing::info!(
            subsystem_name = "endpoints",
            addr = shown,
            refresh_hint = %GoDuration::from(config.refresh_hint),
            "Serving bundle endpoint"
        );
        let policy = parts.policy;
        let (tls, certificate): (ServerTls, Pin<Box<dyn Future<Output = ()> + Send>>) = match &config.profile
        {
            BundleEndpointProfile::HttpsSpiffe => {
                (ServerTls::https(parts.identity, policy)?, Box::pin(std::future::pending()))
            }
            BundleEndpointProfile::ServingCertFile { cert_file, key_file, file_sync_interval } => {
                let files = Arc::new(CertificateFiles::load(cert_file, key_file)?);
                let tls = ServerTls::https(files.identity(), policy)?;
                (tls, Box::pin(files.watch(*file_sync_interval)))
            }
            BundleEndpointProfile::Acme(acme) => {
                let acme = AcmeConfig {
                    directory_url: acme.directory_url.clone(),
                    domain_name: acme.domain_name.clone(),
                    email: acme.email.clone(),
                    tos_accepted: acme.tos_accepted,
                    cache_dir: Some(acme.cache_dir.clone()),
                    key_prefix: ACME_KEY_PREFIX,
                    subsystem: ACME_SUBSYSTEM,
                    on_demand: false,
                };
                let acme = Acme::new(acme, Some(parts.key_manager), policy)?;
                (acme.server_tls(policy)?, Box::pin(acme.run()))
            }
        };
        let every = Ipv4Addr::UNSPECIFIED.into();
        let listener = spire_net::listen_on((config.address.unwrap_or(every), config.port).into())
            .await
            .map_err(|source| EndpointError::Bind { address: shown, source })?;
        let document = Arc::new(Document::new(parts.bundle, config.refresh_hint));
        Ok(Self { incoming: http_server::incoming(&tls, listener), document, certificate })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// The system does not say.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.incoming.local_addr()
    }

    /// Answers until `stop` is there.
    pub async fn serve(self, stop: impl Future<Output = ()>) {
        let document = self.document;
        let handler = move |head: Parts| {
            let document = Arc::clone(&document);
            async move { answer(&head, &document).await }
        };
        tokio::select! {
            () = http_server::serve(self.incoming, handler, stop) => {}
            () = self.certificate => {}
        }
    }
}

async fn answer(head: &Parts, document: &Document) -> Answer {
    if head.method != Method::GET {
        return http_server::error(StatusCode::METHOD_NOT_ALLOWED, "405 method not allowed");
    }
    if head.uri.path() != "/" {
        return http_server::error(StatusCode::NOT_FOUND, "404 page not found");
    }
    let (error, text) = match document.body().await {
        Ok(body) => return http_server::document("application/json", body),
        Err(error @ DocumentError::Encoding(_)) => (error, "marshal"),
        Err(error) => (error, "retrieve"),
    };
    tracing::error!(subsystem_name = SUBSYSTEM, error = %error, "Unable to {text} local bundle");
    http_server::error(StatusCode::INTERNAL_SERVER_ERROR, &format!("500 unable to {text} local bundle"))
}

/// The address as Go shows it: nothing stands for every address.
fn shown(config: &BundleEndpoint) -> String {
    match config.address {
        Some(ip) => SocketAddr::from((ip, config.port)).to_string(),
        None => format!(":{}", config.port),
    }
}

impl std::fmt::Debug for BundleEndpointServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BundleEndpointServer").field("incoming", &self.incoming).finish_non_exhaustive()
    }
}
