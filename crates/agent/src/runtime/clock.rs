//! The time of day.

use std::time::{Duration, SystemTime};

use spire_core::time::Timestamp;
use tokio::time::Instant;

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

    /// Sleeps until then, but at most a minute, since the system's time may be set: whoever waits looks again.
    pub async fn sleep_until(&self, at: Timestamp) {
        let wait = at.since(self.now()).min(Duration::from_secs(60));
        tokio::time::sleep(wait).await;
    }
}
