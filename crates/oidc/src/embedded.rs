//! The same documents from a program that has the keys itself: `spire-server` with `experimental { oidc { … } }`.

use std::sync::Arc;

use spire_core::pki::PublicKey;
use spire_core::spiffe::Bundle;
use spire_net::tls::TlsPolicy;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::answer::Service;
use crate::config::Serving;
use crate::document::{JwtKey, KeySet};
use crate::listen::{Endpoint, ListenError};
use crate::source::{Keys, now};

/// Listens; the future that it gives answers until `stop`, with the keys of the newest bundle. A change is served as soon
/// as it is known.
///
/// # Errors
/// [`ListenError`].
pub async fn serve(
    serving: Serving,
    bundle: watch::Receiver<Option<Arc<Bundle>>>,
    policy: TlsPolicy,
    stop: CancellationToken,
) -> Result<impl Future<Output = ()> + Send + use<>, ListenError> {
    let endpoint = Endpoint::bind(&serving, policy).await?;
    let keys = Arc::<Keys>::default();
    let set_key_use = serving.documents.set_key_use;
    let service = Arc::new(Service::new(serving.documents, Arc::clone(&keys), serving.log_requests));
    Ok(async move {
        let following = follow(bundle, set_key_use, &keys);
        tokio::select! {
            () = endpoint.serve(service, stop) => {}
            () = following => {}
        }
    })
}

/// Publishes each change. Most changes of a bundle are none of these keys.
async fn follow(mut bundle: watch::Receiver<Option<Arc<Bundle>>>, set_key_use: bool, keys: &Keys) {
    let mut known: Option<Vec<JwtKey>> = None;
    loop {
        let newest = bundle.borrow_and_update().as_deref().map(jwt_keys);
        if let Some(newest) = newest
            && known.as_ref() != Some(&newest)
        {
            keys.publish(KeySet::encode(&newest, set_key_use, now()));
            known = Some(newest);
        }
        if bundle.changed().await.is_err() {
            // The server ends; until then the last keys are right.
            return std::future::pending().await;
        }
    }
}

fn jwt_keys(bundle: &Bundle) -> Vec<JwtKey> {
    let key = |authority: &spire_core::spiffe::JwtAuthority| match PublicKey::from_spki(
        authority.public_key.clone(),
    ) {
        Ok(key) => Some(JwtKey { kid: authority.kid.clone(), key }),
        Err(error) => {
            tracing::warn!(error = %error, kid = authority.kid, "Malformed public key in bundle");
            None
        }
    };
    bundle.jwt_authorities.iter().filter_map(key).collect()
}
