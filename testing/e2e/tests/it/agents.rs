//! Which agents are let in: tokens used, expired and unknown; another trust domain; a second start without a token.

use std::time::{SystemTime, UNIX_EPOCH};

use spire_testkit::wait;

use crate::harness::site::{attestations, own_uid};
use crate::harness::{Case, Outcome, SOON, Site};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case { name: "agents::an_unknown_token_is_refused", needs: &[], run: unknown_token },
        Case { name: "agents::a_used_token_is_refused", needs: &[], run: used_token },
        Case { name: "agents::an_expired_token_is_refused", needs: &[], run: expired_token },
        Case {
            name: "agents::a_server_of_another_trust_domain_is_refused",
            needs: &[],
            run: foreign_trust_domain,
        },
        Case { name: "agents::a_banned_agent_ends_and_stays_out", needs: &[], run: banned },
        Case { name: "agents::an_evicted_agent_ends", needs: &[], run: evicted },
    ]
}

const AGENT: &str = "spiffe://example.org/node";

fn unknown_token() -> Outcome {
    let site = Site::new()?;
    let server = site.start_server()?;
    let agent = site.spawn_agent(&["-joinToken", "3e2a9fd2-0000-4000-8000-000000000000"])?;
    refused(&server, &agent, "join token does not exist or has already been used")?;
    let agents = site.cli(&["agent", "list"])?;
    assert_eq!(agents.stdout, "No attested agents found\n");
    Ok(())
}

fn used_token() -> Outcome {
    let mut site = Site::new()?;
    let server = site.start_server()?;
    let token = site.token(AGENT)?;
    let first = site.start_agent(&["-joinToken", &token])?;
    first.wait_for(&["Node attestation was successful"], SOON)?;
    site.agent.folder = site.path("second");
    std::fs::create_dir(site.path("second"))?;
    let second = site.spawn_agent(&["-joinToken", &token])?;
    refused(&server, &second, "join token does not exist or has already been used")?;
    site.attested_agent()?;
    Ok(())
}

fn expired_token() -> Outcome {
    let site = Site::new()?;
    let server = site.start_server()?;
    let made = site.cli_json(&["token", "generate", "-ttl", "1", "-spiffeID", AGENT])?;
    let token = made["value"].as_str().ok_or("no value")?.to_owned();
    let expires: u64 = made["expires_at"].as_str().ok_or("no expires_at")?.parse()?;
    wait::until("expiry of the token", SOON, || {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_secs();
        (now > expires).then_some(())
    })?;
    let agent = site.spawn_agent(&["-joinToken", &token])?;
    refused(&server, &agent, "join token expired")?;
    assert_eq!(site.cli(&["agent", "list"])?.stdout, "No attested agents found\n");
    Ok(())
}

/// The server says why, and so does the agent.
fn refused(server: &spire_testkit::Daemon, agent: &spire_testkit::Daemon, why: &str) -> Outcome {
    server.wait_for(&["level=error", "Invalid argument: ", why], SOON)?;
    agent.wait_for(&["code = InvalidArgument", why], SOON)?;
    assert_eq!(attestations(agent), 0);
    Ok(())
}

fn foreign_trust_domain() -> Outcome {
    let mut site = Site::new()?;
    let server = site.start_server()?;
    let token = site.token(AGENT)?;
    site.agent.trust_domain = "other.org".to_owned();
    let agent = site.spawn_agent(&["-joinToken", &token])?;
    agent.wait_for(&["spiffe://example.org/spire/server"], SOON)?;
    assert_eq!(attestations(&agent), 0);
    // The token was not given to a server that is not the right one.
    assert!(!server.lines().iter().any(|line| line.contains("AttestAgent")));
    drop(agent);
    site.agent.trust_domain = "example.org".to_owned();
    let agent = site.start_agent(&["-joinToken", &token])?;
    agent.wait_for(&["Node attestation was successful"], SOON)?;
    Ok(())
}

fn banned() -> Outcome {
    let site = Site::new()?;
    let _server = site.start_server()?;
    let mut agent = site.join(AGENT)?;
    let shown = site.attested_agent()?;
    let id = format!("spiffe://example.org{}", shown["id"]["path"].as_str().unwrap_or_default());
    assert_eq!(site.cli(&["agent", "ban", "-spiffeID", &id])?.stdout, "Agent banned successfully\n");
    let status = agent.wait_exit(SOON)?;
    assert_eq!(status.code(), Some(1), "{}", agent.error("banned"));
    agent.wait_for(&["is banned"], SOON)?;
    assert!(site.cli(&["agent", "list"])?.stdout.contains("Banned            : true"));
    Ok(())
}

fn evicted() -> Outcome {
    let site = Site::new()?;
    let _server = site.start_server()?;
    let mut agent = site.join(AGENT)?;
    site.entry(AGENT, "spiffe://example.org/w", &own_uid(), &[])?;
    site.wait_identities(&["spiffe://example.org/w"])?;
    let shown = site.attested_agent()?;
    let id = format!("spiffe://example.org{}", shown["id"]["path"].as_str().unwrap_or_default());
    assert_eq!(site.cli(&["agent", "evict", "-spiffeID", &id])?.stdout, "Agent evicted successfully\n");
    let status = agent.wait_exit(SOON)?;
    assert_eq!(status.code(), Some(1), "{}", agent.error("evicted"));
    assert_eq!(site.cli(&["agent", "list"])?.stdout, "No attested agents found\n");
    // Its alias goes with it, its children stay.
    let left = site.cli_json(&["entry", "show"])?;
    let paths: Vec<&str> = left["entries"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|entry| entry["spiffe_id"]["path"].as_str())
        .collect();
    assert_eq!(paths, ["/w"]);
    Ok(())
}
