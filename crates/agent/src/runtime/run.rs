//! An agent from start to stop (the reference's `pkg/agent/agent.go`).

use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use spire_core::svids::{Limits, Rotation, X509Cache};
use spire_ports::observe::{HealthChecks, Logged, Metrics, check};
use spire_ports::plugins::{AgentNodeAttestor, KeyManager, SvidStore, WorkloadAttestor};
use tokio_util::sync::CancellationToken;

use super::attest::{Attested, NodeAttestation};
use super::backoff::{Backoff, random};
use super::bootstrap::{FirstTrust, TrustSources};
use super::clock::Clock;
use super::error::AgentError;
use super::events::{Event, Events};
use super::identities::Identities;
use super::keys::SvidKeys;
use super::live::Live;
use super::options::{DEFAULT_SVID_CACHE_MAX_SIZE, Options, Rebootstrap};
use super::shared::{Core, Parts};
use super::status::Verdict;
use super::storage::Storage;
use super::workload::WorkloadAttestation;
use crate::api::{AdminSocket, AgentHealth, BrokerSockets, WorkloadSocket};

/// First wait between attempts to attest, and when to give up (pkg/agent: bootstrapBackoffInterval,
/// bootstrapBackoffMaxElapsedTime, rebootstrapBackoffMaxElapsedTime).
const RETRY: Duration = Duration::from_secs(5);
const GIVE_UP: Duration = Duration::from_secs(60);
const GIVE_UP_REBOOTSTRAP: Duration = Duration::from_secs(24 * 60 * 60);

/// What an agent works with: its plugins and where it reports.
pub struct Deps {
    /// Keeps the agent's keys.
    pub key_manager: Arc<dyn KeyManager>,
    /// Makes the proof of which node this is; the one for join tokens when there is a token.
    pub node_attestor: Arc<dyn AgentNodeAttestor>,
    /// Say what is known of processes; at least one.
    pub workload_attestors: Vec<Arc<dyn WorkloadAttestor>>,
    /// Where SVIDs of entries with `store_svid` go.
    pub svid_stores: Vec<Arc<dyn SvidStore>>,
    /// Where metrics go.
    pub metrics: Arc<dyn Metrics>,
    /// Where events go.
    pub events: Events,
    /// Where the agent's health check is registered.
    pub health: HealthChecks,
    /// The version that the server is told.
    pub version: &'static str,
    /// The time; [`Clock::System`] outside tests.
    pub clock: Clock,
    /// What is shared with those that operate the agent.
    pub live: Live,
}

/// Runs an agent until it is told to stop, which is no failure, or cannot go on.
///
/// # Errors
/// [`AgentError`] says why it cannot go on; its text is for the log line `Agent crashed`.
pub async fn run(options: Options, deps: Deps, shutdown: CancellationToken) -> Result<(), AgentError> {
    let stopped = shutdown.clone();
    // Whatever starting waits for, a signal ends it.
    let core = tokio::select! {
        biased;
        () = stopped.cancelled() => return Ok(()),
        // Boxed: starting takes more of the stack than serving.
        started = Box::pin(start(Arc::new(options), &deps)) => started?,
    };
    let attestation =
        Arc::new(WorkloadAttestation::new(deps.workload_attestors.clone(), Arc::clone(&deps.metrics)));
    // Before the workloads' socket, so that who waits for that one finds the others too.
    let admin = AdminSocket::bind(&core.0, &attestation)?;
    let broker = BrokerSockets::bind(&core.0, &attestation).await?;
    let socket = WorkloadSocket::new(Arc::clone(&core.0), Arc::clone(&attestation));
    let incoming = socket.bind()?;
    let (core, health) = core;
    health.started(incoming.is_some().then_some(attestation));
    core.emit(|| Event::Started);
    // The APIs stop with the tasks, whichever ends first.
    let stopping = shutdown.child_token();
    let apis = async {
        match incoming {
            Some(incoming) => socket.serve(incoming, stopping.clone()).await,
            None => stopping.cancelled().await,
        }
    };
    let tasks = async {
        let ended = tokio::select! {
            biased;
            () = stopping.cancelled() => {
                tracing::debug!(subsystem_name = "manager", "Stopping SVID rotator");
                tracing::info!(subsystem_name = "manager", "Cache manager stopped");
                Ok(())
            }
            ended = Box::pin(core.run()) => ended,
        };
        stopping.cancel();
        ended
    };
    let admin = async {
        if let Some(admin) = admin {
            stop_after(Box::pin(admin.serve(stopping.clone())), &stopping).await;
        }
    };
    let broker = async {
        match broker {
            Some(broker) => stop_after(broker.serve(stopping.clone()), &stopping).await,
            None => Ok(()),
        }
    };
    let ((), ended, (), broker) = tokio::join!(stop_after(apis, &stopping), tasks, admin, broker);
    ended.and(broker)
}

/// Has everything else stop when this ends.
async fn stop_after<T>(serving: impl Future<Output = T>, stopping: &CancellationToken) -> T {
    let served = serving.await;
    stopping.cancel();
    served
}

/// Everything before the APIs listen.
pub(crate) async fn start(
    options: Arc<Options>,
    deps: &Deps,
) -> Result<(Arc<Core>, Arc<AgentHealth>), AgentError> {
    create_data_dir(&options.data_dir)?;
    let storage = Arc::new(Storage::open(&options.data_dir).map_err(AgentError::OpenStorage)?);
    let health = Arc::new(AgentHealth::default());
    // The name is the agent's alone.
    let _ = deps.health.add(check::AGENT, health.clone());
    deps.events.emit(|| Event::Starting);

    let mut sources =
        TrustSources::new(Arc::clone(&options), Arc::clone(&storage), Arc::clone(&deps.metrics), deps.clock);
    let keys = SvidKeys::new(Arc::clone(&deps.key_manager));
    let mut options = Options::clone(&options);
    let attested = attest(&mut options, deps, &storage, &keys, &mut sources).await?;
    let (spiffe_id, fresh) = (attested.svid.id().clone(), attested.fresh);
    deps.events.emit(|| Event::Attested { spiffe_id, fresh });
    if !attested.svid.reattestable && keys.plugin_name() == "memory" {
        tracing::warn!(
            "Node attestation is not reattestable and the 'memory' key manager is in use; if the agent process is restarted, it will be unable to obtain a new SVID and will need to be manually evicted to be able to re-attest."
        );
    }
    let max_svids = match options.x509_svid_cache_max_size {
        0 => DEFAULT_SVID_CACHE_MAX_SIZE,
        size => size,
    };
    let cache = X509Cache::new(
        attested.bundle.clone(),
        Rotation::new(options.availability_target),
        Limits { max_svids },
    );
    let identities = Identities::new(cache, deps.clock, Arc::clone(&deps.metrics), deps.events.clone());
    let core = Core::new(Parts {
        options: Arc::new(options),
        clock: deps.clock,
        storage,
        keys,
        attestor: Arc::clone(&deps.node_attestor),
        metrics: Arc::clone(&deps.metrics),
        events: deps.events.clone(),
        sources,
        svid: attested.svid,
        fresh,
        bundle: attested.bundle,
        identities,
        live: deps.live.clone(),
        svid_stores: deps.svid_stores.clone(),
    })?;
    initialize(&core, deps.version).await?;
    Ok((core, health))
}

/// What comes before everything else, the plugins included: says that the agent starts and makes its folder.
///
/// # Errors
/// [`AgentError::DataDir`] when it cannot be made.
pub(crate) fn prepare(data_dir: &Path, version: &str) -> Result<(), AgentError> {
    tracing::info!(data_dir = %data_dir.display(), version, "Starting agent");
    create_data_dir(data_dir)
}

fn create_data_dir(path: &Path) -> Result<(), AgentError> {
    std::fs::DirBuilder::new().recursive(true).mode(0o755).create(path).map_err(|error| AgentError::DataDir {
        path: path.display().to_string(),
        reason: spire_net::errno_text(&error),
    })
}

/// Attests until that succeeds, is refused, or has taken too long.
async fn attest(
    options: &mut Options,
    deps: &Deps,
    storage: &Storage,
    keys: &SvidKeys,
    sources: &mut TrustSources,
) -> Result<Attested, AgentError> {
    check_rebootstrap(options, storage)?;
    let mut backoff = Backoff::new(RETRY).max_elapsed(give_up(options));
    loop {
        let trust = match storage.bundle() {
            Some(bundle) => Ok(FirstTrust::Authorities(bundle)),
            None => sources.fetch().await.map_err(AgentError::Bootstrap),
        };
        let attested = match trust {
            Ok(trust) => {
                let attestation = NodeAttestation {
                    options,
                    storage,
                    keys,
                    attestor: &*deps.node_attestor,
                    metrics: &*deps.metrics,
                    clock: deps.clock,
                };
                attestation.run(trust).await.map_err(AgentError::Attest)
            }
            Err(error) => Err(error),
        };
        let error = match attested {
            Ok(attested) => {
                sources.succeeded()?;
                check_rebootstrap(options, storage)?;
                return Ok(attested);
            }
            Err(error) => error,
        };
        if error.is_unknown_authority() {
            distrust(options, storage, sources)?;
        }
        if matches!(&error, AgentError::Attest(e) if e.is_permission_denied()) {
            return Err(error);
        }
        let Some(wait) = backoff.next(random()) else { return Err(error) };
        let interval = Logged::Duration(wait);
        tracing::warn!(error = %error, retry_interval = interval.value(), "Failed to retrieve attestation result");
        tokio::time::sleep(wait).await;
    }
}

/// The server's certificate and the bundle do not agree, before there is an SVID.
fn distrust(options: &Options, storage: &Storage, sources: &mut TrustSources) -> Result<(), AgentError> {
    if sources.is_bootstrap() {
        tracing::info!("Trust Bundle and Server don't agree, bootstrapping again");
        return Ok(());
    }
    let Some(delay) = options.rebootstrap.delay() else { return Ok(()) };
    let elapsed = sources.disagreeing_for()?;
    if elapsed < delay {
        let left = Logged::Duration(delay - elapsed);
        tracing::info!(time_left = left.value(), "Trust Bundle and Server don't agree, ignoring for now");
    } else {
        tracing::warn!("Trust Bundle and Server don't agree, rebootstrapping");
        storage.store_bundle(&[])?;
    }
    Ok(())
}

/// Finding trust anew needs an SVID that can be had again.
fn check_rebootstrap(options: &mut Options, storage: &Storage) -> Result<(), AgentError> {
    if storage.svid().is_none_or(|svid| svid.reattestable) {
        return Ok(());
    }
    match options.rebootstrap {
        Rebootstrap::Never => Ok(()),
        Rebootstrap::Always(_) => Err(AgentError::RebootstrapNotAllowed),
        Rebootstrap::Auto(_) => {
            tracing::warn!("{}. Disabling", AgentError::RebootstrapNotAllowed);
            options.rebootstrap = Rebootstrap::Never;
            Ok(())
        }
    }
}

fn give_up(options: &Options) -> Duration {
    match options.rebootstrap {
        Rebootstrap::Never => GIVE_UP,
        Rebootstrap::Auto(_) | Rebootstrap::Always(_) => GIVE_UP_REBOOTSTRAP,
    }
}

/// Syncs for the first time, until that succeeds, is of no use, or has taken too long.
async fn initialize(core: &Core, version: &str) -> Result<(), AgentError> {
    let mut backoff = Backoff::new(RETRY).max_elapsed(give_up(core.options()));
    loop {
        let error = match core.initialize(version).await {
            Ok(()) => {
                core.sources.lock().succeeded_if_running()?;
                return Ok(());
            }
            Err(error) => error,
        };
        if error.verdict() != Verdict::Retry {
            return Err(error);
        }
        let error = if error.is_unknown_authority() && core.options().rebootstrap != Rebootstrap::Never {
            let cause = error.to_string();
            core.disagree(error)?;
            AgentError::Serve(cause)
        } else {
            error
        };
        let Some(wait) = backoff.next(random()) else { return Err(error) };
        let interval = Logged::Duration(wait);
        tracing::warn!(error = %error, retry_interval = interval.value(), "Failed to initialize manager");
        tokio::time::sleep(wait).await;
    }
}
