//! Strict DER: a reader that borrows from the input, and a writer that fills one buffer.
//!
//! Own code instead of the `der` crate on these paths because an SVID is written with two or three
//! allocations, and because Go's choices (string types, order, defaults) must be met byte for byte.

use crate::time::Timestamp;

/// The tags that certificates, requests and keys use.
pub(crate) mod tag {
    pub(crate) const BOOLEAN: u8 = 0x01;
    pub(crate) const INTEGER: u8 = 0x02;
    pub(crate) const BIT_STRING: u8 = 0x03;
    pub(crate) const OCTET_STRING: u8 = 0x04;
    pub(crate) const NULL: u8 = 0x05;
    pub(crate) const OID: u8 = 0x06;
    pub(crate) const UTF8_STRING: u8 = 0x0c;
    pub(crate) const NUMERIC_STRING: u8 = 0x12;
    pub(crate) const PRINTABLE_STRING: u8 = 0x13;
    pub(crate) const T61_STRING: u8 = 0x14;
    pub(crate) const IA5_STRING: u8 = 0x16;
    pub(crate) const UTC_TIME: u8 = 0x17;
    pub(crate) const GENERALIZED_TIME: u8 = 0x18;
    pub(crate) const BMP_STRING: u8 = 0x1e;
    pub(crate) const SEQUENCE: u8 = 0x30;
    pub(crate) const SET: u8 = 0x31;

    /// `[n]` of a primitive type.
    pub(crate) const fn context(n: u8) -> u8 {
        0x80 | n
    }

    /// `[n]` of a constructed type.
    pub(crate) const fn constructed(n: u8) -> u8 {
        0xa0 | n
    }
}

/// The input is not DER, or not the DER that was expected there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed DER")]
pub struct DerError;

/// What a read gives.
pub(crate) type DerResult<T> = Result<T, DerError>;

/// Reads DER elements from the front of a slice. Nothing is copied, and no length in the input leads to
/// an allocation.
#[derive(Clone, Copy)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(input: &'a [u8]) -> Self {
        Self { rest: input }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Fails unless everything was read.
    pub(crate) fn finish(&self) -> DerResult<()> {
        if self.rest.is_empty() { Ok(()) } else { Err(DerError) }
    }

    /// The tag of the next element.
    pub(crate) fn peek(&self) -> Option<u8> {
        self.rest.first().copied()
    }

    /// The next element: its tag, its contents, and all of it with the header.
    pub(crate) fn any(&mut self) -> DerResult<(u8, &'a [u8], &'a [u8])> {
        let (&tag, after_tag) = self.rest.split_first().ok_or(DerError)?;
        if tag & 0x1f == 0x1f {
            return Err(DerError); // multi-byte tags occur nowhere in what we read
        }
        let (&first, mut body) = after_tag.split_first().ok_or(DerError)?;
        let len = if first < 0x80 {
            usize::from(first)
        } else {
            let count = usize::from(first & 0x7f);
            // Four bytes are more than any bound on our inputs; indefinite lengths are not DER.
            if count == 0 || count > 4 {
                return Err(DerError);
            }
            let (digits, after) = body.split_at_checked(count).ok_or(DerError)?;
            let len = digits.iter().fold(0usize, |n, d| (n << 8) | usize::from(*d));
            if len < 0x80 || digits.first() == Some(&0) {
                return Err(DerError); // not the shortest form
            }
            body = after;
            len
        };
        let (content, rest) = body.split_at_checked(len).ok_or(DerError)?;
        let header = self.rest.len() - body.len();
        let element = self.rest.get(..header + len).ok_or(DerError)?;
        self.rest = rest;
        Ok((tag, content, element))
    }

    /// The contents of the next element, which must have this tag.
    pub(crate) fn read(&mut self, tag: u8) -> DerResult<&'a [u8]> {
        self.element(tag).map(|(content, _)| content)
    }

    /// Contents and whole element, which must have this tag.
    pub(crate) fn element(&mut self, tag: u8) -> DerResult<(&'a [u8], &'a [u8])> {
        if self.peek() != Some(tag) {
            return Err(DerError);
        }
        let (_, content, element) = self.any()?;
        Ok((content, element))
    }

    /// The contents of the next element if it has this tag.
    pub(crate) fn optional(&mut self, tag: u8) -> DerResult<Option<&'a [u8]>> {
        if self.peek() == Some(tag) { self.read(tag).map(Some) } else { Ok(None) }
    }

    /// A reader of the contents of the next element.
    pub(crate) fn nested(&mut self, tag: u8) -> DerResult<Self> {
        self.read(tag).map(Self::new)
    }

    pub(crate) fn sequence(&mut self) -> DerResult<Self> {
        self.nested(tag::SEQUENCE)
    }

    /// A BOOLEAN; DER allows 0x00 and 0xff only.
    pub(crate) fn boolean(&mut self) -> DerResult<bool> {
        match self.read(tag::BOOLEAN)? {
            [0x00] => Ok(false),
            [0xff] => Ok(true),
            _ => Err(DerError),
        }
    }

    /// A BOOLEAN with DEFAULT FALSE.
    pub(crate) fn optional_boolean(&mut self) -> DerResult<bool> {
        if self.peek() == Some(tag::BOOLEAN) { self.boolean() } else { Ok(false) }
    }

    /// The contents of an INTEGER in its shortest form, sign bit included.
    pub(crate) fn integer(&mut self) -> DerResult<&'a [u8]> {
        let content = self.read(tag::INTEGER)?;
        match content {
            [] => Err(DerError),
            [0x00, next, ..] if *next < 0x80 => Err(DerError),
            [0xff, next, ..] if *next >= 0x80 => Err(DerError),
            _ => Ok(content),
        }
    }

    /// The magnitude of a non-negative INTEGER, without leading zeros (zero is empty).
    pub(crate) fn unsigned(&mut self) -> DerResult<&'a [u8]> {
        match self.integer()? {
            [first, ..] if *first >= 0x80 => Err(DerError),
            [0, rest @ ..] => Ok(rest),
            all => Ok(all),
        }
    }

    /// A small non-negative INTEGER.
    pub(crate) fn small(&mut self) -> DerResult<u32> {
        let magnitude = self.unsigned()?;
        if magnitude.len() > 4 {
            return Err(DerError);
        }
        Ok(magnitude.iter().fold(0, |n, d| (n << 8) | u32::from(*d)))
    }

    /// The bytes of a BIT STRING and how many bits of the last one are unused (these must be zero).
    pub(crate) fn bits(&mut self) -> DerResult<(&'a [u8], u8)> {
        let (&unused, bytes) = self.read(tag::BIT_STRING)?.split_first().ok_or(DerError)?;
        match bytes.last() {
            None if unused == 0 => Ok((bytes, 0)),
            Some(last) if unused < 8 && last & ((1 << unused) - 1) == 0 => Ok((bytes, unused)),
            _ => Err(DerError),
        }
    }

    /// A BIT STRING of whole bytes.
    pub(crate) fn bit_bytes(&mut self) -> DerResult<&'a [u8]> {
        match self.bits()? {
            (bytes, 0) => Ok(bytes),
            _ => Err(DerError),
        }
    }

    /// A UTCTime or GeneralizedTime as RFC 5280 allows them: UTC, with seconds, without fractions.
    pub(crate) fn time(&mut self) -> DerResult<Timestamp> {
        let (tag, text, _) = self.any()?;
        let (year, rest) = match tag {
            tag::UTC_TIME => {
                let (year, rest) = decimal(text, 2)?;
                (if year >= 50 { 1900 + year } else { 2000 + year }, rest)
            }
            tag::GENERALIZED_TIME => decimal(text, 4)?,
            _ => return Err(DerError),
        };
        let (month, rest) = decimal(rest, 2)?;
        let (day, rest) = decimal(rest, 2)?;
        let (hour, rest) = decimal(rest, 2)?;
        let (minute, rest) = decimal(rest, 2)?;
        let (second, rest) = decimal(rest, 2)?;
        if rest != b"Z" {
            return Err(DerError);
        }
        let small = |n: i32| u8::try_from(n).map_err(|_| DerError);
        let month = time::Month::try_from(small(month)?).map_err(|_| DerError)?;
        let date = time::Date::from_calendar_date(year, month, small(day)?).map_err(|_| DerError)?;
        let clock =
            time::Time::from_hms(small(hour)?, small(minute)?, small(second)?).map_err(|_| DerError)?;
        Ok(date.with_time(clock).assume_utc().into())
    }
}

fn decimal(text: &[u8], digits: usize) -> DerResult<(i32, &[u8])> {
    let (number, rest) = text.split_at_checked(digits).ok_or(DerError)?;
    let mut value = 0;
    for digit in number {
        if !digit.is_ascii_digit() {
            return Err(DerError);
        }
        value = value * 10 + i32::from(digit - b'0');
    }
    Ok((value, rest))
}

/// Appends DER to one buffer. Lengths are filled in when an element closes; long ones move what was
/// written by two or three bytes, which is cheaper than measuring first.
pub(crate) struct Writer {
    buf: Vec<u8>,
}

impl Writer {
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        Self { buf: Vec::with_capacity(capacity) }
    }

    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.buf
    }

    /// Bytes that are DER already.
    pub(crate) fn raw(&mut self, der: &[u8]) {
        self.buf.extend_from_slice(der);
    }

    pub(crate) fn primitive(&mut self, tag: u8, content: &[u8]) {
        self.buf.push(tag);
        let (header, n) = length(content.len());
        self.buf.extend_from_slice(&header[..n]);
        self.buf.extend_from_slice(content);
    }

    /// An element whose contents `fill` writes.
    pub(crate) fn nested<R>(&mut self, tag: u8, fill: impl FnOnce(&mut Self) -> R) -> R {
        self.buf.push(tag);
        let at = self.buf.len();
        self.buf.push(0);
        let result = fill(self);
        let (header, n) = length(self.buf.len() - at - 1);
        self.buf[at] = header[0];
        if n > 1 {
            self.buf.splice(at + 1..at + 1, header[1..n].iter().copied());
        }
        result
    }

    pub(crate) fn sequence<R>(&mut self, fill: impl FnOnce(&mut Self) -> R) -> R {
        self.nested(tag::SEQUENCE, fill)
    }

    /// A non-negative INTEGER from its big-endian magnitude; leading zeros are dropped.
    pub(crate) fn unsigned(&mut self, magnitude: &[u8]) {
        let start = magnitude.iter().position(|b| *b != 0).unwrap_or(magnitude.len());
        let digits = &magnitude[start..];
        let pad = digits.first().is_none_or(|b| *b >= 0x80);
        self.buf.push(tag::INTEGER);
        let (header, n) = length(digits.len() + usize::from(pad));
        self.buf.extend_from_slice(&header[..n]);
        if pad {
            self.buf.push(0);
        }
        self.buf.extend_from_slice(digits);
    }

    /// A BIT STRING of whole bytes.
    pub(crate) fn bit_bytes(&mut self, bytes: &[u8]) {
        self.buf.push(tag::BIT_STRING);
        let (header, n) = length(bytes.len() + 1);
        self.buf.extend_from_slice(&header[..n]);
        self.buf.push(0);
        self.buf.extend_from_slice(bytes);
    }

    /// UTCTime for the years 1950 to 2049, GeneralizedTime otherwise (RFC 5280, 4.1.2.5).
    pub(crate) fn time(&mut self, at: Timestamp) {
        let t = at.to_utc();
        let year = t.year().clamp(0, 9999).unsigned_abs();
        let mut text = [0u8; 15];
        let parts =
            [u32::from(u8::from(t.month())), u32::from(t.day()), u32::from(t.hour()), u32::from(t.minute())];
        let century = year / 100;
        let mut put = |at: usize, n: u32| {
            text[at] = b'0' + (n / 10 % 10) as u8;
            text[at + 1] = b'0' + (n % 10) as u8;
        };
        put(0, century);
        put(2, year % 100);
        for (i, part) in parts.into_iter().enumerate() {
            put(4 + 2 * i, part);
        }
        put(12, u32::from(t.second()));
        text[14] = b'Z';
        if (1950..2050).contains(&year) {
            self.primitive(tag::UTC_TIME, &text[2..]);
        } else {
            self.primitive(tag::GENERALIZED_TIME, &text);
        }
    }
}

/// The length octets of an element and how many of them there are.
pub(crate) fn length(len: usize) -> ([u8; 9], usize) {
    let mut out = [0u8; 9];
    if len < 0x80 {
        out[0] = len as u8;
        return (out, 1);
    }
    let bytes = (len as u64).to_be_bytes();
    let skip = bytes.iter().position(|b| *b != 0).unwrap_or(7);
    let count = 8 - skip;
    out[0] = 0x80 | count as u8;
    out[1..=count].copy_from_slice(&bytes[skip..]);
    (out, count + 1)
}

/// An object identifier in dotted form; `None` when the contents are not one.
pub(crate) fn dotted(oid: &[u8]) -> Option<String> {
    use std::fmt::Write as _;

    let mut out = String::new();
    let mut arc: u64 = 0;
    let mut first = true;
    let mut open = false;
    for byte in oid {
        if !open && *byte == 0x80 {
            return None; // padded arc
        }
        arc = arc.checked_mul(128)? | u64::from(byte & 0x7f);
        open = byte & 0x80 != 0;
        if open {
            continue;
        }
        if first {
            let top = (arc / 40).min(2);
            let _ = write!(out, "{top}.{}", arc - top * 40);
            first = false;
        } else {
            let _ = write!(out, ".{arc}");
        }
        arc = 0;
    }
    if open || first { None } else { Some(out) }
}

/// The contents of an object identifier from its dotted form; `None` when it is not one.
pub(crate) fn oid_from_dotted(text: &str) -> Option<Vec<u8>> {
    let mut arcs = text.split('.').map(|part| {
        // Digits only: `parse` would take a leading plus sign as well.
        if part.bytes().all(|b| b.is_ascii_digit()) { part.parse::<u64>().ok() } else { None }
    });
    let top = arcs.next()??;
    let second = arcs.next()??;
    if top > 2 || (top < 2 && second > 39) {
        return None;
    }
    let mut out = Vec::with_capacity(text.len());
    push_arc(&mut out, (top * 40).checked_add(second)?);
    for arc in arcs {
        push_arc(&mut out, arc?);
    }
    Some(out)
}

fn push_arc(out: &mut Vec<u8>, arc: u64) {
    let groups = (64 - arc.leading_zeros()).div_ceil(7).max(1);
    for group in (0..groups).rev() {
        let bits = ((arc >> (7 * group)) & 0x7f) as u8;
        out.push(if group == 0 { bits } else { bits | 0x80 });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lengths_are_backfilled() {
        for len in [0usize, 127, 128, 255, 256, 65535, 65536] {
            let mut w = Writer::with_capacity(16);
            w.sequence(|w| w.primitive(tag::OCTET_STRING, &vec![7; len]));
            let bytes = w.into_bytes();
            let mut r = Reader::new(&bytes);
            let mut inner = r.sequence().unwrap();
            assert_eq!(inner.read(tag::OCTET_STRING).unwrap().len(), len);
            inner.finish().unwrap();
            r.finish().unwrap();
        }
    }

    #[test]
    fn refuses_what_is_not_der() {
        for bad in [
            &[0x30u8][..],
            &[0x30, 0x80, 0, 0],                   // indefinite
            &[0x30, 0x81, 0x01, 0],                // long form of a short length
            &[0x30, 0x84, 0xff, 0xff, 0xff, 0xff], // more than there is
            &[0x1f, 0x01, 0x00],                   // multi-byte tag
        ] {
            assert!(Reader::new(bad).any().is_err(), "{bad:02x?}");
        }
        assert!(Reader::new(&[2, 2, 0, 1]).integer().is_err());
        assert!(Reader::new(&[1, 1, 1]).boolean().is_err());
        assert!(Reader::new(&[3, 2, 1, 1]).bits().is_err());
    }

    #[test]
    fn times_switch_form_in_2050() {
        for (unix, form) in [
            (2_524_607_999, &b"\x17\x0d491231235959Z"[..]),
            (2_524_608_000, &b"\x18\x0f20500101000000Z"[..]),
            (-631_152_000, &b"\x17\x0d500101000000Z"[..]),
            (-631_152_001, &b"\x18\x0f19491231235959Z"[..]),
        ] {
            let mut w = Writer::with_capacity(20);
            w.time(Timestamp::from_unix(unix));
            assert_eq!(w.into_bytes(), form);
            assert_eq!(Reader::new(form).time().unwrap().unix(), unix);
        }
    }

    #[test]
    fn object_identifiers_round_trip() {
        for text in ["2.5.4.45", "1.2.840.113549.1.1.11", "0.9.2342.19200300.100.1.25", "2.999.3"] {
            assert_eq!(dotted(&oid_from_dotted(text).unwrap()).unwrap(), text);
        }
        for bad in ["", "1", "3.1", "1.40", "1.+2", "1..2"] {
            assert!(oid_from_dotted(bad).is_none(), "{bad}");
        }
    }
}
