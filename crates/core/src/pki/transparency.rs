//! Certificate transparency as a verifier needs it: the signed timestamps inside a certificate (RFC 6962).
//!
//! A log signs what the authority was about to sign, so a check takes that apart: the certificate without the list of
//! timestamps itself, and the key of its issuer.

use super::algorithm::{HashAlgorithm, SignatureAlgorithm};
use super::certificate::Certificate;
use super::der::{DerError, Reader, Writer, tag};
use super::key::{PublicKey, PublicKeyKind};
use super::oid;

/// More timestamps than this in one certificate are refused; public certificates have two or three.
const MAX_TIMESTAMPS: usize = 16;

/// `sha256` and the two families that logs sign with, in the numbering of TLS 1.2 (RFC 5246, section 7.4.1.4.1).
const TLS_SHA256: u8 = 4;
const TLS_RSA: u8 = 1;
const TLS_ECDSA: u8 = 3;

/// Why the timestamps of a certificate are not good.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TimestampError {
    /// Bytes that are not a list of timestamps.
    #[error("malformed list of signed certificate timestamps")]
    Malformed,
    /// Another version than the first, or an algorithm that logs do not use.
    #[error("unsupported signed certificate timestamp")]
    Unsupported,
    /// The log's key, of this family, did not make the signature, or not over this certificate and issuer. The text is that
    /// of github.com/google/certificate-transparency-go.
    #[error("failed to verify {0} signature")]
    BadSignature(&'static str),
}

impl From<DerError> for TimestampError {
    fn from(_: DerError) -> Self {
        Self::Malformed
    }
}

/// A log's promise to publish a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedTimestamp<'a> {
    /// SHA-256 of the log's SubjectPublicKeyInfo.
    pub log_id: [u8; 32],
    /// Milliseconds since the Unix epoch.
    pub timestamp: u64,
    extensions: &'a [u8],
    hash: u8,
    family: u8,
    signature: &'a [u8],
}

/// The timestamps in a certificate; empty where it has none.
///
/// # Errors
/// [`TimestampError::Malformed`], [`TimestampError::Unsupported`].
pub fn embedded(certificate: &Certificate) -> Result<Vec<SignedTimestamp<'_>>, TimestampError> {
    let Some(extension) = certificate.extensions().iter().find(|extension| extension.id == oid::SCT_LIST)
    else {
        return Ok(Vec::new());
    };
    let mut outer = Reader::new(&extension.value);
    let list = outer.read(tag::OCTET_STRING)?;
    outer.finish()?;
    let mut whole = Octets(list);
    let mut list = Octets(whole.vector()?);
    whole.finish()?;
    let mut found = Vec::new();
    while !list.0.is_empty() {
        if found.len() == MAX_TIMESTAMPS {
            return Err(TimestampError::Malformed);
        }
        found.push(timestamp(list.vector()?)?);
    }
    Ok(found)
}

fn timestamp(bytes: &[u8]) -> Result<SignedTimestamp<'_>, TimestampError> {
    let mut bytes = Octets(bytes);
    if bytes.number::<1>()? != 0 {
        return Err(TimestampError::Unsupported);
    }
    let log_id = bytes.take(32)?.try_into().map_err(|_| TimestampError::Malformed)?;
    let timestamp = bytes.number::<8>()?;
    let extensions = bytes.vector()?;
    let (hash, family) = match bytes.take(2)? {
        [hash, family] => (*hash, *family),
        _ => return Err(TimestampError::Malformed),
    };
    let signature = bytes.vector()?;
    bytes.finish()?;
    Ok(SignedTimestamp { log_id, timestamp, extensions, hash, family, signature })
}

impl SignedTimestamp<'_> {
    /// Whether the log with this key promised to publish `certificate`, issued by `issuer` (RFC 6962, section 3.2). That
    /// the key is the one of `log_id` is for the caller to see to.
    ///
    /// # Errors
    /// [`TimestampError`]
    pub fn verify(
        &self,
        certificate: &Certificate,
        issuer: &Certificate,
        log: &PublicKey,
    ) -> Result<(), TimestampError> {
        let (algorithm, family) = match (self.hash, self.family, log.kind()) {
            (TLS_SHA256, TLS_RSA, PublicKeyKind::Rsa { .. }) => (SignatureAlgorithm::RsaPkcs1Sha256, "rsa"),
            (
                TLS_SHA256,
                TLS_ECDSA,
                PublicKeyKind::EcP256 | PublicKeyKind::EcP384 | PublicKeyKind::EcP521,
            ) => (SignatureAlgorithm::EcdsaSha256, "ECDSA"),
            _ => return Err(TimestampError::Unsupported),
        };
        let message = self.signed_data(certificate, issuer)?;
        log.verify(algorithm, &message, self.signature).map_err(|_| TimestampError::BadSignature(family))
    }

    fn signed_data(
        &self,
        certificate: &Certificate,
        issuer: &Certificate,
    ) -> Result<Vec<u8>, TimestampError> {
        let tbs = without_timestamps(certificate)?;
        let length = u32::try_from(tbs.len()).ok().filter(|length| *length < 1 << 24);
        let length = length.ok_or(TimestampError::Malformed)?.to_be_bytes();
        let extensions = u16::try_from(self.extensions.len()).map_err(|_| TimestampError::Malformed)?;
        let mut data = Vec::with_capacity(tbs.len() + 64);
        // Version 1 of a certificate timestamp, of a precertificate.
        data.extend_from_slice(&[0, 0]);
        data.extend_from_slice(&self.timestamp.to_be_bytes());
        data.extend_from_slice(&[0, 1]);
        data.extend_from_slice(HashAlgorithm::Sha256.digest(issuer.spki_der()).as_ref());
        data.extend_from_slice(&length[1..]);
        data.extend_from_slice(&tbs);
        data.extend_from_slice(&extensions.to_be_bytes());
        data.extend_from_slice(self.extensions);
        Ok(data)
    }
}

/// The signed part of a certificate as it was before the list of timestamps came into it.
fn without_timestamps(certificate: &Certificate) -> Result<Vec<u8>, DerError> {
    let mut fields = Reader::new(certificate.tbs_der()).sequence()?;
    let mut w = Writer::with_capacity(certificate.tbs_der().len());
    w.sequence(|w| {
        while !fields.is_empty() {
            if fields.peek() != Some(tag::constructed(3)) {
                w.raw(fields.any()?.2);
                continue;
            }
            let mut extensions = fields.nested(tag::constructed(3))?.sequence()?;
            w.nested(tag::constructed(3), |w| {
                w.sequence(|w| {
                    while !extensions.is_empty() {
                        let (content, element) = extensions.element(tag::SEQUENCE)?;
                        if Reader::new(content).read(tag::OID)? != oid::SCT_LIST {
                            w.raw(element);
                        }
                    }
                    Ok::<(), DerError>(())
                })
            })?;
        }
        Ok::<(), DerError>(())
    })?;
    Ok(w.into_bytes())
}

/// The otherName with this object identifier, in dotted form, in the subjectAltName of a certificate: its text. Nothing
/// where there is none, several, or an otherName of another kind (sigstore's pkg/cryptoutils/sans.go).
pub fn other_name(certificate: &Certificate, oid: &str) -> Option<String> {
    let mut names = Reader::new(certificate.san()?).sequence().ok()?;
    let mut found = None;
    while !names.is_empty() {
        let (kind, content, _) = names.any().ok()?;
        if kind != tag::constructed(0) {
            continue;
        }
        let mut name = Reader::new(content);
        let id = name.read(tag::OID).ok()?;
        let text = name.nested(tag::constructed(0)).ok()?.read(tag::UTF8_STRING).ok()?;
        let is_wanted = super::der::dotted(id).is_some_and(|dotted| dotted == oid);
        if !is_wanted || found.is_some() {
            return None;
        }
        found = Some(std::str::from_utf8(text).ok()?.to_owned());
    }
    found
}

/// Reads what TLS calls opaque vectors and numbers.
struct Octets<'a>(&'a [u8]);

impl<'a> Octets<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], TimestampError> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(TimestampError::Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn number<const BYTES: usize>(&mut self) -> Result<u64, TimestampError> {
        Ok(self.take(BYTES)?.iter().fold(0, |number, byte| (number << 8) | u64::from(*byte)))
    }

    /// With a length of two bytes before it.
    fn vector(&mut self) -> Result<&'a [u8], TimestampError> {
        let length = usize::try_from(self.number::<2>()?).map_err(|_| TimestampError::Malformed)?;
        self.take(length)
    }

    fn finish(&self) -> Result<(), TimestampError> {
        if self.0.is_empty() { Ok(()) } else { Err(TimestampError::Malformed) }
    }
}
