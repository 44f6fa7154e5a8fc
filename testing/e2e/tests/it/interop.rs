//! Beside another implementation: each side's agent on the other's server, and one's database and data folders under the
//! other's programs. It runs where `SPIRE_REFERENCE_BIN` names that implementation's folder.

use std::time::Duration;

use serde_json::Value;
use spire_testkit::wait;

use crate::harness::programs::{self, Programs};
use crate::harness::site::{attestations, own_uid};
use crate::harness::turns::Turns;
use crate::harness::{Case, Need, Outcome, SOON, Sides, Site};

pub(crate) fn cases() -> Vec<Case> {
    const NEEDS: &[Need] = &[Need::Reference];
    vec![
        Case { name: "interop::their_agent_on_our_server", needs: NEEDS, run: their_agent },
        Case { name: "interop::our_agent_on_their_server", needs: NEEDS, run: our_agent },
        Case { name: "interop::our_commands_on_their_server", needs: NEEDS, run: our_commands },
        Case { name: "interop::their_commands_on_our_server", needs: NEEDS, run: their_commands },
        Case { name: "interop::server_data_is_taken_over_and_given_back", needs: NEEDS, run: server_data },
        Case { name: "interop::agent_data_is_taken_over_and_given_back", needs: NEEDS, run: agent_data },
    ]
}

const AGENT: &str = "spiffe://example.org/node";
const WORKLOAD: &str = "spiffe://example.org/w";
const A_TURN: Duration = Duration::from_secs(75);

fn their_agent() -> Outcome {
    life(&Site::of(Sides::TheirAgent)?)
}

fn our_agent() -> Outcome {
    life(&Site::of(Sides::TheirServer)?)
}

/// Join, change, renew, be gone.
fn life(site: &Site) -> Outcome {
    let server = site.start_server()?;
    let mut agent = site.join(AGENT)?;
    let uid = own_uid();
    let entry = site.entry(AGENT, WORKLOAD, &uid, &["-x509SVIDTTL", "10", "-jwtSVIDTTL", "20"])?;
    let first = site.wait_identities(&[WORKLOAD])?.field("SVID Valid Until")?;
    let stream = site.watch()?;
    stream.wait_for(&["SPIFFE ID:", WORKLOAD], SOON)?;
    let token = site.workload(&["api", "fetch", "jwt", "-audience", "a", "-timeout", "20s"]).success()?;
    let svid = token.stdout.lines().nth(1).unwrap_or_default().trim().to_owned();
    let verdict = site.workload(&["api", "validate", "jwt", "-audience", "a", "-svid", &svid]).success()?;
    assert!(verdict.stdout.starts_with("SVID is valid.\n"), "{verdict}");
    stream.wait_line(0, "renewed SVID", A_TURN, |line| {
        line.strip_prefix("SVID Valid Until:").is_some_and(|until| until.trim() > first.as_str())
    })?;
    let mark = stream.mark();
    site.entry(AGENT, "spiffe://example.org/second", &uid, &[])?;
    stream.wait_after(mark, &["SPIFFE ID:", "spiffe://example.org/second"], SOON)?;
    site.cli(&["entry", "delete", "-entryID", &entry])?;
    site.wait_identities(&["spiffe://example.org/second"])?;
    let attested = site.attested_agent()?;
    assert_eq!(attested["attestation_type"], "join_token");
    // The agent reports its version after it has started.
    wait::until("version of the agent", SOON, || {
        site.attested_agent().ok()?["agent_version"].as_str().map(|_| ())
    })?;
    agent.kill()?;
    let again = site.start_agent(&[])?;
    site.wait_identities(&["spiffe://example.org/second"])?;
    assert_eq!(attestations(&again), 0);
    drop(server);
    Ok(())
}

fn our_commands() -> Outcome {
    same_outputs(&mut Site::of(Sides::TheirServer)?, programs::under_test(), programs::theirs()?)
}

fn their_commands() -> Outcome {
    same_outputs(&mut Site::new()?, programs::theirs()?, programs::under_test())
}

/// What both command lines say of the same server, byte for byte.
fn same_outputs(site: &mut Site, one: &'static Programs, other: &'static Programs) -> Outcome {
    // WIT-SVIDs are minted where the server is told to.
    site.server.lines.retain(|line| !line.starts_with("experimental"));
    let experimental = "experimental { cache_reload_interval = \"1s\" feature_flags = [\"wit-svid\"] }";
    site.server.lines.push(experimental.to_owned());
    let server = site.start_server()?;
    let agent = site.join(AGENT)?;
    site.entry(
        AGENT,
        WORKLOAD,
        "unix:uid:1",
        &["-dns", "b.test", "-dns", "a.test", "-hint", "h", "-x509SVIDTTL", "60"],
    )?;
    site.entry(AGENT, "spiffe://example.org/admin", "unix:uid:2", &["-admin", "-selector", "unix:gid:3"])?;
    // The version of the agent arrives a moment after its start.
    wait::until("version of the agent", SOON, || {
        site.attested_agent().ok()?["agent_version"].as_str().map(|_| ())
    })?;
    let commands: &[&[&str]] = &[
        &["entry", "show"],
        &["entry", "show", "-output", "json"],
        &["entry", "show", "-selector", "unix:uid:1"],
        &["entry", "count"],
        &["entry", "count", "-output", "json"],
        &["agent", "list"],
        &["agent", "list", "-output", "json"],
        &["agent", "count"],
        &["bundle", "show"],
        &["bundle", "show", "-format", "spiffe"],
        &["bundle", "show", "-output", "json"],
        &["bundle", "count"],
        &["bundle", "list"],
        &["healthcheck"],
    ];
    let mut wrong = Vec::new();
    for command in commands {
        site.server_programs = one;
        let first = site.command(command).output()?;
        site.server_programs = other;
        let second = site.command(command).output()?;
        if first != second {
            wrong.push(format!("{command:?}:\n{first}\nbut the server's own:\n{second}"));
        }
    }
    // What holds a new key each time has one form.
    for command in [
        &["x509", "mint", "-spiffeID", WORKLOAD, "-dns", "a.test", "-output", "json"][..],
        &["jwt", "mint", "-spiffeID", WORKLOAD, "-audience", "a", "-output", "json"],
        &["wit", "mint", "-spiffeID", WORKLOAD, "-output", "json"],
        &["token", "generate", "-output", "json"],
    ] {
        let [first, second] = [one, other].map(|programs| {
            site.server_programs = programs;
            site.command(command).env("SPIRE_SERVER_FFLAGS", "wit-svid").success()
        });
        let [first, second] = [first?, second?];
        if form(&first.stdout)? != form(&second.stdout)? || first.stderr != second.stderr {
            wrong.push(format!("{command:?}:\n{first}\nbut the server's own:\n{second}"));
        }
    }
    drop((agent, server));
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n").into()) }
}

/// A JSON document on its lines, with the beginnings of its texts: what they are, and not which.
fn form(json: &str) -> Result<(usize, Value), libtest_mimic::Failed> {
    fn begin(value: &mut Value) {
        match value {
            // Of DER the tag and the size of its length, of a JWT its algorithm.
            Value::String(text) => text.truncate(text.char_indices().nth(3).map_or(text.len(), |(at, _)| at)),
            Value::Number(_) => *value = Value::Null,
            Value::Array(all) => all.iter_mut().for_each(begin),
            Value::Object(all) => all.values_mut().for_each(begin),
            Value::Bool(_) | Value::Null => {}
        }
    }
    let mut value = crate::harness::svid::json(json)?;
    if let Some(token) = value["value"].as_str() {
        // A UUID: its form is its length.
        value["value"] = token.len().to_string().into();
    }
    begin(&mut value);
    Ok((json.lines().count(), value))
}

fn server_data() -> Outcome {
    let mut site = Site::new()?;
    let mut turns = Turns::begin(&mut site)?;
    let token = turns.site.token("spiffe://example.org/second-node")?;
    turns.take()?;
    // The token that the first server made is good for one use on the last.
    let site = &mut *turns.site;
    site.agent.folder = site.path("second");
    std::fs::create_dir(site.path("second"))?;
    let second = site.start_agent(&["-joinToken", &token])?;
    second.wait_for(&["Node attestation was successful"], SOON)?;
    Ok(())
}

fn agent_data() -> Outcome {
    let mut site = Site::new()?;
    let (ours, theirs) = (programs::under_test(), programs::theirs()?);
    let _server = site.start_server()?;
    site.agent_programs = theirs;
    let mut agent = site.join(AGENT)?;
    site.entry(AGENT, WORKLOAD, &own_uid(), &[])?;
    site.wait_identities(&[WORKLOAD])?;
    let attested = site.attested_agent()?;
    for programs in [ours, theirs, ours] {
        assert_eq!(agent.stop()?, 0);
        site.agent_programs = programs;
        agent = site.start_agent(&[])?;
        site.wait_identities(&[WORKLOAD])?;
        assert_eq!(attestations(&agent), 0);
        assert_eq!(site.attested_agent()?["id"], attested["id"]);
    }
    Ok(())
}
