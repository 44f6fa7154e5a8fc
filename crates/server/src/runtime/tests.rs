//! A whole server over what is in memory.

use async_trait::async_trait;
use spire_compat::config::{ConfigFile, Level};
use spire_ports::observe::NoMetrics;
use spire_ports::plugins::{self, BundlePublisher};
use spire_telemetry::LogLevel;

use super::*;
use crate::config::ServerFlags;
use crate::testing::{MemoryKeys, MemoryStore};

/// Panics at each call.
struct Broken;

#[async_trait]
impl BundlePublisher for Broken {
    fn name(&self) -> &str {
        "broken"
    }
    async fn publish(&self, _: &Bundle) -> plugins::Result<bool> {
        panic!("nothing is published here")
    }
}

fn config(folder: &Path) -> ServerConfig {
    let text = format!(
        r#"
server {{
    trust_domain = "example.org"
    bind_address = "127.0.0.1"
    data_dir = "{folder}"
    socket_path = "{folder}/api.sock"
}}
plugins {{
    DataStore "sql" {{}}
    KeyManager "memory" {{}}
    BundlePublisher "broken" {{}}
}}
"#,
        folder = folder.display()
    );
    let file = ConfigFile::parse("server.conf", text).unwrap();
    let mut config = ServerConfig::resolve(&file, &ServerFlags::default()).unwrap();
    // The file takes 0 for the default port.
    config.bind_address.set_port(0);
    config
}

fn assembly() -> Assembly {
    let mut catalog = ServerCatalog::default();
    catalog.key_managers.add_fixed("memory", |_| async {
        let keys: Arc<dyn KeyManager> = Arc::new(MemoryKeys::default());
        Ok(keys)
    });
    catalog.bundle_publishers.add_fixed("broken", |_| async {
        let publisher: Arc<dyn BundlePublisher> = Arc::new(Broken);
        Ok(publisher)
    });
    Assembly {
        open_oidc: None,
        open_policy: None,
        open_store: Box::new(|_| {
            Box::pin(async { Ok(OpenedStore { store: MemoryStore::new(), close: Box::pin(async {}) }) })
        }),
        catalog,
        external: None,
        metrics: Arc::new(NoMetrics),
        log: Arc::new(LogLevel::new(Level::Info)),
        version: "test".to_owned(),
        health: HealthChecks::new(),
        operations: Operations::default(),
    }
}

#[tokio::test]
async fn a_task_that_panics_ends_the_server_with_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let stop = CancellationToken::new();
    // Nobody stops it.
    let ended = run(config(folder.path()), assembly(), CancellationToken::new(), stop.clone()).await;
    let error = ended.unwrap_err();
    assert!(matches!(error, RunError::Task { name: "bundle_publisher", .. }), "{error}");
    assert!(!stop.is_cancelled(), "whoever owns the token does that");
    assert!(!folder.path().join("api.sock").exists(), "the listeners ended too");
}
