//! The parsers of strangers' bytes, for fuzz targets.

use std::collections::BTreeMap;

use spire_core::time::Timestamp;

use crate::check::{Evidence, Kind, Layer, check};
use crate::entry::LogEntry;
use crate::reference::{Digest, ImageReference};
use crate::settings::Settings;
use crate::trust::{Trust, TrustError};

/// Whom to believe, and the image that is asked for.
#[derive(Debug)]
pub struct Judge {
    settings: Settings,
    trust: Trust,
    image: Digest,
}

impl Judge {
    /// Of an image, `sha256:<hex>`, with the files that `environment` names.
    ///
    /// # Errors
    /// A file cannot be used, or the digest is none.
    pub fn new(
        image: &str,
        environment: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<Self>, TrustError> {
        let settings = Settings::default();
        let trust = Trust::load(&settings, environment)?;
        Ok(Digest::parse(image).map(|image| Self { settings, trust, image }))
    }

    /// The selector values of a layer; nothing of one that does not count.
    pub fn values(&self, annotations: BTreeMap<String, String>, payload: Vec<u8>) -> Option<Vec<String>> {
        let layer = Layer { digest: Digest::of(&payload), annotations, payload: payload.into() };
        let rules = (&self.settings, &self.trust);
        let judged = [Kind::Signature, Kind::Attestation].map(|kind| {
            let evidence = Evidence::Bundle(layer.entry().ok()??);
            check(&layer, kind, &self.image, evidence, rules, Timestamp::EPOCH).ok()
        });
        judged.into_iter().flatten().next()?.values().ok()
    }
}

/// Reads bytes as each of the documents that registries and logs send, and as a name of an image.
pub fn read(bytes: &[u8]) {
    let _ = crate::manifest::layers(bytes);
    let text = String::from_utf8_lossy(bytes);
    let _ = LogEntry::from_bundle(&text);
    let _ = ImageReference::parse(&text);
    if let Ok(entry) = serde_json::from_slice(bytes) {
        let _ = LogEntry::from_answer(&"0".repeat(64), entry);
    }
}
