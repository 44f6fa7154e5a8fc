//! Both sides against real TPMs in software (swtpm), whose endorsement certificates a manufacturer of the test signed.
//! Where swtpm is missing the tests are ignored, and fail with `CI=true`.

mod cases;
mod station;
#[path = "../../src/test_ca.rs"]
mod test_ca;
mod wire;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};
use spire_testkit::swtpm::PROGRAMS;

/// How a test ends.
type Outcome = Result<(), Failed>;
/// A test by name.
type Case = (&'static str, fn() -> Outcome);

fn main() -> ExitCode {
    let args = Arguments::from_args();
    let missing = missing();
    let due = std::env::var("CI").is_ok_and(|value| value == "true");
    let trials = cases::CASES.iter().map(|(name, run)| match missing {
        None => Trial::test(*name, run),
        Some(program) => {
            let why =
                format!("no {program} in PATH; the Debian packages are swtpm, swtpm-tools and tpm2-tools");
            Trial::test(*name, move || Err(why.into())).with_ignored_flag(!due)
        }
    });
    libtest_mimic::run(&args, trials.collect()).exit_code()
}

fn missing() -> Option<&'static str> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = |program: &&str| std::env::split_paths(&path).any(|folder| folder.join(program).is_file());
    PROGRAMS.into_iter().find(|program| !found(program))
}
