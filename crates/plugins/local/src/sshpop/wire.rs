//! The data types of SSH (RFC 4251, section 5), read strictly and without copying.

/// What is said of anything that ends too early (x/crypto/ssh).
pub(super) const SHORT: &str = "ssh: short read";

/// Reads from the front of a message.
#[derive(Clone, Copy)]
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn is_empty(self) -> bool {
        self.0.is_empty()
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], &'static str> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(SHORT)?;
        self.0 = rest;
        Ok(taken)
    }

    pub(super) fn byte(&mut self) -> Result<u8, &'static str> {
        Ok(self.take(1)?[0])
    }

    pub(super) fn u32(&mut self) -> Result<u32, &'static str> {
        let bytes = self.take(4)?;
        Ok(bytes.iter().fold(0, |value, byte| value << 8 | u32::from(*byte)))
    }

    pub(super) fn u64(&mut self) -> Result<u64, &'static str> {
        Ok(u64::from(self.u32()?) << 32 | u64::from(self.u32()?))
    }

    /// Bytes behind their length.
    pub(super) fn string(&mut self) -> Result<&'a [u8], &'static str> {
        let len = self.u32()?;
        self.take(usize::try_from(len).map_err(|_| SHORT)?)
    }

    /// A string that is a text.
    pub(super) fn text(&mut self) -> Result<&'a str, &'static str> {
        std::str::from_utf8(self.string()?).map_err(|_| "ssh: text is not UTF-8")
    }

    /// A positive number: big-endian, without its sign byte. Only the shortest form is taken, so that one key has one
    /// fingerprint.
    pub(super) fn positive(&mut self) -> Result<&'a [u8], &'static str> {
        match self.string()? {
            [] => Err("ssh: number is zero"),
            [0, rest @ ..] if rest.first().is_some_and(|first| *first >= 0x80) => Ok(rest),
            [first, ..] if *first == 0 || *first >= 0x80 => {
                Err("ssh: number is negative or not in its shortest form")
            }
            bytes => Ok(bytes),
        }
    }
}

/// Appends bytes behind their length. Callers bound what they write.
pub(super) fn put_string(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend_from_slice(bytes);
}

/// Appends a positive number, given big-endian.
pub(super) fn put_positive(out: &mut Vec<u8>, number: &[u8]) {
    let number = &number[number.iter().take_while(|byte| **byte == 0).count()..];
    match number.first() {
        Some(first) if *first >= 0x80 => put_string(out, &[&[0], number].concat()),
        _ => put_string(out, number),
    }
}
