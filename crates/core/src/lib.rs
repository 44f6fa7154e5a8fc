//! The pure heart of SPIRE: SPIFFE types, the domain model, PKI, authorities, the entry index and the
//! agent's SVID cache.
//!
//! Nothing here performs IO, reads a clock, an environment variable or the system's random source: `now`
//! and random bytes are arguments. That makes every decision in this crate a function that a test can
//! call with any input at any time.

pub mod authority;
pub mod containers;
pub mod entries;
pub mod explain;
pub mod model;
pub mod pki;
pub mod spiffe;
pub mod svids;
pub mod time;
