//! The agent of `spire dev`.

use std::sync::Arc;

use anyhow::{Result, bail};
use spire_agent::assembly::{self, Assembly, Operations, RunError};
use spire_agent::config::{AgentConfig, AgentFlags};
use spire_agent::runtime::{Event, Events};
use spire_compat::config::ConfigFile;
use spire_ports::observe::{HealthChecks, NoMetrics};
use spire_ports::plugins::catalog::AgentCatalog;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::folder::Folder;
use super::{TRUST_DOMAIN, api};

/// A running agent.
pub(super) struct Agent {
    /// What happens in it, from its start on.
    pub(super) events: Receiver<Event>,
    task: JoinHandle<Result<(), RunError>>,
}

impl Agent {
    /// Starts it and waits until it listens. An agent whose SVID is not accepted any more joins anew.
    pub(super) async fn start(
        folder: &Folder,
        port: u16,
        server: &api::Server,
        stop: CancellationToken,
    ) -> Result<Self> {
        if folder.has_agent() {
            match Self::start_with(folder, port, None, stop.clone()).await {
                Ok(agent) => return Ok(agent),
                Err(error) => tracing::info!(error = %error, "The known agent cannot go on; joining anew"),
            }
            folder.forget_agent()?;
        }
        let token = server.join_token().await?;
        Self::start_with(folder, port, Some(&token), stop).await
    }

    async fn start_with(
        folder: &Folder,
        port: u16,
        token: Option<&str>,
        stop: CancellationToken,
    ) -> Result<Self> {
        let config = config(folder, port, token)?;
        let mut catalog = AgentCatalog::default();
        spire_plugins_local::register_agent(&mut catalog);
        spire_plugins_host::register_agent(&mut catalog);
        let events = Events::new();
        let (shown, mut watch) = (events.watch(), events.watch());
        let assembly = Assembly {
            catalog,
            external: None,
            metrics: Arc::new(NoMetrics),
            health: HealthChecks::new(),
            events: events.clone(),
            version: env!("CARGO_PKG_VERSION"),
            operations: Operations::default(),
        };
        let mut task = tokio::spawn(assembly::run(config, assembly, stop));
        loop {
            tokio::select! {
                ended = &mut task => bail!("the agent did not start: {}", why(ended)),
                event = watch.recv() => match event {
                    Ok(Event::Listening { .. }) => return Ok(Self { events: shown, task }),
                    Ok(_) | Err(RecvError::Lagged(_)) => {}
                    // Cannot be while we have a sender; the task says why if it ended.
                    Err(RecvError::Closed) => watch = events.watch(),
                },
            }
        }
    }

    /// Waits for its end, handing over what happens until then.
    pub(super) async fn ended_showing(&mut self, show: impl Fn(Result<&Event, u64>)) -> String {
        loop {
            tokio::select! {
                ended = &mut self.task => return why(ended),
                event = self.events.recv() => match event {
                    Ok(event) => show(Ok(&event)),
                    Err(RecvError::Lagged(missed)) => show(Err(missed)),
                    Err(RecvError::Closed) => return why((&mut self.task).await),
                },
            }
        }
    }

    /// Waits for its end.
    pub(super) async fn ended(&mut self) -> String {
        why((&mut self.task).await)
    }
}

fn why(ended: Result<Result<(), RunError>, tokio::task::JoinError>) -> String {
    match ended {
        Ok(Ok(())) => "it stopped".to_owned(),
        Ok(Err(error)) => error.to_string(),
        Err(error) => error.to_string(),
    }
}

fn config(folder: &Folder, port: u16, token: Option<&str>) -> Result<AgentConfig> {
    let data = folder.agent();
    let text = format!(
        r#"agent {{
    data_dir = {data:?}
    server_address = "127.0.0.1"
    server_port = {port}
    socket_path = {socket:?}
    trust_domain = "{TRUST_DOMAIN}"
    trust_bundle_path = {bundle:?}
}}
plugins {{
    KeyManager "disk" {{
        plugin_data {{
            directory = {data:?}
        }}
    }}
    NodeAttestor "join_token" {{}}
    WorkloadAttestor "unix" {{
        plugin_data {{
            discover_workload_path = true
        }}
    }}
}}
"#,
        socket = folder.agent_socket(),
        bundle = folder.bundle(),
    );
    let flags = AgentFlags { join_token: token.map(str::to_owned), ..AgentFlags::default() };
    Ok(AgentConfig::resolve(&ConfigFile::parse("spire dev", &text)?, &flags)?)
}
