//! `run`: from flags to an agent that runs until a signal.

use std::sync::Arc;

use spire_agent::assembly::{self, Assembly};
use spire_agent::config::{AgentConfig, AgentFlags};
use spire_agent::runtime::{Event, Events};
use spire_cli::AgentRunFlags;
use spire_compat::config::ConfigError;
use spire_net::uds::UnixEndpoint;
use spire_ports::observe::{HealthChecks, NoMetrics};
use spire_telemetry::health::{HealthConfig, HealthServer};
use spire_telemetry::{LogConfig, LogHandle, systemd};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

/// The version that tools are told, with our own beside it.
pub(crate) const VERSION: &str = concat!("1.15.3+rs.", env!("CARGO_PKG_VERSION"));

/// The version that servers are told.
const COMPATIBLE_VERSION: &str = "1.15.3";

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
    let log = match spire_telemetry::init(LogConfig::from(&config.log)) {
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
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            print(&format!("could not start the runtime: {error}"));
            return 1;
        }
    };
    let code = runtime.block_on(serve(config, log));
    runtime.shutdown_background();
    code
}

/// Logs what a refused configuration asks to be logged before its error is shown.
pub(crate) fn log_refusal(error: &ConfigError) {
    // The configured log is not known; the default one takes it.
    if spire_telemetry::init(LogConfig::default()).is_ok() {
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

async fn serve(config: AgentConfig, log: LogHandle) -> i32 {
    let stop = CancellationToken::new();
    let health = HealthChecks::new();
    let events = Events::new();
    tokio::spawn(stop_on_signal(stop.clone()));
    tokio::spawn(announce(events.clone(), stop.clone()));
    if let Some(reopen) = log.reopen {
        tokio::spawn(async move { reopen.reopen_on_signal().await });
    }
    tokio::spawn(serve_health(health_config(&config), health.clone(), events.watch(), stop.clone()));
    let assembly = Assembly {
        catalog: spire_plugins_builtins::agent(),
        metrics: Arc::new(NoMetrics),
        health,
        events,
        version: COMPATIBLE_VERSION,
    };
    let stopped = assembly::run(config, assembly, stop.clone()).await;
    stop.cancel();
    match stopped {
        Ok(()) => {
            tracing::info!("Agent stopped gracefully");
            0
        }
        Err(error) => {
            tracing::error!(error = %error, "Agent crashed");
            1
        }
    }
}

async fn stop_on_signal(stop: CancellationToken) {
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    stop.cancel();
}

/// Tells systemd when the Workload API listens and when the agent stops.
async fn announce(events: Events, stop: CancellationToken) {
    let mut watch = events.watch();
    loop {
        match watch.recv().await {
            // Only the listening counts; without systemd there is nobody to tell.
            Ok(Event::Listening { .. }) => {
                let _ = systemd::notify(systemd::READY);
                break;
            }
            Err(broadcast::error::RecvError::Closed) => return,
            Ok(_) | Err(_) => {}
        }
    }
    drop(watch);
    stop.cancelled().await;
    let _ = systemd::notify(systemd::STOPPING);
}

fn health_config(config: &AgentConfig) -> HealthConfig {
    let health = &config.health_checks;
    HealthConfig {
        listener_enabled: health.listener_enabled,
        bind_address: health.bind_address.clone(),
        bind_port: health.bind_port.clone(),
        live_path: health.live_path.clone(),
        ready_path: health.ready_path.clone(),
    }
}

/// Serves health checks once the agent has started: before, there is nothing to check.
async fn serve_health(
    config: HealthConfig,
    checks: HealthChecks,
    mut watch: broadcast::Receiver<Event>,
    stop: CancellationToken,
) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            event = watch.recv() => match event {
                // What was lost may have been it, and checks that come early do no harm.
                Ok(Event::Started) | Err(broadcast::error::RecvError::Lagged(_)) => break,
                Err(broadcast::error::RecvError::Closed) => return,
                Ok(_) => {}
            },
        }
    }
    drop(watch);
    let server = HealthServer::new(config, checks);
    tokio::select! {
        () = stop.cancelled() => tracing::debug!(subsystem_name = "health", "Finishing health checker"),
        served = server.run() => if let Err(error) = served {
            tracing::error!(subsystem_name = "health", error = %error, "Error serving health checks");
        },
    }
}

#[expect(clippy::print_stderr, reason = "there is no log before the configuration is read")]
fn print(line: &str) {
    eprintln!("{line}");
}
