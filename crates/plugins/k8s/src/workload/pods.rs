//! The pods of this node, asked for as seldom as can be (pkg/agent/plugin/workloadattestor/k8s/podlistfetcher.go).
//!
//! However many workloads wait, one request is on its way at a time, and requests start at least one poll interval apart. An
//! answer serves everybody until the next request may start. Who has looked into an answer in vain waits for a newer one.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use super::kubelet::Client;
use super::settings::Kubelet;
use crate::api::objects::{Pod, PodList};

/// Gives the kubelet's list of pods, as JSON. The tests have kubelets of their own.
#[async_trait]
pub(super) trait Source: Send + Sync + 'static {
    /// The list of now.
    async fn pods(&self) -> Result<Bytes, String>;
}

/// A list of pods by UID.
#[derive(Debug)]
pub(super) struct Listing {
    pub(super) pods: HashMap<String, Pod>,
    /// Counts answers from one on.
    pub(super) version: u64,
    started: Instant,
}

/// What became of a request.
type Answer = Result<Arc<Listing>, String>;

/// The kubelet's pods, shared by all who ask.
pub(super) struct Pods {
    shared: Arc<Shared>,
}

struct Shared {
    source: Box<dyn Source>,
    interval: Duration,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The last good answer.
    listing: Option<Arc<Listing>>,
    last_start: Option<Instant>,
    /// A request that is on its way, or will be when its time has come.
    pending: Option<watch::Receiver<Option<Answer>>>,
}

impl Pods {
    pub(super) fn new(source: impl Source, interval: Duration) -> Self {
        let source = Box::new(source);
        Self { shared: Arc::new(Shared { source, interval, state: Mutex::default() }) }
    }

    /// An answer newer than version `after`, at once where there is a fresh one.
    ///
    /// # Errors
    /// The kubelet gave none. The next call asks again, after the interval.
    pub(super) async fn newer_than(&self, after: u64) -> Answer {
        let mut pending = {
            let mut state = self.shared.state.lock();
            if let Some(listing) = &state.listing
                && after < listing.version
                && listing.started.elapsed() < self.shared.interval
            {
                return Ok(Arc::clone(listing));
            }
            match &state.pending {
                Some(pending) => pending.clone(),
                None => {
                    let (sender, receiver) = watch::channel(None);
                    let start = state.last_start.map(|last| last + self.shared.interval);
                    state.pending = Some(receiver.clone());
                    tokio::spawn(Arc::clone(&self.shared).fetch(sender, start));
                    receiver
                }
            }
        };
        match pending.wait_for(Option::is_some).await {
            Ok(answer) => answer.clone().unwrap_or_else(|| Err(ENDED.to_owned())),
            Err(_) => Err(ENDED.to_owned()),
        }
    }
}

const ENDED: &str = "pod list fetcher is closed";

impl Shared {
    async fn fetch(self: Arc<Self>, sender: watch::Sender<Option<Answer>>, start: Option<Instant>) {
        if let Some(start) = start {
            tokio::time::sleep_until(start).await;
        }
        let started = Instant::now();
        {
            let mut state = self.state.lock();
            // Nobody waits any more but the state itself.
            if sender.receiver_count() <= 1 {
                state.pending = None;
                return;
            }
            state.last_start = Some(started);
        }
        let answer = match self.source.pods().await {
            Ok(text) => parse(text).await,
            Err(error) => Err(error),
        };
        let mut state = self.state.lock();
        let version = state.listing.as_ref().map_or(0, |listing| listing.version) + 1;
        let answer = answer.map(|pods| Arc::new(Listing { pods, version, started }));
        if let Ok(listing) = &answer {
            state.listing = Some(Arc::clone(listing));
        }
        state.pending = None;
        drop(state);
        // Nobody may be left who waits.
        let _ = sender.send(Some(answer));
    }
}

/// Outside the async workers: a full node's list has megabytes.
async fn parse(text: Bytes) -> Result<HashMap<String, Pod>, String> {
    let parsed = tokio::task::spawn_blocking(move || parse_now(&text)).await;
    parsed.unwrap_or_else(|error| Err(error.to_string()))
}

fn parse_now(text: &[u8]) -> Result<HashMap<String, Pod>, String> {
    let list: PodList = match serde_json::from_slice(text) {
        Ok(list) => list,
        Err(error) if error.is_data() => return Err(format!("invalid kubelet response: {error}")),
        Err(error) => return Err(format!("unable to parse kubelet response: {error}")),
    };
    let mut pods = HashMap::new();
    for pod in list.items.unwrap_or_default() {
        if pod.metadata.uid.is_empty() {
            tracing::warn!(
                external = false,
                plugin_name = "k8s",
                plugin_type = "WorkloadAttestor",
                pod = pod.metadata.name,
                "Pod has no UID"
            );
            continue;
        }
        pods.insert(pod.metadata.uid.clone(), pod);
    }
    Ok(pods)
}

/// The kubelet, with files that are read again each reload interval.
pub(super) struct Reloading {
    settings: Kubelet,
    loaded: Mutex<(Arc<Client>, Instant)>,
}

impl Reloading {
    /// Reads the files for the first time.
    ///
    /// # Errors
    /// The text of [`Client::load`].
    pub(super) async fn load(settings: Kubelet) -> Result<Self, String> {
        let client = load(settings.clone()).await?;
        Ok(Self { settings, loaded: Mutex::new((client, Instant::now())) })
    }

    async fn client(&self) -> Result<Arc<Client>, String> {
        {
            let loaded = self.loaded.lock();
            if loaded.1.elapsed() < self.settings.reload_interval {
                return Ok(Arc::clone(&loaded.0));
            }
        }
        let client = load(self.settings.clone()).await?;
        *self.loaded.lock() = (Arc::clone(&client), Instant::now());
        Ok(client)
    }
}

async fn load(settings: Kubelet) -> Result<Arc<Client>, String> {
    let loaded = tokio::task::spawn_blocking(move || Client::load(&settings)).await;
    loaded.unwrap_or_else(|error| Err(error.to_string())).map(Arc::new)
}

#[async_trait]
impl Source for Reloading {
    async fn pods(&self) -> Result<Bytes, String> {
        self.client().await?.pods().await
    }
}
