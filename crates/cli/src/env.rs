//! What a command may touch.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Streams, environment variables, working directory and clock of a command.
pub struct Env {
    /// Where `-data -` and the like read.
    pub stdin: Box<dyn Read>,
    /// Results.
    pub stdout: Box<dyn Write>,
    /// Errors, warnings, help.
    pub stderr: Box<dyn Write>,
    /// Environment variables.
    pub variables: BTreeMap<String, String>,
    /// What relative paths start from.
    pub directory: PathBuf,
    /// What time it is.
    pub clock: fn() -> SystemTime,
}

impl Env {
    /// Those of this process.
    pub fn process() -> Self {
        Self {
            stdin: Box::new(io::stdin()),
            stdout: Box::new(BufWriter::new(io::stdout())),
            stderr: Box::new(io::stderr()),
            variables: std::env::vars_os()
                .map(|(name, value)| {
                    (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned())
                })
                .collect(),
            directory: std::env::current_dir().unwrap_or_default(),
            clock: SystemTime::now,
        }
    }

    /// A variable; empty when it is not set, which the reference does not tell apart either.
    pub(crate) fn variable(&self, name: &str) -> &str {
        self.variables.get(name).map_or("", String::as_str)
    }

    /// Where a path that the user gave is.
    pub(crate) fn locate(&self, path: impl AsRef<Path>) -> PathBuf {
        self.directory.join(path)
    }

    /// Seconds since 1970.
    pub(crate) fn unix_now(&self) -> i64 {
        let since = (self.clock)().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
    }

    /// Writes to standard output. A failure to write has nobody to tell, so it is passed over, as in the reference.
    pub(crate) fn out(&mut self, text: impl fmt::Display) {
        let _ = write!(self.stdout, "{text}");
    }

    /// Writes to standard error, behind all that went to standard output before.
    pub(crate) fn err(&mut self, text: impl fmt::Display) {
        self.flush();
        let _ = write!(self.stderr, "{text}");
        let _ = self.stderr.flush();
    }

    /// Shows what was written so far: before a wait, and at the end.
    pub(crate) fn flush(&mut self) {
        let _ = self.stdout.flush();
    }
}

impl fmt::Debug for Env {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Variables may hold secrets.
        f.debug_struct("Env").field("directory", &self.directory).finish_non_exhaustive()
    }
}
