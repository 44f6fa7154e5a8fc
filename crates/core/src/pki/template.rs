//! Certificates and requests from templates: the bytes to sign, and the whole once signed.
//!
//! The profile, the order of extensions and every encoding choice are those of SPIRE
//! (pkg/server/credtemplate/builder.go) on Go's crypto/x509, byte for byte. What does not change between
//! SVIDs is encoded once, in [`Issuer`] and [`EncodedName`].

use std::fmt;
use std::time::Duration;

use bytes::Bytes;

use super::algorithm::SignatureAlgorithm;
use super::certificate::{Certificate, decimal};
use super::der::{self, Writer, tag};
use super::key::{PublicKey, PublicKeyError};
use super::name::{DistinguishedName, EncodedName};
use super::oid;
use crate::time::Timestamp;

/// How far back `notBefore` is set, for clocks that run behind.
pub const NOT_BEFORE_CUSHION: Duration = Duration::from_secs(10);

/// Room for the header of the whole certificate before the part that is signed.
const HEADROOM: usize = 4;

/// A certificate serial: 1 to 2^128 - 1. Prints in decimal, as Go's big.Int.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SerialNumber([u8; 16]);

impl SerialNumber {
    /// From 16 random bytes; zero, which is not a serial, becomes one.
    pub fn from_random(mut random: [u8; 16]) -> Self {
        if random == [0; 16] {
            random[15] = 1;
        }
        Self(random)
    }

    /// Big-endian.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for SerialNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&decimal(&self.0))
    }
}

impl fmt::Debug for SerialNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An X.509 extension as it stands in a certificate or request.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Extension {
    pub(crate) id: Bytes,
    /// Whether one who does not know it must refuse the certificate.
    pub critical: bool,
    /// The contents of the OCTET STRING.
    pub value: Bytes,
}

impl Extension {
    /// From an object identifier in dotted form; `None` when it is not one.
    pub fn new(oid: &str, critical: bool, value: impl Into<Bytes>) -> Option<Self> {
        Some(Self { id: der::oid_from_dotted(oid)?.into(), critical, value: value.into() })
    }

    /// The object identifier in dotted form.
    pub fn oid(&self) -> String {
        der::dotted(&self.id).unwrap_or_default()
    }

    pub(crate) fn write(&self, w: &mut Writer) {
        write_extension(w, &self.id, self.critical, |w| w.raw(&self.value));
    }
}

/// What a certificate is for; decides key usages and basic constraints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// A workload's, an agent's or the server's: digitalSignature, keyEncipherment and keyAgreement;
    /// serverAuth and clientAuth; CA:FALSE.
    Svid,
    /// A certificate authority: keyCertSign and cRLSign; CA:TRUE without a path length.
    Ca,
}

/// Everything that a certificate says, except what its issuer adds.
#[derive(Clone, Copy, Debug)]
pub struct CertificateTemplate<'a> {
    /// What it is for.
    pub profile: Profile,
    /// Its serial.
    pub serial: SerialNumber,
    /// Whose it is.
    pub subject: &'a EncodedName,
    /// From when it is valid.
    pub not_before: Timestamp,
    /// Until when it is valid, that second included.
    pub not_after: Timestamp,
    /// Which key it is about.
    pub public_key: &'a PublicKey,
    /// DNS names, which come before the URI in the SAN.
    pub dns_names: &'a [String],
    /// The SPIFFE ID: the only URI of the SAN. Empty for none.
    pub uri: &'a str,
    /// Certificate policies in dotted form (credential composers may add them to authorities).
    pub policies: &'a [String],
    /// Further extensions, written last; one of a kind that the profile has replaces the profile's.
    pub extra_extensions: &'a [Extension],
}

/// Why a template cannot be encoded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// SAN entries are ASCII. The text is Go's.
    #[error("x509: {0:?} cannot be encoded as an IA5String")]
    NotAscii(String),
    /// A policy that is not an object identifier.
    #[error("invalid policy object identifier")]
    Policy,
    /// The issuer's key cannot sign.
    #[error(transparent)]
    Key(#[from] PublicKeyError),
}

/// A certificate authority as issuer, with everything precomputed that each certificate repeats.
#[derive(Clone, Debug)]
pub struct Issuer {
    name: EncodedName,
    /// The AuthorityKeyIdentifier extension, DER; empty when the authority has no subject key ID.
    authority_key_id: Box<[u8]>,
    not_after: Timestamp,
    algorithm: SignatureAlgorithm,
}

impl Issuer {
    /// Of an authority's certificate.
    ///
    /// # Errors
    /// As [`Certificate::public_key`].
    pub fn new(authority: &Certificate) -> Result<Self, PublicKeyError> {
        let mut w = Writer::with_capacity(48);
        if let Some(id) = authority.subject_key_id() {
            write_extension(&mut w, oid::AUTHORITY_KEY_ID, false, |w| {
                w.sequence(|w| w.primitive(tag::context(0), id));
            });
        }
        Ok(Self {
            name: authority.subject_name(),
            authority_key_id: w.into_bytes().into_boxed_slice(),
            not_after: authority.not_after(),
            algorithm: authority.public_key()?.signature_algorithm(),
        })
    }

    /// When the authority expires; what it issues must not outlive it.
    pub fn not_after(&self) -> Timestamp {
        self.not_after
    }

    /// What the authority signs with.
    pub fn algorithm(&self) -> SignatureAlgorithm {
        self.algorithm
    }

    /// The bytes that the authority must sign to issue this certificate.
    ///
    /// # Errors
    /// [`TemplateError::NotAscii`] when a name that is to be written is not ASCII;
    /// [`TemplateError::Policy`] when a policy is not an object identifier.
    pub fn certificate(&self, template: &CertificateTemplate<'_>) -> Result<ToBeSigned, TemplateError> {
        write_certificate(template, self.name.as_der(), &self.authority_key_id, self.algorithm)
    }
}

/// The bytes that the key itself must sign to make a self-signed authority.
///
/// # Errors
/// As [`Issuer::certificate`].
pub fn self_signed(template: &CertificateTemplate<'_>) -> Result<ToBeSigned, TemplateError> {
    write_certificate(template, template.subject.as_der(), &[], template.public_key.signature_algorithm())
}

/// `notBefore` and `notAfter` of something issued at `now` (credtemplate computeCappedLifetime).
pub fn validity(now: Timestamp, ttl: Duration, cap: Option<Timestamp>) -> (Timestamp, Timestamp) {
    let not_after = now + ttl;
    (now - NOT_BEFORE_CUSHION, cap.map_or(not_after, |cap| not_after.min(cap)))
}

/// The subject of an authority: the configured one, with the serial unless it names one.
pub fn ca_subject(configured: &DistinguishedName, serial: SerialNumber) -> DistinguishedName {
    let mut subject = configured.clone();
    if subject.serial_number.is_empty() {
        subject.serial_number = serial.to_string();
    }
    subject
}

/// The subject of a downstream authority: its parent's with `OU=DOWNSTREAM-<length of the parent's chain>`.
pub fn downstream_subject(parent: &DistinguishedName, parent_chain_len: usize) -> DistinguishedName {
    let mut subject = parent.clone();
    subject.organizational_unit = vec![format!("DOWNSTREAM-{parent_chain_len}")];
    subject
}

/// A certificate or request that lacks its signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToBeSigned {
    buf: Vec<u8>,
    algorithm: SignatureAlgorithm,
}

impl ToBeSigned {
    /// Starts a buffer; what `fill` writes is what is signed.
    pub(crate) fn write<E>(
        algorithm: SignatureAlgorithm,
        capacity: usize,
        fill: impl FnOnce(&mut Writer) -> Result<(), E>,
    ) -> Result<Self, E> {
        let mut w = Writer::with_capacity(capacity);
        w.raw(&[0; HEADROOM]);
        fill(&mut w)?;
        Ok(Self { buf: w.into_bytes(), algorithm })
    }

    /// The bytes to sign.
    pub fn bytes(&self) -> &[u8] {
        &self.buf[HEADROOM..]
    }

    /// How to sign them.
    pub fn algorithm(&self) -> SignatureAlgorithm {
        self.algorithm
    }

    /// The finished DER. ECDSA signatures are given as DER, as key managers return them.
    pub fn assemble(self, signature: &[u8]) -> Vec<u8> {
        let Self { mut buf, algorithm } = self;
        let identifier = algorithm.identifier();
        buf.reserve(identifier.len() + signature.len() + 5);
        let mut tail = Writer::with_capacity(identifier.len() + signature.len() + 5);
        tail.raw(identifier);
        tail.bit_bytes(signature);
        buf.extend_from_slice(&tail.into_bytes());
        let (header, n) = der::length(buf.len() - HEADROOM);
        // The header takes four bytes in the usual range of 256 bytes to 64 KiB.
        let header: Vec<u8> = std::iter::once(tag::SEQUENCE).chain(header[..n].iter().copied()).collect();
        buf.splice(..HEADROOM, header);
        buf
    }
}

fn write_certificate(
    t: &CertificateTemplate<'_>,
    issuer: &[u8],
    authority_key_id: &[u8],
    algorithm: SignatureAlgorithm,
) -> Result<ToBeSigned, TemplateError> {
    let spki = t.public_key.spki();
    let names: usize = t.dns_names.iter().map(|n| n.len() + 4).sum();
    let extra: usize = t.extra_extensions.iter().map(|e| e.value.len() + 32).sum();
    // Room for the signature as well (at most 512 bytes with RSA 4096), so that the buffer grows once.
    let capacity = 420 + issuer.len() + t.subject.as_der().len() + spki.len() + t.uri.len() + names + extra;
    ToBeSigned::write(algorithm, capacity, |w| {
        w.sequence(|w| {
            w.raw(&[0xa0, 3, tag::INTEGER, 1, 2]);
            w.unsigned(t.serial.as_bytes());
            w.raw(algorithm.identifier());
            w.raw(issuer);
            w.sequence(|w| {
                w.time(t.not_before);
                w.time(t.not_after);
            });
            w.raw(t.subject.as_der());
            w.raw(spki);
            w.nested(tag::constructed(3), |w| w.sequence(|w| write_extensions(w, t, authority_key_id)))
        })
    })
}

/// The extensions in Go's order (crypto/x509 buildCertExtensions).
fn write_extensions(
    w: &mut Writer,
    t: &CertificateTemplate<'_>,
    authority_key_id: &[u8],
) -> Result<(), TemplateError> {
    let wanted = |id: &[u8]| t.extra_extensions.iter().all(|e| e.id != id);
    if wanted(oid::KEY_USAGE) {
        let bits: &[u8] = match t.profile {
            Profile::Svid => &[3, 2, 3, 0xa8],
            Profile::Ca => &[3, 2, 1, 0x06],
        };
        write_extension(w, oid::KEY_USAGE, true, |w| w.raw(bits));
    }
    if t.profile == Profile::Svid && wanted(oid::EXTENDED_KEY_USAGE) {
        write_extension(w, oid::EXTENDED_KEY_USAGE, false, |w| {
            w.sequence(|w| {
                w.primitive(tag::OID, oid::EKU_SERVER_AUTH);
                w.primitive(tag::OID, oid::EKU_CLIENT_AUTH);
            });
        });
    }
    if wanted(oid::BASIC_CONSTRAINTS) {
        let contents: &[u8] = match t.profile {
            Profile::Svid => &[0x30, 0],
            Profile::Ca => &[0x30, 3, tag::BOOLEAN, 1, 0xff],
        };
        write_extension(w, oid::BASIC_CONSTRAINTS, true, |w| w.raw(contents));
    }
    if wanted(oid::SUBJECT_KEY_ID) {
        let id = t.public_key.subject_key_id();
        write_extension(w, oid::SUBJECT_KEY_ID, false, |w| w.primitive(tag::OCTET_STRING, id.as_bytes()));
    }
    if wanted(oid::AUTHORITY_KEY_ID) {
        w.raw(authority_key_id);
    }
    if wanted(oid::SUBJECT_ALT_NAME) {
        let uris = if t.uri.is_empty() { &[][..] } else { std::slice::from_ref(&t.uri) };
        write_san(w, t.dns_names, uris, t.subject.is_empty())?;
    }
    if !t.policies.is_empty() && wanted(oid::CERTIFICATE_POLICIES) {
        write_policies(w, t.policies)?;
    }
    for extension in t.extra_extensions {
        extension.write(w);
    }
    Ok(())
}

fn write_policies(w: &mut Writer, policies: &[String]) -> Result<(), TemplateError> {
    write_extension(w, oid::CERTIFICATE_POLICIES, false, |w| {
        w.sequence(|w| {
            for policy in policies {
                let id = der::oid_from_dotted(policy).ok_or(TemplateError::Policy)?;
                w.sequence(|w| w.primitive(tag::OID, &id));
            }
            Ok(())
        })
    })
}

/// A subjectAltName extension, or nothing when there are no names.
pub(crate) fn write_san(
    w: &mut Writer,
    dns_names: &[String],
    uris: &[&str],
    critical: bool,
) -> Result<(), TemplateError> {
    if dns_names.is_empty() && uris.is_empty() {
        return Ok(());
    }
    let all = dns_names.iter().map(|n| (2, n.as_str())).chain(uris.iter().map(|u| (6, *u)));
    if let Some((_, name)) = all.clone().find(|(_, name)| !name.is_ascii()) {
        return Err(TemplateError::NotAscii(name.to_owned()));
    }
    write_extension(w, oid::SUBJECT_ALT_NAME, critical, |w| {
        w.sequence(|w| all.for_each(|(kind, name)| w.primitive(tag::context(kind), name.as_bytes())));
    });
    Ok(())
}

/// One extension whose value `fill` writes.
pub(crate) fn write_extension<R>(
    w: &mut Writer,
    id: &[u8],
    critical: bool,
    fill: impl FnOnce(&mut Writer) -> R,
) -> R {
    w.sequence(|w| {
        w.primitive(tag::OID, id);
        if critical {
            w.raw(&[tag::BOOLEAN, 1, 0xff]);
        }
        w.nested(tag::OCTET_STRING, fill)
    })
}
