//! The encoded form of an entry that the view keeps.

use bytes::BufMut;
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, int64, key_len};
use spire_core::model::Entry;
use spire_core::spiffe::{Selectors, SpiffeId};
use spire_wire::api::types;
use tonic::codec::EncodeBuf;

use super::ViewRecord;

/// What is left of an entry, encoded once as `spire.api.types.Entry`, when the fields that its record has anyway (id,
/// SPIFFE ID, revision, creation time) are taken out.
///
/// Fields of a protobuf message may come in any order. So an answer is those fields, written from the record, and then the
/// encoded rest, in which what agents ask for comes first and all else after it: the answer to an agent is a prefix, the
/// answer without a mask the whole, and nothing is encoded twice. A boxed slice and not `Bytes`: the record that holds it
/// is shared already.
#[derive(Clone, PartialEq, Eq)]
pub struct Payload {
    encoded: Box<[u8]>,
    agent_len: u32,
    /// How long the fields are that were taken out: an answer's length is known without a look at them.
    record_len: u32,
}

impl Payload {
    /// Encodes an entry.
    pub fn new(entry: &Entry) -> Self {
        let mut for_agent = types::Entry {
            id: String::new(),
            spiffe_id: None,
            revision_number: 0,
            created_at: 0,
            ..entry_to_wire(entry)
        };
        let rest = types::Entry {
            parent_id: for_agent.parent_id.take(),
            x509_svid_ttl: std::mem::take(&mut for_agent.x509_svid_ttl),
            expires_at: std::mem::take(&mut for_agent.expires_at),
            dns_names: std::mem::take(&mut for_agent.dns_names),
            jwt_svid_ttl: std::mem::take(&mut for_agent.jwt_svid_ttl),
            ..types::Entry::default()
        };
        let agent_len = for_agent.encoded_len();
        let mut encoded = Vec::with_capacity(agent_len + rest.encoded_len());
        // Appending to a vector cannot run out of space.
        let _ = for_agent.encode(&mut encoded);
        let _ = rest.encode(&mut encoded);
        let short = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
        Self {
            encoded: encoded.into_boxed_slice(),
            agent_len: short(agent_len),
            record_len: short(record_len(entry)),
        }
    }

    /// The record's entry, all fields.
    pub fn decode(record: &ViewRecord) -> types::Entry {
        let mut whole = Vec::with_capacity(record.payload.encoded.len() + 256);
        Answer::Whole.write(record, &mut whole);
        // We encoded it ourselves.
        types::Entry::decode(&*whole).unwrap_or_default()
    }

    /// What signing needs; the rest is skipped and not allocated.
    pub fn signing_fields(&self) -> SigningFields {
        SigningFields::decode(&*self.encoded).unwrap_or_default()
    }
}

/// What of an entry an answer shows, without anything being encoded again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// All fields.
    Whole,
    /// What an agent's mask asks for.
    ForAgent,
}

impl Answer {
    /// How long the encoded entry is.
    pub fn len(self, record: &ViewRecord) -> usize {
        long(record.payload.record_len) + self.rest(&record.payload).len()
    }

    /// Appends the encoded entry, [`Answer::len`] bytes.
    pub(crate) fn write(self, record: &ViewRecord, buffer: &mut impl Sink) {
        let identity = &record.spiffe_id;
        put_text(1, record.id.as_bytes(), buffer);
        put_head(2, identity_len(identity), buffer);
        put_text(1, identity.trust_domain_name().as_bytes(), buffer);
        put_text(2, identity.path().as_bytes(), buffer);
        put_number(11, record.revision, buffer);
        put_number(15, record.created_at.unix(), buffer);
        buffer.put_slice(self.rest(&record.payload));
    }

    fn rest(self, payload: &Payload) -> &[u8] {
        match self {
            Self::Whole => &payload.encoded,
            Self::ForAgent => payload.encoded.get(..long(payload.agent_len)).unwrap_or(&payload.encoded),
        }
    }
}

/// Where messages are written. To copy a few octets whose number the compiler does not know costs a call of the C library, which
/// is more than all else that is done for a field.
pub(crate) trait Sink: BufMut {
    /// Appends the first `len` of these octets.
    fn put_start<const N: usize>(&mut self, octets: &[u8; N], len: usize) {
        self.put_slice(&octets[..len]);
    }
}

impl Sink for Vec<u8> {
    fn put_start<const N: usize>(&mut self, octets: &[u8; N], len: usize) {
        let end = self.len() + len;
        self.extend_from_slice(octets);
        self.truncate(end);
    }
}

impl Sink for EncodeBuf<'_> {}

/// Most IDs are UUIDs.
const UUID_LEN: usize = 36;

fn long(len: u32) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX)
}

/// How long the encoded fields are that a record has itself.
fn record_len(entry: &Entry) -> usize {
    text_len(1, entry.id.as_bytes())
        + key_len(2)
        + delimited_len(identity_len(&entry.spiffe_id))
        + number_len(11, entry.revision)
        + number_len(15, entry.created_at.unix())
}

fn identity_len(id: &SpiffeId) -> usize {
    text_len(1, id.trust_domain_name().as_bytes()) + text_len(2, id.path().as_bytes())
}

fn delimited_len(len: usize) -> usize {
    encoded_len_varint(len as u64) + len
}

/// Absent where it is the default, as protobuf has it.
pub(crate) fn text_len(tag: u32, text: &[u8]) -> usize {
    if text.is_empty() { 0 } else { key_len(tag) + delimited_len(text.len()) }
}

pub(crate) fn put_text(tag: u32, text: &[u8], buffer: &mut impl Sink) {
    if text.is_empty() {
        return;
    }
    put_head(tag, text.len(), buffer);
    match <&[u8; UUID_LEN]>::try_from(text) {
        Ok(uuid) => buffer.put_slice(uuid),
        Err(_) => buffer.put_slice(text),
    }
}

/// What stands before a field of this length.
pub(crate) fn put_head(tag: u32, len: usize, buffer: &mut impl Sink) {
    let key = tag << 3 | WireType::LengthDelimited as u32;
    match (u8::try_from(key), u16::try_from(len)) {
        // Nearly all keys are one octet, and lengths one or two.
        (Ok(key @ ..128), Ok(len @ ..128)) => buffer.put_slice(&[key, len.to_le_bytes()[0]]),
        (Ok(key @ ..128), Ok(len @ ..16_384)) => {
            let [low, high] = (len << 1).to_le_bytes();
            buffer.put_slice(&[key, low >> 1 | 0x80, high]);
        }
        _ => {
            encode_key(tag, WireType::LengthDelimited, buffer);
            encode_varint(len as u64, buffer);
        }
    }
}

pub(crate) fn number_len(tag: u32, number: i64) -> usize {
    if number == 0 { 0 } else { int64::encoded_len(tag, &number) }
}

pub(crate) fn put_number(tag: u32, number: i64, buffer: &mut impl Sink) {
    if number == 0 {
        return;
    }
    let (Ok(tag @ ..16), Some((octets, len))) = (u8::try_from(tag), varint(number.cast_unsigned())) else {
        return int64::encode(tag, &number, buffer);
    };
    // In one piece: the buffer checks its room once.
    let [a, b, c, d, e, f, g, h] = octets;
    let key = tag << 3 | WireType::Varint as u8;
    buffer.put_start(&[key, a, b, c, d, e, f, g, h], 1 + len);
}

/// A number of at most 56 bits as a varint: its octets, and how many there are. Without a loop, which would take a branch for
/// each of them.
fn varint(number: u64) -> Option<([u8; 8], usize)> {
    if number >> 56 != 0 {
        return None;
    }
    // Seven bits an octet: halves, quarters and eighths are moved apart.
    let spread = number & 0x0fff_ffff | (number & 0x00ff_ffff_f000_0000) << 4;
    let spread = spread & 0x0000_3fff_0000_3fff | (spread & 0x0fff_c000_0fff_c000) << 2;
    let spread = spread & 0x007f_007f_007f_007f | (spread & 0x3f80_3f80_3f80_3f80) << 1;
    let last = (spread | 1).ilog2() / 8;
    let more = 0x8080_8080_8080_8080 & ((1 << (8 * last)) - 1);
    Some(((spread | more).to_le_bytes(), usize::try_from(last + 1).unwrap_or(8)))
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
/// [`Answer::ForAgent`] is the answer.
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lengths() -> impl Strategy<Value = usize> {
        prop_oneof![0..300_usize, 16_000..17_000_usize, any::<usize>()]
    }

    proptest! {
        #[test]
        fn heads_are_those_of_the_library(tag in 1..3_000_u32, len in lengths()) {
            let (mut ours, mut theirs) = (Vec::new(), Vec::new());
            put_head(tag, len, &mut ours);
            encode_key(tag, WireType::LengthDelimited, &mut theirs);
            encode_varint(len as u64, &mut theirs);
            prop_assert_eq!(ours, theirs);
        }

        #[test]
        fn numbers_are_those_of_the_library(tag in 1..40_u32, number: i64, shift in 0..64) {
            let number = number >> shift;
            let (mut ours, mut theirs) = (Vec::new(), Vec::new());
            put_number(tag, number, &mut ours);
            if number != 0 {
                int64::encode(tag, &number, &mut theirs);
            }
            prop_assert_eq!(ours.len(), number_len(tag, number));
            prop_assert_eq!(ours, theirs);
        }
    }
}
