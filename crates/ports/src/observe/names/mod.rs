//! Names and labels of the metrics, as the reference's dashboards and alerts know them.
//!
//! A name is the list of its parts; Prometheus and StatsD sinks join them with `_` or `.` behind a prefix.

pub mod agent;
pub mod common;
mod rpc;
pub mod server;

pub use rpc::{rate_limit, rpc};

/// A metric's name: its parts, in order.
pub type Name = &'static [&'static str];

/// The last part of a call's time metric ([`super::Call`]).
pub const ELAPSED_TIME: &str = "elapsed_time";

/// Label names of our metrics.
pub mod label {
    /// The attestor plugin of a node or workload attestation.
    pub const ATTESTOR: &str = "attestor";
    /// The host's name, which the reference adds to every metric unless it is switched off.
    pub const HOST: &str = "host";
    /// The RPC that met its rate limit.
    pub const METHOD: &str = "method";
    /// How the agent bootstrapped its trust.
    pub const MODE: &str = "mode";
    /// The gRPC code's name of a call's result.
    pub const STATUS: &str = "status";
    /// The kind of SVID: `x509`, `jwt`.
    pub const SVID_TYPE: &str = "svid_type";
    /// The trust domain, added to every metric where it is switched on.
    pub const TRUST_DOMAIN: &str = "trust_domain";
    /// The trust domain that a metric is about.
    pub const TRUST_DOMAIN_ID: &str = "trust_domain_id";
    /// The version that runs.
    pub const VERSION: &str = "version";
}
