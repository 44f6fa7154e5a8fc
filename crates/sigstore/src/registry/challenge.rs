//! What a registry wants to see of us (RFC 9110, section 11.6.1; the parameters are Docker's).

use bytes::Bytes;
use http::{Response, StatusCode, header};

use super::RegistryError;

/// Headers that are looked at, and octets of one; real ones are shorter than 300.
const HEADERS_MAX: usize = 8;
const HEADER_MAX: usize = 4096;

/// An authentication scheme that we know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer { realm: String, service: String },
}

impl Challenge {
    /// What the answer to a request for the API's root asks for; nothing where it was let through.
    pub(super) fn of(answer: &Response<Bytes>) -> Result<Option<Self>, RegistryError> {
        if answer.status() != StatusCode::UNAUTHORIZED {
            return Ok(None);
        }
        let headers = answer.headers().get_all(header::WWW_AUTHENTICATE).iter().take(HEADERS_MAX);
        let mut texts =
            headers.filter_map(|value| value.to_str().ok()).filter(|text| text.len() <= HEADER_MAX);
        let known = texts.find_map(|text| Self::parse(text).transpose());
        known.unwrap_or(Err(RegistryError::Challenge("neither Basic nor Bearer"))).map(Some)
    }

    /// One header; nothing of a scheme that we do not know.
    pub(super) fn parse(text: &str) -> Result<Option<Self>, RegistryError> {
        let (scheme, parameters) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Ok(Some(Self::Basic));
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Ok(None);
        }
        let (mut realm, mut service) = (None, String::new());
        let mut rest = parameters;
        while let Some((name, value, after)) = parameter(rest) {
            if name.eq_ignore_ascii_case("realm") {
                realm = Some(value);
            } else if name.eq_ignore_ascii_case("service") {
                service = value;
            }
            rest = after;
        }
        let realm = realm.ok_or(RegistryError::Challenge("malformed www-authenticate, missing realm"))?;
        Ok(Some(Self::Bearer { realm, service }))
    }
}

/// The first `name=value` or `name="value"`, and what follows it.
fn parameter(text: &str) -> Option<(&str, String, &str)> {
    let text = text.trim_start_matches([' ', '\t', ',']);
    let (name, rest) = text.split_once('=')?;
    let Some(quoted) = rest.strip_prefix('"') else {
        let end = rest.find([',', ' ']).unwrap_or(rest.len());
        return Some((name.trim(), rest[..end].to_owned(), &rest[end..]));
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, char)) = chars.next() {
        match char {
            '"' => return Some((name.trim(), value, &quoted[at + 1..])),
            '\\' => value.push(chars.next()?.1),
            char => value.push(char),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read() {
        let bearer = |realm: &str, service: &str| {
            Some(Some(Challenge::Bearer { realm: realm.to_owned(), service: service.to_owned() }))
        };
        let table = [
            ("Basic realm=\"x\"", Some(Some(Challenge::Basic))),
            ("basic", Some(Some(Challenge::Basic))),
            ("Negotiate", Some(None)),
            ("", Some(None)),
            ("Bearer realm=\"https://a/t\",service=\"s\",scope=\"r:x:pull\"", bearer("https://a/t", "s")),
            ("bearer service=s, realm=\"a\\\"b\"", bearer("a\"b", "s")),
            ("Bearer realm=https://a", bearer("https://a", "")),
            ("Bearer service=\"s\"", None),
            ("Bearer realm=\"open", None),
            ("Bearer realm", None),
        ];
        for (text, expected) in table {
            assert_eq!(Challenge::parse(text).ok(), expected, "{text}");
        }
    }
}
