//! `oidc-discovery-provider`: the documents, the log and the signals, put together.

use std::io::Write;
use std::process::ExitCode;

use spire_compat::config::ConfigError;
use spire_oidc::command::Command;
use spire_oidc::config::OidcConfig;
use spire_oidc::provider;
use spire_telemetry::LogHandle;
use spire_telemetry::daemon::{self, print};
use tokio_util::sync::CancellationToken;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// The version that tools are told, with our own beside it.
const VERSION: &str = concat!("1.15.3+rs.", env!("CARGO_PKG_VERSION"));

fn main() -> ExitCode {
    let mut arguments = std::env::args();
    let program = arguments.next().unwrap_or_default();
    let arguments: Vec<String> = arguments.collect();
    match Command::parse(&program, &arguments) {
        Command::Version => {
            // Who closed our output does not want it.
            let _ = writeln!(std::io::stdout(), "{VERSION}");
            ExitCode::SUCCESS
        }
        Command::Refused { text, code } => {
            let _ = write!(std::io::stderr(), "{text}");
            ExitCode::from(code)
        }
        Command::Run { config, expand_env } => run(&config, expand_env),
    }
}

fn run(path: &str, expand_env: bool) -> ExitCode {
    let config = match OidcConfig::load(path, expand_env) {
        Ok(config) => config,
        Err(error) => return refuse(&error),
    };
    let log = match spire_telemetry::init(config.log.clone()) {
        Ok(log) => log,
        Err(error) => {
            print(&error.to_string());
            return ExitCode::FAILURE;
        }
    };
    spire_telemetry::log_notices(&config.notices);
    spire_net::uds::raise_open_file_limit();
    // One thread answers more than 50,000 requests a second; a second one would be woken for each and take its part of them.
    let workers = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = match workers {
        Ok(runtime) => runtime,
        Err(error) => {
            print(&format!("could not start the runtime: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(serve(config, log));
    runtime.shutdown_background();
    code
}

async fn serve(config: OidcConfig, log: LogHandle) -> ExitCode {
    let (ready, stop) = (CancellationToken::new(), CancellationToken::new());
    tokio::spawn(daemon::stop_on_signal(stop.clone()));
    tokio::spawn(daemon::announce(ready.clone().cancelled_owned(), stop.clone()));
    if let Some(reopen) = log.reopen {
        tokio::spawn(async move { reopen.reopen_on_signal().await });
    }
    match provider::run(config, ready, stop).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            print(&error.to_string());
            ExitCode::FAILURE
        }
    }
}

/// Prints why a configuration is refused: the reference's line, then what we know more.
fn refuse(error: &ConfigError) -> ExitCode {
    print(&error.to_string());
    if let Some(detail) = error.detail() {
        print(&detail);
    }
    ExitCode::FAILURE
}
