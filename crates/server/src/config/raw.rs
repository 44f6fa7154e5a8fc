//! The server's configuration file as written: every key optional, nothing interpreted but old names.

use spire_compat::config::{
    self, ConfigError, ConfigFile, HealthChecks, Notice, TelemetryConfig, UnknownKeys,
};
use spire_compat::hcl::{Body, DecodeError, Fragment};

/// A server configuration file.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RawConfig {
    /// The `server` section.
    pub server: RawServer,
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

/// The `server` section. Names and meanings are those of the reference's documentation.
#[derive(Debug, Clone, Default, PartialEq)]
#[allow(missing_docs)] // the names of the keys
pub struct RawServer {
    pub admin_ids: Vec<String>,
    pub agent_ttl: Option<String>,
    pub audit_log_enabled: Option<bool>,
    pub bind_address: Option<String>,
    pub bind_port: Option<i64>,
    pub ca_key_type: Option<String>,
    pub ca_subject: Option<RawSubject>,
    pub ca_ttl: Option<String>,
    pub data_dir: Option<String>,
    pub default_x509_svid_ttl: Option<String>,
    pub default_jwt_svid_ttl: Option<String>,
    pub disable_jwt_svids: Option<bool>,
    pub jwt_issuer: Option<String>,
    pub jwt_key_type: Option<String>,
    pub log_file: Option<String>,
    pub log_level: Option<String>,
    pub log_format: Option<String>,
    pub log_source_location: Option<bool>,
    pub prune_attested_nodes_expired_for: Option<String>,
    pub prune_attested_nodes_batch_size: Option<i64>,
    pub prune_tofu_nodes: Option<bool>,
    pub proxy_protocol_trusted_cidrs: Vec<String>,
    pub ratelimit_attestation: Option<bool>,
    pub ratelimit_signing: Option<bool>,
    pub socket_path: Option<String>,
    pub trust_domain: Option<String>,
    pub max_attested_node_info_staleness: Option<String>,
    pub profiling: config::Profiling,
    pub federation: Option<RawFederation>,
    pub experimental: RawExperimental,
}

/// `ca_subject`
#[derive(Debug, Clone, Default, PartialEq)]
#[allow(missing_docs)]
pub struct RawSubject {
    pub country: Vec<String>,
    pub organization: Vec<String>,
    pub common_name: String,
}

/// `experimental`
#[derive(Debug, Clone, Default, PartialEq)]
#[allow(missing_docs)]
pub struct RawExperimental {
    pub agent_spiffe_id_as_selector: Option<bool>,
    pub auth_opa_policy_engine: Option<RawPolicyEngine>,
    pub cache_reload_interval: Option<String>,
    pub full_cache_reload_interval: Option<String>,
    pub events_based_cache: Option<bool>,
    pub prune_events_older_than: Option<String>,
    pub event_timeout: Option<String>,
    pub sql_transaction_timeout: Option<String>,
    pub require_pq_kem: Option<bool>,
    pub reload_on_change: Option<bool>,
    pub wit_key_type: Option<String>,
    pub wit_issuer: Option<String>,
    pub feature_flags: Vec<String>,
    pub named_pipe_name: Option<String>,
    pub oidc: Option<Fragment>,
    /// Keys that mean nothing; the reference counts them as set.
    pub has_unknown: bool,
}

impl RawExperimental {
    /// Whether anything is set to other than its zero value.
    pub fn is_used(&self) -> bool {
        let text = |value: &Option<String>| value.as_deref().is_some_and(|text| !text.is_empty());
        let texts = [
            &self.cache_reload_interval,
            &self.full_cache_reload_interval,
            &self.prune_events_older_than,
            &self.event_timeout,
            &self.sql_transaction_timeout,
            &self.wit_key_type,
            &self.wit_issuer,
            &self.named_pipe_name,
        ];
        let switches = [self.agent_spiffe_id_as_selector, self.events_based_cache, self.require_pq_kem];
        texts.into_iter().any(text)
            || switches.contains(&Some(true))
            || self.auth_opa_policy_engine.is_some()
            || self.oidc.is_some()
            || !self.feature_flags.is_empty()
            || self.has_unknown
    }
}

/// `experimental.auth_opa_policy_engine`
#[derive(Debug, Clone, Default, PartialEq)]
#[allow(missing_docs)]
pub struct RawPolicyEngine {
    pub local: Option<RawLocalPolicy>,
}

/// `experimental.auth_opa_policy_engine.local`
#[derive(Debug, Clone, Default, PartialEq)]
#[allow(missing_docs)]
pub struct RawLocalPolicy {
    pub rego_path: String,
    pub policy_data_path: String,
}

/// `federation`
#[derive(Debug, Clone, Default, PartialEq)]
#[allow(missing_docs)]
pub struct RawFederation {
    pub bundle_endpoint: Option<RawBundleEndpoint>,
    pub federates_with: Vec<(String, RawFederatesWith)>,
    pub refuse_private_endpoints: bool,
}

/// `federation.bundle_endpoint`
#[derive(Debug, Clone, Default, PartialEq)]
#[allow(missing_docs)]
pub struct RawBundleEndpoint {
    pub address: Option<String>,
    pub port: Option<i64>,
    pub refresh_hint: Option<String>,
    pub acme: Option<RawAcme>,
    pub profile: Option<Fragment>,
}

/// `acme`
#[derive(Debug, Clone, Default, PartialEq)]
#[allow(missing_docs)]
pub struct RawAcme {
    pub directory_url: String,
    pub domain_name: String,
    pub email: String,
    pub tos_accepted: bool,
}

/// `federation.federates_with "…"`
#[derive(Debug, Clone, Default, PartialEq)]
#[allow(missing_docs)]
pub struct RawFederatesWith {
    pub bundle_endpoint_url: String,
    pub bundle_endpoint_profile: Option<Fragment>,
    /// The form up to 1.0, where the block says address and port.
    pub legacy_endpoint: Option<RawLegacyEndpoint>,
}

/// `federation.federates_with "…".bundle_endpoint`, up to 1.0.
#[derive(Debug, Clone, Default, PartialEq)]
#[allow(missing_docs)]
pub struct RawLegacyEndpoint {
    pub address: String,
    pub port: Option<i64>,
    pub spiffe_id: Option<String>,
    pub use_web_pki: bool,
}

fn unknown(section: &str, body: &Body<'_>) -> Option<UnknownKeys> {
    let keys = body.unused();
    (!keys.is_empty()).then(|| UnknownKeys { section: section.to_owned(), keys })
}

/// Takes every known key out of a file.
pub fn read(file: &ConfigFile) -> Result<RawConfig, ConfigError> {
    read_sections(file).map_err(|failure| match failure {
        Failure::Decode(error) => file.undecodable(error),
        Failure::Refused(error) => error,
    })
}

/// Why reading stopped.
enum Failure {
    Decode(DecodeError),
    Refused(ConfigError),
}

impl From<DecodeError> for Failure {
    fn from(error: DecodeError) -> Self {
        Self::Decode(error)
    }
}

fn read_sections(file: &ConfigFile) -> Result<RawConfig, Failure> {
    let mut root = file.document.body();
    let mut raw = RawConfig { notices: file.duplicate_notices(), ..RawConfig::default() };
    let server = root.take_block("server")?;
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
    if let Some(mut body) = server {
        let mut reader = Reader { file, raw: &mut raw, after_server: Vec::new() };
        reader.server(&mut body)?;
        let after = std::mem::take(&mut reader.after_server);
        raw.unknown.extend(unknown("server", &body));
        raw.unknown.extend(after);
    }
    raw.unknown.extend(telemetry_unknown);
    raw.unknown.extend(health_unknown);
    Ok(raw)
}

struct Reader<'a> {
    file: &'a ConfigFile,
    raw: &'a mut RawConfig,
    /// Unknown keys of blocks inside `server`, which are reported after its own.
    after_server: Vec<UnknownKeys>,
}

impl Reader<'_> {
    fn server(&mut self, body: &mut Body<'_>) -> Result<(), Failure> {
        let server = RawServer {
            admin_ids: body.take_string_list("admin_ids")?.unwrap_or_default(),
            agent_ttl: body.take_string("agent_ttl")?,
            audit_log_enabled: body.take_bool("audit_log_enabled")?,
            bind_address: body.take_string("bind_address")?,
            bind_port: body.take_int("bind_port")?,
            ca_key_type: body.take_string("ca_key_type")?,
            ca_subject: self.subject(body)?,
            ca_ttl: body.take_string("ca_ttl")?,
            data_dir: body.take_string("data_dir")?,
            default_x509_svid_ttl: body.take_string("default_x509_svid_ttl")?,
            default_jwt_svid_ttl: body.take_string("default_jwt_svid_ttl")?,
            disable_jwt_svids: body.take_bool("disable_jwt_svids")?,
            jwt_issuer: body.take_string("jwt_issuer")?,
            jwt_key_type: body.take_string("jwt_key_type")?,
            log_file: body.take_string("log_file")?,
            log_level: body.take_string("log_level")?,
            log_format: body.take_string("log_format")?,
            log_source_location: body.take_bool("log_source_location")?,
            prune_attested_nodes_expired_for: body.take_string("prune_attested_nodes_expired_for")?,
            prune_attested_nodes_batch_size: body.take_int("prune_attested_nodes_batch_size")?,
            prune_tofu_nodes: body.take_bool("prune_tofu_nodes")?,
            proxy_protocol_trusted_cidrs: body
                .take_string_list("proxy_protocol_trusted_cidrs")?
                .unwrap_or_default(),
            socket_path: body.take_string("socket_path")?,
            trust_domain: body.take_string("trust_domain")?,
            max_attested_node_info_staleness: body.take_string("max_attested_node_info_staleness")?,
            profiling: config::Profiling {
                enabled: body.take_bool("profiling_enabled")?.unwrap_or_default(),
                port: body.take_int("profiling_port")?.unwrap_or_default(),
                frequency: body.take_int("profiling_freq")?.unwrap_or_default(),
                names: body.take_string_list("profiling_names")?.unwrap_or_default(),
            },
            experimental: self.experimental(body)?,
            ..RawServer::default()
        };
        self.raw.server = server;
        self.rate_limits(body)?;
        self.raw.server.federation = self.federation(body)?;
        self.legacy(body)
    }

    fn subject(&mut self, server: &mut Body<'_>) -> Result<Option<RawSubject>, Failure> {
        let Some(mut body) = server.take_block("ca_subject")? else { return Ok(None) };
        let subject = RawSubject {
            country: body.take_string_list("country")?.unwrap_or_default(),
            organization: body.take_string_list("organization")?.unwrap_or_default(),
            common_name: body.take_string("common_name")?.unwrap_or_default(),
        };
        self.after_server.extend(unknown("ca_subject", &body));
        Ok(Some(subject))
    }

    fn rate_limits(&mut self, server: &mut Body<'_>) -> Result<(), Failure> {
        if let Some(mut body) = server.take_block("ratelimit")? {
            self.raw.server.ratelimit_attestation = body.take_bool("attestation")?;
            self.raw.server.ratelimit_signing = body.take_bool("signing")?;
            self.after_server.extend(unknown("ratelimit", &body));
        }
        Ok(())
    }

    fn experimental(&mut self, server: &mut Body<'_>) -> Result<RawExperimental, Failure> {
        let Some(mut body) = server.take_block("experimental")? else {
            return Ok(RawExperimental::default());
        };
        let mut experimental = RawExperimental {
            agent_spiffe_id_as_selector: body.take_bool("agent_spiffe_id_as_selector")?,
            auth_opa_policy_engine: self.policy_engine(&mut body)?,
            cache_reload_interval: body.take_string("cache_reload_interval")?,
            full_cache_reload_interval: body.take_string("full_cache_reload_interval")?,
            events_based_cache: body.take_bool("events_based_cache")?,
            prune_events_older_than: body.take_string("prune_events_older_than")?,
            event_timeout: body.take_string("event_timeout")?,
            sql_transaction_timeout: body.take_string("sql_transaction_timeout")?,
            require_pq_kem: body.take_bool("require_pq_kem")?,
            reload_on_change: body.take_bool("reload_on_change")?,
            wit_key_type: body.take_string("wit_key_type")?,
            wit_issuer: body.take_string("wit_issuer")?,
            feature_flags: body.take_string_list("feature_flags")?.unwrap_or_default(),
            named_pipe_name: body.take_string("named_pipe_name")?,
            oidc: body.take_fragment("oidc").0,
            has_unknown: false,
        };
        experimental.has_unknown = !body.unused().is_empty();
        if body.take_bool("allow_agentless_node_attestors")? == Some(true) {
            let key = "server.experimental.allow_agentless_node_attestors";
            let message = "allow_agentless_node_attestors is no longer supported";
            let hint =
                "agentless node attestation was removed in SPIRE 1.0; run an agent, and delete the key";
            return Err(Failure::Refused(self.file.error_at(key, message).with_hint(hint)));
        }
        for key in ["bundle_endpoint_enabled", "bundle_endpoint_address", "bundle_endpoint_port"] {
            if body.take_string(key).is_err() || body.locate(key).is_some() {
                self.ignored(&format!("server.experimental.{key}"), "use federation.bundle_endpoint");
            }
        }
        for key in ["bundle_endpoint_acme", "federates_with"] {
            if body.take_fragment(key).0.is_some() {
                self.ignored(&format!("server.experimental.{key}"), "use the federation section");
            }
        }
        self.raw.notices.extend(config::ignored_keys("experimental", &body));
        Ok(experimental)
    }

    fn policy_engine(&mut self, experimental: &mut Body<'_>) -> Result<Option<RawPolicyEngine>, Failure> {
        let Some(mut body) = experimental.take_block("auth_opa_policy_engine")? else { return Ok(None) };
        let Some(mut local) = body.take_block("local")? else { return Ok(Some(RawPolicyEngine::default())) };
        let policy = RawLocalPolicy {
            rego_path: local.take_string("rego_path")?.unwrap_or_default(),
            policy_data_path: local.take_string("policy_data_path")?.unwrap_or_default(),
        };
        if local.take_bool("use_rego_v1")?.is_some() {
            let key = "server.experimental.auth_opa_policy_engine.local.use_rego_v1";
            self.ignored(key, "policies are always Rego version 1");
        }
        Ok(Some(RawPolicyEngine { local: Some(policy) }))
    }

    fn federation(&mut self, server: &mut Body<'_>) -> Result<Option<RawFederation>, Failure> {
        let Some(mut body) = server.take_block("federation")? else { return Ok(None) };
        let mut federation = RawFederation::default();
        if let Some(mut endpoint) = body.take_block("bundle_endpoint")? {
            let acme_body = endpoint.take_block("acme")?;
            let mut raw = RawBundleEndpoint {
                address: endpoint.take_string("address")?,
                port: endpoint.take_int("port")?,
                refresh_hint: endpoint.take_string("refresh_hint")?,
                acme: None,
                profile: endpoint.take_fragment("profile").0,
            };
            self.after_server.extend(unknown("bundle endpoint", &endpoint));
            if let Some(mut body) = acme_body {
                raw.acme = Some(acme(&mut body)?);
                self.after_server.extend(unknown("bundle endpoint ACME", &body));
            }
            federation.bundle_endpoint = Some(raw);
        }
        for (name, mut body) in body.take_labelled("federates_with")? {
            let mut raw = RawFederatesWith {
                bundle_endpoint_url: body.take_string("bundle_endpoint_url")?.unwrap_or_default(),
                bundle_endpoint_profile: body.take_fragment("bundle_endpoint_profile").0,
                legacy_endpoint: None,
            };
            if let Some(mut old) = body.take_block("bundle_endpoint")? {
                raw.legacy_endpoint = Some(RawLegacyEndpoint {
                    address: old.take_string("address")?.unwrap_or_default(),
                    port: old.take_int("port")?,
                    spiffe_id: old.take_string("spiffe_id")?,
                    use_web_pki: old.take_bool("use_web_pki")?.unwrap_or_default(),
                });
            }
            self.raw.notices.extend(config::ignored_keys("federates_with", &body));
            federation.federates_with.push((name, raw));
        }
        // Ours; the reference passes over what it does not know here.
        federation.refuse_private_endpoints = body.take_bool("refuse_private_endpoints")?.unwrap_or_default();
        self.raw.notices.extend(config::ignored_keys("federation", &body));
        Ok(Some(federation))
    }

    /// Keys of older versions: renamed ones are translated, empty ones ignored, and one whose meaning is
    /// gone refused.
    fn legacy(&mut self, body: &mut Body<'_>) -> Result<(), Failure> {
        if let Some(path) = body.take_string("registration_uds_path")? {
            self.renamed("server.registration_uds_path", "socket_path");
            self.raw.server.socket_path.get_or_insert(path);
        }
        for key in ["default_svid_ttl", "svid_ttl"] {
            if let Some(ttl) = body.take_string(key)? {
                self.renamed(&format!("server.{key}"), "default_x509_svid_ttl");
                self.raw.server.default_x509_svid_ttl.get_or_insert(ttl);
            }
        }
        match body.take_bool("upstream_bundle")? {
            Some(true) => self.ignored("server.upstream_bundle", "the upstream bundle is always used"),
            Some(false) => {
                let message = "upstream_bundle = false is no longer supported";
                let hint = "the upstream authority's roots are always in the bundle; without them, trust would \
                            rest on the intermediate alone. Delete the key to accept that, or the \
                            UpstreamAuthority plugin to be the root";
                let error = self.file.error_at("server.upstream_bundle", message).with_hint(hint);
                return Err(Failure::Refused(error));
            }
            None => {}
        }
        if body.take_string("umask")?.is_some() {
            self.ignored("server.umask", "the umask is at least 0027");
        }
        for (key, reason) in [
            ("allow_unsafe_ids", "SPIFFE IDs are always checked strictly"),
            ("exclude_sn_from_ca_subject", "the CA's subject always has its serial number"),
            ("omit_x509svid_uid", "X.509-SVIDs have the attribute only with the CredentialComposer uniqueid"),
            ("use_legacy_downstream_x509_ca_ttl", "a downstream CA's TTL is what it asks for, within ours"),
        ] {
            if body.take_bool(key)?.is_some() {
                self.ignored(&format!("server.{key}"), reason);
            }
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

/// The keys of an `acme` block.
pub(super) fn acme(body: &mut Body<'_>) -> Result<RawAcme, DecodeError> {
    Ok(RawAcme {
        directory_url: body.take_string("directory_url")?.unwrap_or_default(),
        domain_name: body.take_string("domain_name")?.unwrap_or_default(),
        email: body.take_string("email")?.unwrap_or_default(),
        tos_accepted: body.take_bool("tos_accepted")?.unwrap_or_default(),
    })
}
