//! The server of `spire dev`.

use std::net::TcpListener;
use std::sync::Arc;

use anyhow::{Result, bail};
use spire_compat::config::ConfigFile;
use spire_ports::observe::{HealthChecks, NoMetrics};
use spire_ports::plugins::catalog::ServerCatalog;
use spire_server::api::LogControl;
use spire_server::config::{ServerConfig, ServerFlags};
use spire_server::runtime::{self, Assembly, OpenedStore, Operations, RunError};
use spire_store::{SqlConfig, SqlStore};
use spire_telemetry::Level;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::TRUST_DOMAIN;
use super::folder::Folder;

/// A running server.
pub(super) struct Server {
    pub(super) port: u16,
    task: JoinHandle<Result<(), RunError>>,
}

impl Server {
    /// Starts it and waits until it answers.
    pub(super) async fn start(folder: &Folder, stop: CancellationToken) -> Result<Self> {
        // The port is free now; should another process take it first, the server says so.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let config = config(folder, port)?;
        let database = folder.server().join("datastore.sqlite3").display().to_string();
        let mut catalog = ServerCatalog::default();
        spire_plugins_local::register_server(&mut catalog);
        let assembly = Assembly {
            open_oidc: None,
            open_policy: None, // the engine is a long build, and nothing sets a policy here
            open_store: Box::new(|_| {
                Box::pin(async move {
                    let store =
                        tokio::task::spawn_blocking(move || SqlStore::open(&SqlConfig::sqlite(database)));
                    match store.await {
                        Ok(Ok(store)) => {
                            let store = Arc::new(store);
                            let closing = store.clone();
                            Ok(OpenedStore { store, close: Box::pin(async move { closing.close().await }) })
                        }
                        Ok(Err(error)) => Err(error.to_string()),
                        Err(error) => Err(error.to_string()),
                    }
                })
            }),
            catalog,
            external: None,
            metrics: Arc::new(NoMetrics),
            log: Arc::new(FixedLevel),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            health: HealthChecks::new(),
            operations: Operations::default(),
        };
        let ready = CancellationToken::new();
        let mut task = tokio::spawn(runtime::run(config, assembly, ready.clone(), stop));
        tokio::select! {
            () = ready.cancelled() => Ok(Self { port, task }),
            ended = &mut task => bail!("the server did not start: {}", why(ended)),
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

/// The same configuration as a file would have; only paths and port differ from machine to machine.
fn config(folder: &Folder, port: u16) -> Result<ServerConfig> {
    let data = folder.server();
    let text = format!(
        r#"server {{
    bind_address = "127.0.0.1"
    bind_port = {port}
    trust_domain = "{TRUST_DOMAIN}"
    data_dir = {data:?}
    socket_path = {socket:?}
}}
plugins {{
    DataStore "sql" {{}}
    KeyManager "disk" {{
        plugin_data {{
            keys_path = {keys:?}
        }}
    }}
    NodeAttestor "join_token" {{}}
}}
"#,
        keys = data.join("keys.json"),
        socket = folder.server_socket(),
    );
    Ok(ServerConfig::resolve(&ConfigFile::parse("spire dev", &text)?, &ServerFlags::default())?)
}

/// `spire dev` has its level from its own flag.
struct FixedLevel;

impl LogControl for FixedLevel {
    fn current(&self) -> Level {
        Level::Info
    }

    fn launch(&self) -> Level {
        Level::Info
    }

    fn set(&self, _: Level) {
        tracing::warn!("The log level of spire dev is set by its flag -logLevel");
    }
}
