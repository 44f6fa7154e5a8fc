//! The child process of a plugin: from its checksum to its end.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use aws_lc_rs::digest;
use spire_net::errno_text;
use spire_ports::plugins::external::Launch;
use tempfile::TempDir;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::handshake::{self, Address, HandshakeError};
use crate::hclog::{self, Level, Lines, PluginLog};
use crate::launcher;
use crate::limits::Limits;

/// Ports that a plugin without unix sockets may take (go-plugin's defaults).
const PORTS: (&str, &str) = ("10000", "25000");

/// A child that said where it listens. It is killed when this is dropped.
pub(crate) struct Process {
    pub(crate) address: Address,
    /// A folder that only we can enter, for its sockets and ours.
    pub(crate) folder: TempDir,
    /// How it ended, once it did.
    exited: watch::Receiver<Option<String>>,
    kill: DropGuard,
}

/// Why no child runs. Texts are the reference's (pkg/common/catalog/external.go, go-plugin: client.go).
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error("failed to resolve plugin path: {0}")]
    Path(String),
    #[error("checksum is not a valid hex string")]
    ChecksumNotHex,
    #[error("expected checksum of length 64; got {0}")]
    ChecksumLength(usize),
    #[error("failed to launch plugin: error verifying checksum: open {path}: {reason}")]
    Unreadable { path: String, reason: String },
    #[error("failed to launch plugin: checksums did not match")]
    Checksum,
    #[error("failed to launch plugin: fork/exec {path}: {reason}")]
    Spawn { path: String, reason: String },
    #[error("failed to launch plugin: {0}")]
    Folder(String),
    #[error("failed to launch plugin: timeout while waiting for plugin to start")]
    Timeout,
    #[error("failed to launch plugin: {0}")]
    Handshake(#[from] HandshakeError),
}

/// The program's absolute path: it is never looked for in `PATH`.
pub(crate) fn absolute(path: &str) -> Result<PathBuf, StartError> {
    std::path::absolute(path).map_err(|error| StartError::Path(errno_text(&error)))
}

/// The name by which the log calls the program.
pub(crate) fn program_name(path: &str) -> String {
    Path::new(path).file_name().map_or_else(|| path.to_owned(), |name| name.to_string_lossy().into_owned())
}

/// Checks that a configured checksum is one.
pub(crate) fn parse_checksum(checksum: &str) -> Result<Option<[u8; 32]>, StartError> {
    if checksum.is_empty() {
        return Ok(None);
    }
    let bytes = hex::decode(checksum).map_err(|_| StartError::ChecksumNotHex)?;
    <[u8; 32]>::try_from(bytes).map(Some).map_err(|bytes| StartError::ChecksumLength(2 * bytes.len()))
}

/// Starts the program and waits for its first line.
pub(crate) async fn start(launch: &Launch, limits: &Limits, log: &PluginLog) -> Result<Process, StartError> {
    let path = absolute(&launch.path)?;
    let checksum = parse_checksum(&launch.checksum)?;
    let shown = path.display().to_string();
    if let Some(expected) = checksum {
        check(path.clone(), expected).await?;
    }
    let folder = tempfile::Builder::new()
        .prefix("spire-plugin-")
        .tempdir()
        .map_err(|error| StartError::Folder(errno_text(&error)))?;
    let arguments = format!("[{}]", [std::slice::from_ref(&shown), &launch.args].concat().join(" "));
    log.say(Level::Debug, "starting plugin", &[("path", &shown), ("args", &arguments)]);
    if let Err(error) = std::fs::metadata(&path) {
        // A launcher would find out, but could not say it as clearly.
        return Err(StartError::Spawn { path: shown, reason: errno_text(&error) });
    }
    let mut command = launcher::command(&path, &launch.args);
    environment(&mut command, launch, folder.path());
    let mut child = launcher::spawn(command)
        .await
        .map_err(|error| StartError::Spawn { path: shown.clone(), reason: errno_text(&error) })?;
    let pid = child.id().unwrap_or_default();
    log.say(Level::Debug, "plugin started", &[("path", &shown), ("pid", &pid)]);

    if let Some(stderr) = child.stderr.take() {
        tokio::spawn(follow_log(stderr, log.clone()));
    }
    let stdout = child.stdout.take();
    let kill = CancellationToken::new();
    let (ended, exited) = watch::channel(None);
    tokio::spawn(watch_over(child, shown.clone(), log.clone(), kill.clone(), ended));
    let kill = kill.drop_guard();

    log.say(Level::Debug, "waiting for RPC address", &[("plugin", &shown)]);
    let address = async {
        let line = first_line(stdout, log).await.ok_or(HandshakeError::Nothing)?;
        handshake::parse(&line).await
    };
    let address = tokio::time::timeout(limits.start, address).await.map_err(|_| StartError::Timeout)??;
    log.say(Level::Debug, "using plugin", &[("version", &1)]);
    Ok(Process { address, folder, exited, kill })
}

impl Process {
    /// Ends when the child ended; says how.
    pub(crate) async fn exited(&self) -> String {
        let mut exited = self.exited.clone();
        let how = exited.wait_for(Option::is_some).await.ok().and_then(|how| how.clone());
        how.unwrap_or_else(|| "it is not watched any more".to_owned())
    }

    /// Kills it and waits until it is gone.
    pub(crate) async fn kill(self) {
        let Self { mut exited, kill, .. } = self;
        drop(kill);
        let _ = exited.wait_for(Option::is_some).await;
    }
}

/// go-plugin's environment on top of ours: the cookie by which a plugin knows that it is not run by a person,
/// and where it is to listen.
fn environment(command: &mut Command, launch: &Launch, folder: &Path) {
    let kind = launch.kind.as_str();
    command
        .env(kind, kind)
        .env("PLUGIN_MIN_PORT", PORTS.0)
        .env("PLUGIN_MAX_PORT", PORTS.1)
        .env("PLUGIN_PROTOCOL_VERSIONS", "1")
        .env("PLUGIN_UNIX_SOCKET_DIR", folder)
        // What a host of ours may itself have been started with.
        .env_remove("PLUGIN_CLIENT_CERT")
        .env_remove("PLUGIN_MULTIPLEX_GRPC")
        // A signal to our process group, as a terminal or a supervisor sends it, is for us: we end our plugins in order.
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
}

async fn check(path: PathBuf, expected: [u8; 32]) -> Result<(), StartError> {
    let shown = path.display().to_string();
    match tokio::task::spawn_blocking(move || sha256(&path)).await {
        Ok(Ok(found)) if found.as_ref() == expected => Ok(()),
        Ok(Ok(_)) => Err(StartError::Checksum),
        Ok(Err(error)) => Err(StartError::Unreadable { path: shown, reason: errno_text(&error) }),
        Err(error) => Err(StartError::Unreadable { path: shown, reason: error.to_string() }),
    }
}

/// The SHA-256 of a file, block by block: programs can be large.
fn sha256(path: &Path) -> io::Result<digest::Digest> {
    let mut file = File::open(path)?;
    let mut hash = digest::Context::new(&digest::SHA256);
    let mut block = vec![0; 128 << 10];
    loop {
        match file.read(&mut block) {
            Ok(0) => return Ok(hash.finish()),
            Ok(read) => hash.update(&block[..read]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Waits for the end of the child, or makes it.
async fn watch_over(
    mut child: Child,
    path: String,
    log: PluginLog,
    kill: CancellationToken,
    ended: watch::Sender<Option<String>>,
) {
    let id = child.id().unwrap_or_default();
    let status = tokio::select! {
        status = child.wait() => status,
        () = kill.cancelled() => {
            // Fails only where it has ended.
            let _ = child.start_kill();
            child.wait().await
        }
    };
    let how = match status {
        Ok(status) if status.success() => {
            log.say(Level::Info, "plugin process exited", &[("plugin", &path), ("id", &id)]);
            "exit status 0".to_owned()
        }
        Ok(status) => go_status(status),
        Err(error) => errno_text(&error),
    };
    if how != "exit status 0" {
        let fields: [(&'static str, &dyn std::fmt::Display); 3] =
            [("plugin", &path), ("id", &id), ("error", &how)];
        log.say(
            if kill.is_cancelled() { Level::Info } else { Level::Error },
            "plugin process exited",
            &fields,
        );
    }
    ended.send_replace(Some(how));
}

/// As Go says how a process ended.
fn go_status(status: std::process::ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(9)) => "signal: killed".to_owned(),
        (None, Some(signal)) => format!("signal: {signal}"),
        (None, None) => status.to_string(),
    }
}

/// The first line, and from then on nothing: a plugin that writes must not be stopped by a full pipe.
async fn first_line(stdout: Option<ChildStdout>, log: &PluginLog) -> Option<String> {
    let mut reader = BufReader::new(stdout?);
    let line = bounded_line(&mut reader, handshake::LINE_MAX).await.filter(|line| !line.is_empty());
    let log = log.clone();
    tokio::spawn(async move {
        let mut dropped = [0; 4096];
        while matches!(reader.read(&mut dropped).await, Ok(read) if read > 0) {}
        log.say(Level::Trace, "stdout ended", &[]);
    });
    line
}

async fn follow_log(stderr: impl AsyncRead + Unpin, log: PluginLog) {
    let mut reader = BufReader::new(stderr);
    let mut lines = Lines::default();
    while let Some(line) = bounded_line(&mut reader, hclog::LINE_MAX).await {
        if !line.is_empty() {
            log.line(&lines.read(&line));
        }
    }
}

/// The next line without its end, or a piece of one that is too long. `None` at the end.
pub(crate) async fn bounded_line(reader: &mut (impl AsyncBufRead + Unpin), max: usize) -> Option<String> {
    let mut line = Vec::new();
    loop {
        let available = reader.fill_buf().await.ok()?;
        if available.is_empty() {
            return (!line.is_empty()).then(|| text(&line));
        }
        let room = max.saturating_sub(line.len());
        let end = available.iter().position(|byte| *byte == b'\n');
        let taken = end.unwrap_or(available.len()).min(room);
        line.extend_from_slice(&available[..taken]);
        let complete = end == Some(taken);
        reader.consume(taken + usize::from(complete));
        if complete || line.len() == max {
            return Some(text(&line));
        }
    }
}

fn text(line: &[u8]) -> String {
    String::from_utf8_lossy(line).trim_end_matches('\r').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_are_bounded() {
        let mut reader = BufReader::with_capacity(3, &b"ab\r\n\nabcdefgh\nlast"[..]);
        let mut lines = Vec::new();
        while let Some(line) = bounded_line(&mut reader, 5).await {
            lines.push(line);
        }
        assert_eq!(lines, ["ab", "", "abcde", "fgh", "last"]);
    }

    #[test]
    fn checksums_are_sha256_in_hex() {
        assert!(matches!(parse_checksum(""), Ok(None)));
        assert!(matches!(parse_checksum(&"0".repeat(64)), Ok(Some(_))));
        assert_eq!(
            parse_checksum("xy").map_err(|e| e.to_string()),
            Err("checksum is not a valid hex string".to_owned())
        );
        assert_eq!(
            parse_checksum("00").map_err(|e| e.to_string()),
            Err("expected checksum of length 64; got 2".to_owned())
        );
    }
}
