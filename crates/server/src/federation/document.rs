//! Our bundle as others get it, encoded once a change.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use spire_core::pki::bundle_doc::{BundleDocError, Format, marshal};
use spire_core::spiffe::Bundle;
use spire_ports::datastore;

use crate::ca::BundleChanges;

/// Why there is no document.
#[derive(Debug, thiserror::Error)]
pub(super) enum DocumentError {
    /// The datastore failed, and nothing is known.
    #[error(transparent)]
    Datastore(#[from] datastore::Error),
    /// There is no bundle yet.
    #[error("trust domain bundle not found")]
    NotFound,
    /// The bundle cannot be encoded.
    #[error(transparent)]
    Encoding(#[from] BundleDocError),
}

/// The document of the bundle endpoint.
pub(super) struct Document {
    changes: Arc<BundleChanges>,
    refresh_hint: Duration,
    /// Of which bundle it is, and the document.
    encoded: Mutex<Option<(Arc<Bundle>, Bytes)>>,
}

impl Document {
    /// Of our own bundle, with this hint instead of the stored one.
    pub(super) fn new(changes: Arc<BundleChanges>, refresh_hint: Duration) -> Self {
        Self { changes, refresh_hint, encoded: Mutex::default() }
    }

    /// The document of now, as fresh as [`BundleChanges::fresh`] says.
    pub(super) async fn body(&self) -> Result<Bytes, DocumentError> {
        let bundle = self.changes.fresh().await?.ok_or(DocumentError::NotFound)?;
        let mut encoded = self.encoded.lock();
        if let Some((of, body)) = &*encoded
            && Arc::ptr_eq(of, &bundle)
        {
            return Ok(body.clone());
        }
        let hinted = Bundle { refresh_hint: self.refresh_hint, ..Bundle::clone(&bundle) };
        let body = Bytes::from(marshal(&hinted, Format::SPIFFE)?);
        *encoded = Some((bundle, body.clone()));
        Ok(body)
    }
}
