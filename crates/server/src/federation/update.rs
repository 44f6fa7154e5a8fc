//! One look at an endpoint: fetch, compare, store (pkg/server/bundle/client/updater.go).

use spire_compat::quote::quote;
use spire_core::model::BundleEndpoint;
use spire_core::spiffe::{Bundle, JwtAuthority, TrustDomain};
use spire_ports::datastore::{self, DataStore};
use spire_ports::observe::GrpcCode;

use super::fetch::{Authentication, FetchError, FetchPolicy, fetch};
use super::relationship::Relationship;

/// Why a bundle was not updated.
#[derive(Debug, thiserror::Error)]
pub(super) enum UpdateError {
    #[error("failed to fetch local copy of bundle for {}: {error}", quote(trust_domain.name()))]
    EndpointBundle { trust_domain: TrustDomain, error: datastore::Error },
    #[error("can't perform SPIFFE Authentication: local copy of bundle not found")]
    NoEndpointBundle,
    #[error("failed to fetch local federated bundle: {0}")]
    Local(datastore::Error),
    #[error("failed to fetch federated bundle from endpoint: {0}")]
    Fetch(FetchError),
    #[error("failed to store fetched federated bundle: {0}")]
    Store(datastore::Error),
}

impl GrpcCode for UpdateError {
    fn grpc_code(&self) -> &'static str {
        match self {
            Self::EndpointBundle { error, .. } | Self::Local(error) | Self::Store(error) => error.grpc_code(),
            Self::NoEndpointBundle | Self::Fetch(_) => "Unknown",
        }
    }
}

/// What a look found.
#[derive(Debug)]
pub(super) struct Update {
    /// The bundle that was stored before, where it could be read.
    pub(super) local: Option<Bundle>,
    /// The bundle that is stored now, if another one than before.
    pub(super) stored: Result<Option<Bundle>, UpdateError>,
}

/// Looks at an endpoint. Whatever fails, the stored bundle stays.
pub(super) async fn update(
    store: &dyn DataStore,
    trust_domain: &TrustDomain,
    relationship: &Relationship,
    policy: FetchPolicy,
) -> Update {
    let authentication = match authentication(store, relationship).await {
        Ok(authentication) => authentication,
        Err(error) => return Update { local: None, stored: Err(error) },
    };
    let local = match store.bundle_fetch(trust_domain).await {
        Ok(local) => local,
        Err(error) => return Update { local: None, stored: Err(UpdateError::Local(error)) },
    };
    let fetched = match fetch(trust_domain, &relationship.endpoint_url, authentication, policy).await {
        Ok(fetched) => fetched,
        Err(error) => return Update { local, stored: Err(UpdateError::Fetch(error)) },
    };
    if local.as_ref().is_some_and(|local| same(local, &fetched)) {
        return Update { local, stored: Ok(None) };
    }
    match store.bundle_set(&fetched).await {
        Ok(stored) => Update { local, stored: Ok(Some(stored)) },
        Err(error) => Update { local, stored: Err(UpdateError::Store(error)) },
    }
}

async fn authentication(
    store: &dyn DataStore,
    relationship: &Relationship,
) -> Result<Authentication, UpdateError> {
    let BundleEndpoint::HttpsSpiffe(id) = &relationship.endpoint else { return Ok(Authentication::Web) };
    let trust_domain = id.trust_domain();
    match store.bundle_fetch(&trust_domain).await {
        Ok(Some(bundle)) => Ok(Authentication::Spiffe { id: id.clone(), bundle }),
        Ok(None) => Err(UpdateError::NoEndpointBundle),
        Err(error) => Err(UpdateError::EndpointBundle { trust_domain, error }),
    }
}

/// Whether both say the same. Sequence numbers, taints and ends of keys are ours and not the endpoint's.
pub(super) fn same(one: &Bundle, other: &Bundle) -> bool {
    let roots = |bundle: &Bundle| bundle.x509_authorities.iter().map(|a| a.der.clone()).collect::<Vec<_>>();
    one.refresh_hint == other.refresh_hint
        && roots(one) == roots(other)
        && same_keys(&one.jwt_authorities, &other.jwt_authorities)
        && same_keys(&one.wit_authorities, &other.wit_authorities)
}

/// Keys have no order.
fn same_keys(one: &[JwtAuthority], other: &[JwtAuthority]) -> bool {
    let sorted = |keys: &[JwtAuthority]| {
        let mut keys: Vec<_> = keys.iter().map(|key| (key.kid.clone(), key.public_key.clone())).collect();
        keys.sort();
        keys
    };
    sorted(one) == sorted(other)
}
