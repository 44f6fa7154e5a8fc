//! `spire explain`: why a process gets the identities that it gets, or none.

mod registry;
mod report;

use spire_compat::flag::{FlagSet, Parsed};
use spire_net::grpc::unix_channel;
use spire_net::tls::UnixConnector;
use spire_wire::explain::caller_client::CallerClient;
use spire_wire::explain::process_client::ProcessClient;
use spire_wire::explain::{ExplainCallerRequest, ExplainProcessRequest, Explanation};
use tonic::Code;
use tonic::transport::Channel;

use self::registry::Registry;
use crate::agent::with_security_header;
use crate::call;
use crate::env::Env;
use crate::failure::{Doing, Failure, rpc_text};
use crate::output::{self, Format};
use crate::socket::{ADMIN_DEFAULT, Socket, clean};
use crate::view;

/// Runs `spire explain` with these arguments, and gives its exit code: 0 when there was something to say, whatever it is.
pub fn explain(arguments: &[String], env: &mut Env) -> i32 {
    let flags = output::flag(
        Socket::Workload
            .flags(FlagSet::new("explain"))
            .int("pid", 0, "The process to explain, over the admin socket; without it, this command itself")
            .string("adminSocketPath", ADMIN_DEFAULT, "Path to the SPIRE Agent admin API socket, for -pid")
            .string(
                "serverSocketPath",
                "",
                "Path to the SPIRE Server API socket, to look at all entries and their parents too",
            ),
    );
    let Ok((parsed, format)) = call::parse(env, &flags, arguments) else { return 1 };
    let done = run(env, &parsed, format);
    env.flush();
    match done {
        Ok(()) => 0,
        Err(failure) => {
            env.err(format_args!("Error: {failure}\n"));
            1
        }
    }
}

fn run(env: &mut Env, flags: &Parsed, format: Format) -> Result<(), Failure> {
    let pid = i32::try_from(flags.int("pid"))
        .ok()
        .filter(|pid| *pid >= 0)
        .ok_or_else(|| Failure::new("-pid is no process ID"))?;
    let connector = match pid {
        0 => Socket::Workload.connector(env, flags)?,
        _ => UnixConnector::new(clean(&env.locate(flags.string("adminSocketPath")))),
    };
    let server = match flags.string("serverSocketPath") {
        "" => None,
        path => Some(UnixConnector::new(clean(&env.locate(path)))),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(format!("unable to start: {error}")))?;
    runtime.block_on(async {
        let explanation = ask(unix_channel(connector), pid).await?;
        let registry = match server {
            Some(server) => Some(Registry::load(unix_channel(server), explanation.agent_id.as_ref()).await?),
            None => None,
        };
        let report = report::Report::new(&explanation, registry.as_ref());
        match format {
            Format::Pretty => env.out(report.text()),
            Format::Json => env.out(view::line(&report.json())),
        }
        Ok(())
    })
}

async fn ask(channel: Channel, pid: i32) -> Result<Explanation, Failure> {
    let answer = match pid {
        0 => CallerClient::new(channel).explain(with_security_header(ExplainCallerRequest {})).await,
        pid => ProcessClient::new(channel).explain(ExplainProcessRequest { pid }).await,
    };
    match answer {
        Ok(explanation) => Ok(explanation.into_inner()),
        Err(status) if status.code() == Code::Unimplemented => {
            Err(Failure::new(format!("this agent explains nothing ({})", rpc_text(&status))))
        }
        Err(status) => Err(status).doing("failed to ask the agent"),
    }
}

#[cfg(test)]
mod tests;
