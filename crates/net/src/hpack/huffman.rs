//! The Huffman code of HPACK (RFC 7541 appendix B).
//!
//! The code is canonical: within a length, codes ascend with the symbol, and a longer code continues where
//! the shorter ones end. So the lengths alone say everything, and decoding needs one comparison a bit.

use bytes::{Bytes, BytesMut};

/// Code length of each octet, in bits; the last one is the end-of-string symbol, which never occurs in text.
const LENGTHS: [u8; SYMBOLS] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28,
    28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6,
    6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7,
    8, 13, 19, 13, 14, 6, 15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7,
    15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24,
    23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23,
    23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23, 26, 26, 20, 19, 22, 23, 22, 25, 26,
    26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20,
    21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27,
    27, 27, 26, 30,
];

const SYMBOLS: usize = 257;
const LENGTH_MAX: usize = 30;
const END_OF_STRING: u16 = 256;

/// The codes of one length: `count` codes from `first`, for the symbols from `offset` on in
/// [`Code::symbols`].
#[derive(Clone, Copy)]
struct Row {
    first: u32,
    count: u32,
    offset: usize,
}

struct Code {
    rows: [Row; LENGTH_MAX + 1],
    symbols: [u16; SYMBOLS],
}

static CODE: Code = canonical();

/// Decodes `coded`, or `None` where a code is unknown, the end-of-string symbol occurs, or the padding is not
/// the start of that symbol and shorter than an octet (RFC 7541 section 5.2).
pub(super) fn decode(coded: &[u8]) -> Option<Bytes> {
    // The shortest code has five bits.
    let mut text = BytesMut::with_capacity(coded.len() * 8 / 5);
    let mut code = 0_u32;
    let mut length = 0_usize;
    for octet in coded {
        for bit in (0..8).rev() {
            code = (code << 1) | u32::from((octet >> bit) & 1);
            length += 1;
            let row = CODE.rows.get(length)?;
            let place = code.wrapping_sub(row.first);
            if place < row.count {
                let symbol = *CODE.symbols.get(row.offset + place as usize)?;
                if symbol == END_OF_STRING {
                    return None;
                }
                text.extend_from_slice(&[symbol as u8]);
                (code, length) = (0, 0);
            }
        }
    }
    let padding_is_ones = code == (1 << length) - 1;
    (length < 8 && padding_is_ones).then(|| text.freeze())
}

const fn canonical() -> Code {
    let mut code =
        Code { rows: [Row { first: 0, count: 0, offset: 0 }; LENGTH_MAX + 1], symbols: [0; SYMBOLS] };
    let mut next = 0;
    let mut placed = 0;
    let mut length = 1;
    while length <= LENGTH_MAX {
        next <<= 1;
        code.rows[length].first = next;
        code.rows[length].offset = placed;
        let mut symbol = 0;
        while symbol < SYMBOLS {
            if LENGTHS[symbol] as usize == length {
                code.symbols[placed] = symbol as u16;
                placed += 1;
                next += 1;
            }
            symbol += 1;
        }
        code.rows[length].count = next - code.rows[length].first;
        length += 1;
    }
    code
}

#[cfg(test)]
pub(crate) fn encode(text: &[u8]) -> Vec<u8> {
    let mut bits = Vec::new();
    for octet in text {
        let length = usize::from(LENGTHS[usize::from(*octet)]);
        let row = CODE.rows[length];
        let place =
            CODE.symbols[row.offset..].iter().position(|s| *s == u16::from(*octet)).expect("every octet");
        let code = row.first + place as u32;
        bits.extend((0..length).rev().map(|bit| (code >> bit) & 1 == 1));
    }
    bits.resize(bits.len().div_ceil(8) * 8, true);
    bits.chunks(8).map(|chunk| chunk.iter().fold(0, |octet, bit| octet << 1 | u8::from(*bit))).collect()
}
