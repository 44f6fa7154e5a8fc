//! Runs a test in mount and network namespaces of its own, where `/tmp` is empty and every port is free, so that a
//! walkthrough can be followed with its own paths and ports.

use std::time::Duration;

use spire_testkit::Run;

use crate::harness::case::Outcome;
use crate::harness::peer;

/// Set in the process that runs inside.
const INSIDE: &str = "SPIRE_E2E_INSIDE";
/// How long such a test may take from outside; its own waits are shorter.
const AT_MOST: Duration = Duration::from_secs(240);
/// What the process inside does before the test.
const PREPARE: &str = "mount -t tmpfs tmpfs /tmp && ip link set lo up && exec \"$@\"";

/// Why namespaces cannot be had, or `None`.
pub(crate) fn missing() -> Option<String> {
    static FOUND: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    FOUND
        .get_or_init(|| {
            if is_inside() {
                return None;
            }
            if let Some(missing) = ["unshare", "mount", "ip"].into_iter().find_map(peer::missing_program) {
                return Some(missing);
            }
            let tried = Run::new("unshare").args(&["-m", "-n", "sh", "-c", PREPARE, "sh", "true"]).output();
            match tried {
                Ok(output) if output.code == 0 => None,
                Ok(output) => Some(format!("unshare: {output}")),
                Err(error) => Some(error.to_string()),
            }
        })
        .clone()
}

fn is_inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// Runs `test` here when this process is inside already, else this program again, inside, for the test `name`.
pub(crate) fn run(name: &str, test: fn() -> Outcome) -> Outcome {
    if is_inside() {
        return test();
    }
    let this = std::env::current_exe().map_err(|error| error.to_string())?;
    let output = Run::new("unshare")
        .args(&["-m", "-n", "--propagation", "private", "sh", "-c", PREPARE, "sh"])
        .arg(this)
        .args(&["--exact", name, "--nocapture"])
        .env(INSIDE, "1")
        .at_most(AT_MOST)
        .output()?;
    // A name that matches no test succeeds too, so the count is looked at.
    if output.code == 0 && output.stdout.contains("test result: ok. 1 passed") {
        return Ok(());
    }
    Err(output.to_string().into())
}
