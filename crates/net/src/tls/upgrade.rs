//! TLS on a stream that began without it: a database is asked in its own protocol whether it wants to go on in TLS.

use std::io;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, SupportedProtocolVersion};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::client::TlsStream;

use super::client::{ServerTrust, TlsClient};
use super::connect::handshake_text;
use super::{Identity, TlsPolicy, TlsSetupError};

/// How a client of a protocol of its own uses TLS.
#[derive(Debug, Clone)]
pub struct UpgradeOptions {
    /// Which servers are believed.
    pub trust: ServerTrust,
    /// What is shown where the server asks.
    pub identity: Option<Arc<Identity>>,
    /// Names of the protocol that are offered; may be empty.
    pub alpn: &'static [&'static [u8]],
    /// Whether the name of the host is sent.
    pub sni: bool,
    /// Which versions may be spoken.
    pub versions: TlsVersions,
}

/// Versions of TLS that a client speaks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum TlsVersions {
    /// 1.2 and 1.3.
    #[default]
    All,
    /// 1.2 alone.
    Only12,
    /// 1.3 alone.
    Only13,
}

impl TlsVersions {
    fn list(self) -> &'static [&'static SupportedProtocolVersion] {
        const TLS12: &[&SupportedProtocolVersion] = &[&rustls::version::TLS12];
        const TLS13: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];
        match self {
            Self::All => rustls::DEFAULT_VERSIONS,
            Self::Only12 => TLS12,
            Self::Only13 => TLS13,
        }
    }
}

impl TlsClient {
    /// A client that goes on in TLS on streams that are connected already.
    ///
    /// # Errors
    /// [`TlsSetupError`]; an authority that cannot be a trust anchor is left out.
    pub fn upgrade(options: UpgradeOptions) -> Result<Self, TlsSetupError> {
        let provider = TlsPolicy::default().provider();
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(options.versions.list())?
            .dangerous()
            .with_custom_certificate_verifier(options.trust.verifier(provider));
        let mut config = match options.identity {
            Some(identity) => builder.with_client_cert_resolver(identity),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = options.alpn.iter().map(|name| name.to_vec()).collect();
        config.enable_sni = options.sni;
        config.resumption = Resumption::disabled();
        Ok(Self { config: Arc::new(config) })
    }

    /// Goes on in TLS with a server that is called `host`: a name, or an IP address without brackets.
    ///
    /// # Errors
    /// What the handshake failed with; the text is Go's where the certificate is to blame.
    pub async fn handshake<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        host: &str,
        stream: S,
    ) -> io::Result<TlsStream<S>> {
        let name = ServerName::try_from(host.to_owned()).map_err(|_| {
            io::Error::new(io::ErrorKind::InvalidInput, format!("{host:?} is not a host name"))
        })?;
        let connector = tokio_rustls::TlsConnector::from(self.config());
        connector
            .connect(name, stream)
            .await
            .map_err(|error| io::Error::new(error.kind(), handshake_text(&error)))
    }
}
