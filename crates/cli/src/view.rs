//! Messages as JSON, as `-output json` of the reference prints them (pkg/common/cliprinter/internal/protojson): names of
//! the .proto files, unset fields present, 64-bit integers as texts, enums by name, absent messages left out, keys in
//! alphabetical order, one line, and Go's escapes.

use std::collections::BTreeMap;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use prost_types::value::Kind;
use serde_json::Value;
use spire_wire::api::agent::debug::v1 as agent_debug;
use spire_wire::api::server::agent::v1 as agents;
use spire_wire::api::server::bundle::v1 as bundles;
use spire_wire::api::server::debug::v1 as server_debug;
use spire_wire::api::server::entry::v1 as entries;
use spire_wire::api::server::localauthority::v1 as authorities;
use spire_wire::api::server::svid::v1 as svids;
use spire_wire::api::server::trustdomain::v1 as trust_domains;
use spire_wire::api::types;
use spire_wire::workload;

/// What can be shown as JSON.
pub(crate) trait View {
    /// As JSON; null for an absent message, which its owner leaves out.
    fn view(&self) -> Value;
}

/// One line with its newline. Go escapes what could end a script element.
pub(crate) fn line(value: &Value) -> String {
    format!("{}\n", escaped(value.to_string()))
}

/// Go's escapes in JSON (encoding/json, HTMLEscape). These characters stand in texts only.
pub(crate) fn escaped(json: String) -> String {
    if !json.contains(['<', '>', '&', '\u{2028}', '\u{2029}']) {
        return json;
    }
    json.replace('<', "\\u003c")
        .replace('>', "\\u003e")
        .replace('&', "\\u0026")
        .replace('\u{2028}', "\\u2028")
        .replace('\u{2029}', "\\u2029")
}

/// An object of these members without those that are null. Its keys are in alphabetical order.
pub(crate) fn object<const N: usize>(members: [(&str, Value); N]) -> Value {
    let sorted: BTreeMap<_, _> = members.into_iter().filter(|(_, value)| !value.is_null()).collect();
    Value::Object(sorted.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}

impl View for String {
    fn view(&self) -> Value {
        Value::String(self.clone())
    }
}

impl View for bool {
    fn view(&self) -> Value {
        Value::Bool(*self)
    }
}

impl View for i32 {
    fn view(&self) -> Value {
        Value::from(*self)
    }
}

impl View for i64 {
    fn view(&self) -> Value {
        Value::String(self.to_string())
    }
}

impl View for u64 {
    fn view(&self) -> Value {
        Value::String(self.to_string())
    }
}

impl View for Bytes {
    fn view(&self) -> Value {
        Value::String(BASE64_STANDARD.encode(self))
    }
}

/// `google.protobuf.Empty`.
impl View for () {
    fn view(&self) -> Value {
        object([])
    }
}

impl<V: View> View for Vec<V> {
    fn view(&self) -> Value {
        self.iter().map(View::view).filter(|value| !value.is_null()).collect()
    }
}

impl<V: View> View for Option<V> {
    fn view(&self) -> Value {
        self.as_ref().map_or(Value::Null, View::view)
    }
}

impl<V: View> View for BTreeMap<String, V> {
    fn view(&self) -> Value {
        Value::Object(self.iter().map(|(name, value)| (name.clone(), value.view())).collect())
    }
}

impl View for prost_types::Struct {
    fn view(&self) -> Value {
        without_nulls(structure(self))
    }
}

/// A free-form structure as it is.
pub(crate) fn structure(of: &prost_types::Struct) -> Value {
    Value::Object(of.fields.iter().map(|(name, value)| (name.clone(), plain(value))).collect())
}

fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(members) => {
            let members = members.into_iter().filter(|(_, value)| !value.is_null());
            Value::Object(members.map(|(name, value)| (name, without_nulls(value))).collect())
        }
        Value::Array(items) => {
            items.into_iter().filter(|value| !value.is_null()).map(without_nulls).collect()
        }
        other => other,
    }
}

fn plain(value: &prost_types::Value) -> Value {
    match &value.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::BoolValue(b)) => Value::Bool(*b),
        Some(Kind::StringValue(s)) => Value::String(s.clone()),
        Some(Kind::NumberValue(n)) => number(*n),
        Some(Kind::StructValue(s)) => structure(s),
        Some(Kind::ListValue(list)) => list.values.iter().map(plain).collect(),
    }
}

/// Whole numbers without a decimal point, as Go prints them below 1e21.
#[allow(clippy::cast_possible_truncation, reason = "within the range that was checked")]
fn number(n: f64) -> Value {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if n.fract() == 0.0 && n.abs() <= EXACT { Value::from(n as i64) } else { Value::from(n) }
}

macro_rules! views {
    ($($message:ty { $($field:ident $(as $name:literal)?),* $(,)? })*) => {$(
        impl View for $message {
            fn view(&self) -> Value {
                object([$((name!($field $($name)?), self.$field.view())),*])
            }
        }
    )*};
}

macro_rules! name {
    ($field:ident $name:literal) => {
        $name
    };
    ($field:ident) => {
        stringify!($field)
    };
}

views! {
    types::Spiffeid { trust_domain, path }
    types::Selector { r#type as "type", value }
    types::Status { code, message }
    types::entry::AdditionalAttributes { disable_x509_svid_prefetch, jwt_svid_include_jti }
    types::Entry {
        id, spiffe_id, parent_id, selectors, x509_svid_ttl, federates_with, admin, downstream, expires_at, dns_names,
        revision_number, store_svid, jwt_svid_ttl, hint, created_at, additional_attributes,
    }
    types::Agent {
        id, attestation_type, x509svid_serial_number, x509svid_expires_at, selectors, banned, can_reattest, agent_version,
    }
    types::X509Certificate { asn1, tainted }
    types::JwtKey { public_key, key_id, expires_at, tainted }
    types::WitKey { public_key, key_id, expires_at, tainted }
    types::Bundle {
        trust_domain, x509_authorities, jwt_authorities, refresh_hint, sequence_number, wit_authorities,
    }
    types::JoinToken { value, expires_at }
    types::Jwtsvid { token, id, expires_at, issued_at, hint }
    types::HttpsWebProfile {}
    types::HttpsspiffeProfile { endpoint_spiffe_id }

    agents::CountAgentsResponse { count }
    agents::ListAgentsResponse { agents, next_page_token }
    bundles::CountBundlesResponse { count }
    bundles::ListFederatedBundlesResponse { bundles, next_page_token }
    bundles::BatchSetFederatedBundleResponse { results }
    bundles::batch_set_federated_bundle_response::Result { status, bundle }
    bundles::BatchDeleteFederatedBundleResponse { results }
    bundles::batch_delete_federated_bundle_response::Result { status, trust_domain }
    entries::CountEntriesResponse { count }
    entries::ListEntriesResponse { entries, next_page_token }
    entries::BatchCreateEntryResponse { results }
    entries::batch_create_entry_response::Result { status, entry }
    entries::BatchUpdateEntryResponse { results }
    entries::batch_update_entry_response::Result { status, entry }
    entries::BatchDeleteEntryResponse { results }
    entries::batch_delete_entry_response::Result { status, id }
    svids::MintJwtsvidResponse { svid }

    trust_domains::ListFederationRelationshipsResponse { federation_relationships, next_page_token }
    trust_domains::BatchCreateFederationRelationshipResponse { results }
    trust_domains::batch_create_federation_relationship_response::Result { status, federation_relationship }
    trust_domains::BatchUpdateFederationRelationshipResponse { results }
    trust_domains::batch_update_federation_relationship_response::Result { status, federation_relationship }
    trust_domains::BatchDeleteFederationRelationshipResponse { results }
    trust_domains::batch_delete_federation_relationship_response::Result { status, trust_domain }

    authorities::AuthorityState { authority_id, expires_at, upstream_authority_subject_key_id }
    authorities::GetX509AuthorityStateResponse { active, prepared, old }
    authorities::PrepareX509AuthorityResponse { prepared_authority }
    authorities::ActivateX509AuthorityResponse { activated_authority }
    authorities::TaintX509AuthorityResponse { tainted_authority }
    authorities::RevokeX509AuthorityResponse { revoked_authority }
    authorities::GetJwtAuthorityStateResponse { active, prepared, old }
    authorities::PrepareJwtAuthorityResponse { prepared_authority }
    authorities::ActivateJwtAuthorityResponse { activated_authority }
    authorities::TaintJwtAuthorityResponse { tainted_authority }
    authorities::RevokeJwtAuthorityResponse { revoked_authority }
    authorities::TaintX509UpstreamAuthorityResponse { upstream_authority_subject_key_id }
    authorities::RevokeX509UpstreamAuthorityResponse { upstream_authority_subject_key_id }

    server_debug::get_info_response::Cert { id, expires_at, subject }
    server_debug::GetInfoResponse { svid_chain, uptime, agents_count, federated_bundles_count, entries_count }
    agent_debug::get_info_response::Cert { id, expires_at, subject }

    workload::X509svidResponse { svids, crl, federated_bundles }
    workload::X509svid { spiffe_id, x509_svid, x509_svid_key, bundle, hint }
    workload::JwtsvidResponse { svids }
    workload::Jwtsvid { spiffe_id, svid, hint }
    workload::JwtBundlesResponse { bundles }
    workload::ValidateJwtsvidResponse { spiffe_id, claims }
}

impl View for agent_debug::GetInfoResponse {
    fn view(&self) -> Value {
        #[allow(deprecated, reason = "the reference prints this field still")]
        let svids = self.svids_count;
        object([
            ("svid_chain", self.svid_chain.view()),
            ("uptime", self.uptime.view()),
            ("svids_count", svids.view()),
            ("last_sync_success", self.last_sync_success.view()),
            ("cached_x509_svids_count", self.cached_x509_svids_count.view()),
            ("cached_jwt_svids_count", self.cached_jwt_svids_count.view()),
            ("cached_svidstore_x509_svids_count", self.cached_svidstore_x509_svids_count.view()),
        ])
    }
}

impl View for types::Logger {
    fn view(&self) -> Value {
        let level = |level: i32| {
            types::LogLevel::try_from(level)
                .map_or(Value::from(level), |known| Value::from(known.as_str_name()))
        };
        object([("current_level", level(self.current_level)), ("launch_level", level(self.launch_level))])
    }
}

impl View for types::FederationRelationship {
    fn view(&self) -> Value {
        use types::federation_relationship::BundleEndpointProfile::{HttpsSpiffe, HttpsWeb};
        let (web, spiffe) = match &self.bundle_endpoint_profile {
            Some(HttpsWeb(profile)) => (profile.view(), Value::Null),
            Some(HttpsSpiffe(profile)) => (Value::Null, profile.view()),
            None => (Value::Null, Value::Null),
        };
        object([
            ("trust_domain", self.trust_domain.view()),
            ("bundle_endpoint_url", self.bundle_endpoint_url.view()),
            ("https_web", web),
            ("https_spiffe", spiffe),
            ("trust_domain_bundle", self.trust_domain_bundle.view()),
        ])
    }
}
