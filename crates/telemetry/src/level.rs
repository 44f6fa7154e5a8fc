//! Log levels as logrus has them, and the level that can change while the process runs.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use spire_ports::observe::{FATAL, PANIC};
use tracing::Metadata;
use tracing::level_filters::LevelFilter;

use crate::gotext;

/// A logrus level; a smaller one is more severe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Level {
    /// Events whose target is [`PANIC`].
    Panic,
    /// Events whose target is [`FATAL`].
    Fatal,
    /// `tracing::error!`.
    Error,
    /// `tracing::warn!`; prints as `warning`.
    Warn,
    /// `tracing::info!`.
    Info,
    /// `tracing::debug!`.
    Debug,
    /// `tracing::trace!`.
    Trace,
}

/// A text that names no level.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a valid logrus Level: {0}")]
pub struct LevelError(String);

impl Level {
    /// The level of a `tracing` event.
    pub fn of(metadata: &Metadata<'_>) -> Self {
        match *metadata.level() {
            tracing::Level::ERROR => match metadata.target() {
                PANIC => Self::Panic,
                FATAL => Self::Fatal,
                _ => Self::Error,
            },
            tracing::Level::WARN => Self::Warn,
            tracing::Level::INFO => Self::Info,
            tracing::Level::DEBUG => Self::Debug,
            tracing::Level::TRACE => Self::Trace,
        }
    }

    /// The name as logrus prints it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Panic => "panic",
            Self::Fatal => "fatal",
            Self::Error => "error",
            Self::Warn => "warning",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }

    /// What `tracing` has to let through for this level, before our own finer look.
    pub(crate) fn filter(self) -> LevelFilter {
        match self {
            Self::Panic | Self::Fatal | Self::Error => LevelFilter::ERROR,
            Self::Warn => LevelFilter::WARN,
            Self::Info => LevelFilter::INFO,
            Self::Debug => LevelFilter::DEBUG,
            Self::Trace => LevelFilter::TRACE,
        }
    }

    fn from_repr(value: u8) -> Self {
        match value {
            0 => Self::Panic,
            1 => Self::Fatal,
            2 => Self::Error,
            3 => Self::Warn,
            4 => Self::Info,
            5 => Self::Debug,
            _ => Self::Trace,
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Reads a level's name in any case; `warning` is `warn` (logrus `ParseLevel`).
impl FromStr for Level {
    type Err = LevelError;

    fn from_str(text: &str) -> Result<Self, LevelError> {
        Ok(match text.to_lowercase().as_str() {
            "panic" => Self::Panic,
            "fatal" => Self::Fatal,
            "error" => Self::Error,
            "warn" | "warning" => Self::Warn,
            "info" => Self::Info,
            "debug" => Self::Debug,
            "trace" => Self::Trace,
            _ => {
                let mut quoted = Vec::new();
                gotext::quote(&mut quoted, text);
                return Err(LevelError(String::from_utf8_lossy(&quoted).into_owned()));
            }
        })
    }
}

/// The level in force, shared with the log itself: what the Logger API shows and changes.
#[derive(Clone, Debug)]
pub struct LogLevel {
    current: Arc<AtomicU8>,
    launch: Arc<AtomicU8>,
}

impl LogLevel {
    /// A level of its own, which no log follows yet.
    pub fn new(launch: Level) -> Self {
        let level = || Arc::new(AtomicU8::new(launch as u8));
        Self { current: level(), launch: level() }
    }

    /// The level in force now.
    pub fn current(&self) -> Level {
        Level::from_repr(self.current.load(Ordering::Relaxed))
    }

    /// The level of the configuration: that with which the process was started, or that of the last reload.
    pub fn launch(&self) -> Level {
        Level::from_repr(self.launch.load(Ordering::Relaxed))
    }

    /// Takes the level of a reloaded configuration.
    pub fn relaunch(&self, level: Level) {
        self.launch.store(level as u8, Ordering::Relaxed);
        self.set(level);
    }

    /// Changes the level; every thread follows at once.
    pub fn set(&self, level: Level) {
        self.current.store(level as u8, Ordering::Relaxed);
        // `tracing` remembers per call site whether anyone listens; that is what makes silent events cheap.
        tracing::callsite::rebuild_interest_cache();
    }

    /// Back to the level of the configuration.
    pub fn reset(&self) {
        self.set(self.launch());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parsed_as_logrus_does() {
        for (text, expected, printed) in [
            ("panic", Level::Panic, "panic"),
            ("FATAL", Level::Fatal, "fatal"),
            ("Error", Level::Error, "error"),
            ("warn", Level::Warn, "warning"),
            ("WARNING", Level::Warn, "warning"),
            ("INFO", Level::Info, "info"),
            ("debug", Level::Debug, "debug"),
            ("tRaCe", Level::Trace, "trace"),
        ] {
            let level: Level = text.parse().unwrap();
            assert_eq!((level, level.to_string().as_str()), (expected, printed));
            assert_eq!(Level::from_repr(level as u8), level);
        }
    }

    #[test]
    fn refused_in_logrus_words() {
        let error = |text: &str| text.parse::<Level>().unwrap_err().to_string();
        assert_eq!(error("bo\"gus"), r#"not a valid logrus Level: "bo\"gus""#);
        assert_eq!(error(""), r#"not a valid logrus Level: """#);
        assert_eq!(error(" info"), r#"not a valid logrus Level: " info""#);
    }
}
