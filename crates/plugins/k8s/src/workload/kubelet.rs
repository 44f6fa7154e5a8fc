//! The kubelet of this node: one question, which pods it runs (pkg/agent/plugin/workloadattestor/k8s/kubeletclient.go).

use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, header};
use spire_net::https::HttpsClient;
use spire_net::tls::{Identity, ServerTrust, TlsClient, TlsPolicy};

use super::settings::{Credentials, Kubelet, Secure};
use crate::api::{authorities, read, read_text};

/// How long one answer may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Largest list of pods. A node runs some hundreds of pods of 10 to 30 KiB each.
const LIST_MAX: usize = 64 << 20;

/// How much of an error's body is shown, as in the reference.
const SHOWN_MAX: usize = 1024;

/// A kubelet that can be asked. Holds what the files said when it was made.
#[derive(Debug)]
pub(super) struct Client {
    http: HttpsClient,
    url: String,
    authorization: Option<header::HeaderValue>,
}

impl Client {
    /// Reads the files that the settings name. Blocks.
    ///
    /// # Errors
    /// The reference's text: a file that is missing or cannot be used.
    pub(super) fn load(settings: &Kubelet) -> Result<Self, String> {
        let (trust, identity, authorization, url) = match &settings.secure {
            None => {
                // Verification has no part in this.
                (ServerTrust::Anybody, None, None, format!("http://127.0.0.1:{}/pods", settings.port))
            }
            Some(secure) => {
                let host = secure.node_name.as_deref().unwrap_or("127.0.0.1");
                let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
                let trust = trust(secure)?;
                let (identity, authorization) = credentials(&secure.credentials)?;
                let url = format!("https://{host}:{}/pods", settings.port);
                (trust, identity, authorization, url)
            }
        };
        let tls =
            TlsClient::private(trust, identity, TlsPolicy::default()).map_err(|error| error.to_string())?;
        let http = HttpsClient::new(tls).allow_plain_http().within(REQUEST_TIMEOUT).at_most(LIST_MAX);
        Ok(Self { http, url, authorization })
    }

    /// The list of pods, as JSON.
    ///
    /// # Errors
    /// The reference's text: the kubelet cannot be asked or refuses.
    pub(super) async fn pods(&self) -> Result<Bytes, String> {
        let mut request = Request::new(Bytes::new());
        *request.uri_mut() =
            self.url.parse().map_err(|error| format!("unable to create request: {error}"))?;
        if let Some(authorization) = &self.authorization {
            request.headers_mut().insert(header::AUTHORIZATION, authorization.clone());
        }
        let answer =
            self.http.send(request).await.map_err(|error| format!("unable to perform request: {error}"))?;
        if answer.status() != StatusCode::OK {
            let (code, body) = (answer.status().as_u16(), answer.body());
            let shown = String::from_utf8_lossy(&body[..body.len().min(SHOWN_MAX)]);
            return Err(format!("unexpected status code on pods response: {code} {shown}"));
        }
        Ok(answer.into_body())
    }
}

fn trust(secure: &Secure) -> Result<ServerTrust, String> {
    let Some(path) = &secure.ca_path else { return Ok(ServerTrust::Anybody) };
    let text = read(path).map_err(|error| format!("unable to load kubelet CA: {error}"))?;
    let authorities = authorities(&text).map_err(|error| format!("unable to parse kubelet CA: {error}"))?;
    Ok(match secure.node_name {
        Some(_) => ServerTrust::Authorities(authorities),
        // Its certificate is for the node's name, which we do not know.
        None => ServerTrust::AnyNameOf(authorities),
    })
}

type Shown = (Option<std::sync::Arc<Identity>>, Option<header::HeaderValue>);

fn credentials(credentials: &Credentials) -> Result<Shown, String> {
    match credentials {
        Credentials::Anonymous => Ok((None, None)),
        Credentials::Half(error) => Err((*error).to_owned()),
        Credentials::Certificate { certificate, key } => {
            let certificate =
                read(certificate).map_err(|error| format!("unable to load certificate: {error}"))?;
            let key = read(key).map_err(|error| format!("unable to load private key: {error}"))?;
            let identity = Identity::empty();
            identity
                .replace_pem(&certificate, &key)
                .map_err(|error| format!("unable to load keypair: {error}"))?;
            Ok((Some(identity), None))
        }
        Credentials::Token(path) => {
            let token = read_text(path).map_err(|error| format!("unable to load token: {error}"))?;
            let token = token.trim();
            if token.is_empty() {
                return Ok((None, None));
            }
            let mut value = header::HeaderValue::from_str(&format!("Bearer {token}"))
                .map_err(|_| format!("unable to load token: {} has no token", path.display()))?;
            value.set_sensitive(true);
            Ok((None, Some(value)))
        }
    }
}
