//! SVIDStore `sconecas_sessionmanager`: puts SVIDs into sessions of a SCONE CAS, where enclaves that CAS has attested
//! import them.
//!
//! The original is a plugin of the branch `scone-svidstore-plugin-v1` of a fork of SPIRE. Its sessions, files, requests
//! and errors are kept; docs/differences.md says what is not.

mod cas;
mod predecessors;
mod session;
mod settings;
mod template;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use async_trait::async_trait;
use spire_ports::plugins::catalog::{AgentCatalog, Configuration};
use spire_ports::plugins::{Error, ErrorKind, PluginType, Result, StoredSvid, SvidStore};

use self::cas::{Cas, Posting};
use self::session::{Part, Workload};
use self::settings::{Settings, Templates};

/// The plugin's name, which is the type of its selectors.
const NAME: &str = "sconecas_sessionmanager";

/// Adds the plugin to those of the agent.
pub fn register_agent(catalog: &mut AgentCatalog) {
    catalog.svid_stores.add(NAME, |configuration: Configuration| async move {
        let store: Arc<dyn SvidStore> = Arc::new(SessionManager::new(&configuration).await?);
        Ok(store)
    });
}

/// The store.
struct SessionManager {
    templates: Templates,
    cas: Cas,
}

impl SessionManager {
    async fn new(configuration: &Configuration) -> Result<Self> {
        let settings = Settings::read(configuration)?;
        let (templates, cas) = tokio::task::spawn_blocking(move || settings.load())
            .await
            .map_err(|error| configuration.error(ErrorKind::Internal, error.to_string()))?
            .map_err(|failure| configuration.error(failure.kind(), failure.to_string()))?;
        Ok(Self { templates, cas })
    }

    async fn post(&self, workload: &Workload, part: Part, svid: &StoredSvid) -> Result<()> {
        let template = self.templates.of(part);
        let posting = Posting { part, name: workload.session_name(part, template)? };
        let compose = |predecessor: &str| workload.compose(part, template, svid, predecessor);
        self.cas.post(&posting, compose).await.map_err(|error| {
            // As the original: what it says of the third has no code of its own.
            let (kind, doing) = match part {
                Part::Svid => (ErrorKind::Unavailable, "unable to post svid into cas: "),
                Part::Bundle => (ErrorKind::Unavailable, "unable to post bundle into cas: "),
                Part::FederatedBundles => (ErrorKind::Unknown, ""),
            };
            failure(kind, format!("{doing}{error}"))
        })
    }
}

fn failure(kind: ErrorKind, message: impl Into<String>) -> Error {
    Error::new(kind, (PluginType::SvidStore, NAME), message)
}

#[async_trait]
impl SvidStore for SessionManager {
    fn name(&self) -> &str {
        NAME
    }

    async fn put(&self, svid: &StoredSvid, metadata: &[String]) -> Result<()> {
        let workload = Workload::parse(metadata)?;
        self.post(&workload, Part::Svid, svid).await?;
        let mut parts = vec![Part::Bundle];
        if !svid.federated_bundles.is_empty() {
            parts.push(Part::FederatedBundles);
        }
        for part in parts {
            if workload.has_name_for(part, self.templates.of(part)) {
                self.post(&workload, part, svid).await?;
            } else {
                // The original posts a session without a name of its own then, which the next workload would overwrite.
                tracing::warn!(
                    plugin_name = NAME,
                    session_name = workload.name(),
                    selector = part.name_selector(),
                    "Session is not posted: no selector gives its name"
                );
            }
        }
        Ok(())
    }

    /// CAS deletes nothing; what is there expires.
    async fn delete(&self, _: &[String]) -> Result<()> {
        Ok(())
    }
}
