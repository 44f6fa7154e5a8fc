//! A file with a bundle in SPIFFE's format.

use std::io::Read;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use spire_compat::config::io_error;
use spire_core::pki::PublicKey;
use spire_core::pki::bundle_doc::{self, MAX_DOCUMENT_BYTES, Reading};
use spire_core::spiffe::TrustDomain;

use super::Source;
use crate::document::JwtKey;

/// Reads a file again and again (support/oidc-discovery-provider/file.go).
#[derive(Debug)]
pub struct FileSource {
    path: PathBuf,
}

impl FileSource {
    /// Reads this file.
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }
}

#[async_trait]
impl Source for FileSource {
    async fn keys(&self) -> Option<Vec<JwtKey>> {
        let path = self.path.clone();
        let read = tokio::task::spawn_blocking(move || load(&path)).await;
        match read.unwrap_or_else(|error| Err(error.to_string())) {
            Ok(keys) => Some(keys),
            Err(error) => {
                let error = format!("spiffebundle: {error}");
                tracing::warn!(error, "Failed to load SPIFFE trust bundle");
                None
            }
        }
    }
}

fn load(path: &Path) -> Result<Vec<JwtKey>, String> {
    let failed =
        |error| format!("unable to read SPIFFE bundle: {}", io_error(&path.display().to_string(), &error));
    let mut document = Vec::new();
    // What is longer is refused by the parser.
    let bound = u64::try_from(MAX_DOCUMENT_BYTES).unwrap_or(u64::MAX).saturating_add(1);
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(bound).read_to_end(&mut document).map_err(failed)?;
    // The document does not say whose it is, and it is of no account here.
    let trust_domain = TrustDomain::parse("file").map_err(|error| error.to_string())?;
    let bundle =
        bundle_doc::parse(&trust_domain, &document, Reading::GoSpiffe).map_err(|error| error.to_string())?;
    let key = |kid, spki| PublicKey::from_spki(spki).map(|key| JwtKey { kid, key });
    let keys = bundle.jwt_authorities.into_iter().map(|authority| key(authority.kid, authority.public_key));
    keys.collect::<Result<_, _>>().map_err(|error| error.to_string())
}
