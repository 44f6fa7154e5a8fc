//! The commands of `spire-server` (cmd/spire-server/cli).

mod agents;
mod bundle;
mod bundle_input;
mod debug;
pub(crate) mod entry;
mod federation;
mod healthcheck;
mod local_authority;
pub(crate) mod logger;
mod mint;
mod private_jwk;
mod run;
mod token;
mod upstream_authority;
mod wit;

use crate::dispatch::{Command, Program};
use crate::env::Env;

pub(crate) use bundle_input::{BundleFormat, parse_bundle};
pub(crate) use healthcheck::{check as check_health, flags as health_flags};
pub(crate) use run::given;
pub use run::{ServerHooks, ServerRunFlags};

/// Runs `spire-server` with these arguments (without the binary's name), and gives its exit code.
pub fn server(arguments: &[String], env: &mut Env, hooks: ServerHooks) -> i32 {
    let feature_flags = env.variable("SPIRE_SERVER_FFLAGS").to_owned();
    let wit = feature_flags.split(' ').any(|flag| flag == "wit-svid");
    let program = Program { name: "spire-server", version: hooks.version.clone(), commands: commands(wit) };
    program.run(env, hooks, arguments)
}

/// All commands; those of the WIT profile stand behind the reference's feature flag.
fn commands(wit: bool) -> Vec<Command<ServerHooks>> {
    let mut commands =
        vec![run::run(), run::validate(), healthcheck::COMMAND.plain(), token::GENERATE.server()];
    commands.extend(entry::commands());
    commands.extend(bundle::commands());
    commands.extend(agents::commands());
    commands.extend(mint::commands());
    commands.extend(federation::commands());
    commands.extend(local_authority::commands());
    commands.extend(upstream_authority::commands());
    commands.extend(logger::commands());
    commands.push(debug::GET_INFO.server());
    if wit {
        commands.push(wit::MINT.server());
    }
    commands
}
