//! The relationships with other trust domains: those of the configuration and those of the datastore.

use std::collections::BTreeMap;

use spire_core::model::BundleEndpoint;
use spire_core::spiffe::TrustDomain;
use spire_ports::datastore::{self, DataStore};

use super::SUBSYSTEM;
use crate::config::{FederatesWith, FederationProfile};

/// Where the bundle of a trust domain is fetched, and how its endpoint is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Relationship {
    pub(super) endpoint_url: String,
    pub(super) endpoint: BundleEndpoint,
}

impl Relationship {
    /// The profile's name in configurations and logs.
    pub(super) fn profile(&self) -> &'static str {
        match self.endpoint {
            BundleEndpoint::HttpsWeb => "https_web",
            BundleEndpoint::HttpsSpiffe(_) => "https_spiffe",
        }
    }
}

impl From<&FederatesWith> for Relationship {
    fn from(config: &FederatesWith) -> Self {
        let endpoint = match &config.profile {
            FederationProfile::HttpsWeb => BundleEndpoint::HttpsWeb,
            FederationProfile::HttpsSpiffe { endpoint_spiffe_id } => {
                BundleEndpoint::HttpsSpiffe(endpoint_spiffe_id.clone())
            }
        };
        Self { endpoint_url: config.bundle_endpoint_url.clone(), endpoint }
    }
}

/// All relationships, by trust domain.
pub(super) type Relationships = BTreeMap<TrustDomain, Relationship>;

/// Where relationships come from.
#[derive(Debug)]
pub(super) struct Sources {
    own: TrustDomain,
    configured: Relationships,
}

impl Sources {
    pub(super) fn new(own: TrustDomain, configured: &[FederatesWith]) -> Self {
        let configured: Relationships =
            configured.iter().map(|config| (config.trust_domain.clone(), config.into())).collect();
        if configured.contains_key(&own) {
            tracing::error!(
                subsystem_name = SUBSYSTEM,
                trust_domain = own.name(),
                "Ignoring the federation relationship with the server's own trust domain"
            );
        }
        Self { own, configured }
    }

    /// The relationships of now. Where both have one with a trust domain, the configuration's counts. One with our own
    /// trust domain never does: what an endpoint says must not become our bundle.
    ///
    /// # Errors
    /// The datastore's.
    pub(super) async fn current(&self, store: &dyn DataStore) -> datastore::Result<Relationships> {
        let stored = store.federation_list(None).await?;
        let mut all: Relationships = stored
            .items
            .into_iter()
            .map(|one| {
                (one.trust_domain, Relationship { endpoint_url: one.endpoint_url, endpoint: one.endpoint })
            })
            .collect();
        all.extend(self.configured.clone());
        all.remove(&self.own);
        Ok(all)
    }
}
