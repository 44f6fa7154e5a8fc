//! Telling a program that its files are others now: by a command, by a signal, or both.

use std::path::Path;
use std::pin::pin;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use spire_ports::plugins::StoredSvid;
use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, Command};

use super::NAME;
use super::settings::Target;
use crate::machine::read;

/// What of a failed command's output is shown.
const OUTPUT_MAX: u64 = 4096;

/// How long what a command said last may come after its end.
const LAST_OUTPUT: Duration = Duration::from_secs(1);

/// Runs the command and sends the signal, where they are configured.
///
/// # Errors
/// What failed. The files are in place then, and the agent puts and tells again later.
pub(super) async fn tell(target: &Target, svid: &StoredSvid) -> Result<(), String> {
    if let [program, arguments @ ..] = target.command.as_slice() {
        run(target, svid, program, arguments).await?;
    }
    match &target.signal {
        Some((pid_file, signal)) => send(pid_file, *signal),
        None => Ok(()),
    }
}

async fn run(target: &Target, svid: &StoredSvid, program: &str, arguments: &[String]) -> Result<(), String> {
    let mut child = Command::new(program)
        .args(arguments)
        .env("SVID_DIRECTORY", &target.directory)
        .env("SPIFFE_ID", svid.spiffe_id.as_str())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("command {program}: {error}"))?;
    let ended = tokio::time::timeout(target.command_timeout, ended(&mut child)).await;
    match ended {
        Ok(Ok((status, _))) if status.success() => {
            tracing::debug!(plugin_name = NAME, command = program, "Command has run");
            Ok(())
        }
        Ok(Ok((status, output))) => Err(format!("command {program}: {status}: {}", output.trim())),
        Ok(Err(error)) => Err(format!("command {program}: {error}")),
        Err(_) => Err(format!("command {program}: took longer than {:?}", target.command_timeout)),
    }
}

/// Waits for the command, and reads what it says of errors; of a long text the end is thrown away, so that the
/// command never waits for a reader.
async fn ended(child: &mut Child) -> std::io::Result<(std::process::ExitStatus, String)> {
    let mut shown = Vec::new();
    let output = child.stderr.take();
    let reading = async {
        if let Some(mut output) = output {
            let _ = (&mut output).take(OUTPUT_MAX).read_to_end(&mut shown).await;
            let _ = tokio::io::copy(&mut output, &mut tokio::io::sink()).await;
        }
    };
    let status = {
        let mut reading = pin!(reading);
        let mut is_read = false;
        let status = loop {
            tokio::select! {
                biased;
                () = &mut reading, if !is_read => is_read = true,
                status = child.wait() => break status?,
            }
        };
        // Processes that the command left behind may keep the pipe open.
        if !is_read {
            let _ = tokio::time::timeout(LAST_OUTPUT, reading).await;
        }
        status
    };
    Ok((status, String::from_utf8_lossy(&shown).into_owned()))
}

fn send(pid_file: &Path, signal: Signal) -> Result<(), String> {
    let text = read(&pid_file.display().to_string())?;
    let pid = std::str::from_utf8(&text).ok().and_then(|text| text.trim().parse::<i32>().ok());
    // 0, 1 and negative numbers mean groups of processes and init.
    let pid = pid.filter(|pid| *pid > 1).and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| format!("{}: not a process ID", pid_file.display()))?;
    kill_process(pid, signal)
        .map_err(|error| format!("signal to process {}: {error}", pid.as_raw_nonzero()))?;
    tracing::debug!(plugin_name = NAME, pid = pid.as_raw_nonzero().get(), "Signal was sent");
    Ok(())
}
