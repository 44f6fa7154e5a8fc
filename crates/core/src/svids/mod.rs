//! The agent's brain: which entries a workload matches, which SVIDs are held for them, which are to be
//! fetched, and who must be told when something changed.
//!
//! Every method is `(state, event, now) → effects`: nothing here fetches, stores, logs or waits. The shell
//! (crates/agent) feeds it what the server said and what workloads ask for, publishes the views that
//! [`Effect::ViewChanged`] names, and logs the other effects.
//!
//! Behaviour is that of the reference's `pkg/agent/manager/cache`, with these differences, which no
//! workload sees: matching uses one anchor selector an entry instead of every selector; renewal times are
//! drawn once, when an SVID arrives, and kept in order, instead of being drawn again on every scan; and an
//! SVID that came back for an older revision of its entry stays stale.

mod groups;
mod hints;
mod index;
mod jwt;
mod schedule;
mod view;
mod wit;
mod x509;

pub use hints::{DuplicateHints, first_of_each_hint};
pub use index::MatchIndex;
pub use jwt::{JwtCache, JwtKey, JwtLookup, JwtSvid};
pub use schedule::{Jitter, Rotation};
pub use view::{Match, View, X509Svid};
pub use wit::{HeldWit, WitCache, WitSvid};
pub use x509::{Delta, Effect, Limits, Stale, X509Cache};
