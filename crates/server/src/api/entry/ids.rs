//! The request of `SyncAuthorizedEntries`, whose IDs come by the thousand and stand in one piece of memory here.

use bytes::{Buf, BufMut};
use prost::encoding::{DecodeContext, WireType, message, skip_field, string};
use prost::{DecodeError, Message};
use spire_wire::api::types;

/// `spire.api.server.entry.v1.SyncAuthorizedEntriesRequest`, with its field numbers.
#[derive(Debug, Default)]
pub(super) struct SyncRequest {
    /// Only in the first request.
    pub(super) output_mask: Option<types::EntryMask>,
    /// Entries whose revision the agent lacks; none in the first request.
    pub(super) ids: Ids,
}

/// Texts one after the other, and where each ends.
#[derive(Debug, Default)]
pub(super) struct Ids {
    text: String,
    ends: Vec<usize>,
}

impl Ids {
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &str> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, end)| &self.text[start..*end])
    }

    fn read(
        &mut self,
        wire_type: WireType,
        buffer: &mut impl Buf,
        context: DecodeContext,
    ) -> Result<(), DecodeError> {
        let taken = match wire_type {
            WireType::LengthDelimited => self.take(buffer.chunk()),
            _ => None,
        };
        match taken {
            Some(taken) => buffer.advance(taken),
            None => {
                let mut id = String::new();
                string::merge(wire_type, &mut id, buffer, context)?;
                self.text.push_str(&id);
            }
        }
        self.ends.push(self.text.len());
        Ok(())
    }

    /// Takes an ID of less than 128 octets that stands in one piece, as UUIDs do; returns how long it is with its length.
    fn take(&mut self, piece: &[u8]) -> Option<usize> {
        let (&len, rest) = piece.split_first()?;
        let id = if len < 128 { rest.get(..usize::from(len))? } else { return None };
        self.text.push_str(std::str::from_utf8(id).ok()?);
        Some(1 + id.len())
    }
}

impl Message for SyncRequest {
    fn encode_raw(&self, buffer: &mut impl BufMut) {
        if let Some(mask) = &self.output_mask {
            message::encode(1, mask, buffer);
        }
        for id in self.ids.iter() {
            string::encode(2, &id.to_owned(), buffer);
        }
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buffer: &mut impl Buf,
        context: DecodeContext,
    ) -> Result<(), DecodeError> {
        let named = |mut error: DecodeError, field| {
            error.push("SyncAuthorizedEntriesRequest", field);
            error
        };
        match tag {
            1 => message::merge(wire_type, self.output_mask.get_or_insert_default(), buffer, context)
                .map_err(|error| named(error, "output_mask")),
            2 => self.ids.read(wire_type, buffer, context).map_err(|error| named(error, "ids")),
            _ => skip_field(wire_type, tag, buffer, context),
        }
    }

    fn encoded_len(&self) -> usize {
        let mask = self.output_mask.as_ref().map_or(0, |mask| message::encoded_len(1, mask));
        mask + self.ids.iter().map(|id| string::encoded_len(2, &id.to_owned())).sum::<usize>()
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use spire_wire::api::server::entry::v1::SyncAuthorizedEntriesRequest;

    use super::*;

    proptest! {
        #[test]
        fn it_is_the_generated_message(
            mask in prop::option::of(any::<bool>()),
            ids in prop::collection::vec(".{0,40}", 0..30),
        ) {
            let output_mask = mask.map(|hint| types::EntryMask { hint, ..types::EntryMask::default() });
            let generated = SyncAuthorizedEntriesRequest { output_mask, ids: ids.clone() };
            let ours = SyncRequest::decode(&*generated.encode_to_vec()).unwrap();
            prop_assert_eq!(ours.ids.iter().collect::<Vec<_>>(), ids.iter().collect::<Vec<_>>());
            prop_assert_eq!((ours.ids.len(), ours.ids.is_empty()), (ids.len(), ids.is_empty()));
            prop_assert_eq!(&ours.output_mask, &output_mask);
            prop_assert_eq!(ours.encode_to_vec(), generated.encode_to_vec());
        }

        #[test]
        fn what_is_none_is_refused_alike(octets in prop::collection::vec(any::<u8>(), 0..40)) {
            let generated = SyncAuthorizedEntriesRequest::decode(&*octets).map_err(|error| error.to_string());
            let ours = SyncRequest::decode(&*octets).map_err(|error| error.to_string());
            prop_assert_eq!(ours.as_ref().err(), generated.as_ref().err());
        }
    }
}
