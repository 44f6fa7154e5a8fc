//! UpstreamAuthority: the first answer of a stream is the result, what follows are updates.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use spire_core::pki::{Certificate, PublicKey};
use spire_core::spiffe::{JwtAuthority, SpiffeId, X509Authority};
use spire_core::time::Timestamp;
use spire_ports::plugins::{
    Error, ErrorKind, JwtAuthorityUpdates, LocalBundle, MintedCa, Result, UpstreamAuthority,
};
use spire_wire::plugin::server::upstreamauthority::v1::upstream_authority_client::UpstreamAuthorityClient;
use spire_wire::plugin::server::upstreamauthority::v1::{
    MintX509caRequest, MintX509caResponse, PublishJwtKeyRequest, PublishJwtKeyResponse,
    SubscribeToLocalBundleRequest, SubscribeToLocalBundleResponse,
};
use spire_wire::plugin::types;
use tokio::sync::mpsc;
use tonic::{Response, Status, Streaming};

use crate::connection::client;
use crate::hclog::Level;
use crate::status;
use crate::supervise::Supervised;

/// Updates that wait to be taken. The newest is what counts, but none may be lost.
const UPDATES_WAITING: usize = 4;

#[derive(Clone)]
pub(super) struct External(pub(super) Arc<Supervised>);

impl External {
    fn internal(&self, message: impl Into<String>) -> Error {
        self.0.error(ErrorKind::Internal, message)
    }

    /// The first answer of a stream, and the stream.
    async fn first<T>(
        &self,
        call: impl Future<Output = std::result::Result<Response<Streaming<T>>, Status>>,
    ) -> Result<(T, Streaming<T>)> {
        let limit = self.0.limits.upstream;
        let mut stream = self.0.step(limit, call).await?.into_inner();
        let first = self.0.step(limit, stream.message()).await?;
        Ok((first.ok_or_else(|| self.internal("plugin closed stream unexpectedly"))?, stream))
    }

    /// Hands on what follows, until the plugin or the receiver has enough. An update that makes no sense is skipped.
    fn follow<T: Send + 'static, U: Send + 'static>(
        &self,
        mut stream: Streaming<T>,
        what: &'static str,
        read: impl Fn(&Self, T) -> Result<U> + Send + 'static,
    ) -> mpsc::Receiver<Result<U>> {
        let (updates, receiver) = mpsc::channel(UPDATES_WAITING);
        let this = self.clone();
        tokio::spawn(async move {
            loop {
                let message = tokio::select! {
                    () = updates.closed() => return,
                    message = stream.message() => message,
                };
                let update = match message {
                    Ok(None) => return,
                    Err(status) => {
                        let _ = updates.send(Err(status::error(this.0.plugin(), &status))).await;
                        return;
                    }
                    Ok(Some(message)) => read(&this, message),
                };
                match update {
                    Ok(update) => {
                        if updates.send(Ok(update)).await.is_err() {
                            return;
                        }
                    }
                    Err(error) => {
                        let text = format!(
                            "Failed to parse {what} update from the upstream authority plugin. Please report this bug."
                        );
                        this.0.log.say(Level::Warn, &text, &[("error", &error)]);
                    }
                }
            }
        });
        receiver
    }

    fn certificate(&self, told: &types::X509Certificate, what: &str) -> Result<Bytes> {
        Certificate::from_der(told.asn1.clone())
            .map_err(|error| self.internal(format!("plugin response has malformed {what}: {error}")))?;
        Ok(told.asn1.clone())
    }

    fn roots(&self, told: &[types::X509Certificate]) -> Result<Vec<X509Authority>> {
        if told.is_empty() {
            return Err(self.internal("plugin response missing upstream X.509 roots"));
        }
        let root = |root: &types::X509Certificate| {
            let der = self.certificate(root, "upstream X.509 roots")?;
            Ok(X509Authority { der, tainted: root.tainted })
        };
        told.iter().map(root).collect()
    }

    fn jwt_keys(&self, told: Vec<types::JwtKey>) -> Result<Vec<JwtAuthority>> {
        let invalid = |reason: &str| self.internal(format!("invalid plugin response: {reason}"));
        let key = |key: types::JwtKey| {
            if key.key_id.is_empty() {
                return Err(invalid("missing key ID for JWT key"));
            }
            if PublicKey::from_spki(key.public_key.clone()).is_err() {
                return Err(invalid(&format!("failed to unmarshal public key for JWT key {:?}", key.key_id)));
            }
            Ok(JwtAuthority {
                kid: key.key_id,
                public_key: key.public_key,
                not_after: Timestamp::from_unix(key.expires_at),
                tainted: key.tainted,
            })
        };
        told.into_iter().map(key).collect()
    }
}

#[async_trait]
impl UpstreamAuthority for External {
    fn name(&self) -> &str {
        self.0.plugin().1
    }

    async fn mint_x509_ca(&self, csr: &[u8], _: &SpiffeId, ttl: Duration) -> Result<MintedCa> {
        let request = MintX509caRequest {
            csr: Bytes::copy_from_slice(csr),
            preferred_ttl: i32::try_from(ttl.as_secs()).unwrap_or(i32::MAX),
        };
        let mut client = client!(UpstreamAuthorityClient, self.0.channel()?);
        let (first, stream) = self.first(client.mint_x509ca_and_subscribe(request)).await?;
        let chain: Vec<Bytes> = first
            .x509_ca_chain
            .iter()
            .map(|certificate| self.certificate(certificate, "X.509 CA chain"))
            .collect::<Result<_>>()?;
        if chain.is_empty() {
            return Err(self.internal("plugin response missing X.509 CA chain"));
        }
        let roots = self.roots(&first.upstream_x509_roots)?;
        let updates = self.follow(stream, "an X.509 root", |this, update: MintX509caResponse| {
            if update.x509_ca_chain.is_empty() {
                return this.roots(&update.upstream_x509_roots);
            }
            Err(this.internal("plugin response has an X.509 CA chain after the first response"))
        });
        Ok(MintedCa { chain, roots, updates })
    }

    async fn publish_jwt_key(&self, key: &JwtAuthority) -> Result<(Vec<JwtAuthority>, JwtAuthorityUpdates)> {
        let request = PublishJwtKeyRequest {
            jwt_key: Some(types::JwtKey {
                public_key: key.public_key.clone(),
                key_id: key.kid.clone(),
                expires_at: key.not_after.unix(),
                tainted: key.tainted,
            }),
        };
        let mut client = client!(UpstreamAuthorityClient, self.0.channel()?);
        let (first, stream) = self.first(client.publish_jwt_key_and_subscribe(request)).await?;
        let keys = self.jwt_keys(first.upstream_jwt_keys)?;
        let updates = self.follow(stream, "a JWT key", |this, update: PublishJwtKeyResponse| {
            this.jwt_keys(update.upstream_jwt_keys)
        });
        Ok((keys, updates))
    }

    async fn subscribe_to_local_bundle(&self) -> Result<LocalBundle> {
        let mut client = client!(UpstreamAuthorityClient, self.0.channel()?);
        let request = SubscribeToLocalBundleRequest {};
        let (first, stream) = self.first(client.subscribe_to_local_bundle(request)).await?;
        let read = |this: &Self, told: SubscribeToLocalBundleResponse| {
            Ok((this.roots(&told.upstream_x509_roots)?, this.jwt_keys(told.upstream_jwt_keys)?))
        };
        let (x509_authorities, jwt_authorities) = read(self, first)?;
        let updates = self.follow(stream, "a local bundle", read);
        Ok(LocalBundle { x509_authorities, jwt_authorities, updates })
    }
}
