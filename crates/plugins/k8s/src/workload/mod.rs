//! WorkloadAttestor `k8s`: which pod and container a process is in, as the kubelet of this node knows them
//! (pkg/agent/plugin/workloadattestor/k8s).

mod kubelet;
mod legacy;
mod namespaces;
mod pods;
mod reference;
mod selectors;
mod settings;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use spire_containers::Locator;
use spire_core::spiffe::Selector;
use spire_ports::plugins::catalog::Configuration;
use spire_ports::plugins::{Error, ErrorKind, PluginType, Result, WorkloadAttestor, WorkloadReference};
use spire_sigstore::Verifier;

use crate::api::Cluster;
use crate::api::objects::Pod;
use legacy::Place;
use namespaces::Namespaces;
use pods::{Listing, Pods, Reloading};
use settings::Settings;

const NAME: &str = "k8s";

/// The longest that a workload is looked for, however slow the kubelet is. The agent gives all its attestors 60 s; what the
/// others found shall still count.
const SEARCH_MAX: Duration = Duration::from_secs(50);

/// The attestor.
pub(crate) async fn build(configuration: Configuration) -> Result<Arc<dyn WorkloadAttestor>> {
    let mut settings = settings::read(&configuration)?;
    if settings.use_new_locator {
        tracing::info!(
            external = false,
            plugin_name = NAME,
            plugin_type = "WorkloadAttestor",
            "Using the new container locator"
        );
    } else {
        tracing::warn!(
            external = false,
            plugin_name = NAME,
            plugin_type = "WorkloadAttestor",
            "Using the legacy container locator. This option will be removed in a future release."
        );
    }
    let verifier = settings.sigstore.take().map(|settings| Verifier::new(NAME, settings)).transpose();
    let verifier = verifier
        .map_err(|error| configuration.invalid(format!("error initializing sigstore verifier: {error}")))?;
    let pods = match &settings.kubelet {
        None => None,
        Some(kubelet) => {
            let interval = kubelet.poll_retry_interval;
            let source = Reloading::load(kubelet.clone()).await;
            Some(Pods::new(source.map_err(|error| configuration.invalid(error))?, interval))
        }
    };
    Ok(Arc::new(Kubernetes {
        locator: Locator::new(NAME, true, settings.verbose_locator),
        namespaces: Namespaces::new(Cluster::Ambient, settings.api_cache),
        cluster: Cluster::Ambient,
        pods,
        settings,
        verifier,
    }))
}

struct Kubernetes {
    settings: Settings,
    locator: Locator,
    /// Nothing where the kubelet is not to be asked.
    pods: Option<Pods>,
    namespaces: Namespaces,
    /// Nothing where signatures do not count.
    verifier: Option<Verifier>,
    /// Whom brokers' references and rights are asked of.
    cluster: Cluster,
}

/// What was found, and what is said of it.
struct Found {
    object: Named,
    values: BTreeSet<String>,
}

/// An object of Kubernetes by its name.
struct Named {
    plural: String,
    /// `core` for that without a name.
    group: String,
    namespace: String,
    name: String,
}

impl Named {
    fn pod(pod: &Pod) -> Self {
        let metadata = &pod.metadata;
        Self {
            plural: "pods".to_owned(),
            group: "core".to_owned(),
            namespace: metadata.namespace.clone(),
            name: metadata.name.clone(),
        }
    }
}

fn failed(kind: ErrorKind, message: impl Into<String>) -> Error {
    Error::new(kind, (PluginType::WorkloadAttestor, NAME), message)
}

#[async_trait]
impl WorkloadAttestor for Kubernetes {
    fn name(&self) -> &str {
        NAME
    }

    async fn attest(&self, pid: i32) -> Result<Vec<Selector>> {
        as_selectors(self.of_process(pid).await?)
    }

    async fn attest_reference(&self, reference: &WorkloadReference) -> Result<Vec<Selector>> {
        as_selectors(self.refer(reference).await?)
    }
}

fn as_selectors(found: Option<Found>) -> Result<Vec<Selector>> {
    let selector =
        |value| Selector::new(NAME, value).map_err(|error| failed(ErrorKind::Internal, error.to_string()));
    found.map(|found| found.values).unwrap_or_default().into_iter().map(selector).collect()
}

impl Kubernetes {
    /// The pod that a process is in, with what is said of its container; nothing for one that is in none.
    async fn of_process(&self, pid: i32) -> Result<Option<Found>> {
        let Some(pods) = &self.pods else {
            return Err(failed(ErrorKind::FailedPrecondition, "kubelet client is disabled"));
        };
        let Some(place) = self.place(pid).await? else { return Ok(None) };
        let mut last = None;
        let search = tokio::time::timeout(SEARCH_MAX, self.search(pods, &place, &mut last)).await;
        let found = search.unwrap_or_else(|_| {
            let message = last.unwrap_or_else(|| "the kubelet does not answer".to_owned());
            Err(failed(ErrorKind::Unavailable, message))
        })?;
        Ok(Some(found))
    }

    /// Where the process is; nothing for one that is in no container.
    async fn place(&self, pid: i32) -> Result<Option<Place>> {
        if self.settings.use_new_locator {
            let located = self.locator.locate(pid).await;
            let located = located.map_err(|error| failed(error.kind(), error.to_string()))?;
            return Ok(located.container.map(|container| Place {
                pod_uid: container.pod_uid().map(str::to_owned),
                container_id: container.id().to_owned(),
            }));
        }
        let paths = self.locator.cgroups(pid).await;
        let paths = paths.map_err(|error| failed(error.kind(), error.to_string()))?;
        legacy::locate(&paths).map_err(|error| failed(ErrorKind::FailedPrecondition, error))
    }

    /// Looks for the container until the kubelet knows it: a container may run before the kubelet says so. `last` is what was
    /// wrong the last time.
    async fn search(&self, pods: &Pods, place: &Place, last: &mut Option<String>) -> Result<Found> {
        let mut version = 0;
        for attempt in 1.. {
            let answer = pods.newer_than(version).await;
            if let Ok(listing) = &answer {
                version = listing.version;
                if let Some(found) = self.look(listing, place).await? {
                    return Ok(found);
                }
            }
            let error = answer.err();
            let is_last = attempt >= self.settings.max_poll_attempts;
            self.report(place, attempt, error.as_deref(), is_last);
            match error {
                Some(error) if is_last => return Err(failed(ErrorKind::Unavailable, error)),
                None if is_last => break,
                error => *last = error,
            }
        }
        Err(failed(ErrorKind::DeadlineExceeded, "no selectors found after max poll attempts"))
    }

    fn report(&self, place: &Place, attempt: u32, error: Option<&str>, is_last: bool) {
        let pod_uid = place.pod_uid.as_deref().unwrap_or_default();
        let container_id = place.container_id.as_str();
        macro_rules! line {
            ($level:ident, $text:literal $(, $field:ident = $value:expr)*) => {
                tracing::$level!(
                    external = false, plugin_name = NAME, plugin_type = "WorkloadAttestor",
                    pod_uid, container_id, attempt $(, $field = $value)*, $text
                )
            };
        }
        let interval = self.settings.kubelet.as_ref().map(|kubelet| kubelet.poll_retry_interval);
        let interval = spire_compat::duration::GoDuration::from(interval.unwrap_or_default()).to_string();
        match (error, is_last) {
            (Some(error), true) => line!(warn, "Unable to get pod list; giving up", error = error),
            (Some(error), false) => line!(
                warn,
                "Unable to get pod list; will retry after backoff",
                error = error,
                retry_interval = interval
            ),
            (None, true) => line!(warn, "Container id not found; giving up"),
            (None, false) => {
                line!(debug, "Container id not found; will retry after backoff", retry_interval = interval);
            }
        }
    }

    /// An object with the labels of its namespace, where they are wanted.
    async fn found(&self, object: Named, mut values: BTreeSet<String>) -> Result<Found> {
        let namespace = &object.namespace;
        if self.settings.namespace_labels && !namespace.is_empty() {
            let labels = self.namespaces.labels(namespace).await.map_err(|error| {
                let message = format!("unable to get namespace labels for {namespace:?}: {error}");
                failed(ErrorKind::Internal, message)
            })?;
            values.extend(selectors::of_namespace(&labels));
        }
        Ok(Found { object, values })
    }

    /// What a list says of the place, if it has it.
    async fn look(&self, listing: &Listing, place: &Place) -> Result<Option<Found>> {
        let candidates: Vec<&Pod> = match &place.pod_uid {
            Some(uid) => listing.pods.get(uid).into_iter().collect(),
            None => listing.pods.values().collect(),
        };
        let mut found = None;
        for pod in candidates {
            let container = selectors::container(pod, &place.container_id);
            let values = match container {
                Some(status) => {
                    let mut values = selectors::of_pod(pod);
                    if self.settings.container_selectors {
                        values.extend(selectors::of_container(status));
                    }
                    values
                }
                // The container may not be ready; where containers do not count, its pod is enough.
                None if place.pod_uid.is_some() && !self.settings.container_selectors => {
                    selectors::of_pod(pod)
                }
                None => continue,
            };
            if found.replace((pod, container, values)).is_some() {
                tracing::warn!(
                    external = false,
                    plugin_name = NAME,
                    plugin_type = "WorkloadAttestor",
                    container_id = place.container_id,
                    "Two pods found with same container Id"
                );
                return Err(failed(ErrorKind::Internal, "two pods found with same container Id"));
            }
        }
        let Some((pod, container, mut values)) = found else { return Ok(None) };
        // As in the reference a pod whose container is not known yet has no image to look at.
        if let (Some(verifier), Some(status)) = (&self.verifier, container) {
            let verified = verifier.verify(&status.image_id).await.map_err(|error| {
                let image = &status.image_id;
                let message =
                    format!("error verifying sigstore image signature for imageID {image}: {error}");
                failed(ErrorKind::Internal, message)
            });
            values.extend(verified?);
        }
        self.found(Named::pod(pod), values).await.map(Some)
    }
}
