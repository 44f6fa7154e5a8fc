//! The extensions that certificates and requests carry: what we know is read into [`Known`], and whether
//! something critical was not known is remembered.

use std::net::IpAddr;

use bytes::Bytes;

use super::certificate::{CertificateError, malformed};
use super::constraints::NameConstraints;
use super::der::{DerError, Reader, tag};
use super::oid;
use super::template::Extension;

/// More names than this in one SAN is an attack, not a certificate.
const MAX_NAMES: usize = 1024;
/// More extensions than this likewise; real certificates have about ten.
const MAX_EXTENSIONS: usize = 64;

/// The bits of the key usage extension, in Go's numbering.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeyUsage(pub u16);

impl KeyUsage {
    /// digitalSignature
    pub const DIGITAL_SIGNATURE: Self = Self(1);
    /// keyEncipherment
    pub const KEY_ENCIPHERMENT: Self = Self(1 << 2);
    /// keyAgreement
    pub const KEY_AGREEMENT: Self = Self(1 << 4);
    /// keyCertSign
    pub const CERT_SIGN: Self = Self(1 << 5);
    /// cRLSign
    pub const CRL_SIGN: Self = Self(1 << 6);

    /// Whether all bits of `other` are set.
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The bits of both.
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// What an extended key usage extension lists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExtendedKeyUsage {
    /// anyExtendedKeyUsage
    pub any: bool,
    /// serverAuth
    pub server_auth: bool,
    /// clientAuth
    pub client_auth: bool,
    /// codeSigning
    pub code_signing: bool,
    /// Others than these.
    pub other: bool,
}

impl ExtendedKeyUsage {
    /// Whether there is none, which allows everything.
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }
}

/// The basic constraints extension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BasicConstraints {
    /// Whether it is an authority.
    pub is_ca: bool,
    /// How many intermediates may follow.
    pub path_len: Option<u32>,
}

/// What the extensions that we know say.
#[derive(Default)]
pub(crate) struct Known {
    pub(crate) key_usage: KeyUsage,
    pub(crate) extended_key_usage: ExtendedKeyUsage,
    pub(crate) basic_constraints: Option<BasicConstraints>,
    pub(crate) names: AltNames,
    pub(crate) subject_key_id: Option<Bytes>,
    pub(crate) authority_key_id: Option<Bytes>,
    pub(crate) constraints: Option<NameConstraints>,
    pub(crate) unhandled_critical: bool,
    /// A critical subjectAltName of forms that are not read, as Go counts it among the unhandled ones.
    pub(crate) unread_critical_names: bool,
}

/// The subjectAltName extension.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct AltNames {
    pub(crate) dns: Vec<String>,
    pub(crate) uris: Vec<String>,
    pub(crate) emails: Vec<String>,
    pub(crate) ips: Vec<IpAddr>,
}

/// The members of an `Extensions` sequence, as slices of `raw`.
pub(crate) fn extension_list(raw: &Bytes, mut all: Reader<'_>) -> Result<Vec<Extension>, DerError> {
    let mut extensions = Vec::with_capacity(8);
    while !all.is_empty() {
        if extensions.len() == MAX_EXTENSIONS {
            return Err(DerError);
        }
        let mut extension = all.sequence()?;
        let id = extension.read(tag::OID)?;
        let critical = extension.optional_boolean()?;
        let value = extension.read(tag::OCTET_STRING)?;
        extension.finish()?;
        extensions.push(Extension { id: raw.slice_ref(id), critical, value: raw.slice_ref(value) });
    }
    Ok(extensions)
}

impl Known {
    /// Takes in one extension.
    pub(crate) fn read(&mut self, extension: &Extension) -> Result<(), CertificateError> {
        use CertificateError::Malformed;

        let value = &extension.value;
        let mut handled = true;
        match &extension.id[..] {
            id if id == oid::KEY_USAGE => {
                self.key_usage = key_usage(value).map_err(malformed("invalid key usage"))?;
            }
            id if id == oid::BASIC_CONSTRAINTS => {
                self.basic_constraints =
                    Some(basic_constraints(value).map_err(malformed("invalid basic constraints"))?);
            }
            id if id == oid::SUBJECT_ALT_NAME => {
                self.names = alt_names(value).map_err(malformed("invalid subject alternative names"))?;
                self.unread_critical_names = extension.critical && self.names == AltNames::default();
            }
            id if id == oid::NAME_CONSTRAINTS => {
                let constraints = NameConstraints::from_der(value)
                    .map_err(malformed("invalid NameConstraints extension"))?;
                handled = !constraints.has_unknown_form();
                self.constraints = Some(constraints);
            }
            id if id == oid::EXTENDED_KEY_USAGE => {
                self.extended_key_usage =
                    extended_key_usage(value).map_err(malformed("invalid extended key usages"))?;
            }
            id if id == oid::SUBJECT_KEY_ID => {
                if extension.critical {
                    return Err(Malformed("subject key identifier incorrectly marked critical"));
                }
                let id = Reader::new(value)
                    .read(tag::OCTET_STRING)
                    .map_err(malformed("invalid subject key identifier"))?;
                self.subject_key_id = Some(value.slice_ref(id));
            }
            id if id == oid::AUTHORITY_KEY_ID => {
                if extension.critical {
                    return Err(Malformed("authority key identifier incorrectly marked critical"));
                }
                let id = Reader::new(value)
                    .sequence()
                    .and_then(|mut s| s.optional(tag::context(0)))
                    .map_err(malformed("invalid authority key identifier"))?;
                self.authority_key_id = id.map(|id| value.slice_ref(id));
            }
            // These restrict nothing when the verifier asks for no policy, which ours never does. Policy
            // constraints (2.5.29.36) could, so they count as unknown: refused when critical.
            id if [
                oid::CERTIFICATE_POLICIES,
                oid::POLICY_MAPPINGS,
                oid::INHIBIT_ANY_POLICY,
                oid::CRL_DISTRIBUTION_POINTS,
                oid::AUTHORITY_INFO_ACCESS,
            ]
            .contains(&id) => {}
            _ => handled = false,
        }
        self.unhandled_critical |= extension.critical && !handled;
        Ok(())
    }
}

fn key_usage(value: &[u8]) -> Result<KeyUsage, DerError> {
    let (bytes, _) = Reader::new(value).bits()?;
    let mut usage = 0;
    for bit in 0..9 {
        if bytes.get(bit / 8).is_some_and(|b| b & (0x80 >> (bit % 8)) != 0) {
            usage |= 1 << bit;
        }
    }
    Ok(KeyUsage(usage))
}

fn basic_constraints(value: &[u8]) -> Result<BasicConstraints, DerError> {
    let mut constraints = Reader::new(value).sequence()?;
    let is_ca = constraints.optional_boolean()?;
    let path_len = if constraints.peek() == Some(tag::INTEGER) { Some(constraints.small()?) } else { None };
    constraints.finish()?;
    Ok(BasicConstraints { is_ca, path_len })
}

fn extended_key_usage(value: &[u8]) -> Result<ExtendedKeyUsage, DerError> {
    let mut list = Reader::new(value).sequence()?;
    let mut usage = ExtendedKeyUsage::default();
    while !list.is_empty() {
        match list.read(tag::OID)? {
            id if id == oid::EKU_ANY => usage.any = true,
            id if id == oid::EKU_SERVER_AUTH => usage.server_auth = true,
            id if id == oid::EKU_CLIENT_AUTH => usage.client_auth = true,
            id if id == oid::EKU_CODE_SIGNING => usage.code_signing = true,
            _ => usage.other = true,
        }
    }
    Ok(usage)
}

/// The names of a subjectAltName extension; kinds that Go does not read are passed over, as there.
pub(crate) fn alt_names(value: &[u8]) -> Result<AltNames, DerError> {
    let mut outer = Reader::new(value);
    let mut list = outer.sequence()?;
    outer.finish()?;
    let mut names = AltNames::default();
    let mut count = 0;
    while !list.is_empty() {
        count += 1;
        if count > MAX_NAMES {
            return Err(DerError);
        }
        let (kind, content, _) = list.any()?;
        let ascii = || match std::str::from_utf8(content) {
            Ok(text) if text.is_ascii() => Ok(text.to_owned()),
            _ => Err(DerError),
        };
        match kind {
            k if k == tag::context(1) => names.emails.push(ascii()?),
            k if k == tag::context(2) => names.dns.push(ascii()?),
            k if k == tag::context(6) => names.uris.push(ascii()?),
            k if k == tag::context(7) => names.ips.push(match content.len() {
                4 => <[u8; 4]>::try_from(content).map(IpAddr::from).map_err(|_| DerError)?,
                16 => <[u8; 16]>::try_from(content).map(IpAddr::from).map_err(|_| DerError)?,
                _ => return Err(DerError),
            }),
            _ => {}
        }
    }
    Ok(names)
}
