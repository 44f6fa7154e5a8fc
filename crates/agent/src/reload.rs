//! Taking over a changed configuration without a restart: what is safe at once, the rest named (docs/reload.md).

use std::sync::Arc;

use spire_net::tls::{Identity, LateTrust};
use spire_ports::plugins::load::Reconfiguration;
use spire_telemetry::LogLevel;
use spire_telemetry::daemon::{Load, ReloadRequests, Reloaded};
use spire_telemetry::metrics::Telemetry;

use crate::assembly::rate_limits;
use crate::config::AgentConfig;
use crate::runtime::Live;

/// How an agent is operated from outside; the default is an agent that is not.
#[derive(Default)]
pub struct Operations {
    /// Gets the agent's X.509-SVID, for others that show it (the metrics endpoint).
    pub identity: Arc<Identity>,
    /// Gets the authorities that the agent trusts.
    pub trust: Arc<LateTrust>,
    /// The level of the log, for the Logger API.
    pub log: Option<LogLevel>,
    /// Where a new configuration comes from; `None` for an agent that keeps its first.
    pub reload: Option<Reload>,
}

impl Operations {
    pub(crate) fn live(&self) -> Live {
        let (identity, trust) = (Arc::clone(&self.identity), Arc::clone(&self.trust));
        Live { identity, trust, log: self.log.clone(), ..Live::default() }
    }
}

/// Where a new configuration comes from, and what of the process follows it.
pub struct Reload {
    /// When to look.
    pub requests: ReloadRequests,
    /// Reads it.
    pub load: Load<AgentConfig>,
    /// Metrics follow it.
    pub telemetry: Arc<Telemetry>,
    /// The log follows it.
    pub log: LogLevel,
}

/// What a new configuration is taken over into.
pub(crate) struct Running {
    /// What the agent was started with, which is in force where only a restart takes over something else.
    launched: AgentConfig,
    /// What was taken over last.
    applied: AgentConfig,
    live: Live,
    plugins: Arc<Reconfiguration>,
}

impl Running {
    /// An agent that was started with the configuration.
    pub(crate) fn new(launched: AgentConfig, live: Live, plugins: Arc<Reconfiguration>) -> Self {
        Self { applied: launched.clone(), launched, live, plugins }
    }

    /// Takes over new configurations for ever.
    pub(crate) async fn follow(mut self, mut reload: Reload) {
        loop {
            let new = reload.requests.next_config(&reload.load).await;
            let mut done = self.take(new, &reload);
            done.count_plugins(self.plugins.run().await);
            done.finish();
        }
    }

    fn take(&mut self, new: AgentConfig, reload: &Reload) -> Reloaded {
        spire_telemetry::log_notices(&new.notices);
        let mut done = Reloaded { needs_restart: needs_restart(&self.launched, &new), ..Reloaded::default() };
        let changed = &mut done.changed;
        if self.applied.log.level != new.log.level {
            reload.log.relaunch(new.log.level);
            changed.push(format!("agent.log_level = {}", new.log.level.as_str()));
        }
        if self.applied.ratelimit != new.ratelimit {
            self.live.rate_limits.store(Some(Arc::new(rate_limits(&new.ratelimit))));
            changed.push("agent.experimental.ratelimit".to_owned());
        }
        match reload.telemetry.reload(&new.telemetry) {
            Ok(keys) => changed.extend(keys.into_iter().map(ToOwned::to_owned)),
            Err(error) => done.failed.push(format!("telemetry.Prometheus.tls: {error}")),
        }
        self.applied = new;
        done
    }
}

/// The settings of the file that differ and that only a restart takes over, by key. Every setting is named, so that a new
/// one is not forgotten.
fn needs_restart(old: &AgentConfig, new: &AgentConfig) -> Vec<String> {
    let AgentConfig {
        config_path: _,
        log,
        log_selectors,
        data_dir,
        trust_domain,
        server_address,
        server_port,
        trust_bundle,
        rebootstrap_mode,
        rebootstrap_delay,
        // Used once, at the first attestation.
        join_token: _,
        socket_path,
        disable_workload_api,
        disable_sds_api,
        admin_socket_path,
        authorized_delegates,
        sds,
        workload_key_type,
        allow_unauthenticated_verifiers,
        allowed_foreign_jwt_claims,
        availability_target,
        x509_svid_cache_max_size,
        jwt_svid_cache_max_size,
        // In `experimental_keys`.
        sync_interval: _,
        jwt_svid_cache_hit_timeout: _,
        use_sync_authorized_entries: _,
        require_pq_kem: _,
        reload_on_change: _,
        broker: _,
        feature_flags: _,
        // Taken over.
        ratelimit: _,
        plugins,
        telemetry,
        health_checks,
        profiling,
        notices: _,
    } = old;
    let log_output =
        |log: &spire_compat::config::LogSettings| (log.file.clone(), log.format, log.source_location);
    let agent = [
        ("log_file, log_format or log_source_location", log_output(log) != log_output(&new.log)),
        ("log_selectors", *log_selectors != new.log_selectors),
        ("data_dir", *data_dir != new.data_dir),
        ("trust_domain", *trust_domain != new.trust_domain),
        ("server_address", *server_address != new.server_address),
        ("server_port", *server_port != new.server_port),
        ("trust_bundle source", *trust_bundle != new.trust_bundle),
        ("rebootstrap_mode", *rebootstrap_mode != new.rebootstrap_mode),
        ("rebootstrap_delay", *rebootstrap_delay != new.rebootstrap_delay),
        ("socket_path", *socket_path != new.socket_path),
        ("disable_workload_api", *disable_workload_api != new.disable_workload_api),
        ("disable_sds_api", *disable_sds_api != new.disable_sds_api),
        ("admin_socket_path", *admin_socket_path != new.admin_socket_path),
        ("authorized_delegates", *authorized_delegates != new.authorized_delegates),
        ("sds", *sds != new.sds),
        ("workload_x509_svid_key_type", *workload_key_type != new.workload_key_type),
        (
            "allow_unauthenticated_verifiers",
            *allow_unauthenticated_verifiers != new.allow_unauthenticated_verifiers,
        ),
        ("allowed_foreign_jwt_claims", *allowed_foreign_jwt_claims != new.allowed_foreign_jwt_claims),
        ("availability_target", *availability_target != new.availability_target),
        ("x509_svid_cache_max_size", *x509_svid_cache_max_size != new.x509_svid_cache_max_size),
        ("jwt_svid_cache_max_size", *jwt_svid_cache_max_size != new.jwt_svid_cache_max_size),
        ("profiling", *profiling != new.profiling),
    ];
    let differing = agent.into_iter().filter(|(_, differs)| *differs);
    let mut keys: Vec<String> = differing.map(|(key, _)| format!("agent.{key}")).collect();
    let sections = [
        ("telemetry sinks", !telemetry.has_sinks_of(&new.telemetry)),
        ("health_checks", *health_checks != new.health_checks),
    ];
    keys.extend(experimental_keys(old, new));
    keys.extend(sections.into_iter().filter(|(_, differs)| *differs).map(|(key, _)| key.to_owned()));
    keys.extend(spire_compat::config::changed_plugins(plugins, &new.plugins));
    keys
}

fn experimental_keys(old: &AgentConfig, new: &AgentConfig) -> Vec<String> {
    [
        ("sync_interval", old.sync_interval != new.sync_interval),
        ("jwt_svid_cache_hit_timeout", old.jwt_svid_cache_hit_timeout != new.jwt_svid_cache_hit_timeout),
        ("use_sync_authorized_entries", old.use_sync_authorized_entries != new.use_sync_authorized_entries),
        ("require_pq_kem", old.require_pq_kem != new.require_pq_kem),
        ("reload_on_change", old.reload_on_change != new.reload_on_change),
        ("broker", old.broker != new.broker),
        ("feature_flags", old.feature_flags != new.feature_flags),
    ]
    .into_iter()
    .filter(|(_, differs)| *differs)
    .map(|(key, _)| format!("agent.experimental.{key}"))
    .collect()
}
