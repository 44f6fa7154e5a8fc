//! Proofs of a password (MySQL Internals: authentication methods).

use aws_lc_rs::digest::{Algorithm, SHA1_FOR_LEGACY_USE_ONLY, SHA256, digest};
use aws_lc_rs::rsa::{OAEP_SHA1_MGF1SHA1, OaepPublicEncryptingKey, PublicEncryptingKey};
use spire_core::pki::pem;

use super::Failure;

/// What the server's first message and the connection string say.
pub(super) struct Login<'a> {
    pub(super) password: &'a [u8],
    /// Whether nobody can listen: TLS, or a unix socket.
    pub(super) private: bool,
    pub(super) cleartext: bool,
    pub(super) native: bool,
}

/// How the server wants the proof.
pub(super) enum Method {
    Native,
    CachingSha2,
    Sha256,
    Clear,
}

impl Method {
    /// # Errors
    /// The driver's text for a method that it does not know.
    pub(super) fn named(name: &[u8]) -> Result<Self, Failure> {
        match name {
            b"mysql_native_password" => Ok(Self::Native),
            b"caching_sha2_password" => Ok(Self::CachingSha2),
            b"sha256_password" => Ok(Self::Sha256),
            b"mysql_clear_password" => Ok(Self::Clear),
            _ => Err(Failure::Protocol("this authentication plugin is not supported")),
        }
    }

    /// The first answer to the server's challenge.
    ///
    /// # Errors
    /// The connection string does not allow the method.
    pub(super) fn answer(&self, login: &Login<'_>, challenge: &[u8]) -> Result<Vec<u8>, Failure> {
        match self {
            Self::Native if !login.native => {
                Err(Failure::Protocol("this user requires mysql native password authentication"))
            }
            Self::Native => Ok(native(login.password, challenge)),
            Self::CachingSha2 => Ok(caching_sha2(login.password, challenge)),
            Self::Clear if !login.cleartext => Err(Failure::Protocol(
                "this user requires clear text authentication. If you still want to use it, please add \
                 'allowCleartextPasswords=1' to your DSN",
            )),
            Self::Clear => Ok(terminated(login.password)),
            Self::Sha256 if login.password.is_empty() => Ok(vec![0]),
            Self::Sha256 if login.private => Ok(terminated(login.password)),
            // Asks for the server's key.
            Self::Sha256 => Ok(vec![1]),
        }
    }
}

/// The password as it is, which ends in a zero.
pub(super) fn terminated(password: &[u8]) -> Vec<u8> {
    [password, &[0]].concat()
}

fn hash(algorithm: &'static Algorithm, parts: &[&[u8]]) -> Vec<u8> {
    digest(algorithm, &parts.concat()).as_ref().to_vec()
}

fn xor(a: &[u8], b: &[u8]) -> Vec<u8> {
    a.iter().zip(b.iter().cycle()).map(|(a, b)| a ^ b).collect()
}

/// SHA1(password) ⊕ SHA1(challenge, SHA1(SHA1(password)))
fn native(password: &[u8], challenge: &[u8]) -> Vec<u8> {
    if password.is_empty() {
        return Vec::new();
    }
    let once = hash(&SHA1_FOR_LEGACY_USE_ONLY, &[password]);
    let twice = hash(&SHA1_FOR_LEGACY_USE_ONLY, &[&once]);
    xor(&once, &hash(&SHA1_FOR_LEGACY_USE_ONLY, &[challenge, &twice]))
}

/// SHA256(password) ⊕ SHA256(SHA256(SHA256(password)), challenge)
fn caching_sha2(password: &[u8], challenge: &[u8]) -> Vec<u8> {
    if password.is_empty() {
        return Vec::new();
    }
    let once = hash(&SHA256, &[password]);
    let twice = hash(&SHA256, &[&once]);
    xor(&once, &hash(&SHA256, &[&twice, challenge]))
}

/// The password for a server that sent its public key, PEM.
///
/// # Errors
/// The key is none.
pub(super) fn encrypted(password: &[u8], challenge: &[u8], key: &[u8]) -> Result<Vec<u8>, Failure> {
    const UNUSABLE: Failure = Failure::Protocol("the server's public key is unusable");
    let block = pem::blocks(key).next().ok_or(UNUSABLE)?;
    let key = PublicEncryptingKey::from_der(&block.contents).map_err(|_| UNUSABLE)?;
    let key = OaepPublicEncryptingKey::new(key).map_err(|_| UNUSABLE)?;
    let mut out = vec![0; key.ciphertext_size()];
    let hidden = xor(&terminated(password), challenge);
    let length = key.encrypt(&OAEP_SHA1_MGF1SHA1, &hidden, &mut out, None).map_err(|_| UNUSABLE)?.len();
    out.truncate(length);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of the driver's tests (auth_test.go).
    #[test]
    fn proofs_are_those_of_the_driver() {
        let challenge = [10, 47, 74, 111, 75, 73, 34, 48, 88, 76, 114, 74, 37, 13, 3, 80, 82, 2, 23, 21];
        assert_eq!(
            hex::encode(caching_sha2(b"secret", &challenge)),
            "f490e76f66d9d86665ce54d98c78d0acfe2fb0b08b423da807144873d30b312c"
        );
        assert_eq!(
            hex::encode(caching_sha2(b"secret2", &challenge)),
            "abc3934a012cf342e876071c8ee202de51785b430258a7a0138bc79c4d800bc6"
        );
        assert!(caching_sha2(b"", &challenge).is_empty() && native(b"", &challenge).is_empty());
        let challenge = [70, 114, 92, 94, 1, 38, 11, 116, 63, 114, 23, 101, 126, 103, 26, 95, 81, 17, 24, 21];
        assert_eq!(
            native(b"secret", &challenge),
            [53, 177, 140, 159, 251, 189, 127, 53, 109, 252, 172, 50, 211, 192, 240, 164, 26, 48, 207, 45]
        );
    }

    #[test]
    fn methods_that_are_not_allowed_are_refused() {
        let login = Login { password: b"x", private: false, cleartext: false, native: false };
        assert!(Method::Native.answer(&login, b"").is_err());
        assert!(Method::Clear.answer(&login, b"").is_err());
        assert!(Method::named(b"dialog").is_err());
        assert_eq!(Method::Sha256.answer(&login, b"").unwrap(), [1]);
        assert!(encrypted(b"x", b"y", b"no key").is_err());
    }
}
