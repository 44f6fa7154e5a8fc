//! Signatures that OpenSSL made or checked, with salts of several lengths, and every one of their bits turned.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use spire_core::pki::{KeyType, LocalKey, PublicKey, SignatureAlgorithm};

use super::{modulus_and_exponent, power, verify_any_salt, verify_sha256};

const MESSAGE: &[u8] = b"salted with as much as fits";
/// 2048 bits: `openssl genrsa 2048`.
const KEY: &str = "MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAveH49DlqOMHAtbriGai255YGvAzQoYI7j8bDwC9NDYoKDomviGYUMRPO\
    ksS75gNaQpTuBjQt4bSeYKNGzk7xDj2Ms6/FAvMuVDdBxUnir1zYOlq05mo6WaWN8ogznPvohdW/lNNHfDI1Z7FpDAIvSo+mU1fK\
    2vCc/uv+8cwXkVy6xbx+a89H3j4TnaJFlBPlHTCqJreVBwN47zErVO9XKVHMsyRL+hc4N890JoYGuNMXT8tQkwcGP/hkr90+93EC\
    oEFazVcavfZUS95KY10aDQiR7PVqkJgVGMEEiVNCGVuzAlOO+HAAl9FfiY2E8aZwPKxuuRdfhOUJaH6l4uitIwIDAQAB";
/// `openssl dgst -sha256 -sigopt rsa_padding_mode:pss -sigopt rsa_pss_saltlen:max`.
const MAX_SALT: &str = "RXwMmzqWKBkWYZxrz0K0Zc0taYyyPpNV6mCr+6mIakJ7Yi5JXrlhr2euoBomvb4qQB11ZvUYkzJfxBQYsBN6Ju71R9jKjEN+GJQj\
    vQO7Fcl9Cpad7kbwGaaC4gBvzSlyAYkSHHnILst7zmpavTQJ3ZOUtnpsR6Ql9rIOfV9GT4K/w8XSvF829xcMKxhxGCbHM/X1xP0K\
    AU/zk0S50tms/AXMTDMOLMrGglNDvezlcAnrB9/65yn0gz0Ohyoa9DKSS6UuHyJWOSUz+o2l9FnZcboQ8mmYJb84GRBitg56Lz51\
    FlJOo/+7nfNFgy2Im0boNV+vsoVA76WNLNxJam2Ycw==";
/// The same with `rsa_pss_saltlen:0`.
const NO_SALT: &str = "aoCxqIwOiDwFif4XA72llRM7UsMqHRxjzsZW+P3/LxgKeIGx4xGe/wk1rShIy6JqfTjocYhFQtxrdzCe+jt1jFa44lzwEeDOafbu\
    5nWow7jvMqbUy5tOgll6/jlPIRFx1U2jj065sWoPUhq3N+mGBOpL/tYfZU4S8uWEAC4d6KWudyHUd5e7g6bmX8GDf5FJ3WUMaYtx\
    6shFD/EagAS9mjPl5mOPk0WO5ITREiqMJP/h1naCCc0HTkAn8+ZLXT4ij9nmg8Zyj1fRbDpDPJTJjNOpY255pKF57xeHLk6pEfI7\
    0BNMJDdQIKk7S/ANKuMlbYDM6E5YpjhxG+AbjQ+V2A==";
/// 2049 bits, where the encoding is a byte shorter than the modulus.
const ODD_KEY: &str = "MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEBe72/mUZLQ207xzjDZseXHqi8jEE1wjA4P6RISrugvQqaJM3MXlcIH8h9\
    SlPXNVDLTx6JSBW7MmCWDswOoszm5LQyIbBlzkB/jawQwowOP5gEb/f+RN2L5h2LgElU5yxBcj72dWxhTrHZUsMZQ4+8ZJy7GFR2\
    ji7QED0JGLB956o58/x/TdXLWSkVcY2jbBb/bTDdgsud8BZB4Fu9KDXG4qiOhZdETB31Yikb5nEcGxILqBGA0lEXJk8KQABHKxvX\
    kkUxOKKU9uhIs4cDEN8zF7SohbeRFTpBGb02Mt9A9n6HmYmxFwRtVSsX7LXL1U0aaKNFiaKduPEwqC5zXKIy+wIDAQAB";
const ODD_MAX_SALT: &str = "ASr+GSZe8IriyMewq6XOVkupES79pxRGAnY/lvuHuxwzESpPizSzahX5hzxq+c3JOa+CR8iZemrpLyP3/DeG0aliJP+DI3IKJ782\
    k209UcQi3ru5jDqqIdL4tBaX2a8/+ejO0Kmc8QOGWLu6uowRJAMnJO4oKNyT+zxIr0D+DrcdLttejMM4FzutweHfYVWQrlOlPRmF\
    th5mxBA6vE8USxM5xlThfwEHVpXkKJFsrG12QbgippsmnYssl2/AKHQp/z0c96UgxlZ0S5li11WO185c+nx3vrq4P8+zAX508/bG\
    EHjUiaQLK6iwriJcm2zFDIZJNJrQ6+jO+hDDmQ5dMx8=";

fn decode(text: &str) -> Vec<u8> {
    STANDARD.decode(text).unwrap()
}

#[test]
fn salts_of_any_length() {
    for (key, signature) in [(KEY, MAX_SALT), (KEY, NO_SALT), (ODD_KEY, ODD_MAX_SALT)] {
        let key = PublicKey::from_spki(decode(key)).unwrap();
        let signature = decode(signature);
        assert!(verify_sha256(&key, MESSAGE, &signature));
        assert!(!verify_sha256(&key, b"another message", &signature));
        assert!(!verify_sha256(&key, MESSAGE, &signature[1..]));
        assert!(!verify_sha256(&key, MESSAGE, &[&[0], &signature[..]].concat()));
        for byte in (0..signature.len()).step_by(37) {
            let mut changed = signature.clone();
            changed[byte] ^= 1 << (byte % 8);
            assert!(!verify_sha256(&key, MESSAGE, &changed), "byte {byte}");
        }
    }
    let key = PublicKey::from_spki(decode(KEY)).unwrap();
    assert!(!verify_sha256(&key, MESSAGE, &decode(ODD_MAX_SALT)));
}

/// What the library accepts, the code that takes any salt accepts too; so both agree on everything else.
#[test]
fn agrees_with_the_library() {
    let local = LocalKey::generate(KeyType::Rsa2048).unwrap();
    let (n, e) = modulus_and_exponent(local.public_key().spki()).unwrap();
    for message in [&b""[..], b"a", &[7; 500]] {
        let signature = local.sign(SignatureAlgorithm::RsaPssSha256, message).unwrap();
        assert!(verify_any_salt(n, e, message, &signature));
        let pkcs1 = local.sign(SignatureAlgorithm::RsaPkcs1Sha256, message).unwrap();
        assert!(!verify_any_salt(n, e, message, &pkcs1));
    }
    // Zero, one, n - 1 and n itself are not signatures.
    let len = n.len();
    let small = |last| [vec![0; len - 1], vec![last]].concat();
    let mut below = n.to_vec();
    below[len - 1] -= 1;
    for signature in [small(0), small(1), below, n.to_vec(), vec![0xff; len], vec![]] {
        assert!(!verify_any_salt(n, e, b"a", &signature));
    }
}

#[test]
fn powers() {
    let be = |value: u128| value.to_be_bytes()[16 - 9..].to_vec();
    let modulus: u128 = (0x1_0000_0000_0000_0001_u128 * 0x51) | 1;
    for base in [0, 1, 2, 0xdead_beef_u128, modulus - 1] {
        for exponent in [1u32, 2, 3, 17, 65537] {
            // By repeated squaring with 256-bit care: doubling and adding never exceed 2 * modulus.
            let product = |a: u128, b: u128| {
                (0..128).rev().fold(0, |sum, bit| {
                    let sum = sum * 2 % modulus;
                    if b >> bit & 1 == 1 { (sum + a) % modulus } else { sum }
                })
            };
            let expected = (0..32).rev().fold(1, |result, bit| {
                let result = product(result, result);
                if exponent >> bit & 1 == 1 { product(result, base) } else { result }
            });
            let found = power(&be(base), &exponent.to_be_bytes(), &be(modulus));
            assert_eq!(found, Some(be(expected)), "{base} ^ {exponent}");
        }
    }
    assert_eq!(power(&[1], &[1], &[4]), None, "an even modulus");
}
