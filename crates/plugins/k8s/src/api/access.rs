//! Where an API server is and how we show who we are: a kubeconfig file, or what Kubernetes gives each pod.
//!
//! Files and variables are those of client-go (`tools/clientcmd`, `rest.InClusterConfig`), and so are the texts of errors. What of
//! a kubeconfig is not supported is refused by its name.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use bytes::Bytes;
use serde::{Deserialize, Deserializer};
use serde_json::json;
use spire_compat::errno::path_error;
use spire_compat::files::read_bounded;
use spire_compat::quote::quote;
use spire_core::pki::{Certificate, pem};
use spire_net::tls::{Identity, ServerTrust};
use zeroize::Zeroizing;

use super::exec::{self, Exec};
use super::yaml;

/// What Kubernetes puts into each pod.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Far more than a kubeconfig or a token has.
const FILE_MAX: u64 = 4 << 20;

/// An API server, and our credentials there.
#[derive(Debug)]
pub(super) struct Access {
    /// Absolute URL without a slash at the end.
    pub(super) server: String,
    pub(super) trust: ServerTrust,
    pub(super) identity: Option<Arc<Identity>>,
    /// The value of `Authorization`.
    pub(super) authorization: Option<Zeroizing<String>>,
    /// A program to ask for credentials, where there are none yet.
    pub(super) exec: Option<Exec>,
}

impl Access {
    /// With the credentials of the program, where one is to be asked.
    pub(super) async fn with_credentials(mut self) -> Result<Self, String> {
        if let Some(exec) = self.exec.take() {
            let credential = exec.credential().await?;
            self.authorization = credential.authorization;
            self.identity = credential.identity.or(self.identity);
        }
        Ok(self)
    }
}

/// The service of the API server that pods are told of, and where their credentials are.
#[derive(Clone, Debug)]
pub(crate) struct InCluster {
    pub(super) host: String,
    pub(super) port: String,
    pub(super) folder: PathBuf,
}

impl InCluster {
    /// As the environment says.
    pub(super) fn from_environment() -> Self {
        let variable = |name| std::env::var(name).unwrap_or_default();
        Self {
            host: variable("KUBERNETES_SERVICE_HOST"),
            port: variable("KUBERNETES_SERVICE_PORT"),
            folder: SERVICE_ACCOUNT.into(),
        }
    }

    /// Whether there is one.
    pub(super) fn is_there(&self) -> bool {
        !self.host.is_empty() && !self.port.is_empty()
    }

    /// The pod's own access. Reads files.
    pub(super) fn access(&self) -> Result<Access, String> {
        if !self.is_there() {
            return Err("unable to load in-cluster configuration, KUBERNETES_SERVICE_HOST and \
                        KUBERNETES_SERVICE_PORT must be defined"
                .to_owned());
        }
        let token = read_text(&self.folder.join("token"))?;
        let (host, port) = (&self.host, &self.port);
        let authority =
            if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        let ca = self.folder.join("ca.crt");
        let trust = match read(&ca).and_then(|text| authorities(&text)) {
            Ok(authorities) => ServerTrust::Authorities(authorities),
            Err(error) => {
                // As client-go: the server may have a certificate of the Web's authorities.
                let path = ca.display();
                tracing::warn!("Expected to load root CA config from {path}, but got err: {error}");
                ServerTrust::System
            }
        };
        Ok(Access {
            server: format!("https://{authority}"),
            trust,
            identity: None,
            authorization: bearer(&token),
            exec: None,
        })
    }
}

/// The access that a kubeconfig file's current context names. Reads files.
pub(super) fn kubeconfig(path: &Path) -> Result<Access, String> {
    let text = match std::fs::metadata(path) {
        Ok(_) => read_text(path)?,
        Err(error) => return Err(path_error("stat", path.display(), &error)),
    };
    let failed =
        |error: String| format!("error loading config file {}: {error}", quote(&path.display().to_string()));
    let file: File = match yaml::parse(&text).map_err(failed)? {
        serde_json::Value::Null => File::default(),
        // Which value it is stands in no error: it may be a secret, and the error goes to agents.
        value => serde_json::from_value(value)
            .map_err(|_| failed("a value that is of another kind than it should be".to_owned()))?,
    };
    file.access(path.parent().unwrap_or(Path::new("")))
}

/// A kubeconfig (client-go `tools/clientcmd/api/v1`).
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct File {
    #[serde(deserialize_with = "nullable")]
    current_context: String,
    #[serde(deserialize_with = "nullable")]
    contexts: Vec<NamedContext>,
    #[serde(deserialize_with = "nullable")]
    clusters: Vec<NamedCluster>,
    #[serde(deserialize_with = "nullable")]
    users: Vec<NamedUser>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct NamedContext {
    name: String,
    context: Context,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Context {
    #[serde(deserialize_with = "nullable")]
    cluster: String,
    #[serde(deserialize_with = "nullable")]
    user: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct NamedCluster {
    name: String,
    #[serde(deserialize_with = "nullable")]
    cluster: Cluster,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct Cluster {
    server: Option<String>,
    certificate_authority: Option<PathBuf>,
    certificate_authority_data: Option<String>,
    #[serde(deserialize_with = "nullable")]
    insecure_skip_tls_verify: bool,
    tls_server_name: Option<serde_json::Value>,
    proxy_url: Option<serde_json::Value>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct NamedUser {
    name: String,
    #[serde(deserialize_with = "nullable")]
    user: User,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct User {
    client_certificate: Option<PathBuf>,
    client_certificate_data: Option<String>,
    client_key: Option<PathBuf>,
    client_key_data: Option<String>,
    token: Option<String>,
    #[serde(rename = "tokenFile")]
    token_file: Option<PathBuf>,
    username: Option<String>,
    password: Option<String>,
    exec: Option<exec::Settings>,
    auth_provider: Option<serde_json::Value>,
    #[serde(rename = "as")]
    impersonated: Option<serde_json::Value>,
}

pub(super) fn nullable<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Option::<T>::deserialize(deserializer).map(Option::unwrap_or_default)
}

impl File {
    fn access(self, folder: &Path) -> Result<Access, String> {
        let wanted = self.current_context;
        if wanted.is_empty() && self.clusters.is_empty() {
            return Err(
                "invalid configuration: no configuration has been provided, try setting KUBERNETES_MASTER \
                        environment variable"
                    .to_owned(),
            );
        }
        let missing =
            |what: &str, name: &str| format!("invalid configuration: {what} {} does not exist", quote(name));
        let context = self.contexts.into_iter().find(|context| context.name == wanted);
        let context = context.ok_or_else(|| missing("context", &wanted))?.context;
        let cluster = self.clusters.into_iter().find(|cluster| cluster.name == context.cluster);
        let cluster = cluster.ok_or_else(|| missing("cluster", &context.cluster))?.cluster;
        let user = match context.user.as_str() {
            "" => User::default(),
            name => {
                let user = self.users.into_iter().find(|user| user.name == name);
                user.ok_or_else(|| missing("user", name))?.user
            }
        };
        let server = cluster.server.as_deref().unwrap_or_default().trim_end_matches('/').to_owned();
        if !server.starts_with("https://") && !server.starts_with("http://") {
            return Err(format!("invalid configuration: server {} is no URL", quote(&server)));
        }
        let (trust, authority) = cluster.trust(folder)?;
        let identity = user.identity(folder)?;
        let authorization = user.authorization(folder)?;
        let exec = match user.exec {
            // What the kubeconfig gives itself comes first, as in client-go.
            Some(settings) if authorization.is_none() => {
                let mut told = json!({"server": server, "config": null});
                if let Some(authority) = authority {
                    let encoded = base64::engine::general_purpose::STANDARD.encode(&authority);
                    told["certificate-authority-data"] = encoded.into();
                }
                if cluster.insecure_skip_tls_verify {
                    told["insecure-skip-tls-verify"] = true.into();
                }
                Some(settings.resolve(&context.user, folder, &told)?)
            }
            _ => None,
        };
        Ok(Access { server, trust, identity, authorization, exec })
    }
}

fn unsupported(setting: &str) -> String {
    format!("invalid configuration: {} of a kubeconfig is not supported", quote(setting))
}

impl Cluster {
    /// Whom to trust, and the text of the authorities, where they are given.
    fn trust(&self, folder: &Path) -> Result<(ServerTrust, Option<Bytes>), String> {
        if self.tls_server_name.is_some() {
            return Err(unsupported("tls-server-name"));
        }
        if self.proxy_url.is_some() {
            return Err(unsupported("proxy-url"));
        }
        let ca =
            either(folder, self.certificate_authority.as_deref(), self.certificate_authority_data.as_deref())
                .map_err(|error| format!("unable to load root certificates: {error}"))?;
        match (self.insecure_skip_tls_verify, ca) {
            (true, Some(_)) => {
                Err("specifying a root certificates file with the insecure flag is not allowed".to_owned())
            }
            (true, None) => Ok((ServerTrust::Anybody, None)),
            (false, None) => Ok((ServerTrust::System, None)),
            (false, Some(text)) => {
                let authorities = authorities(&text)
                    .map_err(|error| format!("unable to load root certificates: {error}"))?;
                Ok((ServerTrust::Authorities(authorities), Some(Bytes::copy_from_slice(&text))))
            }
        }
    }
}

impl User {
    fn identity(&self, folder: &Path) -> Result<Option<Arc<Identity>>, String> {
        for (is_there, name) in
            [(self.auth_provider.is_some(), "auth-provider"), (self.impersonated.is_some(), "as")]
        {
            if is_there {
                return Err(unsupported(name));
            }
        }
        let certificate =
            either(folder, self.client_certificate.as_deref(), self.client_certificate_data.as_deref());
        let key = either(folder, self.client_key.as_deref(), self.client_key_data.as_deref());
        let (certificate, key) = match (certificate?, key?) {
            (None, None) => return Ok(None),
            (certificate, key) => (certificate.unwrap_or_default(), key.unwrap_or_default()),
        };
        let identity = Identity::empty();
        identity.replace_pem(&certificate, &key).map_err(|error| error.to_string())?;
        Ok(Some(identity))
    }

    fn authorization(&self, folder: &Path) -> Result<Option<Zeroizing<String>>, String> {
        if let Some(path) = self.token_file.as_deref().filter(|path| !path.as_os_str().is_empty()) {
            return Ok(bearer(&read_text(&folder.join(path))?));
        }
        if let Some(token) = self.token.as_deref().filter(|token| !token.is_empty()) {
            return Ok(bearer(token));
        }
        let Some(username) = self.username.as_deref().filter(|name| !name.is_empty()) else {
            return Ok(None);
        };
        let pair = Zeroizing::new(format!("{username}:{}", self.password.as_deref().unwrap_or_default()));
        let encoded = base64::engine::general_purpose::STANDARD.encode(pair.as_bytes());
        Ok(Some(Zeroizing::new(format!("Basic {encoded}"))))
    }
}

pub(super) fn bearer(token: &str) -> Option<Zeroizing<String>> {
    let token = token.trim();
    (!token.is_empty()).then(|| Zeroizing::new(format!("Bearer {token}")))
}

/// The contents of a file, or data in base64, which counts more.
fn either(
    folder: &Path,
    path: Option<&Path>,
    data: Option<&str>,
) -> Result<Option<Zeroizing<Vec<u8>>>, String> {
    if let Some(data) = data.filter(|data| !data.is_empty()) {
        let decoded = base64::engine::general_purpose::STANDARD.decode(data.trim());
        return decoded
            .map(|bytes| Some(Zeroizing::new(bytes)))
            .map_err(|_| "illegal base64 data".to_owned());
    }
    match path.filter(|path| !path.as_os_str().is_empty()) {
        Some(path) => read(&folder.join(path)).map(Some),
        None => Ok(None),
    }
}

/// Certificates of a text, of which there is at least one.
pub(crate) fn authorities(text: &[u8]) -> Result<Vec<Certificate>, String> {
    pem::certificates(text).map_err(|error| error.to_string())
}

/// The contents of a file, bounded. The error reads like Go's.
pub(crate) fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, String> {
    read_bounded(path, FILE_MAX).map_err(|error| error.to_string())
}

/// As [`read`], of text.
pub(crate) fn read_text(path: &Path) -> Result<Zeroizing<String>, String> {
    let text = read(path)?;
    let text = std::str::from_utf8(&text).map_err(|_| format!("read {}: not text", path.display()))?;
    Ok(Zeroizing::new(text.to_owned()))
}
