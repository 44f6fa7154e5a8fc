//! Federation: our bundle for other trust domains, and theirs for us (SPIFFE Federation specification).
//!
//! | part | what it does |
//! |---|---|
//! | [`BundleEndpointServer`] | serves our bundle over HTTPS, with a certificate of the web or our SVID |
//! | [`Federation`] | follows the bundle endpoints of the trust domains that we federate with |
//!
//! What an endpoint sent is judged before it counts: bounded in size and time, no redirects, for the trust domain that
//! it was asked for. Nothing of it is ever in an error, since whoever may name a URL must not read what is behind it.

mod document;
mod endpoint;
mod fetch;
mod follow;
mod relationship;
mod schedule;
mod update;

#[cfg(test)]
mod tests;

pub use endpoint::{BundleEndpointParts, BundleEndpointServer, EndpointError};
pub use follow::{Federation, FederationParts};

/// What the log calls the part that fetches.
const SUBSYSTEM: &str = "bundle_client";
