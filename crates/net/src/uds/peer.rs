//! The process at the other end of a unix socket, pinned so that its id cannot come to mean another.
//!
//! A process id is a number that the kernel gives again. So at accept we take a pidfd (from the socket
//! itself where the kernel can, `SO_PEERPIDFD`, Linux 6.5), a descriptor of `/proc/<pid>` and the start
//! time read through it, and [`PeerInfo::check_alive`] compares them again once attestation has read
//! whatever it reads by id. SPIRE does the same with the directory and the start time
//! (`pkg/common/peertracker/tracker_linux.go`); so do we where no pidfd can be had, before Linux 5.3 or by the filter of a
//! container's system calls. The directory is the process's own as long as it can be read: another process with the
//! same id has another one.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::sync::{Arc, Weak};

use nix::sys::socket::{getsockopt, sockopt::PeerPidfd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, fstat, openat, readlinkat};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::PeerTracking;

/// `/proc/<pid>/stat` is one line of 52 numbers and a name of at most 64 octets; this is several times that.
const STAT_SIZE_MAX: u64 = 4096;

/// Zero-based place of the start time in `/proc/<pid>/stat` after the closing parenthesis of the name: it
/// is field 22, and field 3 is the first after the name (proc(5)).
const START_TIME_AFTER_NAME: usize = 22 - 3;

/// Dead pins are swept from the table when it has grown to this, and to twice what remains from then on.
const SWEEP_FROM: usize = 64;

/// Who is at the other end of a connection. Cheap to clone; handlers get it from the request's extensions.
#[derive(Debug, Clone)]
pub struct PeerInfo {
    uid: u32,
    gid: u32,
    pid: u32,
    pin: Option<Arc<Pin>>,
}

/// Why a peer could not be pinned, or is no longer the one that connected.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// The kernel does not give the socket's credentials.
    #[error("could not resolve caller information: {0}")]
    Credentials(#[source] io::Error),
    /// The peer is in a process namespace that we cannot see.
    #[error("could not resolve caller information")]
    NoProcess,
    /// The process is gone, or its directory is hidden from us.
    #[error("could not open caller's proc directory: {0}")]
    Directory(#[source] io::Error),
    /// No pidfd could be had.
    #[error("could not open caller's process descriptor: {0}")]
    Descriptor(#[source] io::Error),
    /// `/proc/<pid>/stat` could not be read.
    #[error("could not read caller stat: {0}")]
    Stat(#[source] io::Error),
    /// `/proc/<pid>/stat` has no start time.
    #[error("bad stat data or unsupported platform")]
    StatFormat,
    /// The process has exited.
    #[error("caller exited")]
    Exited,
    /// The process id means another process now.
    #[error("new process detected: process starttime {found} does not match original caller {pinned}")]
    StartTime {
        /// Start time at accept, in clock ticks since boot.
        pinned: u64,
        /// Start time now.
        found: u64,
    },
    /// The process runs as somebody else than when it connected.
    #[error("new process detected: process {kind} {found} does not match original caller {pinned}")]
    Owner {
        /// `uid` or `gid`.
        kind: &'static str,
        /// The id at connect.
        pinned: u32,
        /// The id now.
        found: u32,
    },
    /// The socket does not pin its peers.
    #[error("caller is not being watched")]
    NotPinned,
}

impl PeerInfo {
    /// Process id of the peer, in our namespace; 0 where it is in one that we cannot see.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Effective user id when it connected.
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// Effective group id when it connected.
    pub fn gid(&self) -> u32 {
        self.gid
    }

    /// Succeeds only if the process that connected still runs, under the same ids. To be called after
    /// everything that was learnt about the process by its id, and before anything is given out on the
    /// strength of it.
    pub fn check_alive(&self) -> Result<(), PeerError> {
        let pin = self.pin.as_deref().ok_or(PeerError::NotPinned)?;
        pin.check_alive()?;
        pin.check_owner(self.uid, self.gid)
    }

    #[cfg(test)]
    pub(super) fn shares_pin_with(&self, other: &Self) -> bool {
        matches!((&self.pin, &other.pin), (Some(a), Some(b)) if Arc::ptr_eq(a, b))
    }

    /// Path of the peer's executable, for the audit log: what `/proc/<pid>/exe` says.
    pub fn executable(&self) -> Result<PathBuf, PeerError> {
        let pin = self.pin.as_deref().ok_or(PeerError::NotPinned)?;
        let path = readlinkat(&pin.directory, "exe", Vec::new()).map_err(|e| PeerError::Stat(e.into()))?;
        Ok(PathBuf::from(OsString::from_vec(path.into_bytes())))
    }
}

/// A process that somebody named by its id, held so that it can be told later whether the id still means it.
#[derive(Debug)]
pub struct PinnedProcess(Pin);

impl PinnedProcess {
    /// Holds the process that has this id now.
    ///
    /// # Errors
    /// [`PeerError`] when there is none, or it cannot be seen.
    pub fn open(pid: i32) -> Result<Self, PeerError> {
        let raw = Pid::from_raw(pid).filter(|_| pid > 0).ok_or(PeerError::NoProcess)?;
        Ok(Self(Pin::new(pid.unsigned_abs(), pidfd_by_id(raw)?)?))
    }

    /// Succeeds only if that process still runs.
    ///
    /// # Errors
    /// [`PeerError`] when it does not.
    pub fn check_alive(&self) -> Result<(), PeerError> {
        self.0.check_alive()
    }
}

/// One process, held by descriptors that close with the last connection that shares them.
#[derive(Debug)]
struct Pin {
    /// None where the system gives none.
    pidfd: Option<OwnedFd>,
    directory: OwnedFd,
    start_time: u64,
}

impl Pin {
    /// Pins the process that `pidfd` refers to and that had `pid`.
    fn new(pid: u32, pidfd: Option<OwnedFd>) -> Result<Self, PeerError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(format!("/proc/{pid}"), flags, Mode::empty())
            .map_err(|e| PeerError::Directory(e.into()))?;
        let stat = stat(directory.as_fd())?;
        let pin = Self { pidfd, directory, start_time: stat.start_time };
        // Alive now means that the id meant this very process all the time, so the directory is its own.
        if pin.has_exited() || pin.is_dead(&stat) { Err(PeerError::Exited) } else { Ok(pin) }
    }

    /// What the pidfd says, if there is one.
    fn has_exited(&self) -> bool {
        self.pidfd.as_ref().is_some_and(|pidfd| has_exited(pidfd.as_fd()))
    }

    /// Without a pidfd, what the state says.
    fn is_dead(&self, stat: &Stat) -> bool {
        self.pidfd.is_none() && stat.is_dead
    }

    fn check_alive(&self) -> Result<(), PeerError> {
        if self.has_exited() {
            return Err(PeerError::Exited);
        }
        let stat = stat(self.directory.as_fd())?;
        if self.is_dead(&stat) {
            return Err(PeerError::Exited);
        }
        let found = stat.start_time;
        if found != self.start_time {
            return Err(PeerError::StartTime { pinned: self.start_time, found });
        }
        Ok(())
    }

    /// The owner of `/proc/<pid>` is the process's effective user and group (`fs/proc/base.c`:
    /// task_dump_owner makes no exception for this directory).
    fn check_owner(&self, uid: u32, gid: u32) -> Result<(), PeerError> {
        let stat = fstat(&self.directory).map_err(|e| PeerError::Stat(e.into()))?;
        for (kind, pinned, found) in [("uid", uid, stat.st_uid), ("gid", gid, stat.st_gid)] {
            if pinned != found {
                return Err(PeerError::Owner { kind, pinned, found });
            }
        }
        Ok(())
    }
}

/// A pidfd is readable from the moment that all threads of its process have exited (pidfd_open(2)).
fn has_exited(pidfd: BorrowedFd<'_>) -> bool {
    const AT_ONCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
    loop {
        match poll(&mut fds, Some(&AT_ONCE)) {
            Ok(ready) => return ready != 0,
            Err(Errno::INTR) => {}
            // Not knowing is as bad as gone.
            Err(_) => return true,
        }
    }
}

/// What `/proc/<pid>/stat` says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Stat {
    /// In clock ticks since boot.
    pub(super) start_time: u64,
    /// Its first thread has ended, which others of the same process may outlive.
    pub(super) is_dead: bool,
}

fn stat(directory: BorrowedFd<'_>) -> Result<Stat, PeerError> {
    let file = openat(directory, "stat", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| PeerError::Stat(e.into()))?;
    let mut line = Vec::with_capacity(512);
    std::fs::File::from(file).take(STAT_SIZE_MAX).read_to_end(&mut line).map_err(PeerError::Stat)?;
    parse_stat(&line).ok_or(PeerError::StatFormat)
}

/// The name is in parentheses and may have any character, parentheses and line ends too, so fields count
/// from the last closing one.
pub(super) fn parse_stat(line: &[u8]) -> Option<Stat> {
    let name_end = line.iter().rposition(|octet| *octet == b')')?;
    let after = std::str::from_utf8(line.get(name_end + 1..)?).ok()?;
    let mut fields = after.split_ascii_whitespace();
    let is_dead = matches!(fields.next()?, "Z" | "X" | "x");
    let start_time = fields.nth(START_TIME_AFTER_NAME - 1)?.parse().ok()?;
    Some(Stat { start_time, is_dead })
}

/// The pins of one listener: connections of one process share one.
#[derive(Debug)]
pub(super) struct PeerTable {
    tracking: PeerTracking,
    pins: HashMap<u32, Weak<Pin>>,
    sweep_at: usize,
}

impl PeerTable {
    pub(super) fn new(tracking: PeerTracking) -> Self {
        Self { tracking, pins: HashMap::new(), sweep_at: SWEEP_FROM }
    }

    /// Who connected `socket`. To be called right after accept.
    pub(super) fn identify(&mut self, socket: BorrowedFd<'_>) -> Result<PeerInfo, PeerError> {
        // A peer in a process namespace of its own has the id 0, which rustix cannot represent; nix gives
        // the number.
        let credentials = getsockopt(&socket, nix::sys::socket::sockopt::PeerCredentials)
            .map_err(|e| PeerError::Credentials(e.into()))?;
        let pid = u32::try_from(credentials.pid()).unwrap_or(0);
        let pin = match self.tracking {
            PeerTracking::Pinned => Some(self.pin(pid, socket)?),
            PeerTracking::CredentialsOnly => None,
        };
        let peer = PeerInfo { uid: credentials.uid(), gid: credentials.gid(), pid, pin };
        if let Some(pin) = &peer.pin {
            pin.check_owner(peer.uid, peer.gid)?;
        }
        Ok(peer)
    }

    fn pin(&mut self, pid: u32, socket: BorrowedFd<'_>) -> Result<Arc<Pin>, PeerError> {
        let pidfd = peer_pidfd(pid, socket)?;
        // Two living processes never share an id: if both this descriptor's process and the pinned one run,
        // they are one.
        if let Some(known) = self.pins.get(&pid).and_then(Weak::upgrade) {
            let lives = match &pidfd {
                Some(pidfd) => !has_exited(pidfd.as_fd()) && !known.has_exited(),
                None => known.check_alive().is_ok(),
            };
            if lives {
                return Ok(known);
            }
        }
        let pin = Arc::new(Pin::new(pid, pidfd)?);
        if self.pins.len() >= self.sweep_at {
            self.pins.retain(|_, weak| weak.strong_count() > 0);
            self.sweep_at = SWEEP_FROM.max(self.pins.len() * 2);
        }
        self.pins.insert(pid, Arc::downgrade(&pin));
        Ok(pin)
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.pins.len()
    }
}

/// A descriptor of the peer's process: from the socket, which cannot be wrong about it, or by its id where
/// the kernel is older than Linux 6.5.
fn peer_pidfd(pid: u32, socket: BorrowedFd<'_>) -> Result<Option<OwnedFd>, PeerError> {
    let raw = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(PeerError::NoProcess)?;
    match getsockopt(&socket, PeerPidfd) {
        Ok(pidfd) => Ok(Some(pidfd)),
        Err(nix::errno::Errno::ENOPROTOOPT) => pidfd_by_id(raw),
        // The process was reaped before we came to it; older kernels say EINVAL.
        Err(nix::errno::Errno::ESRCH | nix::errno::Errno::EINVAL) => Err(PeerError::Exited),
        Err(errno) => Err(PeerError::Descriptor(errno.into())),
    }
}

/// A descriptor of the process that has this id now; none where the system has no such descriptors, or denies them to us.
fn pidfd_by_id(pid: Pid) -> Result<Option<OwnedFd>, PeerError> {
    match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => Ok(Some(pidfd)),
        Err(Errno::NOSYS | Errno::PERM) => Ok(None),
        Err(errno) => Err(PeerError::Descriptor(errno.into())),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_process_is_held_without_a_pidfd() {
        let mut child = Command::new("sleep").arg("60").spawn().expect("a process");
        let pin = Pin::new(child.id(), None).expect("it runs");
        pin.check_alive().expect("it runs");
        child.kill().expect("it runs");
        // It is dead before anybody asks how it ended, and gone after.
        while pin.check_alive().is_ok() {
            std::thread::yield_now();
        }
        assert!(matches!(pin.check_alive(), Err(PeerError::Exited)));
        assert!(matches!(Pin::new(child.id(), None), Err(PeerError::Exited)));
        child.wait().expect("it ended");
        assert!(matches!(pin.check_alive(), Err(PeerError::Stat(_))));
    }
}
