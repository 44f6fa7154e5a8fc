//! What changes in a running daemon, and what does not: SIGHUP, a watched file, a bad file, and a stop while it starts.

use std::net::TcpListener;
use std::os::unix::net::UnixDatagram;
use std::process::Command;

use rustix::process::Signal;
use spire_testkit::{Daemon, Result, place, wait};

use crate::federation::{ABROAD, Domain, HERE};
use crate::harness::{Case, Need, Outcome, SOON, Site, http};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case { name: "reload::a_server_takes_over_what_is_safe", needs: &[Need::Ours], run: server },
        Case { name: "reload::an_agent_takes_over_what_is_safe", needs: &[Need::Ours], run: agent },
        Case { name: "reload::a_bad_file_changes_nothing", needs: &[Need::Ours], run: bad_file },
        Case { name: "reload::a_changed_file_is_seen_where_asked_for", needs: &[Need::Ours], run: watched },
        Case { name: "reload::a_new_relationship_is_followed", needs: &[Need::Ours], run: relationship },
        Case { name: "reload::systemd_hears_of_it", needs: &[Need::Ours], run: systemd },
        Case { name: "reload::a_server_stops_while_it_starts", needs: &[Need::Ours], run: stopped_early },
    ]
}

const AGENT: &str = "spiffe://example.org/node";

/// Writes the server's file anew and asks for a reload; gives the line that tells of it.
fn reload(site: &Site, server: &mut Daemon) -> Result<String> {
    place::write(&site.path("server.conf"), &site.server.text())?;
    let mark = server.mark();
    server.signal(Signal::HUP);
    server.wait_after(mark, &["Configuration", "reloaded", "subsystem_name=reload"], SOON)
}

fn prometheus(port: u16, more: &str) -> String {
    format!("telemetry {{\n Prometheus {{\n  port = {port}\n }}\n{more}}}\n")
}

fn server() -> Outcome {
    let mut site = Site::new()?;
    let port = place::port()?;
    site.server.sections = prometheus(port, "");
    let mut server = site.start_server()?;
    site.cli(&["bundle", "show"])?;
    let line = reload(&site, &mut server)?;
    assert!(line.contains("nothing changed"), "{line}");

    site.server.sections = prometheus(port, " EnableTrustDomainLabel = true\n");
    site.server.lines.push("log_level = \"WARN\"\n    ratelimit { attestation = true }".to_owned());
    site.server.lines.retain(|line| !line.contains("attestation = false"));
    site.server.lines.push("ca_ttl = \"36h\"".to_owned());
    let line = reload(&site, &mut server)?;
    for part in [
        "level=warning",
        "server.log_level = warning",
        "server.ratelimit",
        "telemetry",
        "needs_restart=server.ca_ttl",
    ] {
        assert!(line.contains(part), "{part}: {line}");
    }
    let mark = server.mark();
    site.cli(&["bundle", "show"])?;
    site.cli(&["logger", "get"])?;
    assert!(
        server.lines()[mark..].iter().all(|line| !line.contains("level=info")),
        "{:?}",
        &server.lines()[mark..]
    );
    let logger = site.cli_json(&["logger", "get"])?;
    assert_eq!((&logger["current_level"], &logger["launch_level"]), (&"WARN".into(), &"WARN".into()));
    wait::until("label", SOON, || {
        let (_, text) = http::get_text(port, "/")?;
        let name = "spire_server_rpc_bundle_v1_bundle_get_bundle{";
        let line = text.lines().find(|line| line.starts_with(name))?;
        line.contains("trust_domain=\"example_org\"").then_some(())
    })?;

    // What was not taken over still is not, whatever else changes; until the file says again what is in force.
    site.server.lines.push("max_attested_node_info_staleness = \"1s\"".to_owned());
    let line = reload(&site, &mut server)?;
    for part in ["server.ca_ttl", "server.max_attested_node_info_staleness"] {
        assert!(line.contains(part), "{part}: {line}");
    }
    site.server.lines.retain(|line| !line.contains("ca_ttl") && !line.contains("staleness"));
    site.server.lines.retain(|line| !line.contains("log_level"));
    let line = reload(&site, &mut server)?;
    assert!(line.contains("server.log_level") && !line.contains("needs_restart"), "{line}");
    Ok(())
}

fn agent() -> Outcome {
    let mut site = Site::new()?;
    let _server = site.start_server()?;
    let mut agent = site.join(AGENT)?;
    site.agent.lines.push("log_level = \"ERROR\"".to_owned());
    site.agent.lines.retain(|line| !line.starts_with("experimental"));
    let limit = "experimental {\n sync_interval = \"1s\"\n ratelimit {\n  fetch_x509_svid = 1\n }\n }";
    site.agent.lines.push(limit.to_owned());
    place::write(&site.path("agent.conf"), &site.agent.text())?;
    agent.signal(Signal::HUP);
    // The line comes in the old level or not at all in the new one; what it did is seen in the API.
    wait::until("rate limit", SOON, || {
        let output = site.workload(&["api", "fetch", "x509"]).output().ok()?;
        output.to_string().contains("rate limit exceeded").then_some(())
    })?;
    Ok(())
}

fn bad_file() -> Outcome {
    let mut site = Site::new()?;
    let mut server = site.start_server()?;
    let good = site.server.clone();
    site.server.lines.push("log_level = \"ERROR\"\n    ca_ttl = \"never\"".to_owned());
    let line = reload(&site, &mut server)?;
    for part in
        ["level=error", "not reloaded", "could not parse default CA ttl", "server.conf:", "server.ca_ttl"]
    {
        assert!(line.contains(part), "{part}: {line}");
    }
    let logger = site.cli_json(&["logger", "get"])?;
    assert_eq!(logger["current_level"], "DEBUG");
    site.server = good;
    let line = reload(&site, &mut server)?;
    assert!(line.contains("nothing changed"), "{line}");
    Ok(())
}

fn watched() -> Outcome {
    let mut site = Site::with_default_intervals()?;
    site.server.lines.push("experimental { reload_on_change = true }".to_owned());
    let server = site.start_server()?;
    site.server.lines.push("log_level = \"WARN\"".to_owned());
    place::write(&site.path("new.conf"), &site.server.text())?;
    std::fs::rename(site.path("new.conf"), site.path("server.conf"))?;
    wait::until("level of the changed file", SOON, || {
        (site.cli_json(&["logger", "get"]).ok()?["current_level"] == "WARN").then_some(())
    })?;
    drop(server);
    Ok(())
}

fn relationship() -> Outcome {
    let abroad = Domain::new(ABROAD)?;
    let _abroad = abroad.site.start_server()?;
    let here = Domain::without_endpoint(HERE)?;
    let mut server = here.site.start_server()?;
    here.learn(&abroad)?;
    let profile = format!("endpoint_spiffe_id = \"{}\"", abroad.id("spire/server"));
    let here = here.federation(&format!(
        "federates_with \"{ABROAD}\" {{\n bundle_endpoint_url = \"{}\"\n \
         bundle_endpoint_profile \"https_spiffe\" {{ {profile} }}\n}}",
        abroad.url()
    ));
    let mark = server.mark();
    let line = reload(&here.site, &mut server)?;
    assert!(line.contains("changed=server.federation.federates_with"), "{line}");
    server.wait_after(mark, &["Trust domain is now managed", ABROAD], SOON)?;
    Ok(())
}

fn systemd() -> Outcome {
    let site = Site::new()?;
    let file = site.path("server.conf");
    place::write(&file, &site.server.text())?;
    let socket = UnixDatagram::bind(site.path("notify"))?;
    socket.set_read_timeout(Some(SOON))?;
    let mut command = Command::new(site.server_programs.server());
    command.args(["run", "-config"]).arg(&file).env("NOTIFY_SOCKET", site.path("notify"));
    let mut server = Daemon::spawn("server", command)?;
    let next = || {
        let mut buffer = [0; 256];
        let length = socket.recv(&mut buffer)?;
        Ok::<_, std::io::Error>(String::from_utf8_lossy(&buffer[..length]).into_owned())
    };
    assert_eq!(next()?, "READY=1");
    site.cli(&["healthcheck"])?;
    server.signal(Signal::HUP);
    let reloading = next()?;
    assert!(reloading.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{reloading}");
    assert_eq!(next()?, "READY=1");
    server.signal(Signal::TERM);
    assert_eq!(next()?, "STOPPING=1");
    assert_eq!(server.wait_exit(SOON)?.code(), Some(0));
    Ok(())
}

/// What the start waits for does not matter: here it reads its keys from a FIFO that nobody writes.
fn stopped_early() -> Outcome {
    let site = Site::new()?;
    std::fs::create_dir_all(site.server.data())?;
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    let keys = site.server.data().join("keys.json");
    rustix::fs::mknodat(rustix::fs::CWD, &keys, rustix::fs::FileType::Fifo, mode, 0)?;
    let mut server = site.spawn_server()?;
    server.wait_for(&["Configured DataStore"], SOON)?;
    server.signal(Signal::TERM);
    let status = server.wait_exit(SOON)?;
    assert_eq!(status.code(), Some(0), "{:?}", server.lines());
    // Its port is free: nothing listened.
    TcpListener::bind(("127.0.0.1", site.server.port))?;
    Ok(())
}
