//! Entries of Rekor, the transparency log: what the log signed, and what of a signature it is about.
//!
//! The formats are Rekor's (pkg/types of github.com/sigstore/rekor), the checks cosign's (pkg/cosign/verify.go: VerifyBundle;
//! tlog.go: VerifyTLogEntryOffline).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::Value;
use spire_core::pki::{Certificate, HashAlgorithm, SignatureAlgorithm, pem};

use crate::trust::LogKeys;

/// Above this a number has no exact form in canonical JSON (RFC 8785, section 3.2.2.3).
const EXACT_MAX: i64 = 1 << 53;

/// Nodes of an inclusion proof: the log of a tree with 2^63 leaves has 63.
const PROOF_MAX: usize = 64;

/// Why an entry does not vouch for a signature. Where cosign has the case, the text is cosign's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum EntryError {
    #[error("unmarshaling bundle: {0}")]
    Bundle(&'static str),
    #[error("failed to extract key from bundle: {0}")]
    Body(&'static str),
    #[error("unsupported type")]
    UnsupportedKind,
    #[error("multiple signatures on DSSE envelopes are not currently supported")]
    SeveralSignatures,
    #[error("signature in bundle does not match signature being verified")]
    OtherSignature,
    #[error("comparing public key PEMs: the entry is about another certificate")]
    OtherKey,
    #[error("unexpected algorithm: not sha256")]
    Algorithm,
    #[error("matching bundle to payload: the entry is about other bytes")]
    OtherPayload,
    #[error("verifying bundle: rekor log public key not found for payload")]
    UnknownLog,
    #[error("unable to verify SET")]
    BadTimestamp,
    #[error("inclusion proof not provided")]
    NoProof,
    #[error("verifying inclusion proof: {0}")]
    Proof(&'static str),
}

/// An entry as somebody says that it is in a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LogEntry {
    /// The entry itself, base64 of JSON.
    body: String,
    /// Unix seconds.
    integrated_time: i64,
    log_index: i64,
    log_id: String,
    /// The log's promise to integrate the entry, a signature in DER.
    signed_entry_timestamp: Vec<u8>,
    /// Where the entry came from the log itself.
    proof: Option<InclusionProof>,
}

/// An entry that its log signed and that is about the signature that was asked for. [`LogEntry::verify`] alone makes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VerifiedEntry(LogEntry);

impl VerifiedEntry {
    pub(crate) fn integrated_time(&self) -> i64 {
        self.0.integrated_time
    }

    pub(crate) fn log_index(&self) -> i64 {
        self.0.log_index
    }

    pub(crate) fn log_id(&self) -> &str {
        &self.0.log_id
    }

    pub(crate) fn signed_entry_timestamp(&self) -> String {
        STANDARD.encode(&self.0.signed_entry_timestamp)
    }
}

/// The annotation `dev.sigstore.cosign/bundle`.
#[derive(Deserialize)]
struct Bundle {
    #[serde(rename = "SignedEntryTimestamp")]
    signed_entry_timestamp: String,
    #[serde(rename = "Payload")]
    payload: Payload,
}

#[derive(Deserialize)]
struct Payload {
    body: String,
    #[serde(rename = "integratedTime")]
    integrated_time: i64,
    #[serde(rename = "logIndex")]
    log_index: i64,
    #[serde(rename = "logID")]
    log_id: String,
}

/// What an entry must be about.
pub(crate) struct About<'a> {
    /// The annotation with the signature; empty for an attestation.
    pub(crate) signature: &'a str,
    pub(crate) certificate: &'a Certificate,
    pub(crate) payload: &'a [u8],
}

/// What a body says.
#[derive(Debug, PartialEq, Eq)]
struct Said {
    /// Base64, where this kind of entry has one.
    signature: Option<String>,
    /// A certificate or key, PEM.
    key: Vec<u8>,
    algorithm: String,
    hash: String,
}

/// An answer's part of the log.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
struct InclusionProof {
    hashes: Vec<String>,
    log_index: u64,
    root_hash: String,
    tree_size: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Verification {
    inclusion_proof: Option<InclusionProof>,
    signed_entry_timestamp: String,
}

#[derive(Deserialize)]
struct Found {
    #[serde(flatten)]
    payload: Payload,
    verification: Verification,
}

impl LogEntry {
    /// From the annotation of a signature.
    pub(crate) fn from_bundle(text: &str) -> Result<Self, EntryError> {
        let bundle: Bundle = serde_json::from_str(text).map_err(|_| EntryError::Bundle("not one"))?;
        Self::new(bundle.payload, &bundle.signed_entry_timestamp, None)
    }

    /// From the log's own answer: an entry under its UUID, of which the last 64 digits are the hash of its leaf.
    pub(crate) fn from_answer(uuid: &str, entry: Value) -> Result<Self, EntryError> {
        let bad = EntryError::Bundle;
        let found: Found = serde_json::from_value(entry).map_err(|_| bad("not an entry"))?;
        let leaf = match uuid.len() {
            64 => uuid,
            80 => uuid.get(16..).ok_or_else(|| bad("invalid UUID"))?,
            _ => return Err(bad("invalid UUID")),
        };
        let body = STANDARD.decode(&found.payload.body).map_err(|_| bad("the body is not base64"))?;
        if hex::encode(leaf_hash(&body)) != leaf {
            return Err(bad("computed leaf hash did not match UUID"));
        }
        let proof = found.verification.inclusion_proof;
        Self::new(found.payload, &found.verification.signed_entry_timestamp, proof)
    }

    fn new(payload: Payload, timestamp: &str, proof: Option<InclusionProof>) -> Result<Self, EntryError> {
        let bad = EntryError::Bundle;
        let exact = |number: i64| (0..=EXACT_MAX).contains(&number);
        if !exact(payload.integrated_time) || !exact(payload.log_index) {
            return Err(bad("a number is out of range"));
        }
        Ok(Self {
            body: payload.body,
            integrated_time: payload.integrated_time,
            log_index: payload.log_index,
            log_id: payload.log_id,
            signed_entry_timestamp: STANDARD
                .decode(timestamp)
                .map_err(|_| bad("the timestamp is not base64"))?,
            proof,
        })
    }

    /// Whether the entry is about this signature and one of the logs signed it.
    pub(crate) fn verify(self, about: &About<'_>, logs: &LogKeys) -> Result<VerifiedEntry, EntryError> {
        let said = Said::read(&self.body)?;
        if !about.signature.is_empty() {
            let signature = said.signature.as_deref().ok_or(EntryError::UnsupportedKind)?;
            if signature != about.signature {
                return Err(EntryError::OtherSignature);
            }
        }
        let mut blocks = pem::blocks(&said.key);
        match (blocks.next(), blocks.next()) {
            (Some(block), None) if block.contents == **about.certificate.der() => {}
            _ => return Err(EntryError::OtherKey),
        }
        if said.algorithm != "sha256" {
            return Err(EntryError::Algorithm);
        }
        if said.hash != hex::encode(HashAlgorithm::Sha256.digest(about.payload)) {
            return Err(EntryError::OtherPayload);
        }
        let log = logs.find(&self.log_id).ok_or(EntryError::UnknownLog)?;
        log.verify(SignatureAlgorithm::EcdsaSha256, &self.signed_bytes(), &self.signed_entry_timestamp)
            .map_err(|_| EntryError::BadTimestamp)?;
        Ok(VerifiedEntry(self))
    }

    /// The same of an entry that came from the log's own answer, which must prove that it is in the tree, too.
    pub(crate) fn verify_found(self, about: &About<'_>, logs: &LogKeys) -> Result<VerifiedEntry, EntryError> {
        let body = STANDARD.decode(&self.body).map_err(|_| EntryError::Body("not base64"))?;
        self.proof.as_ref().ok_or(EntryError::NoProof)?.verify(&body)?;
        self.verify(about, logs)
    }

    /// The canonical JSON (RFC 8785) that the log signs. Both texts were compared with what has no character to escape
    /// before this counts: a body is base64, and the ID names one of our logs.
    fn signed_bytes(&self) -> Vec<u8> {
        let Self { body, integrated_time, log_index, log_id, .. } = self;
        format!(
            r#"{{"body":"{body}","integratedTime":{integrated_time},"logID":"{log_id}","logIndex":{log_index}}}"#
        )
        .into_bytes()
    }
}

/// A leaf of a tree (RFC 6962, section 2.1).
fn leaf_hash(body: &[u8]) -> Vec<u8> {
    HashAlgorithm::Sha256.digest(&[&[0], body].concat()).as_ref().to_vec()
}

fn node_hash(left: &[u8], right: &[u8]) -> Vec<u8> {
    HashAlgorithm::Sha256.digest(&[&[1], left, right].concat()).as_ref().to_vec()
}

impl InclusionProof {
    /// Whether the leaf is in the tree with this root (RFC 9162, section 2.1.3.2). Who signed the root is not asked, as
    /// in cosign: what counts is the timestamp that the log signed.
    fn verify(&self, body: &[u8]) -> Result<(), EntryError> {
        if self.log_index >= self.tree_size {
            return Err(EntryError::Proof("index is beyond size"));
        }
        if self.hashes.len() > PROOF_MAX {
            return Err(EntryError::Proof("too many hashes"));
        }
        let decode = |text: &String| hex::decode(text).map_err(|_| EntryError::Proof("malformed hash"));
        let (mut index, mut last) = (self.log_index, self.tree_size - 1);
        let mut hash = leaf_hash(body);
        for sibling in &self.hashes {
            let sibling = decode(sibling)?;
            if last == 0 {
                return Err(EntryError::Proof("wrong proof size"));
            }
            if index & 1 == 1 || index == last {
                hash = node_hash(&sibling, &hash);
                while index & 1 == 0 && index != 0 {
                    index >>= 1;
                    last >>= 1;
                }
            } else {
                hash = node_hash(&hash, &sibling);
            }
            index >>= 1;
            last >>= 1;
        }
        if last != 0 {
            return Err(EntryError::Proof("wrong proof size"));
        }
        if hash == decode(&self.root_hash)? {
            Ok(())
        } else {
            Err(EntryError::Proof("calculated root does not match"))
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Body {
    api_version: String,
    kind: String,
    spec: Value,
}

#[derive(Deserialize)]
struct Hash {
    algorithm: String,
    value: String,
}

#[derive(Deserialize)]
struct Hashed {
    hash: Hash,
}

#[derive(Deserialize)]
struct Content {
    content: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Signed {
    content: String,
    public_key: Content,
}

/// `hashedrekord` and `rekord`.
#[derive(Deserialize)]
struct Record {
    data: Hashed,
    signature: Signed,
}

/// `intoto`, the first version.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Intoto1 {
    content: Hashed,
    public_key: String,
}

/// `intoto`, the second version.
#[derive(Deserialize)]
struct Intoto2 {
    content: Intoto2Content,
}

#[derive(Deserialize)]
struct Intoto2Content {
    envelope: Intoto2Envelope,
    hash: Hash,
}

#[derive(Deserialize)]
struct Intoto2Envelope {
    signatures: Vec<Intoto2Signature>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Intoto2Signature {
    sig: String,
    public_key: String,
}

/// `dsse`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Dsse {
    envelope_hash: Hash,
    signatures: Vec<DsseSignature>,
}

#[derive(Deserialize)]
struct DsseSignature {
    signature: String,
    verifier: String,
}

impl Said {
    fn read(body: &str) -> Result<Self, EntryError> {
        let body = STANDARD.decode(body).map_err(|_| EntryError::Body("not base64"))?;
        let body: Body = serde_json::from_slice(&body).map_err(|_| EntryError::Body("not an entry"))?;
        let (signature, key, hash) = match (body.kind.as_str(), body.api_version.as_str()) {
            ("hashedrekord" | "rekord", "0.0.1") => {
                let record: Record = spec(body.spec)?;
                (Some(record.signature.content), record.signature.public_key.content, record.data.hash)
            }
            ("intoto", "0.0.1") => {
                let entry: Intoto1 = spec(body.spec)?;
                (None, entry.public_key, entry.content.hash)
            }
            ("intoto", "0.0.2") => {
                let entry: Intoto2 = spec(body.spec)?;
                let signature = only(entry.content.envelope.signatures)?;
                (Some(signature.sig), signature.public_key, entry.content.hash)
            }
            ("dsse", "0.0.1") => {
                let entry: Dsse = spec(body.spec)?;
                let signature = only(entry.signatures)?;
                (Some(signature.signature), signature.verifier, entry.envelope_hash)
            }
            _ => return Err(EntryError::UnsupportedKind),
        };
        let key = STANDARD.decode(key).map_err(|_| EntryError::Body("the key is not base64"))?;
        Ok(Self { signature, key, algorithm: hash.algorithm, hash: hash.value })
    }
}

fn spec<T: serde::de::DeserializeOwned>(spec: Value) -> Result<T, EntryError> {
    serde_json::from_value(spec).map_err(|_| EntryError::Body("not an entry of its kind"))
}

fn only<T>(mut signatures: Vec<T>) -> Result<T, EntryError> {
    match (signatures.pop(), signatures.is_empty()) {
        (Some(signature), true) => Ok(signature),
        (Some(_), false) => Err(EntryError::SeveralSignatures),
        (None, _) => Err(EntryError::Body("no signatures")),
    }
}

#[cfg(test)]
mod tests;
