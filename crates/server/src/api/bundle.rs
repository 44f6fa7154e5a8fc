//! `spire.api.server.bundle.v1.Bundle`: our own bundle and those of others (pkg/server/api/bundle/v1).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use spire_core::authority::Kind;
use spire_core::spiffe::{Bundle, TrustDomain};
use spire_ports::datastore::{self, DeleteMode};
use spire_ports::observe::Scalar;
use spire_wire::api::server::bundle::v1 as wire;
use spire_wire::api::types;
use tokio::sync::watch;
use tonic::{Code, Status};

use super::audit::Fields;
use super::caller::{AdminCaller, AdminOrAgentCaller, AnyCaller, DownstreamPublisher};
use super::convert::{
    bundle, bundle_fields, bundle_mask, bundle_to_wire, hash, jwt_authorities, jwt_authority_fields,
    jwt_key_to_wire, paging, wit_authorities, wit_key_to_wire, x509_authorities, x509_authority_fields,
};
use super::limits::Bucket;
use super::route::{Call, Route, unary};
use super::status::{self, Context, fail, fail_with, store_code};
use crate::outage::patiently;

pub(super) fn routes() -> Vec<Route> {
    vec![
        unary("/spire.api.server.bundle.v1.Bundle/CountBundles", count_bundles),
        unary("/spire.api.server.bundle.v1.Bundle/GetBundle", own_bundle),
        unary("/spire.api.server.bundle.v1.Bundle/AppendBundle", append_bundle),
        unary("/spire.api.server.bundle.v1.Bundle/PublishJWTAuthority", publish_jwt_authority),
        unary("/spire.api.server.bundle.v1.Bundle/PublishWITAuthority", publish_wit_authority),
        unary("/spire.api.server.bundle.v1.Bundle/ListFederatedBundles", list_federated),
        unary("/spire.api.server.bundle.v1.Bundle/GetFederatedBundle", federated),
        unary("/spire.api.server.bundle.v1.Bundle/BatchCreateFederatedBundle", batch_create),
        unary("/spire.api.server.bundle.v1.Bundle/BatchUpdateFederatedBundle", batch_update),
        unary("/spire.api.server.bundle.v1.Bundle/BatchSetFederatedBundle", batch_set),
        unary("/spire.api.server.bundle.v1.Bundle/BatchDeleteFederatedBundle", batch_delete),
    ]
}

async fn count_bundles(
    call: Arc<Call>,
    _: AdminCaller,
    _: wire::CountBundlesRequest,
) -> Result<wire::CountBundlesResponse, Status> {
    let count = call
        .store()
        .bundle_count()
        .await
        .map_err(|e| fail_with(Code::Internal, "failed to count bundles", e))?;
    call.audit.success();
    Ok(wire::CountBundlesResponse { count: i32::try_from(count).unwrap_or(i32::MAX) })
}

async fn own_bundle(
    call: Arc<Call>,
    _: AnyCaller,
    request: wire::GetBundleRequest,
) -> Result<types::Bundle, Status> {
    call.audit.add("trust_domain_id", call.api.trust_domain().name().to_owned());
    let bundle = call
        .api
        .deps
        .authorities
        .bundle_changes()
        .fresh()
        .await
        .map_err(|e| fail_with(Code::Internal, "failed to fetch bundle", e))?
        .ok_or_else(|| fail(Code::NotFound, "bundle not found"))?;
    call.audit.success();
    Ok(bundle_to_wire(&bundle, request.output_mask.as_ref()))
}

async fn append_bundle(
    call: Arc<Call>,
    _: AdminCaller,
    request: wire::AppendBundleRequest,
) -> Result<types::Bundle, Status> {
    call.audit.extend(|| {
        let mut fields = jwt_authority_fields(&request.jwt_authorities);
        fields.extend(x509_authority_fields(&request.x509_authorities));
        fields
    });
    if request.jwt_authorities.is_empty() && request.x509_authorities.is_empty() {
        return Err(fail(Code::InvalidArgument, "no authorities to append"));
    }
    let ours = call.api.trust_domain();
    let context = Context::trust_domain(ours.name());
    let mut addition = Bundle::empty(ours.clone());
    addition.jwt_authorities = jwt_authorities(request.jwt_authorities)
        .map_err(|e| context.fail_with(Code::InvalidArgument, "failed to convert JWT authority", e))?;
    addition.x509_authorities = x509_authorities(request.x509_authorities)
        .map_err(|e| context.fail_with(Code::InvalidArgument, "failed to convert X.509 authority", e))?;
    let bundle = call
        .api
        .deps
        .authorities
        .bundle_changes()
        .append(&addition)
        .await
        .map_err(|e| context.fail_with(Code::Internal, "failed to append bundle", e))?;
    call.audit.success();
    Ok(bundle_to_wire(&bundle, request.output_mask.as_ref()))
}

async fn publish_jwt_authority(
    call: Arc<Call>,
    _: DownstreamPublisher,
    request: wire::PublishJwtAuthorityRequest,
) -> Result<wire::PublishJwtAuthorityResponse, Status> {
    if let Some(key) = &request.jwt_authority {
        call.audit.add("jwt_authority_expires_at", key.expires_at);
        call.audit.add("jwt_authority_key_id", key.key_id.clone());
        call.audit.add("jwt_authority_public_key_sha256", hash(&key.public_key));
    }
    call.limit(Bucket::JwtKey, 1, "key publishing rate limiting").await?;
    let key = request.jwt_authority.ok_or_else(|| fail(Code::InvalidArgument, "missing JWT authority"))?;
    let mut keys = jwt_authorities(vec![key])
        .map_err(|e| fail_with(Code::InvalidArgument, "invalid JWT authority", e))?;
    let key = keys.pop().ok_or_else(|| fail(Code::InvalidArgument, "missing JWT authority"))?;
    let published = call
        .api
        .deps
        .authorities
        .publish_key(Kind::Jwt, key)
        .await
        .map_err(|e| fail_with(Code::Internal, "failed to publish JWT key", e))?;
    call.audit.success();
    Ok(wire::PublishJwtAuthorityResponse { jwt_authorities: published.iter().map(jwt_key_to_wire).collect() })
}

async fn publish_wit_authority(
    call: Arc<Call>,
    _: DownstreamPublisher,
    request: wire::PublishWitAuthorityRequest,
) -> Result<wire::PublishWitAuthorityResponse, Status> {
    call.limit(Bucket::WitKey, 1, "key publishing rate limiting").await?;
    if !call.api.ca().config().wit_svids_enabled {
        return Err(fail(Code::Unimplemented, "WIT-SVID functionality is not yet implemented"));
    }
    if let Some(key) = &request.wit_authority {
        call.audit.add("expires_at", key.expires_at.to_string());
        call.audit.add("wit_authority_key_id", key.key_id.clone());
    }
    let key = request.wit_authority.ok_or_else(|| fail(Code::InvalidArgument, "missing WIT authority"))?;
    let mut keys = wit_authorities(vec![key])
        .map_err(|e| fail_with(Code::InvalidArgument, "invalid WIT authority", e))?;
    let key = keys.pop().ok_or_else(|| fail(Code::InvalidArgument, "missing WIT authority"))?;
    let published = call
        .api
        .deps
        .authorities
        .publish_key(Kind::Wit, key)
        .await
        .map_err(|e| fail_with(Code::Internal, "failed to publish WIT key", e))?;
    call.audit.success();
    Ok(wire::PublishWitAuthorityResponse { wit_authorities: published.iter().map(wit_key_to_wire).collect() })
}

async fn list_federated(
    call: Arc<Call>,
    _: AdminCaller,
    request: wire::ListFederatedBundlesRequest,
) -> Result<wire::ListFederatedBundlesResponse, Status> {
    let paging = paging(request.page_size, request.page_token);
    let page = call
        .store()
        .bundle_list(paging.as_ref())
        .await
        .map_err(|e| fail_with(Code::Internal, "failed to list bundles", e))?;
    let bundles = page
        .items
        .iter()
        .filter(|bundle| bundle.trust_domain != *call.api.trust_domain())
        .map(|bundle| bundle_to_wire(bundle, request.output_mask.as_ref()))
        .collect();
    call.audit.success();
    Ok(wire::ListFederatedBundlesResponse { bundles, next_page_token: page.next })
}

async fn federated(
    call: Arc<Call>,
    _: AdminOrAgentCaller,
    request: wire::GetFederatedBundleRequest,
) -> Result<types::Bundle, Status> {
    call.audit.add("trust_domain_id", request.trust_domain.clone());
    let context = Context::trust_domain(&request.trust_domain);
    let text = "getting a federated bundle for the server's own trust domain is not allowed";
    let trust_domain = foreign(&call, &request.trust_domain, text)?;
    let bundle = known_bundle(&call, &trust_domain)
        .await
        .map_err(|e| context.fail_with(Code::Internal, "failed to fetch bundle", e))?
        .ok_or_else(|| context.fail(Code::NotFound, "bundle not found"))?;
    call.audit.success();
    Ok(bundle_to_wire(&bundle, request.output_mask.as_ref()))
}

/// Bundles of federated trust domains as they were read last: for [`KNOWN_FRESH`], and for when the datastore is away.
pub(super) type KnownBundles = Mutex<BTreeMap<TrustDomain, KnownBundle>>;

/// How many of them are kept: each is some KiB, and few trust domains federate with more.
const KNOWN_BUNDLES_MAX: usize = 1000;

/// As the reference's cache does (pkg/server/cache/dscache).
const KNOWN_FRESH: Duration = Duration::from_secs(1);

/// A bundle as it was read last.
pub(super) struct KnownBundle {
    bundle: Arc<Bundle>,
    read: Instant,
    /// Has changed if some bundle was written by this server since.
    written: watch::Receiver<()>,
}

impl KnownBundle {
    fn is_fresh(&self) -> bool {
        self.read.elapsed() < KNOWN_FRESH && self.written.has_changed().is_ok_and(|changed| !changed)
    }
}

/// A federated bundle as it is stored, or as it was when the datastore could last be asked: agents go on with what
/// they have, and those that come anew get the same.
async fn known_bundle(call: &Call, trust_domain: &TrustDomain) -> datastore::Result<Option<Arc<Bundle>>> {
    let all = &call.api.known_bundles;
    let known = all.lock().get(trust_domain).map(|known| (known.bundle.clone(), known.is_fresh()));
    let known = match known {
        Some((bundle, true)) => return Ok(Some(bundle)),
        Some((bundle, false)) => Some(bundle),
        None => None,
    };
    // A write during the read must count as later.
    let written = call.api.deps.live.changes().bundles();
    let bundle = match patiently(known.is_some(), call.store().bundle_fetch(trust_domain)).await {
        Ok(Some(bundle)) => Arc::new(bundle),
        Ok(None) => {
            all.lock().remove(trust_domain);
            return Ok(None);
        }
        Err(error @ datastore::Error::Unavailable(_)) => return known.map(Some).ok_or(error),
        Err(error) => return Err(error),
    };
    let mut all = all.lock();
    if all.len() < KNOWN_BUNDLES_MAX || all.contains_key(trust_domain) {
        let known = KnownBundle { bundle: bundle.clone(), read: Instant::now(), written };
        all.insert(trust_domain.clone(), known);
    }
    Ok(Some(bundle))
}

async fn batch_create(
    call: Arc<Call>,
    _: AdminCaller,
    request: wire::BatchCreateFederatedBundleRequest,
) -> Result<wire::BatchCreateFederatedBundleResponse, Status> {
    let mut results = Vec::with_capacity(request.bundle.len());
    for one in request.bundle {
        let fields = audit_fields(&call, &one, None);
        let name = one.trust_domain.clone();
        let context = Context::trust_domain(&name);
        let text = "creating a federated bundle for the server's own trust domain is not allowed";
        let outcome = match foreign_bundle(&call, one, text) {
            Err(status) => Err(status),
            Ok(bundle) => match call.store().bundle_create(&bundle).await {
                Ok(created) => {
                    tracing::debug!(trust_domain_id = name, "Federated bundle created");
                    Ok(created)
                }
                Err(datastore::Error::AlreadyExists(_)) => {
                    Err(context.fail(Code::AlreadyExists, "bundle already exists"))
                }
                Err(e) => Err(context.fail_with(Code::Internal, "unable to create bundle", e)),
            },
        };
        let (status, bundle) = done(&call, outcome, fields, request.output_mask.as_ref());
        results.push(wire::batch_create_federated_bundle_response::Result { status, bundle });
    }
    Ok(wire::BatchCreateFederatedBundleResponse { results })
}

async fn batch_update(
    call: Arc<Call>,
    _: AdminCaller,
    request: wire::BatchUpdateFederatedBundleRequest,
) -> Result<wire::BatchUpdateFederatedBundleResponse, Status> {
    let mask = bundle_mask(request.input_mask.as_ref());
    let mut results = Vec::with_capacity(request.bundle.len());
    for one in request.bundle {
        let fields = audit_fields(&call, &one, request.input_mask.as_ref());
        let name = one.trust_domain.clone();
        let context = Context::trust_domain(&name);
        let text = "updating a federated bundle for the server's own trust domain is not allowed";
        let outcome = match foreign_bundle(&call, one, text) {
            Err(status) => Err(status),
            Ok(bundle) => match call.store().bundle_update(&bundle, mask).await {
                Ok(updated) => {
                    tracing::debug!(trust_domain_id = name, "Federated bundle updated");
                    Ok(updated)
                }
                Err(datastore::Error::NotFound) => Err(context.fail(Code::NotFound, "bundle not found")),
                Err(e) => Err(context.fail_with(Code::Internal, "failed to update bundle", e)),
            },
        };
        let (status, bundle) = done(&call, outcome, fields, request.output_mask.as_ref());
        results.push(wire::batch_update_federated_bundle_response::Result { status, bundle });
    }
    Ok(wire::BatchUpdateFederatedBundleResponse { results })
}

async fn batch_set(
    call: Arc<Call>,
    _: AdminCaller,
    request: wire::BatchSetFederatedBundleRequest,
) -> Result<wire::BatchSetFederatedBundleResponse, Status> {
    let mut results = Vec::with_capacity(request.bundle.len());
    for one in request.bundle {
        let fields = audit_fields(&call, &one, None);
        let name = one.trust_domain.clone();
        let context = Context::trust_domain(&name);
        let text = "setting a federated bundle for the server's own trust domain is not allowed";
        let outcome = match foreign_bundle(&call, one, text) {
            Err(status) => Err(status),
            Ok(bundle) => call
                .store()
                .bundle_set(&bundle)
                .await
                .inspect(|_| tracing::info!(trust_domain_id = name, "Bundle set successfully"))
                .map_err(|e| context.fail_with(Code::Internal, "failed to set bundle", e)),
        };
        let (status, bundle) = done(&call, outcome, fields, request.output_mask.as_ref());
        results.push(wire::batch_set_federated_bundle_response::Result { status, bundle });
    }
    Ok(wire::BatchSetFederatedBundleResponse { results })
}

async fn batch_delete(
    call: Arc<Call>,
    _: AdminCaller,
    request: wire::BatchDeleteFederatedBundleRequest,
) -> Result<wire::BatchDeleteFederatedBundleResponse, Status> {
    let (mode, mode_name) = match request.mode {
        0 => (DeleteMode::Restrict, Scalar::Named(0, "RESTRICT")),
        1 => (DeleteMode::Delete, Scalar::Named(1, "DELETE")),
        2 => (DeleteMode::Dissociate, Scalar::Named(2, "DISSOCIATE")),
        other => {
            let cause = format!("unhandled delete mode \"{other}\"");
            return Err(fail_with(Code::InvalidArgument, "failed to parse deletion mode", cause));
        }
    };
    let mut results = Vec::with_capacity(request.trust_domains.len());
    for name in request.trust_domains {
        let status = match delete(&call, &name, mode).await {
            Ok(()) => status::ok(),
            Err(status) => status::item(&status),
        };
        call.audit.item(&status, || {
            vec![("trust_domain_id".into(), name.clone().into()), ("mode".into(), mode_name.clone())]
        });
        results.push(wire::batch_delete_federated_bundle_response::Result {
            status: Some(status),
            trust_domain: name,
        });
    }
    Ok(wire::BatchDeleteFederatedBundleResponse { results })
}

async fn delete(call: &Call, name: &str, mode: DeleteMode) -> Result<(), Status> {
    let trust_domain = foreign(call, name, "removing the bundle for the server trust domain is not allowed")?;
    let context = Context::trust_domain(name);
    match call.api.deps.live.delete_bundle(&trust_domain, mode).await {
        Ok(()) => Ok(()),
        Err(datastore::Error::NotFound) => Err(context.fail(Code::NotFound, "bundle not found")),
        Err(error) => Err(context.fail_with(store_code(&error), "failed to delete federated bundle", error)),
    }
}

/// A trust domain of a request that must not be ours.
fn foreign(call: &Call, name: &str, if_ours: &str) -> Result<TrustDomain, Status> {
    let context = Context::trust_domain(name);
    let trust_domain = TrustDomain::parse(name)
        .map_err(|e| context.fail_with(Code::InvalidArgument, "trust domain argument is not valid", e))?;
    if trust_domain == *call.api.trust_domain() {
        return Err(context.fail(Code::InvalidArgument, if_ours));
    }
    Ok(trust_domain)
}

/// A bundle of a request that must not be ours.
fn foreign_bundle(call: &Call, wire: types::Bundle, if_ours: &str) -> Result<Bundle, Status> {
    foreign(call, &wire.trust_domain, if_ours)?;
    let name = wire.trust_domain.clone();
    bundle(wire).map_err(|e| {
        Context::trust_domain(&name).fail_with(Code::InvalidArgument, "failed to convert bundle", e)
    })
}

/// The answer for one item of a batch; agents hear that a bundle changed.
fn done(
    call: &Call,
    outcome: Result<Bundle, Status>,
    fields: Fields,
    mask: Option<&types::BundleMask>,
) -> (Option<types::Status>, Option<types::Bundle>) {
    let (status, bundle) = match outcome {
        Ok(bundle) => {
            call.api.deps.live.changes().bundle_changed();
            (status::ok(), Some(bundle_to_wire(&bundle, mask)))
        }
        Err(status) => (status::item(&status), None),
    };
    call.audit.item(&status, || fields);
    (Some(status), bundle)
}

fn audit_fields(call: &Call, wire: &types::Bundle, mask: Option<&types::BundleMask>) -> Fields {
    if call.audit.enabled() { bundle_fields(wire, mask) } else { Fields::new() }
}
