//! A client of OCI registries, as far as reading images of signatures goes (OCI Distribution Specification 1.1; the token
//! flow is Docker's). What it does is what go-containerregistry does (pkg/v1/remote), within bounds.
//!
//! A registry can send us elsewhere, for a token and for bytes. Neither may lead from a public registry into private
//! networks, from TLS to plain HTTP, or take credentials along to another host.

mod challenge;

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::uri::{Authority, Scheme};
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use parking_lot::Mutex;
use serde::Deserialize;
use spire_net::https::{FetchError, HttpsClient};
use spire_net::tls::{DialError, TlsClient, TlsPolicy, TlsSetupError};

use crate::credentials::Login;
use crate::reference::{Digest, ImageReference};
use challenge::Challenge;

/// Registries answer within a second; a workload waits for all of this.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// What registries must take (OCI Distribution Specification, Pushing Manifests); more than that is none.
const MANIFEST_MAX: usize = 4 << 20;

/// Tokens have a few KiB.
const TOKEN_MAX: usize = 256 << 10;

/// From a registry to its storage is one step, and some storages have another.
const REDIRECTS_MAX: usize = 3;

const MANIFESTS: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json, \
                         application/vnd.oci.image.index.v1+json, \
                         application/vnd.docker.distribution.manifest.list.v2+json";

/// Why a registry gave nothing. Nothing of what it sent is in the texts.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RegistryError {
    #[error("{0}")]
    Fetch(#[from] FetchError),
    #[error("GET {url}: unexpected status code {status}")]
    Status { url: String, status: StatusCode },
    #[error("GET {url}: {reason}")]
    Refused { url: String, reason: &'static str },
    #[error("unrecognized challenge: {0}")]
    Challenge(&'static str),
    #[error("invalid realm in www-authenticate: {0}")]
    Realm(&'static str),
    #[error("no token in bearer response")]
    NoToken,
    #[error("error verifying sha256 checksum of {0}")]
    Digest(Digest),
    #[error("{0}")]
    Login(String),
    #[error("registry {0} has no TLS: credentials are not sent to it")]
    PlainCredentials(String),
}

/// Makes sessions with registries.
#[derive(Clone, Debug)]
pub(crate) struct Registries {
    https: HttpsClient,
}

impl Registries {
    pub(crate) fn new(tls: Option<TlsClient>) -> Result<Self, TlsSetupError> {
        let tls = match tls {
            Some(tls) => tls,
            None => TlsClient::web(TlsPolicy::default())?,
        };
        Ok(Self { https: HttpsClient::new(tls).within(REQUEST_TIMEOUT) })
    }

    /// Looks which protocol and which authentication the image's registry wants.
    pub(crate) async fn open(&self, image: &ImageReference, login: Login) -> Result<Session, RegistryError> {
        let bad = || RegistryError::Refused { url: image.registry.clone(), reason: "not a registry" };
        let mut session = Session {
            https: self.https.clone(),
            scheme: Scheme::HTTPS,
            registry: image.registry.parse().map_err(|_| bad())?,
            repository: image.repository.clone(),
            is_private: false,
            login,
            challenge: None,
            authorization: Mutex::new(None),
        };
        let answer = session.ping().await?;
        session.challenge = Challenge::of(&answer)?;
        session.check_credentials()?;
        session.authorize().await?;
        Ok(session)
    }
}

/// Reads one repository.
pub(crate) struct Session {
    https: HttpsClient,
    scheme: Scheme,
    registry: Authority,
    repository: String,
    /// Whether the registry is in a private network, so that others there may take part.
    is_private: bool,
    login: Login,
    /// Nothing where the registry asks for none.
    challenge: Option<Challenge>,
    authorization: Mutex<Option<HeaderValue>>,
}

#[derive(Deserialize)]
struct Token {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
}

impl Session {
    /// The bytes of a manifest, nothing where there is none of this tag.
    pub(crate) async fn manifest(&self, reference: &str) -> Result<Option<Bytes>, RegistryError> {
        let answer = self.read("manifests", reference, MANIFEST_MAX).await?;
        match answer.status() {
            StatusCode::OK => Ok(Some(answer.into_body())),
            StatusCode::NOT_FOUND => Ok(None),
            status => Err(self.unexpected("manifests", reference, status)),
        }
    }

    /// The bytes with this digest.
    pub(crate) async fn blob(&self, digest: &Digest, size_max: usize) -> Result<Bytes, RegistryError> {
        let reference = digest.to_string();
        let answer = self.read("blobs", &reference, size_max).await?;
        if answer.status() != StatusCode::OK {
            return Err(self.unexpected("blobs", &reference, answer.status()));
        }
        let bytes = answer.into_body();
        if Digest::of(&bytes) == *digest { Ok(bytes) } else { Err(RegistryError::Digest(digest.clone())) }
    }

    fn unexpected(&self, kind: &str, reference: &str, status: StatusCode) -> RegistryError {
        RegistryError::Status { url: self.url(kind, reference), status }
    }

    fn url(&self, kind: &str, reference: &str) -> String {
        format!("{}://{}/v2/{}/{kind}/{reference}", self.scheme, self.registry, self.repository)
    }

    /// Asks with the token that we have, and once more with a new one if it does not do any more.
    async fn read(
        &self,
        kind: &str,
        reference: &str,
        size_max: usize,
    ) -> Result<Response<Bytes>, RegistryError> {
        let url = self.url(kind, reference);
        let answer = self.follow(&url, size_max).await?;
        if answer.status() != StatusCode::UNAUTHORIZED || self.challenge.is_none() {
            return Ok(answer);
        }
        self.authorize().await?;
        self.follow(&url, size_max).await
    }

    /// Asks, and where the registry sends us on, there.
    async fn follow(&self, url: &str, size_max: usize) -> Result<Response<Bytes>, RegistryError> {
        let refused = |reason| RegistryError::Refused { url: url.to_owned(), reason };
        let mut at: Uri = url.parse().map_err(|_| refused("not a URL"))?;
        for _ in 0..=REDIRECTS_MAX {
            let is_registry = self.is_registry(&at);
            let authorization = self.authorization.lock().clone().filter(|_| is_registry);
            let answer = self.send(Method::GET, &at, authorization, Bytes::new(), size_max).await;
            let answer = match answer {
                // A storage's URL often is a secret by itself.
                Err(error) if !is_registry => return Err(refused(elsewhere(&error))),
                answer => answer?,
            };
            if !answer.status().is_redirection() || answer.status() == StatusCode::NOT_MODIFIED {
                return Ok(answer);
            }
            let location = answer.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
            at = resolve(&at, location.ok_or_else(|| refused("redirect without a location"))?)
                .ok_or_else(|| refused("redirect to no URL"))?;
            if at.scheme() != Some(&Scheme::HTTPS) && self.scheme == Scheme::HTTPS {
                return Err(refused("redirect from https to another protocol"));
            }
        }
        Err(refused("too many redirects"))
    }

    fn is_registry(&self, at: &Uri) -> bool {
        at.scheme() == Some(&self.scheme) && at.authority() == Some(&self.registry)
    }

    /// One request. Only the registry itself, and in a private network its companions, may be in one.
    async fn send(
        &self,
        method: Method,
        at: &Uri,
        authorization: Option<HeaderValue>,
        body: Bytes,
        size_max: usize,
    ) -> Result<Response<Bytes>, FetchError> {
        let mut client = self.https.clone().at_most(size_max).public_only(!self.is_private);
        if self.scheme == Scheme::HTTP {
            client = client.allow_plain_http();
        }
        let mut request = Request::new(body);
        if method == Method::POST {
            let form = HeaderValue::from_static("application/x-www-form-urlencoded");
            request.headers_mut().insert(header::CONTENT_TYPE, form);
            let length = HeaderValue::from(request.body().len());
            request.headers_mut().insert(header::CONTENT_LENGTH, length);
        }
        *request.method_mut() = method;
        *request.uri_mut() = at.clone();
        request.headers_mut().insert(header::ACCEPT, HeaderValue::from_static(MANIFESTS));
        if let Some(authorization) = authorization {
            request.headers_mut().insert(header::AUTHORIZATION, authorization);
        }
        client.send(request).await
    }

    /// Asks for the API's root: over TLS, and where the name is one of this machine or of a private network, without if
    /// there is none.
    async fn ping(&mut self) -> Result<Response<Bytes>, RegistryError> {
        let first = match self.ping_once().await {
            Err(FetchError::Dial { source: DialError::Private { .. }, .. }) => {
                self.is_private = true;
                self.ping_once().await
            }
            first => first,
        };
        let answer = match first {
            Err(error @ (FetchError::Dial { .. } | FetchError::Timeout(_)))
                if may_be_plain(&self.registry) =>
            {
                self.scheme = Scheme::HTTP;
                // The error over TLS says more than that of what was not to be expected.
                self.ping_once().await.map_err(|_| error)?
            }
            first => first?,
        };
        match answer.status() {
            StatusCode::OK | StatusCode::UNAUTHORIZED => Ok(answer),
            status => Err(RegistryError::Status { url: self.root(), status }),
        }
    }

    fn root(&self) -> String {
        format!("{}://{}/v2/", self.scheme, self.registry)
    }

    async fn ping_once(&self) -> Result<Response<Bytes>, FetchError> {
        let bad = |_| FetchError::Url { url: self.root(), reason: "not a URL" };
        self.send(Method::GET, &self.root().parse().map_err(bad)?, None, Bytes::new(), TOKEN_MAX).await
    }

    fn check_credentials(&self) -> Result<(), RegistryError> {
        let is_plain = self.scheme == Scheme::HTTP && !is_loopback(self.registry.host());
        if is_plain && self.challenge.is_some() && self.login != Login::Anonymous {
            return Err(RegistryError::PlainCredentials(self.registry.to_string()));
        }
        Ok(())
    }

    /// Comes to what the registry wants to see.
    async fn authorize(&self) -> Result<(), RegistryError> {
        let value = match (&self.challenge, &self.login) {
            (None, _) | (Some(Challenge::Basic), Login::Anonymous) => None,
            (Some(Challenge::Basic), Login::Password(credentials)) => {
                Some(basic(&credentials.username, &credentials.password))
            }
            (Some(Challenge::Basic), Login::Identity(_) | Login::Token(_)) => {
                return Err(RegistryError::Challenge(
                    "the registry wants a password, and there is a token only",
                ));
            }
            (Some(Challenge::Bearer { .. }), Login::Token(token)) => Some(format!("Bearer {token}")),
            (Some(Challenge::Bearer { realm, service }), login) => {
                Some(format!("Bearer {}", self.token(realm, service, login).await?))
            }
        };
        let value = value.map(HeaderValue::try_from).transpose().map_err(|_| RegistryError::NoToken)?;
        *self.authorization.lock() = value.map(|mut value| {
            value.set_sensitive(true);
            value
        });
        Ok(())
    }

    /// A token that lets us read the repository.
    async fn token(&self, realm: &str, service: &str, login: &Login) -> Result<String, RegistryError> {
        let realm: Uri = realm.parse().map_err(|_| RegistryError::Realm("not a URL"))?;
        let is_plain = match realm.scheme() {
            Some(scheme) if *scheme == Scheme::HTTPS => false,
            Some(scheme) if *scheme == Scheme::HTTP && self.scheme == Scheme::HTTP => true,
            _ => return Err(RegistryError::Realm("must be https (or http for insecure registries)")),
        };
        let host = realm.host().unwrap_or_default();
        if is_plain && *login != Login::Anonymous && !is_loopback(host) {
            return Err(RegistryError::PlainCredentials(host.to_owned()));
        }
        let scope = format!("repository:{}:pull", self.repository);
        let wanted = [("scope", scope.as_str()), ("service", service)];
        let answer = match login {
            Login::Identity(token) => {
                let refresh = [
                    ("grant_type", "refresh_token"),
                    ("client_id", "spire"),
                    ("refresh_token", token.as_str()),
                ];
                let form = form(&[&wanted[..], &refresh[..]].concat());
                self.send(Method::POST, &realm, None, form.into(), TOKEN_MAX).await?
            }
            _ => {
                let separator = if realm.query().is_some() { '&' } else { '?' };
                let url = format!("{realm}{separator}{}", form(&wanted));
                let url = url.parse().map_err(|_| RegistryError::Realm("not a URL"))?;
                let authorization = match login {
                    Login::Password(credentials) => {
                        HeaderValue::try_from(basic(&credentials.username, &credentials.password)).ok()
                    }
                    _ => None,
                };
                self.send(Method::GET, &url, authorization, Bytes::new(), TOKEN_MAX).await?
            }
        };
        if answer.status() != StatusCode::OK {
            let url = format!("{}://{host}", if is_plain { "http" } else { "https" });
            return Err(RegistryError::Status { url, status: answer.status() });
        }
        let token: Token = serde_json::from_slice(answer.body()).map_err(|_| RegistryError::NoToken)?;
        let token = if token.token.is_empty() { token.access_token } else { token.token };
        if token.is_empty() { Err(RegistryError::NoToken) } else { Ok(token) }
    }
}

fn form(pairs: &[(&str, &str)]) -> String {
    form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish()
}

fn basic(username: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{username}:{password}")))
}

/// Where a Location leads: a URL, or a path of the same host.
fn resolve(at: &Uri, location: &str) -> Option<Uri> {
    if location.starts_with('/') && !location.starts_with("//") {
        let mut parts = at.clone().into_parts();
        parts.path_and_query = Some(location.parse().ok()?);
        return Uri::from_parts(parts).ok();
    }
    let uri: Uri = location.parse().ok()?;
    let is_web = uri.scheme().is_some_and(|scheme| *scheme == Scheme::HTTPS || *scheme == Scheme::HTTP);
    let is_plain = uri.authority().is_some_and(|authority| !authority.as_str().contains('@'));
    (is_web && is_plain).then_some(uri)
}

/// What is said of a host that a registry sends us to.
fn elsewhere(error: &FetchError) -> &'static str {
    match error {
        FetchError::Dial { source: DialError::Private { .. }, .. } => {
            "redirect from a public registry into a private network"
        }
        FetchError::TooLarge(_) => "the answer is too large",
        _ => "the host that the registry redirects to does not answer",
    }
}

fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || bare.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Names of which go-containerregistry tries plain HTTP too (pkg/name/registry.go: Scheme).
fn may_be_plain(registry: &Authority) -> bool {
    let host = registry.host();
    let is_private = |address: std::net::Ipv4Addr| address.is_private();
    is_loopback(host)
        || host == "local"
        || host.ends_with(".local")
        || host.ends_with(".localhost")
        || host.parse::<std::net::Ipv4Addr>().is_ok_and(is_private)
}

#[cfg(test)]
mod tests;
