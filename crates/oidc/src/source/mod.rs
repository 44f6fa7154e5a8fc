//! Where the keys come from. A source is asked again and again; what it says is encoded when it changes, and handed over
//! as a value that never changes, so that answers wait for nothing. While a source is away the last keys are served.

mod file;
mod server_api;
mod workload_api;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use async_trait::async_trait;
use http::HeaderMap;
use parking_lot::Mutex;
use spire_compat::duration::GoDuration;
use spire_core::time::Timestamp;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::answer::whole_headers;
use crate::config::SourceConfig;
use crate::document::{JwtKey, KeySet};

pub use file::FileSource;
pub use server_api::ServerApiSource;
pub use workload_api::WorkloadApiSource;

/// One question to a source. The reference waits for an answer for ever, and asks no more while it does.
const POLL_TIMEOUT: Duration = Duration::from_secs(30);

/// Keys of a set that are served: far more than rotation leaves.
const KEYS_MAX: usize = 1024;

/// The keys that are served now, and when they were last known to be right.
#[derive(Debug, Default)]
pub struct Keys {
    served: ArcSwapOption<Served>,
    polled: Mutex<Option<Instant>>,
}

/// Keys with the headers of their answer.
#[derive(Debug)]
pub(crate) struct Served {
    pub(crate) set: KeySet,
    pub(crate) headers: HeaderMap,
}

impl Keys {
    /// The keys; `None` before there were any.
    pub(crate) fn load(&self) -> Option<Arc<Served>> {
        self.served.load_full()
    }

    /// When the source last answered.
    pub fn last_successful_poll(&self) -> Option<Instant> {
        *self.polled.lock()
    }

    /// Serves these from now on.
    pub fn publish(&self, set: KeySet) {
        let headers = whole_headers(&set);
        self.served.store(Some(Arc::new(Served { set, headers })));
    }

    /// The source has answered.
    pub fn polled(&self) {
        *self.polled.lock() = Some(Instant::now());
    }
}

/// Gives keys when asked.
#[async_trait]
pub trait Source: Send + Sync {
    /// The keys as they are now; `None` where that is known to have failed. The source has logged why.
    async fn keys(&self) -> Option<Vec<JwtKey>>;
}

/// Makes the source that is configured. Nothing is connected yet.
pub fn source(config: &SourceConfig) -> Box<dyn Source> {
    match config {
        SourceConfig::ServerApi { address, .. } => Box::new(ServerApiSource::new(address)),
        SourceConfig::WorkloadApi { socket_path, trust_domain, .. } => {
            Box::new(WorkloadApiSource::new(socket_path, trust_domain.clone()))
        }
        SourceConfig::File { path, .. } => Box::new(FileSource::new(path.clone())),
    }
}

/// Asks a source each `interval` until `stop`, and publishes what changed. Idempotent.
pub async fn poll(
    source: &dyn Source,
    interval: Duration,
    set_key_use: bool,
    keys: &Keys,
    stop: CancellationToken,
) {
    tracing::debug!(interval = %GoDuration::from(interval), "Polling started");
    let mut known: Option<Vec<JwtKey>> = None;
    let polling = async {
        loop {
            poll_once(source, set_key_use, keys, &mut known).await;
            tokio::time::sleep(interval).await;
        }
    };
    stop.run_until_cancelled(polling).await;
    tracing::debug!(error = "context canceled", "Polling done");
}

async fn poll_once(source: &dyn Source, set_key_use: bool, keys: &Keys, known: &mut Option<Vec<JwtKey>>) {
    let Ok(answer) = tokio::time::timeout(POLL_TIMEOUT, source.keys()).await else {
        tracing::warn!(timeout = %GoDuration::from(POLL_TIMEOUT), "The source of the keys did not answer in time");
        return;
    };
    let Some(mut answer) = answer else { return };
    if answer.len() > KEYS_MAX {
        tracing::warn!(
            keys = answer.len(),
            served = KEYS_MAX,
            "The source has too many keys; not all are served"
        );
        answer.truncate(KEYS_MAX);
    }
    if known.as_ref() != Some(&answer) {
        keys.publish(KeySet::encode(&answer, set_key_use, now()));
        *known = Some(answer);
    }
    keys.polled();
}

/// The time, for `Last-Modified`.
pub(crate) fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_unix(i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}
