//! Views as answers of the Workload API, encoded once and shared.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use bytes::{Bytes, BytesMut};
use spire_core::model::Entry;
use spire_core::pki::bundle_doc::{self, Format};
use spire_core::spiffe::Bundle;
use spire_core::svids::{View, X509Svid, first_of_each_hint};
use spire_wire::workload::{
    JwtBundlesResponse, WitBundlesResponse, X509BundlesResponse, X509svid, X509svidResponse,
};
use tonic::Status;

use super::grpc::Framed;
use super::sds::Secrets;
use crate::runtime::Bundles;

/// The answers that were made from a view so far; an error is the text that says why there is none.
#[derive(Debug, Default)]
pub struct Encoded {
    x509_svids: OnceLock<Framed>,
    x509_bundles: OnceLock<Framed>,
    jwt_bundles: OnceLock<Result<Framed, String>>,
    wit_bundles: OnceLock<Result<Framed, String>>,
    secrets: OnceLock<Secrets>,
}

impl Encoded {
    /// FetchX509SVID's answer.
    pub(super) fn x509_svids(&self, view: &View) -> &Framed {
        self.x509_svids.get_or_init(|| Framed::new(&x509_svids(view)))
    }

    /// FetchX509Bundles' answer.
    pub(super) fn x509_bundles(&self, view: &View) -> &Framed {
        self.x509_bundles.get_or_init(|| Framed::new(&x509_bundles(view)))
    }

    /// FetchJWTBundles' answer.
    pub(super) fn jwt_bundles(&self, view: &View) -> Result<&Framed, &str> {
        let encoded = self.jwt_bundles.get_or_init(|| {
            jwt_bundles(view).map(|answer| Framed::new(&answer)).map_err(|error| error.to_string())
        });
        encoded.as_ref().map_err(String::as_str)
    }
}

impl Encoded {
    /// FetchWITBundles' answer.
    pub(super) fn wit_bundles(&self, view: &View) -> Result<&Framed, &str> {
        let encoded = self.wit_bundles.get_or_init(|| {
            wit_bundles(view).map(|answer| Framed::new(&answer)).map_err(|error| error.to_string())
        });
        encoded.as_ref().map_err(String::as_str)
    }
}

impl Encoded {
    /// What SDS hands out.
    pub(super) fn secrets(&self, view: &View) -> &Secrets {
        self.secrets.get_or_init(|| Secrets::of(view))
    }
}

/// The identities to serve: of those with one hint, the oldest (pkg/agent/common/hintsfilter).
pub(super) fn served_identities(view: &View) -> Vec<(&Arc<Entry>, &Arc<X509Svid>)> {
    let (kept, dropped) = first_of_each_hint(view.identities().collect(), |(entry, _)| entry);
    for (id, hint) in dropped {
        tracing::warn!(subsystem_name = "endpoints", entry_id = %id, hint = &*hint, "Ignoring entry with duplicate hint");
    }
    kept
}

fn x509_svids(view: &View) -> X509svidResponse {
    let bundle = x509_roots(&view.bundle);
    let svids = served_identities(view)
        .into_iter()
        .map(|(entry, svid)| X509svid {
            spiffe_id: svid.spiffe_id.as_str().to_owned(),
            x509_svid: concat(&svid.chain),
            x509_svid_key: Bytes::copy_from_slice(&svid.private_key),
            bundle: bundle.clone(),
            hint: entry.hint.to_string(),
        })
        .collect();
    let federated_bundles =
        view.federated.iter().map(|b| (b.trust_domain.id_string(), x509_roots(b))).collect();
    X509svidResponse { svids, crl: Vec::new(), federated_bundles }
}

fn x509_bundles(view: &View) -> X509BundlesResponse {
    let bundles = visible(view).map(|b| (b.trust_domain.id_string(), x509_roots(b))).collect();
    X509BundlesResponse { crl: Vec::new(), bundles }
}

fn jwt_bundles(view: &View) -> Result<JwtBundlesResponse, bundle_doc::BundleDocError> {
    let mut bundles = BTreeMap::new();
    for bundle in visible(view) {
        let document = bundle_doc::marshal(bundle, Format::JWT_JWKS)?;
        bundles.insert(bundle.trust_domain.id_string(), document.into());
    }
    Ok(JwtBundlesResponse { bundles })
}

/// Keys have their `use`, by which consumers find them (SPIFFE WIT-SVID, section 6).
fn wit_bundles(view: &View) -> Result<WitBundlesResponse, bundle_doc::BundleDocError> {
    let format = Format { spiffe: true, ..Format::WIT_JWKS };
    let mut bundles = BTreeMap::new();
    for bundle in visible(view) {
        bundles.insert(bundle.trust_domain.id_string(), bundle_doc::marshal(bundle, format)?);
    }
    Ok(WitBundlesResponse { bundles })
}

/// The X.509 authorities of all bundles, concatenated DER by trust domain ID.
pub(super) fn x509_documents(bundles: &Bundles) -> BTreeMap<String, Bytes> {
    bundles.values().map(|bundle| (bundle.trust_domain.id_string(), x509_roots(bundle))).collect()
}

/// The JWT authorities of all bundles, a JWK set by trust domain ID.
pub(super) fn jwt_documents(bundles: &Bundles) -> Result<BTreeMap<String, Bytes>, Status> {
    let one = |bundle: &Arc<Bundle>| {
        let document = bundle_doc::marshal(bundle, Format::JWT_JWKS)?;
        Ok((bundle.trust_domain.id_string(), document.into()))
    };
    let all: Result<_, bundle_doc::BundleDocError> = bundles.values().map(one).collect();
    all.map_err(|error| Status::unknown(error.to_string()))
}

/// One's own bundle, and the others for whoever has an identity.
pub(super) fn visible(view: &View) -> impl Iterator<Item = &Bundle> {
    let federated = view.federated.iter().filter(|_| view.has_identity());
    std::iter::once(&view.bundle).chain(federated).map(|bundle| &**bundle)
}

pub(super) fn x509_roots(bundle: &Bundle) -> Bytes {
    concat(bundle.x509_authorities.iter().map(|a| &a.der))
}

pub(super) fn concat<'a>(parts: impl IntoIterator<Item = &'a Bytes>) -> Bytes {
    let mut all = BytesMut::new();
    for part in parts {
        all.extend_from_slice(part);
    }
    all.freeze()
}
