//! TPM2_MakeCredential in software: a secret that only the TPM gives back that has a given endorsement key and, loaded
//! beside it, a key of a given name (part 1, section 24).

use aws_lc_rs::cipher::{
    AES_128, AES_192, AES_256, Algorithm, EncryptingKey, EncryptionContext, UnboundCipherKey,
};
use aws_lc_rs::iv::FixedLength;
use aws_lc_rs::rsa::{
    OAEP_SHA256_MGF1SHA256, OAEP_SHA384_MGF1SHA384, OAEP_SHA512_MGF1SHA512, OaepAlgorithm,
    OaepPublicEncryptingKey, PublicEncryptingKey,
};
use aws_lc_rs::{hmac, rand};
use spire_core::pki::HashAlgorithm;
use zeroize::Zeroizing;

use super::buffer::Writer;
use super::public::{Key, KeyError, Public, Symmetric};
use super::{UnsupportedHash, alg, hash_algorithm};

/// What tells the uses of the seed apart, with the zero that ends it where it is a label of OAEP.
const IDENTITY: &[u8] = b"IDENTITY\0";
const STORAGE: &[u8] = b"STORAGE";
const INTEGRITY: &[u8] = b"INTEGRITY";

/// Why no credential can be made for an endorsement key.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CredentialError {
    /// Only RSA keys have credentials here.
    #[error("unsupported algorithm")]
    NotRsa,
    /// A hash that we do not use.
    #[error(transparent)]
    Hash(#[from] UnsupportedHash),
    /// A key that we do not use.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// Not AES in CFB mode, as every TPM has it.
    #[error("symmetric cipher setup: unsupported cipher")]
    Cipher,
    /// The crypto library failed, for want of entropy for example.
    #[error("cryptographic operation failed")]
    Crypto,
}

/// A credential: the contents of a TPM2B_ID_OBJECT and of a TPM2B_ENCRYPTED_SECRET.
#[derive(Debug)]
pub(crate) struct Credential {
    pub(crate) object: Vec<u8>,
    pub(crate) secret: Vec<u8>,
}

/// The length of the secret that suits an endorsement key: that of its hash.
pub(crate) fn secret_len(endorsement: &Public<'_>) -> Result<usize, UnsupportedHash> {
    Ok(hash_algorithm(endorsement.name_algorithm)?.output_len())
}

/// Wraps `secret` for the TPM with `endorsement` and a key of this name.
pub(crate) fn make(
    endorsement: &Public<'_>,
    name: &[u8],
    secret: &[u8],
) -> Result<Credential, CredentialError> {
    if !matches!(endorsement.key, Key::Rsa { .. }) {
        return Err(CredentialError::NotRsa);
    }
    let hash = hash_algorithm(endorsement.name_algorithm)?;
    let (cipher, key_len) = cipher(endorsement.symmetric)?;
    // As long as the cipher's key (TCG EK Credential Profile 2.3, B.4.5).
    let mut seed = Zeroizing::new(vec![0; key_len]);
    rand::fill(&mut seed).map_err(|_| CredentialError::Crypto)?;
    let key = endorsement.public_key()?;
    let encrypted_seed = encrypt_seed(key.spki(), hash, &seed).ok_or(CredentialError::Crypto)?;

    let inner = Writer::default().sized(secret).finish().ok_or(CredentialError::Crypto)?;
    let storage_key = derive(hash, &seed, STORAGE, name, key_len);
    let identity = encrypt(cipher, &storage_key, inner.to_vec()).ok_or(CredentialError::Crypto)?;
    let mac_key = derive(hash, &seed, INTEGRITY, &[], hash.output_len());
    let mut mac = hmac::Context::with_key(&hmac::Key::new(hmac_algorithm(hash), &mac_key));
    mac.update(&identity);
    mac.update(name);
    let object = Writer::default().sized(mac.sign().as_ref()).raw(&identity);
    let object = object.finish().ok_or(CredentialError::Crypto)?.to_vec();
    Ok(Credential { object, secret: encrypted_seed })
}

/// The cipher and the length of its key in bytes.
fn cipher(symmetric: Option<Symmetric>) -> Result<(&'static Algorithm, usize), CredentialError> {
    match symmetric {
        Some(Symmetric { algorithm: alg::AES, key_bits, mode: alg::CFB }) => match key_bits {
            128 => Ok((&AES_128, 16)),
            192 => Ok((&AES_192, 24)),
            256 => Ok((&AES_256, 32)),
            _ => Err(CredentialError::Cipher),
        },
        _ => Err(CredentialError::Cipher),
    }
}

fn encrypt_seed(spki: &[u8], hash: HashAlgorithm, seed: &[u8]) -> Option<Vec<u8>> {
    let algorithm: &'static OaepAlgorithm = match hash {
        HashAlgorithm::Sha256 => &OAEP_SHA256_MGF1SHA256,
        HashAlgorithm::Sha384 => &OAEP_SHA384_MGF1SHA384,
        HashAlgorithm::Sha512 => &OAEP_SHA512_MGF1SHA512,
    };
    let key = OaepPublicEncryptingKey::new(PublicEncryptingKey::from_der(spki).ok()?).ok()?;
    let mut encrypted = vec![0; key.ciphertext_size()];
    let len = key.encrypt(algorithm, seed, &mut encrypted, Some(IDENTITY)).ok()?.len();
    encrypted.truncate(len);
    Some(encrypted)
}

/// CFB with zeros to begin with: the key is used once.
fn encrypt(cipher: &'static Algorithm, key: &[u8], mut text: Vec<u8>) -> Option<Vec<u8>> {
    let key = UnboundCipherKey::new(cipher, key).and_then(EncryptingKey::cfb128).ok()?;
    let start = EncryptionContext::Iv128(FixedLength::from([0; 16]));
    key.less_safe_encrypt(&mut text, start).ok()?;
    Some(text)
}

/// KDFa: a key from a seed (part 1, section 11.4.10.2).
pub(crate) fn derive(
    hash: HashAlgorithm,
    seed: &[u8],
    label: &[u8],
    context: &[u8],
    len: usize,
) -> Zeroizing<Vec<u8>> {
    let key = hmac::Key::new(hmac_algorithm(hash), seed);
    let bits = u32::try_from(len * 8).unwrap_or(u32::MAX);
    let mut derived = Zeroizing::new(Vec::with_capacity(len + hash.output_len()));
    for counter in 1_u32.. {
        if derived.len() >= len {
            break;
        }
        let mut mac = hmac::Context::with_key(&key);
        mac.update(&counter.to_be_bytes());
        mac.update(label);
        mac.update(&[0]);
        mac.update(context);
        mac.update(&bits.to_be_bytes());
        derived.extend_from_slice(mac.sign().as_ref());
    }
    derived.truncate(len);
    derived
}

fn hmac_algorithm(hash: HashAlgorithm) -> hmac::Algorithm {
    match hash {
        HashAlgorithm::Sha256 => hmac::HMAC_SHA256,
        HashAlgorithm::Sha384 => hmac::HMAC_SHA384,
        HashAlgorithm::Sha512 => hmac::HMAC_SHA512,
    }
}
