//! The API of a container engine, as far as two questions go: what a container is made of, and which image that is. Docker's
//! own, and Podman's, which is compatible.
//!
//! Versions are negotiated and errors worded as Docker's client for Go does (github.com/moby/moby/client).

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use spire_net::https::{FetchError, HttpsClient};
use spire_net::tls::{DialError, ServerTrust, TlsClient, TlsPolicy};

/// How long one answer may take. An engine that works answers within milliseconds.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// The newest version of the API that we ask for: 1.<this>.
const MINOR_MAX: u32 = 55;

/// The name that stands for the engine behind a unix socket.
const DUMMY_HOST: &str = "api.moby.localhost";

/// Why an engine gave no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EngineError {
    /// Where it should be is no address.
    #[error("unable to parse docker host `{0}`")]
    Host(String),
    /// An ID that cannot be one.
    #[error("invalid container name or ID: {0:?}")]
    Id(String),
    /// We may not talk to it.
    #[error("permission denied while trying to connect to the docker API at {0}")]
    Denied(String),
    /// There is no socket.
    #[error(
        "failed to connect to the docker API at {0}; check if the path is correct and if the daemon is running: {1}"
    )]
    Missing(String, String),
    /// Nobody is there.
    #[error("Cannot connect to the Docker daemon at {0}. Is the docker daemon running?")]
    Refused(String),
    /// It did not answer in time.
    #[error("context deadline exceeded")]
    Timeout,
    /// The connection broke.
    #[error("error during connect: {0}")]
    Connect(FetchError),
    /// It answered with an error.
    #[error("Error response from daemon: {0}")]
    Daemon(String),
    /// Its answer is not what was asked for.
    #[error("error reading JSON: {0}")]
    Answer(#[from] serde_json::Error),
}

fn nullable<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Option::<T>::deserialize(deserializer).map(Option::unwrap_or_default)
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Container {
    config: ContainerConfig,
}

/// What a container was made with.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct ContainerConfig {
    #[serde(deserialize_with = "nullable")]
    pub(crate) labels: BTreeMap<String, String>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) env: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) image: String,
}

/// An image.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct Image {
    /// The digest of its configuration.
    #[serde(deserialize_with = "nullable")]
    pub(crate) id: String,
    /// Its names in registries, `repository@sha256:digest`.
    #[serde(deserialize_with = "nullable")]
    pub(crate) repo_digests: Vec<String>,
}

#[derive(Deserialize)]
struct Refusal {
    message: String,
}

/// An engine. It is dialled for each question.
#[derive(Debug)]
pub(crate) struct Engine {
    /// As configured, for errors.
    shown: String,
    base: String,
    http: HttpsClient,
    /// Given, or learnt from the engine.
    version: Mutex<Option<String>>,
    is_fixed: bool,
}

impl Engine {
    /// The engine at `unix://<path>` or `tcp://<host>:<port>`. Its version is asked for unless it is given.
    ///
    /// # Errors
    /// [`EngineError::Host`]
    pub(crate) fn new(host: &str, version: Option<&str>) -> Result<Self, EngineError> {
        let bad = || EngineError::Host(host.to_owned());
        let (kind, address) =
            host.split_once("://").filter(|(_, address)| !address.is_empty()).ok_or_else(bad)?;
        // TLS has no part in this: what is not a unix socket of this machine is plain HTTP, as in the reference.
        let tls = TlsClient::private(ServerTrust::System, None, TlsPolicy::default()).map_err(|_| bad())?;
        let http = HttpsClient::new(tls).allow_plain_http().within(REQUEST_TIMEOUT);
        let (http, base) = match kind {
            "unix" => (http.over_unix_socket(PathBuf::from(address)), format!("http://{DUMMY_HOST}")),
            "tcp" | "http" => (http, format!("http://{}", address.trim_end_matches('/'))),
            _ => return Err(bad()),
        };
        let version = version.map(|version| version.trim_start_matches('v').to_owned());
        Ok(Self {
            shown: host.to_owned(),
            base,
            http,
            is_fixed: version.is_some(),
            version: Mutex::new(version),
        })
    }

    /// What a container was made with.
    pub(crate) async fn container(&self, id: &str) -> Result<ContainerConfig, EngineError> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if id.is_empty() || !id.bytes().all(plain) || id.starts_with('.') {
            return Err(EngineError::Id(id.to_owned()));
        }
        let container: Container = self.ask(&format!("/containers/{id}/json")).await?;
        Ok(container.config)
    }

    /// An image by its name or ID.
    pub(crate) async fn image(&self, name: &str) -> Result<Image, EngineError> {
        self.ask(&format!("/images/{}/json", escaped(name))).await
    }

    async fn ask<T: DeserializeOwned>(&self, path: &str) -> Result<T, EngineError> {
        let version = self.negotiated().await?;
        let asked = self.get(&format!("{version}{path}")).await.and_then(|answer| body(&answer));
        if asked.is_err() && !self.is_fixed {
            // It may have been replaced by another version meanwhile.
            *self.version.lock() = None;
        }
        Ok(serde_json::from_slice(&asked?)?)
    }

    /// `/v1.<n>`: what the engine speaks, or the newest that we know.
    async fn negotiated(&self) -> Result<String, EngineError> {
        if let Some(version) = &*self.version.lock() {
            return Ok(format!("/v{version}"));
        }
        let answer = self.get("/_ping").await?;
        let spoken = answer.headers().get("api-version").and_then(|value| value.to_str().ok());
        let minor = spoken.and_then(|version| version.strip_prefix("1.")?.parse::<u32>().ok());
        let Some(minor) = minor else { return Ok(String::new()) };
        let version = format!("1.{}", minor.min(MINOR_MAX));
        let prefix = format!("/v{version}");
        *self.version.lock() = Some(version);
        Ok(prefix)
    }

    async fn get(&self, path: &str) -> Result<Response<Bytes>, EngineError> {
        let request = Request::get(format!("{}{path}", self.base)).body(Bytes::new());
        let request = request.map_err(|_| EngineError::Host(self.shown.clone()))?;
        self.http.send(request).await.map_err(|error| self.unreachable(error))
    }

    fn unreachable(&self, error: FetchError) -> EngineError {
        let shown = self.shown.clone();
        match &error {
            FetchError::Timeout(_) => EngineError::Timeout,
            FetchError::Dial { source: DialError::Dial { source, network, address }, .. } => {
                match source.kind() {
                    io::ErrorKind::PermissionDenied => EngineError::Denied(shown),
                    io::ErrorKind::NotFound => {
                        let cause = spire_compat::errno::errno_text(source);
                        EngineError::Missing(shown, format!("dial {network} {address}: connect: {cause}"))
                    }
                    _ => EngineError::Refused(shown),
                }
            }
            FetchError::Dial { source: DialError::Timeout { .. }, .. } => EngineError::Refused(shown),
            _ => EngineError::Connect(error),
        }
    }
}

/// The body of a good answer.
fn body(answer: &Response<Bytes>) -> Result<Bytes, EngineError> {
    let status = answer.status();
    if status.is_success() {
        return Ok(answer.body().clone());
    }
    let said = match serde_json::from_slice::<Refusal>(answer.body()) {
        Ok(refusal) if !refusal.message.is_empty() => refusal.message.trim().to_owned(),
        _ => format!("API returned a {} ({}) but provided no error-message", status.as_u16(), reason(status)),
    };
    Err(EngineError::Daemon(said))
}

fn reason(status: StatusCode) -> &'static str {
    status.canonical_reason().unwrap_or_default()
}

/// A name as part of a path; images' names have slashes.
fn escaped(name: &str) -> String {
    let mut path = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~/:@".contains(&byte) {
            path.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(path, "%{byte:02X}");
        }
    }
    path
}
