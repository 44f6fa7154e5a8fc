//! One-shot commands: arguments in, output and exit code out.

use std::ffi::OsStr;
use std::fmt;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::wait;

/// How long a command may take when nothing else is said.
const AT_MOST: Duration = Duration::from_secs(60);

/// What a command left behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// Exit code; -1 where a signal ended it.
    pub code: i32,
}

impl Output {
    /// Itself where the code is 0.
    ///
    /// # Errors
    /// The code is another; the text has all the output.
    pub fn success(self) -> Result<Self> {
        self.exits_with(0)
    }

    /// Itself where the code is `code`.
    ///
    /// # Errors
    /// The code is another; the text has all the output.
    pub fn exits_with(self, code: i32) -> Result<Self> {
        if self.code == code { Ok(self) } else { Err(Error::new(format!("exit code not {code}: {self}"))) }
    }

    /// The text after `label` in the first line of standard output that starts with it, trimmed.
    ///
    /// # Errors
    /// No line starts with it.
    pub fn field(&self, label: &str) -> Result<String> {
        self.stdout
            .lines()
            .find_map(|line| line.strip_prefix(label))
            .map(|rest| rest.trim_start_matches([' ', ':', '\t']).trim().to_owned())
            .ok_or_else(|| Error::new(format!("no line {label:?}: {self}")))
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "code {}\n-- stdout\n{}-- stderr\n{}", self.code, self.stdout, self.stderr)
    }
}

/// A command to be run once.
pub struct Run {
    command: Command,
    input: Vec<u8>,
    at_most: Duration,
}

impl Run {
    /// `program` with no arguments, nothing to read, and a minute to end.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Self { command: Command::new(program), input: Vec::new(), at_most: AT_MOST }
    }

    /// A command that was put together elsewhere, with nothing to read, and a minute to end.
    #[must_use]
    pub fn of(command: Command) -> Self {
        Self { command, input: Vec::new(), at_most: AT_MOST }
    }

    /// `program` as another user: real and effective ids, and no further groups.
    #[must_use]
    pub fn as_user(uid: u32, program: &Path) -> Self {
        let ids = [format!("--reuid={uid}"), format!("--regid={uid}")];
        Self::new("setpriv").args(&ids).args(&["--clear-groups"]).arg(program)
    }

    /// One more argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    /// More arguments.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(mut self, args: &[S]) -> Self {
        self.command.args(args);
        self
    }

    /// The folder to run in.
    #[must_use]
    pub fn within(mut self, folder: &Path) -> Self {
        self.command.current_dir(folder);
        self
    }

    /// An environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// What it reads.
    #[must_use]
    pub fn input(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.input = bytes.into();
        self
    }

    /// How long it may take.
    #[must_use]
    pub fn at_most(mut self, bound: Duration) -> Self {
        self.at_most = bound;
        self
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// It cannot be started, or does not end in time (it is killed then).
    pub fn output(mut self) -> Result<Output> {
        let mut child = self
            .command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| Error::doing(format!("starting {:?}", self.command), error))?;
        if let Some(mut stdin) = child.stdin.take() {
            // A command that does not read closes the pipe; that is its right.
            let _ = stdin.write_all(&self.input);
        }
        let stdout = child.stdout.take().map(collect);
        let stderr = child.stderr.take().map(collect);
        let ended = wait::until("end of the command", self.at_most, || child.try_wait().ok().flatten());
        if ended.is_err() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let text = |thread: Option<std::thread::JoinHandle<Vec<u8>>>| {
            let bytes = thread.and_then(|thread| thread.join().ok()).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let output = Output { stdout: text(stdout), stderr: text(stderr), code: -1 };
        match ended {
            Ok(status) => Ok(Output { code: status.code().unwrap_or(-1), ..output }),
            Err(error) => Err(Error::doing(format!("{:?}: {error}", self.command), output)),
        }
    }

    /// Runs it to its end, which must be exit code 0.
    ///
    /// # Errors
    /// As [`Run::output`], and any other code.
    pub fn success(self) -> Result<Output> {
        let shown = format!("{:?}", self.command);
        self.output()?.success().map_err(|error| Error::doing(shown, error))
    }
}

fn collect(mut stream: impl Read + Send + 'static) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes);
        bytes
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_code_and_input_come_through() {
        let output = Run::new("/bin/sh")
            .args(&["-c", "cat; echo \"Label  : value\"; echo err >&2; exit 3"])
            .input("in\n")
            .output()
            .unwrap();
        assert_eq!(
            (output.stdout.as_str(), output.stderr.as_str(), output.code),
            ("in\nLabel  : value\n", "err\n", 3)
        );
        assert_eq!(output.field("Label").unwrap(), "value");
        assert!(output.field("Other").is_err());
        assert!(output.success().is_err());
    }

    #[test]
    fn a_command_that_does_not_end_is_killed() {
        let run = Run::new("/bin/sh").args(&["-c", "echo begun; exec cat /dev/zero >/dev/null"]);
        let error = run.at_most(Duration::from_millis(200)).output().unwrap_err().to_string();
        assert!(error.contains("begun"), "{error}");
    }
}
