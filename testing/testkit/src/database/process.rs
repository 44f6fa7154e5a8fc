//! A database server as a process: started as a user who is not root, paused and killed with its children.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::daemon::Daemon;
use crate::error::{Error, Result};
use crate::{place, wait};

/// How long a server may take to start or to stop: after a crash it reads its log again, on a busy machine.
pub(super) const SOON: Duration = Duration::from_secs(120);

/// A user by name, as `/etc/passwd` has it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Owner {
    uid: u32,
    gid: u32,
}

impl Owner {
    /// The user whom servers run as when root starts them; `None` where this process is not root's, and they run as
    /// whoever it is.
    pub(super) fn of(name: &str) -> Result<Option<Self>> {
        if !rustix::process::getuid().is_root() {
            return Ok(None);
        }
        let users = place::read(Path::new("/etc/passwd"))?;
        let ids = users.lines().map(|line| line.split(':').collect::<Vec<_>>()).find_map(|fields| {
            (fields.first() == Some(&name))
                .then(|| Some((fields.get(2)?.parse().ok()?, fields.get(3)?.parse().ok()?)))
        });
        match ids.flatten() {
            Some((uid, gid)) => Ok(Some(Self { uid, gid })),
            None => Err(Error::new(format!("there is no user {name}"))),
        }
    }
}

/// What runs `program` as the owner.
pub(super) fn command_as(owner: Option<Owner>, program: &Path) -> Command {
    let Some(owner) = owner else { return Command::new(program) };
    let mut command = Command::new("setpriv");
    command.args([format!("--reuid={}", owner.uid), format!("--regid={}", owner.gid)]);
    command.arg("--clear-groups").arg(program);
    command
}

/// Gives a file or folder to the owner.
pub(super) fn give(path: &Path, owner: Option<Owner>) -> Result<()> {
    let Some(owner) = owner else { return Ok(()) };
    chown(path, Some(owner.uid), Some(owner.gid)).map_err(|error| Error::doing(path.display(), error))
}

/// Makes a file that only its owner may read.
pub(super) fn restrict(path: &Path) -> Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))
        .map_err(|error| Error::doing(path.display(), error))
}

/// Writes a file that belongs to the owner and is his secret.
pub(super) fn write_secret(path: &Path, text: &str, owner: Option<Owner>) -> Result<()> {
    place::write(path, text)?;
    restrict(path)?;
    give(path, owner)
}

/// A file system of a bounded size over a folder, seen by one server only and by whoever looks through
/// [`Disk::inside`]. It stays when the server ends, and goes with the value.
pub(super) struct Disk {
    /// Holds the mount namespace that has it.
    holder: Daemon,
    at: PathBuf,
}

impl Disk {
    /// Makes one of so many octets over the folder `at`, with what lies there copied onto it.
    pub(super) fn over(at: &Path, size: u64) -> Result<Self> {
        let beside = at.with_extension("disk");
        fs::create_dir(&beside).map_err(|error| Error::doing(beside.display(), error))?;
        let script = "mount -t tmpfs -o \"size=$1,mode=700\" tmpfs \"$2.disk\" && \
                      cp -a --sparse=never \"$2/.\" \"$2.disk\" && chown --reference=\"$2\" \"$2.disk\" && \
                      mount --bind \"$2.disk\" \"$2\" && echo mounted && exec tail -f /dev/null";
        let mut command = Command::new("unshare");
        command.args(["-m", "--propagation", "private", "sh", "-c", script, "sh"]);
        command.arg(size.to_string()).arg(at);
        let holder = Daemon::spawn("disk", command)?;
        holder.wait_for(&["mounted"], SOON)?;
        Ok(Self { holder, at: at.to_owned() })
    }

    /// `command` where it sees the disk.
    pub(super) fn below(&self, command: &Command) -> Command {
        let mut inside = Command::new("nsenter");
        inside.arg(format!("--mount=/proc/{}/ns/mnt", self.holder.pid()));
        if let Some(folder) = command.get_current_dir() {
            // The old folder would be left as soon as the namespace is another.
            inside.arg(format!("--wdns={}", folder.display()));
        }
        inside.arg(command.get_program()).args(command.get_args());
        inside
    }

    /// The folder, on the disk.
    pub(super) fn inside(&self) -> PathBuf {
        let below = self.at.strip_prefix("/").unwrap_or(&self.at);
        Path::new("/proc").join(self.holder.pid().to_string()).join("root").join(below)
    }
}

/// A running server.
pub(super) struct Process {
    pub(super) daemon: Daemon,
    /// What asks it to end at once but cleanly.
    quit: Signal,
}

impl Process {
    /// Starts what `command` says and waits until `answers` says that it is up.
    pub(super) fn start(
        name: &str,
        command: Command,
        quit: Signal,
        mut answers: impl FnMut() -> bool,
    ) -> Result<Self> {
        let mut daemon = Daemon::spawn(name, command)?;
        let found = wait::until("database server that answers", SOON, || {
            if !daemon.is_running() {
                return Some(false);
            }
            answers().then_some(true)
        });
        match found {
            Ok(true) => Ok(Self { daemon, quit }),
            Ok(false) => Err(daemon.error("it ended")),
            Err(error) => Err(daemon.error(&error.to_string())),
        }
    }

    /// Ends it cleanly, whoever is connected.
    pub(super) fn stop(&mut self) -> Result<()> {
        self.daemon.signal(self.quit);
        self.daemon.wait_exit(SOON).map(drop)
    }

    /// Kills it and its children, as a power cut would, but for what the system has in memory.
    pub(super) fn kill(&mut self) -> Result<()> {
        // Nothing of it may run on while the others are killed.
        self.signal_all(Signal::STOP);
        let children = self.children();
        for child in &children {
            send(*child, Signal::KILL);
        }
        self.daemon.kill()?;
        wait::until("end of its children", SOON, || {
            children.iter().all(|child| !exists(*child)).then_some(())
        })
    }

    /// Sends a signal to it and all its children.
    pub(super) fn signal_all(&mut self, signal: Signal) {
        // The parent first when it is stopped, so that it makes no new ones.
        if signal == Signal::STOP {
            self.daemon.signal(signal);
        }
        for child in self.children() {
            send(child, signal);
        }
        if signal != Signal::STOP {
            self.daemon.signal(signal);
        }
    }

    fn children(&self) -> Vec<i32> {
        let parent = self.daemon.pid().to_string();
        let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
        let ids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        ids.filter(|id| parent_of(*id).is_some_and(|found| found == parent)).collect()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.daemon.is_running() {
            // It may be paused.
            self.signal_all(Signal::CONT);
            let _ = self.stop();
        }
    }
}

/// The parent of a process that is no zombie.
fn parent_of(id: i32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // The name before may have spaces and parentheses.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    (state != "Z").then(|| fields.next().map(str::to_owned))?
}

fn exists(id: i32) -> bool {
    parent_of(id).is_some()
}

fn send(id: i32, signal: Signal) {
    if let Some(id) = Pid::from_raw(id) {
        let _ = kill_process(id, signal);
    }
}
