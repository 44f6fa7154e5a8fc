//! The command line of `oidc-discovery-provider`, with the texts of Go's `flag` (support/oidc-discovery-provider/main.go).

use spire_compat::flag::{FlagError, FlagSet};

use crate::config::DEFAULT_CONFIG_PATH;

/// What a command line asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// To serve.
    Run {
        /// The configuration file.
        config: String,
        /// Whether variables of the environment are replaced in it.
        expand_env: bool,
    },
    /// To print the version.
    Version,
    /// To print this on the standard error, and to end with this code.
    Refused {
        /// Lines, with the last line's end.
        text: String,
        /// The code.
        code: u8,
    },
}

impl Command {
    /// Reads the arguments behind the program's name.
    pub fn parse(program: &str, arguments: &[String]) -> Self {
        let flags = FlagSet::new("oidc-discovery-provider")
            .string("config", DEFAULT_CONFIG_PATH, "configuration file")
            .bool("expandEnv", false, "expand environment variables in config file")
            .bool("version", false, "print version");
        let usage = || format!("Usage of {program}:\n{}", flags.defaults());
        let parsed = match flags.parse(arguments) {
            Ok(parsed) => parsed,
            Err(FlagError::Help) => return Self::Refused { text: usage(), code: 0 },
            Err(error) => return Self::Refused { text: format!("{error}\n{}", usage()), code: 2 },
        };
        if parsed.bool("version") {
            return Self::Version;
        }
        if !parsed.rest().is_empty() {
            let rest = parsed.rest().join(" ");
            let text = format!("Error: unexpected arguments: [{rest}]\n{}", usage());
            return Self::Refused { text, code: 1 };
        }
        Self::Run { config: parsed.string("config").to_owned(), expand_env: parsed.bool("expandEnv") }
    }
}
