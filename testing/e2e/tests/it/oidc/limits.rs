//! A crowd of clients at the provider: it holds no more of them than its files allow, and a late client is answered.

use std::io::Write;
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;

use spire_testkit::{Daemon, Error, Result, place, wait};

use super::provider::{BUNDLE, key_ids};
use super::raw;
use crate::harness::site::text;
use crate::harness::{Case, Need, Outcome, SOON, Site, programs};

pub(super) fn cases() -> Vec<Case> {
    vec![Case { name: "oidc::a_crowd_takes_a_bounded_place", needs: &[Need::Oidc], run: crowd }]
}

/// Files that the provider may open, and the connections that it may hold with them: a quarter.
const FILES: usize = 96;
const PLACES: usize = FILES / 4;

fn crowd() -> Outcome {
    let site = Site::new()?;
    place::write(&site.path("keys.json"), BUNDLE)?;
    let port = place::port()?;
    let config = format!(
        "log_level = \"debug\"\ninsecure_addr = \"127.0.0.1:{port}\"\nallow_insecure_scheme = true\n\
         domains = [\"localhost\"]\nfile {{ path = \"keys.json\" }}\n"
    );
    place::write(&site.path("provider.conf"), &config)?;
    let provider = few_files(&programs::under_test().oidc(), site.folder())?;
    provider.wait_for(&["Serving HTTP (insecure)"], SOON)?;
    let ask = raw::get("/keys", &["Host: localhost"]);
    let keys = |answer: &str| key_ids(answer.split("\r\n\r\n").nth(1).unwrap_or_default());
    wait::until("the keys", SOON, || (keys(&raw::tcp(port, ask.as_bytes()).ok()?).len() == 1).then_some(()))?;
    // Its listener, what wakes it up, and perhaps the one that asked.
    let alone = sockets(provider.pid())?;

    // Half of them say nothing, half begin to speak; all are more than find a place.
    let mut crowd = Vec::new();
    for n in 0..2 * PLACES {
        let mut stream =
            TcpStream::connect(("127.0.0.1", port)).map_err(|e| Error::doing("connecting", e))?;
        if n % 2 == 0 {
            stream.write_all(b"GET /keys HTTP/1.1\r\nHost: ").map_err(|e| Error::doing("writing", e))?;
        }
        crowd.push(stream);
    }
    let full = wait::until("a full house", SOON, || sockets(provider.pid()).ok().filter(|n| *n >= PLACES))?;
    assert!(full <= alone + PLACES, "{full} sockets, {alone} without clients");
    // Nobody leaves, and the late one gets its answer: who does not speak is sent away.
    assert_eq!(keys(&raw::tcp(port, ask.as_bytes())?).len(), 1);
    let later = sockets(provider.pid())?;
    assert!(later <= alone + PLACES, "{later} sockets, {alone} without clients");
    assert!(!provider.lines().iter().any(|line| line.contains("Accept failed")), "{:?}", provider.lines());
    drop(crowd);
    assert_eq!(keys(&raw::tcp(port, ask.as_bytes())?).len(), 1);
    Ok(())
}

fn few_files(program: &Path, folder: &Path) -> Result<Daemon> {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("ulimit -n {FILES} && exec \"$0\" \"$@\""), text(program)]);
    command.args(["-config", "provider.conf"]).current_dir(folder);
    Daemon::spawn("provider", command)
}

/// Sockets that a process has open, of all kinds.
fn sockets(pid: u32) -> Result<usize> {
    let folder = format!("/proc/{pid}/fd");
    let files = std::fs::read_dir(&folder).map_err(|error| Error::doing(&folder, error))?;
    let targets = files.flatten().filter_map(|file| std::fs::read_link(file.path()).ok());
    Ok(targets.filter(|target| target.to_string_lossy().starts_with("socket:")).count())
}
