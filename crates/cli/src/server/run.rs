//! `run` and `validate`: flags here, the work in the binary (cmd/spire-server/cli/run/run.go, validate/validate.go).

use spire_compat::flag::{FlagSet, Parsed};

use crate::call::parse;
use crate::dispatch::{Act, Command, HELP_REQUESTED};
use crate::env::Env;
use crate::invalid::{Invalid, report};

/// The flags of `spire-server run` and `validate`; `None` where the configuration file decides.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the flag of that name")]
pub struct ServerRunFlags {
    pub bind_address: Option<String>,
    pub config: Option<String>,
    pub data_dir: Option<String>,
    pub expand_env: bool,
    pub log_file: Option<String>,
    pub log_format: Option<String>,
    pub log_level: Option<String>,
    pub log_source_location: bool,
    pub server_port: Option<i64>,
    pub socket_path: Option<String>,
    pub trust_domain: Option<String>,
}

/// What the binary brings.
pub struct ServerHooks {
    /// What `-version` prints.
    pub version: String,
    /// Runs the server until it is told to stop; gives the exit code. It prints its own errors.
    pub run: Box<dyn FnOnce(ServerRunFlags) -> i32>,
    /// Checks the configuration, prints nothing.
    pub validate: Box<dyn FnOnce(ServerRunFlags) -> Result<(), Invalid>>,
}

pub(super) fn run() -> Command<ServerHooks> {
    let act: Act<ServerHooks> = Box::new(|env, hooks, flags, arguments| match read(env, &flags, arguments) {
        Ok(flags) => (hooks.run)(flags),
        Err(message) => {
            env.err(format_args!("{message}\n"));
            1
        }
    });
    let flags = flags("run");
    Command {
        path: "run",
        synopsis: "Runs the server",
        hidden: false,
        after_usage: HELP_REQUESTED,
        flags,
        act,
    }
}

pub(super) fn validate() -> Command<ServerHooks> {
    let act: Act<ServerHooks> = Box::new(|env, hooks, flags, arguments| {
        let checked = match read(env, &flags, arguments) {
            Ok(flags) => (hooks.validate)(flags),
            Err(message) => Err(Invalid::Configuration(message)),
        };
        report(env, "server", checked)
    });
    Command {
        path: "validate",
        synopsis: "Validates a SPIRE server configuration file",
        hidden: false,
        after_usage: HELP_REQUESTED,
        flags: flags("validate"),
        act,
    }
}

fn flags(name: &'static str) -> FlagSet {
    FlagSet::new(name)
        .string("bindAddress", "", "IP address or DNS name of the SPIRE server")
        .int("serverPort", 0, "Port number of the SPIRE server")
        .string("config", "", "Path to a SPIRE config file")
        .string("dataDir", "", "Directory to store runtime data to")
        .string("logFile", "", "File to write logs to")
        .string("logFormat", "", "'text' or 'json'")
        .bool("logSourceLocation", false, "Include source file, line number and function name in log lines")
        .string("logLevel", "", "'debug', 'info', 'warn', or 'error'")
        .string("trustDomain", "", "The trust domain that this server belongs to")
        .bool("expandEnv", false, "Expand environment variables in SPIRE config file")
        .string("socketPath", "", "Path to bind the SPIRE Server API socket to")
        .string("registrationUDSPath", "", "Old name of -socketPath")
        .hide("registrationUDSPath")
}

fn read(env: &mut Env, flags: &FlagSet, arguments: &[String]) -> Result<ServerRunFlags, String> {
    let (parsed, _) = parse(env, flags, arguments)?;
    let text = |name: &str| given(&parsed, name);
    let mut socket_path = text("socketPath");
    if let Some(old) = text("registrationUDSPath") {
        env.err("Warning: -registrationUDSPath is an old name; use -socketPath\n");
        socket_path = socket_path.or(Some(old));
    }
    Ok(ServerRunFlags {
        bind_address: text("bindAddress"),
        config: text("config"),
        data_dir: text("dataDir"),
        expand_env: parsed.bool("expandEnv"),
        log_file: text("logFile"),
        log_format: text("logFormat"),
        log_level: text("logLevel"),
        log_source_location: parsed.bool("logSourceLocation"),
        server_port: parsed.is_given("serverPort").then(|| parsed.int("serverPort")),
        socket_path,
        trust_domain: text("trustDomain"),
    })
}

/// A text flag that was given and is not empty: empty ones do not override the file.
pub(crate) fn given(parsed: &Parsed, name: &str) -> Option<String> {
    parsed.given_string(name).filter(|text| !text.is_empty()).map(ToOwned::to_owned)
}
