//! Whether the DevID key is in a TPM of a trusted manufacturer. Each step binds the next:
//!
//! 1. the endorsement certificate is of a trusted manufacturer, and its key is the endorsement key (EK);
//! 2. the attestation key (AK) certified the DevID key, which is the one of the DevID certificate;
//! 3. a secret that only the TPM with that EK and that AK gives back says that the AK is in that TPM.
//!
//! The last needs the agent; [`verify`] returns what to ask it.
//!
//! The reference does not look at what the keys may do, nor whether the certified key is the certificate's. An AK that
//! was imported into a TPM can be made to certify anything outside of it, so here it must be one that the TPM made, that
//! cannot leave it, and that signs nothing but the TPM's own statements.

use spire_core::pki::chain::{self, Purpose};
use spire_core::pki::{Certificate, HashAlgorithm, PublicKeyKind, SignatureAlgorithm};
use spire_core::time::Timestamp;
use spire_ports::plugins::{Error, Result};

use super::{internal, invalid};
use crate::machine::random;
use crate::messages::{AttestationRequest, Base64, CredentialActivation};
use crate::tpm::attest::{Signature, certified_name};
use crate::tpm::buffer::DecodeError;
use crate::tpm::public::{ATTESTATION_KEY, Attributes, Key, KeyError, Public};
use crate::tpm::{UnsupportedHash, alg, credential, hash_algorithm};

/// The longest hash, and so the longest secret.
const MAX_SECRET_BYTES: usize = 64;

/// What remains to be shown.
pub(super) struct Resident {
    /// What the agent is asked.
    pub(super) challenge: CredentialActivation,
    /// What it must answer.
    pub(super) secret: Vec<u8>,
}

/// Verifies all that the payload shows.
pub(super) fn verify(
    request: &AttestationRequest,
    devid: &Certificate,
    roots: &[Certificate],
    now: Timestamp,
) -> Result<Resident> {
    for (part, missing) in [
        (&request.ak_public, "missing attestation key public blob"),
        (&request.devid_public, "missing DevID key public blob"),
        (&request.ek_certificate, "missing endorsement certificate"),
        (&request.ek_public, "missing endorsement key public blob"),
    ] {
        if part.0.is_empty() {
            return Err(invalid(missing));
        }
    }
    let ek_certificate = Certificate::from_der(request.ek_certificate.0.clone())
        .map_err(|error| invalid(format!("cannot parse endorsement certificate: {error}")))?;
    let devid_public = Public::decode(&request.devid_public.0)
        .map_err(|error| invalid(format!("cannot decode DevID key public blob: {error}")))?;
    let ak = Public::decode(&request.ak_public.0)
        .map_err(|error| invalid(format!("cannot decode attestation key public blob: {error}")))?;
    let ek = Public::decode(&request.ek_public.0)
        .map_err(|error| invalid(format!("cannot decode endorsement key public blob: {error}")))?;

    same_key(&ek_certificate, &ek).map_err(|error| {
        invalid(format!(
            "public key in EK certificate differs from public key created via EK template: {error}"
        ))
    })?;
    chain::verify(std::slice::from_ref(&ek_certificate), roots, Purpose::Endorsement, now).map_err(
        |error| {
            invalid(format!(
                "cannot verify EK signature: endorsement certificate verification failed: {error}"
            ))
        },
    )?;
    check_certification(request, &ak, &devid_public, devid)
        .map_err(|error| invalid(format!("cannot verify that DevID is in the same TPM than AK: {error}")))?;
    challenge(&ak, &ek)
}

/// Whether the certificate is about the endorsement key, which must be RSA.
fn same_key(certificate: &Certificate, ek: &Public<'_>) -> std::result::Result<(), String> {
    let certified =
        certificate.public_key().ok().filter(|key| matches!(key.kind(), PublicKeyKind::Rsa { .. }));
    let certified = certified.ok_or("key from certificate is not an RSA key")?;
    let key = ek.public_key().map_err(|error| format!("cannot get template key: {error}"))?;
    let Key::Rsa { modulus, .. } = ek.key else {
        return Err("key from template is not an RSA key".to_owned());
    };
    if *certified == key {
        return Ok(());
    }
    // They differ; this finds out in what.
    let same_modulus = certified.spki().windows(modulus.len().max(1)).any(|part| part == modulus);
    Err(if same_modulus { "exponent mismatch" } else { "modulus mismatch" }.to_owned())
}

/// Why it is not shown that the DevID key is in the attestation key's TPM. Texts are the reference's where it has them.
#[derive(Debug, thiserror::Error)]
enum CertificationError {
    #[error("not a signing key")]
    NotSigning,
    #[error("attestation key is not bound to its TPM: attributes 0x{0:x}")]
    AkAttributes(u32),
    #[error("only RSA keys are supported")]
    NotRsa,
    #[error("signature scheme of the attestation key is not RSASSA")]
    Scheme,
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Hash(#[from] UnsupportedHash),
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error("crypto/rsa: verification error")]
    Signature,
    #[error("missing certify info")]
    NotCertify,
    #[error("certify failed")]
    OtherName,
    #[error("DevID key is not bound to its TPM: attributes 0x{0:x}")]
    DevidAttributes(u32),
    #[error("DevID key is not the key of the DevID certificate")]
    OtherKey,
}

/// Whether the attestation key certified the DevID key, and that key is the certificate's.
fn check_certification(
    request: &AttestationRequest,
    ak: &Public<'_>,
    devid_public: &Public<'_>,
    devid: &Certificate,
) -> std::result::Result<(), CertificationError> {
    use CertificationError as E;

    let attested = &request.certified_devid.0;
    check_signature(ak, attested, &request.certification_signature.0)?;
    let name = certified_name(attested)?.ok_or(E::NotCertify)?;
    if name != devid_public.name()? {
        return Err(E::OtherName);
    }
    if !devid_public.attributes.contains(Attributes::FIXED_TPM.union(Attributes::SIGN)) {
        return Err(E::DevidAttributes(devid_public.attributes.0));
    }
    if devid.public_key().ok() != Some(&devid_public.public_key()?) {
        return Err(E::OtherKey);
    }
    Ok(())
}

/// Whether an attestation key of its TPM signed `attested`.
fn check_signature(
    ak: &Public<'_>,
    attested: &[u8],
    signature: &[u8],
) -> std::result::Result<(), CertificationError> {
    use CertificationError as E;

    if !ak.attributes.contains(Attributes::SIGN) {
        return Err(E::NotSigning);
    }
    if !ak.attributes.contains(ATTESTATION_KEY) || ak.attributes.intersects(Attributes::DECRYPT) {
        return Err(E::AkAttributes(ak.attributes.0));
    }
    if !matches!(ak.key, Key::Rsa { .. }) {
        return Err(E::NotRsa);
    }
    let key = ak.public_key()?;
    let scheme = ak.scheme.filter(|scheme| scheme.algorithm == alg::RSASSA).ok_or(E::Scheme)?;
    let algorithm = match hash_algorithm(scheme.hash)? {
        HashAlgorithm::Sha256 => SignatureAlgorithm::RsaPkcs1Sha256,
        HashAlgorithm::Sha384 => SignatureAlgorithm::RsaPkcs1Sha384,
        HashAlgorithm::Sha512 => SignatureAlgorithm::RsaPkcs1Sha512,
    };
    match Signature::decode(signature)? {
        Signature::Rsa { algorithm: alg::RSASSA, signature } => {
            key.verify(algorithm, attested, signature).map_err(|_| E::Signature)
        }
        _ => Err(E::Signature),
    }
}

/// A secret for the TPM that has both keys.
fn challenge(ak: &Public<'_>, ek: &Public<'_>) -> Result<Resident> {
    let failed = |error: &dyn std::fmt::Display| -> Error {
        internal(format!("cannot generate credential activation challenge: {error}"))
    };
    let name = ak.name().map_err(|error| failed(&format!("cannot extract name from AK public: {error}")))?;
    let len = credential::secret_len(ek).map_err(|error| failed(&error))?;
    let mut secret = random::<MAX_SECRET_BYTES>().map_err(|error| failed(&error))?.to_vec();
    secret.truncate(len);
    let credential = credential::make(ek, &name, &secret).map_err(|error| failed(&error))?;
    let challenge =
        CredentialActivation { credential: Base64(credential.object), secret: Base64(credential.secret) };
    Ok(Resident { challenge, secret })
}
