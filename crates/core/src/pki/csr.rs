//! Certificate signing requests (PKCS#10, RFC 2986): built as Go builds them, and read with their
//! signature checked.

use std::net::IpAddr;

use bytes::Bytes;

use super::algorithm::{Family, SignatureAlgorithm};
use super::der::{DerError, Reader, tag};
use super::extensions::{AltNames, alt_names, extension_list};
use super::key::{PublicKey, PublicKeyError};
use super::name::{DistinguishedName, EncodedName};
use super::oid;
use super::template::{Extension, TemplateError, ToBeSigned, write_san};

/// The longest request that is read.
pub const MAX_CSR_BYTES: usize = 64 * 1024;
/// More attributes than this are refused; requests have one.
const MAX_ATTRIBUTES: usize = 16;

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CsrError {
    /// Not PKCS#10.
    #[error("malformed certificate request")]
    Malformed,
    /// Longer than 64 KiB.
    #[error("certificate request is too large")]
    TooLarge,
    /// A key that we do not certify: of another kind, too small or too large.
    #[error(transparent)]
    Key(#[from] PublicKeyError),
    /// Signed with an algorithm that we do not accept, or another family than the key's.
    #[error("x509: cannot verify signature: algorithm unimplemented")]
    Algorithm,
    /// The signature is not by the key in the request. The text is Go's.
    #[error("{}", match .0 {
        Signer::Rsa => "crypto/rsa: verification error",
        Signer::Ecdsa => "x509: ECDSA verification failure",
        Signer::Ed25519 => "x509: Ed25519 verification failure",
    })]
    Signature(Signer),
    /// The same extension is requested twice.
    #[error("x509: certificate request contains duplicate requested extensions")]
    DuplicateExtension,
}

/// The family of the key whose signature did not match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signer {
    /// RSA.
    Rsa,
    /// ECDSA.
    Ecdsa,
    /// Ed25519.
    Ed25519,
}

impl From<DerError> for CsrError {
    fn from(_: DerError) -> Self {
        Self::Malformed
    }
}

/// What a request asks for.
#[derive(Clone, Copy, Debug)]
pub struct CsrTemplate<'a> {
    /// Who asks. The reference's agents use `C=US, O=SPIRE` ([`DistinguishedName::default_svid`]),
    /// `x509 mint` an empty name.
    pub subject: &'a EncodedName,
    /// The key to certify, which must sign the request.
    pub public_key: &'a PublicKey,
    /// DNS names.
    pub dns_names: &'a [String],
    /// URIs; a SPIFFE ID as a rule, none for agents (they get theirs from attestation).
    pub uris: &'a [&'a str],
    /// Further extensions, after the SAN.
    pub extra_extensions: &'a [Extension],
}

impl CsrTemplate<'_> {
    /// The bytes that the key must sign.
    ///
    /// # Errors
    /// [`TemplateError::NotAscii`] when a name that is to be written is not ASCII.
    pub fn to_be_signed(&self) -> Result<ToBeSigned, TemplateError> {
        let capacity = 256 + self.subject.as_der().len() + self.public_key.spki().len();
        ToBeSigned::write(self.public_key.signature_algorithm(), capacity, |w| {
            w.sequence(|w| {
                w.unsigned(&[]);
                w.raw(self.subject.as_der());
                w.raw(self.public_key.spki());
                w.nested(tag::constructed(0), |w| {
                    let replaced = self.extra_extensions.iter().any(|e| e.id == oid::SUBJECT_ALT_NAME);
                    let has_names = !self.dns_names.is_empty() || !self.uris.is_empty();
                    let san = has_names && !replaced;
                    if !san && self.extra_extensions.is_empty() {
                        return Ok(());
                    }
                    w.sequence(|w| {
                        w.primitive(tag::OID, oid::EXTENSION_REQUEST);
                        w.nested(tag::SET, |w| {
                            w.sequence(|w| {
                                if san {
                                    write_san(w, self.dns_names, self.uris, false)?;
                                }
                                self.extra_extensions.iter().for_each(|e| e.write(w));
                                Ok(())
                            })
                        })
                    })
                })
            })
        })
    }
}

/// A request that the key in it has signed. Only [`VerifiedCsr::from_der`] makes one.
#[derive(Clone, Debug)]
pub struct VerifiedCsr {
    raw: Bytes,
    public_key: PublicKey,
    subject: EncodedName,
    names: AltNames,
    extensions: Vec<Extension>,
}

impl VerifiedCsr {
    /// Parses a request and checks that its own key signed it.
    ///
    /// # Errors
    /// [`CsrError`]. [`CsrError::TooLarge`], [`CsrError::Key`], [`CsrError::Algorithm`] and
    /// [`CsrError::Signature`] come before anything that the request asks for is read,
    /// [`CsrError::DuplicateExtension`] after that, [`CsrError::Malformed`] at any point.
    pub fn from_der(der: impl Into<Bytes>) -> Result<Self, CsrError> {
        let raw = der.into();
        if raw.len() > MAX_CSR_BYTES {
            return Err(CsrError::TooLarge);
        }
        let mut outer = Reader::new(&raw);
        let mut request = outer.sequence()?;
        outer.finish()?;
        let (info, signed) = request.element(tag::SEQUENCE)?;
        let (_, identifier) = request.element(tag::SEQUENCE)?;
        let signature = request.bit_bytes()?;
        request.finish()?;

        let mut info = Reader::new(info);
        if info.small()? != 0 {
            return Err(CsrError::Malformed);
        }
        let (_, subject) = info.element(tag::SEQUENCE)?;
        let (_, spki) = info.element(tag::SEQUENCE)?;
        let attributes = info.optional(tag::constructed(0))?.unwrap_or_default();
        info.finish()?;
        let public_key = PublicKey::from_spki(raw.slice_ref(spki))?;
        let algorithm = SignatureAlgorithm::from_identifier(identifier).ok_or(CsrError::Algorithm)?;
        if algorithm.family() != public_key.family() {
            return Err(CsrError::Algorithm);
        }
        // The signature comes before anything that the request asks for.
        public_key.verify(algorithm, signed, signature).map_err(|_| {
            CsrError::Signature(match public_key.family() {
                Family::Rsa => Signer::Rsa,
                Family::Ecdsa => Signer::Ecdsa,
                Family::Ed25519 => Signer::Ed25519,
            })
        })?;

        DistinguishedName::from_der(subject)?;
        let extensions = requested_extensions(&raw, attributes)?;
        let mut names = AltNames::default();
        for extension in &extensions {
            if extension.id == oid::SUBJECT_ALT_NAME {
                names = alt_names(&extension.value)?;
            }
        }
        let subject = EncodedName::from_der(subject)?;
        Ok(Self { public_key, subject, names, extensions, raw })
    }

    /// The request, DER.
    pub fn der(&self) -> &Bytes {
        &self.raw
    }

    /// The key that is to be certified.
    pub fn public_key(&self) -> &PublicKey {
        &self.public_key
    }

    /// The subject, as it stands in the request.
    pub fn subject_name(&self) -> &EncodedName {
        &self.subject
    }

    /// The subject, parsed.
    pub fn subject(&self) -> DistinguishedName {
        DistinguishedName::from_der(self.subject.as_der()).unwrap_or_default()
    }

    /// URIs that are asked for.
    pub fn uris(&self) -> &[String] {
        &self.names.uris
    }

    /// DNS names that are asked for.
    pub fn dns_names(&self) -> &[String] {
        &self.names.dns
    }

    /// IP addresses that are asked for.
    pub fn ip_addresses(&self) -> &[IpAddr] {
        &self.names.ips
    }

    /// Every extension that is asked for, the SAN included, in order.
    pub fn extensions(&self) -> &[Extension] {
        &self.extensions
    }
}

fn requested_extensions(raw: &Bytes, attributes: &[u8]) -> Result<Vec<Extension>, CsrError> {
    let mut attributes = Reader::new(attributes);
    let mut found: Vec<Extension> = Vec::new();
    let mut count = 0;
    while !attributes.is_empty() {
        count += 1;
        if count > MAX_ATTRIBUTES {
            return Err(CsrError::Malformed);
        }
        let mut attribute = attributes.sequence()?;
        if attribute.read(tag::OID)? != oid::EXTENSION_REQUEST {
            continue;
        }
        let mut values = attribute.nested(tag::SET)?;
        for extension in extension_list(raw, values.sequence()?)? {
            if found.iter().any(|e| e.id == extension.id) {
                return Err(CsrError::DuplicateExtension);
            }
            found.push(extension);
        }
    }
    Ok(found)
}
