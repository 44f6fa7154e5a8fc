//! `run`: from flags to an agent that runs until a signal.

use std::sync::Arc;
use std::time::Duration;

use spire_agent::assembly::{self, Assembly, Operations, Reload};
use spire_agent::config::{AgentConfig, AgentFlags};
use spire_agent::runtime::{Event, Events};
use spire_cli::AgentRunFlags;
use spire_compat::config::ConfigError;
use spire_net::tls::TlsPolicy;
use spire_net::uds::UnixEndpoint;
use spire_ports::observe::HealthChecks;
use spire_telemetry::daemon::{self, ReloadRequests, print};
use spire_telemetry::metrics::{OwnTls, Telemetry, TelemetryError, TelemetryOptions};
use spire_telemetry::{LogHandle, LogSettings, heap, profiling};
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

/// The version that tools are told, with our own beside it.
pub(crate) const VERSION: &str = concat!("1.15.3+rs.", env!("CARGO_PKG_VERSION"));

/// The version that servers are told.
const COMPATIBLE_VERSION: &str = "1.15.3";

/// Processors that one agent uses at most: the others of its node are there for workloads, and each thread keeps memory.
const WORKERS_MAX: usize = 4;

/// How long health checks wait for the APIs at most (pkg/agent: startHealthChecksTimeout): an attestation may take long,
/// and whoever asks whether the agent lives must not be refused meanwhile.
const HEALTH_WAIT: Duration = Duration::from_secs(8);

/// The command line's flags as the agent's.
pub(crate) fn flags(flags: AgentRunFlags) -> AgentFlags {
    AgentFlags {
        allow_unauthenticated_verifiers: flags.allow_unauthenticated_verifiers,
        config: flags.config,
        data_dir: flags.data_dir,
        disable_sds_api: flags.disable_sds_api,
        disable_workload_api: flags.disable_workload_api,
        expand_env: flags.expand_env,
        insecure_bootstrap: flags.insecure_bootstrap,
        join_token: flags.join_token,
        join_token_file: flags.join_token_file,
        log_file: flags.log_file,
        log_format: flags.log_format,
        log_level: flags.log_level,
        log_source_location: flags.log_source_location,
        rebootstrap_delay: flags.rebootstrap_delay,
        rebootstrap_mode: flags.rebootstrap_mode,
        server_address: flags.server_address,
        server_port: flags.server_port,
        socket_path: flags.socket_path,
        trust_bundle_path: flags.trust_bundle,
        trust_bundle_format: flags.trust_bundle_format,
        trust_bundle_url: flags.trust_bundle_url,
        trust_domain: flags.trust_domain,
    }
}

/// Runs an agent; returns the exit code.
pub(crate) fn run(flags: &AgentFlags) -> i32 {
    let config = match AgentConfig::load(flags) {
        Ok(config) => config,
        Err(error) => {
            log_refusal(&error);
            print(&error.to_string());
            if let Some(detail) = error.detail() {
                print(&detail);
            }
            return 1;
        }
    };
    let log = match spire_telemetry::init(config.log.clone()) {
        Ok(log) => log,
        Err(error) => {
            print(&format!("could not start logger: {error}"));
            return 1;
        }
    };
    // The socket's folder is for everybody, so it is made before the umask takes that away.
    if let Some(path) = &config.socket_path
        && let Err(error) = make_socket_folder(path)
    {
        print(&error);
        return 1;
    }
    if let Some(changed) = spire_net::umask::tighten() {
        tracing::warn!("{changed}");
    }
    spire_telemetry::log_notices(&config.notices);
    spire_net::uds::raise_open_file_limit();
    let workers = std::thread::available_parallelism().map_or(1, usize::from).min(WORKERS_MAX);
    let runtime =
        match tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                print(&format!("could not start the runtime: {error}"));
                return 1;
            }
        };
    let code = runtime.block_on(serve(config, flags.clone(), log));
    runtime.shutdown_background();
    code
}

/// Logs what a refused configuration asks to be logged before its error is shown.
pub(crate) fn log_refusal(error: &ConfigError) {
    // The configured log is not known; the default one takes it.
    if spire_telemetry::init(LogSettings::default()).is_ok() {
        spire_telemetry::log_refusal(error);
    }
}

fn make_socket_folder(path: &std::path::Path) -> Result<(), String> {
    if let Some(folder) = path.parent()
        && !folder.exists()
    {
        tracing::info!(dir = %folder.display(), "Creating spire agent UDS directory");
    }
    UnixEndpoint::workload(path).create_directory().map_err(|error| error.to_string())
}

async fn serve(config: AgentConfig, flags: AgentFlags, log: LogHandle) -> i32 {
    let stop = CancellationToken::new();
    let health = HealthChecks::new();
    let events = Events::new();
    let mut operations = Operations { log: Some(log.level.clone()), ..Operations::default() };
    let telemetry = match telemetry(&config, &operations) {
        Ok(telemetry) => telemetry,
        Err(error) => return crashed(&error),
    };
    let watched = config.reload_on_change.then(|| config.config_path.clone().into());
    match ReloadRequests::new(watched) {
        Ok(requests) => {
            let load = Arc::new(move || AgentConfig::load_again(&flags));
            operations.reload =
                Some(Reload { requests, load, telemetry: telemetry.clone(), log: log.level.clone() });
        }
        Err(error) => tracing::warn!(error = %error, "SIGHUP will not reload the configuration"),
    }
    tokio::spawn(daemon::stop_on_signal(stop.clone()));
    let listening = wait_for(events.watch(), |event| matches!(event, Event::Listening { .. }));
    tokio::spawn(daemon::announce(listening, stop.clone()));
    if let Some(reopen) = log.reopen {
        tokio::spawn(async move { reopen.reopen_on_signal().await });
    }
    tokio::spawn(telemetry.clone().run(stop.clone()));
    tokio::spawn(profiling::run(config.profiling.clone(), "agent", heap::report, stop.clone()));
    let health_config = (&config.health_checks).into();
    let starting = wait_for(events.watch(), |event| matches!(event, Event::Starting));
    let started = wait_for(events.watch(), |event| matches!(event, Event::Started));
    let started = async {
        starting.await;
        // Too long is long enough.
        let _ = tokio::time::timeout(HEALTH_WAIT, started).await;
    };
    tokio::spawn(daemon::serve_health(health_config, health.clone(), started, stop.clone()));
    let assembly = Assembly {
        catalog: spire_plugins_builtins::agent(),
        external: Some(spire_plugin_host::external_plugins()),
        metrics: telemetry,
        health,
        events,
        version: COMPATIBLE_VERSION,
        operations,
    };
    let stopped = assembly::run(config, assembly, stop.clone()).await;
    stop.cancel();
    match stopped {
        Ok(()) => {
            tracing::info!("Agent stopped gracefully");
            0
        }
        Err(error) => crashed(&error),
    }
}

fn crashed(error: &dyn std::fmt::Display) -> i32 {
    tracing::error!(error = %error, "Agent crashed");
    1
}

/// Waits for an event. What was lost may have been it, and to come early does no harm here.
async fn wait_for(mut events: broadcast::Receiver<Event>, is_it: impl Fn(&Event) -> bool) {
    loop {
        match events.recv().await {
            Ok(event) if is_it(&event) => return,
            Err(broadcast::error::RecvError::Lagged(_)) => return,
            Err(broadcast::error::RecvError::Closed) => return std::future::pending().await,
            Ok(_) => {}
        }
    }
}

fn telemetry(config: &AgentConfig, operations: &Operations) -> Result<Arc<Telemetry>, TelemetryError> {
    Telemetry::new(TelemetryOptions {
        config: config.telemetry.clone(),
        service: "spire_agent",
        trust_domain: config.trust_domain.name().to_owned(),
        own_tls: OwnTls {
            svid: operations.identity.clone(),
            trust: operations.trust.clone(),
            policy: TlsPolicy { require_pq_kem: config.require_pq_kem },
        },
        heap: heap::sizes,
    })
}
