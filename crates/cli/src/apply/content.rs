//! What of an entry or relationship counts: its normal form, what differs between two, and digests that stand for it.

use aws_lc_rs::digest::{Context, SHA256};
use serde_json::{Value, json};
use spire_core::spiffe::TrustDomain;
use spire_wire::api::types;
use spire_wire::api::types::federation_relationship::BundleEndpointProfile;

use crate::pretty::id_text;

/// Half of a SHA-256: two different contents do not meet by chance.
pub(super) type Digest = u128;

/// Brings an entry of a file or of the server into the form in which equal means equal: sets sorted, what says nothing
/// left out, what the server counts itself forgotten. DNS names stay in order, since the first is the common name.
pub(super) fn normalize(entry: &mut types::Entry) {
    entry.selectors.sort_by(|a, b| (&a.r#type, &a.value).cmp(&(&b.r#type, &b.value)));
    entry.selectors.dedup();
    for name in &mut entry.federates_with {
        if let Ok(trust_domain) = TrustDomain::parse(name) {
            trust_domain.name().clone_into(name);
        }
    }
    entry.federates_with.sort_unstable();
    entry.federates_with.dedup();
    entry.additional_attributes = entry.additional_attributes.take().filter(|a| *a != Default::default());
    entry.revision_number = 0;
    entry.created_at = 0;
}

/// What one entry cannot share with another: SPIFFE ID, parent and selectors. The entry must be normal.
pub(super) fn key(entry: &types::Entry) -> Digest {
    let mut hash = Hash::new();
    hash.identity(entry);
    hash.end()
}

/// All of an entry but its own ID. The entry must be normal.
pub(super) fn content(entry: &types::Entry) -> Digest {
    let mut hash = Hash::new();
    hash.identity(entry);
    for number in [
        i64::from(entry.x509_svid_ttl),
        i64::from(entry.jwt_svid_ttl),
        entry.expires_at,
        i64::from(entry.admin),
        i64::from(entry.downstream),
        i64::from(entry.store_svid),
    ] {
        hash.0.update(&number.to_be_bytes());
    }
    hash.texts(entry.federates_with.iter().map(String::as_str));
    hash.texts(entry.dns_names.iter().map(String::as_str));
    hash.text(&entry.hint);
    let attributes = entry.additional_attributes.unwrap_or_default();
    hash.0.update(&[
        u8::from(attributes.disable_x509_svid_prefetch),
        u8::from(attributes.jwt_svid_include_jti),
    ]);
    hash.end()
}

/// A text.
pub(super) fn digest(text: &str) -> Digest {
    let mut hash = Hash::new();
    hash.text(text);
    hash.end()
}

struct Hash(Context);

impl Hash {
    fn new() -> Self {
        Self(Context::new(&SHA256))
    }

    /// Its length goes before it, so that no two rows of texts look alike.
    fn text(&mut self, text: &str) {
        self.0.update(&text.len().to_be_bytes());
        self.0.update(text.as_bytes());
    }

    fn texts<'t>(&mut self, texts: impl ExactSizeIterator<Item = &'t str>) {
        self.0.update(&texts.len().to_be_bytes());
        texts.for_each(|text| self.text(text));
    }

    fn identity(&mut self, entry: &types::Entry) {
        for id in [&entry.spiffe_id, &entry.parent_id] {
            self.text(&id_text(id.as_ref()));
        }
        self.texts(entry.selectors.iter().map(|s| s.r#type.as_str()));
        self.texts(entry.selectors.iter().map(|s| s.value.as_str()));
    }

    fn end(self) -> Digest {
        let digest = self.0.finish();
        let half = digest.as_ref().first_chunk().copied().unwrap_or_default();
        Digest::from_be_bytes(half)
    }
}

/// A field that differs.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Change {
    pub(super) field: &'static str,
    pub(super) from: Value,
    pub(super) to: Value,
}

/// What differs between two normal entries, in the order in which files have the fields.
pub(super) fn entry_changes(from: &types::Entry, to: &types::Entry) -> Vec<Change> {
    differing(entry_fields(from), entry_fields(to))
}

/// What differs between two relationships. Bundles do not count: the server renews them itself.
pub(super) fn relationship_changes(
    from: &types::FederationRelationship,
    to: &types::FederationRelationship,
) -> Vec<Change> {
    differing(relationship_fields(from), relationship_fields(to))
}

fn differing(from: Vec<(&'static str, Value)>, to: Vec<(&'static str, Value)>) -> Vec<Change> {
    let pairs = from.into_iter().zip(to).filter(|(from, to)| from != to);
    pairs.map(|((field, from), (_, to))| Change { field, from, to }).collect()
}

/// The fields of a normal entry by the names that files give them.
pub(super) fn entry_fields(entry: &types::Entry) -> Vec<(&'static str, Value)> {
    let attributes = entry.additional_attributes.unwrap_or_default();
    let selectors: Vec<String> =
        entry.selectors.iter().map(|s| format!("{}:{}", s.r#type, s.value)).collect();
    vec![
        ("spiffe_id", json!(id_text(entry.spiffe_id.as_ref()))),
        ("parent_id", json!(id_text(entry.parent_id.as_ref()))),
        ("selectors", json!(selectors)),
        ("x509_svid_ttl", json!(entry.x509_svid_ttl)),
        ("jwt_svid_ttl", json!(entry.jwt_svid_ttl)),
        ("federates_with", json!(entry.federates_with)),
        ("admin", json!(entry.admin)),
        ("downstream", json!(entry.downstream)),
        ("expires_at", json!(entry.expires_at)),
        ("dns_names", json!(entry.dns_names)),
        ("store_svid", json!(entry.store_svid)),
        ("hint", json!(entry.hint)),
        ("disable_x509_svid_prefetch", json!(attributes.disable_x509_svid_prefetch)),
        ("jwt_svid_include_jti", json!(attributes.jwt_svid_include_jti)),
    ]
}

/// The fields of a relationship, but for its trust domain and bundle.
pub(super) fn relationship_fields(
    relationship: &types::FederationRelationship,
) -> Vec<(&'static str, Value)> {
    let (profile, id) = match &relationship.bundle_endpoint_profile {
        Some(BundleEndpointProfile::HttpsWeb(_)) => ("https_web", ""),
        Some(BundleEndpointProfile::HttpsSpiffe(profile)) => {
            ("https_spiffe", profile.endpoint_spiffe_id.as_str())
        }
        None => ("", ""),
    };
    vec![
        ("bundle_endpoint_url", json!(relationship.bundle_endpoint_url)),
        ("bundle_endpoint_profile", json!(profile)),
        ("endpoint_spiffe_id", json!(id)),
    ]
}
