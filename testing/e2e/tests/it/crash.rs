//! Kill -9 of server and agent, and a server that is away: nothing acknowledged is lost and nobody attests again.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use spire_testkit::{Result, wait};

use crate::harness::site::{attestations, own_uid};
use crate::harness::{Case, Outcome, SOON, Site};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case { name: "crash::server_while_entries_are_made", needs: &[], run: server_while_entries_are_made },
        Case { name: "crash::agent_starts_again_without_attesting", needs: &[], run: agent_killed },
        Case { name: "crash::agent_serves_and_renews_around_an_absent_server", needs: &[], run: server_away },
        Case { name: "crash::memory_keys_make_a_new_authority", needs: &[], run: memory_keys },
    ]
}

const AGENT: &str = "spiffe://example.org/node";
const WORKLOAD: &str = "spiffe://example.org/w";
/// Kills in one test, each at another moment.
const KILLS: usize = 3;
/// Clients that make entries at once.
const WRITERS: usize = 3;

/// A number that differs from run to run; a failure shows it.
fn some_number(below: usize) -> usize {
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.subsec_nanos());
    usize::try_from(nanos / 1000).unwrap_or(0) % below
}

fn server_while_entries_are_made() -> Outcome {
    let site = Site::new()?;
    let mut server = site.start_server()?;
    let agent = site.join(AGENT)?;
    let bundle = site.cli(&["bundle", "show"])?.stdout;
    let attested = site.attested_agent()?;
    let mut acknowledged: BTreeSet<String> = BTreeSet::new();
    for round in 0..KILLS {
        let kill_after = 1 + some_number(25);
        let count = AtomicUsize::new(0);
        let stop = AtomicBool::new(false);
        let made: Result<Vec<Vec<String>>> = std::thread::scope(|scope| {
            let writers: Vec<_> = (0..WRITERS)
                .map(|writer| {
                    let (site, count, stop) = (&site, &count, &stop);
                    scope.spawn(move || make_entries(site, &format!("r{round}-{writer}"), count, stop))
                })
                .collect();
            let killed = wait::until("acknowledged entries", SOON, || {
                (count.load(Ordering::Relaxed) >= kill_after).then_some(())
            })
            .and_then(|()| server.kill());
            stop.store(true, Ordering::Relaxed);
            let made = writers.into_iter().map(|writer| writer.join().unwrap_or_default()).collect();
            killed.map(|()| made)
        });
        acknowledged.extend(made?.into_iter().flatten());
        server = site.start_server()?;
        let kept: BTreeSet<String> = site.entry_ids()?.into_iter().collect();
        let lost: Vec<&String> = acknowledged.difference(&kept).collect();
        assert!(lost.is_empty(), "lost after {kill_after} entries in round {round}: {lost:?}");
        assert_eq!(site.cli(&["bundle", "show"])?.stdout, bundle, "the same authorities");
    }
    // The agent found the server again with the SVID that it had.
    site.entry(AGENT, WORKLOAD, &own_uid(), &[])?;
    site.wait_identities(&[WORKLOAD])?;
    assert_eq!(attestations(&agent), 1);
    let after = site.attested_agent()?;
    assert_eq!(
        (&after["id"], &after["x509svid_serial_number"]),
        (&attested["id"], &attested["x509svid_serial_number"])
    );
    Ok(())
}

/// Makes entries until told to stop, and says which were acknowledged. Those that fail are the dying server's.
fn make_entries(site: &Site, name: &str, count: &AtomicUsize, stop: &AtomicBool) -> Vec<String> {
    let mut made = Vec::new();
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        number += 1;
        let entry = |part: &str| {
            format!(
                "{{\"spiffe_id\":\"spiffe://example.org/{name}-{number}-{part}\",\"parent_id\":\"{AGENT}\",\
                 \"selectors\":[{{\"type\":\"t\",\"value\":\"{number}\"}}]}}"
            )
        };
        let batch = format!("{{\"entries\":[{},{},{}]}}", entry("a"), entry("b"), entry("c"));
        let Ok(output) = site.command(&["entry", "create", "-data", "-"]).input(batch).output() else {
            break;
        };
        if output.code == 0 {
            let ids = output.stdout.lines().filter_map(|line| line.strip_prefix("Entry ID"));
            made.extend(ids.map(|id| id.trim_start_matches([' ', ':']).trim().to_owned()));
            count.fetch_add(3, Ordering::Relaxed);
        }
    }
    made
}

fn agent_killed() -> Outcome {
    let site = Site::new()?;
    let _server = site.start_server()?;
    let mut agent = site.join(AGENT)?;
    site.entry(AGENT, WORKLOAD, &own_uid(), &[])?;
    site.wait_identities(&[WORKLOAD])?;
    let attested = site.attested_agent()?;
    for _ in 0..KILLS {
        agent.kill()?;
        // No token: it has its SVID and its key.
        agent = site.start_agent(&[])?;
        site.wait_identities(&[WORKLOAD])?;
        assert_eq!(attestations(&agent), 0);
        assert_eq!(site.attested_agent()?["id"], attested["id"]);
    }
    Ok(())
}

fn server_away() -> Outcome {
    let site = Site::new()?;
    let mut server = site.start_server()?;
    let agent = site.join(AGENT)?;
    site.entry(AGENT, WORKLOAD, &own_uid(), &["-x509SVIDTTL", "30"])?;
    site.wait_identities(&[WORKLOAD])?;
    let first = site.workload(&["api", "fetch", "x509"]).success()?.field("SVID Valid Until")?;
    server.kill()?;
    // The renewal that becomes due fails for want of a server.
    agent.wait_for(&["level=error", "connection refused"], SOON)?;
    let meanwhile = site.workload(&["api", "fetch", "x509"]).success()?;
    assert!(meanwhile.stdout.contains(WORKLOAD));
    let mark = agent.mark();
    let _server = site.start_server()?;
    let later = wait::until("renewed SVID", SOON, || {
        let until =
            site.workload(&["api", "fetch", "x509"]).success().ok()?.field("SVID Valid Until").ok()?;
        (until > first).then_some(until)
    })?;
    assert!(later > first);
    let again = agent.lines()[mark..].iter().any(|line| line.contains("Node attestation was successful"));
    assert!(!again, "it did not attest again");
    Ok(())
}

/// As in the reference: nobody can sign for what nobody kept the key of, but entries stay and the old bundle too.
fn memory_keys() -> Outcome {
    let mut site = Site::new()?;
    site.server.key_manager = "memory";
    let mut server = site.start_server()?;
    let entry = site.entry(AGENT, WORKLOAD, "unix:uid:1", &[])?;
    let before = site.cli(&["bundle", "show"])?.stdout;
    server.kill()?;
    let server = site.start_server()?;
    server.wait_for(&["Journal loaded", "x509_cas=0"], Duration::from_secs(1))?;
    let after = site.cli(&["bundle", "show"])?.stdout;
    assert!(after.contains(before.trim()) && after.len() > before.len(), "one more authority");
    assert_eq!(site.entry_ids()?, [entry]);
    Ok(())
}
