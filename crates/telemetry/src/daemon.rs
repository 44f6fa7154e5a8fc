//! What both daemons do around their work: signals, health, readiness, reload requests.

use std::future::Future;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use spire_compat::config::{self, ConfigError};
use spire_ports::observe::HealthChecks;
use spire_ports::plugins::load::Reconfigured;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::health::{HealthConfig, HealthServer};
use crate::systemd;

/// How often a watched configuration file is looked at. A poll sees what a notification does not: a ConfigMap, whose
/// file is a link that is exchanged two folders up, and network file systems.
const WATCH_INTERVAL: Duration = Duration::from_secs(2);

/// How long a start may take to end by itself once it is told to.
const START_GRACE: Duration = Duration::from_secs(2);

impl From<&config::HealthChecks> for HealthConfig {
    fn from(health: &config::HealthChecks) -> Self {
        Self {
            listener_enabled: health.listener_enabled,
            bind_address: health.bind_address.clone(),
            bind_port: health.bind_port.clone(),
            live_path: health.live_path.clone(),
            ready_path: health.ready_path.clone(),
        }
    }
}

/// Cancels `stop` at the first SIGTERM or SIGINT.
pub async fn stop_on_signal(stop: CancellationToken) {
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    stop.cancel();
}

/// Ends when a daemon that was told to stop before it was `ready` has had time to end by itself: what its start waits for
/// may be a call that cannot be cancelled, such as reading a file on a file system that hangs.
pub async fn stopped_while_starting(ready: CancellationToken, stop: CancellationToken) {
    stop.cancelled().await;
    if ready.is_cancelled() {
        std::future::pending::<()>().await;
    }
    tokio::time::sleep(START_GRACE).await;
    tracing::warn!("The start did not end when it was told to; leaving it");
}

/// Tells systemd when the daemon is `ready` and when it stops. Without systemd there is nobody to tell, and a broken
/// notification is no reason to stop.
pub async fn announce(ready: impl Future<Output = ()>, stop: CancellationToken) {
    tokio::select! {
        () = ready => {
            let _ = systemd::notify(systemd::READY);
            stop.cancelled().await;
        }
        () = stop.cancelled() => {}
    }
    let _ = systemd::notify(systemd::STOPPING);
}

/// Runs the health checks, and their listener where it is enabled, from `started` on: before, there is nothing to
/// check.
pub async fn serve_health(
    config: HealthConfig,
    checks: HealthChecks,
    started: impl Future<Output = ()>,
    stop: CancellationToken,
) {
    tokio::select! {
        () = stop.cancelled() => return,
        () = started => {}
    }
    let server = HealthServer::new(config, checks);
    tokio::select! {
        () = stop.cancelled() => tracing::debug!(subsystem_name = "health", "Finishing health checker"),
        served = server.run() => if let Err(error) = served {
            tracing::error!(subsystem_name = "health", error = %error, "Error serving health checks");
        },
    }
}

/// Prints a line where there is no log: before the configuration is read.
#[expect(clippy::print_stderr, reason = "there is no log before the configuration is read")]
pub fn print(line: &str) {
    eprintln!("{line}");
}

/// Requests to read the configuration again. From the moment that this is made SIGHUP does not end the process.
#[derive(Debug)]
pub struct ReloadRequests {
    requests: mpsc::Receiver<()>,
}

impl ReloadRequests {
    /// Requests by SIGHUP, and by changes of `watched` where a file is given. Needs a tokio runtime.
    ///
    /// # Errors
    /// The signal cannot be had.
    pub fn new(watched: Option<PathBuf>) -> std::io::Result<Self> {
        let hangups = signal(SignalKind::hangup())?;
        // One waiting request stands for all: each reads the whole file.
        let (sender, requests) = mpsc::channel(1);
        tokio::spawn(request_on_signal(hangups, sender.clone()));
        if let Some(path) = watched {
            let known = stamp(&path);
            tokio::spawn(request_on_change(path, known, sender));
        }
        Ok(Self { requests })
    }

    /// Waits for a request and reads the configuration. One that is refused is logged, and the next request is waited for.
    /// systemd is told that the daemon reloads, and by [`Reloaded::finish`] that this is over.
    pub async fn next_config<C: Send + 'static>(&mut self, load: &Load<C>) -> C {
        loop {
            self.next().await;
            let _ = systemd::notify(&systemd::reloading());
            // Reading files and looking up a host name may take time.
            let load = Arc::clone(load);
            match tokio::task::spawn_blocking(move || load()).await {
                Ok(Ok(config)) => return config,
                Ok(Err(error)) => log_refused_reload(&error),
                Err(error) => tracing::error!(error = %error, "Reading the configuration ended unexpectedly"),
            }
            let _ = systemd::notify(systemd::READY);
        }
    }

    async fn next(&mut self) {
        if self.requests.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
    }
}

/// Reads a configuration, with the flags of the command line.
pub type Load<C> = Arc<dyn Fn() -> Result<C, ConfigError> + Send + Sync>;

async fn request_on_signal(mut hangups: Signal, requests: mpsc::Sender<()>) {
    while hangups.recv().await.is_some() {
        let _ = requests.try_send(());
        if requests.is_closed() {
            return;
        }
    }
}

/// Requests a reload when the file is another than before and did not change for one more look: an editor or a copy
/// may still be writing.
async fn request_on_change(path: PathBuf, mut known: Option<Stamp>, requests: mpsc::Sender<()>) {
    let mut ticks = interval(WATCH_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut seen = known;
    while !requests.is_closed() {
        ticks.tick().await;
        let now = stamp(&path);
        if now.is_some() && now == seen && now != known {
            known = now;
            let _ = requests.try_send(());
        }
        seen = now;
    }
}

/// What tells one content of a file from the next without reading it: device, inode, length, and time of the last
/// change.
type Stamp = (u64, u64, u64, i64, i64);

fn stamp(path: &Path) -> Option<Stamp> {
    let file = std::fs::metadata(path).ok()?;
    Some((file.dev(), file.ino(), file.len(), file.mtime(), file.mtime_nsec()))
}

/// What a reload did, for its one log line.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Reloaded {
    /// Settings that changed and are in force.
    pub changed: Vec<String>,
    /// Settings that changed in the file and are not in force before a restart.
    pub needs_restart: Vec<String>,
    /// What could not be taken over, with the reason; the old stays in force.
    pub failed: Vec<String>,
}

impl Reloaded {
    /// Adds what became of the plugins whose data files were read again.
    pub fn count_plugins(&mut self, outcomes: Vec<(&'static str, String, Reconfigured)>) {
        for (kind, name, outcome) in outcomes {
            match outcome {
                Reconfigured::Unchanged => {}
                Reconfigured::Changed => self.changed.push(format!("plugins.{kind} {name:?}")),
                Reconfigured::Failed(reason) => {
                    self.failed.push(format!("plugins.{kind} {name:?}: {reason}"))
                }
            }
        }
    }

    /// Logs it, and tells systemd that the daemon is ready again.
    pub fn finish(&self) {
        self.log();
        let _ = systemd::notify(systemd::READY);
    }

    fn log(&self) {
        let list = |list: &[String]| (!list.is_empty()).then(|| list.join(", "));
        let (changed, needs_restart, failed) =
            (list(&self.changed), list(&self.needs_restart), list(&self.failed));
        let message = match (&changed, &needs_restart, &failed) {
            (None, None, None) => "Configuration reloaded: nothing changed",
            _ => "Configuration reloaded",
        };
        if failed.is_some() {
            tracing::error!(subsystem_name = SUBSYSTEM, changed, needs_restart, failed, "{message}");
        } else if needs_restart.is_some() {
            tracing::warn!(subsystem_name = SUBSYSTEM, changed, needs_restart, "{message}");
        } else {
            tracing::info!(subsystem_name = SUBSYSTEM, changed, "{message}");
        }
    }
}

/// Logs why a new configuration was refused as a whole.
fn log_refused_reload(error: &ConfigError) {
    crate::log_refusal(error);
    tracing::error!(
        subsystem_name = SUBSYSTEM,
        error = %error,
        position = error.detail(),
        "Configuration not reloaded: the running one stays"
    );
}

const SUBSYSTEM: &str = "reload";

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::{Capture, Level};

    #[tokio::test]
    async fn a_hangup_is_a_request() {
        let mut requests = ReloadRequests::new(None).unwrap();
        let me = rustix::process::getpid();
        rustix::process::kill_process(me, rustix::process::Signal::HUP).unwrap();
        requests.next().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_changed_file_is_a_request_once_it_is_quiet() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.conf");
        std::fs::write(&path, "a").unwrap();
        // Not through `ReloadRequests`: the signal of the other test reaches the whole process.
        let (sender, mut requests) = mpsc::channel(1);
        tokio::spawn(request_on_change(path.clone(), stamp(&path), sender));
        for content in ["bb", "ccc"] {
            // As ConfigMaps do: another file under the same name.
            std::fs::write(folder.path().join("new"), content).unwrap();
            std::fs::rename(folder.path().join("new"), &path).unwrap();
            requests.recv().await.unwrap();
        }
        let quiet = tokio::time::timeout(WATCH_INTERVAL * 5, requests.recv()).await;
        assert!(quiet.is_err(), "nothing changed");
        std::fs::remove_file(&path).unwrap();
        let gone = tokio::time::timeout(WATCH_INTERVAL * 5, requests.recv()).await;
        assert!(gone.is_err(), "a file that is gone is no configuration");
    }

    #[tokio::test]
    async fn a_configuration_that_is_refused_is_not_the_last() {
        let capture = Capture::new(Level::Info);
        let _guard = capture.install();
        let (sender, requests) = mpsc::channel(3);
        let read = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&read);
        let load: Load<usize> = Arc::new(move || match count.fetch_add(1, Ordering::Relaxed) {
            0 => panic!("of the parser"),
            1 => Err(ConfigError::new("no good")),
            n => Ok(n),
        });
        for _ in 0..3 {
            sender.send(()).await.unwrap();
        }
        assert_eq!(ReloadRequests { requests }.next_config(&load).await, 2);
        let lines: Vec<String> = capture.entries().into_iter().map(|entry| entry.message).collect();
        let expected = [
            "Reading the configuration ended unexpectedly",
            "Configuration not reloaded: the running one stays",
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn one_line_says_it_all() {
        let capture = Capture::new(Level::Info);
        let _guard = capture.install();
        let list = |items: &[&str]| items.iter().map(|item| (*item).to_owned()).collect();
        Reloaded::default().log();
        Reloaded { changed: list(&["log_level"]), ..Reloaded::default() }.log();
        Reloaded { needs_restart: list(&["a", "b"]), ..Reloaded::default() }.log();
        Reloaded { failed: list(&["c: boom"]), ..Reloaded::default() }.log();
        let lines: Vec<String> = capture
            .entries()
            .into_iter()
            .map(|entry| format!("{} {} {:?}", entry.level, entry.message, entry.fields))
            .collect();
        assert!(lines[0].starts_with("info Configuration reloaded: nothing changed"), "{lines:?}");
        assert!(lines[1].starts_with("info") && lines[1].contains("log_level"), "{lines:?}");
        assert!(lines[2].starts_with("warning") && lines[2].contains("a, b"), "{lines:?}");
        assert!(lines[3].starts_with("error") && lines[3].contains("c: boom"), "{lines:?}");
    }
}
