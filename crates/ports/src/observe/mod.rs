//! What the application reports about itself: metrics, values of log fields, health.
//!
//! Logs have no port of their own: application code calls `tracing` and names its fields as the reference does
//! (`pkg/common/telemetry/names.go`); `spire-telemetry` prints them. Context that every line of a piece of work carries (`subsystem_name`,
//! `request_id`, `service`, `method`, `caller_addr`, …) belongs into an `info_span!`: fields of the spans around
//! an event are printed with it, and the event's own fields win. Spans below `info` are not kept.

mod health;
mod metrics;
pub mod names;
mod value;

pub use health::{Details, HealthCheck, HealthChecks, HealthError, HealthState, check};
pub use metrics::{Call, GrpcCode, Label, Metrics, NoMetrics};
pub use value::{Logged, Scalar};

/// The `target` of an event that is printed at level `fatal` (emit it with `tracing::error!`).
///
/// Ending the process stays the caller's affair; logrus' `Fatal` would call `exit(1)`.
pub const FATAL: &str = "spire::fatal";

/// The `target` of an event that is printed at level `panic` (emit it with `tracing::error!`).
pub const PANIC: &str = "spire::panic";
