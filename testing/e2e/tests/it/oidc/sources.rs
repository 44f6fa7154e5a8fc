//! Where keys come from, how they are served, and what is served while their source is away.

use std::os::unix::fs::FileTypeExt;

use libtest_mimic::Failed;
use spire_testkit::{Daemon, Run, place, wait};

use super::provider::{BUNDLE, Provider, key_ids};
use super::raw;
use crate::federation_web::WebCa;
use crate::harness::http::get_text;
use crate::harness::peer::Peer;
use crate::harness::site::{own_uid, text};
use crate::harness::{Case, Need, Outcome, SOON, Site, programs, svid};

pub(super) fn cases() -> Vec<Case> {
    const OURS: &[Need] = &[Need::Oidc];
    vec![
        Case { name: "oidc::keys_of_a_server", needs: OURS, run: server_api },
        Case { name: "oidc::keys_of_an_agent", needs: OURS, run: workload_api },
        Case { name: "oidc::keys_of_a_file_on_a_socket", needs: OURS, run: file },
        Case { name: "oidc::probes", needs: OURS, run: probes },
        Case { name: "oidc::large_heads_are_refused", needs: OURS, run: large_heads },
        Case {
            name: "oidc::certificates_are_looked_at_again",
            needs: &[Need::Oidc, Need::Openssl, Need::Peer(Peer::Go)],
            run: certificates,
        },
        Case { name: "oidc::the_server_serves_itself", needs: &[Need::Ours], run: embedded },
        Case { name: "oidc::the_server_refuses_a_bad_block", needs: &[Need::Ours], run: bad_block },
    ]
}

const AGENT: &str = "spiffe://example.org/node";
const WORKLOAD: &str = "spiffe://example.org/w";
const DOMAINS: &str = "domains = [\"localhost\"]";

fn keys(port: u16) -> Option<Vec<String>> {
    get_text(port, "/keys").filter(|(status, _)| *status == 200).map(|(_, document)| key_ids(&document))
}

/// The JWT authorities that a server has, of its bundle.
fn authorities(site: &Site) -> Result<Vec<String>, Failed> {
    let bundle = site.cli(&["bundle", "show", "-format", "spiffe"])?;
    let bundle = svid::json(&bundle.stdout)?;
    let keys = bundle["keys"].as_array().cloned().unwrap_or_default();
    let jwt = keys.iter().filter(|key| key["use"] == "jwt-svid");
    Ok(jwt.filter_map(|key| Some(key["kid"].as_str()?.to_owned())).collect())
}

/// Waits until the documents have as many keys as the server, the same ones.
fn follows(port: u16, site: &Site, count: usize) -> Outcome {
    let expected = authorities(site)?;
    assert_eq!(expected.len(), count);
    wait::until("the server's keys", SOON, || (keys(port)? == expected).then_some(()))?;
    Ok(())
}

fn server_api() -> Outcome {
    let site = Site::new()?;
    let mut server = site.start_server()?;
    let source = format!(
        "server_api {{ address = \"unix://{}\" poll_interval = \"1s\" }}",
        text(&site.server.socket())
    );
    let more = format!("{DOMAINS}\n{source}");
    let mut provider = Provider::start(&programs::under_test().oidc(), site.folder(), &more)?;
    follows(provider.port, &site, 1)?;
    site.cli(&["localauthority", "jwt", "prepare"])?;
    follows(provider.port, &site, 2)?;
    let before = keys(provider.port);
    let mark = provider.process.mark();
    server.kill()?;
    let socket = text(&site.server.socket()).to_owned();
    provider.process.wait_after(
        mark,
        &["level=warning", "Failed to fetch bundle", "rpc error: code = Unavailable", &socket],
        SOON,
    )?;
    assert_eq!(keys(provider.port), before, "what was known is served");
    let _server = site.start_server()?;
    site.cli(&["localauthority", "jwt", "activate", "-authorityID", &prepared(&site)?])?;
    site.cli(&["localauthority", "jwt", "prepare"])?;
    follows(provider.port, &site, authorities(&site)?.len())?;
    assert_eq!(provider.process.stop()?, 0);
    Ok(())
}

fn prepared(site: &Site) -> Result<String, Failed> {
    let shown = site.cli_json(&["localauthority", "jwt", "show"])?;
    Ok(shown["prepared"]["authority_id"].as_str().ok_or("a prepared authority")?.to_owned())
}

fn workload_api() -> Outcome {
    let site = Site::new()?;
    let _server = site.start_server()?;
    let socket = site.agent.socket();
    let source = format!(
        "workload_api {{ socket_path = \"{}\" trust_domain = \"example.org\" poll_interval = \"1s\" }}",
        text(&socket)
    );
    let more = format!("{DOMAINS}\n{source}");
    let provider = Provider::start(&programs::under_test().oidc(), site.folder(), &more)?;
    let refused = ["level=warning", "Failed to fetch JWKS from the Workload API"];
    provider.process.wait_for(&refused, SOON)?;
    assert_eq!(get_text(provider.port, "/keys"), Some((500, "document not available\n".to_owned())));
    let mut agent = site.join(AGENT)?;
    // The provider is a workload and needs an entry of its own.
    let denied = ["Failed to fetch JWKS", "code = PermissionDenied desc = no identity issued"];
    provider.process.wait_for(&denied, SOON)?;
    site.entry(AGENT, WORKLOAD, &own_uid(), &[])?;
    follows(provider.port, &site, 1)?;
    agent.kill()?;
    let mark = provider.process.mark();
    provider.process.wait_after(mark, &["Failed to fetch JWKS", "code = Unavailable"], SOON)?;
    follows(provider.port, &site, 1)
}

fn file() -> Outcome {
    let folder = place::folder()?;
    let (bundle, socket) = (folder.path().join("bundle.json"), folder.path().join("o.sock"));
    // Something that is in the way is removed.
    place::write(&socket, "x")?;
    let config = format!(
        "{DOMAINS}\nlog_format = \"json\"\nlisten_socket_path = \"{}\"\nfile {{ path = \"{}\" poll_interval = \"1s\" }}\n",
        text(&socket),
        text(&bundle)
    );
    let mut process = Provider::spawn(&programs::under_test().oidc(), folder.path(), &config)?;
    process.wait_for(&["\"msg\":\"Serving HTTP\"", "\"network\":\"unix\""], SOON)?;
    process
        .wait_for(&["\"level\":\"warning\"", "Failed to load SPIFFE trust bundle", "no such file"], SOON)?;
    assert!(std::fs::metadata(&socket)?.file_type().is_socket());
    assert_eq!(place::mode(&socket)?, 0o777);
    let request = raw::get("/keys", &["Host: x"]);
    let ask = || raw::unix(&socket, request.as_bytes());
    assert!(ask()?.starts_with("HTTP/1.1 500 "));
    place::write(&bundle, BUNDLE)?;
    let answer = wait::until("keys", SOON, || ask().ok().filter(|answer| answer.contains("200 OK")))?;
    assert!(answer.contains("\"kid\": \"C6vs25welZOx6WksNYfbMfiw9l96pMnD\""), "{answer}");
    // What cannot be read, or has no keys that can, leaves them.
    let mark = process.mark();
    place::write(&bundle, "{")?;
    process.wait_after(mark, &["Failed to load SPIFFE trust bundle", "spiffebundle: "], SOON)?;
    assert!(ask()?.contains("C6vs25welZOx6WksNYfbMfiw9l96pMnD"));
    place::write(&bundle, "{\"keys\": []}")?;
    wait::until("no keys", SOON, || ask().ok().filter(|answer| answer.starts_with("HTTP/1.1 501 ")))?;
    assert_eq!(process.stop()?, 0);
    assert!(!socket.exists(), "the socket goes with the program");
    Ok(())
}

fn probes() -> Outcome {
    let folder = place::folder()?;
    let bundle = folder.path().join("bundle.json");
    let port = place::port()?;
    let more = format!(
        "{DOMAINS}\nhealth_checks {{ bind_port = \"{port}\" live_path = \"/alive\" }}\nfile {{ path = \"{}\" poll_interval = \"1s\" }}",
        text(&bundle)
    );
    let provider = Provider::start(&programs::under_test().oidc(), folder.path(), &more)?;
    let probe = |path: &str| get_text(port, path).map(|(status, _)| status);
    wait::until("probes", SOON, || probe("/alive"))?;
    assert_eq!((probe("/ready"), probe("/alive"), probe("/keys")), (Some(500), Some(200), Some(404)));
    place::write(&bundle, BUNDLE)?;
    wait::until("readiness", SOON, || (probe("/ready")? == 200).then_some(()))?;
    let answer = raw::tcp(port, raw::get("/ready", &["Host: x"]).as_bytes())?;
    assert!(answer.contains("\r\nContent-Length: 0\r\n") && answer.ends_with("\r\n\r\n"), "{answer}");

    // A port that is taken leaves the documents.
    let second = Provider::start(&programs::under_test().oidc(), folder.path(), &more)?;
    let taken = format!("listen tcp :{port}: bind: address already in use");
    second.process.wait_for(&["level=error", &taken], SOON)?;
    wait::until("keys", SOON, || keys(second.port))?;
    drop(provider);
    Ok(())
}

/// A head of any size gets an answer, and not the memory that it asks for.
fn large_heads() -> Outcome {
    let folder = place::folder()?;
    let more = format!("{DOMAINS}\nfile {{ path = \"none\" }}");
    let provider = Provider::start(&programs::under_test().oidc(), folder.path(), &more)?;
    let with = |size: usize| raw::get("/x", &["Host: localhost", &format!("X: {}", "a".repeat(size))]);
    assert!(raw::tcp(provider.port, with(20_000).as_bytes())?.starts_with("HTTP/1.1 404 "));
    for size in [100_000, 5_000_000] {
        let answer = raw::tcp(provider.port, with(size).as_bytes())?;
        // The reset that ends an answer to a client that still writes may overtake it.
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431 "), "{answer}");
    }
    for garbage in ["x\r\n\r\n", "GET /keys\r\n\r\n", "GET /k%zz HTTP/1.1\r\nHost: a\r\nBad Header\r\n\r\n"] {
        let answer = raw::tcp(provider.port, garbage.as_bytes())?;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{garbage}: {answer}");
    }
    Ok(())
}

/// A new certificate is shown, one that cannot be used is not.
fn certificates() -> Outcome {
    let folder = place::folder()?;
    let bundle = folder.path().join("bundle.json");
    place::write(&bundle, BUNDLE)?;
    let (one, two) = (WebCa::new(folder.path().join("one"))?, WebCa::new(folder.path().join("two"))?);
    let (certificate, key) = (folder.path().join("tls.pem"), folder.path().join("tls.key"));
    one.issue("localhost", &certificate, &key)?;
    let port = place::port()?;
    let config = format!(
        "{DOMAINS}\nserving_cert_file {{ cert_file_path = \"{}\" key_file_path = \"{}\" addr = \"127.0.0.1:{port}\" \
         file_sync_interval = \"1s\" }}\nfile {{ path = \"{}\" }}\n",
        text(&certificate),
        text(&key),
        text(&bundle)
    );
    let mut process = Provider::spawn(&programs::under_test().oidc(), folder.path(), &config)?;
    process.wait_for(&["level=info", "Serving HTTPS using certificate loaded from disk"], SOON)?;
    let peer = Peer::Go.command()?;
    let url = format!("https://localhost:{port}");
    let read = |path: &str, roots: &WebCa| -> Result<Option<String>, Failed> {
        let output =
            Run::new(&peer[0]).args(&["get", &format!("{url}{path}"), text(&roots.root())]).output()?;
        Ok((output.code == 0).then_some(output.stdout))
    };
    wait::until("keys over TLS", SOON, || read("/keys", &one).ok()??.contains("C6vs25").then_some(()))?;
    let document = read("/.well-known/openid-configuration", &one)?.unwrap_or_default();
    assert!(document.contains(&format!("\"issuer\": \"{url}\"")), "{document}");
    let mark = process.mark();
    place::write(&certificate, "no certificate")?;
    process.wait_after(mark, &["level=error", "Failed to load certificate"], SOON)?;
    assert!(read("/keys", &one)?.is_some(), "the old pair is shown");
    let mark = process.mark();
    two.issue("localhost", &certificate, &key)?;
    process.wait_after(mark, &["level=info", "Loaded provided certificate with success"], SOON)?;
    assert!(read("/keys", &two)?.is_some() && read("/keys", &one)?.is_none());
    assert_eq!(process.stop()?, 0);

    std::fs::remove_file(&key)?;
    let mut failed = Provider::spawn(&programs::under_test().oidc(), folder.path(), &config)?;
    assert_eq!(failed.wait_exit(SOON)?.code(), Some(1));
    let reason = format!("failed to load certificate: open {}: no such file or directory", text(&key));
    failed.wait_line(0, &reason, SOON, |line| line == reason)?;
    Ok(())
}

/// The server with the block `oidc`; its port.
fn serving_site(block: &str) -> Result<(Site, u16), Failed> {
    let mut site = Site::new()?;
    let port = place::port()?;
    site.server.lines.push(format!(
        "experimental {{\n oidc {{\n  {DOMAINS}\n  insecure_addr = \"127.0.0.1:{port}\"\n  {block}\n }}\n}}"
    ));
    Ok((site, port))
}

fn embedded() -> Outcome {
    let (site, port) = serving_site("set_key_use = true")?;
    let mut server = site.start_server()?;
    server.wait_for(&["level=warning", "Serving HTTP (insecure)"], SOON)?;
    follows(port, &site, 1)?;
    let document = get_text(port, "/keys").unwrap_or_default().1;
    assert!(document.contains("\"use\": \"sig\""), "{document}");
    // A change is served when the command that makes it has ended.
    site.cli(&["localauthority", "jwt", "prepare"])?;
    assert_eq!(keys(port), Some(authorities(&site)?));
    let forged =
        raw::get("/.well-known/openid-configuration", &["Host: localhost", "X-Forwarded-Host: evil.test"]);
    let answer = raw::tcp(port, forged.as_bytes())?;
    assert!(
        answer.starts_with("HTTP/1.1 400 ") && answer.contains("domain \"evil.test\" is not allowed"),
        "{answer}"
    );
    assert_eq!(server.stop()?, 0);
    Ok(())
}

fn bad_block() -> Outcome {
    for (block, text, place) in [
        (
            "log_level = \"debug\"",
            "log_level cannot be configured here",
            "(server.experimental.oidc.log_level)",
        ),
        (
            "jwt_issuer = \"x\"",
            "the jwt_issuer url must contain a scheme",
            "(server.experimental.oidc.jwt_issuer)",
        ),
    ] {
        let (site, _) = serving_site(block)?;
        let mut server: Daemon = site.spawn_server()?;
        assert_eq!(server.wait_exit(SOON)?.code(), Some(1));
        server.wait_line(0, text, SOON, |line| line == text)?;
        server.wait_for(&["server.conf:", place], SOON)?;
    }
    let (site, port) = serving_site("")?;
    let _taken = std::net::TcpListener::bind(("127.0.0.1", port))?;
    let mut server = site.spawn_server()?;
    assert_eq!(server.wait_exit(SOON)?.code(), Some(1));
    let reason =
        format!("unable to serve OIDC discovery: listen tcp 127.0.0.1:{port}: bind: address already in use");
    server.wait_for(&[&reason], SOON)?;
    Ok(())
}
