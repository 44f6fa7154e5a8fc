//! Private host keys and what they sign: OpenSSH's own format without a passphrase, and those of PKCS#1, PKCS#8 and SEC 1.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPairComponents, PublicKeyComponents};
use aws_lc_rs::signature::{
    self, ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, ECDSA_P521_SHA512_ASN1_SIGNING,
    EcdsaKeyPair, EcdsaSigningAlgorithm, Ed25519KeyPair, KeyPair as _, RsaKeyPair,
};
use spire_core::pki::pem;
use zeroize::Zeroizing;

use super::Signature;
use super::key::{Curve, PublicKey};
use super::wire::{Reader, put_positive, put_string};
use crate::json::Base64;
use crate::x509pop::pss::element;

const MAGIC: &[u8] = b"openssh-key-v1\0";

/// A host's private key.
pub(super) enum Signer {
    Rsa(RsaKeyPair),
    Ecdsa(Curve, EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
}

impl Signer {
    /// Reads a key from PEM.
    ///
    /// # Errors
    /// The text of x/crypto/ssh where it has one.
    pub(super) fn from_pem(text: &[u8]) -> Result<Self, String> {
        let block = pem::blocks(text).next().ok_or("ssh: no key found")?;
        if String::from_utf8_lossy(text).contains("Proc-Type: 4,ENCRYPTED") {
            return Err("ssh: this private key is passphrase protected".to_owned());
        }
        let contents = Zeroizing::new(block.contents.to_vec());
        let rejected = |error: aws_lc_rs::error::KeyRejected| format!("ssh: unusable private key: {error}");
        match block.label.as_ref() {
            "OPENSSH PRIVATE KEY" => openssh(&contents),
            "RSA PRIVATE KEY" => RsaKeyPair::from_der(&contents).map(Self::Rsa).map_err(rejected),
            "EC PRIVATE KEY" => ecdsa(&contents).ok_or_else(|| "ssh: unsupported curve".to_owned()),
            "PRIVATE KEY" => {
                if let Ok(key) = RsaKeyPair::from_pkcs8(&contents) {
                    return Ok(Self::Rsa(key));
                }
                if let Ok(key) = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&contents) {
                    return Ok(Self::Ed25519(key));
                }
                ecdsa(&contents).ok_or_else(|| "ssh: unsupported private key".to_owned())
            }
            label => Err(format!("ssh: unsupported key type {label:?}")),
        }
    }

    /// The public key.
    pub(super) fn public_key(&self) -> Result<PublicKey, String> {
        let mut blob = Vec::new();
        match self {
            Self::Rsa(key) => {
                let numbers = || {
                    let (key, _) = element(key.public_key().as_ref(), 0x30)?;
                    let (n, rest) = element(key, 2)?;
                    Some((n, element(rest, 2)?.0))
                };
                let (n, e) = numbers().ok_or("ssh: malformed RSA key")?;
                put_string(&mut blob, b"ssh-rsa");
                put_positive(&mut blob, e);
                put_positive(&mut blob, n);
            }
            Self::Ecdsa(curve, key) => {
                put_string(&mut blob, curve.key_type().as_bytes());
                put_string(&mut blob, curve.name().as_bytes());
                put_string(&mut blob, key.public_key().as_ref());
            }
            Self::Ed25519(key) => {
                put_string(&mut blob, b"ssh-ed25519");
                put_string(&mut blob, key.public_key().as_ref());
            }
        }
        PublicKey::parse(&blob)
    }

    /// Signs a message. RSA keys sign with SHA-512; the reference's agents use SHA-1, and its server takes either.
    pub(super) fn sign(&self, message: &[u8]) -> Result<Signature, String> {
        let failed = |_| "the key cannot sign".to_owned();
        let random = SystemRandom::new();
        let (format, blob) = match self {
            Self::Rsa(key) => {
                let mut blob = vec![0; key.public_modulus_len()];
                key.sign(&signature::RSA_PKCS1_SHA512, &random, message, &mut blob).map_err(failed)?;
                ("rsa-sha2-512", blob)
            }
            Self::Ecdsa(curve, key) => {
                let der = key.sign(&random, message).map_err(failed)?;
                (curve.key_type(), numbers(der.as_ref()).ok_or("malformed ECDSA signature")?)
            }
            Self::Ed25519(key) => ("ssh-ed25519", key.sign(message).as_ref().to_vec()),
        };
        Ok(Signature { format: format.to_owned(), blob: Base64(blob), rest: None })
    }
}

fn signing(curve: Curve) -> &'static EcdsaSigningAlgorithm {
    match curve {
        Curve::P256 => &ECDSA_P256_SHA256_ASN1_SIGNING,
        Curve::P384 => &ECDSA_P384_SHA384_ASN1_SIGNING,
        Curve::P521 => &ECDSA_P521_SHA512_ASN1_SIGNING,
    }
}

fn ecdsa(der: &[u8]) -> Option<Signer> {
    Curve::ALL.into_iter().find_map(|curve| {
        EcdsaKeyPair::from_private_key_der(signing(curve), der).ok().map(|key| Signer::Ecdsa(curve, key))
    })
}

/// The two numbers of a DER signature as SSH writes them. P-521 has lengths of two bytes outside.
fn numbers(der: &[u8]) -> Option<Vec<u8>> {
    let body = match der {
        [0x30, 0x81, _, body @ ..] => body,
        [0x30, len, body @ ..] if *len < 0x80 => body,
        _ => return None,
    };
    let mut rest = body;
    let mut out = Vec::new();
    for _ in 0..2 {
        let [2, len, after @ ..] = rest else { return None };
        let (number, after) = after.split_at_checked(usize::from(*len))?;
        put_positive(&mut out, number);
        rest = after;
    }
    Some(out)
}

/// OpenSSH's PROTOCOL.key, without encryption and with one key.
fn openssh(contents: &[u8]) -> Result<Signer, String> {
    let body = contents.strip_prefix(MAGIC).ok_or("ssh: invalid openssh private key format")?;
    let mut reader = Reader(body);
    let (cipher, kdf, _kdf_options) = (reader.text()?, reader.text()?, reader.string()?);
    let count = reader.u32()?;
    if cipher != "none" || kdf != "none" {
        return Err("ssh: this private key is passphrase protected".to_owned());
    }
    if count != 1 {
        return Err("ssh: multi-key files are not supported".to_owned());
    }
    let public = PublicKey::parse(reader.string()?)?;
    let mut private = Reader(reader.string()?);
    if private.u32()? != private.u32()? {
        return Err("ssh: malformed OpenSSH key".to_owned());
    }
    let key_type = private.text()?;
    let rejected = |error: aws_lc_rs::error::KeyRejected| format!("ssh: unusable private key: {error}");
    let signer = match key_type {
        "ssh-rsa" => {
            let (n, e) = (private.positive()?, private.positive()?);
            let (d, q_inv) = (private.positive()?, private.positive()?);
            let (p, q) = (private.positive()?, private.positive()?);
            // Bounds the arithmetic below.
            if [n, d, p, q].iter().any(|number| number.len() > 1024) {
                return Err("ssh: rsa modulus too large".to_owned());
            }
            let (d_p, d_q) = (modulo_less_one(d, p), modulo_less_one(d, q));
            let components = KeyPairComponents::<&[u8]> {
                public_key: PublicKeyComponents { n, e },
                d,
                p,
                q,
                dP: &d_p,
                dQ: &d_q,
                qInv: q_inv,
            };
            Signer::Rsa(RsaKeyPair::from_components(&components).map_err(rejected)?)
        }
        "ssh-ed25519" => {
            let public = private.string()?;
            let seed = private.string()?.get(..32).ok_or("ssh: private key unexpected length")?;
            Signer::Ed25519(Ed25519KeyPair::from_seed_and_public_key(seed, public).map_err(rejected)?)
        }
        _ => {
            let curve = Curve::ALL.into_iter().find(|curve| curve.key_type() == key_type);
            let curve = curve.ok_or("ssh: unhandled key type")?;
            let (_name, point, number) = (private.string()?, private.string()?, private.positive()?);
            let size = point.len() / 2;
            let mut scalar = Zeroizing::new(vec![0; size.saturating_sub(number.len())]);
            scalar.extend_from_slice(number);
            let key = EcdsaKeyPair::from_private_key_and_public_key(signing(curve), &scalar, point);
            Signer::Ecdsa(curve, key.map_err(rejected)?)
        }
    };
    if signer.public_key()? != public {
        return Err("ssh: malformed OpenSSH key".to_owned());
    }
    Ok(signer)
}

/// `number mod (modulus - 1)`, big-endian: what OpenSSH leaves out of an RSA key. One bit at a time, which is fast enough for
/// a key that is read once an attestation.
fn modulo_less_one(number: &[u8], modulus: &[u8]) -> Zeroizing<Vec<u8>> {
    let mut less = Zeroizing::new(modulus.to_vec());
    // A prime is odd, so nothing is borrowed.
    if let Some(last) = less.last_mut() {
        *last &= 0xfe;
    }
    let mut rest = Zeroizing::new(vec![0u8; less.len()]);
    for bit in number.iter().flat_map(|byte| (0..8).rev().map(move |shift| byte >> shift & 1)) {
        let mut carry = bit;
        for byte in rest.iter_mut().rev() {
            let next = *byte >> 7;
            *byte = *byte << 1 | carry;
            carry = next;
        }
        if carry == 1 || rest.as_slice() >= less.as_slice() {
            let mut borrow = false;
            for (byte, subtracted) in rest.iter_mut().zip(less.iter()).rev() {
                let (difference, first) = byte.overflowing_sub(*subtracted);
                let (difference, second) = difference.overflowing_sub(u8::from(borrow));
                (*byte, borrow) = (difference, first || second);
            }
        }
    }
    rest
}
