//! Public keys: parsed once from SubjectPublicKeyInfo, with bounds, and used to verify.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::digest;
use aws_lc_rs::signature::{self, ParsedPublicKey, UnparsedPublicKey, VerificationAlgorithm};
use bytes::Bytes;

use super::algorithm::{Family, KeyType, SignatureAlgorithm};
use super::der::{DerError, Reader, Writer, tag};
use super::oid;

/// The longest SubjectPublicKeyInfo that is read; RSA with 8192 bits needs 1,060 bytes.
const MAX_SPKI_BYTES: usize = 2048;
/// Below this an RSA key is refused (the reference's JoseAlgFromPublicKey and Go's TLS agree).
const MIN_RSA_BITS: usize = 2048;
/// Above this one verification takes milliseconds, which a peer could make us pay for.
const MAX_RSA_BITS: usize = 8192;

/// Why bytes are not a public key that we use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublicKeyError {
    /// Not a SubjectPublicKeyInfo, or a point that is not on its curve.
    #[error("malformed public key")]
    Malformed,
    /// Longer than any key we accept.
    #[error("public key is too large")]
    TooLarge,
    /// An RSA modulus of that many bits.
    #[error("unsupported RSA key size: {0} bits; must be between 2048 and 8192")]
    RsaBits(usize),
    /// DSA, X25519, another curve.
    #[error("unsupported public key algorithm")]
    Unsupported,
}

impl From<DerError> for PublicKeyError {
    fn from(_: DerError) -> Self {
        Self::Malformed
    }
}

/// A signature does not match, or its algorithm does not fit the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("signature verification failed")]
pub struct BadSignature;

/// What kind of key it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PublicKeyKind {
    /// NIST P-256.
    EcP256,
    /// NIST P-384.
    EcP384,
    /// NIST P-521; verified, never made.
    EcP521,
    /// RSA with that many bits.
    Rsa {
        /// The size of the modulus.
        bits: usize,
    },
    /// Ed25519; verified, never made.
    Ed25519,
}

/// A valid public key with its SubjectPublicKeyInfo bytes. Cheap to clone; equal when the bytes are.
#[derive(Clone)]
pub struct PublicKey(Arc<Inner>);

struct Inner {
    spki: Bytes,
    kind: PublicKeyKind,
    /// Where in `spki` the contents of the BIT STRING are.
    key_at: usize,
    /// Ready for the algorithm that the kind of key uses by default.
    parsed: ParsedPublicKey,
}

impl PublicKey {
    /// From a SubjectPublicKeyInfo, DER (Go's PKIX form). Points must be on their curve.
    ///
    /// # Errors
    /// [`PublicKeyError::TooLarge`] beyond 2048 bytes, [`PublicKeyError::RsaBits`] for RSA outside of 2048
    /// to 8192 bits, [`PublicKeyError::Unsupported`] for another algorithm or curve, otherwise
    /// [`PublicKeyError::Malformed`].
    pub fn from_spki(spki: impl Into<Bytes>) -> Result<Self, PublicKeyError> {
        let spki = spki.into();
        if spki.len() > MAX_SPKI_BYTES {
            return Err(PublicKeyError::TooLarge);
        }
        let mut outer = Reader::new(&spki);
        let mut info = outer.sequence()?;
        outer.finish()?;
        let mut algorithm = info.sequence()?;
        let key = info.bit_bytes()?;
        info.finish()?;
        let family = algorithm.read(tag::OID)?;
        let kind = if family == oid::RSA_ENCRYPTION {
            // RFC 3279, 2.3.1: the parameters are NULL.
            if !algorithm.read(tag::NULL)?.is_empty() {
                return Err(PublicKeyError::Malformed);
            }
            PublicKeyKind::Rsa { bits: rsa_bits(key)? }
        } else if family == oid::EC_PUBLIC_KEY {
            let (kind, size) = match algorithm.read(tag::OID)? {
                c if c == oid::P256 => (PublicKeyKind::EcP256, 32),
                c if c == oid::P384 => (PublicKeyKind::EcP384, 48),
                c if c == oid::P521 => (PublicKeyKind::EcP521, 66),
                _ => return Err(PublicKeyError::Unsupported),
            };
            // Only uncompressed points, as Go.
            if key.first() != Some(&4) || key.len() != 1 + 2 * size {
                return Err(PublicKeyError::Malformed);
            }
            kind
        } else if family == oid::ED25519 {
            if key.len() != 32 {
                return Err(PublicKeyError::Malformed);
            }
            PublicKeyKind::Ed25519
        } else {
            return Err(PublicKeyError::Unsupported);
        };
        algorithm.finish()?;
        let key_at = spki.len() - key.len();
        let parsed = verification(kind, default_algorithm(kind))
            .and_then(|v| ParsedPublicKey::new(v, key).ok())
            .ok_or(PublicKeyError::Malformed)?;
        Ok(Self(Arc::new(Inner { spki, kind, key_at, parsed })))
    }

    /// From an uncompressed point (SEC 1, 2.3.3) on the curve of an elliptic `kind`.
    ///
    /// # Errors
    /// [`PublicKeyError::Unsupported`] when `kind` is not elliptic, otherwise as [`PublicKey::from_spki`].
    pub fn from_ec_point(kind: PublicKeyKind, point: &[u8]) -> Result<Self, PublicKeyError> {
        let curve = match kind {
            PublicKeyKind::EcP256 => oid::P256,
            PublicKeyKind::EcP384 => oid::P384,
            PublicKeyKind::EcP521 => oid::P521,
            _ => return Err(PublicKeyError::Unsupported),
        };
        let mut w = Writer::with_capacity(point.len() + 32);
        w.sequence(|w| {
            w.sequence(|w| {
                w.primitive(tag::OID, oid::EC_PUBLIC_KEY);
                w.primitive(tag::OID, curve);
            });
            w.bit_bytes(point);
        });
        Self::from_spki(w.into_bytes())
    }

    /// From an RSAPublicKey (PKCS#1), DER.
    pub(crate) fn from_rsa_der(key: &[u8]) -> Result<Self, PublicKeyError> {
        let mut w = Writer::with_capacity(key.len() + 32);
        w.sequence(|w| {
            w.sequence(|w| {
                w.primitive(tag::OID, oid::RSA_ENCRYPTION);
                w.primitive(tag::NULL, &[]);
            });
            w.bit_bytes(key);
        });
        Self::from_spki(w.into_bytes())
    }

    /// From the big-endian magnitudes of modulus and exponent.
    ///
    /// # Errors
    /// [`PublicKeyError::TooLarge`] when the modulus has more than 1025 bytes or the exponent more than 8,
    /// otherwise as [`PublicKey::from_spki`].
    pub fn from_rsa_parts(n: &[u8], e: &[u8]) -> Result<Self, PublicKeyError> {
        if n.len() > MAX_RSA_BITS / 8 + 1 || e.len() > 8 {
            return Err(PublicKeyError::TooLarge);
        }
        let mut w = Writer::with_capacity(n.len() + 16);
        w.sequence(|w| {
            w.unsigned(n);
            w.unsigned(e);
        });
        Self::from_rsa_der(&w.into_bytes())
    }

    /// From the 32 bytes of an Ed25519 key.
    pub(crate) fn from_ed25519(key: &[u8]) -> Result<Self, PublicKeyError> {
        let mut w = Writer::with_capacity(48);
        w.sequence(|w| {
            w.sequence(|w| w.primitive(tag::OID, oid::ED25519));
            w.bit_bytes(key);
        });
        Self::from_spki(w.into_bytes())
    }

    /// The SubjectPublicKeyInfo, DER.
    pub fn spki(&self) -> &Bytes {
        &self.0.spki
    }

    /// What kind of key it is.
    pub fn kind(&self) -> PublicKeyKind {
        self.0.kind
    }

    /// The configured name of its type; `None` for keys that we verify with but never make.
    pub fn key_type(&self) -> Option<KeyType> {
        match self.0.kind {
            PublicKeyKind::EcP256 => Some(KeyType::EcP256),
            PublicKeyKind::EcP384 => Some(KeyType::EcP384),
            PublicKeyKind::Rsa { bits: 2048 } => Some(KeyType::Rsa2048),
            PublicKeyKind::Rsa { bits: 4096 } => Some(KeyType::Rsa4096),
            _ => None,
        }
    }

    /// The algorithm that such a key signs certificates with by default, as Go chooses it.
    pub fn signature_algorithm(&self) -> SignatureAlgorithm {
        default_algorithm(self.0.kind)
    }

    /// The algorithm that such a key signs tokens with: RS256, ES256 or ES384 (the reference's
    /// pkg/common/cryptoutil JoseAlgFromPublicKey); `None` for other keys.
    pub fn jwt_algorithm(&self) -> Option<SignatureAlgorithm> {
        match self.0.kind {
            PublicKeyKind::EcP256 => Some(SignatureAlgorithm::EcdsaSha256),
            PublicKeyKind::EcP384 => Some(SignatureAlgorithm::EcdsaSha384),
            PublicKeyKind::Rsa { .. } => Some(SignatureAlgorithm::RsaPkcs1Sha256),
            _ => None,
        }
    }

    /// SHA-1 over the contents of the BIT STRING (RFC 5280, 4.2.1.2, method 1).
    pub fn subject_key_id(&self) -> SubjectKeyId {
        let mut id = [0; 20];
        id.copy_from_slice(digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, self.key_bytes()).as_ref());
        SubjectKeyId(id)
    }

    /// Verifies a signature over `message`; ECDSA signatures are DER. An algorithm of another family
    /// than the key's fails.
    ///
    /// # Errors
    /// [`BadSignature`]
    pub fn verify(
        &self,
        algorithm: SignatureAlgorithm,
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), BadSignature> {
        if algorithm == default_algorithm(self.0.kind) {
            return self.0.parsed.verify_sig(message, signature).map_err(|_| BadSignature);
        }
        let verification = verification(self.0.kind, algorithm).ok_or(BadSignature)?;
        UnparsedPublicKey::new(verification, self.key_bytes())
            .verify(message, signature)
            .map_err(|_| BadSignature)
    }

    pub(crate) fn family(&self) -> Family {
        match self.0.kind {
            PublicKeyKind::Rsa { .. } => Family::Rsa,
            PublicKeyKind::Ed25519 => Family::Ed25519,
            _ => Family::Ecdsa,
        }
    }

    /// The contents of the BIT STRING: a point, an RSAPublicKey or the Ed25519 bytes.
    pub(crate) fn key_bytes(&self) -> &[u8] {
        &self.0.spki[self.0.key_at..]
    }
}

impl PartialEq for PublicKey {
    fn eq(&self, other: &Self) -> bool {
        self.0.spki == other.0.spki
    }
}

impl Eq for PublicKey {}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PublicKey")
            .field("kind", &self.0.kind)
            .field("subject_key_id", &self.subject_key_id())
            .finish_non_exhaustive()
    }
}

/// The key identifier of a subject: 20 bytes. Prints as lower-case hex, the form of authority IDs.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SubjectKeyId([u8; 20]);

impl SubjectKeyId {
    /// The 20 bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for SubjectKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for SubjectKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn rsa_bits(key: &[u8]) -> Result<usize, PublicKeyError> {
    let mut outer = Reader::new(key);
    let mut parts = outer.sequence()?;
    outer.finish()?;
    let n = parts.unsigned()?;
    let e = parts.unsigned()?;
    parts.finish()?;
    let top = n.first().ok_or(PublicKeyError::Malformed)?;
    let bits = n.len() * 8 - top.leading_zeros() as usize;
    if !(MIN_RSA_BITS..=MAX_RSA_BITS).contains(&bits) {
        return Err(PublicKeyError::RsaBits(bits));
    }
    // Go holds the exponent in 31 bits.
    if e.is_empty() || e.len() > 4 {
        return Err(PublicKeyError::Malformed);
    }
    Ok(bits)
}

fn default_algorithm(kind: PublicKeyKind) -> SignatureAlgorithm {
    match kind {
        PublicKeyKind::EcP256 => SignatureAlgorithm::EcdsaSha256,
        PublicKeyKind::EcP384 => SignatureAlgorithm::EcdsaSha384,
        PublicKeyKind::EcP521 => SignatureAlgorithm::EcdsaSha512,
        PublicKeyKind::Rsa { .. } => SignatureAlgorithm::RsaPkcs1Sha256,
        PublicKeyKind::Ed25519 => SignatureAlgorithm::Ed25519,
    }
}

fn verification(
    kind: PublicKeyKind,
    algorithm: SignatureAlgorithm,
) -> Option<&'static dyn VerificationAlgorithm> {
    use PublicKeyKind::{EcP256, EcP384, EcP521, Rsa};
    use SignatureAlgorithm as A;

    Some(match (kind, algorithm) {
        (EcP256, A::EcdsaSha256) => &signature::ECDSA_P256_SHA256_ASN1,
        (EcP256, A::EcdsaSha384) => &signature::ECDSA_P256_SHA384_ASN1,
        (EcP256, A::EcdsaSha512) => &signature::ECDSA_P256_SHA512_ASN1,
        (EcP384, A::EcdsaSha256) => &signature::ECDSA_P384_SHA256_ASN1,
        (EcP384, A::EcdsaSha384) => &signature::ECDSA_P384_SHA384_ASN1,
        (EcP384, A::EcdsaSha512) => &signature::ECDSA_P384_SHA512_ASN1,
        (EcP521, A::EcdsaSha256) => &signature::ECDSA_P521_SHA256_ASN1,
        (EcP521, A::EcdsaSha384) => &signature::ECDSA_P521_SHA384_ASN1,
        (EcP521, A::EcdsaSha512) => &signature::ECDSA_P521_SHA512_ASN1,
        (Rsa { .. }, A::RsaPkcs1Sha256) => &signature::RSA_PKCS1_2048_8192_SHA256,
        (Rsa { .. }, A::RsaPkcs1Sha384) => &signature::RSA_PKCS1_2048_8192_SHA384,
        (Rsa { .. }, A::RsaPkcs1Sha512) => &signature::RSA_PKCS1_2048_8192_SHA512,
        (Rsa { .. }, A::RsaPssSha256) => &signature::RSA_PSS_2048_8192_SHA256,
        (Rsa { .. }, A::RsaPssSha384) => &signature::RSA_PSS_2048_8192_SHA384,
        (Rsa { .. }, A::RsaPssSha512) => &signature::RSA_PSS_2048_8192_SHA512,
        (PublicKeyKind::Ed25519, A::Ed25519) => &signature::ED25519,
        _ => return None,
    })
}
