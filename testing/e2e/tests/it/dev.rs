//! `spire dev`: server and agent in one process, for a first look and for other programs' tests.

use std::process::Command;

use spire_testkit::{Daemon, Output, Run, place};

use crate::harness::peer::Peer;
use crate::harness::programs;
use crate::harness::site::{own_uid, text};
use crate::harness::{Case, Need, Outcome, SOON};

pub(crate) fn cases() -> Vec<Case> {
    const OURS: &[Need] = &[Need::Ours];
    vec![
        Case { name: "dev::a_command_has_an_identity_and_its_code_comes_through", needs: OURS, run: command },
        Case { name: "dev::what_was_is_kept_until_reset", needs: OURS, run: kept },
        Case {
            name: "dev::it_stays_and_serves_others",
            needs: &[Need::Ours, Need::Peer(Peer::Go)],
            run: stays,
        },
    ]
}

/// Runs `script` under `spire dev` with the Workload API's socket path in `$socket`.
fn dev(data: &str, flags: &[&str], script: &str) -> Result<Output, libtest_mimic::Failed> {
    let programs = programs::under_test();
    let script =
        format!("socket=${{SPIFFE_ENDPOINT_SOCKET#unix:}}\nagent={}\n{script}", text(&programs.agent()));
    let run = Run::new(programs.folder.join("spire")).args(&["dev", "-data", data]).args(flags);
    Ok(run.args(&["--", "sh", "-c", &script]).output()?)
}

/// The authorities, as a workload sees them.
const BUNDLE: &str =
    "$agent api fetch x509 -socketPath $socket -write $out >/dev/null && cat $out/bundle.0.pem";

fn command() -> Outcome {
    let folder = place::folder()?;
    let data = folder.path().join("data");
    let script = "$agent api fetch x509 -socketPath $socket && exit 7";
    let more = format!("/more={}", own_uid());
    let output = dev(text(&data), &["-workload", &more], script)?.exits_with(7)?;
    let ids: Vec<&str> =
        output.stdout.lines().filter_map(|line| Some(line.strip_prefix("SPIFFE ID:")?.trim())).collect();
    assert!(ids.len() == 2 && ids.contains(&"spiffe://dev.test/more"), "{output}");
    assert!(ids.iter().any(|id| id.starts_with("spiffe://dev.test/user/")), "{output}");
    Ok(())
}

fn kept() -> Outcome {
    let folder = place::folder()?;
    let data = folder.path().join("data");
    let out = folder.path().join("out");
    std::fs::create_dir(&out)?;
    let script = format!("out={}\n{BUNDLE}", text(&out));
    let bundle = |flags: &[&str]| -> Result<String, libtest_mimic::Failed> {
        let output = dev(text(&data), flags, &script)?.success()?;
        assert!(output.stdout.starts_with("-----BEGIN CERTIFICATE-----"), "{output}");
        Ok(output.stdout)
    };
    let first = bundle(&[])?;
    assert_eq!(bundle(&[])?, first, "kept");
    assert_ne!(bundle(&["-reset"])?, first, "made anew");
    Ok(())
}

fn stays() -> Outcome {
    let folder = place::folder()?;
    let data = folder.path().join("data");
    let mut start = Command::new(programs::under_test().folder.join("spire"));
    start.args(["dev", "-data", text(&data)]).current_dir(folder.path());
    let mut dev = Daemon::spawn("spire dev", start)?;
    let line = dev.wait_for(&["Workload API:", "unix:"], SOON)?;
    dev.wait_for(&["Fetched X.509-SVID: spiffe://dev.test/user/"], SOON)?;
    let socket = line.split_once("unix:").map_or("", |(_, path)| path.trim_start_matches("//"));
    let peer = Peer::Go.command()?;
    let output = Run::new(&peer[0]).args(&["jwt", socket, "a"]).success()?;
    assert!(output.stdout.contains("validated here spiffe://dev.test/user/"), "{output}");
    // What a workload got is shown.
    dev.wait_for(&["attested"], SOON)?;
    dev.wait_for(&["issued"], SOON)?;
    assert_eq!(dev.stop()?, 0);
    Ok(())
}
