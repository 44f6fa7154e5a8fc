//! External plugins: programs that speak hashicorp/go-plugin over gRPC, behind the plugin ports.
//!
//! | module | what it does |
//! |---|---|
//! | `handshake` | the line by which a plugin says where it listens |
//! | `process` | the child: checksum, environment, first line, log, end |
//! | `hclog` | a plugin's log lines |
//! | `host_services` | what a plugin may call |
//! | `connection` | one child that runs, connected and initialised |
//! | `supervise` | one plugin over many children: restarts, configuration, health |
//! | `adapters` | the plugin as each port |
//!
//! A child that exits, or that answers neither calls nor health checks, is replaced by a new one after a wait that
//! grows; calls fail with `Unavailable` meanwhile. SPIRE keeps failing until it is restarted itself.

mod adapters;
mod connection;
mod handshake;
mod hclog;
mod host_services;
mod launcher;
mod limits;
mod process;
mod status;
mod supervise;

use std::sync::Arc;

use async_trait::async_trait;
use spire_ports::plugins::external::{ExternalPlugin, ExternalPlugins, Launch};

pub use launcher::run_if_launcher;
pub use limits::Limits;

/// Runs external plugins with the usual limits.
pub fn external_plugins() -> Arc<dyn ExternalPlugins> {
    Arc::new(PluginHost::new(Limits::default()))
}

/// Runs programs as plugins.
#[derive(Debug)]
pub struct PluginHost {
    limits: Limits,
}

impl PluginHost {
    /// A host with these limits.
    pub fn new(limits: Limits) -> Self {
        Self { limits }
    }
}

#[async_trait]
impl ExternalPlugins for PluginHost {
    async fn launch(&self, launch: Launch) -> Result<Arc<dyn ExternalPlugin>, String> {
        Ok(supervise::Supervised::start(launch, self.limits).await?)
    }
}
