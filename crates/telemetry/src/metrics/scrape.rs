//! The endpoint that Prometheus scrapes, with TLS where it is asked for (the reference's
//! `pkg/common/telemetry/prometheus.go`).

use std::io;
use std::sync::Arc;

use hyper::StatusCode;
use spire_compat::config::{PrometheusConfig, PrometheusTls};
use spire_compat::errno::errno_text;
use spire_compat::files::read_bounded;
use spire_compat::quote::quote;
use spire_core::pki::{Certificate, LocalKey, pem};
use spire_core::spiffe::SpiffeId;
use spire_net::tls::{
    Authorize, ClientAuth, ClientsError, Identity, IdentityError, LateTrust, ServerTls, TlsPolicy,
    TlsSetupError,
};
use zeroize::Zeroizing;

use super::process::{self, HeapProbe};
use super::prometheus::Prometheus;
use crate::http;

/// What the endpoint's TLS may use of the process itself.
#[derive(Clone, Debug)]
pub struct OwnTls {
    /// The process's X.509-SVID, once it has one (`use_spire_svid`).
    pub svid: Arc<Identity>,
    /// The bundles that the process trusts (`authorized_spiffe_ids`).
    pub trust: Arc<LateTrust>,
    /// What is asked of all TLS connections.
    pub policy: TlsPolicy,
}

/// Why the endpoint's TLS cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ScrapeTlsError {
    /// Settings that do not go together; the reference's text.
    #[error("{0}")]
    Settings(&'static str),
    /// A SPIFFE ID that is none.
    #[error("invalid authorized SPIFFE ID {id}: {reason}")]
    Id {
        /// As configured, quoted.
        id: String,
        /// What is wrong.
        reason: String,
    },
    /// A file cannot be used.
    #[error("{0}")]
    File(String),
    /// Certificate and key do not go together.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The authorities of clients cannot be used.
    #[error(transparent)]
    Clients(#[from] ClientsError),
    /// The library refuses the configuration.
    #[error(transparent)]
    Setup(#[from] TlsSetupError),
}

/// The endpoint, made and not yet listening.
#[derive(Debug)]
pub(crate) struct Scrape {
    pub(crate) host: String,
    pub(crate) port: i64,
    tls: Option<ServerTls>,
    /// The certificate from files, which a reload reads again.
    files: Option<(Arc<Identity>, PrometheusTls)>,
}

impl Scrape {
    pub(crate) fn new(config: &PrometheusConfig, own: &OwnTls) -> Result<Self, ScrapeTlsError> {
        let host = if config.host.is_empty() { "localhost" } else { &config.host };
        let mut scrape = Self { host: host.to_owned(), port: config.port, tls: None, files: None };
        if let Some(tls) = &config.tls {
            scrape.set_tls(tls, own)?;
        }
        Ok(scrape)
    }

    fn set_tls(&mut self, tls: &PrometheusTls, own: &OwnTls) -> Result<(), ScrapeTlsError> {
        check(tls)?;
        let ids = ids(&tls.authorized_spiffe_ids)?;
        let identity = if tls.use_spire_svid {
            own.svid.clone()
        } else {
            let identity = Identity::empty();
            load(&identity, tls)?;
            self.files = Some((identity.clone(), tls.clone()));
            identity
        };
        let server = if !ids.is_empty() {
            let clients = ClientAuth { trust: own.trust.clone(), authorize: Authorize::OneOf(ids) };
            ServerTls::http_spiffe_clients(identity, clients, own.policy)?
        } else if tls.client_ca_file.is_empty() || tls.use_spire_svid {
            ServerTls::http(identity, own.policy)?
        } else {
            ServerTls::http_signed_clients(identity, &certificates(&tls.client_ca_file)?, own.policy)?
        };
        self.tls = Some(server);
        Ok(())
    }

    /// Reads the certificate and key again; the old ones stay where the new ones cannot be used. Gives whether
    /// there are such files.
    pub(crate) fn reload(&self) -> Result<bool, ScrapeTlsError> {
        match &self.files {
            Some((identity, tls)) => load(identity, tls).map(|()| true),
            None => Ok(false),
        }
    }

    /// Serves until the future is dropped. A port that cannot be had is logged, as the reference does.
    pub(crate) async fn run(&self, metrics: Arc<Prometheus>, heap: HeapProbe) {
        if let Err(error) = self.listen(metrics, heap).await {
            tracing::warn!(
                subsystem_name = "telemetry",
                "Prometheus listener stopped unexpectedly: {}",
                errno_text(&error)
            );
        }
    }

    async fn listen(&self, metrics: Arc<Prometheus>, heap: HeapProbe) -> io::Result<()> {
        let address = match self.host.trim_matches(['[', ']']) {
            ip if ip.contains(':') => format!("[{ip}]:{}", self.port),
            host => format!("{host}:{}", self.port),
        };
        let listener = spire_net::listen(&address).await.map_err(io::Error::other)?;
        let respond: http::Respond = Arc::new(move |_| {
            let text = metrics.text(&process::families(heap));
            Box::pin(async move { http::response(StatusCode::OK, CONTENT_TYPE, text) })
        });
        http::serve(listener, self.tls.clone(), respond).await
    }
}

/// The text format that every Prometheus reads.
const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

fn check(tls: &PrometheusTls) -> Result<(), ScrapeTlsError> {
    let (cert, key) = (!tls.cert_file.is_empty(), !tls.key_file.is_empty());
    Err(ScrapeTlsError::Settings(if tls.use_spire_svid && (cert || key) {
        "cert_file and key_file cannot be configured when use_spire_svid is enabled"
    } else if !(tls.use_spire_svid || cert && key) {
        "cert_file and key_file must both be configured unless use_spire_svid is enabled"
    } else if !tls.authorized_spiffe_ids.is_empty() && !tls.client_ca_file.is_empty() {
        "client_ca_file cannot be configured with authorized_spiffe_ids"
    } else {
        return Ok(());
    }))
}

fn ids(texts: &[String]) -> Result<std::collections::HashSet<SpiffeId>, ScrapeTlsError> {
    let parse = |text: &String| {
        SpiffeId::parse(text)
            .map_err(|error| ScrapeTlsError::Id { id: quote(text), reason: error.to_string() })
    };
    texts.iter().map(parse).collect()
}

fn load(identity: &Identity, tls: &PrometheusTls) -> Result<(), ScrapeTlsError> {
    let chain = certificates(&tls.cert_file)?;
    let bad_key = |reason: String| ScrapeTlsError::File(format!("{}: {reason}", tls.key_file));
    let key = LocalKey::from_pem(&read(&tls.key_file)?).map_err(|error| bad_key(error.to_string()))?;
    let key = key.to_pkcs8().map_err(|error| bad_key(error.to_string()))?;
    Ok(identity.replace(&chain, &key)?)
}

fn certificates(path: &str) -> Result<Vec<Certificate>, ScrapeTlsError> {
    pem::certificates(&read(path)?).map_err(|error| ScrapeTlsError::File(format!("{path}: {error}")))
}

fn read(path: &str) -> Result<Zeroizing<Vec<u8>>, ScrapeTlsError> {
    let contents = read_bounded(path, pem::MAX_PEM_BYTES as u64);
    contents.map_err(|error| ScrapeTlsError::File(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> OwnTls {
        OwnTls { svid: Identity::empty(), trust: LateTrust::empty(), policy: TlsPolicy::default() }
    }

    #[test]
    fn settings_that_do_not_go_together() {
        let tls = |change: fn(&mut PrometheusTls)| {
            let mut tls = PrometheusTls::default();
            change(&mut tls);
            let config = PrometheusConfig { tls: Some(tls), ..PrometheusConfig::default() };
            Scrape::new(&config, &own()).map(|_| ()).map_err(|error| error.to_string())
        };
        for (change, expected) in [
            (
                (|tls| tls.cert_file = "x".into()) as fn(&mut PrometheusTls),
                "cert_file and key_file must both be configured unless use_spire_svid is enabled",
            ),
            (
                |tls| {
                    tls.use_spire_svid = true;
                    tls.key_file = "x".into();
                },
                "cert_file and key_file cannot be configured when use_spire_svid is enabled",
            ),
            (
                |tls| {
                    tls.use_spire_svid = true;
                    tls.client_ca_file = "x".into();
                    tls.authorized_spiffe_ids = vec!["spiffe://a/b".into()];
                },
                "client_ca_file cannot be configured with authorized_spiffe_ids",
            ),
            (
                |tls| {
                    tls.use_spire_svid = true;
                    tls.authorized_spiffe_ids = vec!["b".into()];
                },
                "invalid authorized SPIFFE ID \"b\": scheme is missing or invalid",
            ),
            (
                |tls| {
                    tls.cert_file = "/no/cert".into();
                    tls.key_file = "/no/key".into();
                },
                "open /no/cert: no such file or directory",
            ),
        ] {
            assert_eq!(tls(change), Err(expected.to_owned()));
        }
        assert_eq!(tls(|tls| tls.use_spire_svid = true), Ok(()));
    }
}
