//! What brokers refer to: processes of this node, and its pods by name or UID (k8s.go: AttestReference).

use spire_core::spiffe::{Selector, SpiffeId};
use spire_ports::plugins::{ErrorKind, Result, WorkloadReference};
use spire_wire::broker::KubernetesObjectReference;

use super::{Kubernetes, failed, selectors};
use crate::api::objects::Pod;

/// The reference to an object of Kubernetes.
const OBJECT: &str = "type.googleapis.com/spiffe.broker.KubernetesObjectReference";

/// What `experimental.broker` lets brokers do.
#[derive(Clone, Debug, Default)]
pub(crate) struct Brokers {
    /// Whether the API server is to be asked for each reference (`access_policy = "enforced"`).
    pub(crate) enforced: bool,
    /// Those who may refer, and whether to pods of the whole cluster.
    pub(crate) scopes: Vec<(SpiffeId, bool)>,
}

fn invalid<T>(message: &str) -> Result<T> {
    Err(failed(ErrorKind::InvalidArgument, message))
}

fn not_built<T>(what: &str) -> Result<T> {
    Err(failed(ErrorKind::FailedPrecondition, format!("{what}: not built yet")))
}

impl Kubernetes {
    /// The selectors of what a broker, or nobody of whom we know, refers to.
    pub(super) async fn refer(&self, reference: &WorkloadReference) -> Result<Vec<Selector>> {
        let may_go_afar = match &reference.broker {
            None => false,
            Some(broker) => self.scope_of(broker)?,
        };
        if let Some(pid) = reference.pid {
            return self.of_process(pid).await;
        }
        if reference.type_url != OBJECT {
            return invalid(&format!("unsupported reference type: {}", reference.type_url));
        }
        let object: KubernetesObjectReference =
            prost::Message::decode(reference.value.clone()).map_err(|error| {
                failed(ErrorKind::InvalidArgument, format!("unable to unmarshal object reference: {error}"))
            })?;
        check(&object)?;
        let kind = object.r#type.clone().unwrap_or_default();
        if (kind.plural.as_str(), kind.group.as_str()) != ("pods", "core") {
            return not_built(&format!("references to {}.{}", kind.plural, kind.group));
        }
        self.of_pod(&object, may_go_afar).await
    }

    /// Whether this broker may refer to pods of other nodes.
    fn scope_of(&self, broker: &SpiffeId) -> Result<bool> {
        let Some(brokers) = &self.settings.brokers else {
            return Err(failed(ErrorKind::Internal, "broker configuration missing"));
        };
        let Some((_, afar)) = brokers.scopes.iter().find(|(id, _)| id == broker) else {
            let message = format!("broker \"{broker}\" is not configured");
            return Err(failed(ErrorKind::PermissionDenied, message));
        };
        if brokers.enforced {
            return not_built("experimental.broker.access_policy \"enforced\"");
        }
        Ok(*afar)
    }

    async fn of_pod(&self, object: &KubernetesObjectReference, may_go_afar: bool) -> Result<Vec<Selector>> {
        let Some(pods) = &self.pods else { return not_built("pods that the kubelet is not asked for") };
        let key = object.key.clone().unwrap_or_default();
        if !key.name.is_empty() && key.namespace.is_empty() {
            return invalid("namespace is required when name is set for a namespaced resource");
        }
        let listing = pods.newer_than(0).await;
        let listing = listing.map_err(|error| failed(ErrorKind::Unavailable, error))?;
        let named = |pod: &&Pod| pod.metadata.namespace == key.namespace && pod.metadata.name == key.name;
        let (pod, what) = if key.name.is_empty() {
            (listing.pods.get(&object.uid), format!("pod with UID {}", object.uid))
        } else {
            (listing.pods.values().find(named), format!("pod {}/{}", key.namespace, key.name))
        };
        let Some(pod) = pod else {
            if may_go_afar {
                return not_built(&format!("{what} is not on this node; pods of others"));
            }
            return Err(failed(ErrorKind::NotFound, format!("{what} not found on agent node")));
        };
        let found = &pod.metadata;
        if !object.uid.is_empty() && found.uid != object.uid {
            let (namespace, name) = (&found.namespace, &found.name);
            let message = format!("pod {namespace}/{name} has UID {}, expected {}", found.uid, object.uid);
            return Err(failed(ErrorKind::NotFound, message));
        }
        let mut values = selectors::of_pod(pod);
        self.add_namespace(pod, &mut values).await?;
        super::as_selectors(values)
    }
}

fn check(object: &KubernetesObjectReference) -> Result<()> {
    let Some(kind) = &object.r#type else { return invalid("object reference is missing type") };
    match (&object.key, object.uid.as_str()) {
        _ if kind.plural.is_empty() => invalid("object reference type is missing plural"),
        _ if kind.group.is_empty() => invalid("object reference type is missing group"),
        (None, "") => invalid("object reference is missing key and UID"),
        (Some(key), _) if key.name.is_empty() => invalid("object reference key is missing name"),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
