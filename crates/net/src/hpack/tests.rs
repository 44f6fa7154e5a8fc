//! Examples of RFC 7541 appendix C, round trips against our own encoder, and hostile blocks.

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;

use super::{Decoder, Field, HpackError, encode, huffman};

const LIST_MAX: usize = 65_536;

fn check(decoder: &mut Decoder, block: &str, expected: &[(&str, &str)]) {
    let octets =
        block.split_whitespace().map(|h| u8::from_str_radix(h, 16).expect("hex")).collect::<Vec<_>>();
    let fields = decoder.decode(&octets, LIST_MAX).expect("block of the RFC");
    let fields = fields
        .iter()
        .map(|f| (std::str::from_utf8(&f.name).expect("text"), std::str::from_utf8(&f.value).expect("text")))
        .collect::<Vec<_>>();
    assert_eq!(fields, expected);
}

const FIRST: [(&str, &str); 4] =
    [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "www.example.com")];
const SECOND: [(&str, &str); 5] = [FIRST[0], FIRST[1], FIRST[2], FIRST[3], ("cache-control", "no-cache")];
const THIRD: [(&str, &str); 5] = [
    (":method", "GET"),
    (":scheme", "https"),
    (":path", "/index.html"),
    (":authority", "www.example.com"),
    ("custom-key", "custom-value"),
];

#[test]
fn requests_without_huffman_coding() {
    let mut decoder = Decoder::new();
    check(&mut decoder, "82 86 84 41 0f 77 77 77 2e 65 78 61 6d 70 6c 65 2e 63 6f 6d", &FIRST);
    check(&mut decoder, "82 86 84 be 58 08 6e 6f 2d 63 61 63 68 65", &SECOND);
    check(
        &mut decoder,
        "82 87 85 bf 40 0a 63 75 73 74 6f 6d 2d 6b 65 79 0c 63 75 73 74 6f 6d 2d 76 61 6c 75 65",
        &THIRD,
    );
    assert_eq!(decoder.table_size, 164);
}

#[test]
fn requests_with_huffman_coding() {
    let mut decoder = Decoder::new();
    check(&mut decoder, "82 86 84 41 8c f1 e3 c2 e5 f2 3a 6b a0 ab 90 f4 ff", &FIRST);
    check(&mut decoder, "82 86 84 be 58 86 a8 eb 10 64 9c bf", &SECOND);
    check(&mut decoder, "82 87 85 bf 40 88 25 a8 49 e9 5b a9 7d 7f 89 25 a8 49 e9 5b b8 e8 b4 bf", &THIRD);
    assert_eq!(decoder.table_size, 164);
}

#[test]
fn a_smaller_table_forgets_its_oldest_entries() {
    let mut decoder = Decoder::new();
    for name in ["a", "b", "c"] {
        let mut block = vec![0x40, 1];
        block.extend(name.as_bytes());
        block.extend([1, b'x']);
        decoder.decode(&block, LIST_MAX).expect("literal with indexing");
    }
    assert_eq!(decoder.table.len(), 3);
    // Room for one entry of 34 octets: 0x3f 0x03 is a size update to 34.
    decoder.decode(&[0x3f, 0x03, 0xbe], LIST_MAX).expect("the newest entry stays");
    assert_eq!(decoder.table.len(), 1);
    assert_eq!(decoder.decode(&[0xbf], LIST_MAX), Err(HpackError::BadIndex(63)));
    decoder.decode(&[0x20], LIST_MAX).expect("an empty table is allowed");
    assert_eq!(decoder.decode(&[0xbe], LIST_MAX), Err(HpackError::BadIndex(62)));
}

#[test]
fn hostile_blocks_are_refused() {
    let cases: [(&[u8], HpackError); 9] = [
        (&[0x80], HpackError::BadIndex(0)),
        (&[0xbe], HpackError::BadIndex(62)),
        (&[0xff, 0xff, 0xff, 0xff, 0xff, 0x01], HpackError::IntegerOverflow),
        (&[0x00, 0x7f, 0xff, 0xff, 0x03], HpackError::Truncated),
        (&[0x00], HpackError::Truncated),
        (&[0x82, 0x20], HpackError::LateTableSize),
        (&[0x3f, 0xe2, 0x1f], HpackError::TableSize(4097)),
        // A whole octet of padding, and padding that is not ones.
        (&[0x04, 0x81, 0xff], HpackError::BadHuffman),
        (&[0x04, 0x81, 0x00], HpackError::BadHuffman),
    ];
    for (block, error) in cases {
        assert_eq!(Decoder::new().decode(block, LIST_MAX), Err(error), "{block:x?}");
    }
}

#[test]
fn one_octet_cannot_make_a_large_list() {
    let mut decoder = Decoder::new();
    let mut block = vec![0x40, 1, b'n', 0x7f, 0x81, 0x1e];
    block.resize(block.len() + 0x7f + 0x0f01, b'v');
    decoder.decode(&block, LIST_MAX).expect("one entry of about 4 KiB");
    assert_eq!(decoder.table.len(), 1);
    assert_eq!(decoder.decode(&[0xbe; 64], LIST_MAX), Err(HpackError::ListTooLarge(LIST_MAX)));
}

fn octets(most: usize) -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..most)
}

fn any_field() -> impl Strategy<Value = Field> {
    (octets(300), octets(300), any::<bool>()).prop_map(|(name, value, never_indexed)| Field {
        name: name.into(),
        value: value.into(),
        never_indexed,
    })
}

proptest! {
    #[test]
    fn what_we_encode_comes_back(fields in prop::collection::vec(any_field(), 0..20)) {
        let mut block = BytesMut::new();
        for field in &fields {
            encode(field, &mut block);
        }
        let mut decoder = Decoder::new();
        prop_assert_eq!(decoder.decode(&block, LIST_MAX).expect("our own block"), fields);
        prop_assert!(decoder.table.is_empty());
    }

    #[test]
    fn huffman_text_comes_back(text in octets(200)) {
        prop_assert_eq!(huffman::decode(&huffman::encode(&text)), Some(Bytes::from(text)));
    }

    #[test]
    fn any_block_is_decoded_or_refused(blocks in prop::collection::vec(octets(200), 0..6)) {
        let mut decoder = Decoder::new();
        for block in blocks {
            if decoder.decode(&block, LIST_MAX).is_err() {
                break;
            }
            prop_assert!(decoder.table_size <= super::TABLE_SIZE_MAX);
        }
    }
}
