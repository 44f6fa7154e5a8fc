//! Agents that prove their node: certificates of another authority, SVIDs of our own, SSH host certificates, an answer over
//! HTTP. And how the life of such an agent ends.

use spire_testkit::{Daemon, Error, Result, Run, place, wait};

use crate::harness::site::{own_uid, text};
use crate::harness::{Case, Need, Outcome, SOON, Sides, Site};

pub(crate) fn cases() -> Vec<Case> {
    use Need::{Openssl, Ours, Reference, SshKeygen};
    vec![
        Case {
            name: "attestors::x509pop_with_a_key_on_a_curve",
            needs: &[Openssl],
            run: || x509pop(Key::Ec, Sides::Ours),
        },
        Case {
            name: "attestors::x509pop_with_an_rsa_key",
            needs: &[Openssl],
            run: || x509pop(Key::Rsa, Sides::Ours),
        },
        Case {
            name: "attestors::x509pop_from_another_address_is_refused",
            needs: &[Openssl],
            run: x509pop_elsewhere,
        },
        Case {
            name: "attestors::x509pop_of_our_agent_on_their_server",
            needs: &[Openssl, Reference],
            run: || both_keys(Sides::TheirServer),
        },
        Case {
            name: "attestors::x509pop_of_their_agent_on_our_server",
            needs: &[Openssl, Reference],
            run: || both_keys(Sides::TheirAgent),
        },
        Case { name: "attestors::x509pop_with_a_minted_svid", needs: &[], run: || minted(Sides::Ours) },
        Case {
            name: "attestors::x509pop_with_a_minted_svid_on_their_server",
            needs: &[Reference],
            run: || minted(Sides::TheirServer),
        },
        Case {
            name: "attestors::x509pop_with_a_minted_svid_of_their_agent",
            needs: &[Reference],
            run: || minted(Sides::TheirAgent),
        },
        Case { name: "attestors::x509pop_with_an_svid_of_a_workload_api", needs: &[], run: exchanged },
        Case { name: "attestors::sshpop", needs: &[SshKeygen], run: || sshpop(Sides::Ours) },
        Case {
            name: "attestors::sshpop_of_our_agent_on_their_server",
            needs: &[SshKeygen, Reference],
            run: || sshpop(Sides::TheirServer),
        },
        Case {
            name: "attestors::sshpop_of_their_agent_on_our_server",
            needs: &[SshKeygen, Reference],
            run: || sshpop(Sides::TheirAgent),
        },
        Case { name: "attestors::http_challenge", needs: &[], run: || http_challenge(Sides::Ours) },
        Case {
            name: "attestors::http_challenge_of_our_agent_on_their_server",
            needs: &[Reference],
            run: || http_challenge(Sides::TheirServer),
        },
        Case {
            name: "attestors::http_challenge_of_their_agent_on_our_server",
            needs: &[Reference],
            run: || http_challenge(Sides::TheirAgent),
        },
        Case { name: "attestors::an_expired_agent_is_purged", needs: &[Openssl], run: purged },
        Case {
            name: "attestors::settings_that_make_no_sense_are_refused",
            needs: &[Ours],
            run: refused_settings,
        },
    ]
}

#[derive(Clone, Copy)]
pub(crate) enum Key {
    Ec,
    Rsa,
}

fn plugin(name: &str, settings: &str) -> String {
    format!("    NodeAttestor \"{name}\" {{\n        plugin_data {{\n{settings}        }}\n    }}\n")
}

fn attested(agent: &Daemon, id: &str) -> Result<String> {
    agent.wait_for(&["Node attestation was successful", id], SOON)
}

/// Forgets what the agent has stored, as a node that was set up anew.
fn forget(site: &Site) -> Result<()> {
    let data = site.agent.data();
    std::fs::remove_dir_all(&data).map_err(|error| Error::doing(data.display(), error))
}

/// Makes an authority and a node's certificate with openssl.
pub(crate) fn certificates(site: &Site, key: Key, address: &str) -> Result<()> {
    let extensions = format!(
        "keyUsage=critical,digitalSignature\nsubjectAltName=IP:{address},URI:x509pop://example.org/rack/r1\n"
    );
    place::write(&site.path("node.ext"), &extensions)?;
    let kind: &[&str] = match key {
        Key::Ec => &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384"],
        Key::Rsa => &["-newkey", "rsa:2048"],
    };
    let openssl = |args: &[&str], more: &[&str]| {
        Run::new("openssl").args(args).args(more).within(&site.path("")).success().map(drop)
    };
    let authority = ["-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=nodes", "-days", "2"];
    let usage = ["-addext", "keyUsage=critical,keyCertSign"];
    openssl(
        &["req", "-x509", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"],
        &[&authority[..], &usage].concat(),
    )?;
    openssl(
        &["req", "-nodes", "-keyout", "node.key", "-out", "node.csr", "-subj", "/CN=n1.example.org"],
        kind,
    )?;
    let signed =
        ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "node.ext"];
    openssl(&["x509", "-req", "-in", "node.csr", "-out", "node.pem"], &signed)
}

/// Sets both sides up for certificates of that authority.
pub(crate) fn with_certificates(site: &mut Site, server: &str) {
    let [ca, key, certificate] =
        ["ca.pem", "node.key", "node.pem"].map(|name| text(&site.path(name)).to_owned());
    site.server.plugins = plugin("x509pop", &format!("ca_bundle_path = \"{ca}\"\n{server}"));
    let agent = format!("private_key_path = \"{key}\"\ncertificate_path = \"{certificate}\"\n");
    site.agent.attestor = ("x509pop", agent);
}

fn both_keys(sides: Sides) -> Outcome {
    x509pop(Key::Ec, sides)?;
    x509pop(Key::Rsa, sides)
}

/// The whole life of an agent that can attest again.
fn x509pop(key: Key, sides: Sides) -> Outcome {
    let mut site = Site::of(sides)?;
    certificates(&site, key, "127.0.0.1")?;
    with_certificates(
        &mut site,
        "verify_client_ip = true\nagent_path_template = \"/{{ .PluginName }}/{{ .Subject.CommonName | trimSuffix \
         \\\".example.org\\\" }}/{{ .URISanSelectors.rack }}\"\n",
    );
    site.server.lines.pop();
    site.server.lines.extend([
        "max_attested_node_info_staleness = \"1s\"".to_owned(),
        "experimental {\n    cache_reload_interval = \"1s\"\n    agent_spiffe_id_as_selector = true\n    }"
            .to_owned(),
    ]);
    let id = "spiffe://example.org/spire/agent/x509pop/n1/r1";
    let server = site.start_server()?;
    let mut agent = site.start_agent(&[])?;
    attested(&agent, id)?;
    server.wait_for(&["Agent attestation request completed", id, "node_attestor_type=x509pop"], SOON)?;
    let shown = site.attested_agent()?;
    assert_eq!(shown["attestation_type"], "x509pop");
    assert_eq!(shown["can_reattest"], true);
    let selectors = site.cli(&["agent", "show", "-spiffeID", id])?.stdout;
    let own = format!("spiffe_id:{id}");
    for selector in
        ["x509pop:subject:cn:n1.example.org", "x509pop:san:rack:r1", "x509pop:ca:fingerprint:", &own]
    {
        assert!(selectors.contains(selector), "{selector}: {selectors}");
    }
    // An alias by what the certificate says, and one by the agent's own ID.
    let aliases = [("spiffe://example.org/rack", "x509pop:san:rack:r1"), ("spiffe://example.org/this", &own)];
    for (alias, selector) in aliases {
        site.cli(&["entry", "create", "-node", "-spiffeID", alias, "-selector", selector])?;
        site.entry(alias, &format!("{alias}/w"), &own_uid(), &[])?;
    }
    let workloads = ["spiffe://example.org/rack/w", "spiffe://example.org/this/w"];
    site.wait_identities(&workloads)?;

    // A node that was set up anew is the same agent.
    agent.kill()?;
    forget(&site)?;
    let mut agent = site.start_agent(&[])?;
    attested(&agent, id)?;
    site.attested_agent()?;
    site.wait_identities(&workloads)?;

    // Whoever is evicted and can attest again does so at once.
    evict(&site, &agent, id)?;
    site.attested_agent()?;
    site.wait_identities(&workloads)?;

    // Whoever is banned ends, and may not.
    site.cli(&["agent", "ban", "-spiffeID", id])?;
    assert_eq!(agent.wait_exit(SOON)?.code(), Some(1), "{}", agent.error("banned"));
    let mut agent = site.spawn_agent(&[])?;
    agent.wait_for(&["failed to attest: agent is banned"], SOON)?;
    assert_eq!(agent.wait_exit(SOON)?.code(), Some(1), "{}", agent.error("banned"));
    Ok(())
}

fn x509pop_elsewhere() -> Outcome {
    let mut site = Site::new()?;
    certificates(&site, Key::Ec, "192.0.2.1")?;
    with_certificates(&mut site, "verify_client_ip = true\n");
    let server = site.start_server()?;
    let mut agent = site.spawn_agent(&[])?;
    let why = "nodeattestor(x509pop): client IP 127.0.0.1 does not match any certificate IP SAN";
    server.wait_for(&["level=error", why.split_once(": ").map_or(why, |(_, text)| text)], SOON)?;
    agent.wait_for(&["code = PermissionDenied", why], SOON)?;
    assert_eq!(agent.wait_exit(SOON)?.code(), Some(1));
    Ok(())
}

/// Mode `spiffe`: an SVID of the server is the proof.
fn minted(sides: Sides) -> Outcome {
    let mut site = Site::of(sides)?;
    site.server.plugins = plugin("x509pop", "mode = \"spiffe\"\n");
    let _server = site.start_server()?;
    let mint = |id: &str, folder: &str| {
        let folder = site.path(folder);
        std::fs::create_dir_all(&folder).map_err(|error| Error::doing(folder.display(), error))?;
        site.cli(&["x509", "mint", "-spiffeID", id, "-write", text(&folder)]).map(drop)
    };
    mint("spiffe://example.org/spire-exchange/rack/n1", "good")?;
    mint("spiffe://example.org/workload", "bad")?;
    let settings = |folder: &str| {
        let folder = site.path(folder);
        let folder = folder.display();
        format!("private_key_path = \"{folder}/key.pem\"\ncertificate_path = \"{folder}/svid.pem\"\n")
    };
    let (good, bad) = (settings("good"), settings("bad"));
    site.agent.attestor = ("x509pop", bad);
    let mut agent = site.spawn_agent(&[])?;
    agent.wait_for(&["nodeattestor(x509pop): x509 cert doesnt match SVID prefix"], SOON)?;
    assert_eq!(agent.wait_exit(SOON)?.code(), Some(1));
    site.agent.attestor = ("x509pop", good);
    let agent = site.start_agent(&[])?;
    attested(&agent, "spiffe://example.org/spire/agent/x509pop/rack/n1")?;
    Ok(())
}

/// Mode `spiffe`, with an SVID that another agent's Workload API gives.
fn exchanged() -> Outcome {
    let mut site = Site::new()?;
    site.server.plugins = plugin("x509pop", "mode = \"spiffe\"\nspiffe_prefix = \"/nodes\"\n");
    let _server = site.start_server()?;
    let _first = site.join("spiffe://example.org/first")?;
    site.entry("spiffe://example.org/first", "spiffe://example.org/nodes/inner", &own_uid(), &[])?;
    site.wait_identities(&["spiffe://example.org/nodes/inner"])?;
    let socket = format!("spiffe_endpoint_socket = \"unix://{}\"\n", site.agent.socket().display());
    site.agent.folder = site.path("second");
    std::fs::create_dir(site.path("second"))?;
    site.agent.attestor = ("x509pop", socket);
    let second = site.start_agent(&[])?;
    let id = "spiffe://example.org/spire/agent/x509pop/inner";
    attested(&second, id)?;
    // Its own proof is fetched anew each time.
    evict(&site, &second, id)
}

/// Evicts an agent, which attests again.
fn evict(site: &Site, agent: &Daemon, id: &str) -> Outcome {
    let mark = agent.mark();
    site.cli(&["agent", "evict", "-spiffeID", id])?;
    agent.wait_after(mark, &["Agent needs to re-attest; will attempt to re-attest"], SOON)?;
    agent.wait_after(mark, &["Successfully reattested node", id], SOON)?;
    Ok(())
}

fn sshpop(sides: Sides) -> Outcome {
    for (kind, bits) in [("rsa", "3072"), ("ecdsa", "256"), ("ecdsa", "521"), ("ed25519", "256")] {
        let mut site = Site::of(sides)?;
        let keygen =
            |args: &[&str]| Run::new("ssh-keygen").arg("-q").args(args).within(&site.path("")).success();
        keygen(&["-t", "ed25519", "-N", "", "-C", "authority", "-f", "authority"])?;
        keygen(&["-t", kind, "-b", bits, "-N", "", "-C", "host", "-f", "host"])?;
        keygen(&["-s", "authority", "-I", "h", "-h", "-n", "h1.example.org", "-V", "-5m:+1h", "host.pub"])?;
        let path = |name: &str| text(&site.path(name)).to_owned();
        let server = format!(
            "cert_authorities_path = \"{}\"\ncanonical_domain = \"example.org\"\nagent_path_template = \"/{{{{ .PluginName \
             }}}}/{{{{ .Hostname }}}}/{{{{ .Fingerprint | len }}}}\"\n",
            path("authority.pub")
        );
        let agent =
            format!("host_key_path = \"{}\"\nhost_cert_path = \"{}\"\n", path("host"), path("host-cert.pub"));
        site.server.plugins = plugin("sshpop", &server);
        site.agent.attestor = ("sshpop", agent);
        let _server = site.start_server()?;
        let mut agent = site.start_agent(&[])?;
        let id = "spiffe://example.org/spire/agent/sshpop/h1/43";
        attested(&agent, id)?;
        assert_eq!(site.attested_agent()?["can_reattest"], true, "{kind}");
        site.entry(id, "spiffe://example.org/w", &own_uid(), &[])?;
        site.wait_identities(&["spiffe://example.org/w"])?;
        agent.kill()?;
        forget(&site)?;
        attested(&site.start_agent(&[])?, id)?;
    }
    Ok(())
}

/// Trust on first use: once, and again when the agent is evicted.
fn http_challenge(sides: Sides) -> Outcome {
    let mut site = Site::of(sides)?;
    let port = place::port()?;
    let server = "allowed_dns_patterns = [\"^127\\\\.0\\\\.0\\\\.[0-9]+$\"]\n";
    site.server.plugins = plugin("http_challenge", server);
    let settings = format!("hostname = \"127.0.0.1\"\nagentname = \"one\"\nport = {port}\n");
    site.agent.attestor = ("http_challenge", settings);
    let server = site.start_server()?;
    let mut agent = site.start_agent(&[])?;
    let id = "spiffe://example.org/spire/agent/http_challenge/127.0.0.1";
    attested(&agent, id)?;
    assert_eq!(site.attested_agent()?["can_reattest"], false);
    let selectors = site.cli(&["agent", "show", "-spiffeID", id])?.stdout;
    assert!(selectors.contains("http_challenge:hostname:127.0.0.1"), "{selectors}");
    site.entry(id, "spiffe://example.org/w", &own_uid(), &[])?;
    site.wait_identities(&["spiffe://example.org/w"])?;

    agent.kill()?;
    forget(&site)?;
    let mut stranger = site.spawn_agent(&[])?;
    let why = "attestation data has already been used to attest an agent";
    stranger.wait_for(&["code = PermissionDenied", why], SOON)?;
    assert_eq!(stranger.wait_exit(SOON)?.code(), Some(1), "{}", stranger.error("refused"));
    server
        .wait_for(&["level=error", "Attestation data has already been used to attest an agent", id], SOON)?;
    site.cli(&["agent", "evict", "-spiffeID", id])?;
    attested(&site.start_agent(&[])?, id)?;

    forget(&site)?;
    site.agent.attestor.1 = site.agent.attestor.1.replace("127.0.0.1", "host.example.org");
    let other = site.spawn_agent(&[])?;
    other.wait_for(&["the requested hostname is not allowed to connect"], SOON)?;
    Ok(())
}

/// An agent that is gone for long can be removed, if it could come again.
fn purged() -> Outcome {
    let mut site = Site::new()?;
    certificates(&site, Key::Ec, "127.0.0.1")?;
    with_certificates(&mut site, "");
    site.server.lines.push("agent_ttl = \"5s\"".to_owned());
    let _server = site.start_server()?;
    let mut agent = site.start_agent(&[])?;
    agent.wait_for(&["Node attestation was successful"], SOON)?;
    agent.kill()?;
    let none = site.cli(&["agent", "purge", "-expiredFor", "1h"])?;
    assert_eq!(none.stdout, "No agents to purge.\n");
    let found = wait::until("expiry of the agent", SOON, || {
        let output = site.cli(&["agent", "purge", "-expiredFor", "1s", "-dryRun"]).ok()?;
        output.stdout.contains("Found 1 expired agent").then_some(output)
    })?;
    assert!(found.stdout.contains("spiffe://example.org/spire/agent/x509pop/"), "{found}");
    site.attested_agent()?;
    let purged = site.cli(&["agent", "purge", "-expiredFor", "1s"])?;
    assert!(purged.stdout.contains("Agents purged:"), "{purged}");
    assert_eq!(site.cli(&["agent", "list"])?.stdout, "No attested agents found\n");
    // It was not told, and comes again.
    let agent = site.start_agent(&[])?;
    agent.wait_for(&["Node attestation was successful"], SOON)?;
    Ok(())
}

fn refused_settings() -> Outcome {
    let mut site = Site::new()?;
    let table = [
        (
            "x509pop",
            "mode = \"spiffe\"\nagent_path_template = \"/{{ uuidv4 }}\"\n",
            "function \\\"uuidv4\\\" is not built",
        ),
        (
            "sshpop",
            "cert_authorities = [\"x\"]\n",
            "failed to create cert checker: failed to parse public key",
        ),
        (
            "http_challenge",
            "tofu = false\n",
            "you can not turn off trust on first use (TOFU) when non-root ports are allowed",
        ),
    ];
    for (name, settings, why) in table {
        site.server.plugins = plugin(name, settings);
        let mut server = site.spawn_server()?;
        assert_eq!(server.wait_exit(SOON)?.code(), Some(1));
        server.wait_for(&["Failed to configure plugin", name, why], SOON)?;
    }
    Ok(())
}
