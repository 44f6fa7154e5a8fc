//! As much of TPM 2.0 as node attestation needs: the wire format, a dozen commands, and credentials made in
//! software. Numbers are those of the TCG's TPM 2.0 Library, part 2 (structures) and part 3 (commands).
//!
//! Everything that is read is bounded by what was received: no length in the input leads to an allocation, and what
//! follows the end of a structure is an error.

pub(crate) mod attest;
pub(crate) mod buffer;
pub(crate) mod channel;
pub(crate) mod commands;
pub(crate) mod credential;
pub(crate) mod public;
pub(crate) mod response_code;
#[cfg(test)]
mod tests;

use spire_core::pki::HashAlgorithm;

/// Algorithms (TPM_ALG_ID, part 2, section 6.3).
pub(crate) mod alg {
    pub(crate) const RSA: u16 = 0x0001;
    pub(crate) const AES: u16 = 0x0006;
    pub(crate) const SHA256: u16 = 0x000b;
    pub(crate) const SHA384: u16 = 0x000c;
    pub(crate) const SHA512: u16 = 0x000d;
    pub(crate) const NULL: u16 = 0x0010;
    pub(crate) const RSASSA: u16 = 0x0014;
    pub(crate) const RSAES: u16 = 0x0015;
    pub(crate) const RSAPSS: u16 = 0x0016;
    pub(crate) const OAEP: u16 = 0x0017;
    pub(crate) const ECDSA: u16 = 0x0018;
    pub(crate) const ECDAA: u16 = 0x001a;
    pub(crate) const ECC: u16 = 0x0023;
    pub(crate) const CFB: u16 = 0x0043;
}

/// Curves (TPM_ECC_CURVE, part 2, section 6.4).
pub(crate) mod curve {
    pub(crate) const P256: u16 = 0x0003;
    pub(crate) const P384: u16 = 0x0004;
    pub(crate) const P521: u16 = 0x0005;
}

/// Permanent handles (TPM_RH, part 2, section 7.4).
pub(crate) mod handle {
    pub(crate) const OWNER: u32 = 0x4000_0001;
    pub(crate) const NULL: u32 = 0x4000_0007;
    /// The session of an authorization by password.
    pub(crate) const PASSWORD: u32 = 0x4000_0009;
    pub(crate) const ENDORSEMENT: u32 = 0x4000_000b;
}

/// A hash that names keys here. SHA-1 is not among them: whoever can make two public areas with one name could let
/// the harmless one be certified.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("hash algorithm not supported: 0x{0:x}")]
pub(crate) struct UnsupportedHash(pub(crate) u16);

/// The hash of that number.
pub(crate) fn hash_algorithm(id: u16) -> Result<HashAlgorithm, UnsupportedHash> {
    match id {
        alg::SHA256 => Ok(HashAlgorithm::Sha256),
        alg::SHA384 => Ok(HashAlgorithm::Sha384),
        alg::SHA512 => Ok(HashAlgorithm::Sha512),
        other => Err(UnsupportedHash(other)),
    }
}
