//! Brokers that may and may not, and what they refer to.

use prost::Message as _;
use serde_json::{Value, json};
use spire_ports::plugins::WorkloadAttestor as _;
use spire_testkit::kubernetes::{ApiServer as Server, Cluster as Objects};
use spire_wire::broker::{KubernetesObjectKey, KubernetesObjectType};

use super::super::namespaces::Namespaces;
use super::super::tests::{A, B, Given, POD, POD_SELECTORS, attestor, broker, in_cgroup, list, workload_pod};
use super::*;
use crate::api::Cluster;

const NODE_BROKER: &str = "spiffe://example.org/node-broker";
const CLUSTER_BROKER: &str = "spiffe://example.org/cluster-broker";
const PID: &str = "type.googleapis.com/spiffe.broker.WorkloadPIDReference";

fn settings(policy: &str) -> String {
    let brokers = format!(
        "{{ id = \"{NODE_BROKER}\" }}, {{ id = \"{CLUSTER_BROKER}\", pod_reference_scope = \"cluster\" }}"
    );
    broker(policy, &brokers)
}

fn process(broker: Option<&str>) -> WorkloadReference {
    WorkloadReference {
        type_url: PID.to_owned(),
        value: bytes::Bytes::from_static(&[8, 7]),
        pid: Some(7),
        broker: broker.map(|id| id.parse().unwrap()),
    }
}

fn object(broker: &str, kind: &str, key: Option<(&str, &str)>, uid: &str) -> WorkloadReference {
    let (plural, group) = kind.split_once('.').unwrap_or((kind, ""));
    let object = KubernetesObjectReference {
        r#type: Some(KubernetesObjectType { plural: plural.to_owned(), group: group.to_owned() }),
        key: key.map(|(namespace, name)| KubernetesObjectKey {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }),
        uid: uid.to_owned(),
    };
    WorkloadReference {
        type_url: OBJECT.to_owned(),
        value: object.encode_to_vec().into(),
        pid: None,
        broker: Some(broker.parse().unwrap()),
    }
}

/// An attestor whose node has one pod, and a cluster with another and with a deployment.
struct World {
    attestor: Kubernetes,
    api: Server,
    kubelet: Given,
    _folders: [tempfile::TempDir; 2],
}

fn world(data: &str) -> World {
    let kubelet = Given::new([Ok(list(&[workload_pod(POD, A)]))]);
    let (mut attestor, proc) = attestor(data, &kubelet);
    in_cgroup(&proc, &format!("/docker/{A}"));
    let api = Server::start(Objects::with_agent("t")).unwrap();
    api.change(|cluster| {
        cluster.pods.insert(0, workload_pod("elsewhere", B));
        cluster.deployments =
            vec![json!({"metadata": {"namespace": "other", "name": "x", "uid": "x-uid"}}), deployment()];
    });
    let folder = tempfile::tempdir().unwrap();
    api.write_kubeconfig(&folder.path().join("config")).unwrap();
    attestor.cluster = Cluster::Kubeconfig(folder.path().join("config"));
    attestor.namespaces = Namespaces::new(attestor.cluster.clone(), false);
    World { attestor, api, kubelet, _folders: [proc, folder] }
}

fn deployment() -> Value {
    json!({"kind": "Deployment", "metadata": {
        "namespace": "default", "name": "web", "uid": "web-uid", "labels": {"app": "web"},
        "ownerReferences": [
            {"apiVersion": "example.com/v1", "kind": "Site", "name": "s", "uid": "s-uid", "controller": true},
            {"apiVersion": "v1", "kind": "ConfigMap", "name": "c", "uid": "c-uid"},
        ],
    }})
}

impl World {
    async fn refer(
        &self,
        reference: WorkloadReference,
    ) -> std::result::Result<Vec<String>, (ErrorKind, String)> {
        let found = self.attestor.attest_reference(&reference).await;
        let found = found.map_err(|error| (error.kind, error.message))?;
        Ok(found.iter().map(|selector| selector.value().to_owned()).collect())
    }
}

#[tokio::test]
async fn pods_are_found_as_far_as_a_broker_sees() {
    let world = world(&settings("permissive"));
    let (local, remote) = (Some(("default", "blog-1")), Some(("spire", "spire-agent-x")));
    for broker in [NODE_BROKER, CLUSTER_BROKER] {
        for (key, uid) in [(local, ""), (None, POD), (local, POD)] {
            assert_eq!(world.refer(object(broker, "pods.core", key, uid)).await.unwrap(), POD_SELECTORS);
        }
    }
    assert_eq!(world.api.web().seen().len(), 0, "what the kubelet knows nobody else is asked for");
    // Those of other nodes need the API server, and the settings' consent.
    for (key, uid) in [(remote, ""), (None, "agent-pod-uid"), (remote, "agent-pod-uid")] {
        let found = world.refer(object(CLUSTER_BROKER, "pods.core", key, uid)).await.unwrap();
        for selector in ["pod-name:spire-agent-x", "pod-uid:agent-pod-uid", "sa:spire-agent-x"] {
            assert!(found.contains(&selector.to_owned()), "{selector} is not in {found:?}");
        }
        let refused = world.refer(object(NODE_BROKER, "pods.core", key, uid)).await.unwrap_err();
        assert!(
            refused.0 == ErrorKind::NotFound && refused.1.ends_with("not found on agent node"),
            "{refused:?}"
        );
    }
    for reference in [process(None), process(Some(NODE_BROKER))] {
        assert!(world.refer(reference).await.unwrap().contains(&"container-name:main".to_owned()));
    }
}

#[tokio::test]
async fn a_broker_of_the_cluster_needs_no_kubelet() {
    let mut world = world(&settings("permissive"));
    let remote = Some(("spire", "spire-agent-x"));
    world.kubelet.fail("down");
    assert!(world.refer(object(CLUSTER_BROKER, "pods.core", remote, "")).await.is_ok());
    let refused = world.refer(object(NODE_BROKER, "pods.core", remote, "")).await.unwrap_err();
    assert_eq!(refused, (ErrorKind::Unavailable, "down".to_owned()));
    world.attestor.pods = None;
    assert!(world.refer(object(CLUSTER_BROKER, "pods.core", remote, "")).await.is_ok());
    let refused = world.refer(object(NODE_BROKER, "pods.core", remote, "")).await.unwrap_err();
    assert_eq!(refused, (ErrorKind::FailedPrecondition, "kubelet client is disabled".to_owned()));
}

#[tokio::test]
async fn other_objects_are_told_by_their_metadata() {
    let world = world(&(settings("permissive") + "\nenable_namespace_labels = true"));
    let expected = [
        "apiVersion:apps/v1",
        "controller-key:example.com/Site/s",
        "controller-uid:example.com/Site/s-uid",
        "group:apps",
        "key:default/web",
        "kind:Deployment",
        "label:app:web",
        "name:web",
        "namespace:default",
        "ns-label:team:t",
        "owner-key:core/ConfigMap/c",
        "owner-key:example.com/Site/s",
        "owner-uid:core/ConfigMap/c-uid",
        "owner-uid:example.com/Site/s-uid",
        "plural:deployments",
        "resource:deployments.apps",
        "uid:web-uid",
        "version:v1",
    ];
    let web = Some(("default", "web"));
    for (key, uid) in [(web, ""), (None, "web-uid"), (web, "web-uid")] {
        assert_eq!(world.refer(object(NODE_BROKER, "deployments.apps", key, uid)).await.unwrap(), expected);
    }
    let expected = [
        "apiVersion:v1",
        "group:core",
        "key:node-1",
        "kind:Node",
        "label:secret:s",
        "label:zone:a",
        "name:node-1",
        "plural:nodes",
        "resource:nodes.core",
        "uid:node-uid",
        "version:v1",
    ];
    for (key, uid) in [(Some(("", "node-1")), ""), (None, "node-uid")] {
        assert_eq!(world.refer(object(NODE_BROKER, "nodes.core", key, uid)).await.unwrap(), expected);
    }
    let asked = world.api.web().seen();
    let listed = asked.iter().find(|seen| seen.target.contains("?limit=")).unwrap();
    assert!(listed.header("accept").unwrap().starts_with("application/json;as=PartialObjectMetadataList;"));
}

#[tokio::test]
async fn references_that_are_none_are_refused() {
    use ErrorKind::{Internal, InvalidArgument, NotFound, PermissionDenied};
    let world = world(&settings("permissive"));
    let refer = |kind: &str, key, uid: &str| object(NODE_BROKER, kind, key, uid);
    let mut broken = refer("pods.core", None, "x");
    broken.value = bytes::Bytes::from_static(b"\xff\xff");
    let mut nothing = refer("pods.core", None, "x");
    nothing.value = bytes::Bytes::new();
    let mut other = refer("pods.core", None, "x");
    other.type_url = "type.googleapis.com/x".to_owned();
    let name = Some(("default", "blog-1"));
    let namespace_missing = "namespace is required when name is set for a namespaced resource";
    let table = [
        (
            process(Some("spiffe://example.org/x")),
            PermissionDenied,
            "broker \"spiffe://example.org/x\" is not configured",
        ),
        (other, InvalidArgument, "unsupported reference type: type.googleapis.com/x"),
        (broken, InvalidArgument, "unable to unmarshal object reference: "),
        (nothing, InvalidArgument, "object reference is missing type"),
        (refer(".core", None, "x"), InvalidArgument, "object reference type is missing plural"),
        (refer("pods", name, ""), InvalidArgument, "object reference type is missing group"),
        (refer("pods.core", None, ""), InvalidArgument, "object reference is missing key and UID"),
        (refer("pods.core", Some(("a", "")), ""), InvalidArgument, "object reference key is missing name"),
        (refer("pods.core", Some(("", "x")), ""), InvalidArgument, namespace_missing),
        (refer("deployments.apps", Some(("", "x")), ""), InvalidArgument, namespace_missing),
        (
            refer("nodes.core", Some(("default", "x")), ""),
            InvalidArgument,
            "namespace must be empty for cluster-scoped resource",
        ),
        (
            refer("jobs.batch", name, ""),
            InvalidArgument,
            "unknown Kubernetes resource jobs.batch: the server has none",
        ),
        (
            refer("jobs.apps", name, ""),
            InvalidArgument,
            "unknown Kubernetes resource jobs.apps: the server has none",
        ),
        (
            refer("deployments.../x", name, ""),
            InvalidArgument,
            "unknown Kubernetes resource deployments.../x: invalid resource name",
        ),
        (
            refer("pods.core", name, "x"),
            NotFound,
            "pod default/blog-1 has UID 2c48913c-b29f-11e7-9350-020968147796, expected x",
        ),
        (
            refer("deployments.apps", Some(("default", "web")), "x"),
            NotFound,
            "deployments.apps default/web has UID web-uid, expected x",
        ),
        (refer("deployments.apps", name, ""), NotFound, "Deployment default/blog-1 not found"),
        (refer("deployments.apps", None, "x"), NotFound, "Deployment with UID x not found"),
        (refer("nodes.core", None, "x"), NotFound, "Node with UID x not found"),
        (refer("pods.core", None, "x"), NotFound, "pod with UID x not found on agent node"),
        (object(CLUSTER_BROKER, "pods.core", None, "x"), NotFound, "Pod with UID x not found"),
        (object(CLUSTER_BROKER, "pods.core", Some(("a", "x")), ""), NotFound, "pod a/x not found"),
        (
            object(CLUSTER_BROKER, "pods.core", Some(("a", "../x")), ""),
            Internal,
            "unable to get pod from Kubernetes API: invalid resource name \"../x\"",
        ),
    ];
    for (reference, kind, message) in table {
        let found = world.refer(reference).await.unwrap_err();
        assert!(found.0 == kind && found.1.starts_with(message), "{found:?} is not {message}");
    }
    let (attestor, _proc) = attestor("", &Given::default());
    let error = attestor.attest_reference(&process(Some(NODE_BROKER))).await.unwrap_err();
    assert_eq!((error.kind, &*error.message), (Internal, "broker configuration missing"));
}

#[tokio::test]
async fn kubernetes_says_whom_a_broker_may_speak_for() {
    let world = world(&settings("enforced"));
    let pod = || object(NODE_BROKER, "pods.core", None, POD);
    let deployment = || object(NODE_BROKER, "deployments.apps", Some(("default", "web")), "");
    for reference in [pod(), process(Some(NODE_BROKER)), deployment()] {
        let refused = world.refer(reference).await.unwrap_err();
        let message = "Kubernetes authorizer does not allow the broker to use impersonate-via-spire for the referenced \
                       object";
        assert_eq!(refused, (ErrorKind::PermissionDenied, message.to_owned()));
    }
    let reviews: Vec<Value> = world
        .api
        .web()
        .seen()
        .iter()
        .filter(|seen| seen.method == "POST")
        .map(|seen| serde_json::from_slice::<Value>(&seen.body).unwrap()["spec"].clone())
        .collect();
    let spec = |attributes: Value| json!({"user": NODE_BROKER, "resourceAttributes": attributes});
    let verb = "impersonate-via-spire";
    let of_pod = spec(json!({"resource": "pods", "namespace": "default", "name": "blog-1", "verb": verb}));
    let of_deployment = spec(
        json!({"group": "apps", "resource": "deployments", "namespace": "default", "name": "web", "verb": verb}),
    );
    assert_eq!(reviews, [of_pod.clone(), of_pod, of_deployment]);

    world.api.change(|cluster| cluster.impersonators.push((NODE_BROKER.to_owned(), "pods".to_owned())));
    for reference in [pod(), process(Some(NODE_BROKER))] {
        assert!(world.refer(reference).await.is_ok());
    }
    assert!(world.refer(deployment()).await.is_err());
    // Without a broker there is nobody to ask about; and who cannot be asked does not agree.
    assert!(world.refer(process(None)).await.is_ok());
    drop(world.api);
    let error =
        World { api: Server::start(Objects::default()).unwrap(), ..world }.refer(pod()).await.unwrap_err();
    assert!(
        error.0 == ErrorKind::Internal
            && error.1.starts_with("unable to check Kubernetes authorization for broker: "),
        "{error:?}"
    );
}
