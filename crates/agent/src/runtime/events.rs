//! What happens in an agent, for whoever watches: `spire dev` prints it, tests wait for it.

use std::path::PathBuf;

use spire_core::model::EntryId;
use spire_core::spiffe::{SpiffeId, TrustDomain};
use spire_core::time::Timestamp;
use tokio::sync::broadcast;

/// Events that wait for a slow watcher; beyond that it loses the oldest.
const QUEUE: usize = 256;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The plugins are loaded; the agent is about to attest. Its health check is there.
    Starting,
    /// The agent has an SVID: from attestation, or a stored one.
    Attested {
        /// The agent's ID.
        spiffe_id: SpiffeId,
        /// Whether the server let it attest just now.
        fresh: bool,
    },
    /// The agent's own SVID was replaced.
    AgentRotated {
        /// The agent's ID.
        spiffe_id: SpiffeId,
        /// When the new one expires.
        expires_at: Timestamp,
    },
    /// The entries and bundles that the server authorises were brought up to date.
    Synced {
        /// How many entries there are for workloads.
        entries: usize,
    },
    /// The server pushes its changes from now on.
    PushConnected,
    /// The Workload API listens.
    Listening {
        /// Its socket.
        socket_path: PathBuf,
    },
    /// The agent has started: it serves whatever it is to serve, and its health can be asked.
    Started,
    /// A workload's X.509-SVID was signed.
    X509Issued {
        /// For this entry.
        entry_id: EntryId,
        /// The identity.
        spiffe_id: SpiffeId,
        /// When it expires.
        expires_at: Timestamp,
        /// Whether it replaces another.
        renewed: bool,
    },
    /// A workload's JWT-SVID was signed.
    JwtIssued {
        /// The identity.
        spiffe_id: SpiffeId,
        /// When it expires.
        expires_at: Timestamp,
    },
    /// A process was attested and asked for something.
    WorkloadAttested {
        /// Its process ID.
        pid: u32,
        /// Identities that it may have.
        identities: Vec<SpiffeId>,
    },
    /// A bundle changed.
    BundleChanged(TrustDomain),
}

/// Where events go. Cheap to clone; sending never blocks and costs nothing when nobody watches.
#[derive(Clone, Debug)]
pub struct Events(broadcast::Sender<Event>);

impl Events {
    /// Without watchers.
    pub fn new() -> Self {
        Self(broadcast::Sender::new(QUEUE))
    }

    /// Receives events from now on.
    pub fn watch(&self) -> broadcast::Receiver<Event> {
        self.0.subscribe()
    }

    /// Tells the watchers, if there are any; the event is made only then.
    pub fn emit(&self, event: impl FnOnce() -> Event) {
        if self.0.receiver_count() > 0 {
            // Fails only when the last watcher has just left.
            let _ = self.0.send(event());
        }
    }
}

impl Default for Events {
    fn default() -> Self {
        Self::new()
    }
}
