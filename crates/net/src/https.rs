//! Bounded requests, for documents such as a trust bundle and for small APIs: over HTTPS, or HTTP through a unix socket.
//!
//! No redirects, no compression, no connection reuse: one request, one answer of bounded size within a
//! deadline.

use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use spire_compat::url::Url;
use spire_core::spiffe::SpiffeId;
use tokio::io::{AsyncRead, AsyncWrite};
use zeroize::Zeroizing;

use crate::tls::{DialError, Proxies, TlsClient, TlsConnector, UnixConnector};

/// Deadline of the whole exchange. The reference has none; a bootstrap that hangs would never be tried again.
const FETCH_TIMEOUT: Duration = Duration::from_secs(30);

/// Largest document. A bundle of a hundred authorities with 4096-bit keys has 300 KiB.
pub const DOCUMENT_SIZE_MAX: usize = 4 << 20;

/// Fetches documents.
#[derive(Debug, Clone)]
pub struct HttpsClient {
    tls: TlsClient,
    unix_socket: Option<PathBuf>,
    public_only: bool,
    proxies: Option<Proxies>,
    plain_http: bool,
    deadline: Duration,
    size_max: usize,
}

/// Why a document could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The URL cannot be used.
    #[error("{url}: {reason}")]
    Url {
        /// As [`redacted`].
        url: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// The server could not be reached, or not trusted. The text is that of Go's `net/http`.
    #[error("Get \"{url}\": {}", source.http_text())]
    Dial {
        /// As [`redacted`].
        url: String,
        /// Why.
        source: DialError,
    },
    /// The connection broke, or what came was no HTTP.
    #[error("Get \"{url}\": {}", http_text(source))]
    Http {
        /// As [`redacted`].
        url: String,
        /// Why.
        source: hyper::Error,
    },
    /// Something else than 200; redirects too, which are never followed.
    #[error("{0}")]
    Status(StatusCode),
    /// The document is larger than so many bytes, [`DOCUMENT_SIZE_MAX`] where nothing else was said.
    #[error("response is larger than {0} bytes")]
    TooLarge(usize),
    /// The body ended early or broke.
    #[error("reading the response: {0}")]
    Body(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The deadline passed.
    #[error("Get \"{0}\": context deadline exceeded")]
    Timeout(String),
}

impl FetchError {
    /// The SPIFFE ID of a server that should have been one of the web and showed an SVID.
    pub fn spiffe_server(&self) -> Option<&SpiffeId> {
        match self {
            Self::Dial { source, .. } => source.spiffe_server(),
            _ => None,
        }
    }
}

/// Go's words; nothing of what the server sent is in them.
fn http_text(error: &hyper::Error) -> String {
    if error.is_incomplete_message() {
        "EOF".to_owned()
    } else if error.is_parse() {
        "net/http: HTTP/1.x transport connection broken: malformed HTTP response".to_owned()
    } else {
        error.to_string()
    }
}

impl HttpsClient {
    /// A client that trusts as `tls` says ([`TlsClient::web`] or [`TlsClient::spiffe_https`]) and dials TCP.
    pub fn new(tls: TlsClient) -> Self {
        Self {
            tls,
            unix_socket: None,
            public_only: false,
            proxies: None,
            plain_http: false,
            deadline: FETCH_TIMEOUT,
            size_max: DOCUMENT_SIZE_MAX,
        }
    }

    /// Dials this unix socket whatever the URL's host is (`trust_bundle_unix_socket`); an `http` URL is
    /// allowed then.
    pub fn over_unix_socket(self, path: impl Into<PathBuf>) -> Self {
        Self { unix_socket: Some(path.into()), ..self }
    }

    /// Refuses servers whose address is not of the public internet, whatever their name says.
    pub fn public_only(self, public_only: bool) -> Self {
        Self { public_only, ..self }
    }

    /// Dials through the proxies that there are for a host.
    pub fn through(self, proxies: Proxies) -> Self {
        Self { proxies: Some(proxies), ..self }
    }

    /// Allows URLs without TLS over TCP, for APIs of this machine and settings that name such a URL.
    pub fn allow_plain_http(self) -> Self {
        Self { plain_http: true, ..self }
    }

    /// Gives the whole exchange another deadline.
    pub fn within(self, deadline: Duration) -> Self {
        Self { deadline, ..self }
    }

    /// Reads documents of other than [`DOCUMENT_SIZE_MAX`] bytes at most.
    pub fn at_most(self, size_max: usize) -> Self {
        Self { size_max, ..self }
    }

    /// The body of a 200 answer.
    ///
    /// # Errors
    /// [`FetchError`] says why there is none.
    pub async fn get(&self, url: &str) -> Result<Bytes, FetchError> {
        let shown = redacted(url);
        let request = |uri: Uri| Request::get(uri).body(Full::default()).ok();
        let request = url.parse().ok().and_then(request);
        let request = request.ok_or_else(|| FetchError::Url { url: shown.clone(), reason: "not a URL" })?;
        Ok(self.bounded(request, &shown, Wanted::Document).await?.into_body())
    }

    /// The answer to any request, whatever its status. The request's URI is an absolute URL.
    ///
    /// # Errors
    /// [`FetchError`] where there is no answer.
    pub async fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, FetchError> {
        let url = redacted(&request.uri().to_string());
        self.bounded(request.map(Full::new), &url, Wanted::Anything).await
    }

    async fn bounded(
        &self,
        request: Request<Full<Bytes>>,
        url: &str,
        wanted: Wanted,
    ) -> Result<Response<Bytes>, FetchError> {
        // Boxed: a TLS handshake takes a lot of the stack.
        tokio::time::timeout(self.deadline, Box::pin(self.fetch(request, url, wanted)))
            .await
            .unwrap_or_else(|_| Err(FetchError::Timeout(url.to_owned())))
    }

    async fn fetch(
        &self,
        request: Request<Full<Bytes>>,
        url: &str,
        wanted: Wanted,
    ) -> Result<Response<Bytes>, FetchError> {
        let bad = |reason| FetchError::Url { url: url.to_owned(), reason };
        let dial_error = |source| FetchError::Dial { url: url.to_owned(), source };
        let uri = request.uri();
        let encrypted = match uri.scheme_str() {
            Some("https") => true,
            Some("http") if self.unix_socket.is_some() || self.plain_http => false,
            Some("http") => return Err(bad("http is only allowed over a unix socket")),
            _ => return Err(bad("unsupported protocol scheme")),
        };
        let host = uri.host().ok_or_else(|| bad("no host"))?.trim_start_matches('[').trim_end_matches(']');
        let size_max = self.size_max;
        match &self.unix_socket {
            None => {
                let port = uri.port_u16().unwrap_or(if encrypted { 443 } else { 80 });
                let connector = TlsConnector::new(self.tls.clone())
                    .public_only(self.public_only)
                    .through(self.proxies.clone());
                if !encrypted {
                    let io = connector.dial_tcp(host.to_owned(), port).await.map_err(dial_error)?;
                    return exchange(io, url, request, wanted, size_max).await;
                }
                let io = connector.dial(host.to_owned(), port).await.map_err(dial_error)?;
                exchange(io, url, request, wanted, size_max).await
            }
            Some(path) => {
                let socket = UnixConnector::new(path).dial().await.map_err(dial_error)?;
                if !encrypted {
                    return exchange(socket, url, request, wanted, size_max).await;
                }
                let name = ServerName::try_from(host.to_owned()).map_err(|_| bad("not a host name"))?;
                let connector = tokio_rustls::TlsConnector::from(self.tls.config());
                let stream = connector.connect(name, socket).await;
                let stream = stream.map_err(|e| dial_error(DialError::Handshake(e)))?;
                exchange(stream, url, request, wanted, size_max).await
            }
        }
    }
}

/// Which answers are read.
#[derive(Clone, Copy)]
enum Wanted {
    /// Only one with the status 200.
    Document,
    /// Each.
    Anything,
}

async fn exchange<S>(
    io: S,
    url: &str,
    mut request: Request<Full<Bytes>>,
    wanted: Wanted,
    size_max: usize,
) -> Result<Response<Bytes>, FetchError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let failed = |source| FetchError::Http { url: url.to_owned(), source };
    let bad = |reason| FetchError::Url { url: url.to_owned(), reason };
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(io)).await.map_err(failed)?;
    let authority = request.uri().authority().map_or("", |authority| authority.as_str());
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let host = HeaderValue::from_str(host).map_err(|_| bad("not a host name"))?;
    let credentials = match authority.rsplit_once('@') {
        Some((user, _)) => Some(basic(user).ok_or_else(|| bad("invalid user info"))?),
        None => None,
    };
    let target = request.uri().path_and_query().map_or("/", |target| target.as_str());
    let target = target.parse().map_err(|_| bad("not a URL"))?;
    *request.uri_mut() = target;
    let headers = request.headers_mut();
    headers.insert(header::HOST, host);
    if let Some(credentials) = credentials {
        headers.entry(header::AUTHORIZATION).or_insert(credentials);
    }
    headers.entry(header::USER_AGENT).or_insert(HeaderValue::from_static("spire"));
    let answer = async {
        let (head, body) = sender.send_request(request).await.map_err(failed)?.into_parts();
        if matches!(wanted, Wanted::Document) && head.status != StatusCode::OK {
            return Err(FetchError::Status(head.status));
        }
        let body = Limited::new(body, size_max).collect().await;
        let body = body.map_err(|error| {
            if error.is::<LengthLimitError>() {
                FetchError::TooLarge(size_max)
            } else {
                FetchError::Body(error)
            }
        })?;
        Ok(Response::from_parts(head, body.to_bytes()))
    };
    // The connection only moves while it is polled; it ends with this function.
    tokio::pin!(answer);
    tokio::select! {
        biased;
        result = &mut answer => result,
        ended = connection => match ended {
            Err(source) => Err(failed(source)),
            // The server closed right after its answer, which may still be in the channel.
            Ok(()) => answer.await,
        },
    }
}

/// A URL for logs and errors: without its password, as Go's errors show it, and without a name that stands alone, which may
/// be a token.
pub fn redacted(url: &str) -> String {
    let start = url.find("//").map_or(0, |slashes| slashes + 2);
    let end = url[start..].find(['/', '?', '#']).map_or(url.len(), |end| start + end);
    let Some((user, host)) = url[start..end].rsplit_once('@') else { return url.to_owned() };
    let name = user.split_once(':').map_or(String::new(), |(name, _)| format!("{name}:"));
    format!("{}{name}***@{host}{}", &url[..start], &url[end..])
}

/// What the name and password of a URL are sent as (net/http: send).
fn basic(user: &str) -> Option<HeaderValue> {
    let (name, password) = Url::parse(&format!("//{user}@")).ok()?.user?;
    let plain = Zeroizing::new(format!("{name}:{}", password.unwrap_or_default()));
    let mut value = HeaderValue::from_str(&format!("Basic {}", STANDARD.encode(&*plain))).ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests;
