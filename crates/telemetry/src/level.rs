//! Levels of `tracing` as logrus has them, and the level that can change while the process runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use spire_compat::config::Level;
use spire_ports::observe::{FATAL, PANIC};
use tracing::Metadata;
use tracing::level_filters::LevelFilter;

/// The level of a `tracing` event: errors whose target is [`PANIC`] or [`FATAL`] are of those levels.
pub(crate) fn level_of(metadata: &Metadata<'_>) -> Level {
    match *metadata.level() {
        tracing::Level::ERROR => match metadata.target() {
            PANIC => Level::Panic,
            FATAL => Level::Fatal,
            _ => Level::Error,
        },
        tracing::Level::WARN => Level::Warn,
        tracing::Level::INFO => Level::Info,
        tracing::Level::DEBUG => Level::Debug,
        tracing::Level::TRACE => Level::Trace,
    }
}

/// What `tracing` has to let through for a level, before our own finer look.
pub(crate) fn filter(level: Level) -> LevelFilter {
    match level {
        Level::Panic | Level::Fatal | Level::Error => LevelFilter::ERROR,
        Level::Warn => LevelFilter::WARN,
        Level::Info => LevelFilter::INFO,
        Level::Debug => LevelFilter::DEBUG,
        Level::Trace => LevelFilter::TRACE,
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
        Level::from_number(self.current.load(Ordering::Relaxed))
    }

    /// The level of the configuration: that with which the process was started, or that of the last reload.
    pub fn launch(&self) -> Level {
        Level::from_number(self.launch.load(Ordering::Relaxed))
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
