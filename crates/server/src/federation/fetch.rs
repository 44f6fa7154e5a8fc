//! Fetching a bundle from its endpoint (pkg/server/bundle/client/client.go).

use std::fmt;
use std::sync::Arc;

use http::StatusCode;
use spire_compat::quote::quote;
use spire_core::pki::Certificate;
use spire_core::pki::bundle_doc::{self, BundleDocError, Reading};
use spire_core::spiffe::{Bundle, SpiffeId, TrustDomain};
use spire_net::https::{self, HttpsClient};
use spire_net::tls::{TlsClient, TlsPolicy, TlsSetupError, TrustSource};

/// How an endpoint is known.
#[derive(Debug)]
pub(super) enum Authentication {
    /// By the web's authorities.
    Web,
    /// By its SPIFFE ID, with the bundle of that ID's trust domain.
    Spiffe { id: SpiffeId, bundle: Bundle },
}

/// What is asked of all connections to endpoints.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct FetchPolicy {
    pub(super) tls: TlsPolicy,
    pub(super) public_only: bool,
}

/// Why a bundle could not be fetched. Nothing that the endpoint sent is in it.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
    #[error("{0}")]
    Setup(#[from] TlsSetupError),
    #[error("failed to fetch bundle: {0}")]
    Fetch(#[source] https::FetchError),
    #[error(
        "failed to authenticate bundle endpoint using web authentication but the server certificate contains SPIFFE ID {}: \
         maybe use https_spiffe instead of https_web: {error}",
        quote(id.as_str())
    )]
    MistakenForWeb { id: SpiffeId, error: https::FetchError },
    /// The reference adds the start of the body, and follows redirects.
    #[error("unexpected status {} fetching bundle", .0.as_u16())]
    Status(StatusCode),
    #[error("failed to decode bundle: {}", without_contents(.0))]
    Decode(BundleDocError),
    /// The reference takes such a document for a bundle without authorities; the specification requires the member.
    #[error("failed to decode bundle: no authorities found")]
    NoKeys,
}

/// Fetches the bundle of a trust domain.
pub(super) async fn fetch(
    trust_domain: &TrustDomain,
    url: &str,
    authentication: Authentication,
    policy: FetchPolicy,
) -> Result<Bundle, FetchError> {
    let tls = match authentication {
        // Reads the system's authorities each time: they change with its updates, and it takes milliseconds.
        Authentication::Web => match tokio::task::spawn_blocking(move || TlsClient::web(policy.tls)).await {
            Ok(tls) => tls?,
            Err(_) => TlsClient::web(policy.tls)?,
        },
        Authentication::Spiffe { id, bundle } => {
            TlsClient::spiffe_https(Arc::new(OneBundle::new(&bundle)), id, policy.tls)?
        }
    };
    let client = HttpsClient::new(tls).public_only(policy.public_only);
    let document = client.get(url).await.map_err(|error| match (error.spiffe_server().cloned(), error) {
        (Some(id), error) => FetchError::MistakenForWeb { id, error },
        (None, https::FetchError::Status(status)) => FetchError::Status(status),
        (None, error) => FetchError::Fetch(error),
    })?;
    let bundle =
        bundle_doc::parse(trust_domain, &document, Reading::Reference).map_err(FetchError::Decode)?;
    let is_empty = bundle.x509_authorities.is_empty()
        && bundle.jwt_authorities.is_empty()
        && bundle.wit_authorities.is_empty();
    if is_empty && !has_keys(trust_domain, &document) {
        return Err(FetchError::NoKeys);
    }
    Ok(bundle)
}

/// Whether the document has its list of keys; an empty one is how a trust domain says that it trusts nobody any more.
fn has_keys(trust_domain: &TrustDomain, document: &[u8]) -> bool {
    !matches!(bundle_doc::parse(trust_domain, document, Reading::GoSpiffe), Err(BundleDocError::NoKeys))
}

/// What is wrong with a document, without a word of the document.
fn without_contents(error: &BundleDocError) -> String {
    match error {
        BundleDocError::Json(_) => "not JSON".to_owned(),
        BundleDocError::Key(_) => "malformed key".to_owned(),
        BundleDocError::UnknownUse(_, index) => format!("unrecognized use for key entry {index}"),
        BundleDocError::TooLarge
        | BundleDocError::Malformed(_)
        | BundleDocError::NoKeys
        | BundleDocError::Certificates { .. }
        | BundleDocError::MissingKeyId(..)
        | BundleDocError::MissingUse(_)
        | BundleDocError::Authority(..)
        | BundleDocError::SigningKey(..) => error.to_string(),
    }
}

/// The authorities of one trust domain, as they were when a fetch began.
struct OneBundle {
    trust_domain: TrustDomain,
    authorities: Arc<[Certificate]>,
}

impl OneBundle {
    fn new(bundle: &Bundle) -> Self {
        let authorities = bundle
            .x509_authorities
            .iter()
            .filter_map(|authority| Certificate::from_der(authority.der.clone()).ok());
        Self { trust_domain: bundle.trust_domain.clone(), authorities: authorities.collect() }
    }
}

impl TrustSource for OneBundle {
    fn authorities(&self, trust_domain: &TrustDomain) -> Option<Arc<[Certificate]>> {
        (*trust_domain == self.trust_domain).then(|| Arc::clone(&self.authorities))
    }
}

impl fmt::Debug for OneBundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OneBundle").field("trust_domain", &self.trust_domain).finish_non_exhaustive()
    }
}
