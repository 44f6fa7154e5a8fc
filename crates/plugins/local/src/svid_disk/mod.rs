//! SVIDStore `disk`: keeps SVIDs as plain files for programs that read nothing else, and tells those programs when
//! they change. SPIRE has no such plugin; it is what spiffe-helper does beside an agent.
//!
//! Where files go, who may read them and what is run is in the agent's configuration. A selector only names one of
//! the targets there, so whoever registers an entry can write to no other place and run nothing.

mod files;
mod settings;
mod tell;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use spire_ports::plugins::catalog::Configuration;
use spire_ports::plugins::{Error, ErrorKind, PluginType, Result, StoredSvid, SvidStore};

use self::settings::Target;
use crate::machine::blocking;

/// The plugin's name, which is the type of its selectors.
pub(crate) const NAME: &str = "disk";

/// The store.
struct Disk {
    targets: BTreeMap<String, Arc<Target>>,
}

/// The store, whose settings must be good; folders are made when there is something to put.
pub(crate) async fn build(configuration: Configuration) -> Result<Arc<dyn SvidStore>> {
    let targets = settings::read(&configuration)?;
    Ok(Arc::new(Disk { targets }))
}

fn failure(kind: ErrorKind, message: impl Into<String>) -> Error {
    Error::new(kind, (PluginType::SvidStore, NAME), message)
}

impl Disk {
    /// The target that the selectors name.
    fn target(&self, metadata: &[String]) -> Result<Arc<Target>> {
        let invalid = |text: String| Err(failure(ErrorKind::InvalidArgument, text));
        let mut names = metadata.iter().filter_map(|value| value.strip_prefix("target:"));
        match (names.next(), names.next()) {
            (Some(name), None) => match self.targets.get(name) {
                Some(target) => Ok(Arc::clone(target)),
                None => invalid(format!("there is no target {name:?} in the agent's configuration")),
            },
            (None, _) => invalid("a selector target:<name> is required".to_owned()),
            (Some(_), Some(_)) => invalid("only one selector target:<name> is allowed".to_owned()),
        }
    }
}

#[async_trait]
impl SvidStore for Disk {
    fn name(&self) -> &str {
        NAME
    }

    async fn put(&self, svid: &StoredSvid, metadata: &[String]) -> Result<()> {
        let target = self.target(metadata)?;
        let (writing, stored) = (Arc::clone(&target), svid.clone());
        let written = blocking(move || files::put(&writing, &stored)).await;
        written.map_err(|error| failure(ErrorKind::Internal, error))?;
        tell::tell(&target, svid).await.map_err(|error| failure(ErrorKind::Internal, error))
    }

    async fn delete(&self, metadata: &[String]) -> Result<()> {
        let target = self.target(metadata)?;
        let deleted = blocking(move || files::delete(&target)).await;
        deleted.map_err(|error| failure(ErrorKind::Internal, error))
    }
}
