//! A whole provider: from a resolved configuration to a listener, and back to nothing.

use std::sync::Arc;

use spire_net::tls::TlsPolicy;
use tokio_util::sync::CancellationToken;

use crate::answer::Service;
use crate::config::OidcConfig;
use crate::health::Health;
use crate::listen::{Endpoint, ListenError};
use crate::source::{self, Keys};

/// Runs a provider until `stop`. `ready` is cancelled once it listens.
///
/// # Errors
/// [`ListenError`] when it cannot listen.
pub async fn run(
    config: OidcConfig,
    ready: CancellationToken,
    stop: CancellationToken,
) -> Result<(), ListenError> {
    let OidcConfig { serving, source, health, .. } = config;
    let keys = Arc::<Keys>::default();
    let endpoint = Endpoint::bind(&serving, TlsPolicy::default()).await?;
    let (interval, set_key_use) = (source.poll_interval(), serving.documents.set_key_use);
    let polling = tokio::spawn({
        let (source, keys, stop) = (source::source(&source), Arc::clone(&keys), stop.clone());
        async move { source::poll(&*source, interval, set_key_use, &keys, stop).await }
    });
    let probes = health.map(|config| {
        let health = Health::new(config, Arc::clone(&keys), interval);
        tokio::spawn(health.serve(stop.clone()))
    });
    let service = Arc::new(Service::new(serving.documents, keys, serving.log_requests));
    ready.cancel();
    endpoint.serve(service, stop.clone()).await;
    // A panic of a task was logged by the runtime.
    let _ = polling.await;
    if let Some(probes) = probes {
        let _ = probes.await;
    }
    Ok(())
}
