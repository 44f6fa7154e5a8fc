//! An open TPM with the DevID key, an attestation key and the endorsement key loaded
//! (pkg/agent/plugin/nodeattestor/tpmdevid/tpmutil).
//!
//! The order of what is loaded and flushed never has more than three keys loaded at once, which is what TPMs without
//! a resource manager before them (`/dev/tpm0`) have room for.

use std::path::Path;

use zeroize::Zeroizing;

use super::{Devid, Passwords};
use crate::machine::random;
use crate::tpm::attest::Signature;
use crate::tpm::buffer::DecodeError;
use crate::tpm::channel::{Channel, TpmError};
use crate::tpm::commands::{Certified, Handle, Tpm};
use crate::tpm::public::{AK_RSA, Attributes, EK_RSA, Key, Public, SRK_ECC, SRK_RSA};
use crate::tpm::{alg, handle};

/// Where TPMs keep the certificate of their RSA endorsement key (TCG TPM v2.0 Provisioning Guidance, section 7.8).
const EK_CERTIFICATE: u32 = 0x01c0_0002;

/// What failed. Texts are those of the reference's agent.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionError {
    #[error("cannot open TPM at {path:?}: {error}")]
    Open { path: String, error: TpmError },
    #[error("cannot open TPM at {0:?}: open [{0}]: device is not a TPM 2.0")]
    NotTpm2(String),
    #[error("cannot generate random password for {0}: {1}")]
    Random(&'static str, &'static str),
    #[error("cannot load DevID key on TPM: {0}")]
    LoadDevid(LoadError),
    #[error("cannot create attestation key: failed to create {0}: {1}")]
    CreateAttestationKey(&'static str, TpmError),
    #[error("cannot load attestation key: {0}")]
    LoadAttestationKey(LoadError),
    #[error("cannot create endorsement key: {0}")]
    CreateEndorsementKey(TpmError),
    #[error("failed to read NV index {EK_CERTIFICATE:08x}: {0}: {1}")]
    ReadNv(&'static str, TpmError),
    #[error("failed to unmarshall certificate read from {EK_CERTIFICATE:08x}: {0}")]
    Certificate(&'static str),
    #[error("cannot read EK from handle: {0}")]
    ReadEndorsementKey(TpmError),
    #[error("tpm2.Certify failed: {0}")]
    Certify(TpmError),
    #[error("tpm2.Hash failed: {0}")]
    Hash(TpmError),
    #[error("tpm2.Sign failed: {0}")]
    Sign(TpmError),
    #[error("unrecognized tpm2.Signature: {0}")]
    Signature(DecodeError),
    #[error("unrecognized tpm2.Signature")]
    LongSignature,
    #[error("cannot authorize the use of the endorsement key: {0}")]
    Policy(TpmError),
    #[error("failed to activate credential: {0}")]
    Activate(TpmError),
}

/// Why a key could not be loaded.
#[derive(Debug, thiserror::Error)]
pub(super) enum LoadError {
    #[error("tpm2.DecodePublic failed: {0}")]
    Decode(#[from] DecodeError),
    #[error("not a signing key")]
    NotSigning,
    #[error("signature hash algorithm is NULL")]
    NoHash,
    #[error("tpm2.CreatePrimaryEx failed: {0}")]
    Parent(TpmError),
    #[error("tpm2.Load failed: {0}")]
    Load(TpmError),
}

/// A loaded key that signs.
struct LoadedKey {
    handle: Handle,
    password: Zeroizing<Vec<u8>>,
    /// The hash of its scheme.
    hash: u16,
}

/// What of the TPM is ours until this is dropped.
pub(super) struct Session {
    tpm: Tpm,
    devid: LoadedKey,
    attestation: LoadedKey,
    attestation_public: Vec<u8>,
    endorsement: Handle,
    endorsement_password: Zeroizing<String>,
}

/// Keys that are flushed when a step on the way to a session fails.
struct Opening {
    tpm: Option<Tpm>,
    loaded: Vec<Handle>,
}

impl Drop for Opening {
    fn drop(&mut self) {
        if let Some(tpm) = &mut self.tpm {
            self.loaded.drain(..).for_each(|handle| flush(tpm, handle));
        }
    }
}

impl Session {
    /// Opens the TPM, loads the DevID key, makes and loads an attestation key, and derives the endorsement key.
    pub(super) fn open(device: &Path, devid: &Devid, passwords: &Passwords) -> Result<Self, SessionError> {
        let path = || device.display().to_string();
        let channel = Channel::open(device).map_err(|error| SessionError::Open { path: path(), error })?;
        let mut tpm = Tpm::new(channel);
        tpm.check_version().map_err(|error| match error {
            TpmError::Io(_) => SessionError::Open { path: path(), error },
            _ => SessionError::NotTpm2(path()),
        })?;
        let mut opening = Opening { tpm: None, loaded: Vec::with_capacity(3) };
        let tpm = opening.tpm.insert(tpm);
        let owner = passwords.owner.as_bytes();
        let parent_password = password("storage root key")?;
        let devid_password = Zeroizing::new(passwords.devid.as_bytes().to_vec());
        let devid = load(tpm, owner, &parent_password, (&devid.public, &devid.private), devid_password)
            .map_err(SessionError::LoadDevid)?;
        opening.loaded.push(devid.handle);

        let attestation_password = password("attestation key")?;
        let parent = tpm
            .create_primary(handle::OWNER, owner, &parent_password, &SRK_RSA)
            .map_err(|error| SessionError::CreateAttestationKey("SRK", error))?;
        let created = tpm.create(parent, &parent_password, &attestation_password, &AK_RSA);
        flush(tpm, parent);
        let created = created.map_err(|error| SessionError::CreateAttestationKey("AK", error))?;
        let blobs = (&created.public[..], &created.private[..]);
        let attestation = load(tpm, owner, &parent_password, blobs, attestation_password)
            .map_err(SessionError::LoadAttestationKey)?;
        opening.loaded.push(attestation.handle);

        let endorsement_password = passwords.endorsement.clone();
        let endorsement = tpm
            .create_primary(handle::ENDORSEMENT, endorsement_password.as_bytes(), &[], &EK_RSA)
            .map_err(SessionError::CreateEndorsementKey)?;
        opening.loaded.push(endorsement);
        // From here the session flushes.
        opening.loaded.clear();
        match opening.tpm.take() {
            Some(tpm) => Ok(Self {
                tpm,
                devid,
                attestation,
                attestation_public: created.public,
                endorsement,
                endorsement_password,
            }),
            None => Err(SessionError::NotTpm2(path())),
        }
    }

    /// The certificate of the endorsement key, without what some TPMs keep behind it.
    pub(super) fn endorsement_certificate(&mut self) -> Result<Vec<u8>, SessionError> {
        let failed = |step| move |error| SessionError::ReadNv(step, error);
        let tpm = &mut self.tpm;
        let block = tpm.nv_block_size().map_err(failed("GetCapability for TPM_PT_NV_BUFFER_MAX failed"))?;
        let size = tpm.nv_size(EK_CERTIFICATE).map_err(failed("decoding NV_ReadPublic response"))?;
        let running = failed("running NV_Read command");
        let mut contents = Vec::with_capacity(usize::from(size));
        while let Ok(offset) = u16::try_from(contents.len())
            && offset < size
        {
            let part = tpm.nv_read(EK_CERTIFICATE, offset, block.min(size - offset)).map_err(running)?;
            if part.is_empty() {
                return Err(running(DecodeError::Response.into()));
            }
            contents.extend_from_slice(&part);
        }
        let len = element_len(&contents).map_err(SessionError::Certificate)?;
        contents.truncate(len);
        Ok(contents)
    }

    /// The public area of the endorsement key.
    pub(super) fn endorsement_public(&mut self) -> Result<Vec<u8>, SessionError> {
        self.tpm.read_public(self.endorsement).map_err(SessionError::ReadEndorsementKey)
    }

    /// The public area of the attestation key.
    pub(super) fn attestation_public(&self) -> &[u8] {
        &self.attestation_public
    }

    /// The attestation key's word that the DevID key is in the same TPM.
    pub(super) fn certify_devid(&mut self) -> Result<Certified, SessionError> {
        let (devid, attestation) = (&self.devid, &self.attestation);
        self.tpm
            .certify(devid.handle, &devid.password, attestation.handle, &attestation.password)
            .map_err(SessionError::Certify)
    }

    /// Signs with the DevID key, as X.509 has signatures.
    pub(super) fn sign(&mut self, message: &[u8]) -> Result<Vec<u8>, SessionError> {
        let hashed = self.tpm.hash(self.devid.hash, message).map_err(SessionError::Hash)?;
        let signature = self.tpm.sign(self.devid.handle, &self.devid.password, &hashed);
        let signature = signature.map_err(SessionError::Sign)?;
        let signature = Signature::decode(&signature).map_err(SessionError::Signature)?;
        signature.to_x509().ok_or(SessionError::LongSignature)
    }

    /// The secret of a credential for this TPM and the attestation key.
    pub(super) fn activate(&mut self, credential: &[u8], secret: &[u8]) -> Result<Vec<u8>, SessionError> {
        let tpm = &mut self.tpm;
        let session = tpm.start_policy_session().map_err(SessionError::Policy)?;
        let password = self.endorsement_password.as_bytes();
        // Success ends the session, so it is flushed only after a failure.
        if let Err(error) = tpm.policy_secret(handle::ENDORSEMENT, password, session) {
            flush(tpm, session);
            return Err(SessionError::Policy(error));
        }
        let activated = (self.attestation.handle, &self.attestation.password[..]);
        let result = tpm.activate_credential(activated, (self.endorsement, session), credential, secret);
        if result.is_err() {
            flush(tpm, session);
        }
        result.map_err(SessionError::Activate)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        for handle in [self.devid.handle, self.attestation.handle, self.endorsement] {
            flush(&mut self.tpm, handle);
        }
    }
}

fn flush(tpm: &mut Tpm, handle: Handle) {
    if let Err(error) = tpm.flush(handle) {
        tracing::warn!(
            external = false,
            plugin_name = crate::NAME,
            plugin_type = "NodeAttestor",
            "Failed to flush handle {:x}: {error}",
            handle.0
        );
    }
}

fn password(what: &'static str) -> Result<Zeroizing<Vec<u8>>, SessionError> {
    let bytes = random::<32>().map_err(|error| SessionError::Random(what, error))?;
    Ok(Zeroizing::new(bytes.to_vec()))
}

/// Loads a key below the storage root key of its type, which is derived anew for it.
fn load(
    tpm: &mut Tpm,
    owner_password: &[u8],
    parent_password: &[u8],
    (public, private): (&[u8], &[u8]),
    password: Zeroizing<Vec<u8>>,
) -> Result<LoadedKey, LoadError> {
    let decoded = Public::decode(public)?;
    if !decoded.attributes.contains(Attributes::SIGN) {
        return Err(LoadError::NotSigning);
    }
    let hash = decoded.scheme.map_or(alg::NULL, |scheme| scheme.hash);
    if hash == alg::NULL || hash == 0 {
        return Err(LoadError::NoHash);
    }
    let template = match decoded.key {
        Key::Rsa { .. } => &SRK_RSA,
        Key::Ecc { .. } => &SRK_ECC,
    };
    let parent = tpm
        .create_primary(handle::OWNER, owner_password, parent_password, template)
        .map_err(LoadError::Parent)?;
    let loaded = tpm.load(parent, parent_password, public, private);
    flush(tpm, parent);
    Ok(LoadedKey { handle: loaded.map_err(LoadError::Load)?, password, hash })
}

/// The length of the DER element at the start. Texts are those of Go's encoding/asn1.
pub(super) fn element_len(bytes: &[u8]) -> Result<usize, &'static str> {
    const TRUNCATED: &str = "asn1: syntax error: data truncated";
    let [0x30, first, rest @ ..] = bytes else {
        return Err(if bytes.len() < 2 { TRUNCATED } else { "asn1: structure error: tags don't match" });
    };
    let (header, len) = match first {
        0..=0x7f => (2, usize::from(*first)),
        0x81 | 0x82 => {
            let count = usize::from(first & 0x7f);
            let digits = rest.get(..count).ok_or(TRUNCATED)?;
            (2 + count, digits.iter().fold(0, |len, digit| len << 8 | usize::from(*digit)))
        }
        _ => return Err("asn1: structure error: length too large"),
    };
    if header + len > bytes.len() { Err(TRUNCATED) } else { Ok(header + len) }
}
