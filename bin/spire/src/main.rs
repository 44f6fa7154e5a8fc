//! `spire`: what SPIRE has no counterpart of. `spire dev` is a server and an agent in one process, `spire explain` says why
//! a process gets the identities that it gets, `spire apply` and `spire export` keep a server's entries in files, `spire
//! restore` prepares a database that came from a backup.

mod dev;
mod restore;

use std::io::IsTerminal;
use std::process::ExitCode;

const USAGE: &str = "Usage: spire <command>

Commands:
    dev        Run a server and an agent in one process, for development
    explain    Say why a process gets the identities that it gets, or none
    apply      Make a server's entries and federation relationships as files say
    export     Write a server's entries and federation relationships as such a file
    restore    Prepare a database that was restored from a backup
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let code = match arguments.split_first() {
        Some((command, rest)) if command == "dev" => dev::main(rest),
        Some((command, rest)) if command == "explain" => {
            spire_cli::explain(rest, &mut spire_cli::Env::process())
        }
        Some((command, rest)) if command == "apply" => {
            let terminal = std::io::stderr().is_terminal();
            spire_cli::apply(rest, &mut spire_cli::Env::process(), terminal)
        }
        Some((command, rest)) if command == "restore" => restore::main(rest),
        Some((command, rest)) if command == "export" => {
            spire_cli::export(rest, &mut spire_cli::Env::process())
        }
        Some((flag, _)) if matches!(flag.as_str(), "-v" | "-version" | "--version") => {
            note(env!("CARGO_PKG_VERSION"));
            0
        }
        Some((flag, _)) if matches!(flag.as_str(), "-h" | "-help" | "--help" | "help") => {
            note(USAGE.trim_end());
            0
        }
        Some((command, _)) => {
            note(&format!("spire: there is no command {command:?}\n\n{}", USAGE.trim_end()));
            127
        }
        None => {
            note(USAGE.trim_end());
            127
        }
    };
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

/// Says something to the person at the terminal, apart from what a started command prints.
#[expect(clippy::print_stderr, reason = "this program talks to a person")]
pub(crate) fn note(text: &str) {
    eprintln!("{text}");
}
