//! How a process logs: `log_level`, `log_format`, `log_file` and `log_source_location`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::quote::quote;

/// A log level, by logrus' names; a smaller one is more severe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Level {
    /// `panic`
    Panic,
    /// `fatal`
    Fatal,
    /// `error`
    Error,
    /// `warn` or `warning`; prints as `warning`.
    Warn,
    /// `info`
    Info,
    /// `debug`
    Debug,
    /// `trace`
    Trace,
}

impl Level {
    /// By logrus' number; what is above 6 is trace.
    pub const fn from_number(number: u8) -> Self {
        match number {
            0 => Self::Panic,
            1 => Self::Fatal,
            2 => Self::Error,
            3 => Self::Warn,
            4 => Self::Info,
            5 => Self::Debug,
            _ => Self::Trace,
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
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A text that names no level or format, in the reference's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LogSettingError {
    /// No level.
    #[error("not a valid logrus Level: {}", quote(.0))]
    Level(String),
    /// No format.
    #[error("unknown logger format: {}", quote(.0))]
    Format(String),
}

impl LogSettingError {
    /// The key that has the text.
    pub fn key(&self) -> &'static str {
        match self {
            Self::Level(_) => "log_level",
            Self::Format(_) => "log_format",
        }
    }
}

/// Reads a level's name in any case (logrus `ParseLevel`).
impl FromStr for Level {
    type Err = LogSettingError;

    fn from_str(name: &str) -> Result<Self, LogSettingError> {
        Ok(match name.to_ascii_lowercase().as_str() {
            "panic" => Self::Panic,
            "fatal" => Self::Fatal,
            "error" => Self::Error,
            "warn" | "warning" => Self::Warn,
            "info" => Self::Info,
            "debug" => Self::Debug,
            "trace" => Self::Trace,
            _ => return Err(LogSettingError::Level(name.to_owned())),
        })
    }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// Nothing set: text, times in whole seconds.
    #[default]
    Default,
    /// `text`: text, times with a fraction.
    Text,
    /// `json`: one object a line, times with a fraction.
    Json,
}

/// Reads a format's name in any case.
impl FromStr for LogFormat {
    type Err = LogSettingError;

    fn from_str(name: &str) -> Result<Self, LogSettingError> {
        match name.to_ascii_uppercase().as_str() {
            "" => Ok(Self::Default),
            "TEXT" => Ok(Self::Text),
            "JSON" => Ok(Self::Json),
            _ => Err(LogSettingError::Format(name.to_owned())),
        }
    }
}

/// Where and how to log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogSettings {
    /// The file that lines are appended to; `None` or an empty path is the standard output.
    pub file: Option<PathBuf>,
    /// The level at the start.
    pub level: Level,
    /// The form of the lines.
    pub format: LogFormat,
    /// Adds `file` (name and line) and `func` (the module) to each line.
    pub source_location: bool,
}

impl Default for LogSettings {
    /// What the reference does when nothing is set.
    fn default() -> Self {
        Self { file: None, level: Level::Info, format: LogFormat::Default, source_location: false }
    }
}

impl LogSettings {
    /// Parses the level and format names.
    ///
    /// # Errors
    /// [`LogSettingError`] for the first of them that is not known.
    pub fn parse(
        file: &str,
        level: &str,
        format: &str,
        source_location: bool,
    ) -> Result<Self, LogSettingError> {
        Ok(Self {
            level: level.parse()?,
            format: format.parse()?,
            file: (!file.is_empty()).then(|| PathBuf::from(file)),
            source_location,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_as_logrus_has_them() {
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
            assert_eq!(Level::from_number(level as u8), level);
        }
        let error = |text: &str| text.parse::<Level>().unwrap_err().to_string();
        assert_eq!(error("bo\"gus"), r#"not a valid logrus Level: "bo\"gus""#);
        assert_eq!(error(""), r#"not a valid logrus Level: """#);
        assert_eq!(error(" info"), r#"not a valid logrus Level: " info""#);
    }

    #[test]
    fn formats_are_named_in_any_case() {
        for (name, expected) in [
            ("", LogFormat::Default),
            ("text", LogFormat::Text),
            ("TEXT", LogFormat::Text),
            ("Json", LogFormat::Json),
        ] {
            assert_eq!(name.parse(), Ok(expected));
        }
        assert_eq!("xml".parse::<LogFormat>().unwrap_err().to_string(), r#"unknown logger format: "xml""#);
    }
}
