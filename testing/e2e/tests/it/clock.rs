//! Server and agent whose clocks are set, or go fast.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use spire_testkit::{Error, Result, wait};

use crate::attestors::{Key, certificates, with_certificates};
use crate::harness::clock::{WallClock, fast};
use crate::harness::site::own_uid;
use crate::harness::{Case, Need, Outcome, SOON, Site};

pub(crate) fn cases() -> Vec<Case> {
    // SPIRE's programs, which are in Go, do not take the time from the C library.
    const NEEDS: &[Need] = &[Need::Ours, Need::Faketime, Need::Openssl];
    vec![
        Case { name: "clock::jumps_forward_and_back", needs: NEEDS, run: jumps },
        Case { name: "clock::expired_agents_attest_again", needs: NEEDS, run: expired },
        Case { name: "clock::expired_entries_are_pruned", needs: NEEDS, run: pruning },
    ]
}

const NODE: &str = "spiffe://example.org/node";
const WORKLOAD: &str = "spiffe://example.org/w";

/// SVIDs live an hour: so much later they are due, and so much earlier those of then are not valid yet.
const JUMP: i32 = 50;

fn seconds() -> Result<i64> {
    let since =
        SystemTime::now().duration_since(UNIX_EPOCH).map_err(|error| Error::new(error.to_string()))?;
    i64::try_from(since.as_secs()).map_err(|error| Error::new(error.to_string()))
}

/// Whether the workload's SVID is valid so many minutes from now, and its authority too; that is what its peers look at.
fn is_valid(site: &Site, minutes: i32) -> Option<()> {
    let folder = site.path("fetched");
    std::fs::create_dir_all(&folder).ok()?;
    let write = ["api", "fetch", "x509", "-timeout", "20s", "-write", folder.to_str()?];
    site.workload(&write).success().ok()?;
    let at = (seconds().ok()? + i64::from(minutes) * 60).to_string();
    let path = |name: &str| folder.join(name).display().to_string();
    let (bundle, leaf) = (path("bundle.0.pem"), path("svid.0.pem"));
    let verify = ["verify", "-attime", &at, "-CAfile", &bundle, "-untrusted", &leaf, &leaf];
    spire_testkit::Run::new("openssl").args(&verify).success().ok().map(drop)
}

fn jumps() -> Outcome {
    let mut site = Site::new()?;
    // The digest of a large program takes long.
    site.agent.unix.push_str("\n            workload_size_limit = -1");
    let clock = WallClock::new(site.folder())?;
    site.server_variables = clock.variables()?;
    site.agent_variables = clock.variables()?;
    let server = site.start_server()?;
    let mut agent = site.join(NODE)?;
    site.entry(NODE, WORKLOAD, &own_uid(), &[])?;
    site.wait_identities(&[WORKLOAD])?;
    // Forward, and back again to where everything that was made since is of the future.
    for (step, minutes) in [(1, JUMP), (2, 0)] {
        clock.set(minutes)?;
        goes_on(&site, step, minutes).map_err(|failed| {
            let (server, agent) = (server.error("server"), agent.error("agent"));
            format!("{}\n{server}\n{agent}", failed.message().unwrap_or_default())
        })?;
    }
    // So far forward that the agent's SVID is over: a token does not attest twice, and the agent ends as it does then.
    clock.set(2 * JUMP)?;
    agent.wait_for(&["Agent crashed"], SOON * 2)?;
    assert_eq!(agent.wait_exit(SOON)?.code(), Some(1));
    let _agent = site.join(NODE)?;
    goes_on(&site, 3, 2 * JUMP)
}

/// An agent that may attest again does so when its SVID is over, while it runs and when it starts.
fn expired() -> Outcome {
    let mut site = Site::new()?;
    site.agent.unix.push_str("\n            workload_size_limit = -1");
    certificates(&site, Key::Ec, "127.0.0.1")?;
    with_certificates(&mut site, "agent_path_template = \"/{{ .PluginName }}/n\"\n");
    let clock = WallClock::new(site.folder())?;
    site.server_variables = clock.variables()?;
    site.agent_variables = clock.variables()?;
    let _server = site.start_server()?;
    let mut agent = site.start_agent(&[])?;
    site.cli(&[
        "entry",
        "create",
        "-node",
        "-spiffeID",
        NODE,
        "-selector",
        "x509pop:subject:cn:n1.example.org",
    ])?;
    site.entry(NODE, WORKLOAD, &own_uid(), &[])?;
    site.wait_identities(&[WORKLOAD])?;
    clock.set(2 * JUMP)?;
    agent.wait_for(&["Successfully reattested node"], SOON)?;
    goes_on(&site, 1, 2 * JUMP)?;

    agent.kill()?;
    clock.set(4 * JUMP)?;
    let agent = site.start_agent(&[])?;
    agent.wait_for(&["Node attestation was successful"], SOON)?;
    goes_on(&site, 2, 4 * JUMP)?;
    site.attested_agent()?;
    Ok(())
}

/// A workload has an SVID that is valid so many minutes from now, and server and agent believe each other.
fn goes_on(site: &Site, step: u32, minutes: i32) -> Outcome {
    wait::until(&format!("an SVID that is valid {minutes} minutes from now"), SOON, || {
        is_valid(site, minutes)
    })?;
    let other = format!("spiffe://example.org/step-{step}");
    let entry = site.entry(NODE, &other, &own_uid(), &[])?;
    site.wait_identities(&[WORKLOAD, &other])?;
    site.cli(&["entry", "delete", "-entryID", &entry])?;
    site.wait_identities(&[WORKLOAD])?;
    let token = site.workload(&["api", "fetch", "jwt", "-audience", "a", "-timeout", "20s"]).success()?;
    assert!(token.stdout.contains(WORKLOAD), "{token}");
    Ok(())
}

fn pruning() -> Outcome {
    let mut site = Site::new()?;
    // Expired entries are looked for each five minutes.
    site.server_variables = fast(60)?;
    let server = site.start_server()?;
    let expiry = (seconds()? + 60).to_string();
    let entry = site.entry(NODE, WORKLOAD, "unix:uid:1", &["-entryExpiry", &expiry])?;
    let stays = site.entry(NODE, "spiffe://example.org/stays", "unix:uid:1", &[])?;
    assert_eq!(site.entry_ids()?.len(), 2);
    server.wait_for(&["Pruned an expired registration", &entry, WORKLOAD], SOON + Duration::from_secs(10))?;
    wait::until("the other entry alone", SOON, || (site.entry_ids().ok()? == [stays.clone()]).then_some(()))?;
    Ok(())
}
