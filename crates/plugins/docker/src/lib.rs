//! Built-in plugins for Docker and Podman: the `docker` WorkloadAttestor
//! (pkg/agent/plugin/workloadattestor/docker).

mod engine;
mod matchers;
mod podman;
mod settings;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use spire_compat::quote::quote;
use spire_containers::Locator;
use spire_core::spiffe::Selector;
use spire_ports::plugins::catalog::{AgentCatalog, Configuration};
use spire_ports::plugins::{Error, ErrorKind, PluginType, Result, WorkloadAttestor};
use spire_sigstore::Verifier;

use engine::{ContainerConfig, Engine, EngineError, Image};
use settings::Settings;

const NAME: &str = "docker";

/// Tries after the first one, and the wait before the first of them, which doubles: a container may run before its engine
/// says so (pkg/agent/plugin/workloadattestor/docker/retry.go).
const RETRIES: u32 = 3;
const FIRST_BACKOFF: Duration = Duration::from_millis(100);

/// The longest that an engine is asked about one workload. The agent gives all its attestors 60 s; what the others found shall
/// still count.
const ATTESTATION_MAX: Duration = Duration::from_secs(40);

/// Names of one image that are tried; an image that was pulled from one registry has one.
const REPO_DIGESTS_MAX: usize = 16;

/// Adds the plugins of the agent.
pub fn register_agent(catalog: &mut AgentCatalog) {
    catalog.workload_attestors.add(NAME, build);
}

async fn build(configuration: Configuration) -> Result<Arc<dyn WorkloadAttestor>> {
    let mut settings = Settings::read(&configuration)?;
    if settings.matchers.is_some() {
        tracing::warn!(
            external = false,
            plugin_name = NAME,
            plugin_type = "WorkloadAttestor",
            "Using the legacy container locator with custom cgroup matchers. This feature will be removed in \
             a future release."
        );
    }
    let verifier = settings.sigstore.take().map(|settings| Verifier::new(NAME, settings)).transpose();
    let verifier = verifier
        .map_err(|error| configuration.invalid(format!("error initializing sigstore verifier: {error}")))?;
    let docker = Docker::new(settings).map_err(|error| configuration.invalid(error.to_string()))?;
    Ok(Arc::new(Docker { verifier, ..docker }))
}

struct Docker {
    settings: Settings,
    locator: Locator,
    engine: Engine,
    /// Nothing where signatures do not count.
    verifier: Option<Verifier>,
}

/// Why a container is not attested.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// Its engine gave no answer.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Signatures count, and the image is not known.
    #[error("failed to inspect image {}: {error}", quote(image))]
    Inspect { image: String, error: EngineError },
    /// Signatures count, and the image is in no registry.
    #[error("sigstore signature verification failed: no repo digest found for image {0}")]
    NoDigest(String),
    /// No name of the image has a good signature.
    #[error("sigstore signature verification failed for image {image}: errors: {}", .errors.join("; "))]
    Unsigned { image: String, errors: Vec<String> },
}

/// A container, and the engine that runs it.
struct Found {
    id: String,
    /// Podman's socket, where it is Podman's.
    podman: Option<String>,
}

fn failed(kind: ErrorKind, message: impl Into<String>) -> Error {
    Error::new(kind, (PluginType::WorkloadAttestor, NAME), message)
}

#[async_trait]
impl WorkloadAttestor for Docker {
    fn name(&self) -> &str {
        NAME
    }

    async fn attest(&self, pid: i32) -> Result<Vec<Selector>> {
        let Some(found) = self.find(pid).await? else { return Ok(Vec::new()) };
        let asked = tokio::time::timeout(ATTESTATION_MAX, self.ask(&found)).await;
        let values = asked.unwrap_or(Err(EngineError::Timeout.into()));
        let values = values.map_err(|error| match error {
            Failure::Engine(EngineError::Timeout) => failed(ErrorKind::DeadlineExceeded, error.to_string()),
            error => failed(ErrorKind::Unknown, error.to_string()),
        })?;
        let selector = |value| {
            Selector::new(NAME, value).map_err(|error| failed(ErrorKind::Internal, error.to_string()))
        };
        values.into_iter().map(selector).collect()
    }
}

impl Docker {
    fn new(settings: Settings) -> std::result::Result<Self, EngineError> {
        let engine = Engine::new(&settings.docker_socket, settings.version.as_deref())?;
        let locator = Locator::new(NAME, false, settings.verbose_locator);
        Ok(Self { settings, locator, engine, verifier: None })
    }

    /// The container of the process, if it is in one.
    async fn find(&self, pid: i32) -> Result<Option<Found>> {
        let (id, cgroups) = match &self.settings.matchers {
            Some(matchers) => {
                let cgroups = self.locator.cgroups(pid).await;
                let cgroups = cgroups.map_err(|error| failed(error.kind(), error.to_string()))?;
                let paths: Vec<&str> = cgroups.iter().map(String::as_str).collect();
                let id = matchers.find(&paths).map_err(|error| failed(ErrorKind::Unknown, error))?;
                (id, cgroups)
            }
            None => {
                let located = self.locator.locate(pid).await;
                let located = located.map_err(|error| failed(error.kind(), error.to_string()))?;
                (located.container.map(|container| container.id().to_owned()), located.cgroups)
            }
        };
        let Some(id) = id else { return Ok(None) };
        let podman = podman::socket(&cgroups, &self.settings.podman_socket, &self.settings.podman_template);
        Ok(Some(Found { id, podman }))
    }

    /// What the engine says of a container, and the registry of its image.
    async fn ask(&self, found: &Found) -> std::result::Result<Vec<String>, Failure> {
        let podman = found.podman.as_deref().map(|socket| Engine::new(socket, None)).transpose()?;
        let engine = podman.as_ref().unwrap_or(&self.engine);
        let config = retried(|| engine.container(&found.id)).await?;
        let mut values = values(&config);
        if config.image.is_empty() && self.verifier.is_none() {
            return Ok(values);
        }
        let image = engine.image(&config.image).await;
        match &image {
            Ok(image) if !image.id.is_empty() => values.push(format!("image_config_digest:{}", image.id)),
            Ok(_) => {}
            // As in the reference, an image that cannot be looked at costs its selector and nothing else.
            Err(error) => tracing::debug!(
                external = false,
                plugin_name = NAME,
                plugin_type = "WorkloadAttestor",
                image_id = config.image,
                error = %error,
                "Image cannot be inspected"
            ),
        }
        if let Some(verifier) = &self.verifier {
            let inspect = |error| Failure::Inspect { image: config.image.clone(), error };
            values.extend(verified(verifier, &config.image, &image.map_err(inspect)?).await?);
        }
        Ok(values)
    }
}

/// The selectors of the first of an image's names in registries whose signatures are good.
async fn verified(
    verifier: &Verifier,
    name: &str,
    image: &Image,
) -> std::result::Result<Vec<String>, Failure> {
    if image.repo_digests.is_empty() {
        return Err(Failure::NoDigest(name.to_owned()));
    }
    let mut errors = Vec::new();
    for digest in image.repo_digests.iter().take(REPO_DIGESTS_MAX) {
        match verifier.verify(digest).await {
            Ok(values) => return Ok(values),
            Err(error) => {
                tracing::warn!(
                    external = false,
                    plugin_name = NAME,
                    plugin_type = "WorkloadAttestor",
                    image_id = digest,
                    error = %error,
                    "Error verifying sigstore image signature"
                );
                errors.push(format!("image_id {digest}: {error}"));
            }
        }
    }
    Err(Failure::Unsigned { image: name.to_owned(), errors })
}

async fn retried<T, F, Fut>(ask: F) -> std::result::Result<T, EngineError>
where
    F: Fn() -> Fut,
    Fut: Future<Output = std::result::Result<T, EngineError>>,
{
    let mut backoff = FIRST_BACKOFF;
    for _ in 0..RETRIES {
        match ask().await {
            // One that hangs is not asked again at once.
            Err(EngineError::Timeout) => return Err(EngineError::Timeout),
            Err(_) => tokio::time::sleep(backoff).await,
            done => return done,
        }
        backoff *= 2;
    }
    ask().await
}

fn values(config: &ContainerConfig) -> Vec<String> {
    let labels = config.labels.iter().map(|(key, value)| format!("label:{key}:{value}"));
    let env = config.env.iter().map(|variable| format!("env:{variable}"));
    let image =
        Some(&config.image).filter(|image| !image.is_empty()).map(|image| format!("image_id:{image}"));
    labels.chain(env).chain(image).collect()
}

#[cfg(test)]
mod tests;
