//! KeyManager, for server and agent: the two services differ in their package only.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use spire_core::pki::{HashAlgorithm, KeyType, PublicKey, SignatureAlgorithm};
use spire_ports::plugins::{Error, ErrorKind, Key, KeyManager, Result};

use crate::connection::client;
use crate::hclog::Level;
use crate::supervise::Supervised;

/// Keys that a plugin may list; a server has six and an agent two.
const KEYS_MAX: usize = 10_000;

/// A key as either service tells it.
struct Told {
    id: String,
    spki: Bytes,
    fingerprint: String,
}

/// What is signed, and how.
struct Digest {
    bytes: Bytes,
    /// Go's number of the hash.
    hash: i32,
    pss: bool,
}

/// The service of one side.
#[async_trait]
trait Service: Send + Sync + 'static {
    async fn generate(&self, id: String, key_type: KeyType) -> Result<Option<Told>>;
    async fn public_key(&self, id: String) -> Result<Option<Told>>;
    async fn public_keys(&self) -> Result<Vec<Told>>;
    async fn sign(&self, id: String, digest: Digest) -> Result<(Bytes, String)>;
}

macro_rules! service {
    ($name:ident, $module:ident, $side:ident) => {
        mod $module {
            use spire_wire::plugin::$side::keymanager::v1::key_manager_client::KeyManagerClient;
            use spire_wire::plugin::$side::keymanager::v1::sign_data_request::{PssOptions, SignerOpts};
            use spire_wire::plugin::$side::keymanager::v1::{
                GenerateKeyRequest, GetPublicKeyRequest, GetPublicKeysRequest, KeyType as WireType,
                PublicKey, SignDataRequest,
            };

            use super::*;

            pub(super) struct $name(pub(super) Arc<Supervised>);

            fn told(key: PublicKey) -> Told {
                Told { id: key.id, spki: key.pkix_data, fingerprint: key.fingerprint }
            }

            #[async_trait]
            impl Service for $name {
                async fn generate(&self, key_id: String, key_type: KeyType) -> Result<Option<Told>> {
                    let key_type = match key_type {
                        KeyType::EcP256 => WireType::EcP256,
                        KeyType::EcP384 => WireType::EcP384,
                        KeyType::Rsa2048 => WireType::Rsa2048,
                        KeyType::Rsa4096 => WireType::Rsa4096,
                    };
                    let mut client = client!(KeyManagerClient, self.0.channel()?);
                    let request = GenerateKeyRequest { key_id, key_type: key_type.into() };
                    let limit = self.0.limits.key_manager;
                    Ok(self.0.call(limit, client.generate_key(request)).await?.public_key.map(told))
                }

                async fn public_key(&self, key_id: String) -> Result<Option<Told>> {
                    let mut client = client!(KeyManagerClient, self.0.channel()?);
                    let limit = self.0.limits.key_manager;
                    let call = client.get_public_key(GetPublicKeyRequest { key_id });
                    Ok(self.0.call(limit, call).await?.public_key.map(told))
                }

                async fn public_keys(&self) -> Result<Vec<Told>> {
                    let mut client = client!(KeyManagerClient, self.0.channel()?);
                    let limit = self.0.limits.key_manager;
                    let keys = self.0.call(limit, client.get_public_keys(GetPublicKeysRequest {})).await?;
                    Ok(keys.public_keys.into_iter().map(told).collect())
                }

                async fn sign(&self, key_id: String, digest: Digest) -> Result<(Bytes, String)> {
                    let signer_opts = Some(match digest.pss {
                        false => SignerOpts::HashAlgorithm(digest.hash),
                        // Go's crypto/tls and crypto/x509 ask for a salt as long as the hash.
                        true => SignerOpts::PssOptions(PssOptions {
                            salt_length: -1,
                            hash_algorithm: digest.hash,
                        }),
                    });
                    let mut client = client!(KeyManagerClient, self.0.channel()?);
                    let limit = self.0.limits.key_manager;
                    let request = SignDataRequest { key_id, data: digest.bytes, signer_opts };
                    let signed = self.0.call(limit, client.sign_data(request)).await?;
                    Ok((signed.signature, signed.key_fingerprint))
                }
            }
        }
    };
}

service!(ServerService, server_service, server);
service!(AgentService, agent_service, agent);

/// The plugin as a server's key manager.
pub(super) fn of_server(plugin: Arc<Supervised>) -> Arc<dyn KeyManager> {
    External::start(plugin.clone(), Arc::new(server_service::ServerService(plugin)))
}

/// The plugin as an agent's key manager.
pub(super) fn of_agent(plugin: Arc<Supervised>) -> Arc<dyn KeyManager> {
    External::start(plugin.clone(), Arc::new(agent_service::AgentService(plugin)))
}

struct External {
    plugin: Arc<Supervised>,
    service: Arc<dyn Service>,
    /// Fingerprints of the keys that were last seen, by id.
    seen: std::sync::Mutex<BTreeMap<String, String>>,
}

impl External {
    fn start(plugin: Arc<Supervised>, service: Arc<dyn Service>) -> Arc<Self> {
        let this = Arc::new(Self { plugin, service, seen: std::sync::Mutex::default() });
        let mut restarts = this.plugin.restarts();
        let external = Arc::downgrade(&this);
        tokio::spawn(async move {
            while restarts.changed().await.is_ok() {
                let Some(external) = external.upgrade() else { return };
                external.compare().await;
            }
        });
        this
    }

    /// Reads the keys of a child that was just started, and says which are not what they were. Whoever uses such a
    /// key gets an error: its fingerprint is another, or it is gone.
    async fn compare(&self) {
        let before = self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let now: BTreeMap<String, String> = match self.service.public_keys().await {
            Ok(keys) => keys.into_iter().take(KEYS_MAX).map(|key| (key.id, key.fingerprint)).collect(),
            Err(error) => {
                self.plugin.log.say(
                    Level::Error,
                    "Failed to read keys after a restart",
                    &[("error", &error)],
                );
                return;
            }
        };
        let lost: Vec<&str> =
            before.iter().filter(|(id, f)| now.get(*id) != Some(f)).map(|(id, _)| id.as_str()).collect();
        if !lost.is_empty() {
            let ids = lost.join(" ");
            self.plugin.log.say(Level::Error, "Keys are not there after a restart", &[("key_ids", &ids)]);
        }
        let count = now.len();
        self.plugin.log.say(Level::Info, "Keys were read after a restart", &[("count", &count)]);
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = now;
    }

    fn internal(&self, message: String) -> Error {
        self.plugin.error(ErrorKind::Internal, message)
    }

    fn key(&self, id: &str, told: Option<Told>) -> Result<Arc<dyn Key>> {
        let Some(Told { id: found, spki, fingerprint }) = told else {
            return Err(self.internal(format!("plugin response empty for key {id:?}")));
        };
        if found != id {
            let text = format!("plugin response has unexpected key id {found:?} for key {id:?}");
            return Err(self.internal(text));
        }
        if spki.is_empty() {
            return Err(self.internal(format!("plugin response missing public key PKIX data for key {id:?}")));
        }
        let public_key = PublicKey::from_spki(spki).map_err(|error| {
            self.internal(format!("unable to parse public key PKIX data for key {id:?}: {error}"))
        })?;
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() < KEYS_MAX || seen.contains_key(id) {
            seen.insert(id.to_owned(), fingerprint.clone());
        }
        drop(seen);
        Ok(Arc::new(ExternalKey {
            plugin: Arc::clone(&self.plugin),
            service: Arc::clone(&self.service),
            id: id.to_owned(),
            fingerprint,
            public_key,
        }))
    }
}

#[async_trait]
impl KeyManager for External {
    fn name(&self) -> &str {
        self.plugin.plugin().1
    }

    async fn generate_key(&self, id: &str, key_type: KeyType) -> Result<Arc<dyn Key>> {
        let told = self.service.generate(id.to_owned(), key_type).await?;
        self.key(id, told)
    }

    async fn key(&self, id: &str) -> Result<Option<Arc<dyn Key>>> {
        match self.service.public_key(id.to_owned()).await {
            Ok(None) => Ok(None),
            Err(error) if error.kind == ErrorKind::NotFound => Ok(None),
            told => Self::key(self, id, told?).map(Some),
        }
    }

    async fn keys(&self) -> Result<Vec<Arc<dyn Key>>> {
        let all = self.service.public_keys().await?;
        if all.len() > KEYS_MAX {
            return Err(self.internal(format!("plugin response has {} keys", all.len())));
        }
        all.into_iter().map(|told| self.key(&told.id.clone(), Some(told))).collect()
    }
}

struct ExternalKey {
    plugin: Arc<Supervised>,
    service: Arc<dyn Service>,
    id: String,
    fingerprint: String,
    public_key: PublicKey,
}

#[async_trait]
impl Key for ExternalKey {
    fn id(&self) -> &str {
        &self.id
    }

    fn public_key(&self) -> &PublicKey {
        &self.public_key
    }

    async fn sign(&self, algorithm: SignatureAlgorithm, message: &[u8]) -> Result<Vec<u8>> {
        let unfit = || {
            let text = format!("key {:?} does not sign with {algorithm:?}", self.id);
            self.plugin.error(ErrorKind::InvalidArgument, text)
        };
        let hash = algorithm.hash().ok_or_else(unfit)?;
        // A plugin signs any digest; that the algorithm is the key's is for us to see.
        let ecdsa = matches!(self.public_key.key_type(), Some(KeyType::EcP256 | KeyType::EcP384));
        let wants_ecdsa = matches!(
            algorithm,
            SignatureAlgorithm::EcdsaSha256
                | SignatureAlgorithm::EcdsaSha384
                | SignatureAlgorithm::EcdsaSha512
        );
        if ecdsa != wants_ecdsa {
            return Err(unfit());
        }
        let digest = Digest {
            bytes: Bytes::copy_from_slice(hash.digest(message).as_ref()),
            hash: go_number(hash),
            pss: algorithm.is_pss(),
        };
        let (signature, fingerprint) = self.service.sign(self.id.clone(), digest).await?;
        if signature.is_empty() {
            let text = "plugin returned empty signature data";
            return Err(self.plugin.error(ErrorKind::Internal, text));
        }
        if fingerprint != self.fingerprint {
            let Self { id, fingerprint: own, .. } = self;
            let text = format!("fingerprint {own:?} on key {id:?} does not match {fingerprint:?}");
            return Err(self.plugin.error(ErrorKind::Internal, text));
        }
        Ok(signature.to_vec())
    }
}

/// Go's crypto.Hash, which the wire has.
fn go_number(hash: HashAlgorithm) -> i32 {
    match hash {
        HashAlgorithm::Sha256 => 5,
        HashAlgorithm::Sha384 => 6,
        HashAlgorithm::Sha512 => 7,
    }
}
