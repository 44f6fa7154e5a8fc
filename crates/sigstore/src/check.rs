//! The check of one signature or attestation, without IO: cosign's (pkg/cosign/verify.go: verifyInternal), and that the
//! signed text is about the image.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use bytes::Bytes;
use serde::Deserialize;
use spire_compat::gotime;
use spire_core::pki::chain::{self, Purpose};
use spire_core::pki::{Certificate, PublicKeyKind, SignatureAlgorithm, VerifyError, pem, transparency};
use spire_core::time::Timestamp;

use crate::entry::{About, EntryError, LogEntry, VerifiedEntry};
use crate::reference::Digest;
use crate::settings::{PolicyError, Settings, Signer};
use crate::trust::Trust;

const SIGNATURE: &str = "dev.cosignproject.cosign/signature";
const CERTIFICATE: &str = "dev.sigstore.cosign/certificate";
const CHAIN: &str = "dev.sigstore.cosign/chain";
const BUNDLE: &str = "dev.sigstore.cosign/bundle";

/// The type of what an attestation signs.
const INTOTO_TYPE: &str = "application/vnd.in-toto+json";

/// Certificates of an annotation; more than that are no chain.
const CHAIN_MAX: usize = 10;

/// Which of the two a layer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Signature,
    Attestation,
}

impl Kind {
    /// What a tag ends in.
    pub(crate) fn suffix(self) -> &'static str {
        match self {
            Self::Signature => "sig",
            Self::Attestation => "att",
        }
    }
}

/// A layer of an image of signatures, its bytes compared with its digest.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    pub(crate) digest: Digest,
    pub(crate) annotations: BTreeMap<String, String>,
    pub(crate) payload: Bytes,
}

/// Why a signature does not count. The texts are cosign's where it has the case.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CheckError {
    #[error("signature layer {0} is missing \"{SIGNATURE}\" annotation")]
    NoSignature(Digest),
    #[error("error verifying bundle: {0}")]
    Entry(#[from] EntryError),
    #[error("no certificate found on signature")]
    NoCertificate,
    #[error("invalid certificate found on signature: {0}")]
    Certificate(String),
    #[error(
        "cert verification failed: {0}. Check your TUF root (see cosign initialize) or set a custom root with env var \
         SIGSTORE_ROOT_FILE"
    )]
    Chain(VerifyError),
    #[error(transparent)]
    Policy(#[from] PolicyError),
    #[error("certificate does not include required embedded SCT and no detached SCT was set")]
    NoTimestamp,
    #[error(
        "ctfe public key not found for payload. Check your TUF root (see cosign initialize) or set a custom key with env \
         var SIGSTORE_CT_LOG_PUBLIC_KEY_FILE"
    )]
    UnknownCtLog,
    #[error("error verifying embedded SCT: {0}")]
    Timestamp(#[from] transparency::TimestampError),
    #[error("certificate chain must contain at least a certificate and its issuer")]
    NoIssuer,
    #[error("malformed signature: {0}")]
    Malformed(&'static str),
    #[error("invalid signature when validating ASN.1 encoded signature")]
    BadSignature,
    #[error("invalid payloadType on envelope. Expected {INTOTO_TYPE}")]
    PayloadType,
    #[error("invalid or missing digest in claim: {0}")]
    OtherImage(String),
    #[error(
        "checking expiry on certificate with bundle: {whose} expired before observed time: {limit} is before {observed}"
    )]
    Expired { whose: &'static str, limit: String, observed: String },
    #[error(
        "checking expiry on certificate with bundle: {whose} was issued after observed time: {limit} is after {observed}"
    )]
    TooEarly { whose: &'static str, limit: String, observed: String },
    #[error("expected a signed timestamp to verify an expired certificate")]
    ExpiredNow,
    #[error("failed to extract subject from certificate: no subject found in certificate")]
    NoSubject,
    #[error("failed to extract issuer from certificate: no OIDC issuer found in certificate extensions")]
    NoTokenIssuer,
    #[error("{0}")]
    Log(String),
}

/// A signature that counts. [`check`] alone makes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Verified {
    signature: String,
    signer: Signer,
    entry: Option<VerifiedEntry>,
}

impl Verified {
    /// Whether its log took it before the other one.
    pub(crate) fn is_earlier_than(&self, other: &Self) -> bool {
        let time = |one: &Self| one.entry.as_ref().map(VerifiedEntry::integrated_time);
        time(self) < time(other)
    }

    /// What selectors say of it.
    pub(crate) fn values(&self) -> Result<Vec<String>, CheckError> {
        let subject = self.signer.subjects.iter().find(|subject| !subject.is_empty());
        let subject = subject.ok_or(CheckError::NoSubject)?;
        if self.signer.issuer.is_empty() {
            return Err(CheckError::NoTokenIssuer);
        }
        let mut values = vec![
            format!("image-signature-subject:{subject}"),
            format!("image-signature-issuer:{}", self.signer.issuer),
        ];
        if !self.signature.is_empty() {
            values.push(format!("image-signature-value:{}", self.signature));
        }
        if let Some(entry) = &self.entry {
            values.push(format!("image-signature-log-id:{}", entry.log_id()));
            values.push(format!("image-signature-log-index:{}", entry.log_index()));
            values.push(format!("image-signature-integrated-time:{}", entry.integrated_time()));
            let timestamp = entry.signed_entry_timestamp();
            if !timestamp.is_empty() {
                values.push(format!("image-signature-signed-entry-timestamp:{timestamp}"));
            }
        }
        Ok(values)
    }
}

impl Layer {
    fn annotation(&self, name: &str) -> Option<&str> {
        self.annotations.get(name).map(String::as_str)
    }

    /// The signature, base64; empty for an attestation, whose signature is in its payload.
    pub(crate) fn signature(&self) -> Result<&str, CheckError> {
        self.annotation(SIGNATURE).ok_or_else(|| CheckError::NoSignature(self.digest.clone()))
    }

    pub(crate) fn certificate(&self) -> Result<Certificate, CheckError> {
        let text = self.annotation(CERTIFICATE).filter(|text| !text.is_empty());
        let certificates = certificates(text.ok_or(CheckError::NoCertificate)?)?;
        certificates.into_iter().next().ok_or(CheckError::NoCertificate)
    }

    /// The authorities of the certificate as whoever pushed the signature says.
    fn chain(&self) -> Result<Vec<Certificate>, CheckError> {
        self.annotation(CHAIN).filter(|text| !text.is_empty()).map_or(Ok(Vec::new()), certificates)
    }

    /// The log's entry that came along, if one did.
    pub(crate) fn entry(&self) -> Result<Option<LogEntry>, CheckError> {
        let text = self.annotation(BUNDLE).filter(|text| !text.is_empty());
        Ok(text.map(LogEntry::from_bundle).transpose()?)
    }
}

fn certificates(text: &str) -> Result<Vec<Certificate>, CheckError> {
    let all = pem::certificates(text.as_bytes());
    let all = all.map_err(|error| CheckError::Certificate(error.to_string()))?;
    if all.len() > CHAIN_MAX {
        return Err(CheckError::Certificate("too many certificates".to_owned()));
    }
    Ok(all)
}

/// An entry of the log, and where it came from.
pub(crate) enum Evidence {
    /// Logs do not count.
    None,
    /// It came with the signature.
    Bundle(LogEntry),
    /// The log was asked for it.
    Found(LogEntry),
}

/// Whether a layer is a good signature of the image with this digest. `now` counts only where logs do not: else the
/// certificate has to be valid when the log took the signature.
pub(crate) fn check(
    layer: &Layer,
    kind: Kind,
    image: &Digest,
    evidence: Evidence,
    (settings, trust): (&Settings, &Trust),
    now: Timestamp,
) -> Result<Verified, CheckError> {
    let signature = layer.signature()?;
    let certificate = layer.certificate()?;
    let about = About { signature, certificate: &certificate, payload: &layer.payload };
    let entry = match evidence {
        Evidence::None if settings.ignore_tlog => None,
        Evidence::None => return Err(CheckError::Log("no tlog entry".to_owned())),
        Evidence::Bundle(entry) => Some(entry.verify(&about, &trust.rekor)?),
        Evidence::Found(entry) => Some(entry.verify_found(&about, &trust.rekor)?),
    };
    let chain = authorized(&certificate, &layer.chain()?, trust)?;
    let signer = Signer::of(&certificate);
    settings.allow(&signer)?;
    if !settings.ignore_sct {
        check_timestamps(&certificate, &chain, trust)?;
    }
    match kind {
        Kind::Signature => check_claim(signature, &certificate, &layer.payload, image)?,
        Kind::Attestation => check_statement(&certificate, &layer.payload, image)?,
    }
    match &entry {
        Some(entry) => check_validity(&chain, Timestamp::from_unix(entry.integrated_time()))?,
        None => check_validity(&chain, now).map_err(|_| CheckError::ExpiredNow)?,
    }
    Ok(Verified { signature: signature.to_owned(), signer, entry })
}

/// The chain from the certificate to one of Fulcio's roots. Times are looked at afterwards: the certificate lives for ten
/// minutes, and what counts is when it signed.
fn authorized(
    certificate: &Certificate,
    given: &[Certificate],
    trust: &Trust,
) -> Result<Vec<Certificate>, CheckError> {
    let mut candidates = vec![certificate.clone()];
    if trust.intermediates.is_empty() {
        // As in cosign what came along helps only where no intermediates are known, and its last is the root.
        candidates.extend(given.split_last().map_or(&[][..], |(_, rest)| rest).iter().cloned());
    } else {
        candidates.extend(trust.intermediates.iter().cloned());
    }
    chain::verify(&candidates, &trust.roots, Purpose::CodeSigning, certificate.not_before())
        .map_err(CheckError::Chain)
}

/// All timestamps in the certificate must be good ones of logs that we know, and there must be one.
fn check_timestamps(
    certificate: &Certificate,
    chain: &[Certificate],
    trust: &Trust,
) -> Result<(), CheckError> {
    let timestamps = transparency::embedded(certificate)?;
    if timestamps.is_empty() {
        return Err(CheckError::NoTimestamp);
    }
    let issuer = chain.get(1).ok_or(CheckError::NoIssuer)?;
    for timestamp in timestamps {
        let log = trust.ct.find(&hex::encode(timestamp.log_id)).ok_or(CheckError::UnknownCtLog)?;
        timestamp.verify(certificate, issuer, log)?;
    }
    Ok(())
}

fn check_validity(chain: &[Certificate], observed: Timestamp) -> Result<(), CheckError> {
    let shown = |at: Timestamp| gotime::rfc3339(at.unix());
    for (position, certificate) in chain.iter().enumerate() {
        let whose = if position == 0 { "certificate" } else { "issuing CA certificate" };
        if certificate.not_after() < observed {
            let limit = shown(certificate.not_after());
            return Err(CheckError::Expired { whose, limit, observed: shown(observed) });
        }
        if certificate.not_before() > observed {
            let limit = shown(certificate.not_before());
            return Err(CheckError::TooEarly { whose, limit, observed: shown(observed) });
        }
    }
    Ok(())
}

/// Whether the certificate's key made the signature. The hash is SHA-256 whatever the key is, as in cosign.
fn check_signature(certificate: &Certificate, message: &[u8], signature: &[u8]) -> Result<(), CheckError> {
    let key = certificate.public_key().map_err(|error| CheckError::Certificate(error.to_string()))?;
    let algorithm = match key.kind() {
        PublicKeyKind::Rsa { .. } => SignatureAlgorithm::RsaPkcs1Sha256,
        PublicKeyKind::Ed25519 => SignatureAlgorithm::Ed25519,
        PublicKeyKind::EcP256 | PublicKeyKind::EcP384 | PublicKeyKind::EcP521 => {
            SignatureAlgorithm::EcdsaSha256
        }
    };
    key.verify(algorithm, message, signature).map_err(|_| CheckError::BadSignature)
}

/// What a signature of an image signs (containers' simple signing). Its type is not asked for, as in cosign.
#[derive(Deserialize)]
struct Claim {
    critical: Critical,
}

#[derive(Deserialize)]
struct Critical {
    image: ClaimImage,
}

#[derive(Deserialize)]
struct ClaimImage {
    #[serde(rename = "docker-manifest-digest")]
    digest: String,
}

/// Whether the signed text names the image. SPIRE leaves this out, and a signature of one image that is pushed under the
/// name of another one's counts there.
fn check_claim(
    signature: &str,
    certificate: &Certificate,
    payload: &[u8],
    image: &Digest,
) -> Result<(), CheckError> {
    let signature = STANDARD.decode(signature).map_err(|_| CheckError::Malformed("not base64"))?;
    check_signature(certificate, payload, &signature)?;
    let claim: Claim = serde_json::from_slice(payload).map_err(|_| CheckError::Malformed("not a claim"))?;
    if Digest::parse(&claim.critical.image.digest).as_ref() != Some(image) {
        return Err(CheckError::OtherImage(claim.critical.image.digest));
    }
    Ok(())
}

/// A DSSE envelope (github.com/secure-systems-lab/dsse).
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope {
    payload_type: String,
    payload: String,
    signatures: Vec<EnvelopeSignature>,
}

#[derive(Deserialize)]
struct EnvelopeSignature {
    sig: String,
}

/// An in-toto statement, as far as it says what it is about.
#[derive(Deserialize)]
struct Statement {
    subject: Vec<Subject>,
}

#[derive(Deserialize)]
struct Subject {
    digest: BTreeMap<String, String>,
}

/// Signatures of an envelope that are tried; cosign makes one.
const SIGNATURES_MAX: usize = 8;

fn check_statement(certificate: &Certificate, payload: &[u8], image: &Digest) -> Result<(), CheckError> {
    let malformed = CheckError::Malformed;
    let envelope: Envelope = serde_json::from_slice(payload).map_err(|_| malformed("not an envelope"))?;
    if envelope.payload_type != INTOTO_TYPE {
        return Err(CheckError::PayloadType);
    }
    let decode = |text: &str| STANDARD.decode(text).or_else(|_| URL_SAFE.decode(text)).ok();
    let body = decode(&envelope.payload).ok_or(malformed("the payload is not base64"))?;
    let mut message = format!("DSSEv1 {} {INTOTO_TYPE} {} ", INTOTO_TYPE.len(), body.len()).into_bytes();
    message.extend_from_slice(&body);
    let signatures = envelope.signatures.iter().take(SIGNATURES_MAX).filter_map(|one| decode(&one.sig));
    let is_good = |signature: Vec<u8>| check_signature(certificate, &message, &signature).is_ok();
    if !signatures.into_iter().any(is_good) {
        return Err(CheckError::BadSignature);
    }
    let statement: Statement = serde_json::from_slice(&body).map_err(|_| malformed("not a statement"))?;
    let is_image = |subject: &Subject| subject.digest.get("sha256").is_some_and(|hex| *hex == image.hex());
    if statement.subject.iter().any(is_image) {
        return Ok(());
    }
    let first = statement.subject.first().and_then(|subject| subject.digest.get("sha256"));
    Err(CheckError::OtherImage(first.cloned().unwrap_or_default()))
}

#[cfg(test)]
mod tests;
