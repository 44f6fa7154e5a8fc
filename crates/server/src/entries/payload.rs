//! The encoded form of an entry that the view keeps.

use prost::Message;
use spire_core::model::Entry;
use spire_core::spiffe::{Selectors, SpiffeId};
use spire_wire::api::types;

/// An entry encoded once as `spire.api.types.Entry`.
///
/// Fields of a protobuf message may come in any order, so the id and the fields that agents ask for come first and the
/// others after them: the answer to an agent is a prefix, the answer without a mask the whole, and neither is encoded
/// again. A boxed slice and not `Bytes`: the record that holds it is shared already.
#[derive(Clone, PartialEq, Eq)]
pub struct Payload {
    encoded: Box<[u8]>,
    agent_len: u32,
}

impl Payload {
    /// Encodes an entry.
    pub fn new(entry: &Entry) -> Self {
        let mut whole = entry_to_wire(entry);
        let rest = types::Entry {
            parent_id: whole.parent_id.take(),
            x509_svid_ttl: std::mem::take(&mut whole.x509_svid_ttl),
            expires_at: std::mem::take(&mut whole.expires_at),
            dns_names: std::mem::take(&mut whole.dns_names),
            jwt_svid_ttl: std::mem::take(&mut whole.jwt_svid_ttl),
            ..types::Entry::default()
        };
        let agent_len = whole.encoded_len();
        let mut encoded = Vec::with_capacity(agent_len + rest.encoded_len());
        // Appending to a vector cannot run out of space.
        let _ = whole.encode(&mut encoded);
        let _ = rest.encode(&mut encoded);
        Self { encoded: encoded.into_boxed_slice(), agent_len: u32::try_from(agent_len).unwrap_or(u32::MAX) }
    }

    /// What an agent's mask asks for, encoded.
    pub fn for_agent(&self) -> &[u8] {
        self.encoded.get(..usize::try_from(self.agent_len).unwrap_or(usize::MAX)).unwrap_or(&self.encoded)
    }

    /// All fields, encoded.
    pub fn whole(&self) -> &[u8] {
        &self.encoded
    }

    /// All fields.
    pub fn decode(&self) -> types::Entry {
        // We encoded it ourselves.
        types::Entry::decode(self.whole()).unwrap_or_default()
    }

    /// What signing needs; the rest is skipped and not allocated.
    pub fn signing_fields(&self) -> SigningFields {
        SigningFields::decode(self.whole()).unwrap_or_default()
    }
}

impl std::fmt::Debug for Payload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Payload({} bytes)", self.encoded.len())
    }
}

/// The fields of an entry that go into what is signed; a subset of `spire.api.types.Entry` with its field numbers.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct SigningFields {
    /// Lifetime of X.509-SVIDs in seconds; 0 is the default.
    #[prost(int32, tag = "5")]
    pub x509_svid_ttl: i32,
    /// DNS names in order.
    #[prost(string, repeated, tag = "10")]
    pub dns_names: Vec<String>,
    /// Lifetime of JWT-SVIDs in seconds; 0 is the default.
    #[prost(int32, tag = "13")]
    pub jwt_svid_ttl: i32,
    /// Tunables.
    #[prost(message, optional, tag = "16")]
    pub attributes: Option<types::entry::AdditionalAttributes>,
}

impl SigningFields {
    /// Whether each JWT-SVID gets a `jti`.
    pub fn include_jti(&self) -> bool {
        self.attributes.as_ref().is_some_and(|a| a.jwt_svid_include_jti)
    }
}

/// Whether the mask is the one of SPIRE's agent and ours (pkg/agent/client/client.go), to which
/// [`Payload::for_agent`] is the answer.
pub fn is_agent_mask(mask: &types::EntryMask) -> bool {
    *mask
        == types::EntryMask {
            spiffe_id: true,
            parent_id: false,
            selectors: true,
            x509_svid_ttl: false,
            federates_with: true,
            admin: true,
            downstream: true,
            expires_at: false,
            dns_names: false,
            revision_number: true,
            store_svid: true,
            jwt_svid_ttl: false,
            hint: true,
            created_at: true,
            additional_attributes: true,
        }
}

/// The wire form of an entry, all fields.
pub fn entry_to_wire(entry: &Entry) -> types::Entry {
    types::Entry {
        id: entry.id.to_string(),
        spiffe_id: Some(id_to_wire(&entry.spiffe_id)),
        parent_id: Some(id_to_wire(&entry.parent_id)),
        selectors: selectors_to_wire(&entry.selectors),
        x509_svid_ttl: entry.x509_svid_ttl,
        federates_with: entry.federates_with.iter().map(|td| td.name().to_owned()).collect(),
        admin: entry.admin,
        downstream: entry.downstream,
        expires_at: entry.expires_at.unix(),
        dns_names: entry.dns_names.iter().map(|name| String::from(&**name)).collect(),
        revision_number: entry.revision,
        store_svid: entry.store_svid,
        jwt_svid_ttl: entry.jwt_svid_ttl,
        hint: entry.hint.to_string(),
        created_at: entry.created_at.unix(),
        additional_attributes: entry.attributes.as_ref().map(|a| types::entry::AdditionalAttributes {
            disable_x509_svid_prefetch: a.disable_x509_svid_prefetch,
            jwt_svid_include_jti: a.jwt_svid_include_jti,
        }),
    }
}

/// The wire form of an ID.
pub(crate) fn id_to_wire(id: &SpiffeId) -> types::Spiffeid {
    types::Spiffeid { trust_domain: id.trust_domain_name().to_owned(), path: id.path().to_owned() }
}

/// The wire form of selectors, in order.
pub(crate) fn selectors_to_wire(selectors: &Selectors) -> Vec<types::Selector> {
    selectors
        .iter()
        .map(|s| types::Selector { r#type: s.kind().to_owned(), value: s.value().to_owned() })
        .collect()
}
