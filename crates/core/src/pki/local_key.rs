//! Private keys in this process: made, read and used.
//!
//! The crate's rule against system randomness has one exception, and it is here: the crypto library
//! draws its own entropy to make keys and to blind and salt signatures. Nothing else does.

use std::fmt;

use aws_lc_rs::digest::Digest;
use aws_lc_rs::encoding::{AsBigEndian, AsDer, EcPrivateKeyBin};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    self, EcdsaKeyPair, EcdsaSigningAlgorithm, KeyPair as _, RsaEncoding, RsaKeyPair,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use zeroize::Zeroizing;

use super::algorithm::{HashAlgorithm, KeyType, SignatureAlgorithm};
use super::der::{DerResult, Reader, tag};
use super::jwk::Jwk;
use super::key::{PublicKey, PublicKeyKind};
use super::{oid, pem};

/// The longest private key that is read: RSA with 8192 bits needs under 5 KiB.
const MAX_KEY_BYTES: usize = 16 * 1024;

/// Why a private key cannot be read, made or used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrivateKeyError {
    /// Neither PKCS#8 nor PKCS#1 nor SEC 1, not consistent with itself, or RSA outside of 2048 to 8192 bits.
    #[error("malformed private key")]
    Malformed,
    /// Not a P-256, P-384 or RSA key, or longer than any that we use.
    #[error("unsupported private key type")]
    Unsupported,
    /// No PEM block of a private key.
    #[error("no PEM block of a private key")]
    NoPem,
    /// The key cannot sign with that algorithm.
    #[error("private key cannot sign with {0:?}")]
    Algorithm(SignatureAlgorithm),
    /// The crypto library failed, for want of entropy for example.
    #[error("cryptographic operation failed")]
    Crypto,
}

/// A private key in memory. Prints its public part only.
pub struct LocalKey {
    pair: Pair,
    public: PublicKey,
}

enum Pair {
    Ec(EcdsaKeyPair),
    Rsa(RsaKeyPair),
}

impl LocalKey {
    /// A new key from the crypto library's entropy. RSA takes from tens of milliseconds to seconds.
    ///
    /// # Errors
    /// [`PrivateKeyError::Crypto`] when the crypto library fails, for want of entropy for example.
    pub fn generate(key_type: KeyType) -> Result<Self, PrivateKeyError> {
        let pair = match key_type {
            KeyType::EcP256 => Pair::Ec(
                EcdsaKeyPair::generate(&signature::ECDSA_P256_SHA256_ASN1_SIGNING)
                    .map_err(|_| PrivateKeyError::Crypto)?,
            ),
            KeyType::EcP384 => Pair::Ec(
                EcdsaKeyPair::generate(&signature::ECDSA_P384_SHA384_ASN1_SIGNING)
                    .map_err(|_| PrivateKeyError::Crypto)?,
            ),
            KeyType::Rsa2048 => {
                Pair::Rsa(RsaKeyPair::generate(KeySize::Rsa2048).map_err(|_| PrivateKeyError::Crypto)?)
            }
            KeyType::Rsa4096 => {
                Pair::Rsa(RsaKeyPair::generate(KeySize::Rsa4096).map_err(|_| PrivateKeyError::Crypto)?)
            }
        };
        Self::from_pair(pair)
    }

    /// From an unencrypted PKCS#8 document.
    ///
    /// # Errors
    /// [`PrivateKeyError::Unsupported`] for another algorithm or curve and beyond 16 KiB;
    /// [`PrivateKeyError::Malformed`] for what the crypto library refuses, which RSA outside of 2048 to
    /// 8192 bits is, too.
    pub fn from_pkcs8(der: &[u8]) -> Result<Self, PrivateKeyError> {
        if der.len() > MAX_KEY_BYTES {
            return Err(PrivateKeyError::Unsupported);
        }
        let mut info = Reader::new(der).sequence().map_err(|_| PrivateKeyError::Malformed)?;
        let mut algorithm =
            info.integer().and_then(|_| info.sequence()).map_err(|_| PrivateKeyError::Malformed)?;
        let family = algorithm.read(tag::OID).map_err(|_| PrivateKeyError::Malformed)?;
        if family == oid::RSA_ENCRYPTION {
            let pair = RsaKeyPair::from_pkcs8(der).map_err(|_| PrivateKeyError::Malformed)?;
            return Self::from_pair(Pair::Rsa(pair));
        }
        if family != oid::EC_PUBLIC_KEY {
            return Err(PrivateKeyError::Unsupported);
        }
        let curve = algorithm.read(tag::OID).map_err(|_| PrivateKeyError::Malformed)?;
        let signing = ec_signing(curve).ok_or(PrivateKeyError::Unsupported)?;
        let pair = EcdsaKeyPair::from_pkcs8(signing, der).map_err(|_| PrivateKeyError::Malformed)?;
        Self::from_pair(Pair::Ec(pair))
    }

    /// From an RSAPrivateKey (PKCS#1).
    ///
    /// # Errors
    /// [`PrivateKeyError::Unsupported`] beyond 16 KiB; [`PrivateKeyError::Malformed`] as
    /// [`LocalKey::from_pkcs8`].
    pub fn from_pkcs1(der: &[u8]) -> Result<Self, PrivateKeyError> {
        if der.len() > MAX_KEY_BYTES {
            return Err(PrivateKeyError::Unsupported);
        }
        let pair = RsaKeyPair::from_der(der).map_err(|_| PrivateKeyError::Malformed)?;
        Self::from_pair(Pair::Rsa(pair))
    }

    /// From an ECPrivateKey (SEC 1, RFC 5915) that names its curve.
    ///
    /// # Errors
    /// [`PrivateKeyError::Unsupported`] for another curve and beyond 16 KiB; [`PrivateKeyError::Malformed`]
    /// for all else, a key that does not name its curve among it.
    pub fn from_sec1(der: &[u8]) -> Result<Self, PrivateKeyError> {
        if der.len() > MAX_KEY_BYTES {
            return Err(PrivateKeyError::Unsupported);
        }
        let curve = sec1_curve(der).ok_or(PrivateKeyError::Malformed)?;
        let signing = ec_signing(curve).ok_or(PrivateKeyError::Unsupported)?;
        let pair =
            EcdsaKeyPair::from_private_key_der(signing, der).map_err(|_| PrivateKeyError::Malformed)?;
        Self::from_pair(Pair::Ec(pair))
    }

    /// From DER of any of the three forms, tried in the order PKCS#8, SEC 1, PKCS#1.
    ///
    /// # Errors
    /// That of [`LocalKey::from_pkcs8`] unless it is [`PrivateKeyError::Malformed`], else that of
    /// [`LocalKey::from_pkcs1`], which is tried last.
    pub fn from_der(der: &[u8]) -> Result<Self, PrivateKeyError> {
        match Self::from_pkcs8(der) {
            Err(PrivateKeyError::Malformed) => Self::from_sec1(der).or_else(|_| Self::from_pkcs1(der)),
            result => result,
        }
    }

    /// From the first PEM block of a private key: `PRIVATE KEY`, `EC PRIVATE KEY` or `RSA PRIVATE KEY`.
    /// Other blocks before it (EC PARAMETERS, certificates) are passed over.
    ///
    /// # Errors
    /// [`PrivateKeyError::NoPem`] when there is no such block, otherwise that of the form which the block's
    /// label names.
    pub fn from_pem(text: &[u8]) -> Result<Self, PrivateKeyError> {
        for block in pem::blocks(text) {
            let der = Zeroizing::new(block.contents);
            match block.label.as_str() {
                "PRIVATE KEY" => return Self::from_pkcs8(&der),
                "EC PRIVATE KEY" => return Self::from_sec1(&der),
                "RSA PRIVATE KEY" => return Self::from_pkcs1(&der),
                _ => {}
            }
        }
        Err(PrivateKeyError::NoPem)
    }

    /// As PKCS#8, DER; the buffer is wiped when dropped.
    ///
    /// # Errors
    /// [`PrivateKeyError::Crypto`] when the crypto library cannot encode it.
    pub fn to_pkcs8(&self) -> Result<Zeroizing<Vec<u8>>, PrivateKeyError> {
        let bytes = match &self.pair {
            Pair::Ec(pair) => pair.to_pkcs8v1().map_err(|_| PrivateKeyError::Crypto)?.as_ref().to_vec(),
            Pair::Rsa(pair) => pair.as_der().map_err(|_| PrivateKeyError::Crypto)?.as_ref().to_vec(),
        };
        Ok(Zeroizing::new(bytes))
    }

    /// As a `PRIVATE KEY` PEM block.
    ///
    /// # Errors
    /// As [`LocalKey::to_pkcs8`].
    pub fn to_pkcs8_pem(&self) -> Result<Zeroizing<String>, PrivateKeyError> {
        Ok(Zeroizing::new(pem::encode("PRIVATE KEY", &self.to_pkcs8()?)))
    }

    /// As a private JWK in JSON with this `alg` (RFC 7518, sections 6.2.2 and 6.3.2).
    ///
    /// # Errors
    /// [`PrivateKeyError::Crypto`] when the crypto library cannot encode it.
    pub fn to_jwk(&self, alg: &str) -> Result<Zeroizing<String>, PrivateKeyError> {
        let mut jwk = Jwk::new(self.public.clone());
        jwk.alg = alg.to_owned();
        // Room for all of it: what outgrew its buffer would leave a copy of the secret behind.
        let mut out = Zeroizing::new(String::with_capacity(8 * 1024));
        jwk.push_json(&mut out);
        out.pop();
        let mut member = |name: &str, value: &[u8]| {
            for part in [",\"", name, "\":\""] {
                out.push_str(part);
            }
            URL_SAFE_NO_PAD.encode_string(value, &mut out);
            out.push('"');
        };
        match &self.pair {
            Pair::Ec(pair) => {
                let d: EcPrivateKeyBin<'_> =
                    pair.private_key().as_be_bytes().map_err(|_| PrivateKeyError::Crypto)?;
                member("d", d.as_ref());
            }
            Pair::Rsa(_) => {
                let der = self.to_pkcs8()?;
                let parts = rsa_parts(&der).map_err(|_| PrivateKeyError::Crypto)?;
                for (name, value) in ["d", "p", "q", "dp", "dq", "qi"].into_iter().zip(parts) {
                    member(name, value);
                }
            }
        }
        out.push('}');
        Ok(out)
    }

    /// The public part.
    pub fn public_key(&self) -> &PublicKey {
        &self.public
    }

    /// Signs a message. ECDSA signatures are DER; a key of a curve signs with that curve's hash only.
    ///
    /// # Errors
    /// [`PrivateKeyError::Algorithm`] when the key does not sign with it; [`PrivateKeyError::Crypto`] when
    /// the crypto library fails.
    pub fn sign(&self, algorithm: SignatureAlgorithm, message: &[u8]) -> Result<Vec<u8>, PrivateKeyError> {
        match &self.pair {
            Pair::Ec(pair) if algorithm == self.public.signature_algorithm() => pair
                .sign(&SystemRandom::new(), message)
                .map(|s| s.as_ref().to_vec())
                .map_err(|_| PrivateKeyError::Crypto),
            Pair::Rsa(pair) => {
                let padding = rsa_padding(algorithm).ok_or(PrivateKeyError::Algorithm(algorithm))?;
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(padding, &SystemRandom::new(), message, &mut signature)
                    .map_err(|_| PrivateKeyError::Crypto)?;
                Ok(signature)
            }
            Pair::Ec(_) => Err(PrivateKeyError::Algorithm(algorithm)),
        }
    }

    /// Signs a hash that was computed elsewhere; its length must be that of the algorithm's hash.
    ///
    /// # Errors
    /// As [`LocalKey::sign`], [`PrivateKeyError::Algorithm`] also for a hash of another length.
    pub fn sign_digest(
        &self,
        algorithm: SignatureAlgorithm,
        hash: &[u8],
    ) -> Result<Vec<u8>, PrivateKeyError> {
        let unfit = PrivateKeyError::Algorithm(algorithm);
        let kind = algorithm.hash().map(HashAlgorithm::aws).ok_or(unfit)?;
        let digest = Digest::import_less_safe(hash, kind).map_err(|_| unfit)?;
        match &self.pair {
            Pair::Ec(pair) if algorithm == self.public.signature_algorithm() => {
                pair.sign_digest(&digest).map(|s| s.as_ref().to_vec()).map_err(|_| PrivateKeyError::Crypto)
            }
            Pair::Rsa(pair) => {
                let padding = rsa_padding(algorithm).ok_or(unfit)?;
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign_digest(padding, &digest, &mut signature).map_err(|_| PrivateKeyError::Crypto)?;
                Ok(signature)
            }
            Pair::Ec(_) => Err(unfit),
        }
    }

    fn from_pair(pair: Pair) -> Result<Self, PrivateKeyError> {
        let public = match &pair {
            Pair::Ec(ec) => {
                let point = ec.public_key().as_ref();
                let kind = if point.len() == 65 { PublicKeyKind::EcP256 } else { PublicKeyKind::EcP384 };
                PublicKey::from_ec_point(kind, point)
            }
            Pair::Rsa(rsa) => PublicKey::from_rsa_der(rsa.public_key().as_ref()),
        }
        .map_err(|_| PrivateKeyError::Unsupported)?;
        Ok(Self { pair, public })
    }
}

impl fmt::Debug for LocalKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalKey").field("public", &self.public).finish_non_exhaustive()
    }
}

fn ec_signing(curve: &[u8]) -> Option<&'static EcdsaSigningAlgorithm> {
    match curve {
        c if c == oid::P256 => Some(&signature::ECDSA_P256_SHA256_ASN1_SIGNING),
        c if c == oid::P384 => Some(&signature::ECDSA_P384_SHA384_ASN1_SIGNING),
        _ => None,
    }
}

/// `d`, `p`, `q`, `dp`, `dq` and `qi` of an RSA key in PKCS#8 (RFC 8017, appendix A.1.2).
fn rsa_parts(pkcs8: &[u8]) -> DerResult<[&[u8]; 6]> {
    let mut info = Reader::new(pkcs8).sequence()?;
    info.integer()?;
    info.sequence()?;
    let mut key = Reader::new(info.read(tag::OCTET_STRING)?).sequence()?;
    // The version, the modulus and the public exponent.
    for _ in 0..3 {
        key.integer()?;
    }
    let mut part = || key.unsigned();
    Ok([part()?, part()?, part()?, part()?, part()?, part()?])
}

fn sec1_curve(der: &[u8]) -> Option<&[u8]> {
    let mut outer = Reader::new(der);
    let mut key = outer.sequence().ok()?;
    outer.finish().ok()?;
    key.integer().ok()?;
    key.read(tag::OCTET_STRING).ok()?;
    Reader::new(key.optional(tag::constructed(0)).ok()??).read(tag::OID).ok()
}

fn rsa_padding(algorithm: SignatureAlgorithm) -> Option<&'static dyn RsaEncoding> {
    Some(match algorithm {
        SignatureAlgorithm::RsaPkcs1Sha256 => &signature::RSA_PKCS1_SHA256,
        SignatureAlgorithm::RsaPkcs1Sha384 => &signature::RSA_PKCS1_SHA384,
        SignatureAlgorithm::RsaPkcs1Sha512 => &signature::RSA_PKCS1_SHA512,
        SignatureAlgorithm::RsaPssSha256 => &signature::RSA_PSS_SHA256,
        SignatureAlgorithm::RsaPssSha384 => &signature::RSA_PSS_SHA384,
        SignatureAlgorithm::RsaPssSha512 => &signature::RSA_PSS_SHA512,
        _ => return None,
    })
}
