//! A serving certificate from an ACME authority (RFC 8555), proven by `tls-alpn-01` (RFC 8737) on the port that serves.
//!
//! The certificate's key is in a [`KeyManager`], as the reference's server keeps it; the chain is cached in a folder, in
//! the reference's format, so that either takes over from the other. Without a KeyManager the key stands before the chain,
//! as in the reference's OIDC discovery provider. The account's key is a file of that folder: the ACME library takes keys
//! and not signers.

mod account;
mod cache;
mod challenge;
mod http;
mod keys;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use instant_acme::{
    Account, AuthorizationStatus, ChallengeType, Identifier, NewOrder, Order, OrderStatus, RetryPolicy,
};
use spire_core::pki::{Certificate, CsrTemplate, DistinguishedName, KeyType, LocalKey, pem};
use spire_core::time::Timestamp;
use spire_ports::plugins::{self, Key, KeyManager};

use crate::https::{FetchError, HttpsClient};
use crate::tls::{Identity, IdentityError, ServerTls, TlsClient, TlsPolicy, TlsSetupError, key_signer};
use cache::Cache;
use challenge::{Resolver, Resolvers};
use keys::OwnKeys;

/// Where certificates come from if nothing else is configured.
pub const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";

/// A certificate is renewed this long before it ends (autocert's default), or in the last third of a short one.
const RENEW_BEFORE: Duration = Duration::from_secs(30 * 24 * 3600);
/// After a failure with nothing to show (autocert: createCertRetryAfter).
const RETRY_WITHOUT: Duration = Duration::from_secs(60);
/// After many failures. Each pause is twice the last one.
const RETRY_MAX: Duration = Duration::from_secs(45 * 60);
/// For one order, with all that the authority asks of it (autocert).
const ORDER_TIMEOUT: Duration = Duration::from_secs(5 * 60);
/// Orders that are begun at once where the authority refuses the nonce of a request. The library repeats a request three
/// times, and authorities that refuse some nonces for practice use that up now and then (RFC 8555, section 6.5).
const NONCE_ATTEMPTS: usize = 5;
/// How the state of an order is asked for: at first after a quarter of a second.
const POLLING: RetryPolicy = RetryPolicy::new().timeout(Duration::from_secs(120));
/// Certificates of a chain.
const CHAIN_MAX: usize = 10;

/// What is asked for, and of whom.
#[derive(Debug, Clone)]
pub struct AcmeConfig {
    /// The authority's directory; empty is [`LETS_ENCRYPT`].
    pub directory_url: String,
    /// The name in the certificate.
    pub domain_name: String,
    /// The account's address; may be empty.
    pub email: String,
    /// Whether the authority's terms are accepted.
    pub tos_accepted: bool,
    /// Folder of the account and the chain; without one they last as long as the process.
    pub cache_dir: Option<PathBuf>,
    /// What keys in the KeyManager start with.
    pub key_prefix: &'static str,
    /// What the log calls this; empty for a program that is nothing else.
    pub subsystem: &'static str,
    /// Whether the first certificate is asked for when a client asks for the name, and not before: where names may be
    /// configured that the authority cannot reach.
    pub on_demand: bool,
}

impl AcmeConfig {
    /// For the log, which leaves out what is `None`.
    fn subsystem(&self) -> Option<&'static str> {
        (!self.subsystem.is_empty()).then_some(self.subsystem)
    }
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum AcmeError {
    /// The authority could not be reached.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The authority refused, or said what cannot be understood.
    #[error("{0}")]
    Protocol(#[from] instant_acme::Error),
    /// The authority has terms that were not accepted.
    #[error("terms of service were not accepted")]
    Terms,
    /// The authority does not offer `tls-alpn-01`.
    #[error("no viable challenge type found")]
    NoChallenge,
    /// The authority did not find the proof.
    #[error("order status is {0}")]
    Order(String),
    /// What was issued is not what was asked for.
    #[error("{0}")]
    Certificate(String),
    /// The KeyManager failed.
    #[error(transparent)]
    Key(#[from] plugins::Error),
    /// The request or the proof could not be made.
    #[error("{0}")]
    Encoding(String),
    /// Certificate and key cannot be shown.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The folder cannot be used.
    #[error("{0}")]
    Cache(String),
    /// [`ORDER_TIMEOUT`] passed.
    #[error("timed out waiting for the certificate")]
    Timeout,
}

impl AcmeError {
    /// Whether a nonce was refused, which says nothing of the order: it is tried again at once.
    fn is_bad_nonce(&self) -> bool {
        let Self::Protocol(instant_acme::Error::Api(problem)) = self else { return false };
        problem.r#type.as_deref() == Some("urn:ietf:params:acme:error:badNonce")
    }
}

/// Gets a certificate, shows it, and renews it.
pub struct Acme {
    config: AcmeConfig,
    keys: Arc<dyn KeyManager>,
    /// The same, where keys are kept beside the chain.
    own_keys: Option<Arc<OwnKeys>>,
    http: HttpsClient,
    cache: Cache,
    resolver: Arc<Resolver>,
    /// What the resolver shows.
    identity: Arc<Identity>,
}

impl Acme {
    /// Nothing happens before [`Acme::run`]. Without a KeyManager the key is kept beside the chain.
    ///
    /// # Errors
    /// [`TlsSetupError`] where TLS cannot be configured.
    pub fn new(
        config: AcmeConfig,
        keys: Option<Arc<dyn KeyManager>>,
        policy: TlsPolicy,
    ) -> Result<Self, TlsSetupError> {
        let (keys, own_keys) = match keys {
            Some(keys) => (keys, None),
            None => {
                let own = Arc::<OwnKeys>::default();
                (Arc::clone(&own) as Arc<dyn KeyManager>, Some(own))
            }
        };
        let directory_url = match config.directory_url.as_str() {
            "" => LETS_ENCRYPT.to_owned(),
            url => url.to_owned(),
        };
        let domain_name = config.domain_name.trim_end_matches('.').to_ascii_lowercase();
        let identity = Identity::empty();
        Ok(Self {
            http: HttpsClient::new(TlsClient::web(policy)?),
            cache: Cache::new(config.cache_dir.clone()),
            resolver: Arc::new(Resolver::new(&domain_name, Arc::clone(&identity))),
            config: AcmeConfig { directory_url, domain_name, ..config },
            keys,
            own_keys,
            identity,
        })
    }

    /// The TLS of the listener: it shows the certificate to those who ask for its name, and the proof to the authority.
    ///
    /// # Errors
    /// [`TlsSetupError`] where TLS cannot be configured.
    pub fn server_tls(&self, policy: TlsPolicy) -> Result<ServerTls, TlsSetupError> {
        ServerTls::https_acme(Arc::clone(&self.resolver) as _, policy)
    }

    /// The TLS of a listener that goes by several names, each with a certificate of its own.
    ///
    /// # Errors
    /// [`TlsSetupError`] where TLS cannot be configured.
    pub fn server_tls_of(names: &[Self], policy: TlsPolicy) -> Result<ServerTls, TlsSetupError> {
        let resolvers = Resolvers::new(names.iter().map(|name| Arc::clone(&name.resolver)));
        ServerTls::https_acme(Arc::new(resolvers) as _, policy)
    }

    /// Keeps a certificate for as long as it is polled. Failures are logged, and tried again.
    pub async fn run(self) {
        if !self.config.tos_accepted {
            tracing::warn!(
                subsystem_name = self.config.subsystem(),
                "ACME Terms of Service have not been accepted. See the `tos_accepted` configurable"
            );
        }
        let mut until = self.show_cached().await;
        if until.is_none() && self.config.on_demand {
            self.resolver.wanted().await;
        }
        let mut pause = RETRY_WITHOUT;
        loop {
            if let Some(leaf) = &until {
                tokio::time::sleep(renew_in(leaf, now())).await;
            }
            match self.obtain().await {
                Ok(leaf) => {
                    tracing::info!(
                        subsystem_name = self.config.subsystem(),
                        domain_name = self.config.domain_name,
                        expiration = %leaf.not_after(),
                        "Obtained a certificate"
                    );
                    until = Some(leaf);
                    pause = RETRY_WITHOUT;
                }
                Err(error) => {
                    tracing::error!(
                        subsystem_name = self.config.subsystem(),
                        domain_name = self.config.domain_name,
                        directory_url = self.config.directory_url,
                        error = %error,
                        "Failed to obtain a certificate"
                    );
                    tokio::time::sleep(pause).await;
                    pause = longer(pause);
                }
            }
        }
    }

    /// Shows what was obtained before, if it is still good. Its leaf.
    async fn show_cached(&self) -> Option<Certificate> {
        let text = self.cache.chain(&self.config.domain_name).await?;
        if let Some(own) = &self.own_keys {
            own.put(&self.key_id(), LocalKey::from_pem(&text).ok()?);
        }
        let key = self.keys.key(&self.key_id()).await.ok().flatten()?;
        let chain = self.check(&text, &*key).ok()?;
        self.identity.replace_signer(&chain, key_signer(key)).ok()?;
        chain.into_iter().next()
    }

    async fn obtain(&self) -> Result<Certificate, AcmeError> {
        // Boxed: an order's conversation is long, and its future large.
        let orders = Box::pin(async {
            for _ in 1..NONCE_ATTEMPTS {
                match self.order().await {
                    Err(error) if error.is_bad_nonce() => {}
                    other => return other,
                }
            }
            self.order().await
        });
        tokio::time::timeout(ORDER_TIMEOUT, orders).await.unwrap_or(Err(AcmeError::Timeout))
    }

    async fn order(&self) -> Result<Certificate, AcmeError> {
        let account = self.account().await?;
        let identifiers = [Identifier::Dns(self.config.domain_name.clone())];
        let mut order = account.new_order(&NewOrder::new(&identifiers)).await?;
        self.prove(&mut order, &account).await?;
        let key = self.key().await?;
        order.finalize_csr(&self.request(&*key).await?).await?;
        let text = order.poll_certificate(&POLLING).await?;
        let chain = self.check(text.as_bytes(), &*key)?;
        self.identity.replace_signer(&chain, key_signer(key))?;
        // What is shown already need not be lost because the disk is full.
        let own_key = self.own_keys.as_ref().and_then(|own| own.pem(&self.key_id()));
        let own_key = own_key.as_ref().map(|pem| pem.as_str());
        if let Err(error) = self.cache.put_chain(&self.config.domain_name, own_key, &chain).await {
            tracing::error!(
                subsystem_name = self.config.subsystem(),
                error = %error,
                "Could not store the certificate"
            );
        }
        chain.into_iter().next().ok_or_else(|| AcmeError::Certificate("no certificates".to_owned()))
    }

    /// Answers each challenge of an order, until the authority is content.
    async fn prove(&self, order: &mut Order, account: &Account) -> Result<(), AcmeError> {
        let mut asked = false;
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization?;
            if authorization.status != AuthorizationStatus::Pending {
                continue;
            }
            let mut challenge =
                authorization.challenge(ChallengeType::TlsAlpn01).ok_or(AcmeError::NoChallenge)?;
            self.resolver.answer(challenge.key_authorization().digest().as_ref())?;
            challenge.set_ready().await?;
            asked = true;
        }
        let status = if asked { order.poll_ready(&POLLING).await } else { Ok(order.state().status) };
        self.resolver.forget();
        match status? {
            OrderStatus::Ready => Ok(()),
            OrderStatus::Invalid => Err(AcmeError::Order(refusal(order, account).await)),
            other => Err(AcmeError::Order(format!("{other:?}").to_lowercase())),
        }
    }

    /// The certificate's key: the one of the certificate that is shown, else a new one, as the reference does.
    async fn key(&self) -> Result<Arc<dyn Key>, AcmeError> {
        let id = self.key_id();
        if !self.identity.is_empty()
            && let Some(key) = self.keys.key(&id).await?
        {
            return Ok(key);
        }
        let key = self.keys.generate_key(&id, KeyType::EcP256).await?;
        tracing::info!(subsystem_name = self.config.subsystem(), id, "Generated new key");
        Ok(key)
    }

    fn key_id(&self) -> String {
        format!("{}{}", self.config.key_prefix, self.config.domain_name)
    }

    async fn request(&self, key: &dyn Key) -> Result<Vec<u8>, AcmeError> {
        let encoding = |error: &dyn std::fmt::Display| AcmeError::Encoding(error.to_string());
        let subject = DistinguishedName::default().encode().map_err(|e| encoding(&e))?;
        let template = CsrTemplate {
            subject: &subject,
            public_key: key.public_key(),
            dns_names: std::slice::from_ref(&self.config.domain_name),
            uris: &[],
            extra_extensions: &[],
        };
        let unsigned = template.to_be_signed().map_err(|e| encoding(&e))?;
        let signature = key.sign(unsigned.algorithm(), unsigned.bytes()).await?;
        Ok(unsigned.assemble(&signature))
    }

    /// The chain in a text, if its leaf is for our name and key, and valid now.
    fn check(&self, text: &[u8], key: &dyn Key) -> Result<Vec<Certificate>, AcmeError> {
        let wrong = |text: &str| AcmeError::Certificate(text.to_owned());
        // The key before the chain was read already.
        let chain = match &self.own_keys {
            None => pem::certificates(text).map_err(|error| wrong(&error.to_string()))?,
            Some(_) => pem::blocks(text)
                .filter(|block| block.label == "CERTIFICATE")
                .map(|block| Certificate::from_der(block.contents).map_err(|error| wrong(&error.to_string())))
                .collect::<Result<_, _>>()?,
        };
        if chain.len() > CHAIN_MAX {
            return Err(wrong("certificate chain is too long"));
        }
        let leaf = chain.first().ok_or_else(|| wrong("no certificates"))?;
        if leaf.spki_der() != &key.public_key().spki()[..] {
            return Err(wrong("private key does not match public key"));
        }
        let names = leaf.dns_names();
        if !names.iter().any(|name| name.eq_ignore_ascii_case(&self.config.domain_name)) {
            return Err(wrong("certificate is for another name"));
        }
        let now = now();
        if now < leaf.not_before() {
            return Err(wrong("certificate is not valid yet"));
        }
        if now > leaf.not_after() {
            return Err(wrong("expired certificate"));
        }
        Ok(chain)
    }
}

/// The pause after one more failure.
fn longer(pause: Duration) -> Duration {
    (pause * 2).min(RETRY_MAX)
}

/// Why the authority refused, as it said it.
async fn refusal(order: &mut Order, _: &Account) -> String {
    let mut reasons = Vec::new();
    let mut authorizations = order.authorizations();
    while let Some(Ok(mut authorization)) = authorizations.next().await {
        if let Ok(state) = authorization.refresh().await {
            let errors = state.challenges.iter().filter_map(|challenge| challenge.error.as_ref());
            reasons.extend(errors.map(ToString::to_string));
        }
    }
    if reasons.is_empty() { "invalid".to_owned() } else { format!("invalid: {}", reasons.join("; ")) }
}

/// When to renew. A few minutes of difference between servers that started together are made by their orders.
fn renew_in(leaf: &Certificate, now: Timestamp) -> Duration {
    let life = leaf.not_after().since(leaf.not_before());
    leaf.not_after().since(now).saturating_sub(RENEW_BEFORE.min(life / 3)).max(RETRY_WITHOUT)
}

fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_unix(i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

/// Runs what blocks on a thread where it may.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> std::io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(std::io::Error::other(error)))
}

impl std::fmt::Debug for Acme {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Acme").field("config", &self.config).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
