//! The demo of 2019 (zlabjp/spiffejp-demo) with its selectors: a node by its cluster, real Envoys in control groups of pods that
//! are known by their labels, SVIDs for 30 s.

use spire_testkit::wait;

use super::{AGENT_ID, Demo, Workload, attested, demo};
use crate::harness::cgroup::Hierarchy;
use crate::harness::envoy::{Envoy, Plan, program};
use crate::harness::{Outcome, SOON, Sides};
use crate::sds;

const NODE: &str = "spiffe://example.org/node";
const API: &str = "spiffe://example.org/api";
const VALID: &str = "spiffe://example.org/valid-api-client";
const INVALID: &str = "spiffe://example.org/invalid-api-client";

impl Demo {
    /// The Envoy of a pod, with the names that the demo gives to SDS.
    fn envoy(
        &self,
        workload: &Workload,
        certificate: &str,
        peer: &str,
        calls: Option<u16>,
    ) -> Result<Envoy, libtest_mimic::Failed> {
        let path = program(&self.site, workload.name)?;
        let plan = Plan {
            name: workload.name,
            certificate,
            authorities: "spiffe://example.org",
            peer,
            calls,
            metadata: serde_json::json!({}),
        };
        Ok(Envoy::start_by(&self.site, &workload.group.command(&path), &plan)?)
    }
}

pub(super) fn demo_of_2019() -> Outcome {
    let pod = |name| Workload::new(name, Hierarchy::Controller);
    let [api, valid, invalid] = [pod("api")?, pod("valid-api-client")?, pod("invalid-api-client")?];
    let mut demo = demo(Sides::Ours, [&api, &valid, &invalid].map(Workload::pod).to_vec(), false)?;
    // Pods are told apart by the kubelet; the digest of a large program takes long.
    demo.site.agent.unix.push_str("\n            workload_size_limit = -1");
    let site = &demo.site;
    let _server = site.start_server()?;
    let agent = site.start_agent(&[])?;
    attested(&agent)?;

    let node = ["entry", "create", "-spiffeID", NODE, "-selector", "k8s_psat:cluster:demo-cluster", "-node"];
    assert_eq!(site.cli(&node)?.field("Parent ID")?, "spiffe://example.org/spire/server");
    for (id, workload) in [(API, &api), (VALID, &valid), (INVALID, &invalid)] {
        let selector = format!("k8s:pod-label:app:{}", workload.name);
        let create =
            ["entry", "create", "-parentID", NODE, "-spiffeID", id, "-selector", &selector, "-ttl", "30"];
        let created = site.cli(&create)?;
        assert_eq!((created.field("X509-SVID TTL")?, created.field("SPIFFE ID")?), ("30".into(), id.into()));
    }
    let shown = site.cli(&["entry", "show"])?.stdout;
    assert!(shown.starts_with("Found 4 entries\n"), "{shown}");
    let ids: Vec<&str> = shown.lines().filter_map(|line| line.strip_prefix("SPIFFE ID ")).collect();
    let ids: Vec<&str> = ids.into_iter().filter_map(|id| id.split(": ").nth(1)).collect();
    assert_eq!(ids, [API, INVALID, NODE, VALID]);

    let service = demo.envoy(&api, API, VALID, None)?;
    let client = demo.envoy(&valid, VALID, API, Some(service.port))?;
    let stranger = demo.envoy(&invalid, INVALID, API, Some(service.port))?;
    assert_eq!(client.wait_answer(200, "")?, "ok\n");
    service.daemon.wait_for(&["answered 200 By=spiffe://example.org/api;", &format!("URI={VALID}")], SOON)?;
    assert_eq!((service.certificate()?.1.as_str(), client.certificate()?.1.as_str()), (API, VALID));
    wait::until("certificate of the invalid client", SOON * 2, || {
        (stranger.certificate().ok()?.1 == INVALID).then_some(())
    })?;
    stranger.wait_answer(503, "upstream connect error")?;
    stranger.daemon.wait_for(&["answered 503", "SSLV3_ALERT_CERTIFICATE_UNKNOWN"], SOON)?;
    sds::goes_on(&client, [&service, &client])?;
    agent.wait_for(&["Renewing X509-SVID", API], SOON)?;
    assert_eq!(site.attested_agent()?["attestation_type"], "k8s_psat");
    assert!(agent.lines().iter().any(|line| line.contains(AGENT_ID)));
    Ok(())
}
