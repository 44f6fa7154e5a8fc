//! `cargo xtask profile FILE`: what the programs do in a run of the benchmark, for `cargo xtask dist -profile FILE`.
//!
//! The compiler puts counters into the programs (`-Cprofile-generate`), the benchmark runs them, and the release is
//! optimised by what was counted. A profile is of one source: after changes it still counts for what did not change.
//! Beside it, `FILE.order` names the functions that ran: first those that an idle program needs.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::build::{programs, rustc, target_folder};
use super::output;
use crate::report;

/// What is run; `spire` starts the same server and agent.
const PROGRAMS: &[&str] = &["spire-server", "spire-agent", "oidc-discovery-provider"];

/// The group of the benchmark in which programs start and do nothing more.
const IDLE: &str = "start";

/// The other groups that are run: all but those that only repeat these at a larger scale.
const BUSY: &str = "mint,entries,attest,sync,workload,streams,delay,oidc";

/// Writes a profile.
pub(crate) fn run(root: &Path, args: &[String]) -> Result<()> {
    let [file] = args else { bail!("usage: cargo xtask profile FILE") };
    let tool = llvm_profdata()?;
    let target = target_folder(root);
    let counted = target.join("profile");
    if counted.exists() {
        fs::remove_dir_all(&counted)?;
    }
    fs::create_dir_all(&counted)?;
    let folder = programs(root, PROGRAMS, vec![format!("-Cprofile-generate={}", counted.display())])?;
    cargo_build_bench(root)?;
    let idle = bench(&target, &folder, IDLE, &counted.join("idle"))?;
    let busy = bench(&target, &folder, BUSY, &counted.join("busy"))?;
    output(Command::new(&tool).args(["merge", "-o", file]).args(idle.iter().chain(&busy)))?;
    let started = counted.join("idle.profdata");
    output(Command::new(&tool).args(["merge", "-o"]).arg(&started).args(&idle))?;
    write_order(&tool, &started, Path::new(file))?;
    report(&format!("{file}: {} KiB", fs::metadata(file)?.len() / 1024));
    Ok(())
}

fn cargo_build_bench(root: &Path) -> Result<()> {
    let mut build = Command::new(env!("CARGO"));
    build.current_dir(root).args(["build", "--locked", "--package", "spire-bench"]);
    if !build.status()?.success() {
        bail!("the benchmark cannot be built");
    }
    Ok(())
}

/// Runs groups of the benchmark; returns the files with what was counted.
fn bench(target: &Path, programs: &Path, groups: &str, counted: &Path) -> Result<Vec<PathBuf>> {
    let ran = Command::new(target.join("debug/spire-bench"))
        // Processes of one program add to the same few files when they end.
        .env("LLVM_PROFILE_FILE", counted.join("%4m.profraw"))
        .arg(format!("profiled={}", programs.display()))
        .args(["-only", groups])
        .status()?;
    if !ran.success() {
        bail!("the benchmark failed");
    }
    fs::read_dir(counted)?.map(|entry| Ok(entry?.path())).collect()
}

/// Writes the list of functions that ran, in an order that does not depend on how often.
fn write_order(tool: &Path, started: &Path, all: &Path) -> Result<()> {
    let show = |profile: &Path| {
        output(Command::new(tool).args(["show", "--all-functions", "--counts"]).arg(profile))
    };
    let (idle, all_shown) = (show(started)?, show(all)?);
    let first = ran(&idle);
    let all_ran = ran(&all_shown);
    let list: Vec<&str> = first.iter().chain(all_ran.difference(&first)).copied().collect();
    let file = order(all);
    fs::write(&file, list.join("\n") + "\n").with_context(|| file.display().to_string())
}

/// The list that belongs to a profile.
pub(super) fn order(profile: &Path) -> PathBuf {
    profile.with_added_extension("order")
}

/// The functions with a count other than zero, of what `llvm-profdata show` prints:
///
/// ```text
///   module;name:
///     Hash: 0x1
///     Counters: 2
///     Block counts: [0, 5]
/// ```
fn ran(shown: &str) -> BTreeSet<&str> {
    let mut names = BTreeSet::new();
    let mut name = "";
    for line in shown.lines() {
        if let Some(counts) = line.trim_start().strip_prefix("Block counts: ") {
            let zero = counts.trim_matches(['[', ']']).split(", ").all(|count| count == "0");
            if !zero {
                names.insert(name);
            }
        } else if let Some(function) = line.strip_prefix("  ").and_then(|line| line.strip_suffix(':'))
            && !function.starts_with(' ')
        {
            // Functions that only one module sees have its name before theirs.
            name = function.rsplit_once(';').map_or(function, |(_, name)| name);
        }
    }
    names
}

/// The tool of the compiler's own version, which alone is sure to read its profiles.
fn llvm_profdata() -> Result<PathBuf> {
    let libraries = output(Command::new(rustc()).args(["--print", "target-libdir"]))?;
    let tool = Path::new(libraries.trim()).with_file_name("bin").join("llvm-profdata");
    if !tool.is_file() {
        bail!("{} is not there; get it by `rustup component add llvm-tools`", tool.display());
    }
    Ok(tool)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_ran() {
        let shown = "Counters:\n  a.rs;first:\n    Hash: 0x1\n    Counters: 2\n    Block counts: [0, 5]\n  \
                     second:\n    Hash: 0x2\n    Counters: 1\n    Block counts: [0]\n  third:\n    Hash: 0x3\n    \
                     Counters: 1\n    Block counts: [10]\nInstrumentation level: IR\n";
        assert_eq!(ran(shown).into_iter().collect::<Vec<_>>(), ["first", "third"]);
    }
}
