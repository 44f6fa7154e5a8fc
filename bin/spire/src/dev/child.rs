//! The command that runs beside the agent, and the signals that end it all.

use std::path::Path;
use std::sync::Mutex;

use anyhow::{Context, Result};
use tokio::process::{Child, Command};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// What a shell reports for a program that SIGINT ended.
pub(super) const INTERRUPTED: i32 = 130;

/// SIGINT and SIGTERM.
pub(super) struct Signals(Mutex<(Signal, Signal)>);

impl Signals {
    /// Catches them from now on.
    pub(super) fn listen() -> Result<Self> {
        Ok(Self(Mutex::new((signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?))))
    }

    /// Waits for one.
    pub(super) async fn stop(&self) {
        std::future::poll_fn(|context| {
            // Nothing panics while it is held.
            let mut both = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if both.0.poll_recv(context).is_ready() || both.1.poll_recv(context).is_ready() {
                std::task::Poll::Ready(())
            } else {
                std::task::Poll::Pending
            }
        })
        .await;
    }
}

/// Starts the command with the Workload API in its environment.
pub(super) fn spawn(command: &[String], socket: &Path) -> Result<Child> {
    let (program, arguments) = command.split_first().context("no command")?;
    Command::new(program)
        .args(arguments)
        .env("SPIFFE_ENDPOINT_SOCKET", format!("unix://{}", socket.display()))
        .kill_on_drop(true)
        .spawn()
        .with_context(|| program.clone())
}

/// Waits for its end; gives its exit code, or 128 and the signal that ended it, as shells do. A signal to us goes to
/// the whole foreground group by itself when it comes from the terminal; one sent to us alone is passed on.
pub(super) async fn wait(child: &mut Child, signals: &Signals) -> Result<i32> {
    use std::os::unix::process::ExitStatusExt;
    let status = loop {
        tokio::select! {
            status = child.wait() => break status?,
            () = signals.stop() => {
                let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(rustix::process::Pid::from_raw);
                if let Some(pid) = pid {
                    // It may have ended in between.
                    let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
                }
            }
        }
    };
    Ok(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)))
}
