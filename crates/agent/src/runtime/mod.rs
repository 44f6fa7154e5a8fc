//! The agent at work: it finds trust, is attested, keeps its SVID and its entries up to date, and holds what
//! workloads get.
//!
//! [`run`] does it all. The state that its tasks share is [`Core`]; each task is a loop that can be dropped at
//! any await and started again: entry sync and the server's hints (`sync`), signing of workloads' SVIDs
//! (`fetch_svids`), the agent's own SVID (`rotate`).

mod attest;
mod backoff;
mod bootstrap;
mod client;
mod clock;
mod convert;
mod error;
mod events;
mod explain;
mod fetch_svids;
mod identities;
mod keys;
mod live;
mod options;
mod rotate;
mod run;
mod shared;
mod status;
mod storage;
mod stores;
mod sync;
mod sync_entries;
mod trust;
mod wit;
mod workload;

pub use attest::{AgentSvid, AttestError};
pub use bootstrap::BootstrapError;
pub use client::{CallError, ClientSetupError, JwtError};
pub use clock::Clock;
pub use convert::ConvertError;
pub use error::AgentError;
pub use events::{Event, Events};
pub use explain::SyncState;
pub use identities::{Bundles, Identities, Served, Subscription};
pub use keys::CsrError;
pub use live::Live;
pub use options::{
    BundleFormat, DEFAULT_SVID_CACHE_MAX_SIZE, DEFAULT_SYNC_INTERVAL, Options, RateLimits, Rebootstrap,
    SdsOptions, TrustBundle,
};
pub use run::{Deps, run};
pub use shared::Core;
pub use status::{Verdict, code_name};
pub use storage::StorageError;
pub use workload::{AttestorFailed, WorkloadAttestation, WorkloadError};

pub(crate) use identities::{selector_list, selector_text};
pub(crate) use run::prepare;
#[cfg(test)]
pub(crate) use run::start;
#[cfg(test)]
pub(crate) use trust::Trust;
