//! Metrics to their real readers, health over HTTP, profiles, and names beside the reference's.

mod wide;

use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use spire_testkit::{Daemon, Error, Result, Run, place, wait};

use crate::harness::peer::Peer;
use crate::harness::programs::{self, Programs};
use crate::harness::site::own_uid;
use crate::harness::{Case, Need, Outcome, SOON, Site, http};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case {
            name: "telemetry::prometheus_scrapes_server_and_agent_with_tls_and_without",
            needs: &[Need::Prometheus, Need::Openssl],
            run: scraped,
        },
        Case { name: "telemetry::statsd_and_dogstatsd_get_lines", needs: &[], run: datagrams },
        Case { name: "telemetry::what_users_do_is_counted", needs: &[], run: counted },
        Case {
            name: "telemetry::names_are_those_of_the_reference",
            needs: &[Need::Reference],
            run: same_names,
        },
        Case {
            name: "telemetry::admins_stores_and_federation_are_counted",
            needs: &[Need::Ours],
            run: wide::counted,
        },
        Case {
            name: "telemetry::names_of_admins_stores_and_federation_are_those_of_the_reference",
            needs: &[Need::Reference, Need::Peer(Peer::GoPlugins)],
            run: wide::same_names,
        },
        Case { name: "telemetry::a_signal_dumps_what_is_in_memory", needs: &[], run: in_memory },
        Case { name: "telemetry::health_over_http", needs: &[], run: health },
        Case {
            name: "telemetry::a_cpu_profile_is_read_by_pprof",
            needs: &[Need::Ours, Need::Go],
            run: cpu_profile,
        },
    ]
}

const AGENT: &str = "spiffe://example.org/node";

pub(crate) fn prometheus_section(port: u16, more: &str) -> String {
    format!("telemetry {{\n Prometheus {{\n  host = \"127.0.0.1\"\n  port = {port}\n{more} }}\n}}\n")
}

/// What users do, so that the metrics of it exist.
fn script(site: &Site) -> Result<()> {
    site.entry(AGENT, "spiffe://example.org/w", &own_uid(), &[])?;
    site.wait_identities(&["spiffe://example.org/w"])?;
    site.workload(&["api", "fetch", "jwt", "-audience", "x"]).success()?;
    site.cli(&["bundle", "show"])?;
    site.cli(&["entry", "show"])?;
    site.cli(&["agent", "list"])?;
    site.cli(&["entry", "count"])?;
    site.cli(&["x509", "mint", "-spiffeID", "spiffe://example.org/m"])?;
    site.cli(&["jwt", "mint", "-spiffeID", "spiffe://example.org/m", "-audience", "x"])?;
    site.cli(&["healthcheck"])?;
    Ok(())
}

/// An authority, and a certificate for localhost that it signed, for both ends.
fn make_certificates(site: &Site) -> Result<()> {
    const EC: [&str; 5] = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    let ca: &[&str] = &["-x509", "-days", "2", "-subj", "/CN=ca", "-keyout", "ca.key", "-out", "ca.pem"];
    let name = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"];
    let request: &[&str] = &[&name[..], &["-keyout", "tls.key", "-out", "tls.csr"]].concat();
    for more in [ca, request] {
        Run::new("openssl").args(&["req"]).args(&EC).args(more).within(&site.path("")).success()?;
    }
    let sign = ["x509", "-req", "-in", "tls.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"];
    let out = ["-days", "2", "-copy_extensions", "copy", "-out", "tls.pem"];
    Run::new("openssl").args(&sign).args(&out).within(&site.path("")).success()?;
    Ok(())
}

fn scraped() -> Outcome {
    let mut site = Site::new()?;
    let (server_port, agent_port, own_port) = (place::port()?, place::port()?, place::port()?);
    make_certificates(&site)?;
    let file = |name: &str| site.path(name).display().to_string();
    let (ca, cert, key) = (file("ca.pem"), file("tls.pem"), file("tls.key"));
    let tls = format!(
        "  tls {{\n   cert_file = \"{cert}\"\n   key_file = \"{key}\"\n   client_ca_file = \"{ca}\"\n  }}\n"
    );
    let scrape_tls = format!(
        "scheme: https, tls_config: {{ca_file: {ca}, cert_file: {cert}, key_file: {key}, server_name: localhost}}"
    );
    site.server.sections = prometheus_section(server_port, &tls);
    site.agent.sections = prometheus_section(agent_port, "");
    let _server = site.start_server()?;
    let _agent = site.join(AGENT)?;
    script(&site)?;

    let job = |name: &str, more: &str, port: u16| {
        format!("- {{job_name: {name}, {more} static_configs: [{{targets: ['127.0.0.1:{port}']}}]}}\n")
    };
    let jobs = job("server", &format!("{scrape_tls},"), server_port) + &job("agent", "", agent_port);
    let config = format!("global: {{scrape_interval: 1s}}\nscrape_configs:\n{jobs}");
    place::write(&site.path("prometheus.yml"), &config)?;
    let listen = format!("--web.listen-address=127.0.0.1:{own_port}");
    let args = ["--config.file=prometheus.yml", "--storage.tsdb.path=tsdb", &listen];
    let _prometheus = Daemon::start("prometheus", "prometheus".as_ref(), &args, &site.path(""))?;
    for (job, query) in [
        ("server", "spire_server_rpc_svid_v1_svid_batch_new_x509svid%7Bstatus=%22OK%22%7D"),
        ("server", "process_resident_memory_bytes%7Bjob=%22server%22%7D"),
        ("agent", "spire_agent_rpc_workload_api_fetch_x509svid_elapsed_time_count"),
    ] {
        let found = wait::until(&format!("{query} in Prometheus"), SOON, || {
            let (status, body) = http::get_text(own_port, &format!("/api/v1/query?query={query}"))?;
            let answer: Value = serde_json::from_str(&body).ok()?;
            let results = answer["data"]["result"].as_array()?.clone();
            (status == 200 && !results.is_empty()).then(|| results[0].clone())
        })?;
        assert_eq!(found["metric"]["job"], job, "{found}");
        assert!(found["value"][1].as_str().and_then(|v| v.parse::<f64>().ok()).is_some_and(|v| v >= 1.0));
    }
    // The endpoint with a client CA lets nobody in who shows nothing.
    let address = format!("127.0.0.1:{server_port}");
    let refused =
        Run::new("openssl").args(&["s_client", "-connect", &address, "-tls1_2", "-CAfile", "ca.pem"]);
    let refused = refused.within(&site.path("")).output()?;
    assert_ne!(refused.code, 0, "{refused}");
    Ok(())
}

fn datagrams() -> Outcome {
    let mut site = Site::new()?;
    let (statsd, dog) = (listener()?, listener()?);
    site.server.sections = format!(
        "telemetry {{\n Statsd = [{{ address = \"{}\" }}]\n DogStatsd = [{{ address = \"{}\" }}]\n \
         EnableHostnameLabel = false\n EnableTrustDomainLabel = true\n}}\n",
        statsd.local_addr()?,
        dog.local_addr()?
    );
    let _server = site.start_server()?;
    site.cli(&["bundle", "show"])?;
    received(&statsd, "spire_server.rpc.bundle.v1.bundle.get_bundle.OK.example_org:1.000000|c\n")?;
    let line = "spire_server.rpc.bundle.v1.bundle.get_bundle:1|c|#status:OK,trust_domain:example_org\n";
    received(&dog, line)?;
    Ok(())
}

fn listener() -> Result<UdpSocket> {
    let doing = |error| Error::doing("a UDP listener", error);
    let socket = UdpSocket::bind("127.0.0.1:0").map_err(doing)?;
    socket.set_read_timeout(Some(Duration::from_millis(100))).map_err(doing)?;
    Ok(socket)
}

fn received(socket: &UdpSocket, line: &str) -> Result<()> {
    let mut buffer = [0; 4096];
    let mut seen = String::new();
    wait::until(&format!("{line:?}"), SOON, || {
        if let Ok(length) = socket.recv(&mut buffer) {
            seen.push_str(&String::from_utf8_lossy(&buffer[..length]));
        }
        seen.contains(line).then_some(())
    })
}

/// Those of a server, and those of an agent.
type Names = (BTreeSet<String>, BTreeSet<String>);

/// Metrics with the names of their labels, as `name{a,b}`.
pub(crate) fn names(port: u16) -> Option<BTreeSet<String>> {
    let (_, text) = http::get_text(port, "/metrics")?;
    let lines = text.lines().filter(|line| line.starts_with("spire_"));
    Some(lines.map(shape).collect())
}

/// `name{a="x",b="y"} 1` without its values and without what tells parts of a summary apart.
fn shape(line: &str) -> String {
    let (name, rest) = line.split_once(['{', ' ']).unwrap_or((line, ""));
    let name = name.trim_end_matches("_sum").trim_end_matches("_count");
    let labels = rest.split_once('}').map_or("", |(labels, _)| labels);
    let mut labels: Vec<&str> = labels
        .split("\",")
        .filter_map(|label| label.split_once("=\"").map(|(name, _)| name))
        .filter(|name| *name != "quantile")
        .collect();
    labels.sort_unstable();
    format!("{name}{{{}}}", labels.join(","))
}

/// What the script makes a server emit, with the names of labels beside `host`.
const SERVER: &[&str] = &[
    "ca_manager_jwt_key_prepare status",
    "ca_manager_x509_ca_activate",
    "ca_manager_x509_ca_prepare status",
    "datastore_bundle_append status",
    "datastore_bundle_fetch status",
    "datastore_ca_journal_set status",
    "datastore_join_token_create status",
    "datastore_join_token_delete status",
    "datastore_join_token_fetch status",
    "datastore_node_create status",
    "datastore_node_event_list status",
    "datastore_node_fetch status",
    "datastore_node_list status",
    "datastore_node_selectors_set status",
    "datastore_registration_entry_count status",
    "datastore_registration_entry_create status",
    "datastore_registration_entry_event_list status",
    "datastore_registration_entry_list status",
    "entry_entries_by_entryid_cache_count",
    "entry_nodealiases_by_entryid_cache_count",
    "entry_nodealiases_by_selector_cache_count",
    "entry_skipped_entry_event_ids_count",
    "manager_jwt_key_activate",
    "manager_x509_ca_rotate_expiration trust_domain_id",
    "manager_x509_ca_rotate_ttl trust_domain_id",
    "node_agents_by_expiresat_cache_count",
    "node_agents_by_id_cache_count",
    "node_skipped_node_event_ids_count",
    "rateLimit_agent_v1_agent_post_status status",
    "rateLimit_svid_v1_svid_batch_new_x509svid status",
    "rpc_agent_v1_agent_attest_agent status",
    "rpc_agent_v1_agent_create_join_token status",
    "rpc_agent_v1_agent_list_agents status",
    "rpc_agent_v1_agent_post_status status",
    "rpc_bundle_v1_bundle_get_bundle status",
    "rpc_entry_v1_entry_batch_create_entry status",
    "rpc_entry_v1_entry_count_entries status",
    "rpc_entry_v1_entry_list_entries status",
    "rpc_entry_v1_entry_sync_authorized_entries status",
    "rpc_health_check status",
    "rpc_svid_v1_svid_batch_new_x509svid status",
    "rpc_svid_v1_svid_mint_jwtsvid status",
    "rpc_svid_v1_svid_mint_x509svid status",
    "rpc_svid_v1_svid_new_jwtsvid status",
    "server_ca_sign_jwt_svid",
    "server_ca_sign_x509_svid",
    "server_key_manager_generate_key status",
    "server_key_manager_get_public_keys status",
    "server_key_manager_sign_data status",
    "started trust_domain_id,version",
    "svid_rotate status",
    "uptime_in_ms",
];

/// As [`SERVER`], of an agent.
const AGENT_METRICS: &[&str] = &[
    "agent_key_manager_generate_key status",
    "agent_key_manager_get_keys status",
    "bootstrap_attempts mode",
    "bootstrap_seconds mode",
    "bootstrapped",
    "jwt_svid_cache_size",
    "lru_cache_entry_add",
    "lru_cache_record_map_size svid_type",
    "lru_cache_svid_map_size svid_type",
    "manager_sync_fetch_entries_updates status",
    "manager_sync_fetch_svids_updates status",
    "node_attestor_new_svid attestor,status",
    "rpc_workload_api_fetch_jwtsvid status",
    "rpc_workload_api_fetch_x509svid status",
    "started trust_domain_id,version",
    "sync_bundles_total",
    "sync_entries_dropped",
    "sync_entries_missing",
    "sync_entries_stale",
    "sync_entries_total",
    "uptime_in_ms",
    "workload_api_connection",
    "workload_api_connections",
    "workload_api_discovered_selectors",
    "workload_api_workload_attestation status",
    "workload_api_workload_attestor attestor,status",
];

fn counted() -> Outcome {
    let missing = missing_of(&names_of(programs::under_test())?, SERVER, AGENT_METRICS);
    if missing.is_empty() { Ok(()) } else { Err(missing.join("\n").into()) }
}

/// What of these metrics, each with its labels, a server and an agent do not have.
fn missing_of((server, agent): &Names, of_server: &[&str], of_agent: &[&str]) -> Vec<String> {
    let mut missing = Vec::new();
    for (prefix, expected, found) in [("spire_server", of_server, server), ("spire_agent", of_agent, agent)] {
        for metric in expected {
            let (name, labels) = metric.split_once(' ').unwrap_or((metric, ""));
            let labels = labels.split(',').filter(|label| !label.is_empty()).chain(["host"]);
            let labels: Vec<String> = labels.map(|label| format!("{label}=\"\"")).collect();
            let shape = shape(&format!("{prefix}_{name}{{{}}}", labels.join(",")));
            if !found.contains(&shape) {
                missing.push(shape);
            }
        }
    }
    missing
}

/// Metrics of the reference that have no meaning here, or that only its own way of working has: docs/differences.md.
const ONLY_THERE: &[&str] = &[
    "spire_server_runtime_",
    "spire_agent_runtime_",
    // Found in one read with their nodes.
    "spire_server_datastore_node_selectors_list",
    // Our attestation stores node and selectors in one transaction.
    "spire_server_datastore_node_update",
    // A write of ours changes the view itself: nothing is read back.
    "spire_server_datastore_registration_entry_fetch",
];

/// Metrics of ours that the same script does not make the reference emit.
const ONLY_HERE: &[&str] = &[
    // The reference has this one only without the events based cache.
    "spire_server_entry_cache_reload",
    // The reference's health check asks its datastore behind the metrics.
    "spire_server_datastore_bundle_list",
    // The reference counts the use of keys that it found when it started, not of those that it made since.
    "spire_server_server_key_manager_get_public_key",
    "spire_server_server_key_manager_sign_data",
    // The reference counts them among those that expire; its own names have this one.
    "spire_agent_cache_manager_tainted_x509_svids_svid_store",
    // The reference has this name too, and looks only at SVIDs of stores for what is outdated.
    "spire_agent_cache_manager_outdated_svids{",
];

fn same_names() -> Outcome {
    let reference = programs::theirs()?;
    let wrong = compare(&names_of(programs::under_test())?, &names_of(reference)?);
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n").into()) }
}

/// Where the same script made ours and the reference emit different metrics.
fn compare((our_server, our_agent): &Names, (their_server, their_agent): &Names) -> Vec<String> {
    let mut wrong = Vec::new();
    for (ours, theirs) in [(our_server, their_server), (our_agent, their_agent)] {
        let is_in = |list: &[&str], name: &str| list.iter().any(|known| name.starts_with(known));
        let missing = theirs.difference(ours).filter(|name| !is_in(ONLY_THERE, name));
        wrong.extend(missing.map(|name| format!("missing: {name}")));
        let extra = ours.difference(theirs).filter(|name| !is_in(ONLY_HERE, name));
        wrong.extend(extra.map(|name| format!("extra: {name}")));
    }
    wrong
}

fn names_of(programs: &'static Programs) -> Result<Names> {
    let mut site = Site::new()?;
    site.server_programs = programs;
    site.agent_programs = programs;
    let (server_port, agent_port) = (place::port()?, place::port()?);
    site.server.sections = prometheus_section(server_port, "");
    site.agent.sections = prometheus_section(agent_port, "");
    // The reference has the gauges of its caches only with events, which are all that we have.
    site.server.lines.retain(|line| !line.starts_with("experimental"));
    let experimental = "experimental {\n cache_reload_interval = \"1s\"\n events_based_cache = true\n }";
    site.server.lines.push(experimental.to_owned());
    let _server = site.start_server()?;
    let _agent = site.join(AGENT)?;
    script(&site)?;
    // Both look for changes each second, and some is measured when a look is over; the uptime comes last.
    wait::until("metrics", SOON, || {
        let (server, agent) = (names(server_port)?, names(agent_port)?);
        let has = |set: &BTreeSet<String>, name: &str| set.iter().any(|known| known.starts_with(name));
        (has(&server, "spire_server_uptime_in_ms")
            && has(&server, "spire_server_datastore_node_event_list")
            && has(&agent, "spire_agent_uptime_in_ms"))
        .then_some((server, agent))
    })
}

fn in_memory() -> Outcome {
    let mut site = Site::new()?;
    site.server.sections = "telemetry {\n InMem {}\n}\n".to_owned();
    let mut server = site.start_server()?;
    site.cli(&["bundle", "show"])?;
    // What is dumped are intervals that are over.
    wait::until("dump", SOON, || {
        let mark = server.mark();
        server.signal(Signal::USR1);
        // The server looks at its health by the same call, maybe in the same second.
        let parts =
            ["[C] 'spire_server.rpc.bundle.v1.bundle.get_bundle.OK.", "Count: ", ".000 LastUpdated: "];
        server.wait_after(mark, &parts, Duration::from_secs(1)).ok()
    })?;
    Ok(())
}

fn health() -> Outcome {
    let mut site = Site::new()?;
    let (server_port, agent_port) = (place::port()?, place::port()?);
    let section = |port: u16, more: &str| {
        format!("health_checks {{\n listener_enabled = true\n bind_port = \"{port}\"\n{more}}}\n")
    };
    site.server.sections = section(server_port, " live_path = \"/alive\"\n ready_path = \"/ready\"\n");
    site.agent.sections = section(agent_port, "");
    let server = site.start_server()?;
    let is = |port: u16, path: &str, status: u16, body: &str| {
        wait::until(&format!("{path} with {body}"), SOON, || {
            (http::get_text(port, path)? == (status, format!("{body}\n"))).then_some(())
        })
    };
    let well = r#"{"catalog.datastore":{},"server":{},"server.ca":{},"server.ca.rotator":{}}"#;
    is(server_port, "/alive", 200, well)?;
    is(server_port, "/ready", 200, well)?;
    is(server_port, "/live", 404, "404 page not found")?;
    let agent = site.join(AGENT)?;
    is(agent_port, "/live", 200, r#"{"agent":{}}"#)?;
    is(agent_port, "/ready", 200, r#"{"agent":{}}"#)?;
    drop((agent, server));
    // An agent that waits for its server says that it lives.
    let _waiting = site.spawn_agent(&[])?;
    is(agent_port, "/live", 200, r#"{"agent":{}}"#)?;
    is(agent_port, "/ready", 500, r#"{"agent":{"make_new_x509_err":"workload api is unavailable"}}"#)?;
    Ok(())
}

fn cpu_profile() -> Outcome {
    let mut site = Site::new()?;
    let port = place::port()?;
    site.server.lines.push(format!("profiling_enabled = true\n    profiling_port = {port}"));
    let _server = site.start_server()?;
    let profile = wait::until("profile", SOON, || {
        let (status, body) = http::get(port, "/debug/pprof/profile?seconds=1")?;
        (status == 200).then_some(body)
    })?;
    std::fs::write(site.path("cpu.pb.gz"), profile)?;
    let raw =
        Run::new("go").args(&["tool", "pprof", "-raw", "cpu.pb.gz"]).within(&site.path("")).success()?;
    assert!(raw.stdout.contains("samples/count cpu/nanoseconds"), "{raw}");
    assert_eq!(http::get(port, "/debug/pprof/heap").map(|(status, _)| status), Some(200));
    Ok(())
}
