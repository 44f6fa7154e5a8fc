//! The agent's configuration file as written: every key optional, nothing interpreted but old names.

use spire_compat::config::{
    self, ConfigError, ConfigFile, HealthChecks, Notice, TelemetryConfig, UnknownKeys,
};
use spire_compat::hcl::{Body, DecodeError, Fragment};

/// An agent configuration file.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RawConfig {
    /// The `agent` section.
    pub agent: RawAgent,
    /// The `plugins` section.
    pub plugins: Option<Fragment>,
    /// The `telemetry` section.
    pub telemetry: TelemetryConfig,
    /// The `health_checks` section.
    pub health_checks: HealthChecks,
    /// Unknown keys, in the order in which they are reported.
    pub unknown: Vec<UnknownKeys>,
    /// What to log about the file.
    pub notices: Vec<Notice>,
}

/// The `agent` section. Names and meanings are those of the reference's documentation.
#[derive(Debug, Clone, Default, PartialEq)]
#[allow(missing_docs)] // the names of the keys
pub struct RawAgent {
    pub data_dir: Option<String>,
    pub admin_socket_path: Option<String>,
    pub insecure_bootstrap: Option<bool>,
    pub rebootstrap_mode: Option<String>,
    pub rebootstrap_delay: Option<String>,
    pub join_token: Option<String>,
    pub join_token_file: Option<String>,
    pub log_file: Option<String>,
    pub log_format: Option<String>,
    pub log_level: Option<String>,
    pub log_selectors: Vec<String>,
    pub log_source_location: Option<bool>,
    pub sds: RawSds,
    pub server_address: Option<String>,
    pub server_port: Option<i64>,
    pub socket_path: Option<String>,
    pub disable_workload_api: Option<bool>,
    pub disable_sds_api: Option<bool>,
    pub workload_x509_svid_key_type: Option<String>,
    pub trust_bundle_format: Option<String>,
    pub trust_bundle_path: Option<String>,
    pub trust_bundle_spiffe_workload_api: Option<String>,
    pub trust_bundle_unix_socket: Option<String>,
    pub trust_bundle_url: Option<String>,
    pub trust_domain: Option<String>,
    pub allow_unauthenticated_verifiers: Option<bool>,
    pub allowed_foreign_jwt_claims: Vec<String>,
    pub availability_target: Option<String>,
    pub x509_svid_cache_max_size: Option<i64>,
    pub jwt_svid_cache_max_size: Option<i64>,
    pub authorized_delegates: Vec<String>,
    pub profiling: config::Profiling,
    pub experimental: RawExperimental,
}

/// `sds`
#[derive(Debug, Clone, Default, PartialEq)]
#[allow(missing_docs)]
pub struct RawSds {
    pub default_svid_name: Option<String>,
    pub default_bundle_name: Option<String>,
    pub default_all_bundles_name: Option<String>,
    pub disable_spiffe_cert_validation: Option<bool>,
}

/// `experimental`
#[derive(Debug, Clone, Default, PartialEq)]
#[allow(missing_docs)]
pub struct RawExperimental {
    pub sync_interval: Option<String>,
    pub jwt_svid_cache_hit_timeout: Option<String>,
    pub named_pipe_name: Option<String>,
    pub admin_named_pipe_name: Option<String>,
    pub use_sync_authorized_entries: Option<bool>,
    pub require_pq_kem: Option<bool>,
    pub reload_on_change: Option<bool>,
    pub feature_flags: Vec<String>,
    pub ratelimit: RawRateLimits,
    pub broker: Option<RawBroker>,
}

impl RawExperimental {
    /// Whether anything is set to other than its zero value.
    pub fn is_used(&self) -> bool {
        let text = |value: &Option<String>| value.as_deref().is_some_and(|text| !text.is_empty());
        [
            &self.sync_interval,
            &self.jwt_svid_cache_hit_timeout,
            &self.named_pipe_name,
            &self.admin_named_pipe_name,
        ]
        .into_iter()
        .any(text)
            || self.use_sync_authorized_entries.is_some()
            || self.require_pq_kem == Some(true)
            || !self.feature_flags.is_empty()
            || self.ratelimit != RawRateLimits::default()
            || self.broker.is_some()
    }
}

/// `experimental.ratelimit`: calls a second for one set of selectors.
#[derive(Debug, Clone, Default, PartialEq)]
#[allow(missing_docs)]
pub struct RawRateLimits {
    pub fetch_x509_svid: Option<i64>,
    pub fetch_jwt_svid: Option<i64>,
    pub fetch_x509_bundles: Option<i64>,
    pub fetch_jwt_bundles: Option<i64>,
    pub stream_secrets: Option<i64>,
    pub fetch_secrets: Option<i64>,
}

/// `experimental.broker`
#[derive(Debug, Clone, Default, PartialEq)]
#[allow(missing_docs)]
pub struct RawBroker {
    pub socket_path: Option<String>,
    pub bind_address: Option<String>,
    pub brokers: Vec<RawBrokerEntry>,
}

/// `experimental.broker.brokers[]`
#[derive(Debug, Clone, Default, PartialEq)]
#[allow(missing_docs)]
pub struct RawBrokerEntry {
    pub id: String,
    pub allowed_reference_types: Vec<RawReferenceType>,
}

/// `experimental.broker.brokers[].allowed_reference_types[]`
#[derive(Debug, Clone, Default, PartialEq)]
#[allow(missing_docs)]
pub struct RawReferenceType {
    pub type_url: String,
    pub allow_over_tcp: bool,
}

/// Takes every known key out of a file.
pub fn read(file: &ConfigFile) -> Result<RawConfig, ConfigError> {
    read_sections(file).map_err(|error| file.undecodable(error))
}

fn unknown(section: &str, body: &Body<'_>) -> Option<UnknownKeys> {
    let keys = body.unused();
    (!keys.is_empty()).then(|| UnknownKeys { section: section.to_owned(), keys })
}

fn read_sections(file: &ConfigFile) -> Result<RawConfig, DecodeError> {
    let mut root = file.document.body();
    let mut raw = RawConfig { notices: file.duplicate_notices(), ..RawConfig::default() };
    let agent = root.take_block("agent")?;
    let (plugins, ignored) = root.take_fragment("plugins");
    raw.plugins = plugins;
    if ignored > 0 {
        raw.notices.push(
            Notice::warn("More than one plugins section; all but the first are ignored")
                .with("ignored", ignored.to_string()),
        );
    }
    let (telemetry, telemetry_unknown) = config::take_telemetry(file, &mut root, &mut raw.notices)?;
    let (health_checks, health_unknown) = config::take_health_checks(&mut root)?;
    (raw.telemetry, raw.health_checks) = (telemetry, health_checks);
    raw.unknown.extend(unknown("top-level", &root));
    let mut rate_limits = None;
    if let Some(mut body) = agent {
        let mut reader = Reader { file, raw: &mut raw, broker: Vec::new(), rate_limits: None };
        reader.agent(&mut body)?;
        let (broker, limits) = (std::mem::take(&mut reader.broker), reader.rate_limits.take());
        raw.unknown.extend(unknown("agent", &body));
        raw.unknown.extend(broker);
        rate_limits = limits;
    }
    raw.unknown.extend(telemetry_unknown);
    raw.unknown.extend(health_unknown);
    raw.unknown.extend(rate_limits);
    Ok(raw)
}

struct Reader<'a> {
    file: &'a ConfigFile,
    raw: &'a mut RawConfig,
    /// Unknown keys in `experimental.broker`.
    broker: Vec<UnknownKeys>,
    /// Unknown keys in `experimental.ratelimit`.
    rate_limits: Option<UnknownKeys>,
}

impl Reader<'_> {
    fn agent(&mut self, body: &mut Body<'_>) -> Result<(), DecodeError> {
        self.raw.agent = RawAgent {
            data_dir: body.take_string("data_dir")?,
            admin_socket_path: body.take_string("admin_socket_path")?,
            insecure_bootstrap: body.take_bool("insecure_bootstrap")?,
            rebootstrap_mode: body.take_string("rebootstrap_mode")?,
            rebootstrap_delay: body.take_string("rebootstrap_delay")?,
            join_token: body.take_string("join_token")?,
            join_token_file: body.take_string("join_token_file")?,
            log_file: body.take_string("log_file")?,
            log_format: body.take_string("log_format")?,
            log_level: body.take_string("log_level")?,
            log_selectors: body.take_string_list("log_selectors")?.unwrap_or_default(),
            log_source_location: body.take_bool("log_source_location")?,
            sds: self.sds(body)?,
            server_address: body.take_string("server_address")?,
            server_port: body.take_int("server_port")?,
            socket_path: body.take_string("socket_path")?,
            disable_workload_api: body.take_bool("disable_workload_api")?,
            disable_sds_api: body.take_bool("disable_sds_api")?,
            workload_x509_svid_key_type: body.take_string("workload_x509_svid_key_type")?,
            trust_bundle_format: body.take_string("trust_bundle_format")?,
            trust_bundle_path: body.take_string("trust_bundle_path")?,
            trust_bundle_spiffe_workload_api: body.take_string("trust_bundle_spiffe_workload_api")?,
            trust_bundle_unix_socket: body.take_string("trust_bundle_unix_socket")?,
            trust_bundle_url: body.take_string("trust_bundle_url")?,
            trust_domain: body.take_string("trust_domain")?,
            allow_unauthenticated_verifiers: body.take_bool("allow_unauthenticated_verifiers")?,
            allowed_foreign_jwt_claims: body
                .take_string_list("allowed_foreign_jwt_claims")?
                .unwrap_or_default(),
            availability_target: body.take_string("availability_target")?,
            x509_svid_cache_max_size: body.take_int("x509_svid_cache_max_size")?,
            jwt_svid_cache_max_size: body.take_int("jwt_svid_cache_max_size")?,
            authorized_delegates: body.take_string_list("authorized_delegates")?.unwrap_or_default(),
            profiling: config::Profiling {
                enabled: body.take_bool("profiling_enabled")?.unwrap_or_default(),
                port: body.take_int("profiling_port")?.unwrap_or_default(),
                frequency: body.take_int("profiling_freq")?.unwrap_or_default(),
                names: body.take_string_list("profiling_names")?.unwrap_or_default(),
            },
            experimental: RawExperimental::default(),
        };
        if let Some(mut body) = body.take_block("experimental")? {
            self.experimental(&mut body)?;
        }
        self.legacy(body)
    }

    fn sds(&mut self, agent: &mut Body<'_>) -> Result<RawSds, DecodeError> {
        let Some(mut body) = agent.take_block("sds")? else { return Ok(RawSds::default()) };
        let sds = RawSds {
            default_svid_name: body.take_string("default_svid_name")?,
            default_bundle_name: body.take_string("default_bundle_name")?,
            default_all_bundles_name: body.take_string("default_all_bundles_name")?,
            disable_spiffe_cert_validation: body.take_bool("disable_spiffe_cert_validation")?,
        };
        if body.take_bool("enable_deprecated_v2_api")?.is_some() {
            self.ignored(
                "agent.sds.enable_deprecated_v2_api",
                "version 2 of SDS is gone, Envoy has version 3",
            );
        }
        self.raw.notices.extend(config::ignored_keys("sds", &body));
        Ok(sds)
    }

    fn experimental(&mut self, body: &mut Body<'_>) -> Result<(), DecodeError> {
        let experimental = RawExperimental {
            sync_interval: body.take_string("sync_interval")?,
            jwt_svid_cache_hit_timeout: body.take_string("jwt_svid_cache_hit_timeout")?,
            named_pipe_name: body.take_string("named_pipe_name")?,
            admin_named_pipe_name: body.take_string("admin_named_pipe_name")?,
            use_sync_authorized_entries: body.take_bool("use_sync_authorized_entries")?,
            require_pq_kem: body.take_bool("require_pq_kem")?,
            reload_on_change: body.take_bool("reload_on_change")?,
            feature_flags: body.take_string_list("feature_flags")?.unwrap_or_default(),
            ratelimit: self.rate_limits(body)?,
            broker: self.broker(body)?,
        };
        self.raw.agent.experimental = experimental;
        if body.take_bool("disable_lru_cache")?.is_some() {
            self.ignored("agent.experimental.disable_lru_cache", "the cache always has a bound");
        }
        if let Some(size) = body.take_int("x509_svid_cache_max_size")? {
            self.renamed("agent.experimental.x509_svid_cache_max_size", "agent.x509_svid_cache_max_size");
            self.raw.agent.x509_svid_cache_max_size.get_or_insert(size);
        }
        if body.take_int("tcp_socket_port")?.is_some() {
            self.ignored("agent.experimental.tcp_socket_port", "the Workload API is on a socket");
        }
        self.raw.notices.extend(config::ignored_keys("experimental", body));
        Ok(())
    }

    fn rate_limits(&mut self, experimental: &mut Body<'_>) -> Result<RawRateLimits, DecodeError> {
        let Some(mut body) = experimental.take_block("ratelimit")? else {
            return Ok(RawRateLimits::default());
        };
        let limits = RawRateLimits {
            fetch_x509_svid: body.take_int("fetch_x509_svid")?,
            fetch_jwt_svid: body.take_int("fetch_jwt_svid")?,
            fetch_x509_bundles: body.take_int("fetch_x509_bundles")?,
            fetch_jwt_bundles: body.take_int("fetch_jwt_bundles")?,
            stream_secrets: body.take_int("stream_secrets")?,
            fetch_secrets: body.take_int("fetch_secrets")?,
        };
        self.rate_limits = unknown("ratelimit", &body);
        Ok(limits)
    }

    fn broker(&mut self, experimental: &mut Body<'_>) -> Result<Option<RawBroker>, DecodeError> {
        const SECTION: &str = "experimental.broker";
        let Some(mut body) = experimental.take_block("broker")? else { return Ok(None) };
        let mut broker = RawBroker {
            socket_path: body.take_string("socket_path")?,
            bind_address: body.take_string("bind_address")?,
            brokers: Vec::new(),
        };
        let entries = body.take_block_list("brokers")?;
        self.broker.extend(unknown(SECTION, &body));
        for (index, mut body) in entries.into_iter().enumerate() {
            let mut entry = RawBrokerEntry {
                id: body.take_string("id")?.unwrap_or_default(),
                allowed_reference_types: Vec::new(),
            };
            let types = body.take_block_list("allowed_reference_types")?;
            self.broker.extend(unknown(&format!("{SECTION}.brokers[{index}]"), &body));
            for (inner, mut body) in types.into_iter().enumerate() {
                entry.allowed_reference_types.push(RawReferenceType {
                    type_url: body.take_string("type_url")?.unwrap_or_default(),
                    allow_over_tcp: body.take_bool("allow_over_tcp")?.unwrap_or_default(),
                });
                let section = format!("{SECTION}.brokers[{index}].allowed_reference_types[{inner}]");
                self.broker.extend(unknown(&section, &body));
            }
            broker.brokers.push(entry);
        }
        Ok(Some(broker))
    }

    /// Keys of older versions that do nothing any more.
    fn legacy(&mut self, body: &mut Body<'_>) -> Result<(), DecodeError> {
        for (key, reason) in [
            ("enable_sds", "SDS is always on; disable_sds_api turns it off"),
            ("disable_reattest_to_renew", "agents that can attest again always do"),
            ("retry_bootstrap", "bootstrapping is always retried"),
        ] {
            if body.take_bool(key)?.is_some() {
                self.ignored(&format!("agent.{key}"), reason);
            }
        }
        if body.take_string("umask")?.is_some() {
            self.ignored("agent.umask", "the umask is at least 0027");
        }
        Ok(())
    }

    fn renamed(&mut self, key: &str, now: &str) {
        let message = format!("Old configuration key is read as {now}; please rename it");
        self.raw.notices.push(self.file.legacy_notice(key, &message));
    }

    fn ignored(&mut self, key: &str, reason: &str) {
        let message = format!("Old configuration key is ignored: {reason}; please delete it");
        self.raw.notices.push(self.file.legacy_notice(key, &message));
    }
}
