//! Private keys as JWK (RFC 7517, RFC 7518 section 6), in the order of members that go-jose writes.

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use spire_core::pki::jwk::Jwk;
use spire_core::pki::{LocalKey, PublicKeyKind};

use crate::failure::{Failure, plain};

const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
const OCTETS: u8 = 0x04;

/// The JWK of a key pair. It is a secret.
pub(super) fn encode(key: &LocalKey) -> Result<String, Failure> {
    let pkcs8 = key.to_pkcs8().map_err(plain)?;
    let public = Jwk::new(key.public_key().clone()).to_json();
    let members = match key.public_key().kind() {
        PublicKeyKind::Rsa { .. } => rsa(&pkcs8)
            .map(|numbers| ["d", "p", "q", "dp", "dq", "qi"].into_iter().zip(numbers).collect::<Vec<_>>()),
        _ => ec(&pkcs8).map(|d| vec![("d", d)]),
    };
    let members = members.ok_or_else(|| Failure::new("could not marshal private key: malformed PKCS#8"))?;
    let mut json = public.strip_suffix('}').unwrap_or(&public).to_owned();
    for (name, bytes) in members {
        json.push_str(&format!(",\"{name}\":\"{}\"", BASE64_URL_SAFE_NO_PAD.encode(bytes)));
    }
    json.push('}');
    Ok(json)
}

/// The private scalar, of the curve's length: PrivateKeyInfo (RFC 5208) around ECPrivateKey (RFC 5915).
fn ec(pkcs8: &[u8]) -> Option<&[u8]> {
    let (_, fields) = take(private_key(pkcs8)?, SEQUENCE).map(|(body, _)| take(body, INTEGER))??;
    take(fields, OCTETS).map(|(scalar, _)| scalar)
}

/// d, p, q, dp, dq, qi: PrivateKeyInfo around RSAPrivateKey (RFC 8017, A.1.2).
fn rsa(pkcs8: &[u8]) -> Option<Vec<&[u8]>> {
    let (mut fields, _) = take(private_key(pkcs8)?, SEQUENCE)?;
    let mut numbers = Vec::with_capacity(9);
    for _ in 0..9 {
        let (number, rest) = take(fields, INTEGER)?;
        numbers.push(number.strip_prefix(&[0]).unwrap_or(number));
        fields = rest;
    }
    // Before d come the version, the modulus and the public exponent.
    Some(numbers.split_off(3))
}

/// The octets of the private key: behind version and algorithm.
fn private_key(pkcs8: &[u8]) -> Option<&[u8]> {
    let (info, _) = take(pkcs8, SEQUENCE)?;
    let (_, info) = take(info, INTEGER)?;
    let (_, info) = take(info, SEQUENCE)?;
    take(info, OCTETS).map(|(octets, _)| octets)
}

/// One DER element of this tag: its contents, and what follows.
fn take(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let rest = der.strip_prefix(&[tag])?;
    let (&first, rest) = rest.split_first()?;
    let (len, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x83 => {
            let (length, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (length.iter().fold(0, |len, byte| len << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    rest.split_at_checked(len)
}

#[cfg(test)]
mod tests {
    use spire_core::pki::KeyType;

    use super::*;

    #[test]
    fn keys_have_all_their_members() {
        for (kind, names, d_len) in [
            (KeyType::EcP256, "kty crv x y d", 32),
            (KeyType::EcP384, "kty crv x y d", 48),
            (KeyType::Rsa2048, "kty n e d p q dp dq qi", 256),
        ] {
            let json = encode(&LocalKey::generate(kind).unwrap()).unwrap();
            let value: serde_json::Value = serde_json::from_str(&json).unwrap();
            let positions: Vec<_> = names
                .split(' ')
                .map(|n| json.find(&format!("\"{n}\":")).unwrap_or_else(|| panic!("{n}")))
                .collect();
            assert!(positions.is_sorted(), "{names}");
            assert_eq!(value.as_object().unwrap().len(), names.split(' ').count());
            let d = BASE64_URL_SAFE_NO_PAD.decode(value["d"].as_str().unwrap()).unwrap();
            // d of RSA may have a zero in front, which is left out.
            assert!(d.len() <= d_len && d.len() + 2 >= d_len, "{kind:?} {}", d.len());
        }
    }

    #[test]
    fn damaged_keys_are_refused() {
        let pkcs8 = LocalKey::generate(KeyType::EcP256).unwrap().to_pkcs8().unwrap();
        for cut in 0..30 {
            assert_eq!(ec(&pkcs8[..cut]), None, "{cut}");
        }
    }
}
