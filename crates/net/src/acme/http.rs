//! The ACME library's requests, over our own client: bounded, without redirects, on our one TLS stack.

use std::future::Future;
use std::pin::Pin;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use serde_json::Value;

use super::{Acme, AcmeError};
use crate::https::{FetchError, HttpsClient};

/// The library's view of our client.
pub(super) struct Http(pub(super) HttpsClient);

impl HttpClient for Http {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let client = self.0.clone();
        Box::pin(async move {
            let (head, body) = request.into_parts();
            // A body in memory cannot fail.
            let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
            let answer = client.send(Request::from_parts(head, body)).await;
            answer.map(|answer| answer.map(Full::new).into()).map_err(|error| Error::Other(Box::new(error)))
        })
    }
}

impl Acme {
    /// Where the authority's terms of service are, if it has any. The library reads the directory too, but keeps this
    /// to itself.
    pub(super) async fn terms(&self) -> Result<Option<String>, AcmeError> {
        let body = self.http.get(&self.config.directory_url).await.map_err(|error| match error {
            FetchError::Status(StatusCode::NOT_FOUND) => {
                AcmeError::Encoding(format!("no ACME directory at {}", self.config.directory_url))
            }
            other => other.into(),
        })?;
        let directory: Value = serde_json::from_slice(&body).map_err(Error::from)?;
        Ok(directory["meta"]["termsOfService"].as_str().map(str::to_owned))
    }
}
