//! Settings; which pod a process is in; and how often a kubelet is asked.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::{Value, json};
use spire_compat::hcl;
use spire_core::spiffe::TrustDomain;
use spire_ports::plugins::catalog::Configuration;
use spire_ports::plugins::{ErrorKind, PluginType, WorkloadAttestor as _};
use spire_testkit::authority::Authority;
use spire_testkit::kubernetes::{ApiServer, Cluster as Objects};
use spire_testkit::sigstore::SignedImage;
use spire_testkit::web::{Answer, Web, tls};
use tokio::time::Instant;

use super::namespaces::Namespaces;
use super::pods::{Pods, Reloading, Source};
use super::{Kubernetes, Locator, Verifier, build, settings};
use crate::api::Cluster;

fn configuration(data: &str) -> Configuration {
    let data = Some(hcl::parse(data).unwrap().into());
    Configuration::new(
        (PluginType::WorkloadAttestor, "k8s"),
        TrustDomain::parse("example.org").unwrap(),
        data,
    )
}

pub(super) fn broker(policy: &str, brokers: &str) -> String {
    format!("experimental {{ broker {{\n access_policy = \"{policy}\"\n brokers = [{brokers}]\n}} }}")
}

const ID: &str = "id = \"spiffe://example.org/b\"";

#[tokio::test]
async fn settings_are_accepted() {
    for data in [
        "kubelet_read_only_port = \"10255\"".to_owned(),
        "kubelet_read_only_port = 10255\nmax_poll_attempts = 5\npoll_retry_interval = \"1s\"".to_owned(),
        "node_name_env = \"NODE\"\nskip_kubelet_verification = true\nuse_anonymous_authentication = true".to_owned(),
        "kubelet_read_only_port = 1\nuse_new_container_locator = false\nexperimental { api_server { cache { enabled = \
         true } } }"
            .to_owned(),
        broker("enforced", &format!("{{ {ID} }}")) + "\nkubelet_read_only_port = 1",
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
            "sigstore {}".to_owned(),
            "error initializing sigstore verifier: failed to get fulcio root certificates: ",
        ),
        (
            "experimental { sigstore { enforce_sct = true } }".to_owned(),
            "unable to decode configuration: enforce_sct: not a key of sigstore any more",
        ),
        ("kubelet_secure_port = 70000".to_owned(), "kubelet port 70000 is not a port"),
        (
            "kubelet_ca_path = \"/nonexistent\"".to_owned(),
            "unable to load kubelet CA: open /nonexistent: no such file or directory",
        ),
        (
            "skip_kubelet_verification = true\ntoken_path = \"/nonexistent\"".to_owned(),
            "unable to load token: open /nonexistent: no such file or directory",
        ),
        (
            "skip_kubelet_verification = true\ncertificate_path = \"/nonexistent\"".to_owned(),
            "the private key path is required with the certificate path",
        ),
        (
            "skip_kubelet_verification = true\nprivate_key_path = \"/nonexistent\"".to_owned(),
            "the certificate path is required with the private key path",
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

pub(super) const A: &str = "09bc3d7ade839efec32b6bec4ec79d099027a668ddba043083ec21d3c3b8f1e6";
pub(super) const B: &str = "93529524695bb00d91c1f6dba692ea8d3550c3b94fb2463af7bc9ec82f992d26";
pub(super) const POD: &str = "2c48913c-b29f-11e7-9350-020968147796";

/// A pod with a container and an init container.
pub(super) fn workload_pod(uid: &str, id: &str) -> Value {
    json!({
        "metadata": {
            "name": "blog-1", "namespace": "default", "uid": uid, "labels": {"app": "blog", "k:x": "v"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "blog", "uid": "rs", "controller": true}],
        },
        "spec": {"nodeName": "node-1", "serviceAccountName": "blogger"},
        "status": {
            "containerStatuses": [
                {"name": "main", "image": "blog:1", "imageID": "docker://sha256:1", "containerID": format!("containerd://{id}")},
                {"name": "starting", "image": "x", "imageID": "", "state": {"waiting": {}}},
            ],
            "initContainerStatuses": [
                {"name": "init", "image": "i:1", "imageID": "i@sha256:2", "containerID": format!("cri-o://{B}")},
            ],
        },
    })
}

pub(super) fn list(pods: &[Value]) -> String {
    json!({"kind": "PodList", "items": pods}).to_string()
}

/// A kubelet whose answers are given.
#[derive(Clone, Default)]
pub(super) struct Given(Arc<Mutex<GivenState>>);

#[derive(Default)]
struct GivenState {
    answers: VecDeque<Result<String, String>>,
    asked_at: Vec<Instant>,
    hangs: bool,
}

impl Given {
    pub(super) fn new(answers: impl IntoIterator<Item = Result<String, &'static str>>) -> Self {
        let answers = answers.into_iter().map(|answer| answer.map_err(str::to_owned)).collect();
        Self(Arc::new(Mutex::new(GivenState { answers, ..GivenState::default() })))
    }

    /// Answers so from now on.
    pub(super) fn fail(&self, error: &str) {
        self.0.lock().answers = VecDeque::from([Err(error.to_owned())]);
    }

    pub(super) fn asked(&self) -> usize {
        self.0.lock().asked_at.len()
    }
}

#[async_trait]
impl Source for Given {
    async fn pods(&self) -> Result<Bytes, String> {
        let (answer, hangs) = {
            let mut state = self.0.lock();
            state.asked_at.push(Instant::now());
            // The last answer stays.
            let answer = match state.answers.len() {
                0 | 1 => state.answers.front().cloned(),
                _ => state.answers.pop_front(),
            };
            (answer, state.hangs)
        };
        if hangs {
            std::future::pending::<()>().await;
        }
        answer.unwrap_or(Err("nothing given".to_owned())).map(Bytes::from)
    }
}

/// An attestor with that kubelet, and a folder for `/proc`.
pub(super) fn attestor(data: &str, kubelet: &Given) -> (Kubernetes, tempfile::TempDir) {
    let settings = settings::read(&configuration(&format!("{data}\nkubelet_read_only_port = 1"))).unwrap();
    let proc = tempfile::tempdir().unwrap();
    std::fs::create_dir(proc.path().join("7")).unwrap();
    let interval = settings.kubelet.as_ref().unwrap().poll_retry_interval;
    let attestor = Kubernetes {
        locator: Locator::new("k8s", true, true).at(proc.path()),
        namespaces: Namespaces::new(Cluster::Kubeconfig("/nonexistent".into()), false),
        cluster: Cluster::Kubeconfig("/nonexistent".into()),
        pods: Some(Pods::new(kubelet.clone(), interval)),
        settings,
        verifier: None,
    };
    (attestor, proc)
}

async fn attest(attestor: &Kubernetes) -> Result<Vec<String>, (ErrorKind, String)> {
    let found = attestor.attest(7).await.map_err(|error| (error.kind, error.message))?;
    Ok(found.iter().map(|selector| selector.value().to_owned()).collect())
}

pub(super) fn in_cgroup(proc: &tempfile::TempDir, path: &str) {
    std::fs::write(proc.path().join("7/cgroup"), format!("0::{path}\n")).unwrap();
}

pub(super) const POD_SELECTORS: [&str; 17] = [
    "node-name:node-1",
    "ns:default",
    "pod-image-count:2",
    "pod-image:",
    "pod-image:blog:1",
    "pod-image:docker://sha256:1",
    "pod-image:x",
    "pod-init-image-count:1",
    "pod-init-image:i:1",
    "pod-init-image:i@sha256:2",
    "pod-label:app:blog",
    "pod-label:k:x:v",
    "pod-name:blog-1",
    "pod-owner-uid:ReplicaSet:rs",
    "pod-owner:ReplicaSet:blog",
    "pod-uid:2c48913c-b29f-11e7-9350-020968147796",
    "sa:blogger",
];

#[tokio::test]
async fn selectors_of_pods_and_containers() {
    let main = ["container-image:blog:1", "container-image:docker://sha256:1", "container-name:main"];
    let init = ["container-image:i:1", "container-image:i@sha256:2", "container-name:init"];
    let with = |container: &[&'static str]| [container, &POD_SELECTORS[..]].concat();
    let in_pod = |id: &str| format!("/kubepods/pod{POD}/{id}");
    let table = [
        ("", in_pod(A), with(&main)),
        ("", format!("/docker/{A}"), with(&main)),
        ("", in_pod(B), with(&init)),
        ("use_new_container_locator = false", in_pod(A), with(&main)),
        ("use_new_container_locator = false", format!("/../crio-{A}.scope"), with(&main)),
        ("disable_container_selectors = true", in_pod(A), with(&[])),
        // The container is not ready, but its pod is known.
        ("disable_container_selectors = true", in_pod(&A.replace('0', "1")), with(&[])),
        ("", "/user.slice".to_owned(), vec![]),
    ];
    for (data, path, expected) in table {
        let other = workload_pod(&POD.replace('2', "3"), &B.replace('9', "8"));
        let kubelet = Given::new([Ok(list(&[workload_pod(POD, A), other]))]);
        let (attestor, proc) = attestor(data, &kubelet);
        in_cgroup(&proc, &path);
        assert_eq!(
            attest(&attestor).await,
            Ok(expected.iter().map(|s| (*s).to_owned()).collect()),
            "{data} {path}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_container_is_looked_for_until_the_kubelet_knows_it() {
    let found = || Ok(list(&[workload_pod(POD, A)]));
    let not_ready = || Ok(list(&[workload_pod(POD, B)]));
    let gone = (ErrorKind::DeadlineExceeded, "no selectors found after max poll attempts".to_owned());
    let broken = |text: &str| (ErrorKind::Unavailable, text.to_owned());
    let twice = (ErrorKind::Internal, "two pods found with same container Id".to_owned());
    let table = [
        (vec![not_ready(), Err("down"), not_ready(), found()], 4, None),
        (vec![not_ready()], 5, Some(gone.clone())),
        (vec![Ok("{\"items\": null}".to_owned())], 5, Some(gone)),
        (vec![not_ready(), Err("down")], 5, Some(broken("down"))),
        (vec![Ok("x".to_owned())], 5, Some(broken("unable to parse kubelet response: "))),
        (vec![Ok("{\"items\": 3}".to_owned())], 5, Some(broken("invalid kubelet response: "))),
        (vec![Ok("[]".to_owned())], 5, Some(broken("invalid kubelet response: "))),
        (vec![Ok(list(&[workload_pod(POD, A), workload_pod("x", A)]))], 1, Some(twice)),
    ];
    for (answers, asked, expected) in table {
        let kubelet = Given::new(answers.clone());
        let (attestor, proc) = attestor("max_poll_attempts = 5\npoll_retry_interval = \"2s\"", &kubelet);
        in_cgroup(&proc, &format!("/docker/{A}"));
        let start = Instant::now();
        match (attest(&attestor).await, expected) {
            (Ok(found), None) => assert!(found.contains(&"container-name:main".to_owned())),
            (Err(found), Some(expected)) => {
                assert!(found.0 == expected.0 && found.1.starts_with(&expected.1), "{found:?}");
            }
            (found, _) => panic!("{answers:?}: {found:?}"),
        }
        assert_eq!(kubelet.asked(), asked, "{answers:?}");
        let times = kubelet.0.lock().asked_at.clone();
        let apart = |pair: &[Instant]| pair[1] - pair[0] >= Duration::from_secs(2);
        assert!(times.windows(2).all(apart) && start <= times[0], "{times:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn however_many_ask_the_kubelet_is_asked_once() {
    let kubelet = Given::new([Ok(list(&[workload_pod(POD, A)]))]);
    let (attestor, proc) = attestor("", &kubelet);
    in_cgroup(&proc, &format!("/docker/{A}"));
    let attestor = Arc::new(attestor);
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let attestor = Arc::clone(&attestor);
        asking.spawn(async move { attest(&attestor).await });
    }
    while let Some(found) = asking.join_next().await {
        assert!(found.unwrap().is_ok());
    }
    assert_eq!(kubelet.asked(), 1);
    // Until the interval has passed the answer serves others.
    assert!(attest(&attestor).await.is_ok());
    assert_eq!(kubelet.asked(), 1);
    tokio::time::advance(Duration::from_millis(500)).await;
    assert!(attest(&attestor).await.is_ok());
    assert_eq!(kubelet.asked(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_kubelet_that_hangs_delays_only_who_needs_it() {
    let kubelet = Given::new([Ok(list(&[]))]);
    kubelet.0.lock().hangs = true;
    let (attestor, proc) = attestor("", &kubelet);
    in_cgroup(&proc, "/user.slice");
    let start = Instant::now();
    assert_eq!(attest(&attestor).await, Ok(vec![]));
    assert_eq!(start.elapsed(), Duration::ZERO);
    in_cgroup(&proc, &format!("/docker/{A}"));
    let unavailable = (ErrorKind::Unavailable, "the kubelet does not answer".to_owned());
    assert_eq!(attest(&attestor).await, Err(unavailable));
    // The agent waits for 60 s in all, and what other attestors found still counts.
    assert!(start.elapsed() < Duration::from_secs(60));
    assert_eq!(kubelet.asked(), 1);
}

#[tokio::test]
async fn the_kubelet_is_asked_as_its_settings_say() {
    let authority = Authority::new("kubelet-ca").unwrap();
    let other = Authority::new("other").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    let client = authority.issue("agent", &[]).unwrap();
    for (name, text) in [
        ("ca", &*authority.pem()),
        ("other", &*other.pem()),
        ("cert", &*client.certificate),
        ("key", &*client.key),
        ("token", "the-token\n"),
    ] {
        write(name, text);
    }
    let id = A.to_owned();
    let kubelet = |names: &[&str]| {
        let config = tls(&authority.issue("kubelet", names).unwrap(), Some(&authority)).unwrap();
        let id = id.clone();
        Web::start(Some(config), move |request| match request.header("authorization") {
            Some("Bearer the-token") => Answer::Json(200, list(&[workload_pod(POD, &id)])),
            _ if request.has_certificate => Answer::Json(200, list(&[workload_pod(POD, &id)])),
            _ => Answer::Json(401, "Unauthorized".to_owned()),
        })
        .unwrap()
    };
    let (named, unnamed) = (kubelet(&["localhost"]), kubelet(&["node-1"]));
    let open = Web::start(None, |_| Answer::Json(200, list(&[workload_pod(POD, A)]))).unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (ca, token) =
        (format!("kubelet_ca_path = \"{}\"", path("ca")), format!("token_path = \"{}\"", path("token")));
    let pair = format!("certificate_path = \"{}\"\nprivate_key_path = \"{}\"", path("cert"), path("key"));
    let wrong_ca = ca.replace("/ca\"", "/other\"");
    let port = |web: &Web| format!("kubelet_secure_port = {}", web.port());
    let unknown = "tls: failed to verify certificate: x509: certificate signed by unknown authority";
    let table = [
        (format!("kubelet_read_only_port = {}", open.port()), Ok(())),
        (format!("{}\n{ca}\n{token}\nnode_name = \"localhost\"", port(&named)), Ok(())),
        // Without a name any of that authority's certificates will do.
        (format!("{}\n{ca}\n{token}\nnode_name_env = \"SPIRE_TEST_NONE\"", port(&unnamed)), Ok(())),
        (format!("{}\n{ca}\n{pair}", port(&unnamed)), Ok(())),
        (format!("{}\nskip_kubelet_verification = true\n{pair}", port(&unnamed)), Ok(())),
        (
            format!("{}\n{ca}\nuse_anonymous_authentication = true", port(&unnamed)),
            Err("unexpected status code on pods response: 401 Unauthorized"),
        ),
        (format!("{}\n{wrong_ca}\n{token}", port(&unnamed)), Err(unknown)),
        (
            format!("{}\n{ca}\n{token}\nnode_name = \"localhost\"", port(&unnamed)),
            Err("x509: certificate is valid for node-1, not localhost"),
        ),
        (format!("kubelet_read_only_port = {}", named.port()), Err("unable to perform request: ")),
    ];
    for (data, expected) in table {
        let data = format!("{data}\nmax_poll_attempts = 1");
        let settings = settings::read(&configuration(&data)).unwrap();
        let source = Reloading::load(settings.kubelet.clone().unwrap()).await.unwrap();
        let pods = Pods::new(source, Duration::from_millis(1));
        match (pods.newer_than(0).await, expected) {
            (Ok(listing), Ok(())) => assert!(listing.pods.contains_key(POD)),
            (Err(error), Err(text)) => assert!(error.contains(text), "{data}: {error}"),
            (found, _) => panic!("{data}: {found:?}"),
        }
    }
    assert_eq!(open.seen()[0].target, "/pods");

    // A token that was replaced counts from the next reload on.
    let data = format!("{}\n{ca}\n{token}\nreload_interval = \"1ns\"", port(&unnamed));
    let settings = settings::read(&configuration(&data)).unwrap();
    let pods = Pods::new(Reloading::load(settings.kubelet.unwrap()).await.unwrap(), Duration::from_millis(1));
    pods.newer_than(0).await.unwrap();
    write("token", "no-longer");
    assert!(pods.newer_than(1).await.unwrap_err().contains("401"));
}

#[tokio::test]
async fn namespaces_have_labels_too() {
    let folder = spire_testkit::place::folder().unwrap();
    let api = ApiServer::start(Objects::with_agent("t")).unwrap();
    let config = folder.path().join("config");
    api.write_kubeconfig(&config).unwrap();
    for (cached, asked) in [(false, 2), (true, 1)] {
        let kubelet = Given::new([Ok(list(&[workload_pod(POD, A)]))]);
        let (mut attestor, proc) = attestor("enable_namespace_labels = true", &kubelet);
        let before = api.web().seen().len();
        attestor.namespaces = Namespaces::new(Cluster::Kubeconfig(config.clone()), cached);
        in_cgroup(&proc, &format!("/docker/{A}"));
        for _ in 0..2 {
            assert!(attest(&attestor).await.unwrap().contains(&"ns-label:team:t".to_owned()));
        }
        assert_eq!(api.web().seen().len() - before, asked);
    }
    api.change(|cluster| cluster.namespaces.clear());
    let kubelet = Given::new([Ok(list(&[workload_pod(POD, A)]))]);
    let (mut attestor, proc) = attestor("enable_namespace_labels = true", &kubelet);
    attestor.namespaces = Namespaces::new(Cluster::Kubeconfig(config), false);
    in_cgroup(&proc, &format!("/docker/{A}"));
    let message = "unable to get namespace labels for \"default\": unable to get namespace \"default\": namespaces \
                   \"default\" not found";
    assert_eq!(attest(&attestor).await, Err((ErrorKind::Internal, message.to_owned())));
}

#[tokio::test]
async fn without_a_kubelet_processes_are_not_attested() {
    let attestor = build(configuration("disable_kubelet_client = true")).await.unwrap();
    let error = attestor.attest(1).await.unwrap_err();
    assert_eq!((error.kind, &*error.message), (ErrorKind::FailedPrecondition, "kubelet client is disabled"));
}

/// The image of the container counts, also where its selectors do not.
#[tokio::test]
async fn images_are_verified_where_that_is_wanted() {
    let stand_in = SignedImage::new("https://issuer.example.org", "signer@example.org").unwrap();
    let table = [
        ("", stand_in.name.clone(), true, None),
        ("disable_container_selectors = true", stand_in.name.clone(), true, None),
        ("", format!("{}0", stand_in.name), false, Some("failed to parse image reference: could not parse")),
        ("", stand_in.unsigned.clone(), false, Some("failed to verify signatures: no signatures found")),
        // One that is not up yet has no image.
        ("disable_container_selectors = true", String::new(), true, Some("")),
    ];
    for (data, image, is_attested, expected) in table {
        let mut pod = workload_pod(POD, A);
        pod["status"]["containerStatuses"][0]["imageID"] = json!(image);
        let kubelet = Given::new([Ok(list(&[pod]))]);
        let (mut attestor, proc) = attestor(data, &kubelet);
        let block = "sigstore { ignore_attestations = true }";
        let settings =
            settings::read(&configuration(&format!("{block}\nkubelet_read_only_port = 1"))).unwrap();
        let environment = stand_in.environment();
        attestor.verifier =
            Some(Verifier::with("k8s", settings.sigstore.unwrap(), Arc::new(environment), None).unwrap());
        let id = if image.is_empty() { A.replace('0', "1") } else { A.to_owned() };
        in_cgroup(&proc, &format!("/kubepods/pod{POD}/{id}"));
        match attest(&attestor).await {
            Ok(found) => {
                let signed = found.contains(&"image-signature:verified".to_owned());
                assert!(is_attested && signed == expected.is_none(), "{image} {found:?}");
            }
            Err((kind, message)) => {
                let start = format!("error verifying sigstore image signature for imageID {image}: ");
                let reason = message.strip_prefix(&start).unwrap_or_else(|| panic!("{message}"));
                assert!(!is_attested && reason.starts_with(expected.unwrap()), "{message}");
                assert_eq!(kind, ErrorKind::Internal);
            }
        }
    }
}
