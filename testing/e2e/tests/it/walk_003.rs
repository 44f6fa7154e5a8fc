//! The walkthrough of 2025: containers of a compose file, a server on PostgreSQL, two services that know go-spiffe and call each
//! other over HTTPS. Its configuration files and command lines are as they were; what stands in for the containers is a folder
//! at `/opt/spire`, names in `/etc/hosts` and the users that they run as.

use libtest_mimic::Failed;
use spire_testkit::database::{Options, Postgres};
use spire_testkit::{Daemon, Run, place, redact::redact, wait};

use crate::harness::peer::Peer;
use crate::harness::walk::{WORKLOAD_UID, Walk};
use crate::harness::{Case, Need, Outcome, SOON, svid};

pub(crate) fn cases() -> Vec<Case> {
    const NEEDS: &[Need] =
        &[Need::Namespaces, Need::Root, Need::Openssl, Need::Postgres, Need::Peer(Peer::Go)];
    vec![Case { name: "walk_003::on_postgres_with_go_services", needs: NEEDS, run: walk }]
}

const SERVER: &str = "/opt/spire/bin/spire-server";
const SOCKET: &str = "/tmp/spire-agent/public/api.sock";

fn walk() -> Outcome {
    let peer = Peer::Go.ready()?;
    let walk = Walk::new("bin")?;
    // The walk's folder is the image's, and the services are in it too: `/opt` of this machine is hidden.
    std::fs::copy(peer.join("peer"), walk.path("service"))?;
    walk.sample("003-server.conf", "conf/server/server.conf")?;
    walk.sample("003-agent.conf", "conf/agent/agent.conf")?;
    walk.works("mount -t tmpfs tmpfs /opt && mkdir /opt/spire && mount --bind . /opt/spire && chmod 755 .")?;
    walk.works("printf '127.0.0.1 localhost postgres spire-server workload-server\\n' > hosts && mount --bind hosts /etc/hosts")?;

    let database = Postgres::start(&Options { port: Some(5432), ..Options::default() })?;
    database.sql("postgres", "ALTER USER spire PASSWORD 'spirepass'")?;
    database.sql("postgres", "CREATE DATABASE spire")?;
    // The image's entry point is `spire-server run`, and the compose file says so once more.
    let server = walk.background("server", &format!("{SERVER} run spire-server run"))?;
    server.wait_for(&["Starting Server APIs", "network=unix"], SOON)?;
    server.wait_for(&["Connected to SQL database", "type=postgres", "version="], SOON)?;
    server.wait_for(&["Starting Server APIs", "address=\"[::]:8081\"", "network=tcp"], SOON)?;
    wait::until("healthy server", SOON, || walk.works(&format!("{SERVER} healthcheck")).ok())?;
    tables(&database)?;

    bundle(&walk)?;
    let line = format!("{SERVER} token generate -spiffeID spiffe://example.org/agent1");
    let token = walk.works(&line)?.field("Token")?;
    let tokens = || database.sql("spire", "SELECT count(*) FROM join_tokens");
    assert_eq!(tokens()?.trim(), "1");
    let agent = start_agent(&walk, &token)?;
    assert_eq!(tokens()?.trim(), "0", "a token that was used is gone");

    let parent = format!("spiffe://example.org/spire/agent/join_token/{token}");
    let shown = walk.works("bin/spire-server entry show")?;
    assert!(shown.stdout.starts_with("Found 1 entry\n"), "{shown}");
    for part in [
        "SPIFFE ID               : spiffe://example.org/agent1\n",
        &format!("Parent ID               : {parent}\n"),
        &format!("Selector                : spiffe_id:{parent}\n"),
    ] {
        assert!(shown.stdout.contains(part), "no {part:?}: {shown}");
    }
    entry(&walk, &parent, "server", 0)?;
    fetch(&walk)?;
    entry(&walk, &parent, "client", WORKLOAD_UID)?;
    services(&walk)?;
    drop(agent);
    drop(server);
    Ok(())
}

/// The schema is that of SPIRE's servers.
fn tables(database: &Postgres) -> Outcome {
    let tables = database.sql(
        "spire",
        "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public' ORDER BY table_name",
    )?;
    let wanted = [
        "attested_node_entries",
        "attested_node_entries_events",
        "bundles",
        "ca_journals",
        "dns_names",
        "federated_registration_entries",
        "federated_trust_domains",
        "join_tokens",
        "migrations",
        "node_resolver_map_entries",
        "registered_entries",
        "registered_entries_events",
        "selectors",
    ];
    assert_eq!(tables.lines().collect::<Vec<_>>(), wanted);
    assert_eq!(database.sql("spire", "SELECT version, code_version FROM migrations")?.trim(), "25|1.15.3");
    Ok(())
}

/// `docker exec -it` makes the ends of lines those of a terminal; the agent must read such a file.
fn bundle(walk: &Walk) -> Outcome {
    let shown = walk.works(&format!("{SERVER} bundle show -format pem"))?;
    assert!(shown.stdout.starts_with("-----BEGIN CERTIFICATE-----\n"), "{shown}");
    assert_eq!((svid::certificates(&shown.stdout), shown.stderr.as_str()), (1, ""));
    let text = svid::x509_text(&shown.stdout)?;
    for part in [
        "Public-Key: (2048 bit)",
        "sha256WithRSAEncryption",
        "URI:spiffe://example.org\n",
        "Certificate Sign, CRL Sign",
    ] {
        assert!(text.contains(part), "no {part:?}: {text}");
    }
    place::write(&walk.path("conf/agent/bundle.pem"), &shown.stdout.replace('\n', "\r\n"))?;
    Ok(())
}

fn start_agent(walk: &Walk, token: &str) -> Result<Daemon, Failed> {
    let line =
        format!("/opt/spire/bin/spire-agent run -config /opt/spire/conf/agent/agent.conf -joinToken {token}");
    let agent = walk.background("agent", &line)?;
    agent.wait_for(&["Starting agent APIs"], SOON)?;
    agent.wait_for(&["Node attestation was successful", token], SOON)?;
    let warning = "Node attestation is not reattestable and the 'memory' key manager is in use";
    agent.wait_for(&["level=warning", warning], SOON)?;
    Ok(agent)
}

fn entry(walk: &Walk, parent: &str, name: &str, uid: u32) -> Outcome {
    let created = walk.works(&format!(
        "bin/spire-server entry create -parentID {parent} -spiffeID spiffe://example.org/{name} -selector \
         unix:uid:{uid}"
    ))?;
    let block = format!(
        "Entry ID                : <uuid>\nSPIFFE ID               : spiffe://example.org/{name}\nParent ID               \
         : {}\nRevision                : 0\nX509-SVID TTL           : default\nJWT-SVID TTL            : \
         default\nSelector                : unix:uid:{uid}\n\n",
        redact(parent)
    );
    assert_eq!(redact(&created.stdout), block);
    Ok(())
}

fn fetch(walk: &Walk) -> Outcome {
    let fetch = "bin/spire-agent api fetch x509 -output json";
    let fetched = wait::until("SVID of the server", SOON, || walk.works(fetch).ok())?;
    assert_eq!(fetched.stdout.lines().count(), 1, "{fetched}");
    let answer = svid::json(&fetched.stdout)?;
    let keys: Vec<&String> = answer.as_object().into_iter().flatten().map(|(key, _)| key).collect();
    assert_eq!(keys, ["crl", "federated_bundles", "svids"], "{answer}");
    assert_eq!(answer["svids"][0]["spiffe_id"], "spiffe://example.org/server", "{answer}");
    Ok(())
}

/// What the services say, with the time before each line cut off.
fn said(lines: &[String]) -> Vec<String> {
    lines.iter().filter_map(|line| line.find('[').map(|at| line[at..].to_owned())).collect()
}

fn services(walk: &Walk) -> Outcome {
    let server = walk.background(
        "workload-server",
        &format!("./service demo-server {SOCKET} :8443 spiffe://example.org/client"),
    )?;
    server.wait_for(&["[Server] Starting HTTPS server on :8443..."], SOON)?;
    let ask = || {
        let client = Run::as_user(WORKLOAD_UID, &walk.path("service"));
        client.args(&["demo-client", SOCKET, "https://workload-server:8443", "spiffe://example.org/server"])
    };
    let client = ask().success()?;
    server.wait_for(&["[Server] Response written successfully"], SOON)?;
    let lines: Vec<String> = client.stdout.lines().map(str::to_owned).collect();
    assert_eq!(
        said(&lines),
        [
            "[Client] Creating X509Source (SPIFFE Workload API client)...",
            "[Client] Configuring TLS with mTLS...",
            "[Client] Sending GET request to https://workload-server:8443",
            "[Client] VerifyPeerCertificate called with 1 certs",
            "[Client] GetClientCertificate called",
            "[Client] Returning client certificate",
            "[Client] Reading response body...",
            "[Client] Server response: Hello, client with SPIFFE ID: spiffe://example.org/client",
            "[Client] Closing X509Source...",
        ]
    );
    assert_eq!(
        said(&server.lines()),
        [
            "[Server] Creating X509Source (SPIFFE Workload API client)...",
            "[Server] Configuring TLS with mTLS...",
            "[Server] Starting HTTPS server on :8443...",
            "[Server] VerifyPeerCertificate called with 1 certs",
            "[Server] Received request",
            "[Server] TLS handshake complete. Peer certificates count: 1",
            "[Server] Client SPIFFE ID from cert: spiffe://example.org/client",
            "[Server] Response written successfully",
        ]
    );
    // The server itself is no client that it allows.
    let refused = Run::new(walk.path("service"))
        .args(&["demo-client", SOCKET, "https://workload-server:8443", "spiffe://example.org/server"])
        .output()?;
    assert_eq!(refused.code, 1, "{refused}");
    server.wait_for(&["unexpected ID \"spiffe://example.org/server\""], SOON)?;
    Ok(())
}
