//! Requests and answers, byte for byte as the reference's (support/oidc-discovery-provider/handler.go on Go's `net/http`):
//! statuses, bodies, and headers in its order, which is that of the alphabet for the handler's and then date and length.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;

use bytes::Bytes;
use http::header::{
    ACCEPT_RANGES, ACCESS_CONTROL_ALLOW_ORIGIN, CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, CONTENT_RANGE,
    CONTENT_TYPE, EXPECT, EXPIRES, FORWARDED, HOST, HeaderName, HeaderValue, LAST_MODIFIED, LOCATION, PRAGMA,
    USER_AGENT, X_CONTENT_TYPE_OPTIONS,
};
use http::request::Parts;
use http::{HeaderMap, Method, StatusCode, Version};
use hyper::ext::ReasonPhrase;
use spire_compat::gotime::http_date;
use spire_net::http_server::{Answer, Client};

use crate::config::Documents;
use crate::content::{self, Part};
use crate::document::{KeySet, discovery};
use crate::reply::{NOSNIFF, PLAIN, Replies, bare, header};
use crate::routes::Target;
use crate::source::Keys;

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const ANYBODY: HeaderValue = HeaderValue::from_static("*");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_SCHEME: HeaderName = HeaderName::from_static("x-forwarded-scheme");

/// Answers the requests of one provider.
#[derive(Debug)]
pub struct Service {
    documents: Documents,
    keys: Arc<Keys>,
    log_requests: bool,
    replies: Replies,
}

impl Service {
    /// Serves these keys.
    pub fn new(documents: Documents, keys: Arc<Keys>, log_requests: bool) -> Self {
        Self { documents, keys, log_requests, replies: Replies::default() }
    }

    /// The answer to a request, whose body is not looked at.
    pub fn answer(&self, head: &Parts, client: Client) -> Answer {
        let host = match host(head) {
            Ok(host) => host,
            Err(reason) => return self.bad_request(reason),
        };
        if head.uri.path() == "*" {
            return self.server_wide(head);
        }
        let target = self.documents.routes.target(host, head.uri.path());
        if first(&head.headers, &EXPECT).is_some_and(|text| !text.eq_ignore_ascii_case("100-continue")) {
            let mut headers = HeaderMap::with_capacity(3);
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
            return self.replies.sized(StatusCode::EXPECTATION_FAILED, headers, Bytes::new());
        }
        if self.log_requests {
            log(head, client);
        }
        match target {
            Target::Invalid => self.bad_request("400 Bad Request"),
            Target::Redirect(path) => self.redirect(head, path),
            Target::Unknown => self.replies.error(StatusCode::NOT_FOUND, "404 page not found"),
            Target::Keys | Target::Discovery if head.method != Method::GET => {
                self.replies.error(StatusCode::METHOD_NOT_ALLOWED, "method not allowed")
            }
            Target::Keys => self.keys(head),
            Target::Discovery => self.discovery(head, host, client),
        }
    }

    fn discovery(&self, head: &Parts, host: &str, client: Client) -> Answer {
        let forwarded = first(&head.headers, &X_FORWARDED_HOST);
        let host = forwarded.as_deref().unwrap_or(host);
        let scheme = forwarded_scheme(&head.headers);
        let is_https = match &scheme {
            Some(scheme) => scheme == "https",
            None => head.version < Version::HTTP_2 && head.uri.scheme_str() == Some("https"),
        };
        let insecure = self.documents.allow_insecure_scheme && !client.is_tls && !is_https;
        let document = match discovery(&self.documents, if insecure { "http" } else { "https" }, host) {
            Ok(document) => document,
            Err(error) => return self.replies.error(StatusCode::INTERNAL_SERVER_ERROR, &error),
        };
        // Whatever the document would say: a setting that takes the place of the host must not take away this look at it.
        if let Err(error) = self.documents.domains.verify(host) {
            return self.replies.error(StatusCode::BAD_REQUEST, &error.to_string());
        }
        let mut headers = HeaderMap::with_capacity(4);
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, ANYBODY);
        headers.insert(CONTENT_TYPE, JSON);
        self.replies.sized(StatusCode::OK, headers, document.into())
    }

    fn keys(&self, head: &Parts) -> Answer {
        let Some(served) = self.keys.load() else {
            return self.replies.error(StatusCode::INTERNAL_SERVER_ERROR, "document not available");
        };
        let set = &served.set;
        if set.len == 0 {
            let text = "jwt not supported/enabled in this service";
            return self.replies.error(StatusCode::NOT_IMPLEMENTED, text);
        }
        match content::part(&head.headers, set.modified, set.body.len()) {
            Part::Whole => self.replies.dated(StatusCode::OK, served.headers.clone(), set.body.clone()),
            Part::Range(start, length) => {
                let range = Some(content_range(start, length, set.body.len()));
                let headers = keys_headers(set, &JSON, length, range);
                self.replies.dated(
                    StatusCode::PARTIAL_CONTENT,
                    headers,
                    set.body.slice(start..start + length),
                )
            }
            Part::Ranges(ranges) => self.many_parts(set, &ranges),
            Part::NotModified => {
                let mut headers = unconditional_headers(set);
                headers.remove(CONTENT_TYPE);
                self.replies.dated(StatusCode::NOT_MODIFIED, in_order(headers), Bytes::new())
            }
            Part::PreconditionFailed => {
                let headers = unconditional_headers(set);
                self.replies.sized(StatusCode::PRECONDITION_FAILED, headers, Bytes::new())
            }
            Part::InvalidRange => self.bad_range("invalid range", None),
            Part::NoOverlap => {
                let range = header(format!("bytes */{}", set.body.len()));
                self.bad_range("invalid range: failed to overlap", Some(range))
            }
        }
    }

    /// multipart/byteranges (RFC 9110, section 14.6)
    fn many_parts(&self, set: &KeySet, ranges: &[(usize, usize)]) -> Answer {
        let boundary = boundary();
        let mut body = Vec::new();
        for (i, (start, length)) in ranges.iter().enumerate() {
            let line_break = if i == 0 { "" } else { "\r\n" };
            let last = (start + length).saturating_sub(1);
            let head = format!(
                "{line_break}--{boundary}\r\nContent-Range: bytes {start}-{last}/{}\r\nContent-Type: application/json\r\n\r\n",
                set.body.len()
            );
            body.extend_from_slice(head.as_bytes());
            body.extend_from_slice(&set.body[*start..start + length]);
        }
        body.extend_from_slice(format!("\r\n--{boundary}--\r\n").as_bytes());
        let kind = header(format!("multipart/byteranges; boundary={boundary}"));
        let headers = keys_headers(set, &kind, body.len(), None);
        self.replies.dated(StatusCode::PARTIAL_CONTENT, headers, body.into())
    }

    fn bad_range(&self, text: &str, range: Option<HeaderValue>) -> Answer {
        let mut headers = HeaderMap::new();
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, ANYBODY);
        if let Some(range) = range {
            headers.insert(CONTENT_RANGE, range);
        }
        headers.insert(CONTENT_TYPE, PLAIN);
        headers.insert(EXPIRES, HeaderValue::from_static("0"));
        headers.insert(PRAGMA, HeaderValue::from_static("no-cache"));
        headers.insert(X_CONTENT_TYPE_OPTIONS, NOSNIFF);
        let mut answer =
            self.replies.sized(StatusCode::RANGE_NOT_SATISFIABLE, headers, format!("{text}\n").into());
        // As Go calls it, and HTTP did before 2014.
        let phrase = ReasonPhrase::from_static(b"Requested Range Not Satisfiable");
        answer.extensions_mut().insert(phrase);
        answer
    }

    /// Go's `http.Redirect` for the paths that the multiplexer cleans.
    fn redirect(&self, head: &Parts, mut path: String) -> Answer {
        if let Some(query) = head.uri.query() {
            path.push('?');
            path.push_str(query);
        }
        let is_get = head.method == Method::GET;
        let mut headers = HeaderMap::with_capacity(4);
        if is_get || head.method == Method::HEAD {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
        }
        let body = match is_get {
            true => format!("<a href=\"{}\">Temporary Redirect</a>.\n\n", html_escaped(&path)),
            false => String::new(),
        };
        headers.insert(LOCATION, header(path));
        self.replies.sized(StatusCode::TEMPORARY_REDIRECT, headers, body.into())
    }

    /// A request for the server and not for a path.
    fn server_wide(&self, head: &Parts) -> Answer {
        let mut headers = HeaderMap::with_capacity(3);
        if head.method == Method::OPTIONS {
            headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
            return self.replies.dated(StatusCode::OK, headers, Bytes::new());
        }
        if head.version > Version::HTTP_10 {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        self.replies.sized(StatusCode::BAD_REQUEST, headers, Bytes::new())
    }

    /// What Go's server answers before a handler is asked.
    fn bad_request(&self, reason: &'static str) -> Answer {
        let mut headers = HeaderMap::with_capacity(4);
        headers.insert(CONTENT_TYPE, PLAIN);
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
        let mut answer = bare(StatusCode::BAD_REQUEST, headers, Bytes::from_static(reason.as_bytes()));
        if let Some(phrase) = reason.strip_prefix("400 ") {
            answer.extensions_mut().insert(ReasonPhrase::from_static(phrase.as_bytes()));
        }
        answer
    }
}

/// The headers of the keys as a whole, without the date.
pub(crate) fn whole_headers(set: &KeySet) -> HeaderMap {
    keys_headers(set, &JSON, set.body.len(), None)
}

fn keys_headers(set: &KeySet, kind: &HeaderValue, length: usize, range: Option<HeaderValue>) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(12);
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, ANYBODY);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, no-store, must-revalidate"));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    if let Some(range) = range {
        headers.insert(CONTENT_RANGE, range);
    }
    headers.insert(CONTENT_TYPE, kind.clone());
    headers.insert(EXPIRES, HeaderValue::from_static("0"));
    headers.insert(LAST_MODIFIED, header(http_date(set.modified.unix())));
    headers.insert(PRAGMA, HeaderValue::from_static("no-cache"));
    headers
}

/// The headers where nothing of the document is sent.
fn unconditional_headers(set: &KeySet) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(8);
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, ANYBODY);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, no-store, must-revalidate"));
    headers.insert(CONTENT_TYPE, JSON);
    headers.insert(EXPIRES, HeaderValue::from_static("0"));
    headers.insert(LAST_MODIFIED, header(http_date(set.modified.unix())));
    headers.insert(PRAGMA, HeaderValue::from_static("no-cache"));
    headers
}

/// What was removed left its place to the last.
fn in_order(headers: HeaderMap) -> HeaderMap {
    let mut sorted: Vec<(HeaderName, HeaderValue)> =
        headers.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
    sorted.sort_by(|a, b| a.0.as_str().cmp(b.0.as_str()));
    sorted.into_iter().collect()
}

fn content_range(start: usize, length: usize, size: usize) -> HeaderValue {
    header(format!("bytes {start}-{}/{size}", (start + length).saturating_sub(1)))
}

/// 60 hexadecimal digits that nobody can foresee; the document has no line like it.
fn boundary() -> String {
    let digits: String =
        (0..4).map(|_| format!("{:016x}", RandomState::new().build_hasher().finish())).collect();
    digits[..60].to_owned()
}

/// The host that a request is for, as Go's `Request.Host`: that of the request line where there is one.
fn host(head: &Parts) -> Result<&str, &'static str> {
    let mut hosts = head.headers.get_all(HOST).into_iter();
    let named = match (hosts.next(), hosts.next()) {
        (None, _) if head.version == Version::HTTP_11 && head.method != Method::CONNECT => {
            return Err("400 Bad Request: missing required Host header");
        }
        (None, _) => "",
        (Some(_), Some(_)) => return Err("400 Bad Request"),
        (Some(host), None) => match host.to_str() {
            Ok(host) if host.bytes().all(is_host_byte) => host,
            _ => return Err("400 Bad Request: malformed Host header"),
        },
    };
    Ok(head.uri.authority().map_or(named, |authority| {
        let text = authority.as_str();
        text.rsplit_once('@').map_or(text, |(_, host)| host)
    }))
}

/// golang.org/x/net/http/httpguts: validHostByte
fn is_host_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!$%&'()*+,-.:;=[]_~".contains(&byte)
}

/// github.com/gorilla/handlers: getScheme
fn forwarded_scheme(headers: &HeaderMap) -> Option<String> {
    for name in [X_FORWARDED_PROTO, X_FORWARDED_SCHEME] {
        if let Some(scheme) = first(headers, &name) {
            return Some(scheme.to_lowercase());
        }
    }
    let forwarded = first(headers, &FORWARDED)?.to_ascii_lowercase();
    forwarded.match_indices("proto=").find_map(|(at, found)| {
        let rest = &forwarded[at + found.len()..];
        ["https", "http"].into_iter().find(|scheme| rest.starts_with(scheme)).map(str::to_owned)
    })
}

/// The first value of a header; an empty one counts as none.
fn first(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    let value = headers.get(name)?.as_bytes();
    (!value.is_empty()).then(|| String::from_utf8_lossy(value).into_owned())
}

/// net/http's htmlEscape
fn html_escaped(text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    text.replace('"', "&#34;").replace('\'', "&#39;")
}

fn log(head: &Parts, client: Client) {
    let remote = match client.address {
        Some(address) => address.to_string(),
        // What Go calls a client of a unix socket without a name of its own.
        None => "@".to_owned(),
    };
    tracing::debug!(
        method = head.method.as_str(),
        "remote-addr" = remote,
        url = %head.uri,
        "user-agent" = first(&head.headers, &USER_AGENT).unwrap_or_default(),
        "Incoming request"
    );
}

#[cfg(test)]
mod tests;
