//! The commands that attestation needs (part 3), each with passwords as authorization, as the reference's agent has
//! it: the way to the TPM is trusted.

use super::buffer::{DecodeError, Reader, Short, Writer};
use super::channel::{Channel, TpmError};
use super::public::Template;
use super::response_code::ResponseCode;
use super::{alg, handle};

/// TPM_ST_NO_SESSIONS, TPM_ST_SESSIONS
const NO_SESSIONS: u16 = 0x8001;
const SESSIONS: u16 = 0x8002;
/// continueSession of TPMA_SESSION
const CONTINUE: u8 = 1;
/// TPM_CAP_TPM_PROPERTIES
const PROPERTIES: u32 = 6;
/// TPM_PT_MANUFACTURER, TPM_PT_NV_BUFFER_MAX
const MANUFACTURER: u32 = 0x105;
const NV_BUFFER_MAX: u32 = 0x12c;
/// What a read of NV takes at once where the TPM does not say: the least that any TPM for PCs takes.
const NV_BUFFER_DEFAULT: u16 = 512;

/// Command codes (TPM_CC, part 2, section 6.5.2).
mod code {
    pub(super) const CREATE_PRIMARY: u32 = 0x131;
    pub(super) const ACTIVATE_CREDENTIAL: u32 = 0x147;
    pub(super) const CERTIFY: u32 = 0x148;
    pub(super) const NV_READ: u32 = 0x14e;
    pub(super) const POLICY_SECRET: u32 = 0x151;
    pub(super) const CREATE: u32 = 0x153;
    pub(super) const LOAD: u32 = 0x157;
    pub(super) const SIGN: u32 = 0x15d;
    pub(super) const FLUSH_CONTEXT: u32 = 0x165;
    pub(super) const NV_READ_PUBLIC: u32 = 0x169;
    pub(super) const READ_PUBLIC: u32 = 0x173;
    pub(super) const START_AUTH_SESSION: u32 = 0x176;
    pub(super) const GET_CAPABILITY: u32 = 0x17a;
    pub(super) const HASH: u32 = 0x17d;
}

/// A key or session that is loaded until it is flushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Handle(pub(crate) u32);

/// What authorizes the use of a handle.
#[derive(Clone, Copy)]
struct Authorization<'a> {
    session: u32,
    attributes: u8,
    password: &'a [u8],
}

fn password(password: &[u8]) -> Authorization<'_> {
    Authorization { session: handle::PASSWORD, attributes: CONTINUE, password }
}

/// The encoding of a command.
fn encode(
    code: u32,
    handles: &[u32],
    authorizations: &[Authorization<'_>],
    parameters: Writer,
) -> Result<zeroize::Zeroizing<Vec<u8>>, TpmError> {
    let mut body = handles.iter().fold(Writer::default(), |body, handle| body.u32(*handle));
    if !authorizations.is_empty() {
        let area = authorizations.iter().fold(Writer::default(), |area, one| {
            area.u32(one.session).sized(&[]).u8(one.attributes).sized(one.password)
        });
        let area = area.finish().ok_or(TpmError::TooLarge)?;
        body = body.u32(u32::try_from(area.len()).map_err(|_| TpmError::TooLarge)?).raw(&area);
    }
    let parameters = parameters.finish().ok_or(TpmError::TooLarge)?;
    let body = body.raw(&parameters).finish().ok_or(TpmError::TooLarge)?;
    let tag = if authorizations.is_empty() { NO_SESSIONS } else { SESSIONS };
    let size = u32::try_from(body.len() + 10).map_err(|_| TpmError::TooLarge)?;
    Writer::default().u16(tag).u32(size).u32(code).raw(&body).finish().ok_or(TpmError::TooLarge)
}

/// A successful response: its handle, where the command has one, and its parameters.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Response<'a> {
    pub(super) handle: Option<Handle>,
    pub(super) parameters: &'a [u8],
}

impl<'a> Response<'a> {
    /// Takes a response apart; one that is not a success is an error.
    pub(super) fn decode(bytes: &'a [u8], sessions: bool, has_handle: bool) -> Result<Self, TpmError> {
        let malformed = |_: Short| DecodeError::Response;
        let mut reader = Reader::new(bytes);
        let tag = reader.u16().map_err(malformed)?;
        let size = reader.u32().map_err(malformed)?;
        let code = reader.u32().map_err(malformed)?;
        if code != 0 {
            return Err(ResponseCode(code).into());
        }
        let expected = if sessions { SESSIONS } else { NO_SESSIONS };
        if usize::try_from(size) != Ok(bytes.len()) || tag != expected {
            return Err(DecodeError::Response.into());
        }
        let handle = if has_handle { Some(Handle(reader.u32().map_err(malformed)?)) } else { None };
        let parameters = if sessions {
            let len = reader.u32().map_err(malformed)?;
            // The rest is the authorization area, which says nothing where passwords authorized.
            reader.take(usize::try_from(len).map_err(|_| DecodeError::Response)?).map_err(malformed)?
        } else {
            reader.rest()
        };
        Ok(Self { handle, parameters })
    }

    fn handle(&self) -> Result<Handle, TpmError> {
        self.handle.ok_or_else(|| DecodeError::Response.into())
    }
}

/// A key that was made under another: what the TPM gives to load it later.
#[derive(Debug)]
pub(crate) struct CreatedKey {
    /// TPMT_PUBLIC
    pub(crate) public: Vec<u8>,
    /// The contents of a TPM2B_PRIVATE
    pub(crate) private: Vec<u8>,
}

/// What TPM2_Certify says: TPMS_ATTEST and TPMT_SIGNATURE.
#[derive(Debug)]
pub(crate) struct Certified {
    pub(crate) attested: Vec<u8>,
    pub(crate) signature: Vec<u8>,
}

/// A hash that the TPM made, with its word for it (TPMT_TK_HASHCHECK), which restricted keys want to see.
#[derive(Debug)]
pub(crate) struct Hashed {
    digest: Vec<u8>,
    ticket: Vec<u8>,
}

/// An open TPM that takes commands.
#[derive(Debug)]
pub(crate) struct Tpm(Channel);

fn part(name: &'static str) -> impl Fn(Short) -> TpmError {
    move |short| DecodeError::Short(name, short).into()
}

impl Tpm {
    pub(crate) fn new(channel: Channel) -> Self {
        Self(channel)
    }

    /// Sends a command; `read` takes what it needs from the response.
    fn run<T>(
        &mut self,
        command: &[u8],
        has_handle: bool,
        read: impl FnOnce(&Response<'_>) -> Result<T, TpmError>,
    ) -> Result<T, TpmError> {
        let sessions = command.get(..2) == Some(&SESSIONS.to_be_bytes()[..]);
        let response = self.0.exchange(command)?;
        read(&Response::decode(&response, sessions, has_handle)?)
    }

    fn property(&mut self, property: u32) -> Result<Option<u32>, TpmError> {
        let parameters = Writer::default().u32(PROPERTIES).u32(property).u32(1);
        self.run(&encode(code::GET_CAPABILITY, &[], &[], parameters)?, false, |response| {
            let capability = part("capability");
            let mut reader = Reader::new(response.parameters);
            reader.u8().map_err(&capability)?;
            reader.u32().map_err(&capability)?;
            if reader.u32().map_err(&capability)? == 0 {
                return Ok(None);
            }
            let found = reader.u32().map_err(&capability)?;
            let value = reader.u32().map_err(&capability)?;
            Ok((found == property).then_some(value))
        })
    }

    /// Asks what only a TPM 2.0 answers.
    pub(crate) fn check_version(&mut self) -> Result<(), TpmError> {
        self.property(MANUFACTURER).map(|_| ())
    }

    /// A key that is derived from a hierarchy's seed and the template.
    pub(crate) fn create_primary(
        &mut self,
        hierarchy: u32,
        hierarchy_password: &[u8],
        key_password: &[u8],
        template: &Template,
    ) -> Result<Handle, TpmError> {
        let parameters = creation(key_password, template)?;
        let command =
            encode(code::CREATE_PRIMARY, &[hierarchy], &[password(hierarchy_password)], parameters)?;
        self.run(&command, true, |response| response.handle())
    }

    /// A new key under another.
    pub(crate) fn create(
        &mut self,
        parent: Handle,
        parent_password: &[u8],
        key_password: &[u8],
        template: &Template,
    ) -> Result<CreatedKey, TpmError> {
        let parameters = creation(key_password, template)?;
        let command = encode(code::CREATE, &[parent.0], &[password(parent_password)], parameters)?;
        self.run(&command, false, |response| {
            let mut reader = Reader::new(response.parameters);
            let private = reader.sized().map_err(part("private"))?.to_vec();
            let public = reader.sized().map_err(part("public"))?.to_vec();
            Ok(CreatedKey { public, private })
        })
    }

    /// Loads a key that was made under `parent`.
    pub(crate) fn load(
        &mut self,
        parent: Handle,
        parent_password: &[u8],
        public: &[u8],
        private: &[u8],
    ) -> Result<Handle, TpmError> {
        let parameters = Writer::default().sized(private).sized(public);
        let command = encode(code::LOAD, &[parent.0], &[password(parent_password)], parameters)?;
        self.run(&command, true, |response| response.handle())
    }

    /// Forgets a key or session.
    pub(crate) fn flush(&mut self, handle: Handle) -> Result<(), TpmError> {
        let command = encode(code::FLUSH_CONTEXT, &[], &[], Writer::default().u32(handle.0))?;
        self.run(&command, false, |_| Ok(()))
    }

    /// The public area of a loaded key: TPMT_PUBLIC.
    pub(crate) fn read_public(&mut self, key: Handle) -> Result<Vec<u8>, TpmError> {
        let command = encode(code::READ_PUBLIC, &[key.0], &[], Writer::default())?;
        self.run(&command, false, |response| {
            Ok(Reader::new(response.parameters).sized().map_err(part("public"))?.to_vec())
        })
    }

    /// Lets `signer`, an RSA key, say that `object` is loaded in the same TPM.
    pub(crate) fn certify(
        &mut self,
        object: Handle,
        object_password: &[u8],
        signer: Handle,
        signer_password: &[u8],
    ) -> Result<Certified, TpmError> {
        let parameters = Writer::default().sized(&[]).u16(alg::RSASSA).u16(alg::SHA256);
        let authorizations = [password(object_password), password(signer_password)];
        let command = encode(code::CERTIFY, &[object.0, signer.0], &authorizations, parameters)?;
        self.run(&command, false, |response| {
            let mut reader = Reader::new(response.parameters);
            let attested = reader.sized().map_err(part("attestation"))?.to_vec();
            Ok(Certified { attested, signature: reader.rest().to_vec() })
        })
    }

    /// Hashes in the TPM; data that could pass for a TPM's own statement gets no ticket.
    pub(crate) fn hash(&mut self, algorithm: u16, data: &[u8]) -> Result<Hashed, TpmError> {
        let parameters = Writer::default().sized(data).u16(algorithm).u32(handle::OWNER);
        self.run(&encode(code::HASH, &[], &[], parameters)?, false, |response| {
            let mut reader = Reader::new(response.parameters);
            let digest = reader.sized().map_err(part("digest"))?.to_vec();
            Ok(Hashed { digest, ticket: reader.rest().to_vec() })
        })
    }

    /// Signs a hash with the key's own scheme: TPMT_SIGNATURE.
    pub(crate) fn sign(
        &mut self,
        key: Handle,
        key_password: &[u8],
        hashed: &Hashed,
    ) -> Result<Vec<u8>, TpmError> {
        let parameters = Writer::default().sized(&hashed.digest).u16(alg::NULL).raw(&hashed.ticket);
        let command = encode(code::SIGN, &[key.0], &[password(key_password)], parameters)?;
        self.run(&command, false, |response| Ok(response.parameters.to_vec()))
    }

    /// Starts a policy session with SHA-256, neither bound nor salted.
    pub(crate) fn start_policy_session(&mut self) -> Result<Handle, TpmError> {
        /// TPM_SE_POLICY
        const POLICY: u8 = 1;
        // The nonce matters to sessions that compute HMACs only.
        let parameters =
            Writer::default().sized(&[0; 16]).sized(&[]).u8(POLICY).u16(alg::NULL).u16(alg::SHA256);
        let command = encode(code::START_AUTH_SESSION, &[handle::NULL, handle::NULL], &[], parameters)?;
        self.run(&command, true, |response| response.handle())
    }

    /// Proves in a policy session that the password of a hierarchy is known.
    pub(crate) fn policy_secret(
        &mut self,
        hierarchy: u32,
        hierarchy_password: &[u8],
        session: Handle,
    ) -> Result<(), TpmError> {
        // No nonce, no digest of parameters, no reference, no expiry.
        let parameters = Writer::default().sized(&[]).sized(&[]).sized(&[]).u32(0);
        let authorizations = [password(hierarchy_password)];
        let command = encode(code::POLICY_SECRET, &[hierarchy, session.0], &authorizations, parameters)?;
        self.run(&command, false, |_| Ok(()))
    }

    /// Gives back the secret of a credential that was made for `endorsement` and `activated` together. The
    /// session authorizes the use of `endorsement` and ends with it.
    pub(crate) fn activate_credential(
        &mut self,
        (activated, activated_password): (Handle, &[u8]),
        (endorsement, session): (Handle, Handle),
        credential: &[u8],
        secret: &[u8],
    ) -> Result<Vec<u8>, TpmError> {
        let parameters = Writer::default().sized(credential).sized(secret);
        let by_policy = Authorization { session: session.0, attributes: 0, password: &[] };
        let authorizations = [password(activated_password), by_policy];
        let handles = [activated.0, endorsement.0];
        let command = encode(code::ACTIVATE_CREDENTIAL, &handles, &authorizations, parameters)?;
        self.run(&command, false, |response| {
            Ok(Reader::new(response.parameters).sized().map_err(part("certInfo"))?.to_vec())
        })
    }

    /// The size of an NV index.
    pub(crate) fn nv_size(&mut self, index: u32) -> Result<u16, TpmError> {
        let command = encode(code::NV_READ_PUBLIC, &[index], &[], Writer::default())?;
        self.run(&command, false, |response| {
            let public = part("NV_ReadPublic response");
            let mut reader = Reader::new(Reader::new(response.parameters).sized().map_err(&public)?);
            // Index, name algorithm, attributes and policy.
            reader.u32().map_err(&public)?;
            reader.u16().map_err(&public)?;
            reader.u32().map_err(&public)?;
            reader.sized().map_err(&public)?;
            reader.u16().map_err(&public)
        })
    }

    /// The most that the TPM lets be read from NV at once.
    pub(crate) fn nv_block_size(&mut self) -> Result<u16, TpmError> {
        let block = self.property(NV_BUFFER_MAX)?.unwrap_or(u32::from(NV_BUFFER_DEFAULT));
        Ok(u16::try_from(block).unwrap_or(u16::MAX).clamp(1, 2048))
    }

    /// Some bytes of an NV index without a password.
    pub(crate) fn nv_read(&mut self, index: u32, offset: u16, size: u16) -> Result<Vec<u8>, TpmError> {
        let parameters = Writer::default().u16(size).u16(offset);
        let command = encode(code::NV_READ, &[index, index], &[password(&[])], parameters)?;
        self.run(&command, false, |response| {
            Ok(Reader::new(response.parameters).sized().map_err(part("NV data"))?.to_vec())
        })
    }
}

/// The parameters of TPM2_Create and TPM2_CreatePrimary: a password for the key, what it is to be, no outside
/// information, no PCRs.
fn creation(key_password: &[u8], template: &Template) -> Result<Writer, TpmError> {
    let sensitive = Writer::default().sized(key_password).sized(&[]);
    let sensitive = sensitive.finish().ok_or(TpmError::TooLarge)?;
    Ok(Writer::default().sized(&sensitive).sized(&template.encode()).sized(&[]).u32(0))
}
