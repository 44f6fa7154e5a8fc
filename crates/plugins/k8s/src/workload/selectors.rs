//! What is said of a pod and its containers (pkg/agent/plugin/workloadattestor/k8s/k8s.go getSelectorValuesFrom…).

use std::collections::{BTreeMap, BTreeSet};

use crate::api::discovery::Kind;
use crate::api::objects::{ContainerStatus, Metadata, Pod};

/// The container with that ID, which may be one of the pod's init containers.
pub(super) fn container<'a>(pod: &'a Pod, id: &str) -> Option<&'a ContainerStatus> {
    let statuses = pod.status.container_statuses.iter().chain(&pod.status.init_container_statuses);
    statuses
        .filter(|status| !status.container_id.is_empty())
        .find(|status| runtime_id(&status.container_id) == id)
}

/// The ID in `<runtime>://<id>`.
fn runtime_id(url: &str) -> &str {
    let rest = url.split_once("://").map_or("", |(_, rest)| rest);
    rest.split(['/', '?', '#']).next().unwrap_or_default()
}

/// Of the pod.
pub(super) fn of_pod(pod: &Pod) -> BTreeSet<String> {
    let metadata = &pod.metadata;
    let (containers, init) = (&pod.status.container_statuses, &pod.status.init_container_statuses);
    let mut values = BTreeSet::from([
        format!("sa:{}", pod.spec.service_account_name),
        format!("ns:{}", metadata.namespace),
        format!("node-name:{}", pod.spec.node_name),
        format!("pod-uid:{}", metadata.uid),
        format!("pod-name:{}", metadata.name),
        format!("pod-image-count:{}", containers.len()),
        format!("pod-init-image-count:{}", init.len()),
    ]);
    // Both forms: the one with a digest is not known before the image was pulled.
    for (prefix, statuses) in [("pod-image", containers), ("pod-init-image", init)] {
        for status in statuses {
            values.extend([format!("{prefix}:{}", status.image_id), format!("{prefix}:{}", status.image)]);
        }
    }
    values.extend(metadata.labels.iter().map(|(key, value)| format!("pod-label:{key}:{value}")));
    for owner in &metadata.owner_references {
        values.insert(format!("pod-owner:{}:{}", owner.kind, owner.name));
        values.insert(format!("pod-owner-uid:{}:{}", owner.kind, owner.uid));
    }
    values
}

/// Of the container that the workload is in.
pub(super) fn of_container(status: &ContainerStatus) -> [String; 3] {
    [
        format!("container-name:{}", status.name),
        format!("container-image:{}", status.image_id),
        format!("container-image:{}", status.image),
    ]
}

/// Of the pod's namespace.
pub(super) fn of_namespace(labels: &BTreeMap<String, String>) -> impl Iterator<Item = String> + '_ {
    labels.iter().map(|(key, value)| format!("ns-label:{key}:{value}"))
}

/// Of an object that is no pod, which a broker referred to as that plural of that group (getSelectorValuesFromObjectMeta).
pub(super) fn of_object((plural, group): (&str, &str), kind: &Kind, metadata: &Metadata) -> BTreeSet<String> {
    let Metadata { name, namespace, uid, labels, owner_references } = metadata;
    let mut values = BTreeSet::from([
        format!("uid:{uid}"),
        format!("resource:{plural}.{group}"),
        format!("plural:{plural}"),
        format!("group:{group}"),
        format!("version:{}", kind.version),
        format!("apiVersion:{}", kind.api_version()),
        format!("kind:{}", kind.kind),
        format!("name:{name}"),
    ]);
    if namespace.is_empty() {
        values.insert(format!("key:{name}"));
    } else {
        values.extend([format!("namespace:{namespace}"), format!("key:{namespace}/{name}")]);
    }
    values.extend(labels.iter().map(|(key, value)| format!("label:{key}:{value}")));
    for owner in owner_references {
        // Without the version, which is no part of who it is.
        let group = owner.api_version.split_once('/').map_or("core", |(group, _)| group);
        let (by_name, by_uid) = (
            format!("{group}/{}/{}", owner.kind, owner.name),
            format!("{group}/{}/{}", owner.kind, owner.uid),
        );
        if owner.controller {
            values.extend([format!("controller-key:{by_name}"), format!("controller-uid:{by_uid}")]);
        }
        values.extend([format!("owner-key:{by_name}"), format!("owner-uid:{by_uid}")]);
    }
    values
}
