//! `run`: from flags to a server that runs until a signal.

use std::sync::Arc;

use spire_cli::ServerRunFlags;
use spire_compat::config::{ConfigError, PluginConfig, PluginData};
use spire_ports::observe::{HealthChecks, NoMetrics};
use spire_server::api::LogControl;
use spire_server::config::{ServerConfig, ServerFlags};
use spire_server::runtime::{self, Assembly, OpenedStore};
use spire_store::{SqlConfig, SqlStore};
use spire_telemetry::health::{HealthConfig, HealthServer};
use spire_telemetry::{Level, LogConfig, LogHandle, LogLevel, systemd};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The version that tools are told, with our own beside it.
pub(crate) const VERSION: &str = concat!("1.15.3+rs.", env!("CARGO_PKG_VERSION"));

/// The command line's flags as the server's.
pub(crate) fn flags(flags: ServerRunFlags) -> ServerFlags {
    ServerFlags {
        bind_address: flags.bind_address,
        config: flags.config,
        data_dir: flags.data_dir,
        expand_env: flags.expand_env,
        log_file: flags.log_file,
        log_format: flags.log_format,
        log_level: flags.log_level,
        log_source_location: flags.log_source_location,
        server_port: flags.server_port,
        socket_path: flags.socket_path,
        trust_domain: flags.trust_domain,
    }
}

/// Runs a server; returns the exit code.
pub(crate) fn run(flags: &ServerFlags) -> i32 {
    let config = match ServerConfig::load(flags) {
        Ok(config) => config,
        Err(error) => return refuse(&error),
    };
    let log = match spire_telemetry::init(LogConfig::from(&config.log)) {
        Ok(log) => log,
        Err(error) => {
            print(&format!("could not start logger: {error}"));
            return 1;
        }
    };
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
    // What graceful stopping could not end must not keep the process.
    runtime.shutdown_background();
    code
}

/// Prints why a configuration is refused: the reference's line, then what we know more.
fn refuse(error: &ConfigError) -> i32 {
    // The configured log is not known; the default one takes what comes before the error.
    if spire_telemetry::init(LogConfig::default()).is_ok() {
        spire_telemetry::log_refusal(error);
    }
    print(&error.to_string());
    if let Some(detail) = error.detail() {
        print(&detail);
    }
    1
}

async fn serve(config: ServerConfig, log: LogHandle) -> i32 {
    let (ready, stop) = (CancellationToken::new(), CancellationToken::new());
    let health = HealthChecks::new();
    let assembly = Assembly {
        open_store: Box::new(|plugin| Box::pin(open_store(plugin))),
        catalog: spire_plugins_builtins::server(),
        metrics: Arc::new(NoMetrics),
        launch_log_level: log.level.launch().as_str().to_owned(),
        log: Arc::new(Log(log.level.clone())),
        version: VERSION.to_owned(),
        health: health.clone(),
    };
    tokio::spawn(stop_on_signal(stop.clone()));
    tokio::spawn(announce(ready.clone(), stop.clone()));
    if let Some(reopen) = log.reopen {
        tokio::spawn(async move { reopen.reopen_on_signal().await });
    }
    tokio::spawn(serve_health(health_config(&config), health, ready.clone(), stop.clone()));
    let stopped = runtime::run(config, assembly, ready, stop.clone()).await;
    stop.cancel();
    match stopped {
        Ok(()) => {
            tracing::info!("Server stopped gracefully");
            0
        }
        Err(error) => {
            tracing::error!(error = %error, "Fatal run error");
            tracing::error!(error = %error, "Server crashed");
            1
        }
    }
}

/// The settings of a `DataStore "sql"` block.
pub(crate) fn store_config(plugin: &PluginConfig) -> Result<SqlConfig, String> {
    let data = match &plugin.data {
        PluginData::None => None,
        PluginData::Fixed(fragment) => Some(fragment.clone()),
        PluginData::File(path) => {
            let text = plugin.data.load_text().map_err(|e| format!("{path}: {e}"))?;
            Some(spire_compat::hcl::parse_config(text).map_err(|e| format!("{path}: {e}"))?.into())
        }
    };
    SqlConfig::from_plugin_data(data.as_ref()).map_err(|e| e.to_string())
}

async fn open_store(plugin: PluginConfig) -> Result<OpenedStore, String> {
    let config = store_config(&plugin)?;
    // Opening reads and migrates a file.
    let opened = tokio::task::spawn_blocking(move || SqlStore::open(&config)).await;
    match opened {
        Ok(Ok(store)) => {
            let store = Arc::new(store);
            let closing = store.clone();
            Ok(OpenedStore { store, close: Box::pin(async move { closing.close().await }) })
        }
        Ok(Err(error)) => Err(error.to_string()),
        Err(error) => Err(format!("opening the datastore: {error}")),
    }
}

/// The log's level for the API, in logrus' numbers.
struct Log(LogLevel);

impl LogControl for Log {
    fn current(&self) -> u8 {
        number(self.0.current())
    }

    fn launch(&self) -> u8 {
        number(self.0.launch())
    }

    fn set(&self, level: u8) {
        self.0.set(LEVELS.get(usize::from(level)).copied().unwrap_or(Level::Trace));
    }
}

const LEVELS: [Level; 7] =
    [Level::Panic, Level::Fatal, Level::Error, Level::Warn, Level::Info, Level::Debug, Level::Trace];

fn number(level: Level) -> u8 {
    LEVELS.iter().position(|l| *l == level).and_then(|n| u8::try_from(n).ok()).unwrap_or(6)
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

/// Tells systemd when the server answers and when it stops.
async fn announce(ready: CancellationToken, stop: CancellationToken) {
    ready.cancelled().await;
    // Without systemd there is nobody to tell, and a broken notification is no reason to stop.
    let _ = systemd::notify(systemd::READY);
    stop.cancelled().await;
    let _ = systemd::notify(systemd::STOPPING);
}

fn health_config(config: &ServerConfig) -> HealthConfig {
    let health = &config.health_checks;
    HealthConfig {
        listener_enabled: health.listener_enabled,
        bind_address: health.bind_address.clone(),
        bind_port: health.bind_port.clone(),
        live_path: health.live_path.clone(),
        ready_path: health.ready_path.clone(),
    }
}

async fn serve_health(
    config: HealthConfig,
    checks: HealthChecks,
    ready: CancellationToken,
    stop: CancellationToken,
) {
    ready.cancelled().await;
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
