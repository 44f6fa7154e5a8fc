//! A whole server: from a resolved configuration to listeners, and back to nothing.
//!
//! [`run`] makes the parts in the order in which they need each other (store, plugins, authorities, entries,
//! API, listeners), runs the background tasks beside them and ends when it is told to or when a part fails. The binary
//! gives it the concrete store and plugins.

mod bundle_plugins;
mod federate;
mod health;
mod host;
mod listen;
mod metered;
mod plugins;
mod reload;
mod tasks;
#[cfg(test)]
mod tests;
mod trust;

use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;

use spire_compat::config::PluginConfig;
use spire_core::model::{EntryFilter, Paging};
use spire_core::spiffe::{Bundle, SpiffeId, TrustDomain};
use spire_net::tls::TlsPolicy;
use spire_ports::datastore::{self, Consistency, DataStore};
use spire_ports::observe::{HealthChecks, Label, Logged, Metrics, check, names};
use spire_ports::plugins::KeyManager;
use spire_ports::plugins::catalog::ServerCatalog;
use spire_ports::plugins::external::ExternalPlugins;
use spire_ports::plugins::load::{LoadError, Reconfiguration};
use spire_ports::policy::Policy;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::api::{Api, Deps, LogControl, RateLimits};
use crate::attest::Attestors;
use crate::ca::{Authorities, CaConfig, CaError, CaPorts, ServerSvid};
use crate::clock::{Clock, SystemClock};
use crate::config::{PolicyFiles, ServerConfig};
use crate::entries::{Intervals, LiveEntries};
use crate::federation::EndpointError;
use federate::{Federating, FederatingParts};
use host::HostServices;
use metered::{MeteredKeys, MeteredStore};
use plugins::Plugins;
use reload::Running;
use tasks::Tasks;
use trust::BundleTrust;

pub use listen::ListenError;
pub use plugins::validate;
pub use reload::{Operations, Reload};

/// Opens the datastore that a `DataStore "sql"` block describes.
pub type OpenStore =
    Box<dyn FnOnce(PluginConfig) -> Pin<Box<dyn Future<Output = Result<OpenedStore, String>> + Send>> + Send>;

/// A datastore, and how it ends.
pub struct OpenedStore {
    /// The store.
    pub store: Arc<dyn DataStore>,
    /// Finishes what was handed in and closes it; awaited once, when nothing uses the store any more.
    pub close: Pin<Box<dyn Future<Output = ()> + Send>>,
}

/// Loads the policy that `auth_opa_policy_engine` names; the error is for the log.
pub type OpenPolicy = Box<dyn FnOnce(&PolicyFiles) -> Result<Arc<dyn Policy>, String> + Send>;

/// Serves the OIDC discovery documents of `experimental.oidc`: it listens, and gives what answers until `stop`. The error is
/// for the log.
pub type OpenOidc =
    Box<dyn FnOnce(OidcParts) -> Pin<Box<dyn Future<Output = Result<Serving, String>> + Send>> + Send>;

/// What answers until it is told to stop.
pub type Serving = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What the OIDC discovery documents are made of.
pub struct OidcParts {
    /// The newest bundle.
    pub bundle: watch::Receiver<Option<Arc<Bundle>>>,
    /// What is asked of TLS.
    pub policy: TlsPolicy,
    /// When to stop.
    pub stop: CancellationToken,
}

/// What the binary brings.
pub struct Assembly {
    /// Serves `experimental.oidc`; without it this program refuses the block.
    pub open_oidc: Option<OpenOidc>,
    /// Loads a user's policy; without it this program refuses the setting.
    pub open_policy: Option<OpenPolicy>,
    /// Opens the store.
    pub open_store: OpenStore,
    /// The built-in plugins.
    pub catalog: ServerCatalog,
    /// Who runs external plugins; `None` refuses them.
    pub external: Option<Arc<dyn ExternalPlugins>>,
    /// Where metrics go.
    pub metrics: Arc<dyn Metrics>,
    /// The log's level.
    pub log: Arc<dyn LogControl>,
    /// The version that the log and the API say.
    pub version: String,
    /// Where the health listener finds its checks.
    pub health: HealthChecks,
    /// What is shared with those that operate the server.
    pub operations: Operations,
}

/// Why a server could not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The data folder cannot be made or written.
    #[error("could not create data directory {path:?}: {reason}")]
    DataDir {
        /// The folder.
        path: String,
        /// What the system said.
        reason: String,
    },
    /// The datastore's configuration is not one that we can open.
    #[error("{0}")]
    Store(String),
    /// Reading or writing the datastore failed.
    #[error(transparent)]
    Datastore(#[from] datastore::Error),
    /// A plugin could not be loaded.
    #[error(transparent)]
    Plugin(#[from] LoadError),
    /// A notifier refused the bundle at start.
    #[error("one or more notifiers returned an error: {0}")]
    Notifier(String),
    /// The authorities could not be started.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// Stored entries are of another trust domain.
    #[error(
        "invalid trust domain in registration entry; SPIFFE ID {id:?} is not in the configured trust domain {trust_domain:?}"
    )]
    OtherTrustDomain {
        /// An entry's SPIFFE ID.
        id: String,
        /// Ours.
        trust_domain: String,
    },
    /// A listener could not be made, or broke.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// A background task panicked.
    #[error("background task {name:?} ended unexpectedly: {error}")]
    Task {
        /// What it worked on.
        name: &'static str,
        /// What the runtime says of it.
        error: String,
    },
    /// The bundle endpoint cannot be served.
    #[error(transparent)]
    BundleEndpoint(#[from] EndpointError),
    /// The user's policy cannot be used.
    #[error("unable to obtain authpolicy engine: {0}")]
    Policy(String),
    /// The OIDC discovery documents cannot be served.
    #[error("unable to serve OIDC discovery: {0}")]
    Oidc(String),
    /// A setting that only another of our programs has.
    #[error("experimental.oidc: this program does not serve OIDC discovery; use spire-server")]
    NoOidc,
    /// A setting that only another of our programs has.
    #[error("{key}: this program has no policy engine; use spire-server")]
    NoPolicyEngine {
        /// The setting.
        key: &'static str,
    },
}

/// Runs a server until `stop` is cancelled, then lets calls finish. `ready` is cancelled once it answers.
///
/// # Errors
/// [`RunError`] when it cannot start, or a listener or a background task breaks.
pub async fn run(
    config: ServerConfig,
    assembly: Assembly,
    ready: CancellationToken,
    stop: CancellationToken,
) -> Result<(), RunError> {
    tracing::info!(
        admin_ids = Logged::list(&config.admin_ids).value(),
        data_dir = %config.data_dir.display(),
        launch_log_level = assembly.log.launch().as_str(),
        version = assembly.version,
        "Configured"
    );
    let policy = load_policy(config.experimental.policy.as_ref(), assembly.open_policy)?;
    if config.experimental.oidc.is_some() && assembly.open_oidc.is_none() {
        return Err(RunError::NoOidc);
    }
    emit_started(&*assembly.metrics, &assembly.version, &config.trust_domain);
    create_data_dir(&config.data_dir)?;
    let opening = (assembly.open_store)(datastore_config(&config.plugins)?);
    let opened = tokio::select! {
        opened = opening => opened.map_err(RunError::Store)?,
        () = stop.cancelled() => return Ok(()),
    };
    tracing::info!(reconfigurable = false, subsystem_name = "catalog", "Configured DataStore");
    let store: Arc<dyn DataStore> = MeteredStore::new(opened.store, assembly.metrics.clone());
    let host = HostServices::new(store.clone(), assembly.metrics.clone());
    let parts = Parts {
        store,
        policy,
        open_oidc: assembly.open_oidc,
        metrics: assembly.metrics,
        log: assembly.log,
        health: assembly.health,
        operations: assembly.operations,
    };
    let unstarted = stopped_before(ready.clone(), stop.clone());
    let work = async {
        let mut plugins = Plugins::load(&config, &assembly.catalog, assembly.external, host.host()).await?;
        let unloading = std::mem::take(&mut plugins.unloading);
        let served = serve(&config, parts, plugins, &host, ready, stop).await;
        host.release();
        unloading.close().await;
        served
    };
    let served = tokio::select! {
        // Boxed: starting takes more of the stack than serving.
        served = Box::pin(work) => served,
        () = unstarted => Ok(()),
    };
    tracing::debug!(subsystem_name = "catalog", "Closing DataStore");
    opened.close.await;
    tracing::info!(subsystem_name = "catalog", "DataStore closed");
    served
}

/// Ends when the server is told to stop while it starts: dropping what starts ends it. Once the listeners are up, they
/// stop in order.
async fn stopped_before(ready: CancellationToken, stop: CancellationToken) {
    stop.cancelled().await;
    if ready.is_cancelled() {
        std::future::pending::<()>().await;
    }
}

/// Dashboards compare versions, so this is the reference's without ours beside it.
fn emit_started(metrics: &dyn Metrics, version: &str, trust_domain: &TrustDomain) {
    let version = version.split('+').next().unwrap_or(version);
    let labels = [
        Label::new(names::label::VERSION, version),
        Label::new(names::label::TRUST_DOMAIN_ID, trust_domain.name()),
    ];
    metrics.set_gauge(names::common::STARTED, 1.0, &labels);
}

/// What a server is made of, beside its plugins.
struct Parts {
    store: Arc<dyn DataStore>,
    policy: Option<Arc<dyn Policy>>,
    open_oidc: Option<OpenOidc>,
    metrics: Arc<dyn Metrics>,
    log: Arc<dyn LogControl>,
    health: HealthChecks,
    operations: Operations,
}

/// From the store and the plugins to the end of the listeners and tasks.
async fn serve(
    config: &ServerConfig,
    parts: Parts,
    plugins: Plugins,
    host: &HostServices,
    ready: CancellationToken,
    stop: CancellationToken,
) -> Result<(), RunError> {
    let Parts { store, policy, open_oidc, metrics, log, health, operations } = parts;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    check_trust_domain(&*store, &config.trust_domain).await?;
    let key_manager: Arc<dyn KeyManager> = MeteredKeys::new(plugins.key_manager, metrics.clone());
    let mut ports = CaPorts::new(&store, key_manager.clone(), metrics.clone(), clock.clone());
    ports.upstream = plugins.upstream_authority;
    ports.composers = plugins.credential_composers;
    // Without an authority yet this waits for the upstream one as long as that takes.
    let authorities = tokio::select! {
        started = Authorities::start(ca_config(config), ports) => started?,
        () = stop.cancelled() => return Ok(()),
    };
    let svid = ServerSvid::start(authorities.clone()).await?;
    host.bind_identity(svid.clone(), authorities.bundle_changes().clone());
    let identity = operations.identity;
    listen::show(&identity, &svid.current())?;
    let entries = load_entries(config, &store, &clock, &metrics).await?;
    tracing::info!(launch_log_level = log.launch().as_str(), "Logger service configured");
    let mut tasks = Tasks::new();
    let scrapers = scrapers_trust(config, &authorities);
    operations.trust.fill(scrapers.clone());
    let live = entries.clone();
    tasks.spawn_until_stopped("scrapers", async move { scrapers.follow(&live).await });
    let federating = FederatingParts {
        live: entries.clone(),
        metrics: metrics.clone(),
        clock: clock.clone(),
        authorities: authorities.clone(),
        identity: identity.clone(),
        key_manager,
    };
    let federating = Federating::start(config, federating, tasks.stop().clone()).await?;
    serve_oidc(open_oidc, config, &authorities, &mut tasks).await?;
    let api = Api::new(Deps {
        live: entries.clone(),
        authorities: authorities.clone(),
        server_svid: svid.clone(),
        attestors: Arc::new(Attestors::new(plugins.node_attestors.into_values())),
        federation: Some(federating.refresher()),
        log: log.clone(),
        metrics: metrics.clone(),
        clock: clock.clone(),
        admin_ids: config.admin_ids.iter().cloned().collect(),
        rate_limits: RateLimits {
            attestation: config.ratelimit_attestation,
            signing: config.ratelimit_signing,
        },
        audit_log_enabled: config.audit_log_enabled,
        node_info_staleness: config.max_attested_node_info_staleness,
        policy,
        agent_id_as_selector: config.experimental.agent_spiffe_id_as_selector,
    });

    // The names are the server's alone.
    let _ = health.add(check::SERVER, health::OwnSocket::new(&config.socket_path));
    let _ = health.add(check::CATALOG_DATASTORE, Arc::new(health::Store(store)));
    let _ = health.add(check::SERVER_CA, authorities.ca().clone());
    let _ = health.add(check::SERVER_CA_ROTATOR, authorities.clone());

    let background = tasks::Background {
        entries,
        authorities: authorities.clone(),
        svid: svid.clone(),
        clock,
        metrics,
        notifiers: plugins.notifiers,
        publishers: plugins.bundle_publishers,
        prune_nodes: config.prune_attested_nodes.clone(),
    };
    background.announce_bundle().await?;
    let plugins = Arc::new(plugins.reconfiguration);
    if let Some(reload) = operations.reload {
        let federation = federating.federation();
        let plugins = Arc::clone(&plugins);
        let parts = reload::Parts { api: api.clone(), log, federation, plugins };
        let running = Running::new(config.clone(), parts);
        tasks.spawn_until_stopped("reload", running.follow(reload));
    }
    tasks.spawn_until_stopped("reconfigurer", reconfigure_on_signal(plugins));
    background.start(&mut tasks);
    tasks.spawn("federation", federating.run(tasks.stop().clone()));
    let stop = stop.child_token();
    let listeners = listen::serve(config, api, identity, svid, authorities, ready, stop.clone());
    end_together(Box::pin(listeners), &stop, tasks).await
}

/// Waits for the listeners and the tasks. The tasks end with the listeners, which `stop` ends, and these with the first task
/// that panics.
async fn end_together(
    listeners: impl Future<Output = Result<(), ListenError>>,
    stop: &CancellationToken,
    mut tasks: Tasks,
) -> Result<(), RunError> {
    let stop_tasks = tasks.stop().clone();
    let listening = async {
        let served = listeners.await;
        stop_tasks.cancel();
        served
    };
    let working = async {
        let worked = tasks.ended().await;
        stop.cancel();
        worked
    };
    let (served, worked) = tokio::join!(listening, working);
    served?;
    worked
}

/// Listens for OIDC discovery, if there is to be any.
async fn serve_oidc(
    open: Option<OpenOidc>,
    config: &ServerConfig,
    authorities: &Authorities,
    tasks: &mut Tasks,
) -> Result<(), RunError> {
    let Some(open) = open else { return Ok(()) };
    let parts = OidcParts {
        bundle: authorities.bundle_changes().subscribe(),
        policy: TlsPolicy { require_pq_kem: config.experimental.require_pq_kem },
        stop: tasks.stop().clone(),
    };
    let serving = open(parts).await.map_err(RunError::Oidc)?;
    tasks.spawn("oidc", serving);
    Ok(())
}

/// The authorities of those who may scrape metrics: our own, and those of the trust domains that they are named of.
fn scrapers_trust(config: &ServerConfig, authorities: &Authorities) -> Arc<BundleTrust> {
    let tls = config.telemetry.prometheus.as_ref().and_then(|prometheus| prometheus.tls.as_ref());
    let ids = tls.map_or(&[][..], |tls| &tls.authorized_spiffe_ids);
    // Those that are no IDs were refused when the endpoint was made.
    let ids: Vec<SpiffeId> = ids.iter().filter_map(|id| SpiffeId::parse(id).ok()).collect();
    BundleTrust::new(config.trust_domain.clone(), authorities.bundle_changes().clone(), &ids)
}

/// Reads plugin data files again on SIGUSR1 (pkg/common/catalog: ReconfigureTask).
async fn reconfigure_on_signal(plugins: Arc<Reconfiguration>) {
    let Ok(mut signals) = signal(SignalKind::user_defined1()) else { return };
    while let Some(()) = signals.recv().await {
        tracing::info!(subsystem_name = "reconfigurer", "Reconfigure signal received");
        plugins.run().await;
    }
}

async fn load_entries(
    config: &ServerConfig,
    store: &Arc<dyn DataStore>,
    clock: &Arc<dyn Clock>,
    metrics: &Arc<dyn Metrics>,
) -> Result<Arc<LiveEntries>, RunError> {
    tracing::info!(subsystem_name = "endpoints", "Building in-memory entry cache");
    let trust_domain = config.trust_domain.clone();
    let (store, clock, metrics) = (store.clone(), clock.clone(), metrics.clone());
    let entries = LiveEntries::load_measured(trust_domain, store, clock, intervals(config), metrics).await?;
    tracing::info!(subsystem_name = "endpoints", "Completed building in-memory entry cache");
    Ok(entries)
}

fn load_policy(
    files: Option<&PolicyFiles>,
    open: Option<OpenPolicy>,
) -> Result<Option<Arc<dyn Policy>>, RunError> {
    let Some(files) = files else { return Ok(None) };
    let key = "server.experimental.auth_opa_policy_engine";
    let open = open.ok_or(RunError::NoPolicyEngine { key })?;
    let policy = open(files).map_err(RunError::Policy)?;
    tracing::info!(rego_path = files.rego_path, "Calls are authorised by the configured policy");
    Ok(Some(policy))
}

fn create_data_dir(path: &Path) -> Result<(), RunError> {
    // As pkg/common/diskutil: 0755 less the umask, parents too.
    std::fs::create_dir_all(path).map_err(|error| RunError::DataDir {
        path: path.display().to_string(),
        reason: spire_net::errno_text(&error),
    })
}

/// The one `DataStore` block, as the reference picks it (pkg/server/catalog).
fn datastore_config(plugins: &[PluginConfig]) -> Result<PluginConfig, RunError> {
    let refuse = |text: &str| Err(RunError::Store(text.to_owned()));
    let mut stores = plugins.iter().filter(|p| p.kind == "DataStore");
    let Some(store) = stores.next() else { return refuse("expecting a DataStore plugin") };
    if stores.next().is_some() {
        return refuse("only one DataStore plugin is allowed");
    }
    if store.name != "sql" || store.is_external() {
        return refuse(
            "pluggability for the DataStore is deprecated; only the built-in \"sql\" plugin is supported",
        );
    }
    if store.data.is_dynamic() {
        tracing::warn!("DataStore is not reconfigurable even with a dynamic data source");
    }
    Ok(store.clone())
}

/// A database of another trust domain must not be served (pkg/server/server.go: validateTrustDomain looks at one
/// entry, too).
async fn check_trust_domain(store: &dyn DataStore, trust_domain: &TrustDomain) -> Result<(), RunError> {
    let one = Paging { token: String::new(), size: 1 };
    let page = store.entry_list(&EntryFilter::default(), Some(&one), Consistency::Current).await?;
    match page.items.first() {
        Some(entry) if !entry.spiffe_id.is_member_of(trust_domain) => Err(RunError::OtherTrustDomain {
            id: entry.spiffe_id.to_string(),
            trust_domain: trust_domain.to_string(),
        }),
        _ => Ok(()),
    }
}

fn intervals(config: &ServerConfig) -> Intervals {
    let experimental = &config.experimental;
    Intervals {
        catch_up: experimental.cache_reload_interval,
        sweep: experimental.full_cache_reload_interval,
        event_timeout: experimental.event_timeout,
        prune_events_older_than: experimental.prune_events_older_than,
    }
}

fn ca_config(config: &ServerConfig) -> CaConfig {
    CaConfig {
        ca_subject: config.ca_subject.clone(),
        ca_ttl: config.ca_ttl,
        ca_key_type: config.ca_key_type,
        jwt_key_type: config.jwt_key_type,
        wit_key_type: config.wit_key_type,
        x509_svid_ttl: config.x509_svid_ttl,
        agent_ttl: config.agent_ttl,
        jwt_svid_ttl: config.jwt_svid_ttl,
        jwt_issuer: config.jwt_issuer.clone().unwrap_or_default(),
        wit_issuer: config.wit_issuer.clone().unwrap_or_default(),
        jwt_svids_disabled: config.disable_jwt_svids,
        wit_svids_enabled: config.feature_flags.wit_svid,
        ..CaConfig::new(config.trust_domain.clone())
    }
}
