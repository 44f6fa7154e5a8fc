//! The time of day.

use std::time::{Duration, SystemTime};

use spire_core::time::Timestamp;
use tokio::time::Instant;

/// How soon it is noticed that the time was set, or that the machine slept: the intervals of SPIRE's rotator and
/// synchronizer (pkg/agent/svid: DefaultRotatorInterval, pkg/agent: defaultSyncInterval).
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// Where the agent reads the time.
#[derive(Clone, Copy, Debug)]
pub enum Clock {
    /// From the system.
    System,
    /// From a start and tokio's clock, which tests pause and advance.
    Since {
        /// The time at the start.
        base: Timestamp,
        /// The start.
        start: Instant,
    },
}

impl Clock {
    /// Now.
    pub fn now(&self) -> Timestamp {
        match self {
            Self::System => {
                let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
                Timestamp::from_unix(i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
            }
            Self::Since { base, start } => *base + start.elapsed(),
        }
    }

    /// Sleeps until then, but at most [`LOOK_INTERVAL`]: whoever waits looks again.
    pub async fn sleep_until(&self, at: Timestamp) {
        let wait = at.since(self.now()).min(LOOK_INTERVAL);
        tokio::time::sleep(wait).await;
    }
}
