//! Manifests of images of signatures: their layers and what is written on these (OCI Image Specification 1.1).

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::reference::Digest;

/// cosign's bound (pkg/oci/remote/signatures.go).
const LAYERS_MAX: usize = 1000;

/// Why a manifest is none.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ManifestError {
    #[error("malformed manifest: {0}")]
    Malformed(&'static str),
    #[error("the manifest is one of several images")]
    Index,
    #[error("number of layers ({0}) exceeded the limit ({LAYERS_MAX})")]
    TooMany(usize),
    #[error("malformed digest of a layer")]
    Digest,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    schema_version: u32,
    #[serde(default)]
    layers: Vec<Raw>,
    #[serde(default)]
    manifests: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
struct Raw {
    digest: String,
    size: u64,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

/// A layer that can be read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Descriptor {
    pub(crate) digest: Digest,
    /// In bytes.
    pub(crate) size: u64,
    pub(crate) annotations: BTreeMap<String, String>,
}

/// The layers of a manifest.
pub(crate) fn layers(manifest: &[u8]) -> Result<Vec<Descriptor>, ManifestError> {
    let manifest: Manifest =
        serde_json::from_slice(manifest).map_err(|_| ManifestError::Malformed("not one of an image"))?;
    if manifest.schema_version != 2 {
        return Err(ManifestError::Malformed("not of version 2"));
    }
    if manifest.manifests.is_some() {
        return Err(ManifestError::Index);
    }
    if manifest.layers.len() > LAYERS_MAX {
        return Err(ManifestError::TooMany(manifest.layers.len()));
    }
    let layer = |raw: Raw| {
        let digest = Digest::parse(&raw.digest).ok_or(ManifestError::Digest)?;
        Ok(Descriptor { digest, size: raw.size, annotations: raw.annotations })
    };
    manifest.layers.into_iter().map(layer).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn manifests_are_read_within_bounds() {
        let digest = Digest::of(b"x");
        let layer =
            json!({"mediaType": "m", "digest": digest.to_string(), "size": 1, "annotations": {"a": "b"}});
        let of = |layers: Vec<serde_json::Value>| json!({"schemaVersion": 2, "layers": layers}).to_string();
        let found = layers(of(vec![layer.clone()]).as_bytes()).unwrap();
        assert_eq!(
            (found[0].digest.clone(), found[0].size, found[0].annotations["a"].as_str()),
            (digest, 1, "b")
        );
        assert_eq!(layers(of(vec![]).as_bytes()).unwrap(), []);
        assert_eq!(layers(of(vec![layer; 1001]).as_bytes()), Err(ManifestError::TooMany(1001)));
        let table = [
            ("", "malformed manifest: "),
            ("{}", "malformed manifest: "),
            ("{\"schemaVersion\": 1}", "malformed manifest: not of version 2"),
            ("{\"schemaVersion\": 2, \"manifests\": []}", "the manifest is one of several images"),
            (
                "{\"schemaVersion\": 2, \"layers\": [{\"digest\": \"sha256:1\", \"size\": 1}]}",
                "malformed digest",
            ),
            (
                "{\"schemaVersion\": 2, \"layers\": [{\"digest\": \"sha256:1\", \"size\": -1}]}",
                "malformed manifest: ",
            ),
        ];
        for (text, message) in table {
            let error = layers(text.as_bytes()).unwrap_err().to_string();
            assert!(error.starts_with(message), "{text}: {error}");
        }
    }
}
