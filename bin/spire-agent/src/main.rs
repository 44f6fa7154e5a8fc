//! `spire-agent`: the built-in plugins and the command line, put together.

mod daemon;
mod validate;

use std::process::ExitCode;

use spire_cli::{AgentHooks, Env};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    if let Some(code) = spire_plugin_host::run_if_launcher() {
        return code;
    }
    let hooks = AgentHooks {
        version: daemon::VERSION.to_owned(),
        run: Box::new(|flags| daemon::run(&daemon::flags(flags))),
        validate: Box::new(|flags| validate::validate(&daemon::flags(flags))),
    };
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let code = spire_cli::agent(&arguments, &mut Env::process(), hooks);
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}
