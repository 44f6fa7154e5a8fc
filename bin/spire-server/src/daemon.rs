//! `run`: from flags to a server that runs until a signal.

use std::path::Path;
use std::sync::Arc;

use spire_cli::ServerRunFlags;
use spire_compat::config::{ConfigError, PluginConfig, PluginData};
use spire_net::tls::TlsPolicy;
use spire_oidc::config::Serving;
use spire_policy::RegoPolicy;
use spire_ports::observe::HealthChecks;
use spire_ports::policy::Policy;
use spire_server::config::{PolicyFiles, ServerConfig, ServerFlags};
use spire_server::runtime::{self, Assembly, OidcParts, OpenOidc, OpenedStore, Operations, Reload};
use spire_store::{SqlConfig, SqlStore};
use spire_telemetry::daemon::{self, ReloadRequests, print};
use spire_telemetry::metrics::{OwnTls, Telemetry, TelemetryError, TelemetryOptions};
use spire_telemetry::{LogHandle, LogSettings, heap, profiling};
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
    let (config, oidc) = match load(flags) {
        Ok(loaded) => loaded,
        Err(error) => return refuse(&error),
    };
    let log = match spire_telemetry::init(config.log.clone()) {
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
    let code = runtime.block_on(serve(config, flags.clone(), log, oidc));
    // What graceful stopping could not end must not keep the process.
    runtime.shutdown_background();
    code
}

/// Reads the configuration, with the block that another crate reads.
pub(crate) fn load(flags: &ServerFlags) -> Result<(ServerConfig, Option<Serving>), ConfigError> {
    let mut config = ServerConfig::load(flags)?;
    let Some(block) = &config.experimental.oidc else { return Ok((config, None)) };
    let (serving, notices) = Serving::of_block(&config.config_path, "server.experimental.oidc", block)?;
    config.notices.extend(notices);
    Ok((config, Some(serving)))
}

fn open_oidc(serving: Serving) -> OpenOidc {
    Box::new(|parts: OidcParts| {
        Box::pin(async move {
            match spire_oidc::embedded::serve(serving, parts.bundle, parts.policy, parts.stop).await {
                Ok(answers) => Ok(Box::pin(answers) as _),
                Err(error) => Err(error.to_string()),
            }
        })
    })
}

/// Prints why a configuration is refused: the reference's line, then what we know more.
fn refuse(error: &ConfigError) -> i32 {
    // The configured log is not known; the default one takes what comes before the error.
    if spire_telemetry::init(LogSettings::default()).is_ok() {
        spire_telemetry::log_refusal(error);
    }
    print(&error.to_string());
    if let Some(detail) = error.detail() {
        print(&detail);
    }
    1
}

async fn serve(config: ServerConfig, flags: ServerFlags, log: LogHandle, oidc: Option<Serving>) -> i32 {
    let (ready, stop) = (CancellationToken::new(), CancellationToken::new());
    let mut operations = Operations::default();
    let telemetry = match telemetry(&config, &operations) {
        Ok(telemetry) => telemetry,
        Err(error) => return crashed(&error),
    };
    let watched = config.experimental.reload_on_change.then(|| config.config_path.clone().into());
    match ReloadRequests::new(watched) {
        Ok(requests) => {
            let load = Arc::new(move || load(&flags).map(|(config, _)| config));
            operations.reload = Some(Reload { requests, load, telemetry: telemetry.clone() });
        }
        Err(error) => tracing::warn!(error = %error, "SIGHUP will not reload the configuration"),
    }
    let health = HealthChecks::new();
    let assembly = Assembly {
        open_oidc: oidc.map(open_oidc),
        open_policy: Some(Box::new(open_policy)),
        open_store: Box::new(|plugin| Box::pin(open_store(plugin))),
        catalog: spire_plugins_builtins::server(),
        external: Some(spire_plugin_host::external_plugins()),
        metrics: telemetry.clone(),
        log: Arc::new(log.level.clone()),
        version: VERSION.to_owned(),
        health: health.clone(),
        operations,
    };
    tokio::spawn(daemon::stop_on_signal(stop.clone()));
    tokio::spawn(daemon::announce(ready.clone().cancelled_owned(), stop.clone()));
    if let Some(reopen) = log.reopen {
        tokio::spawn(async move { reopen.reopen_on_signal().await });
    }
    tokio::spawn(telemetry.run(stop.clone()));
    tokio::spawn(profiling::run(config.profiling.clone(), "server", heap::report, stop.clone()));
    let health_config = (&config.health_checks).into();
    let started = ready.clone().cancelled_owned();
    tokio::spawn(daemon::serve_health(health_config, health, started, stop.clone()));
    let unstarted = daemon::stopped_while_starting(ready.clone(), stop.clone());
    let running = tokio::spawn(runtime::run(config, assembly, ready, stop.clone()));
    let stopped = tokio::select! {
        stopped = running => stopped,
        () = unstarted => Ok(Ok(())),
    };
    stop.cancel();
    match stopped {
        Ok(Ok(())) => {
            tracing::info!("Server stopped gracefully");
            0
        }
        Ok(Err(error)) => crashed(&error),
        Err(error) => crashed(&error),
    }
}

fn crashed(error: &dyn std::fmt::Display) -> i32 {
    tracing::error!(error = %error, "Fatal run error");
    tracing::error!(error = %error, "Server crashed");
    1
}

fn telemetry(config: &ServerConfig, operations: &Operations) -> Result<Arc<Telemetry>, TelemetryError> {
    Telemetry::new(TelemetryOptions {
        config: config.telemetry.clone(),
        service: "spire_server",
        trust_domain: config.trust_domain.name().to_owned(),
        own_tls: OwnTls {
            svid: operations.identity.clone(),
            trust: operations.trust.clone(),
            policy: TlsPolicy { require_pq_kem: config.experimental.require_pq_kem },
        },
        heap: heap::sizes,
    })
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

fn open_policy(files: &PolicyFiles) -> Result<Arc<dyn Policy>, String> {
    let data = Some(Path::new(&files.policy_data_path)).filter(|path| !path.as_os_str().is_empty());
    match RegoPolicy::load(Path::new(&files.rego_path), data) {
        Ok(policy) => Ok(Arc::new(policy)),
        Err(error) => Err(error.to_string()),
    }
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
