//! Where lines go: the standard output or a file, one whole line a write.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use spire_compat::errno::errno_text;
use tokio::signal::unix::{SignalKind, signal};

use crate::InitError;
use crate::capture::Memory;
use crate::event::Entry;
use crate::format::Formatter;

/// Takes lines.
#[derive(Debug)]
pub(crate) enum Sink {
    Output(Arc<Output>),
    Memory(Arc<Memory>),
}

impl Sink {
    pub(crate) fn write(&self, formatter: &Formatter, entry: Entry) {
        let mut line = Vec::with_capacity(LINE_CAPACITY);
        formatter.line(&mut line, &entry);
        match self {
            Self::Output(output) => output.write(&line),
            Self::Memory(memory) => memory.push(entry, &line),
        }
    }
}

/// An open output. The lock keeps lines whole where one write does not take all of a line.
#[derive(Debug)]
pub(crate) enum Output {
    Stdout(Mutex<()>),
    File { path: PathBuf, file: Mutex<File> },
}

impl Output {
    pub(crate) fn stdout() -> Self {
        Self::Stdout(Mutex::new(()))
    }

    pub(crate) fn file(path: PathBuf) -> Result<Self, InitError> {
        let file = open(&path).map_err(|error| InitError::Open {
            path: path.display().to_string(),
            reason: errno_text(&error),
        })?;
        Ok(Self::File { path, file: Mutex::new(file) })
    }

    /// Writes a line, which waits for a slow reader as the reference does. A line that cannot be written is lost:
    /// there is nowhere to say so, and the work that it tells of must go on.
    fn write(&self, line: &[u8]) {
        match self {
            Self::Stdout(lock) => {
                let _guard = lock.lock();
                write_all(std::io::stdout().as_fd(), line);
            }
            Self::File { file, .. } => {
                let file = file.lock();
                write_all(file.as_fd(), line);
            }
        }
    }

    fn reopen(&self) -> Result<(), ReopenError> {
        let Self::File { path, file } = self else { return Ok(()) };
        let new = open(path)
            .map_err(|error| ReopenError { path: path.display().to_string(), reason: errno_text(&error) })?;
        let old = std::mem::replace(&mut *file.lock(), new);
        drop(old); // closed outside of the lock
        Ok(())
    }
}

/// Opens the log file again, for log rotation by renaming (SIGUSR2). Cheap to clone.
#[derive(Clone, Debug)]
pub struct ReopenHandle {
    output: Arc<Output>,
}

/// The log file could not be opened again; the old one stays in use.
#[derive(Debug, thiserror::Error)]
#[error("unable to reopen {path}: open {path}: {reason}")]
pub struct ReopenError {
    path: String,
    reason: String,
}

impl ReopenHandle {
    pub(crate) fn new(output: Arc<Output>) -> Self {
        Self { output }
    }

    /// Opens the file of the configured name, creating it where it is missing, and closes the old one.
    ///
    /// # Errors
    /// [`ReopenError`] when it cannot be opened; the old one stays in use.
    pub fn reopen(&self) -> Result<(), ReopenError> {
        self.output.reopen()
    }

    /// Opens the file again at each SIGUSR2 until the future is dropped. A file that cannot be opened is logged to the
    /// old one.
    ///
    /// # Errors
    /// That of the system, where the signal cannot be had.
    pub async fn reopen_on_signal(&self) -> std::io::Result<()> {
        let mut signals = signal(SignalKind::user_defined2())?;
        while signals.recv().await.is_some() {
            if let Err(error) = self.reopen() {
                tracing::error!(%error, "failed to rotate log after signal");
            }
        }
        Ok(())
    }
}

fn open(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o640).open(path)
}

fn write_all(fd: BorrowedFd<'_>, mut line: &[u8]) {
    while !line.is_empty() {
        match rustix::io::write(fd, line) {
            Ok(0) => return,
            Ok(written) => line = line.get(written..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            // Someone else may have made the terminal or pipe that we share non-blocking.
            Err(Errno::AGAIN) => {
                let mut waiting = [PollFd::new(&fd, PollFlags::OUT)];
                match poll(&mut waiting, Some(&SLOW_READER)) {
                    Ok(0) | Err(_) => return,
                    Ok(_) => {}
                }
            }
            Err(_) => return,
        }
    }
}

/// How long a line waits for a non-blocking output before it is lost: long enough for a reader that is alive.
const SLOW_READER: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };

/// Most lines fit without growing.
const LINE_CAPACITY: usize = 512;
