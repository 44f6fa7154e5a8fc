//! Dynamic federation relationships: where a foreign trust domain's bundle is fetched.

use crate::spiffe::{Bundle, SpiffeId, TrustDomain};

/// Where and how the bundle of a foreign trust domain is fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FederationRelationship {
    /// The foreign trust domain.
    pub trust_domain: TrustDomain,
    /// URL of its bundle endpoint, https.
    pub endpoint_url: String,
    /// How the endpoint is authenticated.
    pub endpoint: BundleEndpoint,
    /// Its bundle, where a query asked for it and it is known; on creation, the bundle to start with.
    pub bundle: Option<Bundle>,
}

/// How a bundle endpoint is authenticated (SPIFFE Federation specification, section 5.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BundleEndpoint {
    /// By the system's web roots.
    HttpsWeb,
    /// By an X.509-SVID with this ID.
    HttpsSpiffe(SpiffeId),
}

/// Fields of a relationship that an update sets; `None` leaves a field as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FederationUpdate {
    /// The URL.
    pub endpoint_url: Option<String>,
    /// The profile.
    pub endpoint: Option<BundleEndpoint>,
    /// The bundle.
    pub bundle: Option<Bundle>,
}
