//! A long-running program whose output is kept and which ends with its value.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::error::{Error, Result};
use crate::wait;

/// How long a program that was asked to end may take, before it is killed.
const GRACE: Duration = Duration::from_secs(15);
/// Lines of a program's output that an error shows.
const SHOWN: usize = 60;
/// Lines kept of one program. A test program that says more is broken; what is beyond is dropped.
const KEPT: usize = 200_000;

/// A running program. Dropping it asks the program to end (SIGTERM), and kills it where it does not.
pub struct Daemon {
    name: String,
    child: Child,
    log: Arc<Log>,
    status: Option<ExitStatus>,
}

/// Both output streams, in the order in which their lines arrived.
#[derive(Default)]
struct Log {
    state: Mutex<LogState>,
    changed: Condvar,
}

#[derive(Default)]
struct LogState {
    lines: Vec<String>,
    /// Streams at their end.
    closed: usize,
}

impl Log {
    fn lock(&self) -> MutexGuard<'_, LogState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Daemon {
    /// Starts `program` with `args` in `folder`; `name` is for messages.
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn start(name: &str, program: &Path, args: &[&str], folder: &Path) -> Result<Self> {
        let mut command = Command::new(program);
        command.args(args).current_dir(folder);
        Self::spawn(name, command)
    }

    /// Starts what `command` says, with its output kept and nothing to read.
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn spawn(name: &str, mut command: Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| Error::doing(format!("starting {command:?}"), error))?;
        let log = Arc::new(Log::default());
        if let Some(stream) = child.stdout.take() {
            keep(stream, Arc::clone(&log));
        }
        if let Some(stream) = child.stderr.take() {
            keep(stream, Arc::clone(&log));
        }
        Ok(Self { name: name.to_owned(), child, log, status: None })
    }

    /// The process ID.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// All lines so far, of both streams.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.log.lock().lines.clone()
    }

    /// How many lines there are so far: a mark to wait from.
    #[must_use]
    pub fn mark(&self) -> usize {
        self.log.lock().lines.len()
    }

    /// The first line that has every one of `parts`, waited for at most `at_most`.
    ///
    /// # Errors
    /// There is no such line in that time, or the program ended without it.
    pub fn wait_for(&self, parts: &[&str], at_most: Duration) -> Result<String> {
        self.wait_after(0, parts, at_most)
    }

    /// As [`Daemon::wait_for`], for lines after a [`Daemon::mark`].
    ///
    /// # Errors
    /// There is no such line in that time, or the program ended without it.
    pub fn wait_after(&self, mark: usize, parts: &[&str], at_most: Duration) -> Result<String> {
        self.wait_line(mark, &format!("line with {parts:?}"), at_most, |line| {
            parts.iter().all(|part| line.contains(part))
        })
    }

    /// The first line after `mark` that `is_it` accepts; `what` is for messages.
    ///
    /// # Errors
    /// There is no such line in that time, or the program ended without it.
    pub fn wait_line(
        &self,
        mark: usize,
        what: &str,
        at_most: Duration,
        is_it: impl Fn(&str) -> bool,
    ) -> Result<String> {
        let until = Instant::now() + at_most;
        let mut seen = mark;
        let mut state = self.log.lock();
        loop {
            if let Some(line) = state.lines.get(seen..).and_then(|new| new.iter().find(|line| is_it(line))) {
                return Ok(line.clone());
            }
            seen = seen.max(state.lines.len());
            let left = until.saturating_duration_since(Instant::now());
            let ended = state.closed == 2;
            if ended || left.is_zero() {
                let why = if ended { "it closed its output" } else { "time is up" };
                drop(state);
                return Err(self.error(&format!("{why} without a {what}")));
            }
            state = self.log.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// An error with the end of this program's output.
    #[must_use]
    pub fn error(&self, message: &str) -> Error {
        let state = self.log.lock();
        let start = state.lines.len().saturating_sub(SHOWN);
        Error::new(format!("{}: {message}; its output:\n  {}", self.name, state.lines[start..].join("\n  ")))
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.poll().is_none()
    }

    fn poll(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().ok().flatten();
        }
        self.status
    }

    /// Sends `signal`; nothing where the process has ended already.
    pub fn signal(&mut self, signal: Signal) {
        if self.poll().is_some() {
            return;
        }
        // The child is not waited for yet, so its ID cannot belong to another process.
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, signal);
        }
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// It still runs after `at_most`.
    pub fn wait_exit(&mut self, at_most: Duration) -> Result<ExitStatus> {
        let found = wait::until("end of the process", at_most, || self.poll());
        found.map_err(|error| self.error(&error.to_string()))
    }

    /// Asks it to end (SIGTERM) and waits; what it answers with is its exit code.
    ///
    /// # Errors
    /// It does not end in the time of grace.
    pub fn stop(&mut self) -> Result<i32> {
        self.signal(Signal::TERM);
        let status = self.wait_exit(GRACE)?;
        status.code().ok_or_else(|| self.error(&format!("ended by signal {:?}", status.signal())))
    }

    /// Kills it at once, as a crash would, and takes its status.
    ///
    /// # Errors
    /// It cannot be waited for.
    pub fn kill(&mut self) -> Result<()> {
        self.signal(Signal::KILL);
        self.wait_exit(GRACE).map(|_| ())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.poll().is_none() {
            self.signal(Signal::TERM);
            if self.wait_exit(GRACE).is_err() {
                let _ = self.child.kill();
                let _ = self.child.wait();
            }
        }
        if std::thread::panicking() {
            // libtest-mimic shows nothing of a failed test but its message; the log goes to the terminal.
            report(&self.error("the test failed").to_string());
        }
    }
}

#[expect(clippy::print_stderr, reason = "for whoever runs the tests")]
fn report(text: &str) {
    eprintln!("{text}");
}

fn keep(stream: impl Read + Send + 'static, log: Arc<Log>) {
    std::thread::spawn(move || {
        let mut reader = BufReader::new(stream);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
            let text = String::from_utf8_lossy(&line).trim_end_matches('\n').to_owned();
            line.clear();
            let mut state = log.lock();
            if state.lines.len() < KEPT {
                state.lines.push(text);
            }
            log.changed.notify_all();
        }
        log.lock().closed += 1;
        log.changed.notify_all();
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUND: Duration = Duration::from_secs(20);

    fn shell(script: &str) -> Daemon {
        Daemon::start("shell", Path::new("/bin/sh"), &["-c", script], Path::new("/")).unwrap()
    }

    #[test]
    fn lines_are_waited_for_from_a_mark() {
        let daemon = shell("echo one; echo two >&2; exec cat /dev/zero >/dev/null");
        daemon.wait_for(&["on", "ne"], BOUND).unwrap();
        daemon.wait_for(&["two"], BOUND).unwrap();
        assert_eq!(daemon.mark(), 2);
        assert!(daemon.wait_after(2, &["one"], Duration::from_millis(50)).is_err());
    }

    #[test]
    fn the_end_of_output_ends_the_wait() {
        let error = shell("echo last words").wait_for(&["never"], BOUND).unwrap_err().to_string();
        assert!(error.contains("closed its output") && error.contains("last words"), "{error}");
    }

    #[test]
    fn a_program_is_ended_with_its_code_or_killed() {
        let mut polite = shell("trap 'exit 7' TERM; echo up; while :; do :; done");
        polite.wait_for(&["up"], BOUND).unwrap();
        assert_eq!(polite.stop().unwrap(), 7);
        let mut other = shell("echo up; exec cat /dev/zero >/dev/null");
        other.wait_for(&["up"], BOUND).unwrap();
        assert!(other.is_running());
        other.kill().unwrap();
        assert!(!other.is_running());
        assert!(other.stop().unwrap_err().to_string().contains("ended by signal"));
    }
}
