//! Settings, and which processes are refused.

use spire_compat::hcl;
use spire_core::spiffe::TrustDomain;
use spire_ports::plugins::catalog::Configuration;
use spire_ports::plugins::{ErrorKind, PluginType, WorkloadAttestor as _};

use super::{Kubernetes, build};

fn configuration(data: &str) -> Configuration {
    let data = Some(hcl::parse(data).unwrap().into());
    Configuration::new(
        (PluginType::WorkloadAttestor, "k8s"),
        TrustDomain::parse("example.org").unwrap(),
        data,
    )
}

fn broker(policy: &str, brokers: &str) -> String {
    format!("experimental {{ broker {{\n access_policy = \"{policy}\"\n brokers = [{brokers}]\n}} }}")
}

const ID: &str = "id = \"spiffe://example.org/b\"";

#[tokio::test]
async fn settings_are_accepted() {
    for data in [
        String::new(),
        "kubelet_read_only_port = 10255\nmax_poll_attempts = 5\npoll_retry_interval = \"1s\"".to_owned(),
        "node_name_env = \"NODE\"\nskip_kubelet_verification = true\nsigstore {}".to_owned(),
        "use_new_container_locator = false\nexperimental { api_server { cache { enabled = true } } }"
            .to_owned(),
        broker("enforced", &format!("{{ {ID} }}")),
        broker("permissive", &format!("{{ {ID}, pod_reference_scope = \"cluster\" }}"))
            + "\ndisable_kubelet_client = true",
    ] {
        let built = build(configuration(&data)).await;
        assert!(built.is_ok(), "{data}: {}", built.err().unwrap());
    }
}

#[tokio::test]
async fn settings_are_refused() {
    let table = [
        ("z = 1\nb = 2".to_owned(), "unknown configurations detected: b,z"),
        ("experimental { x = 1 }".to_owned(), "unknown configurations detected: x"),
        ("experimental { api_server { cache { y = 1 } } }".to_owned(), "unknown configurations detected: y"),
        ("max_poll_attempts = \"many\"".to_owned(), "unable to decode configuration: "),
        ("poll_retry_interval = \"5\"".to_owned(), "unable to parse poll retry interval: time: missing unit"),
        ("reload_interval = \"x\"".to_owned(), "unable to parse reload interval: time: invalid duration"),
        (
            "kubelet_secure_port = 1\nkubelet_read_only_port = 2".to_owned(),
            "cannot use both the read-only and secure port",
        ),
        (
            "disable_kubelet_client = true\nnode_name = \"n\"\ntoken_path = \"t\"".to_owned(),
            "disable_kubelet_client cannot be used with token_path",
        ),
        (
            broker("permissive", &format!("{{ {ID} }}")) + "\ndisable_kubelet_client = true",
            "experimental.broker.brokers[spiffe://example.org/b].pod_reference_scope must be \"cluster\" when",
        ),
        (
            broker("", ""),
            "experimental.broker.access_policy: must be specified as one of [permissive, enforced]",
        ),
        (broker("x", ""), "experimental.broker.access_policy: unsupported value \"x\"; must be one of"),
        (broker("enforced", ""), "experimental.broker.brokers: at least one broker is required"),
        (
            broker("enforced", "{ pod_reference_scope = \"cluster\" }"),
            "experimental.broker.brokers[0].id: must be specified",
        ),
        (
            broker("enforced", &format!("{{ {ID} }}, {{ {ID} }}")),
            "experimental.broker.brokers[spiffe://example.org/b].id: duplicate broker id",
        ),
        (
            broker("enforced", "{ id = \"b\" }"),
            "experimental.broker.brokers[b].id: scheme is missing or invalid",
        ),
        (
            broker("enforced", &format!("{{ {ID}, pod_reference_scope = \"x\" }}")),
            "experimental.broker.brokers[spiffe://example.org/b].pod_reference_scope: unsupported value \"x\";",
        ),
    ];
    for (data, message) in table {
        let error = build(configuration(&data)).await.err().expect(&data);
        assert_eq!(error.kind, ErrorKind::InvalidArgument);
        assert!(error.message.starts_with(message), "{data}: {}", error.message);
    }
}

#[tokio::test]
async fn only_processes_in_containers_are_refused() {
    let id = "09bc3d7ade839efec32b6bec4ec79d099027a668ddba043083ec21d3c3b8f1e6";
    let pod = "2c48913c-b29f-11e7-9350-020968147796";
    let proc = tempfile::tempdir().unwrap();
    std::fs::create_dir(proc.path().join("7")).unwrap();
    let kubernetes = Kubernetes { proc: proc.path().to_owned() };
    let table = [
        ("0::/user.slice\n".to_owned(), String::new(), None),
        (format!("0::/kubepods/pod{pod}/{id}\n"), String::new(), Some(pod)),
        (format!("0::/docker/{id}\n"), String::new(), Some("unknown")),
        (
            "0::/\n".to_owned(),
            format!("1 2 0:1 /pod{pod}/{id} /sys/fs/cgroup rw - cgroup2 c rw\n"),
            Some(pod),
        ),
    ];
    for (cgroup, mountinfo, pod) in table {
        std::fs::write(proc.path().join("7/cgroup"), &cgroup).unwrap();
        std::fs::write(proc.path().join("7/mountinfo"), mountinfo).unwrap();
        let result = kubernetes.attest(7).await.map_err(|error| (error.kind, error.message));
        let expected = pod.map_or(Ok(vec![]), |pod| {
            let message = format!("attestation of containers is not built yet (container {id}, pod {pod})");
            Err((ErrorKind::Unimplemented, message))
        });
        assert_eq!(result, expected, "{cgroup}");
        // As in the reference, a process that is gone is in no container.
        assert_eq!(kubernetes.attest(8).await, Ok(vec![]));
    }
}
