//! What renews itself: authorities, SVIDs, tokens; and what open streams learn of it.

use std::collections::BTreeSet;
use std::time::Duration;

use spire_testkit::{Daemon, Result, place, wait};

use crate::harness::site::{attestations, own_uid};
use crate::harness::{Case, Need, Outcome, SOON, Site, programs, svid};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case { name: "rotation::authorities_overlap", needs: &[Need::Openssl], run: authorities_overlap },
        Case { name: "rotation::a_stream_gets_each_renewed_svid", needs: &[], run: stream_gets_renewals },
        Case { name: "rotation::a_stream_gets_each_change_of_entries", needs: &[], run: stream_gets_changes },
        Case { name: "rotation::tokens_are_renewed_and_overlap", needs: &[], run: tokens },
        Case { name: "rotation::the_agent_renews_its_own_svid", needs: &[], run: agent_svid },
    ]
}

const AGENT: &str = "spiffe://example.org/node";
const WORKLOAD: &str = "spiffe://example.org/w";
/// A short-lived thing's turn comes in this time on a busy machine.
const A_TURN: Duration = Duration::from_secs(75);

fn authorities_overlap() -> Outcome {
    let mut site = Site::new()?;
    // Looked at each ten seconds: prepared when half of the time is left, active when a sixth is, which must be longer
    // than ten seconds.
    site.server.lines.push("ca_ttl = \"69s\"".to_owned());
    let server = site.start_server()?;
    let agent = site.join(AGENT)?;
    site.entry(AGENT, WORKLOAD, &own_uid(), &[])?;
    let first = site.wait_identities(&[WORKLOAD])?;
    assert!(!first.stdout.contains("CA #2"), "{first}");
    let stream = site.watch()?;
    // The next authority is trusted before it signs.
    server.wait_for(&["X509 CA prepared", "slot=B"], A_TURN)?;
    server.wait_for(&["JWT key prepared", "slot=B"], A_TURN)?;
    stream.wait_for(&["CA #2 Valid Until"], A_TURN)?;
    assert_eq!(svid::certificates(&site.cli(&["bundle", "show"])?.stdout), 2);
    let active = server.lines().iter().filter(|line| line.contains("X509 CA activated")).count();
    assert_eq!(active, 1, "prepared, not active yet");
    server.wait_for(&["X509 CA activated", "slot=B"], A_TURN)?;
    server.wait_for(&["JWT key activated", "slot=B"], A_TURN)?;

    // What is signed now is verified by the new authority alone.
    std::fs::create_dir(site.path("out"))?;
    let second = site.cli(&["bundle", "show"])?.stdout;
    let newest = second.split_inclusive("-----END CERTIFICATE-----\n").last().unwrap_or_default().to_owned();
    let minted = site.cli(&["x509", "mint", "-spiffeID", "spiffe://example.org/minted", "-write", "out"])?;
    let key_id = |text: &str, name: &str| {
        let mut lines = text.lines().skip_while(move |line| !line.contains(name)).skip(1);
        lines.next().unwrap_or_default().trim().trim_start_matches("keyid:").to_owned()
    };
    let leaf = svid::x509_text(&place::read(&site.path("out/svid.pem"))?)?;
    let authority = key_id(&leaf, "Authority Key Identifier");
    assert!(authority.len() > 40, "{minted}{leaf}");
    assert_eq!(authority, key_id(&svid::x509_text(&newest)?, "Subject Key Identifier"));
    // The workload's next SVID comes from it too, without attesting anew.
    let mut seen = String::new();
    let renewed = wait::until("SVID of the new authority", A_TURN, || {
        let fetch = ["api", "fetch", "x509", "-write", "out"];
        site.workload(&fetch).success().ok()?;
        let text = svid::x509_text(&place::read(&site.path("out/svid.0.pem")).ok()?).ok()?;
        seen = key_id(&text, "Authority Key Identifier");
        (seen == authority).then_some(())
    });
    assert!(renewed.is_ok(), "still {seen}, not {authority}: {}", agent.error("no new SVID"));
    assert_eq!(attestations(&agent), 1);
    Ok(())
}

/// The values behind a label that a stream printed, in order.
fn printed(stream: &Daemon, label: &str) -> Vec<String> {
    stream.lines().iter().filter_map(|line| Some(line.strip_prefix(label)?.trim().to_owned())).collect()
}

fn stream_gets_renewals() -> Outcome {
    let site = Site::new()?;
    let _server = site.start_server()?;
    let _agent = site.join(AGENT)?;
    site.entry(AGENT, WORKLOAD, &own_uid(), &["-x509SVIDTTL", "10"])?;
    site.wait_identities(&[WORKLOAD])?;
    let stream = site.watch()?;
    let untils = wait::until("three renewals on the stream", A_TURN, || {
        let untils = printed(&stream, "SVID Valid Until:");
        (untils.len() >= 4).then_some(untils)
    })?;
    // Each update has a later SVID than the one before; nothing is sent twice.
    assert!(untils.windows(2).all(|pair| pair[0] < pair[1]), "{untils:?}");
    assert!(printed(&stream, "SPIFFE ID:").iter().all(|id| id == WORKLOAD));
    Ok(())
}

/// One update for each change, in the order of the changes. With this project's programs on both sides the agent keeps
/// its usual poll interval: changes are pushed.
fn stream_gets_changes() -> Outcome {
    let site = Site::with_default_intervals()?;
    let _server = site.start_server()?;
    let _agent = site.join(AGENT)?;
    let uid = own_uid();
    site.entry(AGENT, WORKLOAD, &uid, &[])?;
    site.wait_identities(&[WORKLOAD])?;
    let stream = site.watch()?;
    // The reference tells some states twice.
    let ours = programs::under_test().ours;
    let ids = |update: usize| -> Result<Vec<String>> {
        wait::until(&format!("update {update}"), SOON, || {
            let mut all = updates(&stream);
            if !ours {
                all.dedup();
            }
            all.get(update).cloned()
        })
    };
    assert_eq!(ids(0)?, [WORKLOAD]);
    let second = site.entry(AGENT, "spiffe://example.org/second", &uid, &[])?;
    assert_eq!(ids(1)?, ["spiffe://example.org/second", WORKLOAD]);
    let args = ["entry", "update", "-entryID", &second, "-parentID", AGENT, "-selector", &uid, "-spiffeID"];
    let changed: Vec<&str> = args.into_iter().chain(["spiffe://example.org/renamed"]).collect();
    site.cli(&changed)?;
    assert_eq!(ids(2)?, ["spiffe://example.org/renamed", WORKLOAD]);
    site.cli(&["entry", "delete", "-entryID", &second])?;
    assert_eq!(ids(3)?, [WORKLOAD]);
    // A change that concerns others is not told to this stream.
    site.entry(AGENT, "spiffe://example.org/other", "unix:uid:4242", &[])?;
    site.entry(AGENT, "spiffe://example.org/third", &uid, &[])?;
    assert_eq!(ids(4)?, ["spiffe://example.org/third", WORKLOAD]);
    Ok(())
}

/// The sorted identities of each complete update that `api watch` printed. An update ends where the next line of its
/// kind begins, so the last one counts when its SVIDs are as many as it announced.
fn updates(stream: &Daemon) -> Vec<Vec<String>> {
    let mut all: Vec<(usize, BTreeSet<String>)> = Vec::new();
    for line in stream.lines() {
        if let Some(rest) = line.strip_prefix("Received ") {
            let count = rest.split(' ').next().and_then(|count| count.parse().ok()).unwrap_or(0);
            all.push((count, BTreeSet::new()));
        } else if let (Some(id), Some(update)) = (line.strip_prefix("SPIFFE ID:"), all.last_mut()) {
            update.1.insert(id.trim().to_owned());
        }
    }
    all.into_iter()
        .filter(|(count, ids)| *count == ids.len())
        .map(|(_, ids)| ids.into_iter().collect())
        .collect()
}

fn tokens() -> Outcome {
    let site = Site::new()?;
    let _server = site.start_server()?;
    let _agent = site.join(AGENT)?;
    site.entry(AGENT, WORKLOAD, &own_uid(), &["-jwtSVIDTTL", "20"])?;
    site.wait_identities(&[WORKLOAD])?;
    let fetch = || -> Result<String> {
        let output = site.workload(&["api", "fetch", "jwt", "-audience", "a"]).success()?;
        Ok(output.stdout.lines().nth(1).unwrap_or_default().trim().to_owned())
    };
    let first = fetch()?;
    assert_eq!(fetch()?, first, "kept while it is young");
    let other = site.workload(&["api", "fetch", "jwt", "-audience", "b"]).success()?;
    assert!(!other.stdout.contains(&first), "another audience, another token");
    let second = wait::until("renewed token", A_TURN, || fetch().ok().filter(|token| *token != first))?;
    let exp = |token: &str| -> Result<Option<i64>> { Ok(svid::jwt_parts(token)?.1["exp"].as_i64()) };
    assert!(exp(&second)? > exp(&first)?);
    for token in [&first, &second] {
        let verdict =
            site.workload(&["api", "validate", "jwt", "-audience", "a", "-svid", token]).success()?;
        assert!(
            verdict.stdout.starts_with("SVID is valid.\nSPIFFE ID : spiffe://example.org/w\n"),
            "{verdict}"
        );
    }
    let verdict = site
        .workload(&["api", "validate", "jwt", "-audience", "b", "-svid", &second])
        .output()?
        .exits_with(1)?;
    assert!(format!("{verdict}").contains("SVID is not valid"), "{verdict}");
    Ok(())
}

fn agent_svid() -> Outcome {
    let mut site = Site::new()?;
    site.server.lines.push("agent_ttl = \"20s\"".to_owned());
    let _server = site.start_server()?;
    let mut agent = site.join(AGENT)?;
    let first = site.attested_agent()?;
    wait::until("renewed agent SVID", A_TURN, || {
        let now = site.attested_agent().ok()?;
        (now["x509svid_serial_number"] != first["x509svid_serial_number"]).then_some(())
    })?;
    assert_eq!(attestations(&agent), 1);
    // What it renewed it has on disk.
    agent.kill()?;
    let agent = site.start_agent(&[])?;
    site.entry(AGENT, WORKLOAD, &own_uid(), &[])?;
    site.wait_identities(&[WORKLOAD])?;
    assert_eq!(attestations(&agent), 0);
    Ok(())
}
