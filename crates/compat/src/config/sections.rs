//! The `telemetry` and `health_checks` sections.

use super::{ConfigFile, Notice, UnknownKeys};
use crate::hcl::{Body, DecodeError};

/// Unknown keys of the sections read here, in the order in which the reference reports them.
pub type SectionUnknowns = Vec<UnknownKeys>;

/// The `telemetry` section. Lists are `None` where the key is absent.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TelemetryConfig {
    /// The Prometheus endpoint.
    pub prometheus: Option<PrometheusConfig>,
    /// DogStatsD sinks.
    pub dog_statsd: Vec<StatsdConfig>,
    /// StatsD sinks.
    pub statsd: Vec<StatsdConfig>,
    /// M3 sinks.
    pub m3: Vec<M3Config>,
    /// Whether metrics are kept in memory for SIGUSR1.
    pub in_mem: bool,
    /// The first part of every metric's name; `None` for the default of each side.
    pub metric_prefix: Option<String>,
    /// Whether metrics carry the trust domain.
    pub enable_trust_domain_label: Option<bool>,
    /// Whether metrics carry the host's name.
    pub enable_hostname_label: Option<bool>,
    /// Prefixes to let through.
    pub allowed_prefixes: Option<Vec<String>>,
    /// Prefixes to stop.
    pub blocked_prefixes: Option<Vec<String>>,
    /// Labels to let through.
    pub allowed_labels: Option<Vec<String>>,
    /// Labels to stop.
    pub blocked_labels: Option<Vec<String>>,
}

impl TelemetryConfig {
    /// Whether another configuration has the same sinks; names, labels and filters do not count, and neither does the
    /// content of certificate files.
    pub fn has_sinks_of(&self, other: &Self) -> bool {
        (&self.prometheus, &self.dog_statsd, &self.statsd, &self.m3, self.in_mem)
            == (&other.prometheus, &other.dog_statsd, &other.statsd, &other.m3, other.in_mem)
    }
}

/// `telemetry.Prometheus`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PrometheusConfig {
    /// The address to listen on; empty is `localhost`.
    pub host: String,
    /// The port to listen on.
    pub port: i64,
    /// TLS for the endpoint.
    pub tls: Option<PrometheusTls>,
}

/// `telemetry.Prometheus.tls`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PrometheusTls {
    /// The certificate's file.
    pub cert_file: String,
    /// The key's file.
    pub key_file: String,
    /// The file of the authorities that clients must be signed by.
    pub client_ca_file: String,
    /// Whether to serve with our own X.509-SVID.
    pub use_spire_svid: bool,
    /// The clients to let in.
    pub authorized_spiffe_ids: Vec<String>,
}

/// One StatsD or DogStatsD sink.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StatsdConfig {
    /// `host:port`
    pub address: String,
}

/// One M3 sink.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct M3Config {
    /// `host:port`
    pub address: String,
    /// The environment that metrics are tagged with.
    pub env: String,
}

/// The `health_checks` section; empty texts are the defaults.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HealthChecks {
    /// Whether to listen.
    pub listener_enabled: bool,
    /// Host or IP, brackets allowed.
    pub bind_address: String,
    /// The port, a number as text.
    pub bind_port: String,
    /// The path that tells readiness.
    pub ready_path: String,
    /// The path that tells liveness.
    pub live_path: String,
}

impl HealthChecks {
    /// `host:port`, by default `localhost:80`.
    pub fn address(&self) -> String {
        let host = self.bind_address.trim_matches(['[', ']']);
        let host = if host.is_empty() { "localhost" } else { host };
        let port = if self.bind_port.is_empty() { "80" } else { &self.bind_port };
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }

    /// By default `/ready`.
    pub fn ready_path(&self) -> &str {
        if self.ready_path.is_empty() { "/ready" } else { &self.ready_path }
    }

    /// By default `/live`.
    pub fn live_path(&self) -> &str {
        if self.live_path.is_empty() { "/live" } else { &self.live_path }
    }
}

fn unknown(section: &str, body: &Body<'_>, out: &mut SectionUnknowns) {
    let keys = body.unused();
    if !keys.is_empty() {
        out.push(UnknownKeys { section: section.to_owned(), keys });
    }
}

/// Takes `telemetry` out of a file's root.
///
/// # Errors
/// [`DecodeError`] when a value in it has another type than its key wants.
pub fn take_telemetry(
    file: &ConfigFile,
    root: &mut Body<'_>,
    notices: &mut Vec<Notice>,
) -> Result<(TelemetryConfig, SectionUnknowns), DecodeError> {
    let mut config = TelemetryConfig::default();
    let mut unknowns = SectionUnknowns::new();
    let Some(mut body) = root.take_block("telemetry")? else { return Ok((config, unknowns)) };
    if let Some(mut body) = body.take_block("Prometheus")? {
        config.prometheus = Some(prometheus(&mut body)?);
        unknown("Prometheus", &body, &mut unknowns);
    }
    for (key, sinks) in [("DogStatsd", &mut config.dog_statsd), ("Statsd", &mut config.statsd)] {
        for mut body in body.take_block_list(key)? {
            sinks.push(StatsdConfig { address: body.take_string("address")?.unwrap_or_default() });
            unknown(key, &body, &mut unknowns);
        }
    }
    for mut body in body.take_block_list("M3")? {
        let address = body.take_string("address")?.unwrap_or_default();
        let env = body.take_string("env")?.unwrap_or_default();
        config.m3.push(M3Config { address, env });
        unknown("M3", &body, &mut unknowns);
    }
    if let Some(mut body) = body.take_block("InMem")? {
        config.in_mem = true;
        if let Some(enabled) = body.take_bool("enabled")? {
            config.in_mem = enabled;
            notices.push(file.legacy_notice(
                "telemetry.InMem.enabled",
                "telemetry.InMem.enabled is an old key: the presence of the InMem block enables it; \
                 please delete the key, or the block",
            ));
        }
        unknown("InMem", &body, &mut unknowns);
    }
    config.metric_prefix = body.take_string("MetricPrefix")?.filter(|prefix| !prefix.is_empty());
    config.enable_trust_domain_label = body.take_bool("EnableTrustDomainLabel")?;
    config.enable_hostname_label = body.take_bool("EnableHostnameLabel")?;
    config.allowed_prefixes = body.take_string_list("AllowedPrefixes")?;
    config.blocked_prefixes = body.take_string_list("BlockedPrefixes")?;
    config.allowed_labels = body.take_string_list("AllowedLabels")?;
    config.blocked_labels = body.take_string_list("BlockedLabels")?;
    notices.extend(ignored("telemetry", &body));
    Ok((config, unknowns))
}

/// A warning about unknown keys where the reference does not look for them, so that they are no error.
pub fn ignored(section: &str, body: &Body<'_>) -> Option<Notice> {
    let keys = UnknownKeys { section: section.to_owned(), keys: body.unused() };
    (!keys.keys.is_empty()).then(|| {
        Notice::warn("Unknown configuration ignored")
            .with("keys", keys.joined())
            .with("positions", keys.positions())
            .with("section", section)
    })
}

fn prometheus(body: &mut Body<'_>) -> Result<PrometheusConfig, DecodeError> {
    let mut config = PrometheusConfig {
        host: body.take_string("host")?.unwrap_or_default(),
        port: body.take_int("port")?.unwrap_or_default(),
        tls: None,
    };
    if let Some(mut body) = body.take_block("tls")? {
        config.tls = Some(PrometheusTls {
            cert_file: body.take_string("cert_file")?.unwrap_or_default(),
            key_file: body.take_string("key_file")?.unwrap_or_default(),
            client_ca_file: body.take_string("client_ca_file")?.unwrap_or_default(),
            use_spire_svid: body.take_bool("use_spire_svid")?.unwrap_or_default(),
            authorized_spiffe_ids: body.take_string_list("authorized_spiffe_ids")?.unwrap_or_default(),
        });
    }
    Ok(config)
}

/// Takes `health_checks` out of a file's root.
///
/// # Errors
/// [`DecodeError`] when a value in it has another type than its key wants.
pub fn take_health_checks(root: &mut Body<'_>) -> Result<(HealthChecks, SectionUnknowns), DecodeError> {
    let mut unknowns = SectionUnknowns::new();
    let Some(mut body) = root.take_block("health_checks")? else {
        return Ok((HealthChecks::default(), unknowns));
    };
    let checks = HealthChecks {
        listener_enabled: body.take_bool("listener_enabled")?.unwrap_or_default(),
        bind_address: body.take_string("bind_address")?.unwrap_or_default(),
        bind_port: body.take_string("bind_port")?.unwrap_or_default(),
        ready_path: body.take_string("ready_path")?.unwrap_or_default(),
        live_path: body.take_string("live_path")?.unwrap_or_default(),
    };
    unknown("health check", &body, &mut unknowns);
    Ok((checks, unknowns))
}
