//! HPACK (RFC 7541), decoding with a dynamic table and encoding without one.
//!
//! Only `authority` uses it: a connection whose `:authority` the HTTP/2 library refuses has its header
//! blocks decoded here and written again as plain literals, so the library's own table stays empty and
//! the two sides cannot drift apart. The first block of any other is spelt out: the same fields in the same
//! representations, so that the library's table becomes what it would, without Huffman coding.

mod huffman;
mod statics;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use bytes::{BufMut, Bytes, BytesMut};

#[cfg(test)]
pub(crate) use self::huffman::encode as encode_huffman;

/// Size of the dynamic table that both sides start with, in octets (RFC 7541 section 4.2, RFC 9113 6.5.2).
///
/// The server never announces another `SETTINGS_HEADER_TABLE_SIZE`, so it is the largest a peer may ask for.
const TABLE_SIZE_MAX: usize = 4096;

/// What an entry costs beyond its text (RFC 7541 section 4.1).
const ENTRY_OVERHEAD: usize = 32;

/// Why a header block could not be decoded. All are connection errors (RFC 9113 section 4.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HpackError {
    #[error("header block ends inside a field")]
    Truncated,
    #[error("integer in a header block is too large")]
    IntegerOverflow,
    #[error("header field index {0} is not in the table")]
    BadIndex(usize),
    #[error("Huffman-coded text is malformed")]
    BadHuffman,
    #[error("dynamic table size {0} exceeds the announced limit")]
    TableSize(usize),
    #[error("dynamic table size update after a header field")]
    LateTableSize,
    #[error("header list exceeds {0} octets")]
    ListTooLarge(usize),
}

/// One header field as it came off the wire; nothing about its characters is checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Field {
    pub(crate) name: Bytes,
    pub(crate) value: Bytes,
    /// The peer asked that no table ever holds this field (RFC 7541 section 6.2.3).
    pub(crate) never_indexed: bool,
}

impl Field {
    fn size(&self) -> usize {
        self.name.len() + self.value.len() + ENTRY_OVERHEAD
    }
}

/// A part of a header block.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Piece<'a> {
    /// To be sent as it is.
    Coded(&'a [u8]),
    /// A string, for [`encode_text`].
    Text(&'a [u8]),
}

/// Decoder of one direction of one connection.
#[derive(Debug)]
pub(crate) struct Decoder {
    table: VecDeque<Field>,
    table_size: usize,
    table_limit: usize,
}

impl Decoder {
    pub(crate) fn new() -> Self {
        Self { table: VecDeque::new(), table_size: 0, table_limit: TABLE_SIZE_MAX }
    }

    /// Decodes one whole header block. `list_max` bounds the decoded list (RFC 9113 section 6.5.2 counting),
    /// since one octet can name a table entry of 4 KiB.
    pub(crate) fn decode(&mut self, block: &[u8], list_max: usize) -> Result<Vec<Field>, HpackError> {
        self.decode_spelling(block, list_max, &mut |_| ())
    }

    /// As [`decode`](Self::decode), and hands over what spells the block out, piece by piece.
    pub(crate) fn decode_spelling(
        &mut self,
        block: &[u8],
        list_max: usize,
        spell: &mut impl FnMut(Piece<'_>),
    ) -> Result<Vec<Field>, HpackError> {
        let mut input = block;
        let mut fields = Vec::new();
        let mut list_size = 0;
        while let Some(&first) = input.first() {
            let before = input;
            let field = if first & 0x80 != 0 {
                let index = integer(&mut input, 7)?;
                spell(Piece::Coded(read(before, input)));
                Field { never_indexed: false, ..self.entry(index)? }
            } else if first & 0xc0 == 0x40 {
                let field = self.literal(&mut input, 6, false, spell)?;
                self.insert(field.clone());
                field
            } else if first & 0xe0 == 0x20 {
                if !fields.is_empty() {
                    return Err(HpackError::LateTableSize);
                }
                self.resize(integer(&mut input, 5)?)?;
                spell(Piece::Coded(read(before, input)));
                continue;
            } else {
                self.literal(&mut input, 4, first & 0x10 != 0, spell)?
            };
            list_size += field.size();
            if list_size > list_max {
                return Err(HpackError::ListTooLarge(list_max));
            }
            fields.push(field);
        }
        Ok(fields)
    }

    /// A literal field whose name index has a prefix of `prefix` bits.
    fn literal(
        &self,
        input: &mut &[u8],
        prefix: u8,
        never_indexed: bool,
        spell: &mut impl FnMut(Piece<'_>),
    ) -> Result<Field, HpackError> {
        let before = *input;
        let index = integer(input, prefix)?;
        spell(Piece::Coded(read(before, input)));
        let name = if index == 0 {
            let name = text(input)?;
            spell(Piece::Text(&name));
            name
        } else {
            self.entry(index)?.name
        };
        let value = text(input)?;
        spell(Piece::Text(&value));
        Ok(Field { name, value, never_indexed })
    }

    /// The entry at a one-based index over the static, then the dynamic table (RFC 7541 section 2.3.3).
    fn entry(&self, index: usize) -> Result<Field, HpackError> {
        let zero_based = index.checked_sub(1).ok_or(HpackError::BadIndex(index))?;
        if let Some(&(name, value)) = statics::TABLE.get(zero_based) {
            return Ok(Field {
                name: Bytes::from_static(name.as_bytes()),
                value: Bytes::from_static(value.as_bytes()),
                never_indexed: false,
            });
        }
        let dynamic = zero_based - statics::TABLE.len();
        self.table.get(dynamic).cloned().ok_or(HpackError::BadIndex(index))
    }

    fn resize(&mut self, limit: usize) -> Result<(), HpackError> {
        if limit > TABLE_SIZE_MAX {
            return Err(HpackError::TableSize(limit));
        }
        self.table_limit = limit;
        self.evict(limit);
        Ok(())
    }

    /// Adds a field at the front; one larger than the table empties it (RFC 7541 section 4.4).
    fn insert(&mut self, field: Field) {
        let size = field.size();
        if size > self.table_limit {
            self.evict(0);
            return;
        }
        self.evict(self.table_limit - size);
        self.table_size += size;
        self.table.push_front(field);
    }

    fn evict(&mut self, target: usize) {
        while self.table_size > target {
            match self.table.pop_back() {
                Some(field) => self.table_size -= field.size(),
                None => self.table_size = 0,
            }
        }
    }
}

/// Appends `field` as a literal that changes no table (RFC 7541 sections 6.2.2 and 6.2.3), without Huffman
/// coding.
pub(crate) fn encode(field: &Field, out: &mut BytesMut) {
    out.put_u8(if field.never_indexed { 0x10 } else { 0 });
    encode_text(&field.name, out);
    encode_text(&field.value, out);
}

/// Appends a string without Huffman coding (RFC 7541 section 5.2).
pub(crate) fn encode_text(text: &[u8], out: &mut BytesMut) {
    const PREFIX_MAX: usize = 0x7f;
    if text.len() < PREFIX_MAX {
        out.put_u8(text.len() as u8);
    } else {
        out.put_u8(PREFIX_MAX as u8);
        let mut rest = text.len() - PREFIX_MAX;
        while rest >= 0x80 {
            out.put_u8((rest & 0x7f) as u8 | 0x80);
            rest >>= 7;
        }
        out.put_u8(rest as u8);
    }
    out.put_slice(text);
}

/// An integer with a prefix of `prefix` bits (RFC 7541 section 5.1). Four continuation octets are more than
/// any length or index within our bounds needs; a longer form is refused.
fn integer(input: &mut &[u8], prefix: u8) -> Result<usize, HpackError> {
    let mask = (1_usize << prefix) - 1;
    let mut value = usize::from(octet(input)?) & mask;
    if value < mask {
        return Ok(value);
    }
    for shift in [0, 7, 14, 21] {
        let next = octet(input)?;
        value += usize::from(next & 0x7f) << shift;
        if next & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(HpackError::IntegerOverflow)
}

/// A length-prefixed string, Huffman-coded or not (RFC 7541 section 5.2).
fn text(input: &mut &[u8]) -> Result<Bytes, HpackError> {
    let coded = input.first().ok_or(HpackError::Truncated)? & 0x80 != 0;
    let length = integer(input, 7)?;
    if length > input.len() {
        return Err(HpackError::Truncated);
    }
    let (raw, rest) = input.split_at(length);
    *input = rest;
    if coded { huffman::decode(raw).ok_or(HpackError::BadHuffman) } else { Ok(Bytes::copy_from_slice(raw)) }
}

/// The octets that were taken from `before` until `after` was left.
fn read<'a>(before: &'a [u8], after: &[u8]) -> &'a [u8] {
    before.get(..before.len() - after.len()).unwrap_or_default()
}

fn octet(input: &mut &[u8]) -> Result<u8, HpackError> {
    let (&first, rest) = input.split_first().ok_or(HpackError::Truncated)?;
    *input = rest;
    Ok(first)
}
