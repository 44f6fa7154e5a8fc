//! `cargo xtask test`: everything that must pass, with what it needs installed first.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::tidy;

/// Debian packages by the program that shows that they are there.
const PACKAGES: &[(&str, &str)] = &[
    ("cc", "gcc libc6-dev"),
    ("make", "make"),
    ("openssl", "openssl"),
    ("prometheus", "prometheus"),
    ("go", "golang-go"),
    ("javac", "default-jdk-headless"),
    ("mvn", "maven"),
    ("ssh-keygen", "openssh-client"),
    ("setpriv", "util-linux"),
    ("mount", "mount"),
    ("ip", "iproute2"),
    ("pebble", "pebble"),
    ("node", "nodejs"),
    ("npm", "npm"),
    ("curl", "curl"),
    ("dbus-daemon", "dbus-daemon"),
    ("dockerd", "docker.io"),
    ("podman", "podman"),
    ("runc", "runc"),
    ("faketime", "faketime"),
    ("swtpm", "swtpm"),
    ("swtpm_setup", "swtpm-tools"),
    ("tpm2", "tpm2-tools"),
    ("pg_ctlcluster", "postgresql"),
    ("mariadbd", "mariadb-server"),
];

/// The version of the licence and dependency checker that `deny.toml` is written for.
const CARGO_DENY: &str = "0.20.2";

/// Prepares, checks and tests; the last line has the totals of all test runners.
pub(crate) fn run(root: &Path, args: &[String]) -> Result<()> {
    let fast = match args {
        [] => false,
        [arg] if arg == "--fast" => true,
        _ => bail!("usage: cargo xtask test [--fast]"),
    };
    let mut totals = Totals::default();
    if !fast {
        stage("install what is missing", install_packages)?;
        stage("install cargo-deny", || install_cargo_deny(root))?;
    }
    stage("format", || cargo(root, &["fmt", "--all", "--check"]))?;
    stage("tidy", || tidy::check(root))?;
    stage("clippy", || {
        cargo(root, &["clippy", "--workspace", "--all-targets", "--all-features", "--", "-D", "warnings"])
    })?;
    if !fast {
        stage("deny", || cargo(root, &["deny", "check", "bans", "licenses", "sources"]))?;
    }
    // One selection of packages for building and testing: another would make cargo build the dependencies again with
    // other features. The end-to-end tests run the binaries that this builds.
    stage("build", || cargo(root, &["build", "--workspace", "--all-targets", "--all-features"]))?;
    stage("test", || {
        counted(root, &["test", "--workspace", "--all-features", "--no-fail-fast"], &mut totals)
    })?;
    report(&format!("total: {} passed, {} failed, {} skipped", totals.passed, totals.failed, totals.skipped));
    Ok(())
}

fn stage(name: &str, run: impl FnOnce() -> Result<()>) -> Result<()> {
    report(&format!("== {name}"));
    let start = Instant::now();
    run().with_context(|| format!("stage {name:?}"))?;
    report(&format!("== {name}: {} s", start.elapsed().as_secs()));
    Ok(())
}

fn cargo(root: &Path, args: &[&str]) -> Result<()> {
    succeed(Command::new(env!("CARGO")).current_dir(root).args(args))
}

fn succeed(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("starting {command:?}"))?;
    if !status.success() {
        bail!("{command:?}: {status}");
    }
    Ok(())
}

/// What the test runners counted.
#[derive(Default)]
struct Totals {
    passed: u64,
    failed: u64,
    skipped: u64,
}

impl Totals {
    /// Takes in a closing line of libtest or libtest-mimic.
    fn add(&mut self, line: &str) {
        let Some(counts) = line.trim_start().strip_prefix("test result:") else { return };
        let count = |what: &str| -> u64 {
            counts
                .split(['.', ';'])
                .filter_map(|part| part.trim().strip_suffix(what)?.trim().parse().ok())
                .next()
                .unwrap_or(0)
        };
        self.passed += count("passed");
        self.failed += count("failed");
        self.skipped += count("ignored");
    }
}

/// Runs a test command, showing its output and counting its closing lines.
fn counted(root: &Path, args: &[&str], totals: &mut Totals) -> Result<()> {
    let mut command = Command::new(env!("CARGO"));
    let mut child = command
        .current_dir(root)
        .args(args)
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {command:?}"))?;
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).lines() {
            let line = line?;
            totals.add(&line);
            report(&line);
        }
    }
    let status = child.wait()?;
    if !status.success() {
        report(&format!(
            "total: {} passed, {} failed, {} skipped",
            totals.passed, totals.failed, totals.skipped
        ));
        bail!("{command:?}: {status}");
    }
    Ok(())
}

/// Prints to standard output, where whoever runs the tests looks for the totals.
#[expect(clippy::print_stdout, reason = "a development command talks to its user")]
fn report(line: &str) {
    println!("{line}");
}

fn has_program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(name).is_file())
}

fn install_packages() -> Result<()> {
    let missing: Vec<&str> = PACKAGES
        .iter()
        .filter(|(program, _)| !has_program(program))
        .flat_map(|(_, packages)| packages.split(' '))
        .chain((!has_venv()).then_some("python3-venv"))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !has_program("apt-get") {
        bail!("please install: {}", missing.join(" "));
    }
    succeed(Command::new("apt-get").args(["update", "-q"]))?;
    succeed(Command::new("apt-get").args(["install", "-q", "-y", "--no-install-recommends"]).args(&missing))
}

fn has_venv() -> bool {
    Command::new("python3")
        .args(["-c", "import venv, ensurepip"])
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

fn install_cargo_deny(root: &Path) -> Result<()> {
    let found = Command::new(env!("CARGO")).args(["deny", "--version"]).output()?;
    if String::from_utf8_lossy(&found.stdout).contains(CARGO_DENY) {
        return Ok(());
    }
    cargo(root, &["install", "--locked", "--quiet", "cargo-deny", "--version", CARGO_DENY])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_are_counted() {
        let mut totals = Totals::default();
        totals.add(
            "test result: ok. 12 passed; 0 failed; 3 ignored; 0 measured; 1 filtered out; finished in 0.1s",
        );
        totals.add("test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out");
        totals.add("test one ... ok");
        assert_eq!((totals.passed, totals.failed, totals.skipped), (13, 2, 3));
    }
}
