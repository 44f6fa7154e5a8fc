//! What a running agent shares with those that operate it.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use spire_net::tls::{Identity, LateTrust};
use spire_telemetry::LogLevel;

use super::options::RateLimits;

/// What is shared; clones share the same.
#[derive(Clone, Debug, Default)]
pub struct Live {
    /// The agent's X.509-SVID, once it has one.
    pub identity: Arc<Identity>,
    /// The authorities of the agent's trust domain, once it knows them.
    pub trust: Arc<LateTrust>,
    /// Limits of the Workload API that replace those of the options.
    pub rate_limits: Arc<ArcSwapOption<RateLimits>>,
    /// The level of the log; without it the Logger API is not served.
    pub log: Option<LogLevel>,
}
