//! The commands of `spire-agent` (cmd/spire-agent/cli).

mod admin;
mod fetch_jwt;
mod fetch_x509;
mod healthcheck;
mod run;
mod svids;
mod validate_jwt;
mod watch;
mod workload;

use crate::call::ApiCommand;
use crate::dispatch::{Command, Program};
use crate::env::Env;

pub use run::{AgentHooks, AgentRunFlags};
pub(crate) use workload::request as with_security_header;

/// Runs `spire-agent` with these arguments (without the binary's name), and gives its exit code.
pub fn agent(arguments: &[String], env: &mut Env, hooks: AgentHooks) -> i32 {
    let program = Program { name: "spire-agent", version: hooks.version.clone(), commands: commands() };
    program.run(env, hooks, arguments)
}

fn commands() -> Vec<Command<AgentHooks>> {
    let mut commands = vec![
        run::run(),
        run::validate(),
        healthcheck::command(),
        ApiCommand { path: "api fetch", ..fetch_x509::FETCH }.workload(),
        fetch_x509::FETCH.workload(),
        fetch_jwt::FETCH.workload(),
        validate_jwt::VALIDATE.workload(),
        watch::command(),
    ];
    commands.extend(admin::commands());
    commands
}
