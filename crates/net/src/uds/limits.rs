//! Bounds on the open connections of a unix socket, in total and for each user.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Most connections of one socket. A large node has some hundreds of workloads with a few connections each;
/// with the memory of an open stream (20 KiB at most) this is about 320 MiB, which only many users together
/// can ask for.
pub const CONNECTIONS_MAX: usize = 16_384;

/// Most connections of one user other than root. Far beyond what one user's workloads hold, and small
/// enough that three hostile users leave room for others.
pub const CONNECTIONS_PER_USER_MAX: usize = 4096;

/// What a process with the usual soft limit of 1,024 files gets where the limit cannot be read.
const OPEN_FILES_ASSUMED: u64 = 1024;

/// Bounds on the open connections of one socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// In total.
    pub total: usize,
    /// For each user id other than 0. Root is bound by the total alone: it needs no socket to stop us, and
    /// containers without user namespaces all run as it.
    pub per_user: usize,
}

impl ConnectionLimits {
    /// The defaults, lowered so that at most half of `open_files` descriptors are connections: a pinned
    /// process takes two more, and the rest of the program needs some.
    pub fn within(open_files: u64) -> Self {
        let share = usize::try_from(open_files / 2).unwrap_or(usize::MAX).max(8);
        let total = CONNECTIONS_MAX.min(share);
        Self { total, per_user: CONNECTIONS_PER_USER_MAX.min(total / 4).max(1) }
    }

    /// The defaults within this process's limit of open files.
    pub fn from_open_file_limit() -> Self {
        Self::within(getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX))
    }
}

/// Raises the soft limit of open files to the hard limit, as Go's runtime does for every program, and gives
/// the limit in force. To be called once, early in a daemon.
pub fn raise_open_file_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => raised.current.unwrap_or(u64::MAX),
        Err(_) => limit.current.unwrap_or(OPEN_FILES_ASSUMED),
    }
}

/// Counts of the open connections of one socket.
#[derive(Debug)]
pub(super) struct Gate {
    limits: ConnectionLimits,
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    total: usize,
    users: HashMap<u32, usize>,
}

/// The place of one connection, given back when dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    gate: Arc<Gate>,
    user: u32,
}

/// Which bound refused a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Full {
    #[error("too many connections")]
    Total,
    #[error("too many connections of this user")]
    User,
}

impl Gate {
    pub(super) fn new(limits: ConnectionLimits) -> Arc<Self> {
        Arc::new(Self { limits, counts: Mutex::new(Counts::default()) })
    }

    pub(super) fn enter(self: &Arc<Self>, user: u32) -> Result<Permit, Full> {
        let mut counts = self.counts.lock();
        if counts.total >= self.limits.total {
            return Err(Full::Total);
        }
        let held = counts.users.get(&user).copied().unwrap_or(0);
        if user != 0 && held >= self.limits.per_user {
            return Err(Full::User);
        }
        counts.total += 1;
        counts.users.insert(user, held + 1);
        Ok(Permit { gate: Arc::clone(self), user })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut counts = self.gate.counts.lock();
        counts.total = counts.total.saturating_sub(1);
        let left = counts.users.get(&self.user).copied().unwrap_or(0).saturating_sub(1);
        if left == 0 {
            counts.users.remove(&self.user);
        } else {
            counts.users.insert(self.user, left);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{ConnectionLimits, Full, Gate};

    #[test]
    fn users_and_the_total_are_bounded_and_places_come_back() {
        let gate = Gate::new(ConnectionLimits { total: 4, per_user: 2 });
        let a = gate.enter(1000).expect("first");
        let _b = gate.enter(1000).expect("second");
        assert_eq!(gate.enter(1000).expect_err("third"), Full::User);
        let root = [gate.enter(0).expect("root"), gate.enter(0).expect("root")];
        assert_eq!(gate.enter(1001).expect_err("fifth"), Full::Total);
        drop(root);
        let _c = gate.enter(1001).expect("another user");
        drop(a);
        let _d = gate.enter(1000).expect("a place that came back");
        assert_eq!(gate.counts.lock().users.len(), 2);
    }

    #[test]
    fn limits_leave_files_for_the_rest() {
        assert_eq!(ConnectionLimits::within(1024), ConnectionLimits { total: 512, per_user: 128 });
        assert_eq!(ConnectionLimits::within(1 << 20), ConnectionLimits { total: 16_384, per_user: 4096 });
        assert_eq!(ConnectionLimits::within(0), ConnectionLimits { total: 8, per_user: 2 });
    }
}
