//! The server's configuration: flags, file and defaults become a [`ServerConfig`] in which everything is
//! parsed. Rules, defaults and texts are those of the reference (cmd/spire-server/cli/run/run.go).

mod cidr;
mod federation;
pub mod raw;
mod ttl;

#[cfg(test)]
mod tests;

pub use cidr::Cidr;
pub use federation::{
    AcmeConfig, BundleEndpoint, BundleEndpointProfile, FederatesWith, FederationConfig, FederationProfile,
};

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use spire_compat::config::{
    self, ConfigError, ConfigFile, FeatureFlags, HealthChecks, LegacyPlugins, LogSettings, Notice,
    PluginConfig, Profiling, TelemetryConfig, first_set,
};
use spire_compat::hcl::Fragment;
use spire_compat::quote::quote;
use spire_core::pki::{DistinguishedName, KeyType};
use spire_core::spiffe::{SpiffeId, TrustDomain};

use raw::{RawConfig, RawServer};

/// Where the file is looked for without `-config`.
pub const DEFAULT_CONFIG_PATH: &str = "conf/server/server.conf";

/// Where the API's socket is without `socket_path`.
pub const DEFAULT_SOCKET_PATH: &str = "/tmp/spire-server/private/api.sock";

/// The flags of `spire-server run` and `validate`; `None` and empty texts leave it to the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[allow(missing_docs)] // the names of the flags
pub struct ServerFlags {
    pub bind_address: Option<String>,
    pub config: Option<String>,
    pub data_dir: Option<String>,
    pub expand_env: bool,
    pub log_file: Option<String>,
    pub log_format: Option<String>,
    pub log_level: Option<String>,
    pub log_source_location: bool,
    pub server_port: Option<i64>,
    pub socket_path: Option<String>,
    pub trust_domain: Option<String>,
}

/// A complete server configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct ServerConfig {
    /// The file that it came from.
    pub config_path: String,
    /// Logging.
    pub log: LogSettings,
    /// Where agents connect.
    pub bind_address: SocketAddr,
    /// The socket of the API, absolute.
    pub socket_path: PathBuf,
    /// Where keys and, by default, databases are.
    pub data_dir: PathBuf,
    /// Our trust domain.
    pub trust_domain: TrustDomain,
    /// Callers with these IDs are admins.
    pub admin_ids: Vec<SpiffeId>,
    /// Whether to log every call.
    pub audit_log_enabled: bool,
    /// Peers that may send a PROXY header.
    pub proxy_protocol_trusted_cidrs: Vec<Cidr>,
    /// The lifetime of agents' SVIDs; `None` is [`ServerConfig::x509_svid_ttl`].
    pub agent_ttl: Option<Duration>,
    /// The lifetime of X.509-SVIDs.
    pub x509_svid_ttl: Duration,
    /// The lifetime of JWT-SVIDs.
    pub jwt_svid_ttl: Duration,
    /// The lifetime of our authorities.
    pub ca_ttl: Duration,
    /// The key type of X.509 authorities.
    pub ca_key_type: KeyType,
    /// The key type of JWT authorities.
    pub jwt_key_type: KeyType,
    /// The key type of WIT authorities.
    pub wit_key_type: KeyType,
    /// The subject of X.509 authorities.
    pub ca_subject: DistinguishedName,
    /// The `iss` claim of JWT-SVIDs.
    pub jwt_issuer: Option<String>,
    /// The `iss` claim of WIT-SVIDs.
    pub wit_issuer: Option<String>,
    /// No JWT keys, no JWT-SVIDs.
    pub disable_jwt_svids: bool,
    /// Whether the limit on attestation per address holds.
    pub ratelimit_attestation: bool,
    /// Whether the limit on signing per address holds.
    pub ratelimit_signing: bool,
    /// Federation.
    pub federation: FederationConfig,
    /// Pruning of expired agents; `None` is off.
    pub prune_attested_nodes: Option<PruneAttestedNodes>,
    /// How old cached information about an agent may be; zero reads it every time.
    pub max_attested_node_info_staleness: Duration,
    /// `experimental`
    pub experimental: Experimental,
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

/// Pruning of agents that expired.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PruneAttestedNodes {
    /// How long ago they must have expired.
    pub expired_for: Duration,
    /// How many are deleted at most each time that it is looked.
    pub batch_size: usize,
    /// Whether those that cannot attest again are deleted too.
    pub include_non_reattestable: bool,
}

/// Settings that may change or go.
#[derive(Debug, Clone, PartialEq)]
pub struct Experimental {
    /// Whether an agent's ID is one of its selectors.
    pub agent_spiffe_id_as_selector: bool,
    /// The policy that replaces the built-in one.
    pub policy: Option<PolicyFiles>,
    /// How often the entry cache is refreshed.
    pub cache_reload_interval: Duration,
    /// How often it is rebuilt from nothing, with the events based cache.
    pub full_cache_reload_interval: Duration,
    /// Whether the entry cache follows events.
    pub events_based_cache: bool,
    /// How long events are kept.
    pub prune_events_older_than: Duration,
    /// How long a missing event is waited for.
    pub event_timeout: Duration,
    /// Whether every TLS connection needs a post-quantum key exchange.
    pub require_pq_kem: bool,
    /// Whether a change of the file reloads it, as SIGHUP does. SPIRE has no such key.
    pub reload_on_change: bool,
    /// What serves the OIDC discovery documents from this server reads this. SPIRE has no such block.
    pub oidc: Option<Fragment>,
}

/// `auth_opa_policy_engine.local`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyFiles {
    /// The rego module.
    pub rego_path: String,
    /// Its data, JSON; empty for none.
    pub policy_data_path: String,
}

impl ServerConfig {
    /// Reads the file that the flags name and resolves everything.
    pub fn load(flags: &ServerFlags) -> Result<Self, ConfigError> {
        let path = first_set(flags.config.as_deref(), None, DEFAULT_CONFIG_PATH);
        let file = ConfigFile::read(path, flags.expand_env)?;
        Self::resolve(&file, flags)
    }

    /// Resolves a parsed file with flags. A refused configuration carries what is to be logged before the
    /// error.
    pub fn resolve(file: &ConfigFile, flags: &ServerFlags) -> Result<Self, ConfigError> {
        let raw = raw::read(file)?;
        let mut notices = raw.notices.clone();
        Resolver { file, flags, raw: &raw, notices: &mut notices }.resolve().map_err(|mut error| {
            error.notices = notices;
            error
        })
    }
}

/// Parses the duration at a key, or fails with `could not parse <what> "<text>": …`.
fn parse_key(file: &ConfigFile, key: &str, text: &str, what: &str) -> Result<Duration, ConfigError> {
    config::parse_duration(text)
        .map_err(|error| file.error_at(key, format!("could not parse {what} {}: {error}", quote(text))))
}

struct Resolver<'a> {
    file: &'a ConfigFile,
    flags: &'a ServerFlags,
    raw: &'a RawConfig,
    notices: &'a mut Vec<Notice>,
}

impl<'a> Resolver<'a> {
    fn fail(&self, key: &str, message: impl Into<String>) -> ConfigError {
        self.file.error_at(&format!("server.{key}"), message)
    }

    fn text(&self, flag: &Option<String>, file: &Option<String>, default: &str) -> String {
        first_set(flag.as_deref(), file.as_deref(), default).to_owned()
    }

    /// In the order of the reference, because the first error is the one shown.
    fn resolve(&mut self) -> Result<ServerConfig, ConfigError> {
        let (raw, flags) = (self.raw, self.flags);
        let server = &raw.server;
        let feature_flags = FeatureFlags::parse(&server.experimental.feature_flags)
            .map_err(|error| self.fail("experimental.feature_flags", error))?;
        let plugins = self.validate()?;
        let log = LogSettings::parse(
            &self.text(&flags.log_file, &server.log_file, ""),
            &self.text(&flags.log_level, &server.log_level, "INFO"),
            &self.text(&flags.log_format, &server.log_format, ""),
            flags.log_source_location || server.log_source_location == Some(true),
        )
        .map_err(|error| self.file.log_error("server", &error))?;
        let bind_address = self.bind_address()?;
        let socket_path = self.text(&flags.socket_path, &server.socket_path, DEFAULT_SOCKET_PATH);
        let data_dir = PathBuf::from(self.text(&flags.data_dir, &server.data_dir, ""));
        let trust_domain = self.trust_domain()?;
        let federation = match &server.federation {
            Some(federation) => federation::resolve(self.file, federation, &data_dir, self.notices)?,
            None => FederationConfig::default(),
        };
        if server.experimental.require_pq_kem == Some(true) {
            self.notices.push(Notice::debug(
                "Experimental option 'require_pq_kem' is enabled; all TLS connections will require use of a \
                 post-quantum safe KEM",
            ));
        }
        let staleness = match server.max_attested_node_info_staleness.as_deref() {
            None => Duration::ZERO,
            Some(text) => {
                self.duration("max_attested_node_info_staleness", text, "max attested node staleness")?
            }
        };
        let admin_ids = self.admin_ids()?;
        let ttls = self.ttls()?;
        let (ca_key_type, jwt_key_type, wit_key_type) = self.key_types()?;
        let ca_subject = self.ca_subject();
        let (plugins, plugin_notices) = config::plugin_configs(self.file, plugins, LegacyPlugins::Server)?;
        self.notices.extend(plugin_notices);
        let prune_attested_nodes = self.pruning()?;
        if server.disable_jwt_svids == Some(true) {
            self.notices.push(Notice::info("JWT-SVID profile is disabled"));
        }
        if !raw.unknown.is_empty() {
            let mut error = ConfigError::new("unknown configuration detected");
            error.hint =
                Some(raw.unknown.iter().map(|unknown| unknown.positions()).collect::<Vec<_>>().join(", "));
            error.unknown = raw.unknown.clone();
            return Err(error);
        }
        let experimental = self.experimental()?;
        self.notices.extend(feature_flags.notices());
        let optional = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        Ok(ServerConfig {
            config_path: self.file.path.clone(),
            log,
            bind_address,
            socket_path: config::absolute_path(socket_path),
            data_dir,
            trust_domain,
            admin_ids,
            audit_log_enabled: server.audit_log_enabled.unwrap_or_default(),
            proxy_protocol_trusted_cidrs: self.cidrs()?,
            agent_ttl: ttls.agent,
            x509_svid_ttl: ttls.x509_svid,
            jwt_svid_ttl: ttls.jwt_svid,
            ca_ttl: ttls.ca,
            ca_key_type,
            jwt_key_type,
            wit_key_type,
            ca_subject,
            jwt_issuer: optional(&server.jwt_issuer),
            wit_issuer: optional(&server.experimental.wit_issuer),
            disable_jwt_svids: server.disable_jwt_svids.unwrap_or_default(),
            ratelimit_attestation: server.ratelimit_attestation.unwrap_or(true),
            ratelimit_signing: server.ratelimit_signing.unwrap_or(true),
            federation,
            prune_attested_nodes,
            max_attested_node_info_staleness: staleness,
            experimental,
            feature_flags,
            plugins,
            telemetry: raw.telemetry.clone(),
            health_checks: raw.health_checks.clone(),
            profiling: server.profiling.clone(),
            notices: std::mem::take(self.notices),
        })
    }

    fn bind_parts(&self) -> (String, i64) {
        let server = &self.raw.server;
        let address = self.text(&self.flags.bind_address, &server.bind_address, "0.0.0.0");
        let set = |port: &i64| *port != 0;
        let port = self.flags.server_port.filter(set).or(server.bind_port.filter(set)).unwrap_or(8081);
        (address, port)
    }

    /// What must be there before anything is looked at closely.
    fn validate(&self) -> Result<&'a Fragment, ConfigError> {
        let (flags, server) = (self.flags, &self.raw.server);
        if self.text(&flags.trust_domain, &server.trust_domain, "").is_empty() {
            return Err(self.fail("trust_domain", "trust_domain must be configured"));
        }
        if self.text(&flags.data_dir, &server.data_dir, "").is_empty() {
            return Err(self.fail("data_dir", "data_dir must be configured"));
        }
        let Some(plugins) = &self.raw.plugins else {
            return Err(self.file.no_plugins());
        };
        if let Some(federation) = &server.federation {
            federation::validate(self.file, federation)?;
        }
        let experimental = &server.experimental;
        let set = |text: &Option<String>| text.as_deref().is_some_and(|text| !text.is_empty());
        if set(&experimental.event_timeout) && set(&experimental.sql_transaction_timeout) {
            return Err(self.fail(
                "experimental.sql_transaction_timeout",
                "both experimental sql_transaction_timeout and event_timeout set, only set event_timeout",
            ));
        }
        self.cidrs()?;
        if set(&experimental.named_pipe_name) {
            return Err(self.fail(
                "experimental.named_pipe_name",
                "invalid configuration: named_pipe_name is not supported in this platform; please use \
                 socket_path instead",
            ));
        }
        Ok(plugins)
    }

    fn cidrs(&self) -> Result<Vec<Cidr>, ConfigError> {
        let parse = |text: &String| {
            text.parse().map_err(|error| {
                let text = quote(text);
                let message = format!("invalid proxy_protocol_trusted_cidrs value {text}: {error}");
                self.fail("proxy_protocol_trusted_cidrs", message)
            })
        };
        self.raw.server.proxy_protocol_trusted_cidrs.iter().map(parse).collect()
    }

    /// A host name is looked up; of several addresses the first of version 4 is taken, as Go does.
    fn bind_address(&self) -> Result<SocketAddr, ConfigError> {
        let (address, port) = self.bind_parts();
        let host = address.trim_matches(['[', ']']);
        let fail = |error: String| {
            let key = if self.raw.server.bind_address.is_some() { "bind_address" } else { "bind_port" };
            self.fail(key, format!("could not resolve bind address \"{address}:{port}\": {error}"))
        };
        let number = u16::try_from(port).map_err(|_| fail(format!("address {port}: invalid port")))?;
        let found: Vec<SocketAddr> = (host, number)
            .to_socket_addrs()
            .map_err(|_| fail(format!("lookup {host}: no such host")))?
            .collect();
        let chosen = found.iter().find(|address| address.is_ipv4()).or(found.first());
        chosen.copied().ok_or_else(|| fail(format!("lookup {host}: no such host")))
    }

    fn trust_domain(&self) -> Result<TrustDomain, ConfigError> {
        let text = self.text(&self.flags.trust_domain, &self.raw.server.trust_domain, "");
        TrustDomain::parse(&text).map_err(|error| {
            self.fail("trust_domain", format!("could not parse trust_domain {}: {error}", quote(&text)))
        })
    }

    fn admin_ids(&self) -> Result<Vec<SpiffeId>, ConfigError> {
        let parse = |text: &String| {
            SpiffeId::parse(text).map_err(|error| {
                self.fail("admin_ids", format!("could not parse admin ID {}: {error}", quote(text)))
            })
        };
        self.raw.server.admin_ids.iter().map(parse).collect()
    }

    fn duration(&self, key: &str, text: &str, what: &str) -> Result<Duration, ConfigError> {
        parse_key(self.file, &format!("server.{key}"), text, what)
    }

    fn ttls(&mut self) -> Result<ttl::Ttls, ConfigError> {
        let server: &RawServer = &self.raw.server;
        let read = |key: &str, text: &Option<String>, what: &str| match text.as_deref() {
            None | Some("") => Ok(None),
            Some(text) => self.duration(key, text, what).map(|ttl| (!ttl.is_zero()).then_some(ttl)),
        };
        let agent = read("agent_ttl", &server.agent_ttl, "agent ttl")?;
        let x509 = read("default_x509_svid_ttl", &server.default_x509_svid_ttl, "default X509 SVID ttl")?;
        let jwt = read("default_jwt_svid_ttl", &server.default_jwt_svid_ttl, "default JWT SVID ttl")?;
        let ca = read("ca_ttl", &server.ca_ttl, "default CA ttl")?;
        let ttls = ttl::Ttls {
            agent,
            x509_svid: x509.unwrap_or(ttl::DEFAULT_X509_SVID),
            jwt_svid: jwt.unwrap_or(ttl::DEFAULT_JWT_SVID),
            ca: ca.unwrap_or(ttl::DEFAULT_CA),
        };
        self.notices.extend(ttls.notices());
        Ok(ttls)
    }

    fn key_types(&self) -> Result<(KeyType, KeyType, KeyType), ConfigError> {
        let server = &self.raw.server;
        let read = |key: &str, name: &str, text: &Option<String>, default: KeyType| match text.as_deref() {
            None | Some("") => Ok(default),
            Some(text) => {
                text.parse().map_err(|error| self.fail(key, format!("error parsing {name}: {error}")))
            }
        };
        let ca = read("ca_key_type", "ca_key_type", &server.ca_key_type, KeyType::EcP256)?;
        let jwt = read("jwt_key_type", "jwt_key_type", &server.jwt_key_type, ca)?;
        let wit = read("experimental.wit_key_type", "wit_key_type", &server.experimental.wit_key_type, ca)?;
        Ok((ca, jwt, wit))
    }

    fn ca_subject(&mut self) -> DistinguishedName {
        let mut name = DistinguishedName::default();
        if let Some(subject) = &self.raw.server.ca_subject {
            name.country.clone_from(&subject.country);
            name.organization.clone_from(&subject.organization);
            name.common_name.clone_from(&subject.common_name);
            if name == DistinguishedName::default() {
                self.notices
                    .push(Notice::warn("ca_subject configurable is set but empty; the default will be used"));
            }
        }
        if name == DistinguishedName::default() {
            name.country = vec!["US".to_owned()];
            name.organization = vec!["SPIFFE".to_owned()];
        }
        name
    }

    fn pruning(&self) -> Result<Option<PruneAttestedNodes>, ConfigError> {
        let server = &self.raw.server;
        let text = server.prune_attested_nodes_expired_for.as_deref().unwrap_or_default();
        if text.is_empty() {
            return Ok(None);
        }
        let expired_for = config::parse_duration(text).map_err(|error| {
            let message = format!("could not parse prune_attested_nodes_expired_for: {error}");
            self.fail("prune_attested_nodes_expired_for", message)
        })?;
        // Off, as with no text (pkg/server/server.go).
        if expired_for.is_zero() {
            return Ok(None);
        }
        let batch = server.prune_attested_nodes_batch_size.and_then(|size| usize::try_from(size).ok());
        Ok(Some(PruneAttestedNodes {
            expired_for,
            batch_size: batch.filter(|size| *size > 0).unwrap_or(1000),
            include_non_reattestable: server.prune_tofu_nodes.unwrap_or_default(),
        }))
    }

    fn experimental(&mut self) -> Result<Experimental, ConfigError> {
        let raw = &self.raw.server.experimental;
        if raw.is_used() {
            self.notices.push(Notice::warn(
                "Experimental features have been enabled. Please see doc/upgrading.md for upgrade and \
                 compatibility considerations for experimental features.",
            ));
        }
        let read = |key: &str, text: &Option<String>, what: &str| match text.as_deref() {
            None | Some("") => Ok(None),
            Some(text) => config::parse_duration(text)
                .map(|value| (!value.is_zero()).then_some(value))
                .map_err(|error| {
                    self.fail(&format!("experimental.{key}"), format!("could not parse {what}: {error}"))
                }),
        };
        let reload = read("cache_reload_interval", &raw.cache_reload_interval, "cache reload interval")?;
        let full = read(
            "full_cache_reload_interval",
            &raw.full_cache_reload_interval,
            "full cache reload interval",
        )?;
        let prune = read("prune_events_older_than", &raw.prune_events_older_than, "prune events interval")?;
        let old_timeout = read(
            "sql_transaction_timeout",
            &raw.sql_transaction_timeout,
            "SQL transaction timeout interval",
        )?;
        let timeout = read("event_timeout", &raw.event_timeout, "event timeout interval")?;
        if raw.sql_transaction_timeout.as_deref().is_some_and(|text| !text.is_empty()) {
            self.notices.push(Notice::deprecated(
                "experimental.sql_transaction_timeout is deprecated, use experimental.event_timeout instead",
            ));
        }
        if raw.events_based_cache == Some(true) {
            self.notices.push(Notice::info("Using events based cache"));
        }
        let policy = match &raw.auth_opa_policy_engine {
            None => None,
            Some(engine) => match &engine.local {
                Some(local) => Some(PolicyFiles {
                    rego_path: local.rego_path.clone(),
                    policy_data_path: local.policy_data_path.clone(),
                }),
                None => {
                    // The text is that of the reference's policy engine, which looks at it later.
                    let message = "policy engine configuration must define a provider";
                    return Err(self.fail("experimental.auth_opa_policy_engine", message));
                }
            },
        };
        Ok(Experimental {
            agent_spiffe_id_as_selector: raw.agent_spiffe_id_as_selector.unwrap_or_default(),
            policy,
            cache_reload_interval: reload.unwrap_or(Duration::from_secs(5)),
            full_cache_reload_interval: full.unwrap_or(Duration::from_secs(24 * 3600)),
            events_based_cache: raw.events_based_cache.unwrap_or_default(),
            prune_events_older_than: prune.unwrap_or(Duration::from_secs(12 * 3600)),
            event_timeout: timeout.or(old_timeout).unwrap_or(Duration::from_secs(15 * 60)),
            require_pq_kem: raw.require_pq_kem.unwrap_or_default(),
            reload_on_change: raw.reload_on_change.unwrap_or_default(),
            oidc: raw.oidc.clone(),
        })
    }
}
