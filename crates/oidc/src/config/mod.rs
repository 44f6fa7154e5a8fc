//! The configuration file of `oidc-discovery-provider`, and of the block with which `spire-server` serves the same.
//!
//! Keys, defaults, order of the checks and their texts are the reference's (support/oidc-discovery-provider/config.go,
//! main_posix.go). What is resolved is valid: nothing of it is checked again.

mod raw;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::time::Duration;

use spire_compat::config::{ConfigError, LogSettings, Notice, io_error};
use spire_compat::duration::GoDuration;
use spire_compat::hcl::{self, Fragment};
use spire_compat::quote::quote;
use spire_compat::url::Url;
use spire_core::spiffe::TrustDomain;

use crate::domains::Domains;
use crate::routes::Routes;
use raw::{Place, Raw, RawAcme, RawServingCertFile};

/// The file that is read where no other is named.
pub const DEFAULT_CONFIG_PATH: &str = "oidc-discovery-provider.conf";

const DEFAULT_LOG_LEVEL: &str = "info";
const DEFAULT_POLL_INTERVAL: Duration = Duration::from_secs(10);
const DEFAULT_FILE_SYNC_INTERVAL: Duration = Duration::from_secs(60);
const DEFAULT_CACHE_DIR: &str = "./.acme-cache";
const DEFAULT_SERVING_ADDRESS: &str = ":443";
const DEFAULT_HEALTH_PORT: u16 = 8008;

/// A whole provider.
#[derive(Debug, Clone)]
pub struct OidcConfig {
    /// The log.
    pub log: LogSettings,
    /// What is served, and where.
    pub serving: Serving,
    /// Where the keys come from.
    pub source: SourceConfig,
    /// The health checks; `None` is off.
    pub health: Option<HealthChecks>,
    /// What to log once the logger exists.
    pub notices: Vec<Notice>,
}

/// What is served, and where: all that the provider and the server's block have in common.
#[derive(Debug, Clone)]
pub struct Serving {
    /// Where to listen.
    pub listener: ListenerConfig,
    /// What the documents say.
    pub documents: Documents,
    /// Whether requests are logged, at debug.
    pub log_requests: bool,
}

/// What the documents say.
#[derive(Debug, Clone)]
pub struct Documents {
    /// The names that this service goes by.
    pub domains: Domains,
    /// Whether keys say `"use": "sig"`.
    pub set_key_use: bool,
    /// Whether URLs in the discovery document are `http` for clients that came without TLS.
    pub allow_insecure_scheme: bool,
    /// The issuer, where it is not the host of the request.
    pub jwt_issuer: Option<Url>,
    /// Where the keys are, where it is not this service.
    pub jwks_uri: Option<Url>,
    /// The paths that are answered.
    pub routes: Routes,
}

/// Where to listen: one of these.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenerConfig {
    /// Plain HTTP on `host:port`.
    Insecure(String),
    /// Plain HTTP on a unix socket.
    Unix(PathBuf),
    /// HTTPS with a certificate from files.
    Files {
        /// The chain, PEM.
        certificate: PathBuf,
        /// Its key, PEM.
        key: PathBuf,
        /// `host:port`.
        address: String,
        /// How often the files are looked at.
        sync_interval: Duration,
    },
    /// HTTPS on port 443 with a certificate of an ACME authority.
    Acme {
        /// The authority; empty is Let's Encrypt.
        directory_url: String,
        /// The account's address.
        email: String,
        /// Where account and certificates are kept; `None` keeps them in memory.
        cache_dir: Option<PathBuf>,
    },
}

/// Where the keys come from, and how often they are asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceConfig {
    /// The API socket of a SPIRE server, `unix:…`.
    ServerApi {
        /// The address as gRPC takes it.
        address: String,
        /// The interval.
        poll_interval: Duration,
    },
    /// A Workload API.
    WorkloadApi {
        /// The socket.
        socket_path: PathBuf,
        /// Whose keys.
        trust_domain: TrustDomain,
        /// The interval.
        poll_interval: Duration,
    },
    /// A file with a bundle in SPIFFE's format.
    File {
        /// The file.
        path: PathBuf,
        /// The interval.
        poll_interval: Duration,
    },
}

impl SourceConfig {
    /// How often the source is asked.
    pub fn poll_interval(&self) -> Duration {
        match self {
            Self::ServerApi { poll_interval, .. }
            | Self::WorkloadApi { poll_interval, .. }
            | Self::File { poll_interval, .. } => *poll_interval,
        }
    }
}

/// `health_checks`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthChecks {
    /// The port, on every address.
    pub bind_port: u16,
    /// Whether the keys are fresh.
    pub ready_path: String,
    /// Whether the keys are fresh, or not yet due.
    pub live_path: String,
}

impl OidcConfig {
    /// Reads a file and resolves it. With `expand_env`, `$NAME` and `${NAME}` are replaced in the whole text first.
    ///
    /// # Errors
    /// [`ConfigError`] with the reference's text, and the place in the file.
    pub fn load(path: &str, expand_env: bool) -> Result<Self, ConfigError> {
        let bytes = std::fs::read(path).map_err(|error| {
            ConfigError::new(format!("unable to load configuration: {}", io_error(path, &error)))
        })?;
        let text = String::from_utf8_lossy(&bytes);
        if expand_env {
            let variable = |name: &str| std::env::var(name).ok();
            return Self::parse(path, &spire_compat::expand::expand_environment(&text, variable));
        }
        Self::parse(path, &text)
    }

    /// Resolves the text of a file; `path` is for messages.
    ///
    /// # Errors
    /// As [`OidcConfig::load`].
    pub fn parse(path: &str, text: &str) -> Result<Self, ConfigError> {
        let document = hcl::parse_config(text).map_err(|error| raw::undecodable(path, &error, error.pos))?;
        let locate = |key: &str| document.locate(key);
        let place = Place { file: path, prefix: "", locate: &locate };
        let mut body = document.body();
        let raw = Raw::take(&mut body, &place)?;
        raw.into_config(&place)
    }
}

impl Serving {
    /// Resolves the block `oidc` of a server's configuration. `path` is the file and `prefix` the dotted key of the block,
    /// both for messages. What to log is returned beside it.
    ///
    /// # Errors
    /// As [`OidcConfig::load`]; keys of what the server has itself (sources, logs, health) are refused.
    pub fn of_block(path: &str, prefix: &str, block: &Fragment) -> Result<(Self, Vec<Notice>), ConfigError> {
        let mut body =
            block.body().map_err(|error| raw::undecodable(path, &error, error.pos.unwrap_or_default()))?;
        let positions = block.body().ok();
        let locate = |key: &str| {
            let first = key.split('.').next().unwrap_or_default();
            positions.as_ref().and_then(|body| body.locate(first)).or_else(|| Some(block.pos()))
        };
        let place = Place { file: path, prefix, locate: &locate };
        let raw = Raw::take(&mut body, &place)?;
        if let Some(key) = raw.standalone_key() {
            let hint = "the server serves its own keys, and has logs and health checks of its own";
            return Err(place.error(key, format!("{key} cannot be configured here")).with_hint(hint));
        }
        let mut notices = raw.notices.clone();
        raw.check_first(&place)?;
        let listener = raw.listener(&place)?;
        let serving = raw.serving(listener, &place, &mut notices)?;
        Ok((serving, notices))
    }
}

impl Raw {
    fn into_config(self, place: &Place<'_>) -> Result<OidcConfig, ConfigError> {
        self.check_first(place)?;
        let mut sources = self.sources(place)?;
        let listener = self.listener(place)?;
        self.check_sources(place)?;
        let source = match (sources.pop(), sources.pop()) {
            (Some(source), None) => source,
            (None, _) => {
                let text = "exactly one of the server_api, workload_api, or file sections must be configured";
                return Err(ConfigError::new(text));
            }
            (Some(_), Some(_)) => {
                let text = "the server_api, workload_api, and file sections are mutually exclusive";
                return Err(ConfigError::new(text));
            }
        };
        let mut notices = self.notices.clone();
        let serving = self.serving(listener, place, &mut notices)?;
        let health = self.health(place)?;
        let level = if self.log_level.is_empty() { DEFAULT_LOG_LEVEL } else { &self.log_level };
        let log = LogSettings::parse(&self.log_path, level, &self.log_format, false).map_err(|error| {
            // The provider of the reference says nothing before it.
            place.error(error.key(), error.to_string())
        })?;
        Ok(OidcConfig { log, serving, source, health, notices })
    }

    /// What the reference looks at first.
    fn check_first(&self, place: &Place<'_>) -> Result<(), ConfigError> {
        if self.domains.is_empty() {
            return Err(place.error("domains", "at least one domain must be configured"));
        }
        if let Some(acme) = &self.acme {
            if !self.insecure_addr.is_empty() {
                let text = "insecure_addr and the acme section are mutually exclusive";
                return Err(place.error("insecure_addr", text));
            }
            if !acme.tos_accepted {
                let text = "tos_accepted must be set to true in the acme configuration section";
                return Err(place.error("acme.tos_accepted", text));
            }
            if acme.email.is_empty() {
                return Err(
                    place.error("acme.email", "email must be configured in the acme configuration section")
                );
            }
        }
        if let Some(files) = &self.serving_cert_file {
            files.check(place)?;
        }
        Ok(())
    }

    fn listener(&self, place: &Place<'_>) -> Result<ListenerConfig, ConfigError> {
        let (acme, files) = (&self.acme, &self.serving_cert_file);
        let (insecure, socket) = (!self.insecure_addr.is_empty(), !self.listen_socket_path.is_empty());
        let conflicts = [
            (acme.is_some() && files.is_some(), "acme", "acme and serving_cert_file are mutually exclusive"),
            (
                acme.is_some() && socket,
                "listen_socket_path",
                "listen_socket_path and the acme section are mutually exclusive",
            ),
            (
                files.is_some() && insecure,
                "serving_cert_file",
                "serving_cert_file and insecure_addr are mutually exclusive",
            ),
            (
                files.is_some() && socket,
                "serving_cert_file",
                "serving_cert_file and listen_socket_path are mutually exclusive",
            ),
            (
                insecure && socket,
                "insecure_addr",
                "insecure_addr and listen_socket_path are mutually exclusive",
            ),
        ];
        if let Some((_, key, text)) = conflicts.into_iter().find(|(conflict, ..)| *conflict) {
            return Err(place.error(key, text));
        }
        if insecure {
            return Ok(ListenerConfig::Insecure(self.insecure_addr.clone()));
        }
        if socket {
            return Ok(ListenerConfig::Unix(self.listen_socket_path.clone().into()));
        }
        match (acme, files) {
            (_, Some(files)) => files.listener(place),
            (Some(acme), None) => Ok(acme.listener()),
            (None, None) => Err(ConfigError::new(
                "either acme, serving_cert_file, insecure_addr or listen_socket_path must be configured",
            )),
        }
    }

    /// The sources that are configured, as far as the reference looks at them before the listener.
    fn sources(&self, place: &Place<'_>) -> Result<Vec<SourceConfig>, ConfigError> {
        let mut sources = Vec::new();
        let interval = |section: &str, text: &str| {
            poll_interval(text, DEFAULT_POLL_INTERVAL).map_err(|error| {
                let key = format!("{section}.poll_interval");
                let text = format!("invalid poll_interval in the {section} configuration section: {error}");
                place.error(&key, text)
            })
        };
        if let Some(api) = &self.server_api {
            let poll_interval = interval("server_api", &api.poll_interval)?;
            sources.push(SourceConfig::ServerApi { address: api.address.clone(), poll_interval });
        }
        if let Some(api) = &self.workload_api {
            if api.trust_domain.is_empty() {
                let text = "trust_domain must be configured in the workload_api configuration section";
                return Err(place.error("workload_api.trust_domain", text));
            }
            let poll_interval = interval("workload_api", &api.poll_interval)?;
            let trust_domain = TrustDomain::parse(&api.trust_domain)
                .map_err(|error| place.error("workload_api.trust_domain", error.to_string()))?;
            let socket_path = api.socket_path.clone().into();
            sources.push(SourceConfig::WorkloadApi { socket_path, trust_domain, poll_interval });
        }
        if let Some(file) = &self.file {
            let poll_interval = interval("file", &file.poll_interval)?;
            sources.push(SourceConfig::File { path: file.path.clone().into(), poll_interval });
        }
        Ok(sources)
    }

    /// What the reference looks at after the listener.
    fn check_sources(&self, place: &Place<'_>) -> Result<(), ConfigError> {
        if let Some(api) = &self.server_api {
            if api.address.is_empty() {
                let text = "address must be configured in the server_api configuration section";
                return Err(place.error("server_api.address", text));
            }
            if !api.address.starts_with("unix:") {
                let text = "address must use the unix name system in the server_api configuration section";
                return Err(place.error("server_api.address", text));
            }
        }
        if self.workload_api.as_ref().is_some_and(|api| api.socket_path.is_empty()) {
            let text = "socket_path must be configured in the workload_api configuration section";
            return Err(place.error("workload_api.socket_path", text));
        }
        Ok(())
    }

    fn serving(
        &self,
        listener: ListenerConfig,
        place: &Place<'_>,
        notices: &mut Vec<Notice>,
    ) -> Result<Serving, ConfigError> {
        let jwt_issuer = match self.jwt_issuer.as_str() {
            "" => None,
            text => Some(jwt_issuer(text).map_err(|error| place.error("jwt_issuer", error))?),
        };
        let jwks_uri = match self.jwks_uri.as_str() {
            "" => None,
            text => {
                let refused = |reason: &str| {
                    let text = format!("the jwks_uri setting could not be parsed{reason}");
                    place.error("jwks_uri", text)
                };
                let url = Url::parse(text)
                    .map_err(|reason| refused(&format!(": parse {}: {reason}", quote(text))))?;
                if url.scheme.is_empty() || url.host.is_empty() {
                    return Err(refused("").with_hint("it needs a scheme and a host"));
                }
                Some(url)
            }
        };
        if jwks_uri.is_none() && jwt_issuer.is_some() {
            notices.push(Notice::warn(
                "The jwt_issuer configuration will also affect the jwks_uri behavior when jwks_url is not set. \
                 This behaviour will be changed in 1.13.0.",
            ));
        }
        if self.allow_insecure_scheme {
            notices.push(Notice::warn(
                "allow_insecure_scheme is enabled. JWKS keys will be served over HTTP. Only enable this when \
                 the network path to the provider is trusted end-to-end (for example, when TLS is terminated \
                 at a trusted reverse proxy or load balancer on a private network)",
            ));
        }
        let domains =
            Domains::new(&self.domains).map_err(|error| place.error("domains", error.to_string()))?;
        let routes = Routes::new(&self.server_path_prefix)
            .map_err(|error| place.error("server_path_prefix", error))?;
        let documents = Documents {
            domains,
            set_key_use: self.set_key_use,
            allow_insecure_scheme: self.allow_insecure_scheme,
            jwt_issuer,
            jwks_uri,
            routes,
        };
        Ok(Serving { listener, documents, log_requests: self.log_requests })
    }

    fn health(&self, place: &Place<'_>) -> Result<Option<HealthChecks>, ConfigError> {
        let Some(raw) = &self.health_checks else { return Ok(None) };
        let or =
            |text: &str, default: &str| if text.is_empty() { default.to_owned() } else { text.to_owned() };
        let bind_port = match raw.bind_port {
            ..=0 => DEFAULT_HEALTH_PORT,
            port => u16::try_from(port).map_err(|_| {
                // The reference finds out when it listens, in these words, and goes on without.
                place.error("health_checks.bind_port", format!("listen tcp: address {port}: invalid port"))
            })?,
        };
        let (ready_path, live_path) = (or(&raw.ready_path, "/ready"), or(&raw.live_path, "/live"));
        for (key, path) in [("ready_path", &ready_path), ("live_path", &live_path)] {
            if !path.starts_with('/') {
                // The reference's HTTP library takes what is before the first slash for a host, or ends with a panic.
                let text =
                    format!("{key} must begin with a slash in the health_checks configuration section");
                return Err(place.error(&format!("health_checks.{key}"), text));
            }
        }
        Ok(Some(HealthChecks { bind_port, ready_path, live_path }))
    }
}

impl RawServingCertFile {
    fn check(&self, place: &Place<'_>) -> Result<(), ConfigError> {
        let section = "in the serving_cert_file configuration section";
        for (key, value) in [("cert_file_path", &self.cert_file_path), ("key_file_path", &self.key_file_path)]
        {
            if value.is_empty() {
                let text = format!("{key} must be configured {section}");
                return Err(place.error(&format!("serving_cert_file.{key}"), text));
            }
        }
        if let Some(reason) = bad_address(self.address()) {
            let text = format!("invalid addr {section}: address {}: {reason}", self.address());
            return Err(place.error("serving_cert_file.addr", text));
        }
        self.interval(place).map(|_| ())
    }

    fn address(&self) -> &str {
        if self.addr.is_empty() { DEFAULT_SERVING_ADDRESS } else { &self.addr }
    }

    fn interval(&self, place: &Place<'_>) -> Result<Duration, ConfigError> {
        poll_interval(&self.file_sync_interval, DEFAULT_FILE_SYNC_INTERVAL).map_err(|error| {
            let text =
                format!("invalid file_sync_interval in the serving_cert_file configuration section: {error}");
            place.error("serving_cert_file.file_sync_interval", text)
        })
    }

    fn listener(&self, place: &Place<'_>) -> Result<ListenerConfig, ConfigError> {
        Ok(ListenerConfig::Files {
            certificate: self.cert_file_path.clone().into(),
            key: self.key_file_path.clone().into(),
            address: self.address().to_owned(),
            sync_interval: self.interval(place)?,
        })
    }
}

impl RawAcme {
    fn listener(&self) -> ListenerConfig {
        let cache_dir = self.cache_dir.as_deref().unwrap_or(DEFAULT_CACHE_DIR);
        ListenerConfig::Acme {
            directory_url: self.directory_url.clone(),
            email: self.email.clone(),
            cache_dir: (!cache_dir.is_empty()).then(|| cache_dir.into()),
        }
    }
}

fn jwt_issuer(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|reason| {
        format!("the jwt_issuer url could not be parsed: parse {}: {reason}", quote(text))
    })?;
    match (url.scheme.is_empty(), url.host.is_empty()) {
        (true, _) => Err("the jwt_issuer url must contain a scheme".to_owned()),
        (false, true) => Err("the jwt_issuer url must contain a host".to_owned()),
        (false, false) => Ok(url),
    }
}

/// A duration; nothing, zero and less mean the default.
fn poll_interval(text: &str, default: Duration) -> Result<Duration, String> {
    if text.is_empty() {
        return Ok(default);
    }
    let duration: GoDuration =
        text.parse().map_err(|error: spire_compat::duration::DurationError| error.to_string())?;
    Ok(duration.to_std().filter(|duration| !duration.is_zero()).unwrap_or(default))
}

/// What Go's `net.SplitHostPort` would say of `host:port`.
fn bad_address(address: &str) -> Option<&'static str> {
    crate::domains::split_host_port(address).err()
}
