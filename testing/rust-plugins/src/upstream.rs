//! An upstream authority: it signs with `ca.der` and `ca.key` (PKCS#8) of its folder; its keys and bundle change as files
//! appear there.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use spire_core::pki::{
    Certificate, CertificateTemplate, Issuer, LocalKey, Profile, SerialNumber, VerifiedCsr,
};
use spire_core::time::Timestamp;
use spire_plugin_sdk::wire::server::upstreamauthority::v1 as wire;
use spire_plugin_sdk::wire::types::{JwtKey, X509Certificate};
use spire_plugin_sdk::{Request, Response, Status, async_trait};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::base::Base;

pub(crate) struct UpstreamAuthority(pub(crate) Arc<Base>);

fn failed(error: impl std::fmt::Display) -> Status {
    Status::internal(error.to_string())
}

impl UpstreamAuthority {
    fn read(&self, name: &str) -> Result<Vec<u8>, Status> {
        std::fs::read(self.0.path(name)?).map_err(failed)
    }

    fn sign(&self, request: &wire::MintX509caRequest) -> Result<(Vec<u8>, Vec<u8>), Status> {
        let root = self.read("ca.der")?;
        let certificate = Certificate::from_der(root.clone()).map_err(failed)?;
        let key = LocalKey::from_pkcs8(&self.read("ca.key")?).map_err(failed)?;
        let csr = VerifiedCsr::from_der(request.csr.clone()).map_err(failed)?;
        let id = format!("spiffe://{}", self.0.config()?.trust_domain);
        if csr.uris() != [id.clone()] {
            return Err(Status::invalid_argument(format!("a request for {:?}", csr.uris())));
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_err(failed)?;
        let now = Timestamp::from_unix(i64::try_from(now.as_secs()).map_err(failed)?);
        let ttl = Duration::from_secs(u64::try_from(request.preferred_ttl).map_err(failed)?);
        let serial = u128::from(now.unix().unsigned_abs()) << 32 | u128::from(std::process::id());
        let template = CertificateTemplate {
            profile: Profile::Ca,
            serial: SerialNumber::from_random(serial.to_be_bytes()),
            subject: csr.subject_name(),
            not_before: now - Duration::from_secs(60),
            not_after: now + ttl,
            public_key: csr.public_key(),
            dns_names: &[],
            uri: &id,
            policies: &[],
            extra_extensions: csr.extensions(),
        };
        let unsigned = Issuer::new(&certificate).map_err(failed)?.certificate(&template).map_err(failed)?;
        let signature = key.sign(unsigned.algorithm(), unsigned.bytes()).map_err(failed)?;
        Ok((unsigned.assemble(&signature).to_vec(), root))
    }
}

/// Waits for a file, as long as somebody listens.
async fn appears<T>(path: &Path, listens: &mpsc::Sender<T>) -> bool {
    while !path.exists() {
        if listens.is_closed() {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    true
}

fn jwt_key(key_id: &str, public_key: &[u8]) -> JwtKey {
    JwtKey {
        key_id: key_id.to_owned(),
        public_key: public_key.to_vec().into(),
        expires_at: 0,
        tainted: false,
    }
}

fn x509(der: &[u8]) -> X509Certificate {
    X509Certificate { asn1: der.to_vec().into(), tainted: false }
}

type Answers<T> = ReceiverStream<Result<T, Status>>;

/// The first answer now, the second once the file is there; then the stream stays open.
fn answer_twice<T: Send + 'static>(
    first: T,
    path: std::path::PathBuf,
    second: impl FnOnce() -> Result<T, Status> + Send + 'static,
) -> Response<Answers<T>> {
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        if sender.send(Ok(first)).await.is_ok() && appears(&path, &sender).await {
            let _ = sender.send(second()).await;
            sender.closed().await;
        }
    });
    Response::new(ReceiverStream::new(receiver))
}

#[async_trait]
impl wire::upstream_authority_server::UpstreamAuthority for UpstreamAuthority {
    type MintX509CAAndSubscribeStream = Answers<wire::MintX509caResponse>;
    type PublishJWTKeyAndSubscribeStream = Answers<wire::PublishJwtKeyResponse>;
    type SubscribeToLocalBundleStream = Answers<wire::SubscribeToLocalBundleResponse>;

    async fn mint_x509ca_and_subscribe(
        &self,
        request: Request<wire::MintX509caRequest>,
    ) -> Result<Response<Self::MintX509CAAndSubscribeStream>, Status> {
        let (signed, root) = self.sign(request.get_ref())?;
        let (sender, receiver) = mpsc::channel(1);
        let first = wire::MintX509caResponse {
            x509_ca_chain: vec![x509(&signed)],
            upstream_x509_roots: vec![x509(&root)],
        };
        sender.send(Ok(first)).await.map_err(failed)?;
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn publish_jwt_key_and_subscribe(
        &self,
        request: Request<wire::PublishJwtKeyRequest>,
    ) -> Result<Response<Self::PublishJWTKeyAndSubscribeStream>, Status> {
        let published = request.into_inner().jwt_key.ok_or_else(|| Status::invalid_argument("no key"))?;
        let key = self.read("key.spki")?;
        self.0.note("published", &published.key_id);
        let mut keys = vec![published, jwt_key("upstream", &key)];
        let first = wire::PublishJwtKeyResponse { upstream_jwt_keys: keys.clone() };
        let path = self.0.path("publish-later")?;
        Ok(answer_twice(first, path, move || {
            keys.push(jwt_key("published-later", &key));
            Ok(wire::PublishJwtKeyResponse { upstream_jwt_keys: keys })
        }))
    }

    async fn subscribe_to_local_bundle(
        &self,
        _: Request<wire::SubscribeToLocalBundleRequest>,
    ) -> Result<Response<Self::SubscribeToLocalBundleStream>, Status> {
        let (root, key) = (self.read("ca.der")?, self.read("key.spki")?);
        let first = wire::SubscribeToLocalBundleResponse {
            upstream_x509_roots: vec![x509(&root)],
            upstream_jwt_keys: Vec::new(),
        };
        let other = self.0.path("other.der")?;
        self.0.note("subscribed", "yes");
        Ok(answer_twice(first, self.0.path("bundle-later")?, move || {
            let other = std::fs::read(other).map_err(failed)?;
            Ok(wire::SubscribeToLocalBundleResponse {
                upstream_x509_roots: vec![x509(&root), x509(&other)],
                upstream_jwt_keys: vec![jwt_key("bundle-later", &key)],
            })
        }))
    }
}
