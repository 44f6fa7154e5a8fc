//! `spire.api.server.logger.v1.Logger`: the log level of the running server (pkg/server/api/logger/v1).

use std::sync::Arc;

use spire_telemetry::{Level, LogLevel};
use spire_wire::api::server::logger::v1 as wire;
use spire_wire::api::types;
use tonic::{Code, Status};

use super::caller::LocalCaller;
use super::route::{Call, Route, unary};
use super::status::fail;

/// The level of the process's log.
pub trait LogControl: Send + Sync {
    /// The level now.
    fn current(&self) -> Level;
    /// The level that the process started with.
    fn launch(&self) -> Level;
    /// Sets the level.
    fn set(&self, level: Level);
    /// Takes the level of a reloaded configuration, which is then also the one that a reset goes back to.
    fn configure(&self, level: Level) {
        self.set(level);
    }
}

impl LogControl for LogLevel {
    fn current(&self) -> Level {
        self.current()
    }

    fn launch(&self) -> Level {
        self.launch()
    }

    fn set(&self, level: Level) {
        self.set(level);
    }

    fn configure(&self, level: Level) {
        self.relaunch(level);
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
    let level = match u8::try_from(request.new_level) {
        Ok(0) => {
            let text = "newLevel value cannot be LogLevel_UNSPECIFIED";
            return Err(fail(Code::InvalidArgument, text));
        }
        Ok(number) if level.is_ok() => Level::from_number(number - 1),
        _ => return Err(fail(Code::InvalidArgument, "unsupported log level")),
    };
    tracing::info!(new_log_level = level.as_str(), "SetLogLevel Called");
    call.api.deps.log.set(level);
    call.audit.success();
    Ok(state(&call))
}

async fn reset_log_level(
    call: Arc<Call>,
    _: LocalCaller,
    _: wire::ResetLogLevelRequest,
) -> Result<types::Logger, Status> {
    let launch = call.api.deps.log.launch();
    tracing::info!(launch_log_level = launch.as_str(), "ResetLogLevel Called");
    call.api.deps.log.set(launch);
    call.audit.success();
    Ok(state(&call))
}

/// The API's numbers are logrus' plus one.
fn state(call: &Call) -> types::Logger {
    let log = &call.api.deps.log;
    types::Logger { current_level: log.current() as i32 + 1, launch_level: log.launch() as i32 + 1 }
}
