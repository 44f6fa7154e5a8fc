//! What asks the agent's admin socket: `logger …`, `debug getinfo` (cmd/spire-agent/cli/logger, debug).

use spire_compat::duration::GoDuration;
use spire_compat::gotime;
use spire_wire::api::agent::debug::v1::debug_client::DebugClient;
use spire_wire::api::agent::debug::v1::{GetInfoRequest, GetInfoResponse};
use spire_wire::api::agent::logger::v1::logger_client::LoggerClient;
use spire_wire::api::agent::logger::v1::{GetLoggerRequest, ResetLogLevelRequest, SetLogLevelRequest};

use crate::call::{ApiCommand, Call, running};
use crate::dispatch::Command;
use crate::env::Env;
use crate::failure::{Doing, Failure};
use crate::pretty::{self, chain_line};
use crate::server::logger;

pub(super) fn commands<H: 'static>() -> [Command<H>; 4] {
    [
        ApiCommand { run: running!(get), ..logger::GET }.admin(),
        ApiCommand { run: running!(set), ..logger::SET }.admin(),
        ApiCommand { run: running!(reset), ..logger::RESET }.admin(),
        GET_INFO.admin(),
    ]
}

const GET_INFO: ApiCommand = ApiCommand {
    path: "debug getinfo",
    name: "debug getinfo",
    synopsis: "Prints debug information about the agent",
    flags: |flags| flags,
    run: running!(info),
};

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

async fn info(call: &mut Call<'_>) -> Result<(), Failure> {
    let info = DebugClient::new(call.channel.clone()).get_info(GetInfoRequest {}).await?.into_inner();
    call.print(&info, print_info)
}

#[allow(clippy::unnecessary_wraps, reason = "the shape of a printer")]
fn print_info(env: &mut Env, info: &GetInfoResponse) -> Result<(), Failure> {
    let last_sync = match info.last_sync_success {
        0 => "(never)".to_owned(),
        at => gotime::rfc3339(at),
    };
    let uptime = GoDuration::from_secs(i64::from(info.uptime));
    env.out("Agent Debug Info:\n");
    env.out(format_args!("  Uptime:                          {uptime}\n"));
    env.out(format_args!("  Last Sync Success:               {last_sync}\n"));
    env.out(format_args!("  Cached X.509 SVIDs:              {}\n", info.cached_x509_svids_count));
    env.out(format_args!("  Cached JWT SVIDs:                {}\n", info.cached_jwt_svids_count));
    env.out(format_args!("  Cached SVID Store X.509 SVIDs:   {}\n", info.cached_svidstore_x509_svids_count));
    if !info.svid_chain.is_empty() {
        env.out("  SVID Chain:\n");
    }
    for (i, cert) in info.svid_chain.iter().enumerate() {
        chain_line(env, i, cert.id.as_ref(), &cert.subject, cert.expires_at);
    }
    Ok(())
}
