//! A client of the Kubernetes API, as small as what the plugins ask: objects by their path, and a few that are created.
//!
//! Access is read anew for each use, as the reference does: tokens of pods are replaced every hour, and kubeconfigs by
//! whoever administers the cluster.

mod access;
pub(crate) mod discovery;
mod exec;
pub(crate) mod objects;
#[cfg(test)]
mod tests;
mod yaml;

use std::path::PathBuf;

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use serde::Serialize;
use serde::de::DeserializeOwned;
use spire_net::https::{FetchError, HttpsClient};
use spire_net::tls::{TlsClient, TlsPolicy};

use access::{Access, InCluster};
pub(crate) use access::{authorities, read, read_text};
use objects::{Object, Pod, ReviewedToken, Status, TokenReview, TokenReviewSpec, TokenStatus};

/// How to reach a cluster's API server.
#[derive(Clone, Debug)]
pub(crate) enum Cluster {
    /// By a kubeconfig file.
    Kubeconfig(PathBuf),
    /// From a pod of the cluster.
    InCluster(InCluster),
    /// By what the surroundings have: the file that `KUBECONFIG` names, a pod's service account, `~/.kube/config`
    /// (controller-runtime's `GetConfig`).
    Ambient,
}

/// Why the API server gave no answer. The texts follow client-go's.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    /// There is no way there.
    #[error("unable to get clientset: unable to create client config: {0}")]
    Access(String),
    /// A name that cannot be part of a path.
    #[error("invalid resource name {0:?}")]
    Name(String),
    /// It could not be asked.
    #[error("{}", .0.to_string().replacen("Get", .1, 1))]
    Fetch(FetchError, &'static str),
    /// It answered with an error.
    #[error("{message}")]
    Status {
        /// Of HTTP.
        code: StatusCode,
        /// What it says.
        message: String,
    },
    /// Its answer is none of what was asked for.
    #[error("unable to decode the answer: {0}")]
    Answer(serde_json::Error),
}

impl Cluster {
    /// By the file, or without one from within the cluster.
    pub(crate) fn new(kubeconfig: &str) -> Self {
        match kubeconfig {
            "" => Self::InCluster(InCluster::from_environment()),
            path => Self::Kubeconfig(path.into()),
        }
    }

    /// Reads how to get there.
    pub(crate) async fn connect(&self) -> Result<ApiServer, ApiError> {
        let cluster = self.clone();
        let access = tokio::task::spawn_blocking(move || cluster.access()).await;
        let access = access.unwrap_or_else(|error| Err(error.to_string())).map_err(ApiError::Access)?;
        let access = access.with_credentials().await.map_err(ApiError::Access)?;
        ApiServer::new(access).map_err(ApiError::Access)
    }

    fn access(&self) -> Result<Access, String> {
        match self {
            Self::Kubeconfig(path) => access::kubeconfig(path),
            Self::InCluster(within) => within.access(),
            Self::Ambient => {
                let named = std::env::var_os("KUBECONFIG").filter(|path| !path.is_empty());
                if let Some(path) = named {
                    return access::kubeconfig(&PathBuf::from(path));
                }
                let within = InCluster::from_environment();
                match std::env::var_os("HOME") {
                    Some(home) if !within.is_there() => {
                        access::kubeconfig(&PathBuf::from(home).join(".kube/config"))
                    }
                    _ => within.access(),
                }
            }
        }
    }
}

/// An API server that can be asked.
#[derive(Debug)]
pub(crate) struct ApiServer {
    server: String,
    authorization: Option<header::HeaderValue>,
    http: HttpsClient,
}

impl ApiServer {
    fn new(access: Access) -> Result<Self, String> {
        let tls = TlsClient::private(access.trust, access.identity, TlsPolicy::default());
        let http = HttpsClient::new(tls.map_err(|error| error.to_string())?).allow_plain_http();
        let authorization = match &access.authorization {
            None => None,
            Some(text) => {
                let mut value = header::HeaderValue::from_str(text).map_err(|_| "the token is no token")?;
                value.set_sensitive(true);
                Some(value)
            }
        };
        Ok(Self { server: access.server, authorization, http })
    }

    /// What the API server says of a token for one of these audiences, for its own where there are none
    /// (pkg/common/plugin/k8s/apiserver ValidateToken).
    pub(crate) async fn review(&self, token: &str, audiences: &[String]) -> Result<TokenStatus, String> {
        let review = TokenReview {
            api_version: "authentication.k8s.io/v1",
            kind: "TokenReview",
            spec: TokenReviewSpec { token, audiences },
        };
        let reviewed: ReviewedToken = self
            .create("/apis/authentication.k8s.io/v1/tokenreviews", &review)
            .await
            .map_err(|error| format!("unable to query token review API: {error}"))?;
        let status = reviewed.status;
        if !status.error.is_empty() {
            return Err(format!("token review API response contains an error: {}", status.error));
        }
        // An authenticator that does not look at audiences leaves them out, and then the token may be for anybody.
        if status.authenticated
            && !audiences.is_empty()
            && !audiences.iter().any(|audience| status.audiences.contains(audience))
        {
            return Err(format!(
                "token review API did not validate audience: wanted one of {} but got {}",
                quoted(audiences),
                quoted(&status.audiences)
            ));
        }
        Ok(status)
    }

    /// A pod.
    pub(crate) async fn pod(&self, namespace: &str, name: &str) -> Result<Pod, String> {
        if namespace.is_empty() {
            return Err("empty namespace".to_owned());
        }
        if name.is_empty() {
            return Err("empty pod name".to_owned());
        }
        let pod = async {
            let path = format!("/api/v1/namespaces/{}/pods/{}", segment(namespace)?, segment(name)?);
            self.get(&path).await
        };
        pod.await.map_err(|error| format!("unable to query pods API: {error}"))
    }

    /// A node.
    pub(crate) async fn node(&self, name: &str) -> Result<Object, String> {
        if name.is_empty() {
            return Err("empty node name".to_owned());
        }
        let node = async { self.get(&format!("/api/v1/nodes/{}", segment(name)?)).await };
        node.await.map_err(|error| format!("unable to query nodes API: {error}"))
    }

    /// A namespace.
    pub(crate) async fn namespace(&self, name: &str) -> Result<Object, ApiError> {
        self.get(&format!("/api/v1/namespaces/{}", segment(name)?)).await
    }

    /// An object by its path.
    ///
    /// # Errors
    /// [`ApiError`] says why there is none.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiError> {
        self.ask(Method::GET, "Get", path, "application/json", Bytes::new()).await
    }

    /// As [`Self::get`], where the server may leave out everything but metadata.
    async fn metadata<T: DeserializeOwned>(&self, path: &str, list: bool) -> Result<T, ApiError> {
        let accept = match list {
            true => "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json",
            false => "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json",
        };
        self.ask(Method::GET, "Get", path, accept, Bytes::new()).await
    }

    /// Creates an object in the collection of that path; what the API server made of it.
    ///
    /// # Errors
    /// [`ApiError`] says why it was not created.
    pub(crate) async fn create<T: DeserializeOwned>(
        &self,
        path: &str,
        object: &impl Serialize,
    ) -> Result<T, ApiError> {
        let body = serde_json::to_vec(object).map_err(ApiError::Answer)?;
        self.ask(Method::POST, "Post", path, "application/json", body.into()).await
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        shown: &'static str,
        path: &str,
        accept: &'static str,
        body: Bytes,
    ) -> Result<T, ApiError> {
        let url = format!("{}{path}", self.server);
        let mut request = Request::new(body);
        *request.method_mut() = method;
        *request.uri_mut() = url.parse().map_err(|_| ApiError::Name(path.to_owned()))?;
        request.headers_mut().insert(header::ACCEPT, header::HeaderValue::from_static(accept));
        if !request.body().is_empty() {
            let json = header::HeaderValue::from_static("application/json");
            request.headers_mut().insert(header::CONTENT_TYPE, json);
        }
        if let Some(authorization) = &self.authorization {
            request.headers_mut().insert(header::AUTHORIZATION, authorization.clone());
        }
        let answer = self.http.send(request).await.map_err(|error| ApiError::Fetch(error, shown))?;
        let code = answer.status();
        if !code.is_success() {
            return Err(ApiError::Status { code, message: refusal(code, answer.body()) });
        }
        serde_json::from_slice(answer.body()).map_err(ApiError::Answer)
    }
}

/// What an API server says when it gives no object.
fn refusal(code: StatusCode, body: &[u8]) -> String {
    match serde_json::from_slice::<Status>(body) {
        Ok(status) if status.kind == "Status" && !status.message.is_empty() => status.message,
        _ => match code {
            StatusCode::UNAUTHORIZED => {
                "the server has asked for the client to provide credentials".to_owned()
            }
            StatusCode::NOT_FOUND => "the server could not find the requested resource".to_owned(),
            code => format!("the server answered with status {code}"),
        },
    }
}

/// A name as a segment of a path. Those of Kubernetes need no escapes; others are refused.
fn segment(name: &str) -> Result<&str, ApiError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:".contains(&byte);
    match name {
        "" | "." | ".." => Err(ApiError::Name(name.to_owned())),
        name if name.bytes().all(plain) => Ok(name),
        name => Err(ApiError::Name(name.to_owned())),
    }
}

/// As Go prints a list of strings with `%q`.
fn quoted(texts: &[String]) -> String {
    let texts: Vec<String> = texts.iter().map(|text| spire_compat::quote::quote(text)).collect();
    format!("[{}]", texts.join(" "))
}
