//! The agent's configuration: flags, file and defaults become an [`AgentConfig`] in which everything is
//! parsed. Rules, defaults and texts are those of the reference (cmd/spire-agent/cli/run/run.go).

mod bootstrap;
mod broker;
pub mod raw;

#[cfg(test)]
mod tests;

pub use bootstrap::{BundleFormat, TrustBundleSource};
pub use broker::{Broker, BrokerConfig, ReferenceType};

use std::path::{Path, PathBuf};
use std::time::Duration;

use spire_compat::config::{
    self, ConfigError, ConfigFile, FeatureFlags, HealthChecks, LegacyPlugins, LogSettings, Notice,
    PluginConfig, Profiling, TelemetryConfig, first_set,
};
use spire_compat::duration::GoDuration;
use spire_compat::hcl::Fragment;
use spire_compat::quote::quote;
use spire_core::pki::KeyType;
use spire_core::spiffe::{SpiffeId, TrustDomain};

use raw::{RawAgent, RawConfig};

/// Where the file is looked for without `-config`.
pub const DEFAULT_CONFIG_PATH: &str = "conf/agent/agent.conf";

/// Where the Workload API's socket is without `socket_path`.
pub const DEFAULT_SOCKET_PATH: &str = "/tmp/spire-agent/public/api.sock";

/// The flags of `spire-agent run` and `validate`; `None` and empty texts leave it to the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[allow(missing_docs)] // the names of the flags
pub struct AgentFlags {
    pub allow_unauthenticated_verifiers: bool,
    pub config: Option<String>,
    pub data_dir: Option<String>,
    pub disable_sds_api: bool,
    pub disable_workload_api: bool,
    pub expand_env: bool,
    pub insecure_bootstrap: bool,
    pub join_token: Option<String>,
    pub join_token_file: Option<String>,
    pub log_file: Option<String>,
    pub log_format: Option<String>,
    pub log_level: Option<String>,
    pub log_source_location: bool,
    pub rebootstrap_delay: Option<String>,
    pub rebootstrap_mode: Option<String>,
    pub server_address: Option<String>,
    pub server_port: Option<i64>,
    pub socket_path: Option<String>,
    /// `-trustBundle`
    pub trust_bundle_path: Option<String>,
    pub trust_bundle_format: Option<String>,
    pub trust_bundle_url: Option<String>,
    pub trust_domain: Option<String>,
}

/// A complete agent configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct AgentConfig {
    /// The file that it came from.
    pub config_path: String,
    /// Logging.
    pub log: LogSettings,
    /// Selectors whose values may stand in logs, by prefix.
    pub log_selectors: Vec<String>,
    /// Where state and keys are.
    pub data_dir: PathBuf,
    /// Our trust domain.
    pub trust_domain: TrustDomain,
    /// The server's host.
    pub server_address: String,
    /// The server's port.
    pub server_port: u16,
    /// How to come to trust the server.
    pub trust_bundle: TrustBundleSource,
    /// Whether to do that again when the server's authorities have changed unseen.
    pub rebootstrap_mode: RebootstrapMode,
    /// How long the server must have been untrusted before.
    pub rebootstrap_delay: Duration,
    /// The join token, from flag, file or configuration.
    pub join_token: Option<String>,
    /// The socket of Workload API and SDS, absolute; `None` if both are off.
    pub socket_path: Option<PathBuf>,
    /// No Workload API.
    pub disable_workload_api: bool,
    /// No SDS.
    pub disable_sds_api: bool,
    /// The socket of the admin API, absolute; `None` is off.
    pub admin_socket_path: Option<PathBuf>,
    /// IDs that may use the Delegated Identity API.
    pub authorized_delegates: Vec<SpiffeId>,
    /// Names that SDS answers to.
    pub sds: SdsConfig,
    /// The key type of workloads' SVIDs.
    pub workload_key_type: KeyType,
    /// Whether bundles are for everyone.
    pub allow_unauthenticated_verifiers: bool,
    /// Claims returned from JWT-SVIDs of others.
    pub allowed_foreign_jwt_claims: Vec<String>,
    /// How long workloads are to be served while the server is away.
    pub availability_target: Option<Duration>,
    /// Soft bound of the X.509-SVID cache.
    pub x509_svid_cache_max_size: usize,
    /// Bound of the JWT-SVID cache.
    pub jwt_svid_cache_max_size: usize,
    /// How often entries are synchronised.
    pub sync_interval: Duration,
    /// How long to wait for a new JWT-SVID before a cached one is used; `None` is the client's own timeout.
    pub jwt_svid_cache_hit_timeout: Option<Duration>,
    /// Whether entries come by SyncAuthorizedEntries.
    pub use_sync_authorized_entries: bool,
    /// Whether every TLS connection needs a post-quantum key exchange.
    pub require_pq_kem: bool,
    /// Whether a change of the file reloads it, as SIGHUP does. SPIRE has no such key.
    pub reload_on_change: bool,
    /// Calls a second for one set of selectors; zero is off.
    pub ratelimit: RateLimits,
    /// The broker API; `None` is off.
    pub broker: Option<BrokerConfig>,
    /// Feature flags.
    pub feature_flags: FeatureFlags,
    /// Plugins in file order.
    pub plugins: Vec<PluginConfig>,
    /// Metrics.
    pub telemetry: TelemetryConfig,
    /// Health listener.
    pub health_checks: HealthChecks,
    /// Profiling.
    pub profiling: Profiling,
    /// What to log once the logger exists, in order.
    pub notices: Vec<Notice>,
}

/// When to bootstrap again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RebootstrapMode {
    /// Never.
    Never,
    /// If the agent can attest again.
    Auto,
    /// Always.
    Always,
}

/// `sds`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SdsConfig {
    /// The resource that is the workload's SVID.
    pub default_svid_name: String,
    /// The resource that is our bundle.
    pub default_bundle_name: String,
    /// The resource that is every bundle.
    pub default_all_bundles_name: String,
    /// Whether Envoy's own validator is used.
    pub disable_spiffe_cert_validation: bool,
}

/// `experimental.ratelimit`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(missing_docs)] // the names of the calls
pub struct RateLimits {
    pub fetch_x509_svid: u64,
    pub fetch_jwt_svid: u64,
    pub fetch_x509_bundles: u64,
    pub fetch_jwt_bundles: u64,
    pub stream_secrets: u64,
    pub fetch_secrets: u64,
}

impl AgentConfig {
    /// Reads the file that the flags name and resolves everything.
    pub fn load(flags: &AgentFlags) -> Result<Self, ConfigError> {
        Self::resolve(&Self::read(flags)?, flags)
    }

    /// As [`AgentConfig::load`], for an agent that runs: the join token was used at its start, and its file may be gone.
    pub fn load_again(flags: &AgentFlags) -> Result<Self, ConfigError> {
        Self::resolve_with(&Self::read(flags)?, flags, Token::Ignored)
    }

    fn read(flags: &AgentFlags) -> Result<ConfigFile, ConfigError> {
        let path = first_set(flags.config.as_deref(), None, DEFAULT_CONFIG_PATH);
        ConfigFile::read(path, flags.expand_env)
    }

    /// Resolves a parsed file with flags. A refused configuration carries what is to be logged before the
    /// error.
    pub fn resolve(file: &ConfigFile, flags: &AgentFlags) -> Result<Self, ConfigError> {
        Self::resolve_with(file, flags, Token::Read)
    }

    fn resolve_with(file: &ConfigFile, flags: &AgentFlags, token: Token) -> Result<Self, ConfigError> {
        let raw = raw::read(file)?;
        let mut notices = raw.notices.clone();
        let resolver = Resolver { file, flags, raw: &raw, agent: &raw.agent, token, notices: &mut notices };
        resolver.resolve().map_err(|mut error| {
            error.notices = notices;
            error
        })
    }
}

/// What becomes of the join token.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Token {
    Read,
    Ignored,
}

struct Resolver<'a> {
    file: &'a ConfigFile,
    flags: &'a AgentFlags,
    raw: &'a RawConfig,
    agent: &'a RawAgent,
    token: Token,
    notices: &'a mut Vec<Notice>,
}

fn is_on(flag: bool, file: Option<bool>) -> bool {
    flag || file == Some(true)
}

impl<'a> Resolver<'a> {
    fn fail(&self, key: &str, message: impl Into<String>) -> ConfigError {
        self.file.error_at(&format!("agent.{key}"), message)
    }

    fn text(&self, flag: &Option<String>, file: &Option<String>, default: &str) -> String {
        first_set(flag.as_deref(), file.as_deref(), default).to_owned()
    }

    /// In the order of the reference, because the first error is the one shown.
    fn resolve(mut self) -> Result<AgentConfig, ConfigError> {
        let (raw, agent, flags) = (self.raw, self.agent, self.flags);
        let feature_flags = FeatureFlags::parse(&agent.experimental.feature_flags)
            .map_err(|error| self.fail("experimental.feature_flags", error))?;
        let (plugins, server_port, trust_bundle) = self.validate()?;
        let (rebootstrap_mode, rebootstrap_delay) = self.rebootstrap(&trust_bundle)?;
        let sync_interval = self.sync_interval()?;
        let log = LogSettings::parse(
            &self.text(&flags.log_file, &agent.log_file, ""),
            &self.text(&flags.log_level, &agent.log_level, "INFO"),
            &self.text(&flags.log_format, &agent.log_format, ""),
            is_on(flags.log_source_location, agent.log_source_location),
        )
        .map_err(|error| self.file.log_error("agent", &error))?;
        let jwt_svid_cache_hit_timeout = self.cache_hit_timeout()?;
        if agent.experimental.use_sync_authorized_entries.is_some() {
            self.notices.push(Notice::deprecated(
                "The 'use_sync_authorized_entries' configuration is deprecated. The option to disable it will be \
                 removed in SPIRE 1.13.",
            ));
        }
        let x509_cache = self.cache_size("x509_svid_cache_max_size", agent.x509_svid_cache_max_size)?;
        let jwt_cache = self.cache_size("jwt_svid_cache_max_size", agent.jwt_svid_cache_max_size)?;
        let trust_domain = self.trust_domain()?;
        let disable_workload_api = is_on(flags.disable_workload_api, agent.disable_workload_api);
        let disable_sds_api = is_on(flags.disable_sds_api, agent.disable_sds_api);
        let socket = self.text(&flags.socket_path, &agent.socket_path, DEFAULT_SOCKET_PATH);
        let socket_path = (!disable_workload_api || !disable_sds_api).then(|| config::absolute_path(socket));
        let admin_socket_path = self.admin_socket(socket_path.as_deref())?;
        let join_token = self.join_token()?;
        let sds = self.sds();
        let workload_key_type = self.workload_key_type()?;
        let (plugins, plugin_notices) = config::plugin_configs(self.file, plugins, LegacyPlugins::Agent)?;
        self.notices.extend(plugin_notices);
        self.check_unknown()?;
        let authorized_delegates = self.delegates(&trust_domain)?;
        let broker = match &agent.experimental.broker {
            Some(broker) => Some(
                broker::resolve(broker, socket_path.as_deref())
                    .map_err(|error| self.fail("experimental.broker", error))?,
            ),
            None => None,
        };
        let availability_target = self.availability_target()?;
        let ratelimit = self.rate_limits()?;
        self.note_experimental();
        self.notices.extend(feature_flags.notices());
        Ok(AgentConfig {
            config_path: self.file.path.clone(),
            log,
            log_selectors: agent.log_selectors.clone(),
            data_dir: self.text(&flags.data_dir, &agent.data_dir, ".").into(),
            trust_domain,
            server_address: self.text(&flags.server_address, &agent.server_address, ""),
            server_port,
            trust_bundle,
            rebootstrap_mode,
            rebootstrap_delay,
            join_token,
            socket_path,
            disable_workload_api,
            disable_sds_api,
            admin_socket_path,
            authorized_delegates,
            sds,
            workload_key_type,
            allow_unauthenticated_verifiers: is_on(
                flags.allow_unauthenticated_verifiers,
                agent.allow_unauthenticated_verifiers,
            ),
            allowed_foreign_jwt_claims: agent.allowed_foreign_jwt_claims.clone(),
            availability_target,
            x509_svid_cache_max_size: x509_cache,
            jwt_svid_cache_max_size: jwt_cache,
            sync_interval,
            jwt_svid_cache_hit_timeout,
            use_sync_authorized_entries: agent.experimental.use_sync_authorized_entries.unwrap_or(true),
            require_pq_kem: agent.experimental.require_pq_kem.unwrap_or_default(),
            reload_on_change: agent.experimental.reload_on_change.unwrap_or_default(),
            ratelimit,
            broker,
            feature_flags,
            plugins,
            telemetry: raw.telemetry.clone(),
            health_checks: raw.health_checks.clone(),
            profiling: agent.profiling.clone(),
            notices: std::mem::take(self.notices),
        })
    }

    fn note_experimental(&mut self) {
        if self.agent.experimental.require_pq_kem == Some(true) {
            self.notices.push(Notice::debug(
                "Experimental option 'require_pq_kem' is enabled; all TLS connections will require use of a \
                 post-quantum safe KEM",
            ));
        }
        if self.agent.experimental.is_used() {
            self.notices.push(Notice::warn(
                "Experimental features have been enabled. Please see doc/upgrading.md for upgrade and \
                 compatibility considerations for experimental features.",
            ));
        }
    }

    /// What must be there before anything is looked at closely.
    fn validate(&self) -> Result<(&'a Fragment, u16, TrustBundleSource), ConfigError> {
        let (flags, agent) = (self.flags, self.agent);
        let Some(plugins) = &self.raw.plugins else {
            return Err(self.file.no_plugins());
        };
        let (token, token_file) = self.join_token_parts();
        if !token.is_empty() && !token_file.is_empty() {
            let message = "only one of join_token or join_token_file can be specified, not both";
            return Err(self.fail("join_token_file", message));
        }
        if self.text(&flags.server_address, &agent.server_address, "").is_empty() {
            return Err(self.fail("server_address", "server_address must be configured"));
        }
        let set = |port: &i64| *port != 0;
        let Some(port) = flags.server_port.filter(set).or(agent.server_port.filter(set)) else {
            return Err(self.fail("server_port", "server_port must be configured"));
        };
        if self.text(&flags.trust_domain, &agent.trust_domain, "").is_empty() {
            return Err(self.fail("trust_domain", "trust_domain must be configured"));
        }
        let sources = bootstrap::RawSources {
            insecure: is_on(flags.insecure_bootstrap, agent.insecure_bootstrap),
            format: self.text(&flags.trust_bundle_format, &agent.trust_bundle_format, "pem"),
            path: self.text(&flags.trust_bundle_path, &agent.trust_bundle_path, ""),
            url: self.text(&flags.trust_bundle_url, &agent.trust_bundle_url, ""),
            unix_socket: agent.trust_bundle_unix_socket.clone().unwrap_or_default(),
            workload_api: agent.trust_bundle_spiffe_workload_api.clone().unwrap_or_default(),
        };
        let source = sources.resolve().map_err(|(key, message)| self.fail(key, message))?;
        let pipes = &agent.experimental;
        for (key, value, now) in [
            ("named_pipe_name", &pipes.named_pipe_name, "socket_path"),
            ("admin_named_pipe_name", &pipes.admin_named_pipe_name, "admin_socket_path"),
        ] {
            if value.as_deref().is_some_and(|name| !name.is_empty()) {
                let message = format!(
                    "invalid configuration: {key} is not supported in this platform; please use {now} instead"
                );
                return Err(self.fail(&format!("experimental.{key}"), message));
            }
        }
        let port = u16::try_from(port)
            .map_err(|_| self.fail("server_port", format!("server_port {port} is not a port number")))?;
        Ok((plugins, port, source))
    }

    fn rebootstrap(&self, source: &TrustBundleSource) -> Result<(RebootstrapMode, Duration), ConfigError> {
        let mode = self.text(&self.flags.rebootstrap_mode, &self.agent.rebootstrap_mode, "never");
        let mode = match mode.as_str() {
            "never" => RebootstrapMode::Never,
            "auto" => RebootstrapMode::Auto,
            "always" => RebootstrapMode::Always,
            _ => {
                let message = format!("unknown rebootstrap mode specified: {mode}");
                return Err(self.fail("rebootstrap_mode", message));
            }
        };
        if mode != RebootstrapMode::Never && *source == TrustBundleSource::Insecure {
            let message = "insecure_bootstrap option can not be used with rebootstrapping";
            return Err(self.fail("insecure_bootstrap", message));
        }
        let delay = self.text(&self.flags.rebootstrap_delay, &self.agent.rebootstrap_delay, "10m");
        let delay = config::parse_duration(&delay).map_err(|error| {
            self.fail("rebootstrap_delay", format!("error parsing rebootstrap delay duration: {error}"))
        })?;
        Ok((mode, delay))
    }

    fn sync_interval(&self) -> Result<Duration, ConfigError> {
        let default = Duration::from_secs(5);
        let text = self.agent.experimental.sync_interval.as_deref().unwrap_or_default();
        if text.is_empty() {
            return Ok(default);
        }
        let interval = config::parse_duration(text).map_err(|error| {
            let message = format!("could not parse synchronization interval: {error}");
            self.fail("experimental.sync_interval", message)
        })?;
        Ok(if interval.is_zero() { default } else { interval })
    }

    fn cache_hit_timeout(&mut self) -> Result<Option<Duration>, ConfigError> {
        const KEY: &str = "experimental.jwt_svid_cache_hit_timeout";
        let text = self.agent.experimental.jwt_svid_cache_hit_timeout.as_deref().unwrap_or_default();
        if text.is_empty() {
            return Ok(None);
        }
        let timeout = config::parse_duration(text).map_err(|error| {
            self.fail(KEY, format!("could not parse jwt_svid_cache_hit_timeout: {error}"))
        })?;
        let shown = GoDuration::from(timeout);
        if timeout < Duration::from_secs(5) {
            let message = format!("jwt_svid_cache_hit_timeout ({shown}) must be greater than 5s");
            return Err(self.fail(KEY, message));
        }
        if timeout >= Duration::from_secs(30) {
            let message = format!("jwt_svid_cache_hit_timeout ({shown}) must be less than 30s");
            return Err(self.fail(KEY, message));
        }
        self.notices.push(Notice::warn("The use of 'jwt_svid_cache_hit_timeout' is experimental"));
        Ok(Some(timeout))
    }

    fn cache_size(&self, key: &str, size: Option<i64>) -> Result<usize, ConfigError> {
        let size = usize::try_from(size.unwrap_or_default())
            .map_err(|_| self.fail(key, format!("{key} should not be negative")))?;
        Ok(if size == 0 { 1000 } else { size })
    }

    fn trust_domain(&self) -> Result<TrustDomain, ConfigError> {
        let text = self.text(&self.flags.trust_domain, &self.agent.trust_domain, "");
        TrustDomain::parse(&text).map_err(|error| {
            self.fail("trust_domain", format!("could not parse trust_domain {}: {error}", quote(&text)))
        })
    }

    fn admin_socket(&self, workload_socket: Option<&Path>) -> Result<Option<PathBuf>, ConfigError> {
        let text = self.agent.admin_socket_path.as_deref().unwrap_or_default();
        if text.is_empty() {
            return Ok(None);
        }
        let path = config::absolute_path(text);
        if is_below(&path, workload_socket) {
            return Err(self.fail(
                "admin_socket_path",
                "admin socket cannot be in the same directory or a subdirectory as that containing the Workload \
                 API socket",
            ));
        }
        Ok(Some(path))
    }

    fn join_token_parts(&self) -> (String, String) {
        let token = self.text(&self.flags.join_token, &self.agent.join_token, "");
        (token, self.text(&self.flags.join_token_file, &self.agent.join_token_file, ""))
    }

    fn join_token(&self) -> Result<Option<String>, ConfigError> {
        if self.token == Token::Ignored {
            return Ok(None);
        }
        let (token, file) = self.join_token_parts();
        if file.is_empty() {
            return Ok((!token.is_empty()).then_some(token));
        }
        let text = std::fs::read(&file).map_err(|error| {
            let cause = config::io_error(&file, &error);
            let message = format!("unable to read join token file {}: {cause}", quote(&file));
            self.fail("join_token_file", message)
        })?;
        let token = String::from_utf8_lossy(&text).trim().to_owned();
        if token.is_empty() {
            return Err(self.fail("join_token_file", "join token file is empty"));
        }
        Ok(Some(token))
    }

    fn sds(&mut self) -> SdsConfig {
        let raw = &self.agent.sds;
        let name =
            |text: &Option<String>, default: &str| first_set(None, text.as_deref(), default).to_owned();
        let sds = SdsConfig {
            default_svid_name: name(&raw.default_svid_name, "default"),
            default_bundle_name: name(&raw.default_bundle_name, "ROOTCA"),
            default_all_bundles_name: name(&raw.default_all_bundles_name, "ALL"),
            disable_spiffe_cert_validation: raw.disable_spiffe_cert_validation.unwrap_or_default(),
        };
        if sds.default_all_bundles_name == sds.default_bundle_name {
            self.notices.push(Notice::warn(
                "The \"default_bundle_name\" and \"default_all_bundles_name\" configurables have the same value. \
                 \"default_all_bundles_name\" will be ignored. Please configure distinct values or use the \
                 defaults. This will be a configuration error in a future release.",
            ));
        }
        sds
    }

    fn workload_key_type(&self) -> Result<KeyType, ConfigError> {
        const KEY: &str = "workload_x509_svid_key_type";
        match self.agent.workload_x509_svid_key_type.as_deref() {
            None | Some("") => Ok(KeyType::EcP256),
            Some(text) => match text.parse() {
                Ok(kind) if kind != KeyType::Rsa4096 => Ok(kind),
                _ => {
                    let text = quote(text);
                    let message =
                        format!("key type {text} is unknown; must be one of [rsa-2048, ec-p256, ec-p384]");
                    Err(self.fail(KEY, message))
                }
            },
        }
    }

    fn check_unknown(&self) -> Result<(), ConfigError> {
        let unknown = &self.raw.unknown;
        if unknown.is_empty() {
            return Ok(());
        }
        let mut error = ConfigError::new("unknown configuration detected");
        error.hint = Some(unknown.iter().map(|keys| keys.positions()).collect::<Vec<_>>().join(", "));
        error.unknown.clone_from(unknown);
        Err(error)
    }

    fn delegates(&self, trust_domain: &TrustDomain) -> Result<Vec<SpiffeId>, ConfigError> {
        let parse = |text: &String| {
            let id = SpiffeId::parse(text).map_err(|error| error.to_string()).and_then(|id| {
                if id.is_member_of(trust_domain) {
                    return Ok(id);
                }
                let (id, domain) = (quote(id.as_str()), quote(trust_domain.name()));
                Err(format!("SPIFFE ID {id} is not a member of trust domain {domain}"))
            });
            id.map_err(|error| {
                self.fail("authorized_delegates", format!("error validating authorized delegate: {error}"))
            })
        };
        self.agent.authorized_delegates.iter().map(parse).collect()
    }

    fn availability_target(&self) -> Result<Option<Duration>, ConfigError> {
        let text = self.agent.availability_target.as_deref().unwrap_or_default();
        if text.is_empty() {
            return Ok(None);
        }
        let target = config::parse_duration(text).map_err(|error| {
            self.fail("availability_target", format!("unable to parse availability_target: {error}"))
        })?;
        if target < Duration::from_secs(24 * 3600) {
            return Err(self.fail("availability_target", "availability_target must be at least 24h0m0s"));
        }
        Ok(Some(target))
    }

    fn rate_limits(&self) -> Result<RateLimits, ConfigError> {
        let raw = &self.agent.experimental.ratelimit;
        let limit = |key: &str, value: Option<i64>| {
            u64::try_from(value.unwrap_or_default()).map_err(|_| {
                let key = format!("experimental.ratelimit.{key}");
                self.fail(&key, format!("{key} must not be negative"))
            })
        };
        Ok(RateLimits {
            fetch_x509_svid: limit("fetch_x509_svid", raw.fetch_x509_svid)?,
            fetch_jwt_svid: limit("fetch_jwt_svid", raw.fetch_jwt_svid)?,
            fetch_x509_bundles: limit("fetch_x509_bundles", raw.fetch_x509_bundles)?,
            fetch_jwt_bundles: limit("fetch_jwt_bundles", raw.fetch_jwt_bundles)?,
            stream_secrets: limit("stream_secrets", raw.stream_secrets)?,
            fetch_secrets: limit("fetch_secrets", raw.fetch_secrets)?,
        })
    }
}

/// Whether a socket would be in the folder of the Workload API's socket or below it, where every workload
/// may look. Both paths are absolute.
fn is_below(path: &Path, workload_socket: Option<&Path>) -> bool {
    workload_socket.and_then(Path::parent).is_some_and(|folder| path != folder && path.starts_with(folder))
}
