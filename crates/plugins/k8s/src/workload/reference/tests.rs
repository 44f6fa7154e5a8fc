//! Brokers that may and may not, and what they refer to.

use prost::Message as _;
use spire_ports::plugins::WorkloadAttestor as _;
use spire_wire::broker::{KubernetesObjectKey, KubernetesObjectType};

use super::super::tests::{A, Given, POD, POD_SELECTORS, attestor, broker, list, workload_pod};
use super::*;

const BROKER: &str = "spiffe://example.org/b";

fn object(kind: &str, key: Option<(&str, &str)>, uid: &str) -> KubernetesObjectReference {
    let (plural, group) = kind.split_once('.').unwrap_or((kind, ""));
    KubernetesObjectReference {
        r#type: Some(KubernetesObjectType { plural: plural.to_owned(), group: group.to_owned() }),
        key: key.map(|(namespace, name)| KubernetesObjectKey {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }),
        uid: uid.to_owned(),
    }
}

async fn ask(
    attestor: &Kubernetes,
    broker: &str,
    object: &KubernetesObjectReference,
) -> std::result::Result<Vec<String>, (ErrorKind, String)> {
    let reference = WorkloadReference {
        type_url: OBJECT.to_owned(),
        value: object.encode_to_vec().into(),
        pid: None,
        broker: SpiffeId::parse(broker).ok(),
    };
    let found = attestor.attest_reference(&reference).await.map_err(|error| (error.kind, error.message))?;
    Ok(found.iter().map(|selector| selector.value().to_owned()).collect())
}

#[tokio::test]
async fn pods_of_this_node_are_found_by_name_and_uid() {
    let kubelet = Given::new([Ok(list(&[workload_pod(POD, A)]))]);
    let (attestor, _proc) = attestor(&broker("permissive", &format!("{{ id = \"{BROKER}\" }}")), &kubelet);
    let name = Some(("default", "blog-1"));
    for found in
        [object("pods.core", name, ""), object("pods.core", None, POD), object("pods.core", name, POD)]
    {
        assert_eq!(ask(&attestor, BROKER, &found).await.unwrap(), POD_SELECTORS, "{found:?}");
    }
    let invalid = ErrorKind::InvalidArgument;
    for (object, kind, text) in [
        (
            object("pods.core", Some(("default", "x")), ""),
            ErrorKind::NotFound,
            "pod default/x not found on agent node",
        ),
        (object("pods.core", None, "x"), ErrorKind::NotFound, "pod with UID x not found on agent node"),
        (
            object("pods.core", name, "x"),
            ErrorKind::NotFound,
            "pod default/blog-1 has UID 2c48913c-b29f-11e7-9350-020968147796, expected x",
        ),
        (
            object("pods.core", Some(("", "x")), ""),
            invalid,
            "namespace is required when name is set for a namespaced resource",
        ),
        (object("pods.core", None, ""), invalid, "object reference is missing key and UID"),
        (object("pods.core", Some(("a", "")), ""), invalid, "object reference key is missing name"),
        (object("pods", name, ""), invalid, "object reference type is missing group"),
        (object(".core", name, ""), invalid, "object reference type is missing plural"),
        (KubernetesObjectReference::default(), invalid, "object reference is missing type"),
        (
            object("deployments.apps", name, ""),
            ErrorKind::FailedPrecondition,
            "references to deployments.apps: not built yet",
        ),
    ] {
        assert_eq!(ask(&attestor, BROKER, &object).await, Err((kind, text.to_owned())));
    }
}

#[tokio::test]
async fn only_configured_brokers_refer_and_what_cannot_be_enforced_is_refused() {
    let pod = object("pods.core", Some(("default", "blog-1")), "");
    let entry = format!("{{ id = \"{BROKER}\" }}");
    for (data, who, kind, text) in [
        (String::new(), BROKER, ErrorKind::Internal, "broker configuration missing"),
        (
            broker("permissive", &entry),
            "spiffe://example.org/x",
            ErrorKind::PermissionDenied,
            "broker \"spiffe://example.org/x\" is not configured",
        ),
        (
            broker("enforced", &entry),
            BROKER,
            ErrorKind::FailedPrecondition,
            "experimental.broker.access_policy \"enforced\": not built yet",
        ),
    ] {
        let kubelet = Given::new([Ok(list(&[workload_pod(POD, A)]))]);
        let (attestor, _proc) = attestor(&data, &kubelet);
        assert_eq!(ask(&attestor, who, &pod).await, Err((kind, text.to_owned())));
        assert_eq!(kubelet.asked(), 0);
    }
}
