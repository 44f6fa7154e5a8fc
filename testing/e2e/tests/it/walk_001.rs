//! The walkthrough of 2022: the release's folder and its configuration, keys on disk, a restart. Once with the release's
//! old key and once with today's.

use spire_testkit::{Daemon, place, redact::redact, wait};

use crate::harness::walk::Walk;
use crate::harness::{Case, Need, Outcome, SOON, svid};

pub(crate) fn cases() -> Vec<Case> {
    const NEEDS: &[Need] = &[Need::Namespaces, Need::Openssl];
    vec![
        Case {
            name: "walk_001::as_typed",
            needs: &[Need::Ours, Need::Namespaces, Need::Openssl],
            run: as_typed,
        },
        Case { name: "walk_001::with_todays_names", needs: NEEDS, run: with_todays_names },
    ]
}

const ID: &str = "spiffe://example.org/myservice";
const RELEASE: &str = "spire-1.4.4";

fn as_typed() -> Outcome {
    walk("001-server-old.conf", Some("default_svid_ttl"))
}

fn with_todays_names() -> Outcome {
    walk("001-server.conf", None)
}

fn walk(server_conf: &str, warned: Option<&str>) -> Outcome {
    let walk = Walk::new(&format!("{RELEASE}/bin"))?;
    walk.sample(server_conf, &format!("{RELEASE}/conf/server/server.conf"))?;
    walk.sample("001-agent.conf", &format!("{RELEASE}/conf/agent/agent.conf"))?;

    let down = walk.typed(&format!("{RELEASE}/bin/spire-server healthcheck"))?.exits_with(1)?;
    assert!(down.stderr.contains("Error: server is unhealthy: unable to determine health"), "{down}");
    let mut server = start_server(&walk)?;
    server.wait_for(
        &["level=warning", "default_x509_svid_ttl is too high for the configured ca_ttl value."],
        SOON,
    )?;
    if let Some(name) = warned {
        server.wait_for(&["level=warning", name], SOON)?;
    }
    assert_eq!(place::mode("/tmp/spire-server/private".as_ref())?, 0o750);
    assert_eq!(place::mode("/tmp/spire-server/private/api.sock".as_ref())?, 0o770);
    let up = walk.works(&format!("{RELEASE}/bin/spire-server healthcheck"))?;
    assert_eq!(up.stdout, "Server is healthy.\n");
    let verbose = walk.works(&format!("{RELEASE}/bin/spire-server healthcheck -verbose"))?;
    assert!(verbose.stdout.starts_with("Checking server health...\n"), "{verbose}");

    let token = token(&walk)?;
    entry(&walk)?;
    restart(&walk, &mut server)?;
    let server = start_server(&walk)?;
    restarted_log(&server)?;
    let agent = start_agent(&walk, &token)?;
    x509(&walk)?;
    drop(agent);
    drop(server);
    Ok(())
}

fn start_server(walk: &Walk) -> Result<Daemon, libtest_mimic::Failed> {
    let line = format!("{RELEASE}/bin/spire-server run -config {RELEASE}/conf/server/server.conf");
    let server = walk.background("server", &line)?;
    server.wait_for(&["Starting Server APIs", "network=unix"], SOON)?;
    let healthy = format!("{RELEASE}/bin/spire-server healthcheck");
    wait::until("healthy server", SOON, || walk.works(&healthy).ok())?;
    Ok(server)
}

fn token(walk: &Walk) -> Result<String, libtest_mimic::Failed> {
    let generate = format!("{RELEASE}/bin/spire-server token generate");
    let output = walk.works(&format!("{generate} -spiffeID spiffe://example.org/myagent"))?;
    assert_eq!(redact(&output.stdout), "Token: <uuid>\n");
    let foreign = walk.typed(&format!("{generate} -spiffeID spiffe://other.org/myagent"))?.exits_with(1)?;
    assert_eq!(
        foreign.stderr,
        "Error: rpc error: code = InvalidArgument desc = invalid agent ID: \"spiffe://other.org/myagent\" is not a \
         member of trust domain \"example.org\"\n"
    );
    let unnamed = walk.works(&generate)?;
    assert_eq!(redact(&unnamed.stdout), "Token: <uuid>\nWarning: Missing SPIFFE ID.\n");
    Ok(output.field("Token")?)
}

fn entry(walk: &Walk) -> Outcome {
    let line = format!(
        "{RELEASE}/bin/spire-server entry create -parentID spiffe://example.org/myagent -spiffeID {ID} -selector \
         unix:uid:$(id -u)"
    );
    let block = |entry_id: &str| {
        format!(
            "Entry ID                : {entry_id}\nSPIFFE ID               : {ID}\nParent ID               : \
             spiffe://example.org/myagent\nRevision                : 0\nX509-SVID TTL           : \
             default\nJWT-SVID TTL            : default\nSelector                : unix:uid:0\n\n"
        )
    };
    assert_eq!(redact(&walk.works(&line)?.stdout), block("<uuid>"));
    let again = walk.typed(&line)?.exits_with(1)?;
    assert_eq!(
        again.stderr,
        format!(
            "Failed to create the following entry (code: AlreadyExists, msg: \"similar entry already \
             exists\"):\n{}Error: failed to create one or more entries\n",
            block("(none)")
        )
    );
    Ok(())
}

/// Stops the server, which leaves its files behind.
fn restart(walk: &Walk, server: &mut Daemon) -> Outcome {
    let before = walk.works(&format!("{RELEASE}/bin/spire-server bundle show"))?.stdout;
    assert_eq!(svid::certificates(&before), 1);
    place::write(&walk.path("bundle.before"), &before)?;
    assert_eq!(server.stop()?, 0);
    assert_eq!(place::mode(&walk.path("data/server/keys.json"))?, 0o600);
    Ok(())
}

/// Its authorities are those of before.
fn restarted_log(server: &Daemon) -> Outcome {
    svid::in_order(
        &server.lines(),
        &[
            &["Code and DB schema versions are the same. No migration needed", "schema="],
            &["Loading journal from datastore"],
            &["Journal loaded", "jwt_keys=1", "x509_cas=1"],
            &["X509 CA activated", "slot=A"],
            &["Successfully rotated X.509 CA", "trust_domain_id=\"spiffe://example.org\"", "ttl=604"],
            &["JWT key activated", "slot=A"],
        ],
    )?;
    assert!(!server.lines().iter().any(|line| line.contains("X509 CA prepared")));
    Ok(())
}

fn start_agent(walk: &Walk, token: &str) -> Result<Daemon, libtest_mimic::Failed> {
    let after = walk.works(&format!("{RELEASE}/bin/spire-server bundle show"))?.stdout;
    assert_eq!(after, place::read(&walk.path("bundle.before"))?);
    let line =
        format!("{RELEASE}/bin/spire-agent run -config {RELEASE}/conf/agent/agent.conf -joinToken {token}");
    let agent = walk.background("agent", &line)?;
    agent.wait_for(
        &["level=warning", "Insecure bootstrap enabled; skipping server certificate verification"],
        SOON,
    )?;
    agent.wait_for(&["Starting agent APIs"], SOON)?;
    svid::in_order(&agent.lines(), &[&["Creating spire agent UDS directory"]])?;
    assert_eq!(place::mode("/tmp/spire-agent/public".as_ref())?, 0o755);
    assert_eq!(place::mode("/tmp/spire-agent/public/api.sock".as_ref())?, 0o777);
    Ok(agent)
}

fn x509(walk: &Walk) -> Outcome {
    let fetch = format!("{RELEASE}/bin/spire-agent api fetch x509 --write .");
    let output = wait::until("SVID of the service", SOON, || walk.works(&fetch).ok())?;
    let want = format!(
        "Received 1 svid after <duration>\n\nSPIFFE ID:\t\t{ID}\nSVID Valid After:\t<time>\nSVID Valid \
         Until:\t<time>\nCA #1 Valid After:\t<time>\nCA #1 Valid Until:\t<time>\n\nWriting SVID #0 to file \
         svid.0.pem.\nWriting key #0 to file svid.0.key.\nWriting bundle #0 to file bundle.0.pem.\n"
    );
    assert_eq!(redact(&output.stdout), want);
    let chain = place::read(&walk.path("svid.0.pem"))?;
    assert_eq!(svid::certificates(&chain), 1);
    walk.works("openssl verify -CAfile bundle.0.pem svid.0.pem")?;
    let text = svid::x509_text(&chain)?;
    // The first half of the SHA-256 of the SPIFFE ID, as in 2022.
    let subject = "Subject: C = US, O = SPIRE, x500UniqueIdentifier = f7fa051b660f2be34e54056a8c4e281a";
    assert!(text.contains(subject), "{text}");
    assert!(text.contains("Signature Algorithm: ecdsa-with-SHA256"), "{text}");
    assert!(text.contains(&format!("URI:{ID}\n")), "{text}");
    // 48 hours and the ten seconds that clocks may differ.
    let seconds = |flag: &str| -> Result<i64, libtest_mimic::Failed> {
        let date = svid::x509_field(&chain, flag)?;
        Ok(walk.works(&format!("date -d '{date}' +%s"))?.stdout.trim().parse()?)
    };
    assert_eq!(seconds("-enddate")? - seconds("-startdate")?, 48 * 3600 + 10);
    Ok(())
}
