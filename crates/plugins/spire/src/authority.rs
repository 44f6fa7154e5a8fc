//! The upstream authority over the client's calls.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use spire_core::spiffe::{JwtAuthority, SpiffeId, TrustDomain, X509Authority};
use spire_ports::plugins::catalog::Configuration;
use spire_ports::plugins::{
    Error, ErrorKind, JwtAuthorityUpdates, LocalBundle, MintedCa, PluginType, Result, UpstreamAuthority,
};
use tokio::sync::{OnceCell, mpsc, watch};
use tokio::time::{MissedTickBehavior, interval};
use tonic::{Code, Status};

use crate::NAME;
use crate::client::{Client, UpstreamBundle, go_text, internal};
use crate::settings::{self, Settings};

/// How often the upstream's bundle is looked at (upstreamPollFreq).
const POLL: Duration = Duration::from_secs(5);

/// Bundles that wait for the server: it takes each at once, and a newer one comes with the next look.
const UPDATES: usize = 1;

/// X.509 and JWT authorities of the upstream.
type Told = (Vec<X509Authority>, Vec<JwtAuthority>);

/// The plugin.
pub(crate) struct Spire {
    settings: Settings,
    trust_domain: TrustDomain,
    poll: Duration,
    /// Made when first needed, so that a configuration can be checked without an agent.
    client: OnceCell<Arc<Client>>,
    /// Goes with the plugin: when a new configuration makes another one, nobody is to hear of this one's upstream.
    alive: watch::Sender<()>,
}

/// The plugin of a configuration; nothing is dialled yet.
pub(crate) async fn build(configuration: Configuration) -> Result<Arc<dyn UpstreamAuthority>> {
    let settings = settings::read(&configuration)?;
    if settings.require_pq_kem {
        tracing::debug!(
            external = false,
            plugin_name = NAME,
            plugin_type = "UpstreamAuthority",
            "Experimental option 'require_pq_kem' is enabled; all TLS connections will require use of a \
             post-quantum safe KEM"
        );
    }
    Ok(Arc::new(Spire::new(settings, configuration.trust_domain, POLL)))
}

impl Spire {
    pub(crate) fn new(settings: Settings, trust_domain: TrustDomain, poll: Duration) -> Self {
        Self { settings, trust_domain, poll, client: OnceCell::new(), alive: watch::Sender::new(()) }
    }

    /// The client, once it has an identity.
    async fn client(&self) -> Result<Arc<Client>> {
        let make = || async { Client::new(&self.settings, &self.trust_domain).map(Arc::new) };
        let client = self.client.get_or_try_init(make).await.map_err(failed)?;
        client.ready().await.map_err(failed)?;
        Ok(Arc::clone(client))
    }
}

#[async_trait]
impl UpstreamAuthority for Spire {
    fn name(&self) -> &str {
        NAME
    }

    async fn mint_x509_ca(&self, csr: &[u8], _: &SpiffeId, ttl: Duration) -> Result<MintedCa> {
        let client = self.client().await?;
        let chain = client
            .new_downstream_ca(csr, ttl)
            .await
            .map_err(|status| failed(internal("unable to request a new Downstream X509CA", &status)))?;
        // The answer's own authorities do not say which of them are tainted.
        let bundle = bundle(&client).await?;
        // The sender is dropped: changes come with the subscription to the bundle.
        let (_, updates) = mpsc::channel(1);
        let chain = chain.into_iter().map(|certificate| certificate.der().clone()).collect();
        Ok(MintedCa { chain, roots: bundle.x509_authorities, updates })
    }

    async fn publish_jwt_key(&self, key: &JwtAuthority) -> Result<(Vec<JwtAuthority>, JwtAuthorityUpdates)> {
        let keys = self.client().await?.publish_jwt(key).await.map_err(failed)?;
        let (_, updates) = mpsc::channel(1);
        Ok((keys, updates))
    }

    async fn publish_wit_key(&self, key: &JwtAuthority) -> Result<Vec<JwtAuthority>> {
        self.client().await?.publish_wit(key).await.map_err(failed)
    }

    async fn wit_keys(&self) -> Result<Vec<JwtAuthority>> {
        Ok(bundle(&*self.client().await?).await?.wit_authorities)
    }

    async fn subscribe_to_local_bundle(&self) -> Result<LocalBundle> {
        let client = self.client().await?;
        let first = bundle(&client).await?;
        let (sender, updates) = mpsc::channel(UPDATES);
        let mut alive = self.alive.subscribe();
        let following = follow(client, first.clone(), self.poll, sender);
        tokio::spawn(async move {
            tokio::select! {
                () = following => {}
                // Nothing is ever sent: this is the end of the plugin.
                _ = alive.changed() => {}
            }
        });
        let UpstreamBundle { x509_authorities, jwt_authorities, .. } = first;
        Ok(LocalBundle { x509_authorities, jwt_authorities, updates })
    }
}

async fn bundle(client: &Client) -> Result<UpstreamBundle> {
    let bundle = client.bundle().await;
    bundle.map_err(|status| failed(internal("failed to fetch bundle from upstream server", &status)))
}

/// Looks at the upstream's bundle until nobody listens. An upstream that is away is looked for at the same pace: one
/// call in five seconds burdens nobody, and what is late is late by that at most.
async fn follow(
    client: Arc<Client>,
    mut last: UpstreamBundle,
    poll: Duration,
    updates: mpsc::Sender<Result<Told>>,
) {
    let mut ticks = interval(poll);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.reset();
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = updates.closed() => return,
        }
        match client.bundle().await {
            Ok(bundle) if bundle == last => {}
            Ok(bundle) => {
                last = bundle.clone();
                if updates.send(Ok((bundle.x509_authorities, bundle.jwt_authorities))).await.is_err() {
                    return;
                }
            }
            Err(status) => tracing::warn!(
                external = false,
                plugin_name = NAME,
                plugin_type = "UpstreamAuthority",
                error = go_text(&status),
                "Failed to fetch bundle while polling"
            ),
        }
    }
}

fn failed(status: Status) -> Error {
    let kind = match status.code() {
        Code::Unimplemented => ErrorKind::Unimplemented,
        _ => ErrorKind::Internal,
    };
    Error::new(kind, (PluginType::UpstreamAuthority, NAME), status.message())
}
