//! `spire.api.server.trustdomain.v1.TrustDomain`: federation relationships (pkg/server/api/trustdomain/v1).

use std::sync::Arc;

use async_trait::async_trait;
use spire_core::model::{BundleEndpoint, FederationRelationship, FederationUpdate};
use spire_core::spiffe::{SpiffeId, TrustDomain};
use spire_ports::datastore;
use spire_wire::api::server::trustdomain::v1 as wire;
use spire_wire::api::types;
use spire_wire::api::types::federation_relationship::BundleEndpointProfile;
use tonic::codegen::http::Uri;
use tonic::{Code, Status};

use super::audit::Fields;
use super::caller::AdminCaller;
use super::convert::{bundle, bundle_fields, bundle_to_wire, paging};
use super::route::{Call, Route, unary};
use super::status::{self, Context, fail, fail_with, quoted};

/// Fetches bundles of federated trust domains.
#[async_trait]
pub trait BundleRefresher: Send + Sync {
    /// Fetches the bundle of a trust domain now. `false` when there is no relationship with it.
    ///
    /// # Errors
    /// Why it could not be fetched, for the API's caller.
    async fn refresh(&self, trust_domain: &TrustDomain) -> Result<bool, String>;
    /// Relationships changed; to be read again soon.
    fn relationships_changed(&self);
}

pub(super) fn routes() -> Vec<Route> {
    vec![
        unary("/spire.api.server.trustdomain.v1.TrustDomain/ListFederationRelationships", list),
        unary("/spire.api.server.trustdomain.v1.TrustDomain/GetFederationRelationship", relationship),
        unary("/spire.api.server.trustdomain.v1.TrustDomain/BatchCreateFederationRelationship", batch_create),
        unary("/spire.api.server.trustdomain.v1.TrustDomain/BatchUpdateFederationRelationship", batch_update),
        unary("/spire.api.server.trustdomain.v1.TrustDomain/BatchDeleteFederationRelationship", batch_delete),
        unary("/spire.api.server.trustdomain.v1.TrustDomain/RefreshBundle", refresh_bundle),
    ]
}

async fn list(
    call: Arc<Call>,
    _: AdminCaller,
    request: wire::ListFederationRelationshipsRequest,
) -> Result<wire::ListFederationRelationshipsResponse, Status> {
    let paging = paging(request.page_size, request.page_token);
    let page = call
        .store()
        .federation_list(paging.as_ref())
        .await
        .map_err(|e| fail_with(Code::Internal, "failed to list federation relationships", e))?;
    let mask = request.output_mask.as_ref();
    let federation_relationships = page.items.iter().map(|one| to_wire(one, mask)).collect();
    call.audit.success();
    Ok(wire::ListFederationRelationshipsResponse { federation_relationships, next_page_token: page.next })
}

async fn relationship(
    call: Arc<Call>,
    _: AdminCaller,
    request: wire::GetFederationRelationshipRequest,
) -> Result<types::FederationRelationship, Status> {
    call.audit.add("trust_domain_id", request.trust_domain.clone());
    let trust_domain = parse(&request.trust_domain, Context::default())?;
    let found = call
        .store()
        .federation_fetch(&trust_domain)
        .await
        .map_err(|e| fail_with(Code::Internal, "failed to fetch federation relationship", e))?
        .ok_or_else(|| fail(Code::NotFound, "federation relationship does not exist"))?;
    call.audit.success();
    Ok(to_wire(&found, request.output_mask.as_ref()))
}

async fn batch_create(
    call: Arc<Call>,
    _: AdminCaller,
    request: wire::BatchCreateFederationRelationshipRequest,
) -> Result<wire::BatchCreateFederationRelationshipResponse, Status> {
    let mut results = Vec::with_capacity(request.federation_relationships.len());
    for one in request.federation_relationships {
        let fields = audit_fields(&call, &one, None);
        let outcome = create(&call, one).await;
        let (status, federation_relationship) = done(&call, outcome, fields, request.output_mask.as_ref());
        results.push(wire::batch_create_federation_relationship_response::Result {
            status,
            federation_relationship,
        });
    }
    reload(&call, results.iter().any(|r| r.federation_relationship.is_some()));
    Ok(wire::BatchCreateFederationRelationshipResponse { results })
}

async fn create(call: &Call, wire: types::FederationRelationship) -> Result<FederationRelationship, Status> {
    let name = wire.trust_domain.clone();
    let context = Context::trust_domain(&name);
    let relationship = from_wire(wire).map_err(|e| {
        context.fail_with(Code::InvalidArgument, "failed to convert federation relationship", e)
    })?;
    if relationship.trust_domain == *call.api.trust_domain() {
        let text = "unable to create federation relationship for server trust domain";
        return Err(context.fail(Code::InvalidArgument, text));
    }
    let created = call
        .store()
        .federation_create(&relationship)
        .await
        .map_err(|e| context.fail_with(Code::Internal, "failed to create federation relationship", e))?;
    warn_without_bundle(call, &created).await;
    tracing::debug!(trust_domain_id = name, "Federation relationship created");
    Ok(created)
}

async fn batch_update(
    call: Arc<Call>,
    _: AdminCaller,
    request: wire::BatchUpdateFederationRelationshipRequest,
) -> Result<wire::BatchUpdateFederationRelationshipResponse, Status> {
    let mut results = Vec::with_capacity(request.federation_relationships.len());
    for one in request.federation_relationships {
        let fields = audit_fields(&call, &one, request.input_mask.as_ref());
        let outcome = update(&call, one, request.input_mask.as_ref()).await;
        let (status, federation_relationship) = done(&call, outcome, fields, request.output_mask.as_ref());
        results.push(wire::batch_update_federation_relationship_response::Result {
            status,
            federation_relationship,
        });
    }
    reload(&call, results.iter().any(|r| r.federation_relationship.is_some()));
    Ok(wire::BatchUpdateFederationRelationshipResponse { results })
}

async fn update(
    call: &Call,
    wire: types::FederationRelationship,
    mask: Option<&types::FederationRelationshipMask>,
) -> Result<FederationRelationship, Status> {
    let name = wire.trust_domain.clone();
    let context = Context::trust_domain(&name);
    // As in the reference the whole relationship is checked, whatever the mask.
    let relationship = from_wire(wire).map_err(|e| {
        context.fail_with(Code::InvalidArgument, "failed to convert federation relationship", e)
    })?;
    let wants = |field: fn(&types::FederationRelationshipMask) -> bool| mask.is_none_or(field);
    let update = FederationUpdate {
        endpoint_url: wants(|m| m.bundle_endpoint_url).then_some(relationship.endpoint_url),
        endpoint: wants(|m| m.bundle_endpoint_profile).then_some(relationship.endpoint),
        bundle: relationship.bundle.filter(|_| wants(|m| m.trust_domain_bundle)),
    };
    let updated = call.store().federation_update(&relationship.trust_domain, &update).await.map_err(|e| {
        let cause = match e {
            datastore::Error::NotFound => {
                "unable to fetch federation relationship: record not found".to_owned()
            }
            other => other.to_string(),
        };
        context.fail_with(Code::Internal, "failed to update federation relationship", cause)
    })?;
    warn_without_bundle(call, &updated).await;
    tracing::debug!(trust_domain_id = name, "Federation relationship updated");
    Ok(updated)
}

async fn batch_delete(
    call: Arc<Call>,
    _: AdminCaller,
    request: wire::BatchDeleteFederationRelationshipRequest,
) -> Result<wire::BatchDeleteFederationRelationshipResponse, Status> {
    let mut results = Vec::with_capacity(request.trust_domains.len());
    let mut changed = false;
    for name in request.trust_domains {
        let status = match delete(&call, &name).await {
            Ok(()) => {
                changed = true;
                status::ok()
            }
            Err(status) => status::item(&status),
        };
        call.audit.item(&status, || vec![("trust_domain_id".into(), name.clone().into())]);
        // The name alone, where an ID was given.
        let trust_domain = TrustDomain::parse(&name).map(|td| td.name().to_owned()).unwrap_or(name);
        results.push(wire::batch_delete_federation_relationship_response::Result {
            status: Some(status),
            trust_domain,
        });
    }
    reload(&call, changed);
    Ok(wire::BatchDeleteFederationRelationshipResponse { results })
}

async fn delete(call: &Call, name: &str) -> Result<(), Status> {
    if name.is_empty() {
        return Err(fail(Code::InvalidArgument, "missing trust domain"));
    }
    let context = Context::trust_domain(name);
    let trust_domain = parse(name, context)?;
    match call.store().federation_delete(&trust_domain).await {
        Ok(()) => {
            tracing::debug!(trust_domain_id = name, "Federation relationship deleted");
            Ok(())
        }
        Err(datastore::Error::NotFound) => {
            Err(context.fail(Code::NotFound, "federation relationship not found"))
        }
        Err(e) => Err(context.fail_with(Code::Internal, "failed to delete federation relationship", e)),
    }
}

async fn refresh_bundle(
    call: Arc<Call>,
    _: AdminCaller,
    request: wire::RefreshBundleRequest,
) -> Result<(), Status> {
    let trust_domain = parse(&request.trust_domain, Context::default())?;
    let context = Context::trust_domain(trust_domain.name());
    call.audit.add("trust_domain_id", request.trust_domain.clone());
    let Some(refresher) = &call.api.deps.federation else {
        let text = "this server does not fetch bundles of federated trust domains";
        return Err(context.fail(Code::Unimplemented, text));
    };
    let known = refresher
        .refresh(&trust_domain)
        .await
        .map_err(|e| context.fail_with(Code::Internal, "failed to refresh bundle", e))?;
    if !known {
        let text = format!("no relationship with trust domain {}", quoted(trust_domain.name()));
        return Err(context.fail(Code::NotFound, &text));
    }
    tracing::debug!(trust_domain_id = trust_domain.name(), "Bundle refreshed");
    call.audit.success();
    Ok(())
}

fn reload(call: &Call, changed: bool) {
    if changed && let Some(refresher) = &call.api.deps.federation {
        refresher.relationships_changed();
    }
}

fn parse(name: &str, context: Context<'_>) -> Result<TrustDomain, Status> {
    TrustDomain::parse(name)
        .map_err(|e| context.fail_with(Code::InvalidArgument, "failed to parse trust domain", e))
}

fn done(
    call: &Call,
    outcome: Result<FederationRelationship, Status>,
    fields: Fields,
    mask: Option<&types::FederationRelationshipMask>,
) -> (Option<types::Status>, Option<types::FederationRelationship>) {
    let (status, relationship) = match outcome {
        Ok(relationship) => {
            if relationship.bundle.is_some() {
                call.api.deps.live.changes().bundle_changed();
            }
            (status::ok(), Some(to_wire(&relationship, mask)))
        }
        Err(status) => (status::item(&status), None),
    };
    call.audit.item(&status, || fields);
    (Some(status), relationship)
}

/// What the audit log says of a relationship of a request.
fn audit_fields(
    call: &Call,
    wire: &types::FederationRelationship,
    mask: Option<&types::FederationRelationshipMask>,
) -> Fields {
    let mut fields = Fields::new();
    if !call.audit.enabled() {
        return fields;
    }
    let wants = |field: fn(&types::FederationRelationshipMask) -> bool| mask.is_none_or(field);
    if !wire.trust_domain.is_empty() {
        fields.push(("trust_domain_id".into(), wire.trust_domain.clone().into()));
    }
    if wants(|m| m.bundle_endpoint_url) {
        fields.push(("bundle_endpoint_url".into(), wire.bundle_endpoint_url.clone().into()));
    }
    match &wire.bundle_endpoint_profile {
        Some(profile) if wants(|m| m.bundle_endpoint_profile) => match profile {
            BundleEndpointProfile::HttpsWeb(_) => {
                fields.push(("bundle_endpoint_profile".into(), "https_web".into()));
            }
            BundleEndpointProfile::HttpsSpiffe(profile) => fields.extend([
                ("bundle_endpoint_profile".into(), "https_spiffe".into()),
                ("endpoint_spiffe_id".into(), profile.endpoint_spiffe_id.clone().into()),
            ]),
        },
        _ => {}
    }
    if let Some(bundle) = wire.trust_domain_bundle.as_ref().filter(|_| wants(|m| m.trust_domain_bundle)) {
        let named = bundle_fields(bundle, None)
            .into_iter()
            .map(|(name, value)| (format!("bundle_{name}").into(), value));
        fields.extend(named);
    }
    fields
}

/// An endpoint that is authenticated by SPIFFE needs the bundle of its trust domain before anything can be fetched.
async fn warn_without_bundle(call: &Call, relationship: &FederationRelationship) {
    let BundleEndpoint::HttpsSpiffe(id) = &relationship.endpoint else { return };
    if relationship.bundle.is_some() {
        return;
    }
    let trust_domain_id = relationship.trust_domain.name();
    match call.store().bundle_fetch(&id.trust_domain()).await {
        Ok(Some(_)) => {}
        Ok(None) => tracing::warn!(
            trust_domain_id,
            endpoint_spiffe_id = %id,
            "bundle not found for the endpoint SPIFFE ID trust domain"
        ),
        Err(_) => tracing::warn!(
            trust_domain_id,
            endpoint_spiffe_id = %id,
            "failed to check whether a bundle exists for the endpoint SPIFFE ID trust domain"
        ),
    }
}

fn from_wire(wire: types::FederationRelationship) -> Result<FederationRelationship, String> {
    let trust_domain =
        TrustDomain::parse(&wire.trust_domain).map_err(|e| format!("failed to parse trust domain: {e}"))?;
    check_url(&wire.bundle_endpoint_url)?;
    let endpoint = match wire.bundle_endpoint_profile {
        Some(BundleEndpointProfile::HttpsWeb(_)) => BundleEndpoint::HttpsWeb,
        Some(BundleEndpointProfile::HttpsSpiffe(profile)) => BundleEndpoint::HttpsSpiffe(
            SpiffeId::parse(&profile.endpoint_spiffe_id)
                .map_err(|e| format!("failed to parse endpoint SPIFFE ID: {e}"))?,
        ),
        None => return Err("unsupported bundle endpoint profile type: <nil>".to_owned()),
    };
    let bundle = match wire.trust_domain_bundle {
        None => None,
        Some(wire) => {
            let name = wire.trust_domain.clone();
            let bundle = bundle(wire).map_err(|e| format!("failed to parse bundle: {e}"))?;
            if bundle.trust_domain != trust_domain {
                return Err(format!(
                    "trust domain bundle ({}) must match the trust domain of the federation relationship ({})",
                    quoted(&name),
                    quoted(trust_domain.name())
                ));
            }
            Some(bundle)
        }
    };
    Ok(FederationRelationship { trust_domain, endpoint_url: wire.bundle_endpoint_url, endpoint, bundle })
}

fn check_url(text: &str) -> Result<(), String> {
    let Some(rest) = text.strip_prefix("https://") else {
        return Err("bundle endpoint URL must use the https scheme".to_owned());
    };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if authority.is_empty() {
        return Err("bundle endpoint URL must specify the host".to_owned());
    }
    if authority.contains('@') {
        return Err("bundle endpoint URL must not contain user info".to_owned());
    }
    text.parse::<Uri>().map(drop).map_err(|e| format!("failed to parse bundle endpoint URL: {e}"))
}

fn to_wire(
    relationship: &FederationRelationship,
    mask: Option<&types::FederationRelationshipMask>,
) -> types::FederationRelationship {
    let wants = |field: fn(&types::FederationRelationshipMask) -> bool| mask.is_none_or(field);
    let profile = || match &relationship.endpoint {
        BundleEndpoint::HttpsWeb => BundleEndpointProfile::HttpsWeb(types::HttpsWebProfile {}),
        BundleEndpoint::HttpsSpiffe(id) => BundleEndpointProfile::HttpsSpiffe(types::HttpsspiffeProfile {
            endpoint_spiffe_id: id.to_string(),
        }),
    };
    types::FederationRelationship {
        trust_domain: relationship.trust_domain.name().to_owned(),
        bundle_endpoint_url: if wants(|m| m.bundle_endpoint_url) {
            relationship.endpoint_url.clone()
        } else {
            String::new()
        },
        bundle_endpoint_profile: wants(|m| m.bundle_endpoint_profile).then(profile),
        trust_domain_bundle: relationship
            .bundle
            .as_ref()
            .filter(|_| wants(|m| m.trust_domain_bundle))
            .map(|bundle| bundle_to_wire(bundle, None)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoint_urls() {
        assert_eq!(check_url("https://example.org/bundle"), Ok(()));
        for (url, text) in [
            ("http://example.org", "bundle endpoint URL must use the https scheme"),
            ("https:///x", "bundle endpoint URL must specify the host"),
            ("https://me@example.org", "bundle endpoint URL must not contain user info"),
        ] {
            assert_eq!(check_url(url).unwrap_err(), text);
        }
    }
}
