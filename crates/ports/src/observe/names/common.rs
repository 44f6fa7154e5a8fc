//! Metrics that server and agent emit.

use super::Name;

/// Gauge `started`; labels: `version`, `trust_domain_id`.
pub const STARTED: Name = &["started"];
/// Gauge `uptime_in_ms`.
pub const UPTIME_IN_MS: Name = &["uptime_in_ms"];
