//! A bounded GET, for documents such as a trust bundle: over HTTPS, or HTTP through a unix socket.
//!
//! No redirects, no compression, no connection reuse: one request, one answer of bounded size within a
//! deadline.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::tls::{DialError, TlsClient, TlsConnector, UnixConnector};

/// Deadline of the whole exchange. The reference has none; a bootstrap that hangs would never be tried again.
const FETCH_TIMEOUT: Duration = Duration::from_secs(30);

/// Largest document. A bundle of a hundred authorities with 4096-bit keys has 300 KiB.
pub const DOCUMENT_SIZE_MAX: usize = 4 << 20;

/// Fetches documents.
#[derive(Debug, Clone)]
pub struct HttpsClient {
    tls: TlsClient,
    unix_socket: Option<PathBuf>,
}

/// Why a document could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The URL cannot be used.
    #[error("{url}: {reason}")]
    Url {
        /// As given.
        url: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// The server could not be reached, or not trusted.
    #[error("Get \"{url}\": {source}")]
    Dial {
        /// As given.
        url: String,
        /// Why.
        source: DialError,
    },
    /// The connection broke, or what came was no HTTP.
    #[error("Get \"{url}\": {source}")]
    Http {
        /// As given.
        url: String,
        /// Why.
        source: hyper::Error,
    },
    /// Something else than 200; redirects too, which are never followed.
    #[error("{0}")]
    Status(StatusCode),
    /// The document is larger than [`DOCUMENT_SIZE_MAX`].
    #[error("response is larger than {DOCUMENT_SIZE_MAX} bytes")]
    TooLarge,
    /// The body ended early or broke.
    #[error("reading the response: {0}")]
    Body(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The deadline passed.
    #[error("Get \"{0}\": context deadline exceeded")]
    Timeout(String),
}

impl HttpsClient {
    /// A client that trusts as `tls` says ([`TlsClient::web`] or [`TlsClient::spiffe_https`]) and dials TCP.
    pub fn new(tls: TlsClient) -> Self {
        Self { tls, unix_socket: None }
    }

    /// Dials this unix socket whatever the URL's host is (`trust_bundle_unix_socket`); an `http` URL is
    /// allowed then.
    pub fn over_unix_socket(self, path: impl Into<PathBuf>) -> Self {
        Self { unix_socket: Some(path.into()), ..self }
    }

    /// The body of a 200 answer.
    pub async fn get(&self, url: &str) -> Result<Bytes, FetchError> {
        tokio::time::timeout(FETCH_TIMEOUT, self.fetch(url))
            .await
            .unwrap_or_else(|_| Err(FetchError::Timeout(url.to_owned())))
    }

    async fn fetch(&self, url: &str) -> Result<Bytes, FetchError> {
        let bad = |reason| FetchError::Url { url: url.to_owned(), reason };
        let dial_error = |source| FetchError::Dial { url: url.to_owned(), source };
        let uri: Uri = url.parse().map_err(|_| bad("not a URL"))?;
        let encrypted = match uri.scheme_str() {
            Some("https") => true,
            Some("http") if self.unix_socket.is_some() => false,
            Some("http") => return Err(bad("http is only allowed over a unix socket")),
            _ => return Err(bad("unsupported protocol scheme")),
        };
        let host = uri.host().ok_or_else(|| bad("no host"))?.trim_start_matches('[').trim_end_matches(']');
        match &self.unix_socket {
            None => {
                let port = uri.port_u16().unwrap_or(443);
                let dial = TlsConnector::new(self.tls.clone()).dial(host.to_owned(), port);
                exchange(dial.await.map_err(dial_error)?, url, &uri).await
            }
            Some(path) => {
                let socket = UnixConnector::new(path).dial().await.map_err(dial_error)?;
                if !encrypted {
                    return exchange(socket, url, &uri).await;
                }
                let name = ServerName::try_from(host.to_owned()).map_err(|_| bad("not a host name"))?;
                let connector = tokio_rustls::TlsConnector::from(self.tls.config());
                let stream = connector.connect(name, socket).await;
                exchange(stream.map_err(|e| dial_error(DialError::Handshake(e)))?, url, &uri).await
            }
        }
    }
}

async fn exchange<S>(io: S, url: &str, uri: &Uri) -> Result<Bytes, FetchError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let failed = |source| FetchError::Http { url: url.to_owned(), source };
    let bad = |reason| FetchError::Url { url: url.to_owned(), reason };
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(io)).await.map_err(failed)?;
    let target = uri.path_and_query().map_or("/", |target| target.as_str());
    let host = uri.authority().map_or("", |authority| match authority.as_str().rsplit_once('@') {
        Some((_, host)) => host,
        None => authority.as_str(),
    });
    let request = Request::get(target)
        .header(header::HOST, host)
        .header(header::USER_AGENT, "spire")
        .body(Empty::<Bytes>::new())
        .map_err(|_| bad("not a URL"))?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(failed)?;
        if response.status() != StatusCode::OK {
            return Err(FetchError::Status(response.status()));
        }
        let body = Limited::new(response.into_body(), DOCUMENT_SIZE_MAX).collect().await;
        body.map(http_body_util::Collected::to_bytes).map_err(|error| {
            if error.is::<LengthLimitError>() { FetchError::TooLarge } else { FetchError::Body(error) }
        })
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

#[cfg(test)]
mod tests;
