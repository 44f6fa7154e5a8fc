//! A log in memory, for tests: what was logged, as fields and as lines.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;
use spire_compat::config::{Level, LogFormat};
use tracing::subscriber::DefaultGuard;
use tracing_subscriber::layer::SubscriberExt as _;

use crate::event::Entry;
use crate::format::Formatter;
use crate::layer::LogLayer;
use crate::level::LogLevel;
use crate::sink::Sink;
use crate::zone::Zone;

/// Keeps what is logged while it is the subscriber of a scope.
///
/// ```
/// let capture = spire_telemetry::Capture::new(spire_telemetry::Level::Info);
/// tracing::subscriber::with_default(capture.subscriber(), || {
///     tracing::info!(target: "spire", spiffe_id = "spiffe://example.org/a", "Entry created");
/// });
/// assert_eq!(capture.lines(), [r#"level=info msg="Entry created" spiffe_id="spiffe://example.org/a""#]);
/// ```
///
/// Only events of our crates count fully: a test in a crate whose name does not start with `spire` sets a target.
#[derive(Clone, Debug)]
pub struct Capture {
    memory: Arc<Memory>,
    level: LogLevel,
    source_location: bool,
}

/// One captured event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Captured {
    /// The level it was printed at.
    pub level: Level,
    /// The message.
    pub message: String,
    /// Names and values as text, sorted by name; those of spans included.
    pub fields: Vec<(Cow<'static, str>, String)>,
    /// The line in text form, without its time and line end.
    pub line: String,
}

impl Captured {
    /// A field's value.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(field, _)| *field == name).map(|(_, value)| value.as_str())
    }
}

impl Capture {
    /// Captures events of this level and the more severe ones.
    pub fn new(level: Level) -> Self {
        Self { memory: Arc::default(), level: LogLevel::new(level), source_location: false }
    }

    /// Adds `file` and `func` as `log_source_location` does.
    pub fn with_source_location(mut self) -> Self {
        self.source_location = true;
        self
    }

    /// A subscriber that writes here, for `tracing::subscriber::with_default` or `WithSubscriber`.
    pub fn subscriber(&self) -> impl tracing::Subscriber + Send + Sync + use<> {
        let formatter = Formatter {
            format: LogFormat::Default,
            terminal: false,
            start: SystemTime::UNIX_EPOCH,
            zone: Cow::Owned(Zone::utc()),
        };
        let sink = Sink::Memory(Arc::clone(&self.memory));
        let layer = LogLayer::new(self.level.clone(), formatter, self.source_location, sink);
        tracing_subscriber::registry().with(layer)
    }

    /// Makes this the log of the current thread until the guard drops.
    pub fn install(&self) -> DefaultGuard {
        tracing::subscriber::set_default(self.subscriber())
    }

    /// The level in force, to change it.
    pub fn level(&self) -> &LogLevel {
        &self.level
    }

    /// What was captured, oldest first.
    pub fn entries(&self) -> Vec<Captured> {
        self.memory.entries.lock().iter().cloned().collect()
    }

    /// The captured lines without their times, oldest first.
    pub fn lines(&self) -> Vec<String> {
        self.memory.entries.lock().iter().map(|captured| captured.line.clone()).collect()
    }

    /// Takes what was captured, oldest first.
    pub fn take(&self) -> Vec<Captured> {
        self.memory.entries.lock().drain(..).collect()
    }
}

/// The captured events.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    entries: Mutex<VecDeque<Captured>>,
}

impl Memory {
    pub(crate) fn push(&self, entry: Entry, line: &[u8]) {
        let line = String::from_utf8_lossy(line);
        let line = line.trim_end_matches('\n');
        // The line starts with `time="…" `; tests must not depend on it.
        let line = line.find("level=").map_or(line, |start| &line[start..]).to_owned();
        let fields = entry.fields.into_iter().map(|(name, value)| (name, value.to_text())).collect();
        let mut entries = self.entries.lock();
        if entries.len() == MAX_ENTRIES {
            entries.pop_front();
        }
        entries.push_back(Captured { level: entry.level, message: entry.message, fields, line });
    }
}

/// More than any test looks at; the oldest go first.
const MAX_ENTRIES: usize = 1 << 16;
