//! Where the first trust comes from (the reference's `pkg/agent/trustbundlesources`).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use spire_compat::duration::GoDuration;
use spire_compat::files::read_bounded;
use spire_core::pki::bundle_doc::{self, Reading};
use spire_core::pki::{Certificate, MAX_CHAIN_LEN, pem};
use spire_core::spiffe::TrustDomain;
use spire_net::grpc::workload_channel;
use spire_net::https::{FetchError, HttpsClient, redacted};
use spire_net::tls::{Proxies, TlsClient, TlsPolicy, TlsSetupError};
use spire_ports::observe::{Label, Metrics, names};
use spire_wire::workload::X509BundlesRequest;
use spire_wire::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tonic::{Request, Status};
use zeroize::Zeroizing;

use super::clock::Clock;
use super::options::{BundleFormat, Options, TrustBundle};
use super::status::GoStatus;
use super::storage::{BootstrapState, BootstrapUse, Storage, StorageError};
use super::trust;

/// The longest that another agent's Workload API may take.
const WORKLOAD_API_TIMEOUT: Duration = Duration::from_secs(60);

/// The longest file that is read.
const MAX_FILE_BYTES: u64 = 4 * 1024 * 1024;

/// Why there is no bundle to start with. Texts as the reference's.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// The URL is none.
    #[error("unable to parse trust bundle URL: {0}")]
    Url(String),
    /// The URL cannot be fetched.
    #[error("unable to fetch trust bundle URL {url}: {source}")]
    Fetch {
        /// The URL, without secrets.
        url: String,
        /// Why.
        source: FetchError,
    },
    /// The server of the URL refuses.
    #[error("error downloading trust bundle: {0}")]
    Refused(String),
    /// The file cannot be read.
    #[error("could not parse trust bundle: open {}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// The text is not PEM with certificates.
    #[error("{0}")]
    Pem(String),
    /// The text is not a SPIFFE bundle.
    #[error("unable to parse SPIFFE trust bundle: {0}")]
    Spiffe(String),
    /// The bundle has no X.509 authority.
    #[error("no certificates found in trust bundle")]
    Empty,
    /// The other agent does not give a bundle.
    #[error("unable to fetch trust bundle from SPIFFE Workload API {address}: {}", GoStatus(status))]
    WorkloadApi {
        /// Where it is.
        address: String,
        /// Its answer.
        status: Box<Status>,
    },
    /// The other agent's bundles do not have ours.
    #[error("SPIFFE Workload API {address} did not provide a trust bundle for trust domain {trust_domain:?}")]
    NotProvided {
        /// Where it is.
        address: String,
        /// Ours.
        trust_domain: String,
    },
    /// TLS cannot be set up.
    #[error(transparent)]
    Tls(#[from] TlsSetupError),
    /// The progress cannot be stored.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// The first trust in a server.
#[derive(Clone, Debug)]
pub enum FirstTrust {
    /// These authorities; never empty.
    Authorities(Vec<Certificate>),
    /// Whoever answers.
    Insecure,
}

/// Finds the first trust and remembers how far that has come.
pub struct TrustSources {
    options: Arc<Options>,
    storage: Arc<Storage>,
    metrics: Arc<dyn Metrics>,
    clock: Clock,
    state: BootstrapState,
}

impl TrustSources {
    /// Takes up what an earlier run left.
    pub fn new(
        options: Arc<Options>,
        storage: Arc<Storage>,
        metrics: Arc<dyn Metrics>,
        clock: Clock,
    ) -> Self {
        let mut state = storage.bootstrap();
        if state.purpose == BootstrapUse::Unspecified {
            state.purpose = match storage.bundle() {
                Some(_) => BootstrapUse::Rebootstrap,
                None => BootstrapUse::Bootstrap,
            };
        }
        let sources = Self { options, storage, metrics, clock, state };
        sources.report();
        sources
    }

    /// Whether the agent has never been attested.
    pub fn is_bootstrap(&self) -> bool {
        self.state.purpose != BootstrapUse::Rebootstrap
    }

    /// For how long server and agent have not agreed; the clock starts at the first call.
    ///
    /// # Errors
    /// [`StorageError`] when the start cannot be stored.
    pub fn disagreeing_for(&mut self) -> Result<Duration, StorageError> {
        let now = self.now();
        if self.state.started.is_none() {
            self.state.started = Some(now);
            self.store()?;
        }
        let since = self.state.started.map_or(time::Duration::ZERO, |started| now - started);
        Ok(Duration::try_from(since).unwrap_or_default())
    }

    /// The agent trusts its server.
    ///
    /// # Errors
    /// [`StorageError`] when that cannot be stored.
    pub fn succeeded(&mut self) -> Result<(), StorageError> {
        if let Some(started) = self.state.started {
            let elapsed = GoDuration::from(Duration::try_from(self.now() - started).unwrap_or_default());
            tracing::info!(
                Logger = "TrustBundleSources",
                "Success after {elapsed} attempts={}",
                self.state.attempts
            );
        }
        self.state = BootstrapState { purpose: BootstrapUse::Rebootstrap, started: None, attempts: 0 };
        self.store()
    }

    /// As [`TrustSources::succeeded`], when a disagreement was noted.
    pub fn succeeded_if_running(&mut self) -> Result<(), StorageError> {
        if self.state.started.is_some() { self.succeeded() } else { Ok(()) }
    }

    /// Forgets SVID and bundle, so that the next start finds new trust.
    pub fn force_rebootstrap(&mut self) -> Result<(), StorageError> {
        self.state =
            BootstrapState { purpose: BootstrapUse::Rebootstrap, started: Some(self.now()), attempts: 0 };
        self.store()?;
        self.storage.delete_svid()?;
        self.storage.store_bundle(&[])
    }

    /// Fetches the bundle from where the configuration says.
    ///
    /// # Errors
    /// [`BootstrapError`] says why there is none.
    pub async fn fetch(&mut self) -> Result<FirstTrust, BootstrapError> {
        self.state.attempts = self.state.attempts.saturating_add(1);
        if self.state.started.is_none() {
            self.state.started = Some(self.now());
        }
        self.store()?;
        let options = Arc::clone(&self.options);
        let authorities = match &options.trust_bundle {
            TrustBundle::Insecure => return Ok(FirstTrust::Insecure),
            TrustBundle::Path { path, format } => self.parse(&read_file(path)?, *format)?,
            TrustBundle::Url { url, unix_socket, format } => {
                let text = self.download(url, unix_socket.as_deref()).await?;
                self.parse(&text, *format)?
            }
            TrustBundle::WorkloadApi(address) => {
                self.announce();
                tracing::debug!("Fetching trust bundle from SPIFFE Workload API: {address}");
                from_workload_api(address, &options.trust_domain).await?
            }
        };
        if authorities.is_empty() {
            return Err(BootstrapError::Empty);
        }
        Ok(FirstTrust::Authorities(authorities))
    }

    async fn download(&self, url: &str, unix_socket: Option<&Path>) -> Result<bytes::Bytes, BootstrapError> {
        let _: http::Uri =
            url.parse().map_err(|e: http::uri::InvalidUri| BootstrapError::Url(e.to_string()))?;
        let mut target = url.to_owned();
        let policy = TlsPolicy { require_pq_kem: self.options.require_pq_kem };
        let mut client = HttpsClient::new(TlsClient::web(policy)?).through(Proxies::from_environment());
        if let Some(socket) = unix_socket {
            target = self.described(url);
            client = client.over_unix_socket(socket);
        }
        self.announce();
        let from = unix_socket.map(|s| s.display().to_string()).unwrap_or_default();
        let shown = redacted(&target);
        tracing::debug!("Server attestation url: {shown} from: {from}");
        match client.get(&target).await {
            Ok(text) => Ok(text),
            Err(FetchError::Status(status)) => Err(BootstrapError::Refused(status.to_string())),
            Err(source) => Err(BootstrapError::Fetch { url: shown, source }),
        }
    }

    /// Tells the local service behind a unix socket what the bundle is for; parameters are in order of their
    /// names, as Go encodes them, and replace those of the same name in the configured URL.
    fn described(&self, url: &str) -> String {
        let mode = if self.is_bootstrap() { "bootstrap" } else { "rebootstrap" };
        let started = self.started_text();
        let mut parameters: std::collections::BTreeMap<String, Vec<String>> =
            std::collections::BTreeMap::new();
        let url = url.split_once('#').map_or(url, |(url, _)| url);
        let (start, query) = url.split_once('?').unwrap_or((url, ""));
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            parameters.entry(name.into_owned()).or_default().push(value.into_owned());
        }
        for (name, value) in [
            ("spire-attest-mode", mode.to_owned()),
            ("spire-connection-attempts", self.state.attempts.to_string()),
            ("spire-attest-start-time", started),
            ("spire-server-address", self.options.server_host.clone()),
            ("spire-server-port", self.options.server_port.to_string()),
            ("spiffe-trust-domain", self.options.trust_domain.name().to_owned()),
        ] {
            parameters.insert(name.to_owned(), vec![value]);
        }
        let mut query = form_urlencoded::Serializer::new(String::new());
        for (name, values) in &parameters {
            query.extend_pairs(values.iter().map(|value| (name, value)));
        }
        format!("{start}?{}", query.finish())
    }

    fn announce(&self) {
        let what = if self.is_bootstrap() { "attestation" } else { "reattestation" };
        tracing::info!("Server {what} attempt {}. Started {}.", self.state.attempts, self.started_text());
    }

    fn started_text(&self) -> String {
        self.state.started.and_then(|t| t.format(&Rfc3339).ok()).unwrap_or_default()
    }

    fn parse(&self, text: &[u8], format: BundleFormat) -> Result<Vec<Certificate>, BootstrapError> {
        match format {
            BundleFormat::Pem => pem::certificates(text).map_err(|e| BootstrapError::Pem(e.to_string())),
            BundleFormat::Spiffe => bundle_doc::parse(&self.options.trust_domain, text, Reading::Reference)
                .map(|bundle| trust::certificates(&bundle))
                .map_err(|e| BootstrapError::Spiffe(e.to_string())),
        }
    }

    fn store(&self) -> Result<(), StorageError> {
        self.storage.store_bootstrap(self.state)?;
        self.report();
        Ok(())
    }

    #[expect(clippy::cast_precision_loss, reason = "a gauge of seconds since 1970 is exact in f64 for long")]
    fn report(&self) {
        let mode = if self.is_bootstrap() { "bootstrap" } else { "rebootstrap" };
        let labels = [Label::new(names::label::MODE, mode)];
        let bootstrapped = if self.state.started.is_none() { 1.0 } else { 0.0 };
        // Go's zero time is 62135596800 seconds before 1970.
        let seconds = self.state.started.map_or(-62_135_596_800, OffsetDateTime::unix_timestamp);
        self.metrics.set_gauge(names::agent::BOOTSTRAPPED, bootstrapped, &[]);
        self.metrics.set_gauge(names::agent::BOOTSTRAP_SECONDS, seconds as f64, &labels);
        self.metrics.set_gauge(names::agent::BOOTSTRAP_ATTEMPTS, f64::from(self.state.attempts), &labels);
    }

    fn now(&self) -> OffsetDateTime {
        self.clock.now().to_utc()
    }
}

fn read_file(path: &Path) -> Result<Zeroizing<Vec<u8>>, BootstrapError> {
    let contents = read_bounded(path, MAX_FILE_BYTES);
    contents.map_err(|error| BootstrapError::File { path: path.to_owned(), reason: error.reason() })
}

async fn from_workload_api(
    address: &str,
    trust_domain: &TrustDomain,
) -> Result<Vec<Certificate>, BootstrapError> {
    let failed =
        |status| BootstrapError::WorkloadApi { address: address.to_owned(), status: Box::new(status) };
    let channel = workload_channel(address).ok_or_else(|| {
        failed(Status::invalid_argument("workload endpoint socket URI must have a unix:// or tcp:// scheme"))
    })?;
    let mut request = Request::new(X509BundlesRequest {});
    request.metadata_mut().insert("workload.spiffe.io", tonic::metadata::MetadataValue::from_static("true"));
    let fetch = async {
        let mut answers =
            SpiffeWorkloadApiClient::new(channel).fetch_x509_bundles(request).await?.into_inner();
        answers.message().await?.ok_or_else(|| Status::unknown("EOF"))
    };
    let answer = tokio::time::timeout(WORKLOAD_API_TIMEOUT, fetch)
        .await
        .unwrap_or_else(|_| Err(Status::deadline_exceeded("context deadline exceeded")))
        .map_err(failed)?;
    let der = answer.bundles.get(&trust_domain.id_string()).ok_or_else(|| BootstrapError::NotProvided {
        address: address.to_owned(),
        trust_domain: trust_domain.name().to_owned(),
    })?;
    // A bundle may have more certificates than a chain; the message's size bounds it.
    Certificate::many_from_der(der.clone(), MAX_CHAIN_LEN * 256)
        .map_err(|e| BootstrapError::Pem(e.to_string()))
}

#[cfg(test)]
mod tests;
