//! The same requests to our provider and to SPIRE's: the same bytes come back.

use std::path::Path;

use libtest_mimic::Failed;
use spire_testkit::place;

use super::provider::{BUNDLE, Provider};
use super::raw;
use crate::harness::programs::{self, Programs};
use crate::harness::{Case, Need, Outcome, SOON};

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case { name: "oidc::answers_are_those_of_spire", needs: &[Need::ReferenceOidc], run: answers },
        Case { name: "oidc::log_lines_are_those_of_spire", needs: &[Need::ReferenceOidc], run: log_lines },
    ]
}

const DISCOVERY: &str = "/.well-known/openid-configuration";
const HOST: &str = "Host: localhost";

/// Configurations beside listener and source.
const SETTINGS: &[&str] = &[
    "domains = [\"localhost\", \"example.org\"]",
    "domains = [\"localhost\"]\nallow_insecure_scheme = true\nset_key_use = true",
    "domains = [\"localhost\"]\njwt_issuer = \"https://issuer.test/a%2Fb?q=<1>\"",
    "domains = [\"localhost\"]\njwt_issuer = \"http://issuer.test/a b\"\nserver_path_prefix = \"/foo/\"",
    "domains = [\"localhost\"]\njwks_uri = \"https://keys.test:8443/k\"\nserver_path_prefix = \"/foo\"",
];

const HOSTS: &[&str] = &[
    "localhost",
    "localhost:8080",
    "localhost:",
    "[localhost]:80",
    "example.org",
    "evil.org",
    "EXAMPLE.org",
    "[::1]:80",
    "a_b.org",
    "-a.org",
    "a-.org",
    "a..b",
    ".",
    "example.org.",
    "a b",
    "a%20b",
    "xn--bcher-kva.de",
    "xn--",
    "xn--foo-.org",
    "ab--c.org",
    "localhost, example.org",
    "localhost:80:90",
    "[localhost]",
    "example.org:<x>&\"y\"",
    "1.2.3.4",
];

const SCHEMES: &[&str] = &[
    "X-Forwarded-Proto: https",
    "X-Forwarded-Proto: HTTP",
    "X-Forwarded-Scheme: https",
    "Forwarded: proto=https;host=evil.org",
    "Forwarded: for=1.1.1.1;PROTO=HTTPS",
    "Forwarded: proto=ftp",
    "X-Forwarded-For: 1.2.3.4",
];

const PATHS: &[&str] = &[
    "/keys",
    "/keys?x=1",
    "/keys/",
    "/%6beys",
    "/keys%2F",
    "//keys?a='b'&c",
    "/./keys",
    "/a%2Fb//c",
    "/",
    "/x",
    "/foo/keys",
    "/foo//keys",
    "/foo/.well-known/openid-configuration",
    "//x/keys",
    "http://evil.org/keys",
    "http://localhost/.well-known/openid-configuration",
    "https://localhost/.well-known/openid-configuration",
    "http://evil.org/.well-known/openid-configuration",
    "*",
];

const CONDITIONS: &[&str] = &[
    "Range: bytes=0-3",
    "Range: bytes=9999-",
    "Range: bytes=-5",
    "Range: bytes=x",
    "Range: foo",
    "Range: bytes=",
    "Range: bytes=0-99999,0-99999",
    "Range: bytes=0-3,5-6",
    "If-Modified-Since: Sun, 22 Nov 2099 20:36:34 GMT",
    "If-Modified-Since: Sun, 22 Nov 2009 20:36:34 GMT",
    "If-Match: \"x\"",
    "If-Match: *",
    "If-None-Match: *",
    "If-None-Match: \"x\"",
    "If-Unmodified-Since: Sun, 22 Nov 2009 20:36:34 GMT",
    "Accept-Encoding: gzip",
    "Origin: https://x",
];

fn requests() -> Vec<String> {
    let forwarded =
        HOSTS.iter().map(|host| raw::get(DISCOVERY, &[HOST, &format!("X-Forwarded-Host: {host}")]));
    let direct = ["localhost:80", "evil.org", "LOCALHOST", ""]
        .map(|host| raw::get(DISCOVERY, &[&format!("Host: {host}")]));
    let schemes = SCHEMES.iter().map(|header| raw::get(DISCOVERY, &[HOST, header]));
    let paths = PATHS.iter().map(|path| raw::get(path, &[HOST]));
    let conditions = CONDITIONS.iter().map(|header| raw::get("/keys", &[HOST, header]));
    let methods = ["POST", "HEAD", "PUT", "DELETE", "OPTIONS", "get", "FOO"];
    let methods = methods.iter().flat_map(|method| {
        ["/keys", DISCOVERY, "/x", "//keys"]
            .map(|path| raw::get(path, &[HOST, "Content-Length: 0"]).replacen("GET", method, 1))
    });
    let others = [
        raw::get("*", &[HOST]).replacen("GET", "OPTIONS", 1),
        format!("GET {DISCOVERY} HTTP/1.0\r\nHost: localhost\r\n\r\n"),
        format!("GET {DISCOVERY} HTTP/1.0\r\n\r\n"),
    ];
    forwarded
        .chain(direct)
        .chain(schemes)
        .chain(paths)
        .chain(conditions)
        .chain(methods)
        .chain(others)
        .collect()
}

/// Two providers with the same configuration on the same file.
fn both(folder: &Path, settings: &str) -> Result<[Provider; 2], Failed> {
    let bundle = folder.join("bundle.json");
    place::write(&bundle, BUNDLE)?;
    let more = format!("{settings}\nfile {{ path = \"{}\" }}", bundle.display());
    let start = |programs: &Programs| Provider::start(&programs.oidc(), folder, &more);
    let both = [start(programs::under_test())?, start(programs::theirs()?)?];
    for provider in &both {
        let keys = if settings.contains("/foo") { "/foo/keys" } else { "/keys" };
        spire_testkit::wait::until("keys", SOON, || {
            raw::tcp(provider.port, raw::get(keys, &[HOST]).as_bytes())
                .ok()?
                .contains(" 200 OK")
                .then_some(())
        })?;
    }
    Ok(both)
}

fn answers() -> Outcome {
    let folder = place::folder()?;
    for settings in SETTINGS {
        let [ours, theirs] = both(folder.path(), settings)?;
        for request in requests() {
            let said = |provider: &Provider| {
                raw::tcp(provider.port, request.as_bytes()).map(|answer| timeless(&answer))
            };
            let (ours, theirs) = (said(&ours)?, said(&theirs)?);
            assert_eq!(ours, theirs, "{settings}\n{request}");
        }
    }
    Ok(())
}

/// Without times, and without what is random between parts.
fn timeless(answer: &str) -> String {
    let boundary = answer
        .split_once("boundary=")
        .map(|(_, rest)| rest.chars().take_while(char::is_ascii_hexdigit).collect::<String>());
    let lines = answer.split("\r\n").map(|line| match line.split_once(": ") {
        Some((name @ ("Date" | "Last-Modified"), date)) => format!("{name}: {} characters", date.len()),
        _ => line.to_owned(),
    });
    // The length of nothing stands elsewhere in ours.
    let lines = lines.filter(|line| line != "Content-Length: 0");
    let text = lines.collect::<Vec<_>>().join("\r\n");
    boundary.map_or(text.clone(), |boundary| text.replace(&boundary, &format!("<{}>", boundary.len())))
}

/// From the start to an orderly end, through a unix socket and on a port.
fn log_lines() -> Outcome {
    let folder = place::folder()?;
    let socket = folder.path().join("o.sock");
    let bundle = folder.path().join("bundle.json");
    place::write(&bundle, BUNDLE)?;
    let config = format!(
        "log_level = \"debug\"\nlog_requests = true\nallow_insecure_scheme = true\ndomains = [\"localhost\"]\n\
         listen_socket_path = \"{}\"\nfile {{ path = \"{}\" poll_interval = \"90s\" }}\n",
        socket.display(),
        bundle.display()
    );
    let mut logs = Vec::new();
    for programs in [programs::under_test(), programs::theirs()?] {
        let mut process = Provider::spawn(&programs.oidc(), folder.path(), &config)?;
        process.wait_for(&["Serving HTTP"], SOON)?;
        process.wait_for(&["Polling started"], SOON)?;
        let answer = raw::unix(&socket, raw::get("/keys?q", &[HOST, "User-Agent: a \"b\""]).as_bytes())?;
        assert!(answer.starts_with("HTTP/1.1 "), "{answer}");
        process.wait_for(&["Incoming request"], SOON)?;
        process.stop()?;
        let without_time =
            |line: String| line.split_once(' ').map(|(_, rest)| rest.to_owned()).unwrap_or_default();
        let mut lines: Vec<String> = process.lines().into_iter().map(without_time).collect();
        // The reference tells of two failures whenever it ends: these are its, and not of ours.
        lines.retain(|line| {
            !line.contains("use of closed network connection") && !line.starts_with("Server closed")
        });
        // The source starts on a thread of its own.
        lines.sort();
        logs.push(lines);
    }
    assert_eq!(logs[0], logs[1]);
    Ok(())
}
