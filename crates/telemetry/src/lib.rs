//! Logs in logrus' shapes on `tracing`, an in-memory metrics sink, health checks over HTTP, systemd's readiness.
//!
//! Application code logs by `tracing::info!(spiffe_id = %id, "Entry created")`; see `spire_ports::observe` for names
//! and values of fields. [`init`] is called once by a binary; tests use [`Capture`].

mod capture;
pub mod daemon;
mod event;
mod format;
mod gotext;
pub mod health;
mod health_http;
#[cfg(feature = "jemalloc")]
pub mod heap;
mod http;
mod inmem;
mod layer;
mod level;
pub mod metrics;
pub mod profiling;
mod sink;
mod startup;
pub mod systemd;
mod zone;

use std::borrow::Cow;
use std::io::IsTerminal as _;
use std::sync::Arc;
use std::time::SystemTime;

use tracing_subscriber::layer::SubscriberExt as _;

pub use capture::{Capture, Captured};
pub use inmem::{InMem, Series};
pub use level::LogLevel;
pub use sink::{ReopenError, ReopenHandle};
pub use spire_compat::config::{Level, LogFormat, LogSettings};
pub use startup::{log_notices, log_refusal};

use format::Formatter;
use layer::LogLayer;
use sink::{Output, Sink};
use zone::Zone;

/// What a running log can be told.
#[derive(Clone, Debug)]
pub struct LogHandle {
    /// Shows and changes the level.
    pub level: LogLevel,
    /// Opens the log file again; `None` without one.
    pub reopen: Option<ReopenHandle>,
}

/// Why logging did not start.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// The log file cannot be opened, in Go's words: `open /x/y: no such file or directory`.
    #[error("open {path}: {reason}")]
    Open {
        /// The file as configured.
        path: String,
        /// The system's reason.
        reason: String,
    },
    /// The process logs already.
    #[error("logging is initialized already")]
    Already,
}

/// Starts the process's log. Called once, early, by the binary; the time zone (`TZ`) is read here.
///
/// # Errors
/// [`InitError::Open`] when the log file cannot be opened; [`InitError::Already`] when the process has a
/// log.
pub fn init(config: LogSettings) -> Result<LogHandle, InitError> {
    let (layer, handle) = open(config)?;
    let subscriber = tracing_subscriber::registry().with(layer);
    tracing::subscriber::set_global_default(subscriber).map_err(|_| InitError::Already)?;
    Ok(handle)
}

/// The log as a subscriber that is not yet the process's, for a scope (`tracing::subscriber::with_default`).
///
/// # Errors
/// [`InitError::Open`] when the log file cannot be opened.
pub fn subscriber(
    config: LogSettings,
) -> Result<(impl tracing::Subscriber + Send + Sync + use<>, LogHandle), InitError> {
    let (layer, handle) = open(config)?;
    Ok((tracing_subscriber::registry().with(layer), handle))
}

fn open(config: LogSettings) -> Result<(LogLayer, LogHandle), InitError> {
    let file = config.file.filter(|path| !path.as_os_str().is_empty());
    let terminal = file.is_none() && std::io::stdout().is_terminal();
    let (output, reopen) = match file {
        Some(path) => {
            let output = Arc::new(Output::file(path)?);
            (Arc::clone(&output), Some(ReopenHandle::new(output)))
        }
        None => (Arc::new(Output::stdout()), None),
    };
    let level = LogLevel::new(config.level);
    let formatter = Formatter {
        format: config.format,
        terminal,
        start: SystemTime::now(),
        zone: Cow::Owned(Zone::local(std::env::var_os("TZ").as_deref())),
    };
    let layer = LogLayer::new(level.clone(), formatter, config.source_location, Sink::Output(output));
    Ok((layer, LogHandle { level, reopen }))
}

#[cfg(test)]
mod tests;
