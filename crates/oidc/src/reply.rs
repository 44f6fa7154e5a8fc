//! Answers as Go's `net/http` writes them: the handler's headers in the order of the alphabet, then date and length.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, DATE, HeaderMap, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use http::{Response, StatusCode};
use http_body_util::Full;
use spire_compat::gotime::http_date;
use spire_net::http_server::Answer;

pub(crate) const PLAIN: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
pub(crate) const NOSNIFF: HeaderValue = HeaderValue::from_static("nosniff");

/// Makes answers; it knows the date of this second, which is written once in it.
#[derive(Debug)]
pub(crate) struct Replies(ArcSwap<(u64, HeaderValue)>);

impl Default for Replies {
    fn default() -> Self {
        Self(ArcSwap::from_pointee((0, HeaderValue::from_static("Thu, 01 Jan 1970 00:00:00 GMT"))))
    }
}

impl Replies {
    /// Go's `http.Error`.
    pub(crate) fn error(&self, status: StatusCode, text: &str) -> Answer {
        let mut headers = HeaderMap::with_capacity(4);
        headers.insert(CONTENT_TYPE, PLAIN);
        headers.insert(X_CONTENT_TYPE_OPTIONS, NOSNIFF);
        self.sized(status, headers, format!("{text}\n").into())
    }

    /// With date and length at the end.
    pub(crate) fn sized(&self, status: StatusCode, mut headers: HeaderMap, body: Bytes) -> Answer {
        headers.insert(DATE, self.date());
        headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
        bare(status, headers, body)
    }

    /// With the date at the end, and the length where the handler put it.
    pub(crate) fn dated(&self, status: StatusCode, mut headers: HeaderMap, body: Bytes) -> Answer {
        headers.insert(DATE, self.date());
        bare(status, headers, body)
    }

    fn date(&self) -> HeaderValue {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let known = self.0.load();
        if known.0 == now {
            return known.1.clone();
        }
        let value = header(http_date(i64::try_from(now).unwrap_or_default()));
        self.0.store(Arc::new((now, value.clone())));
        value
    }
}

/// An answer with these headers and no others.
pub(crate) fn bare(status: StatusCode, headers: HeaderMap, body: Bytes) -> Answer {
    let mut answer = Response::new(Full::new(body));
    *answer.status_mut() = status;
    *answer.headers_mut() = headers;
    answer
}

/// A value of characters that may stand in a header, as all that comes here is.
pub(crate) fn header(text: String) -> HeaderValue {
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static(""))
}
