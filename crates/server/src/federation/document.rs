//! Our bundle as others get it, encoded once a change.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use spire_core::pki::bundle_doc::{BundleDocError, Format, marshal};
use spire_core::spiffe::Bundle;
use spire_ports::datastore;
use tokio::sync::Mutex;

use crate::ca::BundleChanges;

/// How long the bundle is answered from memory before the datastore is asked whether another server changed it, as the
/// reference's cache does (pkg/server/cache/dscache).
const FRESH: Duration = Duration::from_secs(1);

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
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    read: Option<Instant>,
    encoded: Option<(Arc<Bundle>, Bytes)>,
}

impl Document {
    /// Of our own bundle, with this hint instead of the stored one.
    pub(super) fn new(changes: Arc<BundleChanges>, refresh_hint: Duration) -> Self {
        Self { changes, refresh_hint, state: Mutex::default() }
    }

    /// The document of now, at most [`FRESH`] behind what other servers wrote.
    pub(super) async fn body(&self) -> Result<Bytes, DocumentError> {
        let mut state = self.state.lock().await;
        let bundle = if state.read.is_some_and(|at| at.elapsed() < FRESH) {
            self.changes.current()
        } else {
            let bundle = self.changes.refresh().await?;
            state.read = Some(Instant::now());
            bundle
        };
        let bundle = bundle.ok_or(DocumentError::NotFound)?;
        if let Some((of, body)) = &state.encoded
            && Arc::ptr_eq(of, &bundle)
        {
            return Ok(body.clone());
        }
        let hinted = Bundle { refresh_hint: self.refresh_hint, ..Bundle::clone(&bundle) };
        let body = Bytes::from(marshal(&hinted, Format::SPIFFE)?);
        state.encoded = Some((bundle, body.clone()));
        Ok(body)
    }
}
