//! What brokers refer to: processes of this node, pods, and other objects of Kubernetes by their name or UID.
//! `experimental.broker` says which brokers may, how far they see, and whether Kubernetes is asked for each object
//! (pkg/agent/plugin/workloadattestor/k8s/k8s.go AttestReference).

use spire_core::spiffe::SpiffeId;
use spire_ports::plugins::{ErrorKind, Result, WorkloadReference};
use spire_wire::broker::KubernetesObjectReference;

use super::{Found, Kubernetes, Named, failed, selectors};
use crate::api::ApiServer;
use crate::api::discovery::Kind;
use crate::api::objects::{Object, Pod};

/// The reference to an object of Kubernetes.
const OBJECT: &str = "type.googleapis.com/spiffe.broker.KubernetesObjectReference";

/// What Kubernetes is asked whether a broker may do it.
const VERB: &str = "impersonate-via-spire";

/// What `experimental.broker` lets brokers do.
#[derive(Clone, Debug, Default)]
pub(crate) struct Brokers {
    /// Whether the API server is to be asked for each reference (`access_policy = "enforced"`).
    pub(crate) enforced: bool,
    /// Those who may refer, and which pods to.
    pub(crate) scopes: Vec<(SpiffeId, Scope)>,
}

/// Which pods a broker may refer to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Those of this node.
    AgentNode,
    /// Those of the cluster.
    Cluster,
}

fn invalid<T>(message: impl Into<String>) -> Result<T> {
    Err(failed(ErrorKind::InvalidArgument, message))
}

fn not_found<T>(message: String) -> Result<T> {
    Err(failed(ErrorKind::NotFound, message))
}

impl Kubernetes {
    /// What a broker, or nobody of whom we know, refers to, if it may.
    pub(super) async fn refer(&self, reference: &WorkloadReference) -> Result<Option<Found>> {
        let scope = match &reference.broker {
            None => Scope::AgentNode,
            Some(broker) => self.scope_of(broker)?,
        };
        let found = match reference.pid {
            Some(pid) => self.of_process(pid).await?,
            None => Some(self.of_object(reference, scope).await?),
        };
        if let (Some(broker), Some(found)) = (&reference.broker, &found) {
            self.check_access(broker, &found.object).await?;
        }
        Ok(found)
    }

    /// How far this broker sees.
    fn scope_of(&self, broker: &SpiffeId) -> Result<Scope> {
        let Some(brokers) = &self.settings.brokers else {
            return Err(failed(ErrorKind::Internal, "broker configuration missing"));
        };
        match brokers.scopes.iter().find(|(id, _)| id == broker) {
            Some((_, scope)) => Ok(*scope),
            None => {
                let message = format!("broker \"{broker}\" is not configured");
                Err(failed(ErrorKind::PermissionDenied, message))
            }
        }
    }

    /// Asks Kubernetes whether the broker may speak for the object, where the settings want that.
    async fn check_access(&self, broker: &SpiffeId, object: &Named) -> Result<()> {
        if !self.settings.brokers.as_ref().is_some_and(|brokers| brokers.enforced) {
            return Ok(());
        }
        let api = self.api("unable to set up Kubernetes client").await?;
        let kind = (api_group(&object.group), object.plural.as_str());
        let allowed = api.may(broker.as_str(), VERB, kind, (&object.namespace, &object.name)).await;
        let allowed = allowed.map_err(|error| {
            let message = format!("unable to check Kubernetes authorization for broker: {error}");
            failed(ErrorKind::Internal, message)
        })?;
        if allowed {
            return Ok(());
        }
        let message = format!(
            "Kubernetes authorizer does not allow the broker to use {VERB} for the referenced object"
        );
        Err(failed(ErrorKind::PermissionDenied, message))
    }

    async fn api(&self, otherwise: &str) -> Result<ApiServer> {
        let api = self.cluster.connect().await;
        api.map_err(|error| failed(ErrorKind::Internal, format!("{otherwise}: {error}")))
    }

    async fn of_object(&self, reference: &WorkloadReference, scope: Scope) -> Result<Found> {
        if reference.type_url != OBJECT {
            return invalid(format!("unsupported reference type: {}", reference.type_url));
        }
        let object: KubernetesObjectReference =
            prost::Message::decode(reference.value.clone()).map_err(|error| {
                failed(ErrorKind::InvalidArgument, format!("unable to unmarshal object reference: {error}"))
            })?;
        let wanted = Wanted::new(object)?;
        if (wanted.plural.as_str(), wanted.group.as_str()) == ("pods", "core") {
            self.of_pod(&wanted, scope).await
        } else {
            self.of_other(wanted).await
        }
    }

    async fn of_pod(&self, wanted: &Wanted, scope: Scope) -> Result<Found> {
        wanted.check_namespace()?;
        let (namespace, name, uid) = (&wanted.namespace, &wanted.name, &wanted.uid);
        let pod = match self.local_pod(wanted, scope).await? {
            Some(pod) => pod,
            None if scope == Scope::AgentNode => {
                return not_found(match name.as_str() {
                    "" => format!("pod with UID {uid} not found on agent node"),
                    name => format!("pod {namespace}/{name} not found on agent node"),
                });
            }
            None => self.remote_pod(wanted).await?,
        };
        let found = &pod.metadata;
        if !uid.is_empty() && found.uid != *uid {
            let (namespace, name) = (&found.namespace, &found.name);
            return not_found(format!("pod {namespace}/{name} has UID {}, expected {uid}", found.uid));
        }
        self.found(Named::pod(&pod), selectors::of_pod(&pod)).await
    }

    /// The pod as the kubelet of this node has it. A broker that sees the whole cluster does not depend on the kubelet.
    async fn local_pod(&self, wanted: &Wanted, scope: Scope) -> Result<Option<Pod>> {
        let listing = match (&self.pods, scope) {
            (None, Scope::Cluster) => return Ok(None),
            (None, Scope::AgentNode) => {
                return Err(failed(ErrorKind::FailedPrecondition, "kubelet client is disabled"));
            }
            (Some(pods), _) => pods.newer_than(0).await,
        };
        match (listing, scope) {
            (Ok(listing), _) if wanted.name.is_empty() => Ok(listing.pods.get(&wanted.uid).cloned()),
            (Ok(listing), _) => {
                let fits = |pod: &&Pod| {
                    pod.metadata.namespace == wanted.namespace && pod.metadata.name == wanted.name
                };
                Ok(listing.pods.values().find(fits).cloned())
            }
            (Err(error), Scope::AgentNode) => Err(failed(ErrorKind::Unavailable, error)),
            (Err(error), Scope::Cluster) => {
                tracing::debug!(
                    external = false,
                    plugin_name = super::NAME,
                    plugin_type = "WorkloadAttestor",
                    error,
                    "Unable to query kubelet for pod reference; falling back to Kubernetes API"
                );
                Ok(None)
            }
        }
    }

    async fn remote_pod(&self, wanted: &Wanted) -> Result<Pod> {
        let api = self.api("unable to create Kubernetes client").await?;
        let (namespace, name) = if wanted.name.is_empty() {
            // A list of all pods with all that they have is long; the one is asked for in full.
            let found = by_uid(&api, &Kind::pods(), &wanted.uid).await?.metadata;
            (found.namespace, found.name)
        } else {
            (wanted.namespace.clone(), wanted.name.clone())
        };
        let pod = async { api.get(&Kind::pods().path(&namespace, &name)?).await };
        match pod.await {
            Ok(pod) => Ok(pod),
            Err(error) if error.is_not_found() => not_found(format!("pod {namespace}/{name} not found")),
            Err(error) => {
                Err(failed(ErrorKind::Internal, format!("unable to get pod from Kubernetes API: {error}")))
            }
        }
    }

    /// Of an object that is no pod its metadata count.
    async fn of_other(&self, wanted: Wanted) -> Result<Found> {
        let api = self.api("unable to set up Kubernetes client").await?;
        let unknown = |error: &dyn std::fmt::Display| {
            format!("unknown Kubernetes resource {}.{}: {error}", wanted.plural, wanted.group)
        };
        let kind = match api.kind(api_group(&wanted.group), &wanted.plural).await {
            Ok(Some(kind)) => kind,
            Ok(None) => return invalid(unknown(&"the server has none")),
            Err(error) => return invalid(unknown(&error)),
        };
        if kind.namespaced {
            wanted.check_namespace()?;
        } else if !wanted.namespace.is_empty() {
            return invalid("namespace must be empty for cluster-scoped resource");
        }
        let object = if wanted.name.is_empty() {
            by_uid(&api, &kind, &wanted.uid).await?
        } else {
            by_name(&api, &kind, &wanted).await?
        };
        let found = &object.metadata;
        if !wanted.uid.is_empty() && found.uid != wanted.uid {
            return not_found(format!(
                "{}.{} {}/{} has UID {}, expected {}",
                wanted.plural, wanted.group, found.namespace, found.name, found.uid, wanted.uid
            ));
        }
        let values = selectors::of_object((&wanted.plural, &wanted.group), &kind, found);
        let (namespace, name) = (found.namespace.clone(), found.name.clone());
        self.found(Named { plural: wanted.plural, group: wanted.group, namespace, name }, values).await
    }
}

async fn by_name(api: &ApiServer, kind: &Kind, wanted: &Wanted) -> Result<Object> {
    let (namespace, name, what) = (&wanted.namespace, &wanted.name, &kind.kind);
    match api.object(kind, namespace, name).await {
        Ok(object) => Ok(object),
        Err(error) if error.is_not_found() => not_found(format!("{what} {namespace}/{name} not found")),
        Err(error) => Err(failed(ErrorKind::Internal, format!("unable to get {what}: {error}"))),
    }
}

async fn by_uid(api: &ApiServer, kind: &Kind, uid: &str) -> Result<Object> {
    let what = &kind.kind;
    match api.object_by_uid(kind, uid).await {
        Ok(Some(object)) => Ok(object),
        Ok(None) => not_found(format!("{what} with UID {uid} not found")),
        Err(error) => Err(failed(ErrorKind::Internal, format!("unable to list {what}: {error}"))),
    }
}

/// The group as Kubernetes has it in paths and reviews.
fn api_group(group: &str) -> &str {
    if group == "core" { "" } else { group }
}

/// A reference that says enough.
struct Wanted {
    plural: String,
    group: String,
    namespace: String,
    /// Empty where there is only the UID.
    name: String,
    uid: String,
}

impl Wanted {
    fn new(object: KubernetesObjectReference) -> Result<Self> {
        let KubernetesObjectReference { r#type, key, uid } = object;
        let Some(kind) = r#type else { return invalid("object reference is missing type") };
        match (&key, uid.as_str()) {
            _ if kind.plural.is_empty() => return invalid("object reference type is missing plural"),
            _ if kind.group.is_empty() => return invalid("object reference type is missing group"),
            (None, "") => return invalid("object reference is missing key and UID"),
            (Some(key), _) if key.name.is_empty() => return invalid("object reference key is missing name"),
            _ => {}
        }
        let key = key.unwrap_or_default();
        Ok(Self { plural: kind.plural, group: kind.group, namespace: key.namespace, name: key.name, uid })
    }

    /// Of a kind that has namespaces.
    fn check_namespace(&self) -> Result<()> {
        if !self.name.is_empty() && self.namespace.is_empty() {
            return invalid("namespace is required when name is set for a namespaced resource");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
