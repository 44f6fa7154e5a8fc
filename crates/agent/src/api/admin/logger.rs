//! `spire.api.agent.logger.v1.Logger`: the log level of the running agent (pkg/agent/api/logger/v1).

use async_trait::async_trait;
use spire_telemetry::{Level, LogLevel};
use spire_wire::api::agent::logger::v1::{
    GetLoggerRequest, ResetLogLevelRequest, SetLogLevelRequest, logger_server,
};
use spire_wire::api::types;
use tonic::{Request, Response, Status};

/// The service.
pub(super) struct Logger(LogLevel);

impl Logger {
    pub(super) fn new(level: LogLevel) -> Self {
        tracing::info!(launch_log_level = level.launch().as_str(), "Logger service configured");
        Self(level)
    }

    fn state(&self) -> Response<types::Logger> {
        let (current_level, launch_level) =
            (to_wire(self.0.current()).into(), to_wire(self.0.launch()).into());
        Response::new(types::Logger { current_level, launch_level })
    }
}

#[async_trait]
impl logger_server::Logger for Logger {
    async fn get_logger(&self, _: Request<GetLoggerRequest>) -> Result<Response<types::Logger>, Status> {
        tracing::info!("GetLogger Called");
        Ok(self.state())
    }

    async fn set_log_level(
        &self,
        request: Request<SetLogLevelRequest>,
    ) -> Result<Response<types::Logger>, Status> {
        let refuse = |text: &'static str| {
            tracing::error!("Invalid argument: {text}");
            Status::invalid_argument(text)
        };
        let level = match types::LogLevel::try_from(request.into_inner().new_level).map(from_wire) {
            Ok(Some(level)) => level,
            Ok(None) => return Err(refuse("newLevel value cannot be LogLevel_UNSPECIFIED")),
            Err(_) => return Err(refuse("unsupported log level")),
        };
        tracing::info!(new_log_level = level.as_str(), "SetLogLevel Called");
        self.0.set(level);
        Ok(self.state())
    }

    async fn reset_log_level(
        &self,
        _: Request<ResetLogLevelRequest>,
    ) -> Result<Response<types::Logger>, Status> {
        tracing::info!(launch_log_level = self.0.launch().as_str(), "ResetLogLevel Called");
        self.0.reset();
        Ok(self.state())
    }
}

fn from_wire(level: types::LogLevel) -> Option<Level> {
    Some(match level {
        types::LogLevel::Unspecified => return None,
        types::LogLevel::Panic => Level::Panic,
        types::LogLevel::Fatal => Level::Fatal,
        types::LogLevel::Error => Level::Error,
        types::LogLevel::Warn => Level::Warn,
        types::LogLevel::Info => Level::Info,
        types::LogLevel::Debug => Level::Debug,
        types::LogLevel::Trace => Level::Trace,
    })
}

fn to_wire(level: Level) -> types::LogLevel {
    match level {
        Level::Panic => types::LogLevel::Panic,
        Level::Fatal => types::LogLevel::Fatal,
        Level::Error => types::LogLevel::Error,
        Level::Warn => types::LogLevel::Warn,
        Level::Info => types::LogLevel::Info,
        Level::Debug => types::LogLevel::Debug,
        Level::Trace => types::LogLevel::Trace,
    }
}
