//! Reading and writing the wire format: big-endian numbers, and byte strings behind their length (TPM2B).

use zeroize::Zeroizing;

/// Too little was left. Texts are those of Go's io, which the reference's errors end in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Short {
    /// Nothing at all.
    #[error("EOF")]
    Empty,
    /// Less than was announced.
    #[error("unexpected EOF")]
    Partial,
}

/// Why bytes are not the structure that they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DecodeError {
    /// The named part is not complete.
    #[error("decoding {0}: {1}")]
    Short(&'static str, Short),
    /// Something follows.
    #[error("trailing data after {0}")]
    Trailing(&'static str),
    /// A key that is neither RSA nor ECC.
    #[error("unsupported type in TPMT_PUBLIC: 0x{0:x}")]
    ObjectType(u16),
    /// A signing or key derivation scheme that we do not know, so that its length is unknown too.
    #[error("unsupported scheme in TPMT_PUBLIC: 0x{0:x}")]
    Scheme(u16),
    /// Neither RSA nor ECDSA.
    #[error("unsupported signature algorithm 0x{0:x}")]
    SignatureAlgorithm(u16),
    /// Not made by a TPM.
    #[error("incorrect magic value: {0:x}")]
    Magic(u32),
    /// A response of another size than its header says, or with another tag than the command's.
    #[error("malformed TPM response")]
    Response,
}

/// Reads from the front of a slice, and copies nothing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(input: &'a [u8]) -> Self {
        Self { rest: input }
    }

    pub(crate) fn take(&mut self, len: usize) -> Result<&'a [u8], Short> {
        let short = if self.rest.is_empty() { Short::Empty } else { Short::Partial };
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(short)?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Short> {
        self.take(N)?.try_into().map_err(|_| Short::Partial)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Short> {
        self.array().map(u8::from_be_bytes)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, Short> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Short> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Short> {
        self.array().map(u64::from_be_bytes)
    }

    /// The contents of a TPM2B.
    pub(crate) fn sized(&mut self) -> Result<&'a [u8], Short> {
        let len = self.u16()?;
        self.take(usize::from(len))
    }

    /// What is left.
    pub(crate) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Fails unless everything was read.
    pub(crate) fn finish(&self, what: &'static str) -> Result<(), DecodeError> {
        if self.rest.is_empty() { Ok(()) } else { Err(DecodeError::Trailing(what)) }
    }
}

/// Writes to one buffer, which is wiped when dropped since it may hold a password.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    buf: Zeroizing<Vec<u8>>,
    too_long: bool,
}

impl Writer {
    pub(crate) fn u8(mut self, value: u8) -> Self {
        self.buf.push(value);
        self
    }

    pub(crate) fn u16(mut self, value: u16) -> Self {
        self.buf.extend_from_slice(&value.to_be_bytes());
        self
    }

    pub(crate) fn u32(mut self, value: u32) -> Self {
        self.buf.extend_from_slice(&value.to_be_bytes());
        self
    }

    pub(crate) fn raw(mut self, bytes: &[u8]) -> Self {
        self.buf.extend_from_slice(bytes);
        self
    }

    /// A TPM2B. One that is longer than its length can say spoils the whole.
    pub(crate) fn sized(mut self, bytes: &[u8]) -> Self {
        match u16::try_from(bytes.len()) {
            Ok(len) => self.u16(len).raw(bytes),
            Err(_) => {
                self.too_long = true;
                self
            }
        }
    }

    /// What was written; nothing where a part of it was too long.
    pub(crate) fn finish(self) -> Option<Zeroizing<Vec<u8>>> {
        (!self.too_long).then_some(self.buf)
    }
}
