//! `logger …` (cmd/spire-server/cli/logger).

use spire_compat::flag::FlagSet;
use spire_wire::api::server::logger::v1::logger_client::LoggerClient;
use spire_wire::api::server::logger::v1::{GetLoggerRequest, ResetLogLevelRequest, SetLogLevelRequest};

use crate::call::{ApiCommand, Call, running};
use crate::dispatch::Command;
use crate::failure::{Doing, Failure};
use crate::pretty;

pub(super) fn commands<H: 'static>() -> [Command<H>; 3] {
    [
        ApiCommand { run: running!(get), ..GET }.server(),
        ApiCommand { run: running!(set), ..SET }.server(),
        ApiCommand { run: running!(reset), ..RESET }.server(),
    ]
}

/// These are the same for server and agent, but for the service.
pub(crate) const GET: ApiCommand = ApiCommand {
    path: "logger get",
    name: "logger get",
    synopsis: "Gets the logger details",
    flags: |flags| flags,
    run: running!(get),
};
pub(crate) const SET: ApiCommand = ApiCommand {
    path: "logger set",
    name: "logger set",
    synopsis: "Sets the logger details",
    flags: set_flags,
    run: running!(set),
};
pub(crate) const RESET: ApiCommand = ApiCommand {
    path: "logger reset",
    name: "logger reset",
    synopsis: "Reset the logger details to launch level",
    flags: |flags| flags,
    run: running!(reset),
};

fn set_flags(flags: FlagSet) -> FlagSet {
    flags.string("level", "", "The new log level, one of (panic, fatal, error, warn, info, debug, trace)")
}

async fn get(call: &mut Call<'_>) -> Result<(), Failure> {
    let mut client = LoggerClient::new(call.channel.clone());
    let logger = client.get_logger(GetLoggerRequest {}).await.doing("error fetching logger")?;
    call.print(&logger.into_inner(), pretty::logger)
}

async fn set(call: &mut Call<'_>) -> Result<(), Failure> {
    let new_level = pretty::parse_level(call.flags.string("level"))?;
    let mut client = LoggerClient::new(call.channel.clone());
    let logger =
        client.set_log_level(SetLogLevelRequest { new_level }).await.doing("failed to set log level")?;
    call.print(&logger.into_inner(), pretty::logger)
}

async fn reset(call: &mut Call<'_>) -> Result<(), Failure> {
    let mut client = LoggerClient::new(call.channel.clone());
    let logger = client.reset_log_level(ResetLogLevelRequest {}).await.doing("failed to reset logger")?;
    call.print(&logger.into_inner(), pretty::logger)
}
