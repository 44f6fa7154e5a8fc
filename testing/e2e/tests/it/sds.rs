//! Envoys that get their secrets from the agent: who may call whom, across renewals and trust domains.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::json;
use spire_testkit::{Error, wait};

use crate::federation::{ABROAD, Domain, HERE};
use crate::harness::envoy::{Envoy, Plan, program};
use crate::harness::http;
use crate::harness::peer::Peer;
use crate::harness::site::text;
use crate::harness::{Case, Need, Outcome, SOON, Site};

pub(crate) fn cases() -> Vec<Case> {
    const ENVOY: &[Need] = &[Need::Peer(Peer::Envoy)];
    vec![
        Case { name: "sds::rotation", needs: ENVOY, run: rotation },
        Case { name: "sds::federated", needs: ENVOY, run: federated },
    ]
}

const NODE: &str = "spiffe://example.org/node";
const API: &str = "spiffe://example.org/api";
const VALID: &str = "spiffe://example.org/valid-api-client";
const INVALID: &str = "spiffe://example.org/invalid-api-client";

/// For how many seconds at least requests go on; without it until everything was renewed twice.
const SECONDS: &str = "SPIRE_E2E_ENVOY_SECONDS";

/// Two renewals of SVIDs that live 30 seconds, and what a busy machine adds.
const RENEWED: Duration = Duration::from_secs(120);

/// A service that lets in one client of two, all behind Envoys whose certificates live 30 seconds; the demo of
/// zlabjp/spiffejp-demo on one machine.
fn rotation() -> Outcome {
    let mut site = Site::new()?;
    // Programs are told apart by their paths; the digest of a large one takes long.
    site.agent.unix.push_str("\n            workload_size_limit = -1");
    let metrics = spire_testkit::place::port()?;
    site.agent.sections = format!(
        "telemetry {{\n    Prometheus {{\n        host = \"127.0.0.1\"\n        port = {metrics}\n    }}\n}}\n"
    );
    let _server = site.start_server()?;
    let agent = site.join(NODE)?;
    let prepare = |name: &str, id: &str| -> Result<_, Error> {
        let path = program(&site, name)?;
        Ok((format!("unix:path:{}", text(&path)), path, id.to_owned()))
    };
    let api = prepare("api", API)?;
    let valid = prepare("valid-api-client", VALID)?;
    let invalid = prepare("invalid-api-client", INVALID)?;
    let register =
        |(selector, _, id): &(String, _, String)| site.entry(NODE, id, selector, &["-x509SVIDTTL", "30"]);
    register(&api)?;
    register(&valid)?;

    let service = Plan {
        name: "api",
        certificate: API,
        authorities: "spiffe://example.org",
        peer: VALID,
        calls: None,
        metadata: json!({}),
    };
    let service = Envoy::start(&site, &api.1, &service)?;
    let caller = |name, certificate, authorities, metadata| Plan {
        name,
        certificate,
        authorities,
        peer: API,
        calls: Some(service.port),
        metadata,
    };
    // Plain authorities, since it asks for that; and an Envoy that starts before its entry is known.
    let metadata = json!({"disable_spiffe_cert_validation": true});
    let stranger =
        Envoy::start(&site, &invalid.1, &caller("invalid-api-client", INVALID, "ROOTCA", metadata))?;
    let unknown = format!("workload is not authorized for the requested identities [\\\"{INVALID}\\\"]");
    agent.wait_for(
        &["level=error", "Error building stream secrets response", "InvalidArgument", &unknown],
        SOON,
    )?;
    register(&invalid)?;
    let client = Envoy::start(&site, &valid.1, &caller("valid-api-client", "default", "ALL", json!({})))?;

    assert_eq!(client.wait_answer(200, "")?, "ok\n");
    service.daemon.wait_for(&["answered 200 By=spiffe://example.org/api;", &format!("URI={VALID}")], SOON)?;
    stranger.wait_answer(503, "upstream connect error")?;
    wait::until("certificate of the one that was early", SOON * 2, || {
        (stranger.certificate().ok()?.1 == INVALID).then_some(())
    })?;
    stranger.wait_answer(503, "upstream connect error")?;
    stranger.daemon.wait_for(&["answered 503", "SSLV3_ALERT_CERTIFICATE_UNKNOWN"], SOON)?;

    goes_on(&client, [&service, &client])?;
    stranger.wait_answer(503, "upstream connect error")?;
    for envoy in [&service, &client, &stranger] {
        let stats = envoy.admin("/stats?filter=sds.*update_rejected")?;
        let rejected: Vec<&str> = stats.lines().filter(|line| !line.ends_with(": 0")).collect();
        assert!(stats.contains("update_rejected") && rejected.is_empty(), "{stats}");
    }
    agent
        .wait_for(&["Sending StreamSecrets response", "count=1", "service=SDS.v3", "version_info=3"], SOON)?;
    let names = format!("resource_names=\"[{API}]\"");
    agent.wait_for(&["Received StreamSecrets request", &names, "version_info=3"], SOON)?;
    let (_, text) = http::get_text(metrics, "/metrics").ok_or("no metrics")?;
    // Each Envoy has a stream for its certificate and one for its authorities.
    let open = text.lines().find(|line| line.starts_with("spire_agent_sds_api_connections"));
    assert!(open.is_some_and(|line| line.ends_with(" 6")), "{open:?}");
    assert!(text.contains("rpc_sds_v3_stream_secrets"), "{text}");
    Ok(())
}

/// Requests of new connections, none of which fails, until both certificates were renewed twice and the time is over.
pub(crate) fn goes_on(client: &Envoy, both: [&Envoy; 2]) -> Outcome {
    let seconds = std::env::var(SECONDS).ok().and_then(|text| text.parse().ok()).unwrap_or(0);
    let at_least = Duration::from_secs(seconds);
    let start = Instant::now();
    let mut serials = [BTreeSet::new(), BTreeSet::new()];
    let mut requests = 0;
    let mut failed = Vec::new();
    let renewed = wait::until("two renewals on both sides", RENEWED + at_least, || {
        let answer = client.get();
        requests += 1;
        if answer.as_ref().is_none_or(|(status, body)| *status != 200 || body != "ok\n") {
            failed.push((start.elapsed(), answer));
        }
        if requests % 10 == 0 {
            for (seen, envoy) in serials.iter_mut().zip(both) {
                seen.extend(envoy.certificate().ok().map(|(serial, _)| serial));
            }
        }
        (serials.iter().all(|seen| seen.len() > 2) && start.elapsed() >= at_least).then_some(())
    });
    assert!(failed.is_empty(), "of {requests} requests failed: {failed:?}");
    Ok(renewed?)
}

/// A service here and a client abroad, each of which knows its own authorities for the other's trust domain.
fn federated() -> Outcome {
    let mut domains = [Domain::without_endpoint(HERE)?, Domain::without_endpoint(ABROAD)?];
    for domain in &mut domains {
        domain.site.agent.unix.push_str("\n            workload_size_limit = -1");
    }
    let [here, abroad] = &domains;
    let _servers = (here.site.start_server()?, abroad.site.start_server()?);
    here.learn(abroad)?;
    abroad.learn(here)?;
    let _agents = (here.join()?, abroad.join()?);
    let start =
        |domain: &Domain, other: Option<&Domain>, plan: Plan<'_>| -> Result<Envoy, libtest_mimic::Failed> {
            let path = program(&domain.site, plan.name)?;
            let selector = format!("unix:path:{}", text(&path));
            match other {
                Some(other) => domain.federated_entry(plan.name, &selector, other)?,
                None => domain.site.entry(&domain.id("node"), &domain.id(plan.name), &selector, &[])?,
            };
            Ok(Envoy::start(&domain.site, &path, &plan)?)
        };
    let (service_id, client_id) = (here.id("service"), abroad.id("client"));
    let plan = |name, peer, calls| Plan {
        name,
        certificate: "default",
        authorities: "ALL",
        peer,
        calls,
        metadata: json!({}),
    };
    let service = start(here, Some(abroad), plan("service", &client_id, None))?;
    let client = start(abroad, Some(here), plan("client", &service_id, Some(service.port)))?;
    assert_eq!(client.wait_answer(200, "")?, "ok\n");
    service
        .daemon
        .wait_for(&["answered 200 By=spiffe://example.org/service;", &format!("URI={client_id}")], SOON)?;
    // One that trusts its own domain only does not know the service.
    let lonely = start(abroad, None, plan("lonely", &service_id, Some(service.port)))?;
    wait::until("refusal by the one that knows no other trust domain", SOON * 2, || {
        lonely.get()?;
        lonely.daemon.lines().iter().any(|line| line.contains("CERTIFICATE_VERIFY_FAILED")).then_some(())
    })?;
    Ok(())
}
