//! `spire.api.server.logger.v1.Logger`: the log level of the running server (pkg/server/api/logger/v1).

use std::sync::Arc;

use spire_wire::api::server::logger::v1 as wire;
use spire_wire::api::types;
use tonic::{Code, Status};

use super::caller::LocalCaller;
use super::route::{Call, Route, unary};
use super::status::fail;

/// The level of the process's log. Levels are logrus' numbers: 0 panic, 1 fatal, 2 error, 3 warning, 4 info,
/// 5 debug, 6 trace.
pub trait LogControl: Send + Sync {
    /// The level now.
    fn current(&self) -> u8;
    /// The level that the process started with.
    fn launch(&self) -> u8;
    /// Sets the level; numbers above 6 are trace.
    fn set(&self, level: u8);
    /// Takes the level of a reloaded configuration, which is then also the one that a reset goes back to.
    fn configure(&self, level: u8) {
        self.set(level);
    }
}

pub(super) fn routes() -> Vec<Route> {
    vec![
        unary("/spire.api.server.logger.v1.Logger/GetLogger", logger).unix_only(),
        unary("/spire.api.server.logger.v1.Logger/SetLogLevel", set_log_level).unix_only(),
        unary("/spire.api.server.logger.v1.Logger/ResetLogLevel", reset_log_level).unix_only(),
    ]
}

async fn logger(call: Arc<Call>, _: LocalCaller, _: wire::GetLoggerRequest) -> Result<types::Logger, Status> {
    tracing::info!("GetLogger Called");
    call.audit.success();
    Ok(state(&call))
}

async fn set_log_level(
    call: Arc<Call>,
    _: LocalCaller,
    request: wire::SetLogLevelRequest,
) -> Result<types::Logger, Status> {
    let level = types::LogLevel::try_from(request.new_level);
    let name = level.map_or_else(|_| request.new_level.to_string(), |level| level.as_str_name().to_owned());
    call.audit.add("new_log_level", name);
    let number = match u8::try_from(request.new_level) {
        Ok(0) => {
            let text = "newLevel value cannot be LogLevel_UNSPECIFIED";
            return Err(fail(Code::InvalidArgument, text));
        }
        Ok(number) if level.is_ok() => number - 1,
        _ => return Err(fail(Code::InvalidArgument, "unsupported log level")),
    };
    tracing::info!(new_log_level = name_of(number), "SetLogLevel Called");
    call.api.deps.log.set(number);
    call.audit.success();
    Ok(state(&call))
}

async fn reset_log_level(
    call: Arc<Call>,
    _: LocalCaller,
    _: wire::ResetLogLevelRequest,
) -> Result<types::Logger, Status> {
    let launch = call.api.deps.log.launch();
    tracing::info!(launch_log_level = name_of(launch), "ResetLogLevel Called");
    call.api.deps.log.set(launch);
    call.audit.success();
    Ok(state(&call))
}

/// The API's numbers are logrus' plus one.
fn state(call: &Call) -> types::Logger {
    let log = &call.api.deps.log;
    types::Logger { current_level: i32::from(log.current()) + 1, launch_level: i32::from(log.launch()) + 1 }
}

fn name_of(level: u8) -> &'static str {
    ["panic", "fatal", "error", "warning", "info", "debug"]
        .get(usize::from(level))
        .copied()
        .unwrap_or("trace")
}
