//! `spire explain`: why a process has no identity, and that it has one.

use spire_testkit::{Result, Run, place, wait};

use crate::harness::site::{own_uid, text};
use crate::harness::{Case, Need, Outcome, SOON, Site, programs, svid};

pub(crate) fn cases() -> Vec<Case> {
    vec![Case { name: "explain::what_is_missing_is_said", needs: &[Need::Ours], run: missing }]
}

const NODE: &str = "spiffe://example.org/node";
const WEB: &str = "spiffe://example.org/web";
const FAR: &str = "spiffe://example.org/far";

/// `spire explain` about itself.
fn explain(site: &Site, more: &[&str]) -> Result<String> {
    let socket = site.agent.socket();
    let run = Run::new(programs::under_test().folder.join("spire")).args(&[
        "explain",
        "-socketPath",
        text(&socket),
    ]);
    Ok(run.args(more).success()?.stdout)
}

fn missing() -> Outcome {
    let mut site = Site::new()?;
    // Not where workloads may look.
    let private = place::folder()?;
    let admin = private.path().join("admin.sock");
    site.agent.lines.push(format!("admin_socket_path = \"{}\"", text(&admin)));
    let _server = site.start_server()?;
    let agent = site.join(NODE)?;
    let agent_id = svid::json(&site.attested_agent()?.to_string())?;
    let agent_path = agent_id["id"]["path"].as_str().unwrap_or_default().to_owned();
    let web = site.entry(NODE, WEB, "unix:uid:4242", &["-selector", &own_uid()])?;
    site.entry("spiffe://example.org/nobody", FAR, &own_uid(), &[])?;
    agent.wait_for(&["Entry created", &web], SOON)?;

    // The process itself learns what is known of it, and nothing of others.
    let own = explain(&site, &[])?;
    assert!(own.starts_with("No identity: no entry matches"), "{own}");
    assert!(own.contains(&own_uid()) && own.contains("Synced"), "{own}");
    assert!(!own.contains(WEB) && !own.contains("4242"), "{own}");

    // Who operates the agent may ask about any process, such as this one.
    let pid = std::process::id().to_string();
    let any = explain(&site, &["-pid", &pid, "-adminSocketPath", text(&admin)])?;
    assert!(
        any.contains(WEB) && any.contains(&format!("lacks unix:uid:4242 (the process has {})", own_uid())),
        "{any}"
    );
    assert!(any.contains(&agent_path), "{any}");

    // Whoever may ask the server sees what is missing, and where entries lead.
    let server = site.server.socket();
    let all = explain(&site, &["-serverSocketPath", text(&server)])?;
    assert!(all.starts_with("No identity: an entry matches, but this agent does not have it"), "{all}");
    assert!(all.contains(&format!("lacks unix:uid:4242 (the process has {})", own_uid())), "{all}");
    assert!(all.contains(&format!("leads to agent spiffe://example.org{agent_path} by entry")), "{all}");
    assert!(all.contains("no agent and no entry has the ID spiffe://example.org/nobody"), "{all}");
    let json = svid::json(&explain(&site, &["-serverSocketPath", text(&server), "-output", "json"])?)?;
    assert_eq!(json["near"][0]["spiffe_id"], WEB, "{json}");
    assert_eq!(json["withheld"][0]["spiffe_id"], FAR, "{json}");

    // The same in the agent's log when a workload gets nothing: the kind of selector, since none may be logged.
    let refused = site.workload(&["api", "fetch", "x509"]).output()?.exits_with(1)?;
    assert!(
        refused.stderr.contains("no identity issued") || refused.stdout.contains("no identity issued"),
        "{refused}"
    );
    let line = agent.wait_for(&["No identity issued", "hint=", &web], SOON)?;
    assert!(line.contains("the workload lacks 1 of its 2 selectors, of type unix; entries are "), "{line}");
    assert!(!line.contains("4242"), "{line}");

    site.entry(NODE, "spiffe://example.org/found", &own_uid(), &[])?;
    wait::until("an identity", SOON, || {
        let text = explain(&site, &[]).ok()?;
        (text.starts_with("The process has 1 identity") && text.contains("spiffe://example.org/found"))
            .then_some(())
    })?;
    Ok(())
}
