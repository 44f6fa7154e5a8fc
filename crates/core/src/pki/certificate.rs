//! Certificates as read: bounded, strict DER, with what Go's crypto/x509 makes of them.

use std::fmt;
use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::algorithm::{Family, SignatureAlgorithm};
use super::constraints::NameConstraints;
use super::der::{DerError, Reader, tag};
use super::extensions::{AltNames, BasicConstraints, ExtendedKeyUsage, KeyUsage, Known, extension_list};
use super::key::{PublicKey, PublicKeyError};
use super::name::{DistinguishedName, EncodedName};
use super::oid;
use super::template::Extension;
use crate::spiffe::{IdError, SpiffeId};
use crate::time::Timestamp;

/// The longest certificate that is read.
pub const MAX_CERTIFICATE_BYTES: usize = 64 * 1024;
/// The longest serial; RFC 5280 allows 20 bytes, some authorities use more.
const MAX_SERIAL_BYTES: usize = 64;

/// Why bytes are not a certificate. Texts are Go's (crypto/x509), which the reference passes on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// The named part is not what it should be.
    #[error("x509: {0}")]
    Malformed(&'static str),
    /// Longer than 64 KiB.
    #[error("x509: certificate is too large")]
    TooLarge,
    /// An extension occurs twice.
    #[error("x509: certificate contains duplicate extension with OID {0:?}")]
    DuplicateExtension(String),
}

pub(super) fn malformed(what: &'static str) -> impl Fn(DerError) -> CertificateError {
    move |_| CertificateError::Malformed(what)
}

/// Why a certificate has no SPIFFE ID. Texts are go-spiffe's (x509svid.IDFromCert).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SvidIdError {
    /// No URI.
    #[error("certificate contains no URI SAN")]
    NoUri,
    /// Several URIs.
    #[error("certificate contains more than one URI SAN")]
    SeveralUris,
    /// The URI is not a SPIFFE ID.
    #[error(transparent)]
    Id(#[from] IdError),
}

/// A parsed certificate. Cheap to clone; equal when the bytes are. Parsing says nothing about trust.
#[derive(Clone)]
pub struct Certificate(Arc<Parsed>);

struct Parsed {
    raw: Bytes,
    version: u8,
    tbs: Range<usize>,
    serial: Range<usize>,
    issuer: Range<usize>,
    subject: Range<usize>,
    spki: Range<usize>,
    signature: Range<usize>,
    algorithm: Option<SignatureAlgorithm>,
    not_before: Timestamp,
    not_after: Timestamp,
    key: Result<PublicKey, PublicKeyError>,
    extensions: Vec<Extension>,
    known: Known,
}

impl Certificate {
    /// Parses one certificate; nothing may follow it.
    ///
    /// # Errors
    /// [`CertificateError::TooLarge`] beyond [`MAX_CERTIFICATE_BYTES`],
    /// [`CertificateError::DuplicateExtension`], and [`CertificateError::Malformed`] for all else, bytes
    /// after the certificate among it.
    pub fn from_der(der: impl Into<Bytes>) -> Result<Self, CertificateError> {
        let raw = der.into();
        let (certificate, rest) = Self::split(raw)?;
        if rest.is_empty() { Ok(certificate) } else { Err(CertificateError::Malformed("trailing data")) }
    }

    /// Parses certificates that follow one another, at most `max` of them (Go's ParseCertificates).
    ///
    /// # Errors
    /// As [`Certificate::from_der`] for the first one that is none; [`CertificateError::Malformed`] when
    /// there are more than `max`.
    pub fn many_from_der(der: impl Into<Bytes>, max: usize) -> Result<Vec<Self>, CertificateError> {
        let mut rest: Bytes = der.into();
        let mut all = Vec::new();
        while !rest.is_empty() {
            if all.len() == max {
                return Err(CertificateError::Malformed("too many certificates"));
            }
            let (certificate, after) = Self::split(rest)?;
            all.push(certificate);
            rest = after;
        }
        Ok(all)
    }

    /// The first certificate of `input` and what follows it.
    fn split(input: Bytes) -> Result<(Self, Bytes), CertificateError> {
        let mut outer = Reader::new(&input);
        let (_, element) = outer.element(tag::SEQUENCE).map_err(malformed("malformed certificate"))?;
        let len = element.len();
        if len > MAX_CERTIFICATE_BYTES {
            return Err(CertificateError::TooLarge);
        }
        let rest = input.slice(len..);
        parse(input.slice(..len)).map(|parsed| (Self(Arc::new(parsed)), rest))
    }

    /// The DER.
    pub fn der(&self) -> &Bytes {
        &self.0.raw
    }

    /// The serial as Go prints it: decimal.
    pub fn serial(&self) -> String {
        decimal(self.serial_bytes())
    }

    /// The serial's magnitude, big-endian, without leading zeros.
    pub fn serial_bytes(&self) -> &[u8] {
        &self.0.raw[self.0.serial.clone()]
    }

    /// From when it is valid.
    pub fn not_before(&self) -> Timestamp {
        self.0.not_before
    }

    /// Until when it is valid, that second included.
    pub fn not_after(&self) -> Timestamp {
        self.0.not_after
    }

    /// The subject, parsed. It prints as Go's pkix.Name does.
    pub fn subject(&self) -> DistinguishedName {
        DistinguishedName::from_der(self.subject_der()).unwrap_or_default()
    }

    /// The issuer, parsed.
    pub fn issuer(&self) -> DistinguishedName {
        DistinguishedName::from_der(self.issuer_der()).unwrap_or_default()
    }

    /// The subject, DER.
    pub fn subject_der(&self) -> &[u8] {
        &self.0.raw[self.0.subject.clone()]
    }

    /// The issuer, DER.
    pub fn issuer_der(&self) -> &[u8] {
        &self.0.raw[self.0.issuer.clone()]
    }

    /// The subject for certificates that this one issues.
    pub fn subject_name(&self) -> EncodedName {
        EncodedName::from_element(self.subject_der())
    }

    /// The key.
    ///
    /// # Errors
    /// [`PublicKeyError::Unsupported`], [`PublicKeyError::RsaBits`] or [`PublicKeyError::TooLarge`] when it
    /// is of a kind or size that we do not use. (A certificate with a malformed key is not parsed at all.)
    pub fn public_key(&self) -> Result<&PublicKey, PublicKeyError> {
        self.0.key.as_ref().map_err(|e| *e)
    }

    /// SubjectPublicKeyInfo, DER.
    pub fn spki_der(&self) -> &[u8] {
        &self.0.raw[self.0.spki.clone()]
    }

    /// The subject key identifier extension.
    pub fn subject_key_id(&self) -> Option<&[u8]> {
        self.0.known.subject_key_id.as_deref()
    }

    /// The subject key identifier in hex: the authority ID. Empty when there is none.
    pub fn authority_id(&self) -> String {
        hex::encode(self.subject_key_id().unwrap_or_default())
    }

    /// The key identifier of the authority key identifier extension.
    pub fn authority_key_id(&self) -> Option<&[u8]> {
        self.0.known.authority_key_id.as_deref()
    }

    /// URI names.
    pub fn uris(&self) -> &[String] {
        &self.0.known.names.uris
    }

    /// DNS names.
    pub fn dns_names(&self) -> &[String] {
        &self.0.known.names.dns
    }

    /// Email addresses.
    pub fn emails(&self) -> &[String] {
        &self.0.known.names.emails
    }

    /// IP addresses.
    pub fn ip_addresses(&self) -> &[IpAddr] {
        &self.0.known.names.ips
    }

    /// The SPIFFE ID: exactly one URI, which is one (X509-SVID specification, section 2).
    ///
    /// # Errors
    /// [`SvidIdError::NoUri`] without a URI, [`SvidIdError::SeveralUris`] with more than one,
    /// [`SvidIdError::Id`] when the one is not a SPIFFE ID.
    pub fn spiffe_id(&self) -> Result<SpiffeId, SvidIdError> {
        match self.uris() {
            [] => Err(SvidIdError::NoUri),
            [uri] => Ok(SpiffeId::parse(uri)?),
            _ => Err(SvidIdError::SeveralUris),
        }
    }

    /// Key usage bits; none when there is no such extension.
    pub fn key_usage(&self) -> KeyUsage {
        self.0.known.key_usage
    }

    /// Extended key usages.
    pub fn extended_key_usage(&self) -> ExtendedKeyUsage {
        self.0.known.extended_key_usage
    }

    /// Basic constraints, if there are any.
    pub fn basic_constraints(&self) -> Option<BasicConstraints> {
        self.0.known.basic_constraints
    }

    /// Whether it says that it is an authority.
    pub fn is_ca(&self) -> bool {
        self.0.known.basic_constraints.is_some_and(|b| b.is_ca)
    }

    /// All extensions, in order.
    pub fn extensions(&self) -> &[Extension] {
        &self.0.extensions
    }

    /// How it is signed; `None` for algorithms that we do not accept.
    pub fn signature_algorithm(&self) -> Option<SignatureAlgorithm> {
        self.0.algorithm
    }

    /// The signed part.
    pub fn tbs_der(&self) -> &[u8] {
        &self.0.raw[self.0.tbs.clone()]
    }

    /// The signature.
    pub fn signature(&self) -> &[u8] {
        &self.0.raw[self.0.signature.clone()]
    }

    pub(crate) fn version(&self) -> u8 {
        self.0.version
    }

    pub(crate) fn alt_names(&self) -> &AltNames {
        &self.0.known.names
    }

    pub(crate) fn name_constraints(&self) -> Option<&NameConstraints> {
        self.0.known.constraints.as_ref()
    }

    /// Something critical that is not known, a subjectAltName aside.
    pub(crate) fn has_unhandled_critical_extension(&self) -> bool {
        self.0.known.unhandled_critical
    }

    /// A critical subjectAltName that has none of the forms that are read.
    pub(crate) fn has_unread_critical_names(&self) -> bool {
        self.0.known.unread_critical_names
    }

    /// The raw subjectAltName, if there is one.
    pub(crate) fn san(&self) -> Option<&Bytes> {
        self.0.extensions.iter().find(|e| e.id == oid::SUBJECT_ALT_NAME).map(|e| &e.value)
    }

    /// Whether `issuer`'s key made the signature. Says nothing about whether it was allowed to. The text
    /// of an error is Go's.
    pub(crate) fn check_signature(&self, issuer: &Self) -> Result<(), &'static str> {
        let unimplemented = "x509: cannot verify signature: algorithm unimplemented";
        let algorithm = self.signature_algorithm().ok_or(unimplemented)?;
        let key = issuer.public_key().map_err(|_| unimplemented)?;
        if algorithm.family() != key.family() {
            return Err("x509: signature algorithm specifies a public key of another type");
        }
        key.verify(algorithm, self.tbs_der(), self.signature()).map_err(|_| match key.family() {
            Family::Rsa => "crypto/rsa: verification error",
            Family::Ecdsa => "x509: ECDSA verification failure",
            Family::Ed25519 => "x509: Ed25519 verification failure",
        })
    }
}

impl PartialEq for Certificate {
    fn eq(&self, other: &Self) -> bool {
        self.0.raw == other.0.raw
    }
}

impl Eq for Certificate {}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate")
            .field("serial", &self.serial())
            .field("subject", &self.subject().to_string())
            .field("uris", &self.uris())
            .finish_non_exhaustive()
    }
}

/// A big-endian magnitude in decimal.
pub(crate) fn decimal(magnitude: &[u8]) -> String {
    // Base 10^9 digits, least significant first; inputs are at most 64 bytes.
    let mut digits: Vec<u32> = vec![0];
    for byte in magnitude {
        let mut carry = u64::from(*byte);
        for digit in &mut digits {
            let value = u64::from(*digit) * 256 + carry;
            *digit = (value % 1_000_000_000) as u32;
            carry = value / 1_000_000_000;
        }
        if carry > 0 {
            digits.push(carry as u32);
        }
    }
    let mut digits = digits.into_iter().rev();
    let mut out = digits.next().unwrap_or_default().to_string();
    for digit in digits {
        out.push_str(&format!("{digit:09}"));
    }
    out
}

fn parse(raw: Bytes) -> Result<Parsed, CertificateError> {
    use CertificateError::Malformed;

    let whole: &[u8] = &raw;
    let within = |part: &[u8]| {
        let start = part.as_ptr() as usize - whole.as_ptr() as usize;
        start..start + part.len()
    };
    let mut body = Reader::new(whole).sequence().map_err(malformed("malformed certificate"))?;
    let (tbs, tbs_element) = body.element(tag::SEQUENCE).map_err(malformed("malformed tbs certificate"))?;
    let (outer_algorithm, _) =
        body.element(tag::SEQUENCE).map_err(malformed("malformed algorithm identifier"))?;
    let signature = body.bit_bytes().map_err(malformed("malformed signature"))?;
    body.finish().map_err(malformed("malformed certificate"))?;

    let mut tbs = Reader::new(tbs);
    let version = match tbs.optional(tag::constructed(0)).map_err(malformed("malformed version"))? {
        Some(v) => Reader::new(v).small().map_err(malformed("malformed version"))?,
        None => 0,
    };
    if version > 2 {
        return Err(Malformed("invalid version"));
    }
    let serial = tbs.unsigned().map_err(malformed("malformed serial number"))?;
    if serial.len() > MAX_SERIAL_BYTES {
        return Err(Malformed("malformed serial number"));
    }
    let (algorithm, algorithm_element) =
        tbs.element(tag::SEQUENCE).map_err(malformed("malformed signature algorithm identifier"))?;
    if algorithm != outer_algorithm {
        return Err(Malformed("inner and outer signature algorithm identifiers don't match"));
    }
    let (_, issuer) = tbs.element(tag::SEQUENCE).map_err(malformed("malformed issuer"))?;
    DistinguishedName::from_der(issuer).map_err(malformed("invalid RDNSequence"))?;
    let mut validity = tbs.sequence().map_err(malformed("malformed validity"))?;
    let not_before = validity.time().map_err(malformed("malformed validity"))?;
    let not_after = validity.time().map_err(malformed("malformed validity"))?;
    let (_, subject) = tbs.element(tag::SEQUENCE).map_err(malformed("malformed subject"))?;
    DistinguishedName::from_der(subject).map_err(malformed("invalid RDNSequence"))?;
    let (_, spki) = tbs.element(tag::SEQUENCE).map_err(malformed("malformed spki"))?;
    let key = PublicKey::from_spki(raw.slice(within(spki)));
    if key == Err(PublicKeyError::Malformed) {
        return Err(Malformed("malformed spki"));
    }
    for n in [1, 2] {
        tbs.optional(tag::context(n)).map_err(malformed("malformed unique ID"))?;
    }
    let extensions = match tbs.optional(tag::constructed(3)).map_err(malformed("malformed extensions"))? {
        Some(list) if version == 2 => read_extensions(&raw, list)?,
        Some(_) => return Err(Malformed("malformed extensions")),
        None => Vec::new(),
    };
    tbs.finish().map_err(malformed("malformed tbs certificate"))?;
    let mut known = Known::default();
    for extension in &extensions {
        known.read(extension)?;
    }
    Ok(Parsed {
        version: version as u8 + 1,
        tbs: within(tbs_element),
        serial: within(serial),
        issuer: within(issuer),
        subject: within(subject),
        spki: within(spki),
        signature: within(signature),
        algorithm: SignatureAlgorithm::from_identifier(algorithm_element),
        not_before,
        not_after,
        key,
        extensions,
        known,
        raw: raw.clone(),
    })
}

fn read_extensions(raw: &Bytes, list: &[u8]) -> Result<Vec<Extension>, CertificateError> {
    let mut outer = Reader::new(list);
    let all = outer.sequence().map_err(malformed("malformed extensions"))?;
    outer.finish().map_err(malformed("malformed extensions"))?;
    let extensions = extension_list(raw, all).map_err(malformed("malformed extension"))?;
    for (i, extension) in extensions.iter().enumerate() {
        if extensions[..i].iter().any(|e| e.id == extension.id) {
            return Err(CertificateError::DuplicateExtension(extension.oid()));
        }
    }
    Ok(extensions)
}
