//! Asks a log for the entry of a signature that came without one (cosign's pkg/cosign/tlog.go: FindTlogEntry).

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode, header};
use serde_json::{Value, json};
use spire_core::pki::{HashAlgorithm, pem};
use spire_net::https::{FetchError, HttpsClient};
use spire_net::tls::{TlsClient, TlsPolicy, TlsSetupError};

use crate::entry::{About, LogEntry};

/// The log looks into its index.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Entries have some KiB, with an attestation inside more.
const ANSWER_MAX: usize = 16 << 20;

/// Entries of one signature that are looked at; there is one, unless somebody uploads it again.
const ENTRIES_MAX: usize = 32;

/// Why a log knew nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RekorError {
    #[error("searching log query: {0}")]
    Fetch(#[from] FetchError),
    #[error("searching log query: unexpected status code {0}")]
    Status(StatusCode),
    #[error("searching log query: not an answer of a log")]
    Answer,
    #[error("invalid Rekor URL")]
    Url,
    #[error("signature not found in transparency log")]
    NotFound,
}

/// A log that is asked.
#[derive(Clone, Debug)]
pub(crate) struct Rekor {
    https: HttpsClient,
    url: String,
}

impl Rekor {
    /// At the URL of the settings, which may be one without TLS.
    pub(crate) fn new(url: &str, tls: Option<TlsClient>) -> Result<Self, TlsSetupError> {
        let tls = match tls {
            Some(tls) => tls,
            None => TlsClient::web(TlsPolicy::default())?,
        };
        let https = HttpsClient::new(tls).allow_plain_http().within(REQUEST_TIMEOUT).at_most(ANSWER_MAX);
        Ok(Self { https, url: url.trim_end_matches('/').to_owned() })
    }

    /// The entries about a signature that the log has, none of them verified.
    pub(crate) async fn find(&self, about: &About<'_>) -> Result<Vec<LogEntry>, RekorError> {
        let query = query(about).to_string();
        let request = Request::post(format!("{}/api/v1/log/entries/retrieve", self.url))
            .header(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))
            .header(header::ACCEPT, HeaderValue::from_static("application/json"))
            .header(header::CONTENT_LENGTH, query.len())
            .body(Bytes::from(query))
            .map_err(|_| RekorError::Url)?;
        let answer = self.https.send(request).await?;
        if answer.status() != StatusCode::OK {
            return Err(RekorError::Status(answer.status()));
        }
        let found: Vec<BTreeMap<String, Value>> =
            serde_json::from_slice(answer.body()).map_err(|_| RekorError::Answer)?;
        // As in cosign, one that is not what its name says is passed over.
        let entries = found.into_iter().flatten().take(ENTRIES_MAX);
        let entries: Vec<LogEntry> =
            entries.filter_map(|(uuid, entry)| LogEntry::from_answer(&uuid, entry).ok()).collect();
        if entries.is_empty() { Err(RekorError::NotFound) } else { Ok(entries) }
    }
}

/// Entries as they would be uploaded: the log looks for those with the same hash.
fn query(about: &About<'_>) -> Value {
    let key = STANDARD.encode(pem::encode("CERTIFICATE", about.certificate.der()));
    if about.signature.is_empty() {
        let envelope = String::from_utf8_lossy(about.payload);
        return json!({"entries": [
            {"apiVersion": "0.0.1", "kind": "dsse", "spec": {"proposedContent": {"envelope": envelope, "verifiers": [key]}}},
            {"apiVersion": "0.0.1", "kind": "intoto", "spec": {"content": {"envelope": envelope}, "publicKey": key}},
        ]});
    }
    let hash = hex::encode(HashAlgorithm::Sha256.digest(about.payload));
    json!({"entries": [{
        "apiVersion": "0.0.1",
        "kind": "hashedrekord",
        "spec": {
            "data": {"hash": {"algorithm": "sha256", "value": hash}},
            "signature": {"content": about.signature, "publicKey": {"content": key}},
        },
    }]})
}
