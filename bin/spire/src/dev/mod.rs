//! `spire dev`: a trust domain on one machine, in one process, for trying and for tests.
//!
//! It is the real server and the real agent, on a database and keys in a folder that is kept between runs; only
//! the port is chosen anew. The calling user's processes get `spiffe://dev.test/user/<name>`.

mod agent;
mod api;
mod child;
mod folder;
mod options;
mod server;
mod show;

use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio_util::sync::CancellationToken;

use crate::note;
use folder::Folder;
use options::{Asked, Options};

/// The trust domain of every `spire dev`.
const TRUST_DOMAIN: &str = "dev.test";

/// How long starting may take in all; a second is usual.
const START_MAX: Duration = Duration::from_secs(60);

/// Runs the command; gives the exit code.
pub(crate) fn main(arguments: &[String]) -> i32 {
    let options = match Options::parse(arguments) {
        Ok(Asked::Run(options)) => options,
        Ok(Asked::Help(usage)) => {
            note(usage.trim_end());
            return 0;
        }
        Err(message) => {
            note(&message);
            return 1;
        }
    };
    match start(options) {
        Ok(code) => code,
        Err(error) => {
            note(&format!("spire dev: {error:#}"));
            1
        }
    }
}

fn start(options: Options) -> Result<i32> {
    let folder = Folder::open(&options)?;
    let log = spire_telemetry::LogSettings {
        level: options.log_level,
        file: Some(folder.log()),
        ..Default::default()
    };
    spire_telemetry::init(log).map_err(|error| anyhow::anyhow!("{error}"))?;
    spire_net::umask::tighten();
    spire_net::uds::raise_open_file_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let code = runtime.block_on(run(options, &folder));
    runtime.shutdown_timeout(Duration::from_secs(1));
    code.with_context(|| format!("details are in {}", folder.log().display()))
}

async fn run(options: Options, folder: &Folder) -> Result<i32> {
    let stop = CancellationToken::new();
    let signals = child::Signals::listen()?;
    let started = tokio::time::timeout(START_MAX, start_both(&options, folder, &stop));
    let mut running = tokio::select! {
        started = started => started.context("starting took too long")??,
        () = signals.stop() => return Ok(child::INTERRUPTED),
    };
    let socket = folder.agent_socket();
    let first = api::fetch_x509(&socket).await.context("fetching the first SVID")?;
    note(&show::banner(&socket, &folder.server_socket(), &first));

    let code = if options.command.is_empty() {
        let Running { server, agent } = &mut running;
        tokio::select! {
            () = signals.stop() => 0,
            why = server.ended() => bail!("the server ended: {why}"),
            why = agent.ended_showing(show::line) => bail!("the agent ended: {why}"),
        }
    } else {
        let mut command = child::spawn(&options.command, &socket)?;
        tokio::select! {
            code = child::wait(&mut command, &signals) => code?,
            ended = running.ended() => bail!("{ended}"),
        }
    };
    stop.cancel();
    running.stopped().await;
    Ok(code)
}

/// The two daemons in this process.
struct Running {
    server: server::Server,
    agent: agent::Agent,
}

impl Running {
    /// Waits until one of them ends by itself, which neither should.
    async fn ended(&mut self) -> String {
        tokio::select! {
            why = self.server.ended() => format!("the server ended: {why}"),
            why = self.agent.ended() => format!("the agent ended: {why}"),
        }
    }

    async fn stopped(mut self) {
        // Both were told to stop; what they answer now changes nothing.
        let _ = self.agent.ended().await;
        let _ = self.server.ended().await;
    }
}

async fn start_both(options: &Options, folder: &Folder, stop: &CancellationToken) -> Result<Running> {
    let server = server::Server::start(folder, stop.clone()).await?;
    let api = api::Server::connect(&folder.server_socket());
    folder.write_bundle(&api.bundle().await?)?;
    api.register(&options.workloads()?).await?;
    let agent = agent::Agent::start(folder, server.port, &api, stop.clone()).await?;
    let running = Running { server, agent };
    api::wait_for_identity(&folder.agent_socket()).await?;
    Ok(running)
}
