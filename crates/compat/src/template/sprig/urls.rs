//! URLs as dictionaries: sprig's url.go.

use std::collections::BTreeMap;

use super::dicts::entry;
use super::{Outcome, Value};
use crate::quote::quote;
use crate::url::Url;

pub(super) fn parse(args: &[Value]) -> Outcome {
    let text = super::text(args, 0);
    let url =
        Url::parse(text).map_err(|reason| format!("unable to parse url: parse {}: {reason}", quote(text)))?;
    let hostname = url.hostname().to_owned();
    let userinfo = url.userinfo();
    let entries = [
        ("scheme", url.scheme),
        ("host", url.host),
        ("hostname", hostname),
        ("path", url.path),
        ("query", url.query),
        ("opaque", url.opaque),
        ("fragment", url.fragment),
        ("userinfo", userinfo),
    ];
    let entries: BTreeMap<_, _> =
        entries.into_iter().map(|(key, value)| (key.to_owned(), Value::str(value))).collect();
    Ok(Value::dict(entries))
}

pub(super) fn join(args: &[Value]) -> Outcome {
    let part = |key: &str| match entry(&args[0], key) {
        None => Ok(String::new()),
        Some(Value::Str(text)) => Ok(text.to_string()),
        Some(other) => Err(format!(
            "unable to parse {key} key, must be of type string, but {} found",
            other.kind().unwrap_or("invalid")
        )),
    };
    let mut url = Url {
        scheme: part("scheme")?,
        opaque: part("opaque")?,
        user: None,
        host: part("host")?,
        path: part("path")?,
        raw_path: String::new(),
        query: part("query")?,
        fragment: part("fragment")?,
    };
    let userinfo = part("userinfo")?;
    if !userinfo.is_empty() {
        let text = format!("proto://{userinfo}@host");
        url.user = Url::parse(&text)
            .map_err(|reason| format!("unable to parse userinfo in dict: parse {}: {reason}", quote(&text)))?
            .user;
    }
    Ok(Value::str(url.to_text()))
}
