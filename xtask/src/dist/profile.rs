//! `cargo xtask profile FILE`: what the programs do in a run of the benchmark, for `cargo xtask dist -profile FILE`.
//!
//! The compiler puts counters into the programs (`-Cprofile-generate`), the benchmark runs them, and the release is
//! optimised by what was counted. A profile is of one source: after changes it still counts for what did not change.
//! Beside it, `FILE.order` names the functions that ran: first those that idle programs need.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
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
    let programs = by_program(&idle).into_iter().enumerate().map(|(n, files)| {
        let merged = counted.join(format!("idle-{n}.profdata"));
        output(Command::new(&tool).args(["merge", "-o"]).arg(&merged).args(files))?;
        functions(&tool, &merged)
    });
    write_order(&tool, &programs.collect::<Result<Vec<_>>>()?, Path::new(file))?;
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

/// The files of each program: their names begin with its signature.
fn by_program(files: &[PathBuf]) -> Vec<Vec<&PathBuf>> {
    let mut programs = BTreeMap::<_, Vec<_>>::new();
    for file in files {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let signature = name.split('_').next().unwrap_or_default().to_owned();
        programs.entry(signature).or_default().push(file);
    }
    programs.into_values().collect()
}

fn functions(tool: &Path, profile: &Path) -> Result<BTreeSet<String>> {
    let shown = output(Command::new(tool).args(["show", "--all-functions", "--counts"]).arg(profile))?;
    Ok(ran(&shown).into_iter().map(str::to_owned).collect())
}

fn write_order(tool: &Path, idle: &[BTreeSet<String>], profile: &Path) -> Result<()> {
    let list = in_order(idle, functions(tool, profile)?).join("\n") + "\n";
    let file = order(profile);
    fs::write(&file, list).with_context(|| file.display().to_string())
}

/// What idle programs share, then what each of them needs for itself, then the rest. Within these by name: how often something
/// ran differs from run to run.
fn in_order(idle: &[BTreeSet<String>], all: BTreeSet<String>) -> Vec<String> {
    let mut list: Vec<String> = all.into_iter().collect();
    list.sort_by_cached_key(|name| {
        let of: Vec<usize> = (0..idle.len()).filter(|n| idle[*n].contains(name)).collect();
        (Reverse(of.len()), of.first().copied())
    });
    list
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

    #[test]
    fn what_idle_programs_share_comes_first() {
        let set = |names: &str| names.split(' ').map(str::to_owned).collect::<BTreeSet<_>>();
        let order = in_order(&[set("d f a"), set("e f b")], set("a b c d e f g"));
        assert_eq!(order.join(" "), "f a d b e c g");
    }

    #[test]
    fn files_of_one_program_go_together() {
        let files = ["/x/7_0.profraw", "/x/9_0.profraw", "/x/7_3.profraw"].map(PathBuf::from);
        assert_eq!(by_program(&files), [vec![&files[0], &files[2]], vec![&files[1]]]);
    }
}
