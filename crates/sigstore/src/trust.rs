//! Whom signatures are believed for: Fulcio's authorities, the keys of transparency logs (Rekor) and of certificate
//! transparency logs.
//!
//! They come from files that cosign's environment variables name.

use std::collections::BTreeMap;

use spire_compat::files::read_bounded;
use spire_core::pki::{Certificate, HashAlgorithm, PublicKey, PublicKeyKind, pem};

use crate::settings::Settings;

/// The file with Fulcio's root and intermediate certificates, PEM.
pub(crate) const ROOT_FILE: &str = "SIGSTORE_ROOT_FILE";
/// The file with the public key of Rekor, PEM.
pub(crate) const REKOR_KEY: &str = "SIGSTORE_REKOR_PUBLIC_KEY";
/// The file with the public key of the certificate transparency log, PEM.
pub(crate) const CT_KEY: &str = "SIGSTORE_CT_LOG_PUBLIC_KEY_FILE";

/// Far more than a few certificates need.
const FILE_MAX: u64 = 1 << 20;

/// Why there is nobody to believe. The texts of what the reference has too are its own.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// A variable is not set, and what it would name is needed.
    #[error(
        "failed to get {what}: the trust root of the public good instance is not fetched yet: set {variable} to the path of \
         a file{hint}"
    )]
    Unset {
        /// What it would hold.
        what: &'static str,
        /// The variable.
        variable: &'static str,
        /// A setting that would make it unnecessary, with its punctuation.
        hint: &'static str,
    },
    /// A file cannot be used.
    #[error("failed to get {what}: {variable}: {reason}")]
    File {
        /// What it should hold.
        what: &'static str,
        /// The variable that names it.
        variable: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

/// The keys of logs, by the hex of the SHA-256 of their SubjectPublicKeyInfo (RFC 6962, section 3.2).
#[derive(Clone, Debug, Default)]
pub(crate) struct LogKeys(BTreeMap<String, PublicKey>);

impl LogKeys {
    pub(crate) fn add(&mut self, key: PublicKey) {
        self.0.insert(hex::encode(HashAlgorithm::Sha256.digest(key.spki())), key);
    }

    pub(crate) fn find(&self, log_id: &str) -> Option<&PublicKey> {
        self.0.get(log_id)
    }
}

/// Whom signatures are believed for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Trust {
    pub(crate) roots: Vec<Certificate>,
    pub(crate) intermediates: Vec<Certificate>,
    /// Empty where logs do not count.
    pub(crate) rekor: LogKeys,
    /// Empty where certificate transparency does not count.
    pub(crate) ct: LogKeys,
}

impl Trust {
    /// From the files that `environment` names, as far as the settings need them.
    pub(crate) fn load(
        settings: &Settings,
        environment: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, TrustError> {
        let mut trust = Self::default();
        let what = "fulcio root certificates";
        let text = read(&environment, what, ROOT_FILE, "")?;
        let failed = |reason: String| TrustError::File { what, variable: ROOT_FILE, reason };
        for certificate in pem::certificates(&text).map_err(|error| failed(error.to_string()))? {
            // As cosign tells them apart.
            if certificate.subject_der() == certificate.issuer_der() {
                trust.roots.push(certificate);
            } else {
                trust.intermediates.push(certificate);
            }
        }
        if trust.roots.is_empty() {
            return Err(failed("no self-signed certificate".to_owned()));
        }
        if !settings.ignore_tlog {
            let what = "rekor public keys";
            let text = read(&environment, what, REKOR_KEY, ", or ignore_tlog to true")?;
            let failed =
                |reason: &str| TrustError::File { what, variable: REKOR_KEY, reason: reason.to_owned() };
            let key = public_key(&text).map_err(|error| failed(&error))?;
            if matches!(key.kind(), PublicKeyKind::Rsa { .. } | PublicKeyKind::Ed25519) {
                return Err(failed("the key is not one for ECDSA"));
            }
            trust.rekor.add(key);
        }
        if !settings.ignore_sct {
            let what = "CT log public keys";
            let text = read(&environment, what, CT_KEY, ", or ignore_sct to true")?;
            let failed = |reason| TrustError::File { what, variable: CT_KEY, reason };
            trust.ct.add(public_key(&text).map_err(failed)?);
        }
        Ok(trust)
    }
}

/// The first block of a PEM text (sigstore's pkg/cryptoutils UnmarshalPEMToPublicKey).
fn public_key(text: &[u8]) -> Result<PublicKey, String> {
    let block = pem::blocks(text).next().ok_or("PEM decoding failed")?;
    if block.label != "PUBLIC KEY" {
        return Err(format!("unknown Public key PEM file type: {}", block.label));
    }
    PublicKey::from_spki(block.contents).map_err(|error| error.to_string())
}

fn read(
    environment: impl Fn(&str) -> Option<String>,
    what: &'static str,
    variable: &'static str,
    hint: &'static str,
) -> Result<Vec<u8>, TrustError> {
    let path = environment(variable).filter(|path| !path.is_empty());
    let path = path.ok_or(TrustError::Unset { what, variable, hint })?;
    let contents = read_bounded(&path, FILE_MAX);
    let contents =
        contents.map_err(|error| TrustError::File { what, variable, reason: error.to_string() })?;
    Ok(contents.to_vec())
}
