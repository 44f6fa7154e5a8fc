//! Verification of the signatures of container images by Sigstore's tools, for workload attestors
//! (pkg/agent/common/sigstore; cosign's formats and rules).
//!
//! | module | what it does |
//! |---|---|
//! | [`settings`](Settings) | the block `sigstore` of a plugin |
//! | `trust` | whose signatures, logs and timestamps are believed |
//! | `registry`, `manifest` | reads images of signatures from registries |
//! | `entry`, `rekor` | entries of the transparency log |
//! | `check` | the check of one signature, without IO |
//!
//! Everything is verified before it is used: bytes by the digest that they were asked for with, a signature over the bytes
//! that are read afterwards, and what the bytes say about which image they are for.

mod check;
mod credentials;
mod entry;
pub mod fuzzing;
mod manifest;
mod reference;
mod registry;
mod rekor;
mod settings;
mod trust;

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::StreamExt as _;
use futures_util::stream;
use lru::LruCache;
use parking_lot::Mutex;
use spire_core::time::Timestamp;
use spire_net::tls::{TlsClient, TlsSetupError};
use tokio::sync::Semaphore;

use check::{CheckError, Evidence, Kind, Layer, Verified};
use credentials::Login;
use entry::About;
use manifest::{Descriptor, ManifestError};
use reference::{Digest, ImageReference, ReferenceError, Target};
use registry::{Registries, RegistryError, Session};
use rekor::Rekor;
pub use settings::Settings;
use trust::Trust;
pub use trust::TrustError;

/// A line of the log with a plugin's fields.
macro_rules! log {
    ($level:ident, $plugin:expr, $($rest:tt)+) => {
        tracing::$level!(external = false, plugin_name = $plugin, plugin_type = "WorkloadAttestor", $($rest)+)
    };
}

/// Images whose verification is remembered. The reference remembers all; a node runs some hundred.
const CACHE_MAX: NonZeroUsize = NonZeroUsize::new(1024).unwrap();

/// Images that are verified at the same time; others wait. So many that a few registries that hang delay their own images
/// only.
const CONCURRENT_IMAGES: usize = 16;

/// The longest that one image may take. A workload waits for it, and its attestors have 40 s or more.
const VERIFICATION_MAX: Duration = Duration::from_secs(30);

/// Layers of one image that are read at the same time, cosign's number.
const CONCURRENT_LAYERS: usize = 10;

/// Attestations that are held at the same time, of all images: they are large.
const CONCURRENT_ATTESTATIONS: usize = 2;

/// Reasons that an error gives; an image can have many bad signatures.
const ERRORS_MAX: usize = 10;

/// A signed text has a few hundred bytes.
const SIGNATURE_MAX: usize = 1 << 20;
/// A list of all that is in an image can have some MiB. cosign takes 128 MiB.
const ATTESTATION_MAX: usize = 32 << 20;

/// Verifies images, and remembers those that are good.
pub struct Verifier {
    /// Whose lines the log has.
    plugin: &'static str,
    settings: Settings,
    trust: Trust,
    registries: Registries,
    rekor: Rekor,
    environment: Environment,
    /// Selector values by image, as it was asked for.
    verified: Mutex<LruCache<String, Arc<[String]>>>,
    running: Semaphore,
    attestations: Semaphore,
}

/// What environment variables are set to.
pub type Environment = Arc<dyn Fn(&str) -> Option<String> + Send + Sync>;

/// Why there is no verifier.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// There is nobody to believe.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// TLS cannot be set up.
    #[error(transparent)]
    Tls(#[from] TlsSetupError),
}

/// Why an image is not verified. The texts are the reference's.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct VerifyError(#[from] Failure);

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("failed to parse image reference: {0}")]
    Reference(#[from] ReferenceError),
    #[error("failed to verify signatures: {0}")]
    Signatures(Reason),
    #[error("failed to verify image attestations: {0}")]
    Attestations(Reason),
    #[error("context deadline exceeded")]
    Timeout,
    #[error("failed to extract details from signatures for image {image:?}: {error}")]
    Details { image: String, error: CheckError },
}

#[derive(Debug, thiserror::Error)]
enum Reason {
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error("image tag not found")]
    NoImage,
    #[error("no signatures found")]
    None,
    #[error("no matching {what}: {}", .errors.join("\n "))]
    NoMatch { what: &'static str, errors: Vec<String> },
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Verifier {
    /// A verifier for this plugin that trusts whom the files named by cosign's environment variables say, and reads registries over TLS
    /// with the web's authorities.
    ///
    /// # Errors
    /// [`SetupError`]
    pub fn new(plugin: &'static str, settings: Settings) -> Result<Self, SetupError> {
        Self::with(plugin, settings, Arc::new(|name| std::env::var(name).ok()), None)
    }

    /// The same with another environment, and other authorities for TLS.
    ///
    /// # Errors
    /// [`SetupError`]
    pub fn with(
        plugin: &'static str,
        settings: Settings,
        environment: Environment,
        tls: Option<TlsClient>,
    ) -> Result<Self, SetupError> {
        for warning in &settings.warnings {
            log!(warn, plugin, "{warning}");
        }
        Ok(Self {
            plugin,
            trust: Trust::load(&settings, &*environment)?,
            registries: Registries::new(tls.clone())?,
            rekor: Rekor::new(&settings.rekor_url, tls)?,
            settings,
            environment,
            verified: Mutex::new(LruCache::new(CACHE_MAX)),
            running: Semaphore::new(CONCURRENT_IMAGES),
            attestations: Semaphore::new(CONCURRENT_ATTESTATIONS),
        })
    }

    /// The selector values of an image, named as `repository@sha256:digest`; none where verification is skipped for it.
    ///
    /// # Errors
    /// [`VerifyError`] where no signature of it counts, or no attestation where these are not ignored.
    pub async fn verify(&self, image_id: &str) -> Result<Vec<String>, VerifyError> {
        log!(debug, self.plugin, image_id = image_id, "Verifying image with sigstore");
        if self.settings.skipped_images.contains(image_id) {
            return Ok(Vec::new());
        }
        if let Some(values) = self.remembered(image_id) {
            return Ok(values);
        }
        // Those who wait for a turn may find the work done.
        let _turn = self.running.acquire().await;
        if let Some(values) = self.remembered(image_id) {
            return Ok(values);
        }
        let values = tokio::time::timeout(VERIFICATION_MAX, Box::pin(self.values(image_id))).await;
        let values = values.unwrap_or(Err(Failure::Timeout))?;
        self.verified.lock().put(image_id.to_owned(), values.as_slice().into());
        Ok(values)
    }

    fn remembered(&self, image_id: &str) -> Option<Vec<String>> {
        let values = self.verified.lock().get(image_id).cloned()?;
        log!(debug, self.plugin, image_id = image_id, "Sigstore verifier cache hit");
        Some(values.to_vec())
    }

    async fn values(&self, image_id: &str) -> Result<Vec<String>, Failure> {
        let image = ImageReference::parse(image_id)?;
        let (session, digest) = self.resolve(&image).await.map_err(Failure::Signatures)?;
        log!(debug, self.plugin, image_id = image_id, "Verifying image signatures");
        let signatures = self.all(&session, &digest, Kind::Signature).await.map_err(Failure::Signatures)?;
        let mut values = vec!["image-signature:verified".to_owned()];
        if !self.settings.ignore_attestations {
            log!(debug, self.plugin, image_id = image_id, "Verifying image attestations");
            self.all(&session, &digest, Kind::Attestation).await.map_err(Failure::Attestations)?;
            values.push("image-attestations:verified".to_owned());
        }
        for signature in &signatures {
            let details = signature.values();
            values.extend(details.map_err(|error| Failure::Details { image: image_id.to_owned(), error })?);
        }
        Ok(values)
    }

    /// A session with the image's registry, and the digest that the image has there.
    async fn resolve(&self, image: &ImageReference) -> Result<(Session, Digest), Reason> {
        let login = match self.settings.credentials.get(&image.registry) {
            Some(credentials) => Login::Password(credentials.clone()),
            None => {
                let login = credentials::ambient(image, &*self.environment);
                login.map_err(RegistryError::Login)?
            }
        };
        let session = self.registries.open(image, login).await?;
        let digest = match &image.target {
            Target::Digest(digest) => digest.clone(),
            Target::Tag(tag) => Digest::of(&session.manifest(tag).await?.ok_or(Reason::NoImage)?),
        };
        Ok((session, digest))
    }

    /// The signatures of an image that count, or its attestations: one at least.
    async fn all(&self, session: &Session, image: &Digest, kind: Kind) -> Result<Vec<Verified>, Reason> {
        let tag = format!("sha256-{}.{}", image.hex(), kind.suffix());
        let layers = match session.manifest(&tag).await? {
            Some(manifest) => manifest::layers(&manifest)?,
            None => Vec::new(),
        };
        if layers.is_empty() && kind == Kind::Signature {
            return Err(Reason::None);
        }
        let checks = layers.into_iter().map(|layer| Box::pin(self.one(session, image, kind, layer)));
        let mut checks = stream::iter(checks).buffered(CONCURRENT_LAYERS);
        let (mut good, mut errors) = (Vec::new(), Vec::new());
        while let Some(checked) = checks.next().await {
            match checked {
                Ok(verified) => good.push(verified),
                Err(error) if errors.len() < ERRORS_MAX => errors.push(error),
                Err(_) => {}
            }
        }
        let what = match kind {
            Kind::Signature => "signatures",
            Kind::Attestation => "attestations",
        };
        if good.is_empty() { Err(Reason::NoMatch { what, errors }) } else { Ok(good) }
    }

    async fn one(
        &self,
        session: &Session,
        image: &Digest,
        kind: Kind,
        layer: Descriptor,
    ) -> Result<Verified, String> {
        let size_max = match kind {
            Kind::Signature => SIGNATURE_MAX,
            Kind::Attestation => ATTESTATION_MAX,
        };
        if layer.size > size_max as u64 {
            return Err(format!("size of layer ({}) exceeded the limit ({size_max})", layer.size));
        }
        let _place = match kind {
            Kind::Signature => None,
            Kind::Attestation => self.attestations.acquire().await.ok(),
        };
        let payload = session.blob(&layer.digest, size_max).await.map_err(|error| error.to_string())?;
        let layer = Layer { digest: layer.digest, annotations: layer.annotations, payload };
        self.judge(&layer, kind, image).await.map_err(|error| error.to_string())
    }

    async fn judge(&self, layer: &Layer, kind: Kind, image: &Digest) -> Result<Verified, CheckError> {
        let rules = (&self.settings, &self.trust);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let now = Timestamp::EPOCH + now;
        if self.settings.ignore_tlog {
            return check::check(layer, kind, image, Evidence::None, rules, now);
        }
        if let Some(entry) = layer.entry()? {
            return check::check(layer, kind, image, Evidence::Bundle(entry), rules, now);
        }
        let certificate = layer.certificate()?;
        let about =
            About { signature: layer.signature()?, certificate: &certificate, payload: &layer.payload };
        let found = self.rekor.find(&about).await.map_err(|error| CheckError::Log(error.to_string()))?;
        let mut earliest: Option<Verified> = None;
        let mut last = None;
        for entry in found {
            match check::check(layer, kind, image, Evidence::Found(entry), rules, now) {
                // The earliest is the time of the signature, as in cosign.
                Ok(one) if earliest.as_ref().is_none_or(|known| one.is_earlier_than(known)) => {
                    earliest = Some(one);
                }
                Ok(_) => {}
                Err(error) => last = Some(error),
            }
        }
        let none = || CheckError::Log("no valid tlog entries found".to_owned());
        earliest.ok_or_else(|| last.unwrap_or_else(none))
    }
}

#[cfg(test)]
mod tests;
