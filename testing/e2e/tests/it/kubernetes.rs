//! Nodes and workloads of a Kubernetes cluster, whose API server and kubelet are stand-ins on this machine that speak the
//! real ones' HTTP and TLS. Workloads run in control groups named as those of pods.

mod envoys;

use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};
use spire_testkit::authority::Authority;
use spire_testkit::kubernetes::{ApiServer, Cluster};
use spire_testkit::web::{Answer, Web, tls};
use spire_testkit::{Daemon, Result, Run, place, wait};

use crate::harness::cgroup::{Cgroup, Hierarchy};
use crate::harness::peer::Peer;
use crate::harness::site::text;
use crate::harness::{Case, Need, Outcome, SOON, Sides, Site, svid};

pub(crate) fn cases() -> Vec<Case> {
    use Need::{Cgroups, Ours, Reference};
    vec![
        Case {
            name: "kubernetes::registered_as_in_2019_with_cgroup_v1",
            needs: &[Cgroups, Ours],
            run: || registered(Sides::Ours, Hierarchy::Controller),
        },
        Case {
            name: "kubernetes::registered_as_in_2019_with_cgroup_v2",
            needs: &[Cgroups, Ours],
            run: || registered(Sides::Ours, Hierarchy::Unified),
        },
        Case {
            name: "kubernetes::our_agent_on_their_server",
            needs: &[Cgroups, Reference],
            run: || registered(Sides::TheirServer, Hierarchy::Controller),
        },
        Case {
            name: "kubernetes::their_agent_on_our_server",
            needs: &[Cgroups, Reference],
            run: || registered(Sides::TheirAgent, Hierarchy::Controller),
        },
        Case {
            name: "kubernetes::envoys_of_pods",
            needs: &[Cgroups, Need::Peer(Peer::Envoy)],
            run: envoys::demo_of_2019,
        },
        Case { name: "kubernetes::a_token_that_is_not_good_is_refused", needs: &[], run: refused },
        Case { name: "kubernetes::a_kubelet_that_hangs", needs: &[Cgroups], run: hanging },
    ]
}

static NEXT: AtomicU32 = AtomicU32::new(1);

/// A container of a pod; its ID and the pod's UID are of this test alone.
struct Workload {
    name: &'static str,
    pod_uid: String,
    container_id: String,
    group: Cgroup,
}

impl Workload {
    fn new(name: &'static str, hierarchy: Hierarchy) -> Result<Self> {
        let number = (u64::from(std::process::id()) << 16) | u64::from(NEXT.fetch_add(1, Ordering::Relaxed));
        let pod_uid = format!("2c48913c-b29f-11e7-9350-{number:012x}");
        let container_id = format!("{number:064x}");
        let path = format!("spire-e2e-kubepods/pod{pod_uid}/{container_id}");
        Ok(Self { name, pod_uid, container_id, group: Cgroup::new(hierarchy, &path)? })
    }

    /// The pod, as a kubelet has it.
    fn pod(&self) -> Value {
        let Self { name, pod_uid, container_id, .. } = self;
        json!({
            "metadata": {"name": format!("{name}-0"), "namespace": "default", "uid": pod_uid, "labels": {"app": name}},
            "spec": {"nodeName": "node-1", "serviceAccountName": "default"},
            "status": {"containerStatuses": [{
                "name": name, "image": format!("{name}:1"), "imageID": format!("{name}@sha256:0"),
                "containerID": format!("containerd://{container_id}")}]},
        })
    }

    /// What this workload fetches from the agent, as JSON.
    fn fetch(&self, site: &Site) -> Result<Value> {
        let command = self.group.command(&site.agent_programs.agent());
        let socket = site.agent.socket();
        let fetch =
            ["api", "fetch", "x509", "-output", "json", "-timeout", "40s", "-socketPath", text(&socket)];
        let output =
            Run::new(&command[0]).args(&command[1..]).args(&fetch).within(&site.path("")).success()?;
        svid::json(&output.stdout)
    }
}

/// Server and agent of one cluster, and what they ask.
struct Demo {
    site: Site,
    api: ApiServer,
    kubelet: Web,
}

const AGENT_ID: &str = "spiffe://example.org/spire/agent/k8s_psat/demo-cluster/node-uid";

fn demo(sides: Sides, pods: Vec<Value>, hangs: bool) -> Result<Demo> {
    let mut site = Site::of(sides)?;
    let api = ApiServer::start(Cluster::with_agent("projected"))?;
    api.write_kubeconfig(&site.path("kubeconfig"))?;
    let authority = Authority::new("kubelet")?;
    let config = tls(&authority.issue("node-1", &["node-1"])?, None)?;
    let list = json!({"kind": "PodList", "apiVersion": "v1", "items": pods}).to_string();
    let kubelet = Web::start(Some(config), move |request| match request.header("authorization") {
        _ if hangs => Answer::Hang,
        Some("Bearer for-the-kubelet") => Answer::Json(200, list.clone()),
        _ => Answer::Json(401, "Unauthorized".to_owned()),
    })?;
    for (name, text) in
        [("token", "projected"), ("kubelet-token", "for-the-kubelet\n"), ("kubelet-ca.pem", &authority.pem())]
    {
        place::write(&site.path(name), text)?;
    }
    let folder = site.path("");
    let path = |name: &str| text(&folder.join(name)).to_owned();
    // The key of 2019, unless another server has to read it.
    let key = if sides == Sides::TheirServer { "allow_list" } else { "whitelist" };
    site.server.plugins = format!(
        "    NodeAttestor \"k8s_psat\" {{\n        plugin_data {{\n            clusters = {{ \"demo-cluster\" = {{ \
         service_account_{key} = [\"spire:spire-agent\"], kube_config_file = \"{}\" }} }}\n        }}\n    }}\n",
        path("kubeconfig")
    );
    let psat = format!("cluster = \"demo-cluster\"\ntoken_path = \"{}\"\n", path("token"));
    site.agent.attestor = ("k8s_psat", psat);
    site.agent.plugins = format!(
        "    WorkloadAttestor \"k8s\" {{\n        plugin_data {{\n            kubelet_secure_port = {}\n            \
         kubelet_ca_path = \"{}\"\n            token_path = \"{}\"\n            node_name_env = \
         \"SPIRE_E2E_NO_SUCH_NAME\"\n        }}\n    }}\n",
        kubelet.port(),
        path("kubelet-ca.pem"),
        path("kubelet-token"),
    );
    Ok(Demo { site, api, kubelet })
}

fn attested(agent: &Daemon) -> Result<String> {
    agent.wait_for(&["Node attestation was successful", AGENT_ID], SOON)
}

/// The walkthrough of 2019: a node by its cluster, three workloads by the labels of their pods, SVIDs for 30 s.
fn registered(sides: Sides, hierarchy: Hierarchy) -> Outcome {
    let workloads = [
        Workload::new("api", hierarchy)?,
        Workload::new("valid-api-client", hierarchy)?,
        Workload::new("invalid-api-client", hierarchy)?,
    ];
    let demo = demo(sides, workloads.iter().map(Workload::pod).collect(), false)?;
    let site = &demo.site;
    let server = site.start_server()?;
    let agent = site.start_agent(&[])?;
    attested(&agent)?;
    server
        .wait_for(&["Agent attestation request completed", AGENT_ID, "node_attestor_type=k8s_psat"], SOON)?;
    let shown = site.attested_agent()?;
    assert_eq!(shown["attestation_type"], "k8s_psat");
    assert_eq!(shown["can_reattest"], true);
    let selectors = site.cli(&["agent", "show", "-spiffeID", AGENT_ID])?.stdout;
    for selector in
        ["cluster:demo-cluster", "agent_ns:spire", "agent_sa:spire-agent", "agent_node_name:node-1"]
    {
        assert!(selectors.contains(&format!("k8s_psat:{selector}\n")), "{selector}: {selectors}");
    }
    let asked: Vec<String> = demo.api.web().seen().iter().map(|seen| seen.target.clone()).collect();
    assert_eq!(asked.len(), 3, "{asked:?}");

    let node = "spiffe://example.org/node";
    let created = site.cli(&[
        "entry",
        "create",
        "-spiffeID",
        node,
        "-selector",
        "k8s_psat:cluster:demo-cluster",
        "-node",
    ])?;
    assert_eq!(created.field("Parent ID")?, "spiffe://example.org/spire/server");
    let ttl = if sides == Sides::TheirServer { "-x509SVIDTTL" } else { "-ttl" };
    for workload in &workloads {
        let (id, selector) = (
            format!("spiffe://example.org/{}", workload.name),
            format!("k8s:pod-label:app:{}", workload.name),
        );
        let create =
            ["entry", "create", "-parentID", node, "-spiffeID", &id, "-selector", &selector, ttl, "30"];
        assert_eq!(site.cli(&create)?.field("X509-SVID TTL")?, "30");
    }
    for workload in &workloads {
        let id = format!("spiffe://example.org/{}", workload.name);
        let svids = wait::until(&format!("an identity of {}", workload.name), SOON, || {
            let fetched = workload.fetch(site).ok()?;
            fetched["svids"].as_array().filter(|svids| !svids.is_empty()).cloned()
        })
        .map_err(|error| agent.error(&error.to_string()))?;
        // Nobody has what is another's.
        assert_eq!(svids.iter().map(|svid| &svid["spiffe_id"]).collect::<Vec<_>>(), [&json!(id)]);
    }
    // The token of the pod may be renewed; whoever is evicted comes again by it.
    let mark = agent.mark();
    site.cli(&["agent", "evict", "-spiffeID", AGENT_ID])?;
    agent.wait_after(mark, &["Successfully reattested node", AGENT_ID], SOON)?;
    Ok(())
}

fn refused() -> Outcome {
    let demo = demo(Sides::Ours, Vec::new(), false)?;
    let server = demo.site.start_server()?;
    place::write(&demo.site.path("token"), "forged")?;
    let agent = demo.site.spawn_agent(&[])?;
    let why = "unable to validate token with TokenReview API for cluster \\\"demo-cluster\\\": token review API response \
               contains an error: invalid bearer token";
    server.wait_for(&["level=error", why], SOON)?;
    agent.wait_for(&["nodeattestor(k8s_psat): unable to validate token"], SOON)?;
    // The API server could not tell, so the agent tries again, with the token of then.
    place::write(&demo.site.path("token"), "projected")?;
    attested(&agent)?;
    // The token is nobody's business.
    assert!(!server.lines().into_iter().chain(agent.lines()).any(|line| line.contains("forged")));
    Ok(())
}

/// Workloads outside containers are served meanwhile.
fn hanging() -> Outcome {
    let workload = Workload::new("api", Hierarchy::Controller)?;
    let demo = demo(Sides::Ours, vec![workload.pod()], true)?;
    let site = &demo.site;
    let _server = site.start_server()?;
    let agent = site.start_agent(&[])?;
    attested(&agent)?;
    site.entry(AGENT_ID, "spiffe://example.org/w", &crate::harness::site::own_uid(), &[])?;
    let command = workload.group.command(&site.agent_programs.agent());
    let socket = site.agent.socket();
    let fetch = ["api", "fetch", "x509", "-timeout", "100s", "-socketPath", text(&socket)];
    let waiting = site.spawn("waiting", &command, &fetch)?;
    demo.kubelet.wait_seen(1, SOON)?;
    site.wait_identities(&["spiffe://example.org/w"])?;
    drop(waiting);
    Ok(())
}
