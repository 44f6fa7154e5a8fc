//! Development commands: `cargo xtask COMMAND`. They need no tool but cargo.

mod dist;
mod layers;
mod test;
mod tidy;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};

/// A command of `cargo xtask`.
struct Command {
    name: &'static str,
    usage: &'static str,
    run: fn(root: &Path, args: &[String]) -> Result<()>,
}

/// Every command; a new one is a row here and a module beside this file.
const COMMANDS: &[Command] = &[
    Command {
        name: "codegen",
        usage: "codegen [--check]   write, or compare, crates/wire/src/generated",
        run: codegen,
    },
    Command {
        name: "tidy",
        usage: "tidy                layers, module docs, file sizes, purity, generated code",
        run: tidy::run,
    },
    Command {
        name: "test",
        usage: "test [--fast]       install what tests need, check, test; --fast installs nothing",
        run: test::run,
    },
    Command {
        name: "dist",
        usage: "dist [-profile F]   the release tarball, reproducible, in dist/; by a profile if one is given",
        run: dist::run,
    },
    Command {
        name: "profile",
        usage: "profile FILE        what runs in the benchmark, to optimise a release by",
        run: dist::profile::run,
    },
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match dispatch(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn dispatch(args: &[String]) -> Result<()> {
    let Some((name, rest)) = args.split_first() else { bail!("{}", usage()) };
    let Some(command) = COMMANDS.iter().find(|command| command.name == name) else {
        bail!("unknown command {name:?}\n{}", usage())
    };
    (command.run)(&workspace_root()?, rest)
}

/// Runs the program that generates code, which few commands need and which takes long to build.
fn codegen(root: &Path, args: &[String]) -> Result<()> {
    let mut command = std::process::Command::new(env!("CARGO"));
    command.current_dir(root).args(["run", "--quiet", "--package", "xtask-codegen", "--"]).args(args);
    let status = command.status().with_context(|| format!("starting {command:?}"))?;
    // It has said what is wrong.
    if status.success() { Ok(()) } else { bail!("cargo xtask codegen {}: {status}", args.join(" ")) }
}

fn usage() -> String {
    let mut text = String::from("usage: cargo xtask COMMAND");
    for command in COMMANDS {
        text.push_str("\n  ");
        text.push_str(command.usage);
    }
    text
}

/// The folder of the workspace's Cargo.toml, which is the parent of this crate's. Cargo says it at run time; what it said
/// while compiling may be of another checkout that shares the target folder.
fn workspace_root() -> Result<PathBuf> {
    let manifest = std::env::var("CARGO_MANIFEST_DIR").context("run it as `cargo xtask`")?;
    match Path::new(&manifest).parent() {
        Some(root) => Ok(root.to_path_buf()),
        None => bail!("xtask is not inside a workspace"),
    }
}

/// Prints one line for the developer. The workspace bans printing elsewhere because logs are structured there.
#[expect(clippy::print_stderr, reason = "a development command talks to its user")]
fn report(line: &str) {
    eprintln!("{line}");
}
