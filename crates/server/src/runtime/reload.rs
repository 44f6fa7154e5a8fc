//! Taking over a changed configuration without a restart: what is safe at once, the rest named (docs/reload.md).

use std::sync::Arc;

use spire_compat::hcl::Fragment;
use spire_net::tls::{Identity, LateTrust};
use spire_ports::plugins::load::Reconfiguration;
use spire_telemetry::daemon::{Load, ReloadRequests, Reloaded};
use spire_telemetry::metrics::Telemetry;

use crate::api::{Api, LogControl, RateLimits};
use crate::config::{Experimental, ServerConfig};
use crate::federation::Federation;

/// How a server is operated from outside; the default is a server that is not.
#[derive(Default)]
pub struct Operations {
    /// Gets the server's X.509-SVID, for others that show it (the metrics endpoint).
    pub identity: Arc<Identity>,
    /// Gets the authorities that the server trusts.
    pub trust: Arc<LateTrust>,
    /// Where a new configuration comes from; `None` for a server that keeps its first.
    pub reload: Option<Reload>,
}

/// Where a new configuration comes from.
pub struct Reload {
    /// When to look.
    pub requests: ReloadRequests,
    /// Reads it.
    pub load: Load<ServerConfig>,
    /// Metrics follow it.
    pub telemetry: Arc<Telemetry>,
}

/// What a new configuration is taken over into.
pub(super) struct Running {
    /// What the server was started with, which is in force where only a restart takes over something else.
    launched: ServerConfig,
    /// What was taken over last.
    applied: ServerConfig,
    parts: Parts,
}

/// The parts of a server that follow its configuration.
pub(super) struct Parts {
    pub(super) api: Arc<Api>,
    pub(super) log: Arc<dyn LogControl>,
    pub(super) federation: Arc<Federation>,
    pub(super) plugins: Arc<Reconfiguration>,
}

impl Running {
    /// A server that was started with the configuration.
    pub(super) fn new(launched: ServerConfig, parts: Parts) -> Self {
        Self { applied: launched.clone(), launched, parts }
    }

    /// Takes over new configurations for ever.
    pub(super) async fn follow(mut self, mut reload: Reload) {
        loop {
            let new = reload.requests.next_config(&reload.load).await;
            let mut done = self.take(new, &reload.telemetry);
            done.count_plugins(self.parts.plugins.run().await);
            done.finish();
        }
    }

    fn take(&mut self, new: ServerConfig, telemetry: &Telemetry) -> Reloaded {
        spire_telemetry::log_notices(&new.notices);
        let mut done = Reloaded { needs_restart: needs_restart(&self.launched, &new), ..Reloaded::default() };
        let changed = &mut done.changed;
        if self.applied.log.level != new.log.level {
            self.parts.log.configure(new.log.level);
            changed.push(format!("server.log_level = {}", new.log.level.as_str()));
        }
        let limits = |config: &ServerConfig| RateLimits {
            attestation: config.ratelimit_attestation,
            signing: config.ratelimit_signing,
        };
        if limits(&self.applied) != limits(&new) {
            self.parts.api.set_rate_limits(limits(&new));
            changed.push("server.ratelimit".to_owned());
        }
        if self.applied.federation.federates_with != new.federation.federates_with {
            self.parts.federation.set_configured(&new.federation.federates_with);
            changed.push("server.federation.federates_with".to_owned());
        }
        match telemetry.reload(&new.telemetry) {
            Ok(keys) => changed.extend(keys.into_iter().map(ToOwned::to_owned)),
            Err(error) => done.failed.push(format!("telemetry.Prometheus.tls: {error}")),
        }
        self.applied = new;
        done
    }
}

/// The settings of the file that differ and that only a restart takes over, by key. Every setting is named, so that a new
/// one is not forgotten.
fn needs_restart(old: &ServerConfig, new: &ServerConfig) -> Vec<String> {
    let ServerConfig {
        config_path: _,
        log,
        bind_address,
        socket_path,
        data_dir,
        trust_domain,
        admin_ids,
        audit_log_enabled,
        proxy_protocol_trusted_cidrs,
        agent_ttl,
        x509_svid_ttl,
        jwt_svid_ttl,
        ca_ttl,
        ca_key_type,
        jwt_key_type,
        wit_key_type,
        ca_subject,
        jwt_issuer,
        wit_issuer,
        disable_jwt_svids,
        // Taken over.
        ratelimit_attestation: _,
        ratelimit_signing: _,
        federation,
        prune_attested_nodes,
        max_attested_node_info_staleness,
        experimental,
        feature_flags,
        plugins,
        telemetry,
        health_checks,
        profiling,
        notices: _,
    } = old;
    let log_output =
        |log: &spire_compat::config::LogSettings| (log.file.clone(), log.format, log.source_location);
    let mut keys: Vec<String> = [
        ("server.log_file, log_format or log_source_location", log_output(log) != log_output(&new.log)),
        ("server.bind_address or bind_port", *bind_address != new.bind_address),
        ("server.socket_path", *socket_path != new.socket_path),
        ("server.data_dir", *data_dir != new.data_dir),
        ("server.trust_domain", *trust_domain != new.trust_domain),
        ("server.admin_ids", *admin_ids != new.admin_ids),
        ("server.audit_log_enabled", *audit_log_enabled != new.audit_log_enabled),
        (
            "server.proxy_protocol_trusted_cidrs",
            *proxy_protocol_trusted_cidrs != new.proxy_protocol_trusted_cidrs,
        ),
        ("server.agent_ttl", *agent_ttl != new.agent_ttl),
        ("server.default_x509_svid_ttl", *x509_svid_ttl != new.x509_svid_ttl),
        ("server.default_jwt_svid_ttl", *jwt_svid_ttl != new.jwt_svid_ttl),
        ("server.ca_ttl", *ca_ttl != new.ca_ttl),
        ("server.ca_key_type", *ca_key_type != new.ca_key_type),
        ("server.jwt_key_type", *jwt_key_type != new.jwt_key_type),
        ("server.wit_key_type", *wit_key_type != new.wit_key_type),
        ("server.ca_subject", *ca_subject != new.ca_subject),
        ("server.jwt_issuer", *jwt_issuer != new.jwt_issuer),
        ("server.experimental.wit_issuer", *wit_issuer != new.wit_issuer),
        ("server.disable_jwt_svids", *disable_jwt_svids != new.disable_jwt_svids),
        ("server.federation.bundle_endpoint", federation.bundle_endpoint != new.federation.bundle_endpoint),
        (
            "server.federation.refuse_private_endpoints",
            federation.refuse_private_endpoints != new.federation.refuse_private_endpoints,
        ),
        ("server.prune_attested_nodes_expired_for", *prune_attested_nodes != new.prune_attested_nodes),
        (
            "server.max_attested_node_info_staleness",
            *max_attested_node_info_staleness != new.max_attested_node_info_staleness,
        ),
        ("server.experimental.feature_flags", *feature_flags != new.feature_flags),
        ("telemetry sinks", !telemetry.has_sinks_of(&new.telemetry)),
        ("health_checks", *health_checks != new.health_checks),
        ("server.profiling", *profiling != new.profiling),
    ]
    .into_iter()
    .filter(|(_, differs)| *differs)
    .map(|(key, _)| key.to_owned())
    .collect();
    keys.extend(experimental_keys(experimental, &new.experimental));
    keys.extend(spire_compat::config::changed_plugins(plugins, &new.plugins));
    keys
}

fn experimental_keys(old: &Experimental, new: &Experimental) -> Vec<String> {
    let Experimental {
        agent_spiffe_id_as_selector,
        policy,
        cache_reload_interval,
        full_cache_reload_interval,
        events_based_cache,
        prune_events_older_than,
        event_timeout,
        require_pq_kem,
        reload_on_change,
        oidc,
    } = old;
    // Where the block stands in the file is of no account.
    let text = |block: &Option<Fragment>| block.as_ref().map(Fragment::print);
    [
        ("agent_spiffe_id_as_selector", *agent_spiffe_id_as_selector != new.agent_spiffe_id_as_selector),
        ("auth_opa_policy_engine", *policy != new.policy),
        ("cache_reload_interval", *cache_reload_interval != new.cache_reload_interval),
        ("full_cache_reload_interval", *full_cache_reload_interval != new.full_cache_reload_interval),
        ("events_based_cache", *events_based_cache != new.events_based_cache),
        ("prune_events_older_than", *prune_events_older_than != new.prune_events_older_than),
        ("event_timeout", *event_timeout != new.event_timeout),
        ("require_pq_kem", *require_pq_kem != new.require_pq_kem),
        ("reload_on_change", *reload_on_change != new.reload_on_change),
        ("oidc", text(oidc) != text(&new.oidc)),
    ]
    .into_iter()
    .filter(|(_, differs)| *differs)
    .map(|(key, _)| format!("server.experimental.{key}"))
    .collect()
}
