//! Workload API clients of others, which know nothing of these programs.

use std::time::Duration;

use spire_testkit::{Daemon, Run, wait};

use crate::harness::peer::Peer;
use crate::harness::site::{own_uid, text};
use crate::harness::{Case, Need, Outcome, SOON, Site};

pub(crate) fn cases() -> Vec<Case> {
    const GO: &[Need] = &[Need::Peer(Peer::Go)];
    vec![
        Case { name: "peers::go_mtls", needs: GO, run: go_mtls },
        Case { name: "peers::go_jwt", needs: GO, run: go_jwt },
        Case { name: "peers::go_watch", needs: GO, run: go_watch },
        Case { name: "peers::python", needs: &[Need::Peer(Peer::Python)], run: python },
        Case { name: "peers::java", needs: &[Need::Peer(Peer::Java)], run: java },
    ]
}

const AGENT: &str = "spiffe://example.org/node";
const WORKLOAD: &str = "spiffe://example.org/w";
/// Virtual machines and interpreters start slowly beside other work.
const PEER_AT_MOST: Duration = Duration::from_secs(120);

/// A site with a workload's entry, everything started.
fn started(more: &[&str]) -> Result<(Site, Daemon, Daemon), libtest_mimic::Failed> {
    let site = Site::new()?;
    let server = site.start_server()?;
    let agent = site.join(AGENT)?;
    site.entry(AGENT, WORKLOAD, &own_uid(), more)?;
    site.wait_identities(&[WORKLOAD])?;
    Ok((site, server, agent))
}

fn run(command: &[String], args: &[&str]) -> Result<spire_testkit::Output, libtest_mimic::Failed> {
    Ok(Run::new(&command[0]).args(&command[1..]).args(args).at_most(PEER_AT_MOST).success()?)
}

/// Two programs, told apart by their paths, and a third that the server does not know; across a renewal.
fn go_mtls() -> Outcome {
    let site = Site::new()?;
    let _server = site.start_server()?;
    let _agent = site.join(AGENT)?;
    let built = Peer::Go.command()?;
    let program = |name: &str| -> Result<Vec<String>, libtest_mimic::Failed> {
        let path = site.path(name);
        std::fs::copy(&built[0], &path)?;
        let id = format!("spiffe://example.org/{name}");
        site.entry(AGENT, &id, &format!("unix:path:{}", text(&path)), &["-x509SVIDTTL", "20"])?;
        Ok(vec![text(&path).to_owned()])
    };
    let (service, client, stranger) = (program("service")?, program("client")?, program("stranger")?);
    let socket = site.agent.socket();
    let server = site.spawn("service", &service, &["serve", text(&socket), "spiffe://example.org/client"])?;
    let line = server.wait_for(&["listening "], SOON)?;
    let address = line.trim_start_matches("listening ").to_owned();
    let call = |command: &[String], expected: &str| {
        Run::new(&command[0]).args(&["call", text(&socket), &address, expected]).output()
    };
    let reply = call(&client, "spiffe://example.org/service")?.success()?;
    assert_eq!(reply.stdout, "reply hello to spiffe://example.org/client\n");
    let first = server.wait_for(&["served spiffe://example.org/client "], SOON)?;

    let wrong = call(&client, "spiffe://example.org/another")?.exits_with(1)?;
    assert!(wrong.stderr.contains("unexpected ID"), "{wrong}");
    let unknown = call(&stranger, "spiffe://example.org/service")?.exits_with(1)?;
    assert!(unknown.stderr.contains("bad certificate"), "{unknown}");
    server.wait_for(&["refused:", "unexpected ID"], SOON)?;

    // Both sides' SVIDs are renewed under the running service.
    wait::until("call with a renewed SVID", PEER_AT_MOST, || {
        let mark = server.mark();
        call(&client, "spiffe://example.org/service").ok()?.success().ok()?;
        let now = server.wait_after(mark, &["served spiffe://example.org/client "], SOON).ok()?;
        (now != first).then_some(())
    })?;
    Ok(())
}

fn go_jwt() -> Outcome {
    let (site, _server, _agent) = started(&[])?;
    let socket = site.agent.socket();
    let output = run(&Peer::Go.command()?, &["jwt", text(&socket), "a"])?;
    let want = format!(
        "fetched {WORKLOAD} [a]\nvalidated here {WORKLOAD}\nvalidated there {WORKLOAD}\nother audience refused\n"
    );
    assert_eq!(output.stdout, want);
    Ok(())
}

/// An open stream of go-spiffe sees renewals, new names and new identities, in order.
fn go_watch() -> Outcome {
    let (site, _server, _agent) = started(&["-x509SVIDTTL", "30"])?;
    let entry = site.entry_of(WORKLOAD)?;
    let socket = site.agent.socket();
    let stream = site.spawn("watch", &Peer::Go.command()?, &["watch", text(&socket)])?;
    let first = stream.wait_for(&["x509 ", WORKLOAD, "roots 1", "dns []"], SOON)?;
    stream.wait_for(&["jwt example.org keys 1"], SOON)?;
    let mark = stream.mark();
    let update =
        ["entry", "update", "-entryID", &entry, "-parentID", AGENT, "-spiffeID", WORKLOAD, "-selector"];
    let uid = own_uid();
    let with_name: Vec<&str> =
        update.into_iter().chain([uid.as_str(), "-dns", "w.test", "-x509SVIDTTL", "10"]).collect();
    site.cli(&with_name)?;
    let named = stream.wait_after(mark, &["x509 ", "dns [w.test]"], SOON)?;
    assert_ne!(serial(&named), serial(&first));
    let mark = stream.mark();
    let renewed = stream.wait_after(mark, &["x509 ", "dns [w.test]"], SOON)?;
    assert_ne!(serial(&renewed), serial(&named));
    let mark = stream.mark();
    site.entry(AGENT, "spiffe://example.org/more", &uid, &[])?;
    stream.wait_after(mark, &["x509 ", "spiffe://example.org/more", WORKLOAD], SOON)?;
    assert!(!stream.lines().iter().any(|line| line.contains("error")), "{}", stream.error("errors"));
    Ok(())
}

fn serial(line: &str) -> Option<&str> {
    line.split(' ').nth(2)
}

fn python() -> Outcome {
    let (site, _server, _agent) = started(&[])?;
    let socket = site.agent.socket();
    let output = run(&Peer::Python.command()?, &[text(&socket), "a"])?;
    let want = format!(
        "x509 {WORKLOAD}\nroots 1\njwt {WORKLOAD}\nvalidated {WORKLOAD}\nx509 source {WORKLOAD}\njwt source {WORKLOAD}\n"
    );
    assert_eq!(output.stdout, want, "{}", output.stderr);
    Ok(())
}

fn java() -> Outcome {
    let (site, _server, _agent) = started(&["-x509SVIDTTL", "10"])?;
    let socket = site.agent.socket();
    let output = run(&Peer::Java.command()?, &[text(&socket), "a", "2"])?;
    let lines: Vec<&str> = output.stdout.lines().collect();
    assert_eq!(
        lines[..3],
        [format!("x509 {WORKLOAD}"), format!("jwt {WORKLOAD}"), format!("validated {WORKLOAD}")]
    );
    let updates: Vec<&&str> =
        lines[3..].iter().filter(|line| line.starts_with(&format!("update {WORKLOAD} "))).collect();
    assert!(updates.len() >= 2 && updates[0] != updates[1], "{output}");
    assert!(!output.stdout.contains("watch error"), "{output}");
    Ok(())
}
