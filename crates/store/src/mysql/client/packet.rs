//! Packets and what they are made of (MySQL Internals: protocol basics): lengths in three octets, numbers and strings whose
//! length comes first.

use super::Failure;

/// The longest payload of one packet; what is longer goes on in the next.
pub(super) const PIECE_MAX: usize = 0xff_ffff;

/// Reads a payload from its beginning. What is not there is a broken protocol.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

/// A payload that says something else than it must.
pub(super) const MALFORMED: Failure = Failure::Protocol("malformed packet");

impl<'a> Reader<'a> {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn take(&mut self, count: usize) -> Result<&'a [u8], Failure> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(MALFORMED)?;
        self.0 = rest;
        Ok(taken)
    }

    pub(super) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    pub(super) fn u8(&mut self) -> Result<u8, Failure> {
        Ok(self.take(1)?[0])
    }

    /// An unsigned number of `count` octets, at most eight.
    pub(super) fn number(&mut self, count: usize) -> Result<u64, Failure> {
        Ok(self.take(count)?.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    pub(super) fn u16(&mut self) -> Result<u16, Failure> {
        u16::try_from(self.number(2)?).map_err(|_| MALFORMED)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Failure> {
        u32::try_from(self.number(4)?).map_err(|_| MALFORMED)
    }

    /// Up to a zero, which is taken too; or all that is left.
    pub(super) fn until_zero(&mut self) -> &'a [u8] {
        match self.0.iter().position(|byte| *byte == 0) {
            Some(at) => {
                let taken = &self.0[..at];
                self.0 = &self.0[at + 1..];
                taken
            }
            None => self.rest(),
        }
    }

    /// A number that says how long it is.
    pub(super) fn length(&mut self) -> Result<u64, Failure> {
        match self.u8()? {
            small @ 0..=0xfa => Ok(small.into()),
            0xfc => self.number(2),
            0xfd => self.number(3),
            0xfe => self.number(8),
            0xfb | 0xff => Err(MALFORMED),
        }
    }

    /// A string behind its length.
    pub(super) fn string(&mut self) -> Result<&'a [u8], Failure> {
        let length = usize::try_from(self.length()?).map_err(|_| MALFORMED)?;
        self.take(length)
    }
}

/// Appends a number that says how long it is.
pub(super) fn push_length(out: &mut Vec<u8>, length: usize) {
    let octets = u64::try_from(length).unwrap_or(u64::MAX).to_le_bytes();
    match length {
        0..=0xfa => out.push(octets[0]),
        0xfb..=0xffff => {
            out.push(0xfc);
            out.extend_from_slice(&octets[..2]);
        }
        0x1_0000..=0xff_ffff => {
            out.push(0xfd);
            out.extend_from_slice(&octets[..3]);
        }
        _ => {
            out.push(0xfe);
            out.extend_from_slice(&octets);
        }
    }
}

/// Appends a string behind its length.
pub(super) fn push_string(out: &mut Vec<u8>, text: &[u8]) {
    push_length(out, text.len());
    out.extend_from_slice(text);
}

/// A payload in packets, from the sequence number on, which is advanced.
pub(super) fn framed(payload: &[u8], sequence: &mut u8) -> Vec<u8> {
    let mut out = Vec::with_capacity(payload.len() + 4);
    let mut rest = payload;
    loop {
        let (piece, after) = rest.split_at(rest.len().min(PIECE_MAX));
        let length = u32::try_from(piece.len()).unwrap_or(0).to_le_bytes();
        out.extend_from_slice(&length[..3]);
        out.push(*sequence);
        *sequence = sequence.wrapping_add(1);
        out.extend_from_slice(piece);
        rest = after;
        // One that is full is followed by another, be it empty.
        if piece.len() < PIECE_MAX {
            return out;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_read_back() {
        for length in [0, 1, 0xfa, 0xfb, 0xffff, 0x1_0000, 0xff_ffff, 0x100_0000, 1 << 40] {
            let mut out = Vec::new();
            push_length(&mut out, length);
            let mut reader = Reader(&out);
            assert_eq!(reader.length().unwrap(), u64::try_from(length).unwrap());
            assert!(reader.is_empty());
        }
        assert!(Reader(&[0xfb]).length().is_err());
        assert!(Reader(&[0xfe, 1]).length().is_err());
        assert!(Reader(&[5, b'x']).string().is_err());
    }

    #[test]
    fn long_payloads_go_on_in_the_next_packet() {
        let mut sequence = 254;
        let framed = framed(&vec![7; PIECE_MAX], &mut sequence);
        assert_eq!(framed.len(), PIECE_MAX + 8);
        assert_eq!(
            (&framed[..4], &framed[PIECE_MAX + 4..]),
            (&[255, 255, 255, 254][..], &[0, 0, 0, 255][..])
        );
        assert_eq!(sequence, 0);
    }
}
