//! Labels of namespaces, which the kubelet does not know: the API server is asked (`enable_namespace_labels`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::api::Cluster;

/// How long the labels of a namespace are used before they are asked for again, with `experimental.api_server.cache.enabled`. The
/// reference watches the API server instead; we may be this much later.
const CACHED_FOR: Duration = Duration::from_secs(10);

/// How many namespaces are kept. The pods of a node are of fewer namespaces.
const CACHED_MAX: usize = 1024;

type Labels = Arc<BTreeMap<String, String>>;

/// Asks for namespaces.
#[derive(Debug)]
pub(super) struct Namespaces {
    cluster: Cluster,
    cached: Option<Mutex<BTreeMap<String, (Labels, Instant)>>>,
}

impl Namespaces {
    /// Asks that cluster; keeps answers for a moment with `cache`.
    pub(super) fn new(cluster: Cluster, cache: bool) -> Self {
        Self { cluster, cached: cache.then(Mutex::default) }
    }

    /// The labels of a namespace.
    ///
    /// # Errors
    /// The API server cannot be asked, or has no such namespace.
    pub(super) async fn labels(&self, name: &str) -> Result<Labels, String> {
        if let Some(cached) = &self.cached
            && let Some((labels, since)) = cached.lock().get(name)
            && since.elapsed() < CACHED_FOR
        {
            return Ok(Arc::clone(labels));
        }
        let api = self.cluster.connect().await;
        let api = api.map_err(|error| format!("unable to set up kube client: {error}"))?;
        let namespace = api.namespace(name).await;
        let namespace = namespace.map_err(|error| format!("unable to get namespace {name:?}: {error}"))?;
        let labels = Arc::new(namespace.metadata.labels);
        if let Some(cached) = &self.cached {
            let mut cached = cached.lock();
            if cached.len() >= CACHED_MAX {
                cached.retain(|_, (_, since)| since.elapsed() < CACHED_FOR);
            }
            if cached.len() < CACHED_MAX {
                cached.insert(name.to_owned(), (Arc::clone(&labels), Instant::now()));
            }
        }
        Ok(labels)
    }
}
