//! The public areas of keys (TPMT_PUBLIC, part 2, section 12.2.4), their names, and the templates of the keys that
//! both sides agree on.

use spire_core::pki::{PublicKey, PublicKeyError, PublicKeyKind};

use super::buffer::{DecodeError, Reader, Short, Writer};
use super::{UnsupportedHash, alg, curve, hash_algorithm};

/// What a key may do (TPMA_OBJECT, part 2, section 8.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Attributes(pub(crate) u32);

impl Attributes {
    /// It cannot leave its TPM.
    pub(crate) const FIXED_TPM: Self = Self(1 << 1);
    pub(crate) const FIXED_PARENT: Self = Self(1 << 4);
    /// The TPM made it; it was not imported.
    pub(crate) const SENSITIVE_DATA_ORIGIN: Self = Self(1 << 5);
    pub(crate) const USER_WITH_AUTH: Self = Self(1 << 6);
    pub(crate) const ADMIN_WITH_POLICY: Self = Self(1 << 7);
    pub(crate) const NO_DA: Self = Self(1 << 10);
    /// It signs only what the TPM says itself, or decrypts only what the TPM keeps to itself.
    pub(crate) const RESTRICTED: Self = Self(1 << 16);
    pub(crate) const DECRYPT: Self = Self(1 << 17);
    pub(crate) const SIGN: Self = Self(1 << 18);

    pub(crate) const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether all of `other` are set.
    pub(crate) const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether any of `other` is set.
    pub(crate) const fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

/// A key that its TPM made and that stays there.
const RESIDENT: Attributes =
    Attributes::FIXED_TPM.union(Attributes::FIXED_PARENT).union(Attributes::SENSITIVE_DATA_ORIGIN);
/// What every attestation key is: what it signs was said by the TPM that it is in.
pub(crate) const ATTESTATION_KEY: Attributes = RESIDENT.union(Attributes::RESTRICTED).union(Attributes::SIGN);
const STORAGE_KEY: Attributes = RESIDENT.union(Attributes::RESTRICTED).union(Attributes::DECRYPT);

/// The cipher that protects what a storage key holds (TPMT_SYM_DEF_OBJECT).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Symmetric {
    pub(crate) algorithm: u16,
    pub(crate) key_bits: u16,
    pub(crate) mode: u16,
}

/// A signing scheme (TPMT_SIG_SCHEME and the like), without the counter of ECDAA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Scheme {
    pub(crate) algorithm: u16,
    pub(crate) hash: u16,
}

/// The key itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Key<'a> {
    Rsa {
        /// Zero stands for 65537.
        exponent: u32,
        modulus: &'a [u8],
    },
    Ecc {
        curve: u16,
        x: &'a [u8],
        y: &'a [u8],
    },
}

/// A public area, borrowed from its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Public<'a> {
    bytes: &'a [u8],
    pub(crate) name_algorithm: u16,
    pub(crate) attributes: Attributes,
    pub(crate) symmetric: Option<Symmetric>,
    pub(crate) scheme: Option<Scheme>,
    pub(crate) key: Key<'a>,
}

/// Why a public area is not a key that we can use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum KeyError {
    /// A curve without a name in X.509.
    #[error("can't map TPM EC curve ID 0x{0:x} to Go elliptic.Curve value")]
    Curve(u16),
    /// Of another size than we use, or not a point of its curve.
    #[error(transparent)]
    Unusable(#[from] PublicKeyError),
}

fn short(part: &'static str) -> impl Fn(Short) -> DecodeError {
    move |short| DecodeError::Short(part, short)
}

impl<'a> Public<'a> {
    /// Reads a whole TPMT_PUBLIC of an RSA or ECC key.
    pub(crate) fn decode(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let head = short("TPMT_PUBLIC");
        let kind = reader.u16().map_err(&head)?;
        let name_algorithm = reader.u16().map_err(&head)?;
        let attributes = Attributes(reader.u32().map_err(&head)?);
        // A policy says who may use the key, which its TPM sees to.
        reader.sized().map_err(&head)?;
        if kind != alg::RSA && kind != alg::ECC {
            return Err(DecodeError::ObjectType(kind));
        }
        let symmetric = symmetric(&mut reader)?;
        let scheme = scheme(&mut reader).map_err(Detail::signing)?;
        let key = if kind == alg::RSA {
            let part = short("KeyBits, Exponent, Modulus");
            reader.u16().map_err(&part)?;
            let exponent = reader.u32().map_err(&part)?;
            Key::Rsa { exponent, modulus: reader.sized().map_err(&part)? }
        } else {
            let curve = reader.u16().map_err(short("CurveID"))?;
            // The derivation scheme; no TPM has one there.
            self::scheme(&mut reader).map_err(Detail::derivation)?;
            let part = short("Point");
            Key::Ecc { curve, x: reader.sized().map_err(&part)?, y: reader.sized().map_err(&part)? }
        };
        reader.finish("TPMT_PUBLIC")?;
        Ok(Self { bytes, name_algorithm, attributes, symmetric, scheme, key })
    }

    /// The key as certificates have it.
    pub(crate) fn public_key(&self) -> Result<PublicKey, KeyError> {
        match self.key {
            Key::Rsa { exponent, modulus } => {
                let exponent = if exponent == 0 { 65537 } else { exponent };
                Ok(PublicKey::from_rsa_parts(modulus, &exponent.to_be_bytes())?)
            }
            Key::Ecc { curve, x, y } => {
                let (kind, size) = match curve {
                    curve::P256 => (PublicKeyKind::EcP256, 32),
                    curve::P384 => (PublicKeyKind::EcP384, 48),
                    curve::P521 => (PublicKeyKind::EcP521, 66),
                    other => return Err(KeyError::Curve(other)),
                };
                let mut point = vec![0; 1 + 2 * size];
                point[0] = 4;
                for (number, end) in [(x, 1 + size), (y, 1 + 2 * size)] {
                    // Some TPMs leave leading zeros away.
                    let start = end - number.len().min(size);
                    if number.len() > size {
                        return Err(PublicKeyError::Malformed.into());
                    }
                    point[start..end].copy_from_slice(number);
                }
                Ok(PublicKey::from_ec_point(kind, &point)?)
            }
        }
    }

    /// The name: which hash, and the hash of the whole area (part 1, section 16).
    pub(crate) fn name(&self) -> Result<Vec<u8>, UnsupportedHash> {
        let digest = hash_algorithm(self.name_algorithm)?.digest(self.bytes);
        Ok([&self.name_algorithm.to_be_bytes(), digest.as_ref()].concat())
    }
}

/// What of a scheme could not be read.
enum Detail {
    Algorithm(Short),
    Hash(Short),
    Count(Short),
    Unknown(u16),
}

impl Detail {
    fn signing(self) -> DecodeError {
        match self {
            Self::Algorithm(error) => DecodeError::Short("Sign: decoding Alg", error),
            Self::Hash(error) => DecodeError::Short("Sign: decoding Hash", error),
            Self::Count(error) => DecodeError::Short("Sign: decoding Count", error),
            Self::Unknown(algorithm) => DecodeError::Scheme(algorithm),
        }
    }

    fn derivation(self) -> DecodeError {
        match self {
            Self::Algorithm(error) => DecodeError::Short("KDF: decoding Alg", error),
            Self::Hash(error) | Self::Count(error) => DecodeError::Short("KDF: decoding Hash", error),
            Self::Unknown(algorithm) => DecodeError::Scheme(algorithm),
        }
    }
}

fn symmetric(reader: &mut Reader<'_>) -> Result<Option<Symmetric>, DecodeError> {
    let algorithm = reader.u16().map_err(short("Symmetric: decoding Alg"))?;
    if algorithm == alg::NULL {
        return Ok(None);
    }
    let part = short("Symmetric: decoding KeyBits, Mode");
    let (key_bits, mode) = (reader.u16().map_err(&part)?, reader.u16().map_err(&part)?);
    Ok(Some(Symmetric { algorithm, key_bits, mode }))
}

/// Schemes are a number and a hash but for three: none, RSAES without a hash, ECDAA with a counter
/// (TPMU_ASYM_SCHEME, part 2, section 11.2.3.5; key derivation functions are 0x20 to 0x22).
fn scheme(reader: &mut Reader<'_>) -> Result<Option<Scheme>, Detail> {
    let algorithm = reader.u16().map_err(Detail::Algorithm)?;
    match algorithm {
        alg::NULL => return Ok(None),
        alg::RSAES => return Ok(Some(Scheme { algorithm, hash: alg::NULL })),
        alg::RSASSA | alg::RSAPSS | alg::OAEP | alg::ECDSA..=0x001d | 0x0007 | 0x0020..=0x0022 => {}
        other => return Err(Detail::Unknown(other)),
    }
    let hash = reader.u16().map_err(Detail::Hash)?;
    if algorithm == alg::ECDAA {
        reader.u16().map_err(Detail::Count)?;
    }
    Ok(Some(Scheme { algorithm, hash }))
}

/// The template of a key to be made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Template {
    attributes: Attributes,
    policy: &'static [u8],
    /// AES with 128 bits in CFB mode for storage keys, none for those that sign.
    stores: bool,
    scheme: Option<Scheme>,
    key: TemplateKey,
}

#[derive(Clone, Copy, Debug)]
enum TemplateKey {
    /// 2048 bits; how many zeros stand for the modulus is part of what a primary key is derived from.
    Rsa { zeros: usize },
    /// P-256.
    Ecc,
}

/// TPM2_PolicySecret of the endorsement hierarchy: who may use the EK (TCG EK Credential Profile 2.3, B.3, policy A).
const EK_POLICY: [u8; 32] = [
    0x83, 0x71, 0x97, 0x67, 0x44, 0x84, 0xb3, 0xf8, 0x1a, 0x90, 0xcc, 0x8d, 0x46, 0xa5, 0xd7, 0x24, 0xfd,
    0x52, 0xd7, 0x6e, 0x06, 0x52, 0x0b, 0x64, 0xf2, 0xa1, 0xda, 0x1b, 0x33, 0x14, 0x69, 0xaa,
];

/// The endorsement key, RSA (TCG EK Credential Profile 2.3, template L-1).
pub(crate) const EK_RSA: Template = Template {
    attributes: STORAGE_KEY.union(Attributes::ADMIN_WITH_POLICY),
    policy: &EK_POLICY,
    stores: true,
    scheme: None,
    key: TemplateKey::Rsa { zeros: 256 },
};
const STORAGE_ROOT: Attributes = STORAGE_KEY.union(Attributes::USER_WITH_AUTH).union(Attributes::NO_DA);
/// The storage root key above RSA keys (template H-1 without its policy, as the reference has it).
pub(crate) const SRK_RSA: Template = Template {
    attributes: STORAGE_ROOT,
    policy: &[],
    stores: true,
    scheme: None,
    key: TemplateKey::Rsa { zeros: 0 },
};
/// The storage root key above ECC keys (template H-2 likewise).
pub(crate) const SRK_ECC: Template = Template { key: TemplateKey::Ecc, ..SRK_RSA };
/// The attestation key, always RSA.
pub(crate) const AK_RSA: Template = Template {
    attributes: ATTESTATION_KEY.union(Attributes::USER_WITH_AUTH),
    policy: &[],
    stores: false,
    scheme: Some(Scheme { algorithm: alg::RSASSA, hash: alg::SHA256 }),
    key: TemplateKey::Rsa { zeros: 0 },
};

impl Template {
    /// As a TPMT_PUBLIC.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let kind = match self.key {
            TemplateKey::Rsa { .. } => alg::RSA,
            TemplateKey::Ecc => alg::ECC,
        };
        let mut writer =
            Writer::default().u16(kind).u16(alg::SHA256).u32(self.attributes.0).sized(self.policy);
        writer =
            if self.stores { writer.u16(alg::AES).u16(128).u16(alg::CFB) } else { writer.u16(alg::NULL) };
        writer = match self.scheme {
            Some(Scheme { algorithm, hash }) => writer.u16(algorithm).u16(hash),
            None => writer.u16(alg::NULL),
        };
        writer = match self.key {
            TemplateKey::Rsa { zeros } => writer.u16(2048).u32(0).sized(&vec![0; zeros]),
            TemplateKey::Ecc => writer.u16(curve::P256).u16(alg::NULL).sized(&[]).sized(&[]),
        };
        writer.finish().map(|bytes| bytes.to_vec()).unwrap_or_default()
    }
}
