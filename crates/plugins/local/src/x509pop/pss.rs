//! RSA-PSS with SHA-256 and a salt of any length (RFC 8017, section 8.1.2 and 9.1.2).
//!
//! The reference's agents salt with as many bytes as fit, while the crypto library verifies only salts as
//! long as the hash, and gives no bare RSA operation to build upon. Everything here is public, so nothing
//! needs to take constant time; whether a signature is good is decided by comparing hashes.

use aws_lc_rs::digest::{SHA256, SHA256_OUTPUT_LEN, digest};
use spire_core::pki::{PublicKey, SignatureAlgorithm};

/// Whether the key signed the message.
pub(super) fn verify_sha256(key: &PublicKey, message: &[u8], signature: &[u8]) -> bool {
    key.verify(SignatureAlgorithm::RsaPssSha256, message, signature).is_ok()
        || modulus_and_exponent(key.spki()).is_some_and(|(n, e)| verify_any_salt(n, e, message, signature))
}

fn verify_any_salt(n: &[u8], e: &[u8], message: &[u8], signature: &[u8]) -> bool {
    const HASH: usize = SHA256_OUTPUT_LEN;
    // Big-endian magnitudes of one length compare as numbers.
    if signature.len() != n.len() || signature >= n {
        return false;
    }
    let Some(encoded) = power(signature, e, n) else { return false };
    let bits = n.len() * 8 - n[0].leading_zeros() as usize - 1;
    // When the modulus has one bit more than whole bytes, its first byte is not part of the encoding.
    let encoded = match (bits % 8, encoded.split_first()) {
        (0, Some((0, rest))) => rest.to_vec(),
        (0, _) => return false,
        _ => encoded,
    };
    let Some(masked_len) = encoded.len().checked_sub(HASH + 1).filter(|len| *len > 0) else { return false };
    let Some((masked, [hash @ .., 0xbc])) = encoded.split_at_checked(masked_len) else { return false };
    let used_mask = if bits.is_multiple_of(8) { 0xff } else { 0xff_u8 >> (8 - bits % 8) };
    if masked[0] & !used_mask != 0 {
        return false;
    }
    let mut block = masked.to_vec();
    for (counter, chunk) in block.chunks_mut(HASH).enumerate() {
        let counter = u32::try_from(counter).unwrap_or(u32::MAX).to_be_bytes();
        let mask = digest(&SHA256, &[hash, &counter].concat());
        chunk.iter_mut().zip(mask.as_ref()).for_each(|(byte, mask)| *byte ^= mask);
    }
    block[0] &= used_mask;
    // Zeros, a one, and the salt.
    let Some(one) = block.iter().position(|byte| *byte != 0).filter(|at| block[*at] == 1) else {
        return false;
    };
    let salt = &block[one + 1..];
    let expected = digest(&SHA256, &[&[0; 8][..], digest(&SHA256, message).as_ref(), salt].concat());
    expected.as_ref() == hash
}

/// `base^exponent mod modulus`, of big-endian magnitudes; as long as the modulus, which must be odd.
fn power(base: &[u8], exponent: &[u8], modulus: &[u8]) -> Option<Vec<u8>> {
    let n = limbs(modulus);
    if n.first()? & 1 == 0 {
        return None;
    }
    // Newton's iteration doubles the correct bits of the inverse each time; five make 64 of an odd number's
    // three.
    let inverse = (0..5).fold(n[0], |x, _| x.wrapping_mul(2u64.wrapping_sub(n[0].wrapping_mul(x))));
    let montgomery = Montgomery { n: &n, inverse: inverse.wrapping_neg() };
    let mut one = vec![0; n.len()];
    one[0] = 1;
    // R mod n by doubling one, then R^2 mod n.
    let mut unit = one.clone();
    for _ in 0..64 * n.len() {
        montgomery.double(&mut unit);
    }
    let mut square = unit.clone();
    for _ in 0..64 * n.len() {
        montgomery.double(&mut square);
    }
    let base = montgomery.multiply(&limbs(base), &square);
    let mut result = unit;
    for byte in exponent {
        for bit in (0..8).rev() {
            result = montgomery.multiply(&result, &result);
            if byte >> bit & 1 == 1 {
                result = montgomery.multiply(&result, &base);
            }
        }
    }
    let result = montgomery.multiply(&result, &one);
    let bytes: Vec<u8> = result.iter().rev().flat_map(|limb| limb.to_be_bytes()).collect();
    bytes.get(bytes.len() - modulus.len()..).map(<[u8]>::to_vec)
}

/// Arithmetic modulo `n` in Montgomery's form; limbs are least significant first.
struct Montgomery<'a> {
    n: &'a [u64],
    /// `-1/n` modulo 2^64.
    inverse: u64,
}

impl Montgomery<'_> {
    /// `a * b / R mod n`, for `a` and `b` below `n`.
    fn multiply(&self, a: &[u64], b: &[u64]) -> Vec<u64> {
        let len = self.n.len();
        let mut t = vec![0u64; len + 2];
        for &a in a {
            let carry = add_product(&mut t[..len], b, a);
            let (sum, over) = t[len].overflowing_add(carry);
            (t[len], t[len + 1]) = (sum, u64::from(over));
            let factor = t[0].wrapping_mul(self.inverse);
            let carry = add_product(&mut t[..len], self.n, factor);
            let (sum, over) = t[len].overflowing_add(carry);
            t[len] = sum;
            t[len + 1] += u64::from(over);
            // The lowest limb is zero now.
            t.copy_within(1.., 0);
            t[len + 1] = 0;
        }
        let over = t[len] != 0;
        t.truncate(len);
        self.reduce(&mut t, over);
        t
    }

    /// `2 * a mod n`.
    fn double(&self, a: &mut [u64]) {
        let mut carry = 0;
        for limb in a.iter_mut() {
            (*limb, carry) = (*limb << 1 | carry, *limb >> 63);
        }
        self.reduce(a, carry != 0);
    }

    /// Takes `n` away once if `a`, with the bit `over` above it, is not below it.
    fn reduce(&self, a: &mut [u64], over: bool) {
        if !over && a.iter().rev().lt(self.n.iter().rev()) {
            return;
        }
        let mut borrow = false;
        for (limb, n) in a.iter_mut().zip(self.n) {
            let (difference, first) = limb.overflowing_sub(*n);
            let (difference, second) = difference.overflowing_sub(u64::from(borrow));
            (*limb, borrow) = (difference, first || second);
        }
    }
}

/// Adds `a * factor` to `t`, which is as long; returns what is carried out.
fn add_product(t: &mut [u64], a: &[u64], factor: u64) -> u64 {
    let mut carry = 0u128;
    for (t, a) in t.iter_mut().zip(a) {
        let sum = u128::from(*t) + u128::from(*a) * u128::from(factor) + carry;
        *t = sum as u64;
        carry = sum >> 64;
    }
    carry as u64
}

/// A big-endian magnitude as limbs, least significant first.
fn limbs(magnitude: &[u8]) -> Vec<u64> {
    magnitude
        .rchunks(8)
        .map(|chunk| chunk.iter().fold(0, |limb, byte| limb << 8 | u64::from(*byte)))
        .collect()
}

/// The two numbers of an RSA SubjectPublicKeyInfo, which [`PublicKey`] has checked already.
fn modulus_and_exponent(spki: &[u8]) -> Option<(&[u8], &[u8])> {
    let (info, _) = element(spki, 0x30)?;
    let (_, rest) = element(info, 0x30)?;
    let (bits, _) = element(rest, 0x03)?;
    let (key, _) = element(bits.strip_prefix(&[0])?, 0x30)?;
    let (n, rest) = element(key, 0x02)?;
    let (e, _) = element(rest, 0x02)?;
    Some((super::trim_zeros(n), super::trim_zeros(e)))
}

/// The contents of the DER element that the input starts with, and what follows it.
pub(crate) fn element(input: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let [found, len, rest @ ..] = input else { return None };
    if *found != tag {
        return None;
    }
    let (len, rest) = match *len {
        len @ 0..=0x7f => (usize::from(len), rest),
        count @ 0x81..=0x83 => {
            let (len, rest) = rest.split_at_checked(usize::from(count - 0x80))?;
            (len.iter().fold(0, |len, byte| len << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    rest.split_at_checked(len)
}

#[cfg(test)]
#[path = "pss_tests.rs"]
mod tests;
