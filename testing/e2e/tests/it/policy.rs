//! Authorisation by a policy of the user, in files.

use std::path::PathBuf;

use spire_testkit::{Error, Result, place};

use crate::harness::programs;
use crate::harness::site::{own_uid, text};
use crate::harness::{Case, Need, Outcome, SOON, Site};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case { name: "policy::decides_who_may_call_what", needs: &[], run: decides },
        Case { name: "policy::alike_under_the_reference", needs: &[Need::Reference], run: alike },
        Case {
            name: "policy::default_files_serve_agents",
            needs: &[Need::Ours],
            run: default_files_serve_agents,
        },
        Case { name: "policy::a_bad_one_stops_the_start", needs: &[Need::Ours], run: bad_policies },
    ]
}

/// Local callers may count and create entries below what the data says; nothing else goes.
const REGO: &str = r#"package spire

result := {
    "allow": false,
    "allow_if_local": allow_if_local,
    "allow_if_admin": false,
    "allow_if_downstream": false,
    "allow_if_agent": false,
}

default allow_if_local := false

allow_if_local if endswith(input.full_method, "/CountEntries")

allow_if_local if input.full_method == "/grpc.health.v1.Health/Check"

allow_if_local if {
    input.full_method == "/spire.api.server.entry.v1.Entry/BatchCreateEntry"
    every entry in input.req.entries { startswith(entry.spiffe_id.path, data.below) }
}
"#;

fn give_policy(site: &mut Site, rego: &str, data: &str) -> Result<(PathBuf, PathBuf)> {
    let (rego_path, data_path) = (site.path("policy.rego"), site.path("policy_data.json"));
    place::write(&rego_path, rego)?;
    place::write(&data_path, data)?;
    let line = format!(
        "experimental {{ auth_opa_policy_engine {{ local {{ rego_path = {:?} policy_data_path = {:?} }} }} }}",
        text(&rego_path),
        text(&data_path)
    );
    site.server.lines.retain(|line| !line.starts_with("experimental"));
    site.server.lines.push(line);
    Ok((rego_path, data_path))
}

fn decides() -> Outcome {
    check_decisions(Site::new()?)
}

fn alike() -> Outcome {
    let mut site = Site::new()?;
    site.server_programs = programs::reference().unwrap_or_else(programs::under_test);
    check_decisions(site)
}

fn check_decisions(mut site: Site) -> Outcome {
    give_policy(&mut site, REGO, r#"{"below": "/db/"}"#)?;
    let mut server = site.start_server()?;
    site.cli(&["entry", "count"])?;
    let create = |path: &str| {
        let id = format!("spiffe://example.org{path}");
        let parent = "spiffe://example.org/host";
        site.command(&["entry", "create", "-parentID", parent, "-spiffeID", &id, "-selector", "unix:uid:1"])
            .output()
    };
    let created = create("/db/a")?;
    if created.code != 0 {
        return Err(Error::new(format!("must be created: {created}")).into());
    }
    let denied = |method: &str| format!("authorization denied for method /spire.api.server.{method}");
    let other = create("/web")?;
    let shown = site.command(&["entry", "show"]).output()?;
    let agents = site.command(&["agent", "list"]).output()?;
    for (output, method) in [
        (other, "entry.v1.Entry/BatchCreateEntry"),
        (shown, "entry.v1.Entry/ListEntries"),
        (agents, "agent.v1.Agent/ListAgents"),
    ] {
        if output.code == 0 || !output.stderr.contains(&denied(method)) {
            return Err(Error::new(format!("must be denied ({method}): {output}")).into());
        }
    }
    server.stop()?;
    Ok(())
}

/// The sample files let an agent attest, sync and sign, and a workload be served.
fn default_files_serve_agents() -> Outcome {
    let mut site = Site::new()?;
    let sample = |name: &str| {
        let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../conf/policy")).join(name);
        std::fs::read_to_string(&path).map_err(|error| Error::doing(text(&path), error))
    };
    give_policy(&mut site, &sample("policy.rego")?, &sample("policy_data.json")?)?;
    let _server = site.start_server()?;
    let _agent = site.join("spiffe://example.org/host")?;
    site.entry("spiffe://example.org/host", "spiffe://example.org/w", &own_uid(), &[])?;
    site.wait_identities(&["spiffe://example.org/w"])?;
    Ok(())
}

fn bad_policies() -> Outcome {
    for (rego, data, said) in [
        ("package spire\n\nallow = true {\n", "{}", "policy.rego:3:"),
        ("package spire\n\nresult := no_such(1)\n", "{}", "policy.rego:3:"),
        ("package spire\n\nresult := {}\n", "{}", "result did not contain \\\"allow\\\" bool value"),
        ("package spire\n\nallow := true\n", "{}", "policy: no matching policies found"),
        (REGO, "{\n\"below\"", "line 2 column"),
    ] {
        let mut site = Site::new()?;
        give_policy(&mut site, rego, data)?;
        let mut server = site.spawn_server()?;
        let code = server.wait_exit(SOON)?.code();
        let line =
            server.lines().into_iter().find(|line| line.contains("Fatal run error")).unwrap_or_default();
        let told = line.contains("unable to obtain authpolicy engine: ") && line.contains(said);
        if code != Some(1) || !told {
            return Err(Error::new(format!("exit {code:?}, not {said:?}: {line}")).into());
        }
    }
    Ok(())
}
