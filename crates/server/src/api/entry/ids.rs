//! The request of `SyncAuthorizedEntries`, whose IDs come by the thousand and stay in the message that they came in.

use std::ops::Range;

use bytes::{Buf, Bytes};
use prost::DecodeError;
use prost::encoding::{DecodeContext, WireType, decode_key, message, skip_field, string};
use spire_wire::api::types;
use tonic::Status;
use tonic::codec::DecodeBuf;

use crate::api::route::{Asked, malformed};

/// About how long the field of an ID is: a UUID and two octets.
const FIELD_LEN: usize = 38;

/// `spire.api.server.entry.v1.SyncAuthorizedEntriesRequest`, with its field numbers.
#[derive(Debug, Default)]
pub(super) struct SyncRequest {
    /// Only in the first request.
    pub(super) output_mask: Option<types::EntryMask>,
    /// Entries whose revision the agent lacks; none in the first request.
    pub(super) ids: Ids,
}

/// Texts in a message.
#[derive(Debug, Default)]
pub(super) struct Ids {
    message: Bytes,
    places: Vec<Range<usize>>,
}

impl Ids {
    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// The octets of each.
    pub(super) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.places.iter().map(|place| &self.message[place.clone()])
    }
}

impl SyncRequest {
    fn decode(octets: Bytes) -> Result<Self, DecodeError> {
        let mut request = Self::default();
        let mut places = Vec::with_capacity(octets.len() / FIELD_LEN);
        let mut rest = &*octets;
        while !rest.is_empty() {
            let (tag, wire_type) = decode_key(&mut rest)?;
            let context = DecodeContext::default();
            match tag {
                1 => {
                    message::merge(wire_type, request.output_mask.get_or_insert_default(), &mut rest, context)
                        .map_err(|error| named(error, "output_mask"))?
                }
                2 => {
                    let place = take(wire_type, &mut rest, octets.len());
                    places.push(place.map_err(|error| named(error, "ids"))?);
                }
                _ => skip_field(wire_type, tag, &mut rest, context)?,
            }
        }
        request.ids = Ids { message: octets, places };
        Ok(request)
    }
}

impl Asked for SyncRequest {
    fn read(buffer: &mut DecodeBuf<'_>) -> Result<Self, Status> {
        let length = buffer.remaining();
        Self::decode(buffer.copy_to_bytes(length)).map_err(|error| malformed(&error, length))
    }
}

fn named(mut error: DecodeError, field: &'static str) -> DecodeError {
    error.push("SyncAuthorizedEntriesRequest", field);
    error
}

/// Takes an ID, and returns where it stands in the message of `whole` octets that `rest` is the end of.
fn take(wire_type: WireType, rest: &mut &[u8], whole: usize) -> Result<Range<usize>, DecodeError> {
    let len = match short(rest) {
        Some(id) if wire_type == WireType::LengthDelimited => {
            *rest = &rest[1 + id.len()..];
            id.len()
        }
        _ => {
            // prost says what is wrong, or how long it is.
            let mut id = String::new();
            string::merge(wire_type, &mut id, rest, DecodeContext::default())?;
            id.len()
        }
    };
    let end = whole - rest.len();
    Ok(end - len..end)
}

/// A text of less than 128 octets, as UUIDs are, behind its length.
fn short(rest: &[u8]) -> Option<&[u8]> {
    let (&len, rest) = rest.split_first()?;
    let id = if len < 128 { rest.get(..usize::from(len))? } else { return None };
    std::str::from_utf8(id).ok().map(str::as_bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message as _;
    use spire_wire::api::server::entry::v1::SyncAuthorizedEntriesRequest;

    use super::*;

    proptest! {
        #[test]
        fn it_is_the_generated_message(
            mask in prop::option::of(any::<bool>()),
            ids in prop::collection::vec(".{0,200}", 0..30),
        ) {
            let output_mask = mask.map(|hint| types::EntryMask { hint, ..types::EntryMask::default() });
            let generated = SyncAuthorizedEntriesRequest { output_mask, ids: ids.clone() };
            let ours = SyncRequest::decode(generated.encode_to_vec().into()).unwrap();
            prop_assert_eq!(ours.ids.iter().collect::<Vec<_>>(), ids.iter().map(String::as_bytes).collect::<Vec<_>>());
            prop_assert_eq!((ours.ids.len(), ours.ids.is_empty()), (ids.len(), ids.is_empty()));
            prop_assert_eq!(&ours.output_mask, &output_mask);
        }

        #[test]
        fn what_is_none_is_refused_alike(octets in prop::collection::vec(any::<u8>(), 0..40)) {
            let generated = SyncAuthorizedEntriesRequest::decode(&*octets).map_err(|error| error.to_string());
            let ours = SyncRequest::decode(octets.into()).map_err(|error| error.to_string());
            prop_assert_eq!(ours.as_ref().err(), generated.as_ref().err());
        }
    }
}
