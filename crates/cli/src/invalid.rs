//! What `validate` of server and agent says.

use std::collections::BTreeMap;

use crate::env::Env;

/// Why a configuration is not valid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Invalid {
    /// It could not be loaded.
    Configuration(String),
    /// Its plugins could not be asked.
    Unchecked(String),
    /// What plugins say, by plugin. A plugin without notes is not shown.
    Plugins(BTreeMap<String, Vec<String>>),
}

/// Prints it; gives the exit code. `program` is `server` or `agent`.
pub(crate) fn report(env: &mut Env, program: &str, checked: Result<(), Invalid>) -> i32 {
    match checked {
        Ok(()) => {
            env.out(format_args!("SPIRE {program} configuration file is valid.\n"));
            return 0;
        }
        Err(Invalid::Configuration(why)) => {
            env.err(format_args!("SPIRE {program} configuration file is invalid: {why}\n"));
        }
        // Without a newline, as the reference.
        Err(Invalid::Unchecked(why)) => env.err(format_args!("Could not validate configuration file: {why}")),
        Err(Invalid::Plugins(notes)) => {
            env.err(format_args!("SPIRE {program} configuration file is invalid.\nValidation errors:\n"));
            for (plugin, notes) in notes.iter().filter(|(_, notes)| !notes.is_empty()) {
                env.err(format_args!("\t{plugin}:\n"));
                for note in notes {
                    env.err(format_args!("\t\t{note}\n"));
                }
            }
        }
    }
    1
}
