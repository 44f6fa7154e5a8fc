//! What the configuration files of server and agent have in common: reading them, telling about unknown
//! and old keys, the `plugins`, `telemetry` and `health_checks` sections.
//!
//! Nothing here logs. Loading returns [`Notice`]s and [`UnknownKeys`] for the caller to log, because the
//! logger itself comes from the configuration.

mod log;
mod plugins;
mod sections;

#[cfg(test)]
mod tests;

pub use log::{Level, LogFormat, LogSettingError, LogSettings};
pub use plugins::{LegacyPlugins, PluginConfig, PluginData, changed_plugins, plugin_configs};
pub use sections::ignored as ignored_keys;
pub use sections::{
    HealthChecks, M3Config, PrometheusConfig, PrometheusTls, SectionUnknowns, StatsdConfig, TelemetryConfig,
    take_health_checks, take_telemetry,
};

use std::fmt;
use std::path::{Component, Path, PathBuf};

use crate::duration::GoDuration;
use crate::hcl::{self, Document, Pos, UnusedKey};
use crate::quote::quote;

/// How loud a [`Notice`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// Only of interest when looking for something.
    Debug,
    /// Normal.
    Info,
    /// The operator should change something.
    Warn,
}

/// Something to log once the logger exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// The log level.
    pub severity: Severity,
    /// The log message.
    pub message: String,
    /// The log fields.
    pub fields: Vec<(&'static str, String)>,
}

impl Notice {
    /// A warning without fields.
    pub fn warn(message: impl Into<String>) -> Self {
        Self { severity: Severity::Warn, message: message.into(), fields: Vec::new() }
    }

    /// An information without fields.
    pub fn info(message: impl Into<String>) -> Self {
        Self { severity: Severity::Info, ..Self::warn(message) }
    }

    /// A debug message without fields.
    pub fn debug(message: impl Into<String>) -> Self {
        Self { severity: Severity::Debug, ..Self::warn(message) }
    }

    /// A warning about a deprecated key, with the fields that the reference gives those.
    pub fn deprecated(message: impl Into<String>) -> Self {
        Self::warn(message).with("alert", "true").with("alert_type", "deprecated_config")
    }

    /// Adds a field.
    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.fields.push((name, value.into()));
        self
    }
}

/// Keys that are not configuration, in one section. To be logged at Error as `Unknown configuration
/// detected` with the fields `keys` and `section`; then loading fails.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownKeys {
    /// The section's name in the reference's log line: `server`, `ca_subject`, `top-level` and so on.
    pub section: String,
    /// The keys, sorted.
    pub keys: Vec<UnusedKey>,
}

impl UnknownKeys {
    /// The log message.
    pub const MESSAGE: &str = "Unknown configuration detected";

    /// The names joined by commas, the `keys` field.
    pub fn joined(&self) -> String {
        self.keys.iter().map(|key| key.name.as_str()).collect::<Vec<_>>().join(",")
    }

    /// Where each key stands, `log_levl at 3:5, …`.
    pub fn positions(&self) -> String {
        let each = |key: &UnusedKey| {
            let positions: Vec<_> = key.positions.iter().map(Pos::to_string).collect();
            format!("{} at {}", key.name, positions.join(" and "))
        };
        self.keys.iter().map(each).collect::<Vec<_>>().join(", ")
    }
}

/// Where in which file something stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// The file, as given.
    pub file: String,
    /// Line and column.
    pub pos: Pos,
    /// The key, dotted: `server.ca_ttl`. Empty where a position is all there is.
    pub key: String,
}

impl fmt::Display for Location {
    /// `file:line:column (key)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.pos)?;
        if self.key.is_empty() { Ok(()) } else { write!(f, " ({})", self.key) }
    }
}

/// Why a configuration was refused. Displays as the reference's text alone; [`ConfigError::detail`] has
/// what we know beyond it, for a line of its own.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct ConfigError {
    /// The reference's text.
    pub message: String,
    /// Where the cause stands.
    pub location: Option<Box<Location>>,
    /// What to do about it, where that is more than the message says.
    pub hint: Option<String>,
    /// What is to be logged before.
    pub notices: Vec<Notice>,
    /// Unknown keys, if they are the cause; to be logged before.
    pub unknown: Vec<UnknownKeys>,
}

impl ConfigError {
    /// An error with nothing but its text.
    pub fn new(message: impl Into<String>) -> Self {
        let (notices, unknown) = (Vec::new(), Vec::new());
        Self { message: message.into(), location: None, hint: None, notices, unknown }
    }

    /// Adds what to do about it.
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The place and the hint, `server.conf:3:5 (server.ca_ttl): …`; `None` if neither is known.
    pub fn detail(&self) -> Option<String> {
        match (&self.location, &self.hint) {
            (Some(location), Some(hint)) => Some(format!("{location}: {hint}")),
            (Some(location), None) => Some(location.to_string()),
            (None, Some(hint)) => Some(hint.clone()),
            (None, None) => None,
        }
    }
}

/// A configuration file that has been parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigFile {
    /// The path as given.
    pub path: String,
    /// Its content.
    pub document: Document,
}

impl ConfigFile {
    /// Reads and parses a file. With `expand`, `$NAME` and `${NAME}` are replaced in the whole text first.
    ///
    /// # Errors
    /// [`ConfigError`] when the file is not there or cannot be read; otherwise as [`ConfigFile::parse`].
    pub fn read(path: &str, expand: bool) -> Result<Self, ConfigError> {
        let bytes = std::fs::read(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => ConfigError::new(format!(
                "could not find config file {}: please use the -config flag",
                absolute_path(path).display()
            )),
            _ => ConfigError::new(format!(
                "unable to read configuration at {}: {}",
                quote(path),
                io_error(path, &error)
            )),
        })?;
        if expand {
            let text = String::from_utf8_lossy(&bytes);
            let variable = |name: &str| std::env::var(name).ok();
            return Self::parse(path, crate::expand::expand_environment(&text, variable));
        }
        Self::parse(path, bytes)
    }

    /// Parses the text of a file.
    ///
    /// # Errors
    /// [`ConfigError`] with the text and the place of a [`hcl::ParseError`].
    pub fn parse(path: &str, text: impl AsRef<[u8]>) -> Result<Self, ConfigError> {
        let document = hcl::parse_config(text).map_err(|error| {
            let pos = error.pos;
            let mut error = undecodable(path, &error);
            error.location = Some(Box::new(Location { file: path.to_owned(), pos, key: String::new() }));
            error
        })?;
        Ok(Self { path: path.to_owned(), document })
    }

    /// The error for a value of the wrong type.
    pub fn undecodable(&self, cause: hcl::DecodeError) -> ConfigError {
        let mut error = undecodable(&self.path, &cause);
        let key = cause.path.strip_prefix("root.").unwrap_or(&cause.path).to_owned();
        error.location = cause.pos.map(|pos| Box::new(Location { file: self.path.clone(), pos, key }));
        error
    }

    /// An error at a dotted key.
    pub fn error_at(&self, key: &str, message: impl Into<String>) -> ConfigError {
        let mut error = ConfigError::new(message);
        error.location = self.location(key).map(Box::new);
        error
    }

    /// The error for a level or format of the log that is none, in a section.
    pub fn log_error(&self, section: &str, error: &LogSettingError) -> ConfigError {
        self.error_at(&format!("{section}.{}", error.key()), format!("could not start logger: {error}"))
    }

    /// The error for a file without plugins.
    pub fn no_plugins(&self) -> ConfigError {
        ConfigError::new("plugins section must be configured").with_hint(format!("{} has none", self.path))
    }

    /// Where a dotted key stands.
    pub fn location(&self, key: &str) -> Option<Location> {
        let pos = self.document.locate(key)?;
        Some(Location { file: self.path.clone(), pos, key: key.to_owned() })
    }

    /// Warnings about attributes that stand twice in one body.
    pub fn duplicate_notices(&self) -> Vec<Notice> {
        let notice = |duplicate: &hcl::Duplicate| {
            Notice::warn("Configuration key is set more than once in one section; the last value counts")
                .with("key", duplicate.name.clone())
                .with("position", format!("{}:{}", self.path, duplicate.pos))
        };
        self.document.duplicates.iter().map(notice).collect()
    }

    /// A warning about an old key.
    pub fn legacy_notice(&self, key: &str, message: &str) -> Notice {
        let mut notice = Notice::deprecated(message).with("key", key);
        if let Some(location) = self.location(key) {
            notice = notice.with("position", format!("{}:{}", location.file, location.pos));
        }
        notice
    }
}

fn undecodable(path: &str, cause: &dyn fmt::Display) -> ConfigError {
    ConfigError::new(format!("unable to decode configuration at {}: {cause}", quote(path)))
}

/// The text that Go has for a failed read: `open path: permission denied`.
pub fn io_error(path: &str, error: &std::io::Error) -> String {
    let operation = if error.kind() == std::io::ErrorKind::IsADirectory { "read" } else { "open" };
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut chars = text.chars();
    let first = chars.next().map(|c| c.to_ascii_lowercase().to_string()).unwrap_or_default();
    format!("{operation} {path}: {first}{}", chars.as_str())
}

/// The path from the root, without `.` and `..`, resolved by text alone (Go's `filepath.Abs`).
pub fn absolute_path(path: impl AsRef<Path>) -> PathBuf {
    let path = path.as_ref();
    let joined = if path.is_absolute() {
        path.to_owned()
    } else {
        std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/")).join(path)
    };
    let mut out = PathBuf::new();
    for component in joined.components() {
        match component {
            Component::ParentDir => {
                out.pop();
            }
            Component::CurDir => {}
            other => out.push(other),
        }
    }
    out
}

/// Switches for what is not ready for everyone.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FeatureFlags {
    /// The names as given.
    pub names: Vec<String>,
    /// `wit-svid`: WIT-SVIDs and the RPCs for them.
    pub wit_svid: bool,
}

impl FeatureFlags {
    /// Parses `experimental.feature_flags`; one unknown name refuses them all.
    ///
    /// # Errors
    /// The reference's text (pkg/common/fflag) with every unknown name, sorted.
    pub fn parse(names: &[String]) -> Result<Self, String> {
        let known = ["wit-svid", "i_am_a_test_flag"];
        let mut unknown: Vec<&str> =
            names.iter().map(String::as_str).filter(|name| !known.contains(name)).collect();
        if !unknown.is_empty() {
            unknown.sort_unstable();
            let unknown = unknown.join(" ");
            return Err(format!("error loading feature flags: unknown feature flag(s): [{unknown}]"));
        }
        Ok(Self { names: names.to_vec(), wit_svid: names.iter().any(|name| name == "wit-svid") })
    }

    /// The warning that each flag deserves.
    pub fn notices(&self) -> impl Iterator<Item = Notice> + '_ {
        let text = |name: &String| format!("Developer feature flag {} has been enabled", quote(name));
        self.names.iter().map(move |name| Notice::warn(text(name)))
    }
}

/// Profiling keys, the same on both sides.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Profiling {
    /// Whether to serve profiles on localhost.
    pub enabled: bool,
    /// The port for that.
    pub port: i64,
    /// Seconds between dumps; 0 is off.
    pub frequency: i64,
    /// Which profiles to dump.
    pub names: Vec<String>,
}

/// The first text that is not empty: what flags say, then the file, then the default.
pub fn first_set<'a>(flag: Option<&'a str>, file: Option<&'a str>, default: &'a str) -> &'a str {
    flag.filter(|text| !text.is_empty()).or(file.filter(|text| !text.is_empty())).unwrap_or(default)
}

/// A duration, not negative.
///
/// # Errors
/// Go's text for what is no duration ([`DurationError`](crate::duration::DurationError)), or that it is
/// negative. It is what follows the reference's `could not parse …: `.
pub fn parse_duration(text: &str) -> Result<std::time::Duration, String> {
    let duration: GoDuration =
        text.parse().map_err(|error: crate::duration::DurationError| error.to_string())?;
    duration.to_std().ok_or_else(|| format!("duration {} is negative", quote(text)))
}
