//! A whole agent from a resolved configuration: the binary gives the built-in plugins, this makes those that are
//! configured and runs.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use spire_compat::config::PluginConfig;
use spire_core::spiffe::TrustDomain;
use spire_ports::observe::{HealthChecks, Label, Metrics, names};
use spire_ports::plugins::catalog::AgentCatalog;
use spire_ports::plugins::external::{ExternalPlugins, Side};
use spire_ports::plugins::load::{Count, LoadError, Loader, Reconfiguration, Unloading};
use spire_ports::plugins::{
    self, AgentNodeAttestor, AttestationStream, Error, ErrorKind, Host, KeyManager, PluginType, SvidStore,
    WorkloadAttestor,
};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::config::{AgentConfig, BundleFormat, RebootstrapMode, TrustBundleSource};
use crate::metered::MeteredKeys;
use crate::reload::Running;
pub use crate::reload::{Operations, Reload};
use crate::runtime::{self, AgentError, Clock, Deps, Events, Options};

/// What the binary brings.
pub struct Assembly {
    /// The built-in plugins.
    pub catalog: AgentCatalog,
    /// Who runs external plugins; `None` refuses them.
    pub external: Option<Arc<dyn ExternalPlugins>>,
    /// Where metrics go.
    pub metrics: Arc<dyn Metrics>,
    /// Where the agent's health check is registered.
    pub health: HealthChecks,
    /// Who watches what happens.
    pub events: Events,
    /// The version that the log and the server are told.
    pub version: &'static str,
    /// What is shared with those that operate the agent.
    pub operations: Operations,
}

/// Why an agent could not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A plugin could not be loaded.
    #[error(transparent)]
    Plugin(#[from] LoadError),
    /// It could not start or go on.
    #[error(transparent)]
    Agent(#[from] AgentError),
}

/// Runs an agent until `stop` is cancelled.
///
/// # Errors
/// [`RunError`] when it cannot start or cannot go on.
pub async fn run(config: AgentConfig, assembly: Assembly, stop: CancellationToken) -> Result<(), RunError> {
    emit_started(&*assembly.metrics, assembly.version, &config.trust_domain);
    runtime::prepare(&config.data_dir, assembly.version)?;
    let host = Host::metrics_only(assembly.metrics.clone());
    let plugins = Plugins::load(&config, &assembly.catalog, assembly.external, host).await?;
    let unloading = plugins.unloading;
    let live = assembly.operations.live();
    // From before the attestation on, which may take long.
    let ended_with_us = CancellationToken::new();
    let _end = ended_with_us.clone().drop_guard();
    let reconfiguration = Arc::new(plugins.reconfiguration);
    tokio::spawn(reconfigure_on_signal(Arc::clone(&reconfiguration), ended_with_us.clone()));
    if let Some(reload) = assembly.operations.reload {
        let running = Running::new(config.clone(), live.clone(), reconfiguration);
        tokio::spawn(ended_with_us.run_until_cancelled_owned(running.follow(reload)));
    }
    let deps = Deps {
        live,
        key_manager: MeteredKeys::new(plugins.key_manager, assembly.metrics.clone()),
        node_attestor: plugins.node_attestor,
        workload_attestors: plugins.workload_attestors,
        svid_stores: plugins.svid_stores,
        metrics: assembly.metrics,
        events: assembly.events,
        health: assembly.health,
        version: assembly.version,
        clock: Clock::System,
    };
    let ended = runtime::run(options(config), deps, stop).await;
    unloading.close().await;
    Ok(ended?)
}

fn emit_started(metrics: &dyn Metrics, version: &str, trust_domain: &TrustDomain) {
    let labels = [
        Label::new(names::label::VERSION, version),
        Label::new(names::label::TRUST_DOMAIN_ID, trust_domain.name()),
    ];
    metrics.set_gauge(names::common::STARTED, 1.0, &labels);
}

/// Reads plugin data files again on SIGUSR1 (pkg/common/catalog: ReconfigureTask).
async fn reconfigure_on_signal(plugins: Arc<Reconfiguration>, stop: CancellationToken) {
    let Ok(mut signals) = signal(SignalKind::user_defined1()) else { return };
    while let Some(Some(())) = stop.run_until_cancelled(signals.recv()).await {
        tracing::info!(subsystem_name = "reconfigurer", "Reconfigure signal received");
        plugins.run().await;
    }
}

struct Plugins {
    key_manager: Arc<dyn KeyManager>,
    node_attestor: Arc<dyn AgentNodeAttestor>,
    workload_attestors: Vec<Arc<dyn WorkloadAttestor>>,
    svid_stores: Vec<Arc<dyn SvidStore>>,
    reconfiguration: Reconfiguration,
    unloading: Unloading,
}

impl Plugins {
    /// Makes the plugins in file order.
    ///
    /// # Errors
    /// [`LoadError`], the first that happens; what was loaded before has ended then.
    async fn load(
        config: &AgentConfig,
        catalog: &AgentCatalog,
        external: Option<Arc<dyn ExternalPlugins>>,
        host: Host,
    ) -> Result<Self, LoadError> {
        let loader = Loader::new(config.trust_domain.clone(), host).with_external(Side::Agent, external);
        let mut loaded = Loaded::new(loader);
        let complete = loaded.add_all(config, catalog).await;
        let (unloading, reconfiguration) = loaded.loader.into_parts();
        let none = |kind: PluginType| LoadError::Constraint {
            kind: kind.as_str(),
            reason: "expected exactly 1 but got 0".to_owned(),
        };
        let exactly_one = complete.and_then(|()| {
            let key_manager = loaded.key_managers.pop().ok_or_else(|| none(PluginType::KeyManager))?;
            let attestor = loaded.node_attestors.pop().ok_or_else(|| none(PluginType::NodeAttestor))?;
            Ok((key_manager, attestor))
        });
        let (key_manager, configured) = match exactly_one {
            Ok(both) => both,
            Err(error) => {
                unloading.unload().await;
                return Err(error);
            }
        };
        Ok(Self {
            key_manager,
            node_attestor: with_token(config.join_token.as_deref(), configured),
            workload_attestors: loaded.workload_attestors,
            svid_stores: loaded.svid_stores,
            reconfiguration,
            unloading,
        })
    }
}

/// What plugins say of their configuration, by plugin as the reference names them (`KeyManager "disk"`).
///
/// # Errors
/// What is wrong with the list of plugins itself: an unknown type or name, too few or too many of a type.
pub async fn validate(
    config: &AgentConfig,
    catalog: &AgentCatalog,
    external: Option<Arc<dyn ExternalPlugins>>,
) -> Result<BTreeMap<String, Vec<String>>, LoadError> {
    let loader = Loader::new(config.trust_domain.clone(), Host::none());
    let mut loaded = Loaded::new(loader.with_external(Side::Agent, external).validating());
    let notes = loaded.notes(config, catalog).await;
    loaded.loader.into_parts().0.unload().await;
    notes
}

struct Loaded {
    loader: Loader,
    key_managers: Vec<Arc<dyn KeyManager>>,
    node_attestors: Vec<Arc<dyn AgentNodeAttestor>>,
    workload_attestors: Vec<Arc<dyn WorkloadAttestor>>,
    svid_stores: Vec<Arc<dyn SvidStore>>,
}

impl Loaded {
    fn new(loader: Loader) -> Self {
        Self {
            loader,
            key_managers: Vec::new(),
            node_attestors: Vec::new(),
            workload_attestors: Vec::new(),
            svid_stores: Vec::new(),
        }
    }

    async fn add_all(&mut self, config: &AgentConfig, catalog: &AgentCatalog) -> Result<(), LoadError> {
        for plugin in &config.plugins {
            self.add(plugin, catalog).await?;
        }
        self.check_counts()
    }

    async fn notes(
        &mut self,
        config: &AgentConfig,
        catalog: &AgentCatalog,
    ) -> Result<BTreeMap<String, Vec<String>>, LoadError> {
        let mut notes = BTreeMap::new();
        for plugin in &config.plugins {
            let loaded = self.add(plugin, catalog).await;
            self.loader.note(&mut notes, plugin, loaded)?;
        }
        // A plugin that refused its configuration would be missed for the wrong reason.
        if notes.is_empty() {
            self.check_counts()?;
        }
        Ok(notes)
    }

    fn check_counts(&self) -> Result<(), LoadError> {
        let loader = &self.loader;
        loader.check(PluginType::KeyManager, Count::ExactlyOne)?;
        loader.check(PluginType::NodeAttestor, Count::ExactlyOne)?;
        loader.check(PluginType::WorkloadAttestor, Count::AtLeastOne)
    }

    async fn add(&mut self, plugin: &PluginConfig, catalog: &AgentCatalog) -> Result<(), LoadError> {
        use PluginType as T;
        let loader = &mut self.loader;
        match plugin.kind.as_str() {
            "KeyManager" => {
                self.key_managers.extend(loader.load(T::KeyManager, plugin, &catalog.key_managers).await?);
            }
            "NodeAttestor" => {
                self.node_attestors
                    .extend(loader.load(T::NodeAttestor, plugin, &catalog.node_attestors).await?);
            }
            "WorkloadAttestor" => self
                .workload_attestors
                .extend(loader.load(T::WorkloadAttestor, plugin, &catalog.workload_attestors).await?),
            "SVIDStore" => {
                self.svid_stores.extend(loader.load(T::SvidStore, plugin, &catalog.svid_stores).await?);
            }
            _ => return Err(loader.unsupported(plugin)),
        }
        Ok(())
    }
}

/// The node attestor that is used: whoever gives a token means it, whatever the configured plugin is (pkg/agent/agent.go).
fn with_token(token: Option<&str>, configured: Arc<dyn AgentNodeAttestor>) -> Arc<dyn AgentNodeAttestor> {
    match token {
        Some(token) => Arc::new(JoinToken(token.to_owned())),
        None => configured,
    }
}

const JOIN_TOKEN: &str = "join_token";

/// Brings the join token that flag, file or configuration gave.
struct JoinToken(String);

#[async_trait]
impl AgentNodeAttestor for JoinToken {
    fn name(&self) -> &str {
        JOIN_TOKEN
    }

    async fn attest(&self, server: &mut dyn AttestationStream) -> plugins::Result<()> {
        match server.send_payload(Bytes::from(self.0.clone())).await? {
            None => Ok(()),
            Some(_) => Err(Error::new(
                ErrorKind::Internal,
                (PluginType::NodeAttestor, JOIN_TOKEN),
                "the server asked for more than the token",
            )),
        }
    }
}

/// The limits as the Workload API has them.
pub(crate) fn rate_limits(config: &crate::config::RateLimits) -> runtime::RateLimits {
    let limit = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    runtime::RateLimits {
        fetch_x509_svid: limit(config.fetch_x509_svid),
        fetch_x509_bundles: limit(config.fetch_x509_bundles),
        fetch_jwt_svid: limit(config.fetch_jwt_svid),
        fetch_jwt_bundles: limit(config.fetch_jwt_bundles),
        stream_secrets: limit(config.stream_secrets),
        fetch_secrets: limit(config.fetch_secrets),
    }
}

fn options(config: AgentConfig) -> Options {
    Options {
        server_host: config.server_address,
        server_port: config.server_port,
        socket_path: config.socket_path,
        admin_socket_path: config.admin_socket_path,
        authorized_delegates: config.authorized_delegates,
        broker: config.broker,
        rebootstrap: match config.rebootstrap_mode {
            RebootstrapMode::Never => runtime::Rebootstrap::Never,
            RebootstrapMode::Auto => runtime::Rebootstrap::Auto(config.rebootstrap_delay),
            RebootstrapMode::Always => runtime::Rebootstrap::Always(config.rebootstrap_delay),
        },
        sync_interval: config.sync_interval,
        use_sync_authorized_entries: config.use_sync_authorized_entries,
        x509_svid_cache_max_size: config.x509_svid_cache_max_size,
        jwt_svid_cache_max_size: config.jwt_svid_cache_max_size,
        jwt_svid_cache_hit_timeout: config.jwt_svid_cache_hit_timeout,
        availability_target: config.availability_target,
        workload_key_type: config.workload_key_type,
        require_pq_kem: config.require_pq_kem,
        disable_workload_api: config.disable_workload_api,
        disable_sds_api: config.disable_sds_api,
        sds: runtime::SdsOptions {
            default_svid_name: config.sds.default_svid_name,
            default_bundle_name: config.sds.default_bundle_name,
            default_all_bundles_name: config.sds.default_all_bundles_name,
            disable_spiffe_cert_validation: config.sds.disable_spiffe_cert_validation,
        },
        allow_unauthenticated_verifiers: config.allow_unauthenticated_verifiers,
        allowed_foreign_jwt_claims: config.allowed_foreign_jwt_claims,
        wit_svids_enabled: config.feature_flags.wit_svid,
        log_selectors: config.log_selectors,
        rate_limits: rate_limits(&config.ratelimit),
        ..Options::new(config.trust_domain, config.data_dir, trust_bundle(config.trust_bundle))
    }
}

fn trust_bundle(source: TrustBundleSource) -> runtime::TrustBundle {
    let form = |format: BundleFormat| match format {
        BundleFormat::Pem => runtime::BundleFormat::Pem,
        BundleFormat::Spiffe => runtime::BundleFormat::Spiffe,
    };
    match source {
        TrustBundleSource::Insecure => runtime::TrustBundle::Insecure,
        TrustBundleSource::File { path, format } => {
            runtime::TrustBundle::Path { path: PathBuf::from(path), format: form(format) }
        }
        TrustBundleSource::Url { url, unix_socket, format } => runtime::TrustBundle::Url {
            url,
            unix_socket: unix_socket.map(PathBuf::from),
            format: form(format),
        },
        TrustBundleSource::WorkloadApi { address } => runtime::TrustBundle::WorkloadApi(address),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Other;

    #[async_trait]
    impl AgentNodeAttestor for Other {
        fn name(&self) -> &str {
            "x509pop"
        }

        async fn attest(&self, _: &mut dyn AttestationStream) -> plugins::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_token_is_used_whatever_is_configured() {
        assert_eq!(with_token(Some("t"), Arc::new(Other)).name(), "join_token");
        assert_eq!(with_token(None, Arc::new(Other)).name(), "x509pop");
    }
}
