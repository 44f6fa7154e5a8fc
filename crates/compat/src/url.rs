//! URLs as Go's net/url reads and writes them (Go 1.26 src/net/url/url.go).

use crate::quote::quote;

/// A URL in parts, unescaped but for its query.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Url {
    /// In lower case; empty for none.
    pub scheme: String,
    /// What follows the scheme where that is no path: `mailto:a@b`.
    pub opaque: String,
    /// Name and password.
    pub user: Option<(String, Option<String>)>,
    /// Host, and port where there is one.
    pub host: String,
    /// The path.
    pub path: String,
    /// The path as it was written, where that is not how we would write it.
    pub raw_path: String,
    /// As it was written.
    pub query: String,
    /// What follows `#`.
    pub fragment: String,
}

impl Url {
    /// Reads a URL (`url.Parse`). The error is what Go says behind `parse "…": `.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (rest, fragment) = text.split_once('#').unwrap_or((text, ""));
        if rest.bytes().any(|byte| byte < b' ' || byte == 0x7f) {
            return Err("net/url: invalid control character in URL".to_owned());
        }
        let mut url = Self { fragment: unescape(fragment)?, ..Self::default() };
        if rest == "*" {
            url.path = "*".to_owned();
            return Ok(url);
        }
        let (scheme, rest) = scheme(rest)?;
        url.scheme = scheme.to_ascii_lowercase();
        let (mut rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        url.query = query.to_owned();
        if !rest.starts_with('/') {
            if !url.scheme.is_empty() {
                url.opaque = rest.to_owned();
                return Ok(url);
            }
            if rest.split('/').next().is_some_and(|first| first.contains(':')) {
                return Err("first path segment in URL cannot contain colon".to_owned());
            }
        }
        if let Some(after) = rest.strip_prefix("//")
            && (!url.scheme.is_empty() || !rest.starts_with("///"))
        {
            let end = after.find('/').unwrap_or(after.len());
            url.authority(&after[..end])?;
            rest = &after[end..];
        }
        url.set_path(rest)?;
        Ok(url)
    }

    /// Takes an escaped path.
    fn set_path(&mut self, escaped: &str) -> Result<(), String> {
        self.path = unescape(escaped)?;
        self.raw_path =
            if escape(&self.path, PATH_ALSO) == escaped { String::new() } else { escaped.to_owned() };
        Ok(())
    }

    /// The path as it stands in a URL: as it was written where that can be (`URL.EscapedPath`).
    pub fn escaped_path(&self) -> String {
        let may_stand = |c: char| c.is_ascii_alphanumeric() || "-_.~!$&'()*+,;=:@[]/%".contains(c);
        if !self.raw_path.is_empty()
            && self.raw_path.chars().all(may_stand)
            && unescape(&self.raw_path).is_ok_and(|path| path == self.path)
        {
            return self.raw_path.clone();
        }
        if self.path == "*" { "*".to_owned() } else { escape(&self.path, PATH_ALSO) }
    }

    /// `base` with a path below its own (`url.JoinPath`).
    ///
    /// # Errors
    /// `base` is no URL.
    pub fn join_path(base: &str, element: &str) -> Result<String, String> {
        let mut url = Self::parse(base).map_err(|reason| format!("parse {}: {reason}", quote(base)))?;
        let own = url.escaped_path();
        let joined = clean_path(&format!("/{own}/{element}"));
        let mut joined = if own.starts_with('/') { joined } else { joined[1..].to_owned() };
        if element.ends_with('/') && !joined.ends_with('/') {
            joined.push('/');
        }
        url.set_path(&joined)?;
        Ok(url.to_text())
    }

    fn authority(&mut self, text: &str) -> Result<(), String> {
        let (user, host) = match text.rsplit_once('@') {
            Some((user, host)) => (Some(user), host),
            None => (None, text),
        };
        self.host = host_of(host)?;
        if let Some(user) = user {
            let valid = |c: char| c.is_ascii_alphanumeric() || "-._:~!$&'()*+,;=%@".contains(c);
            if !user.chars().all(valid) {
                return Err("net/url: invalid userinfo".to_owned());
            }
            self.user = Some(match user.split_once(':') {
                Some((name, password)) => (unescape(name)?, Some(unescape(password)?)),
                None => (unescape(user)?, None),
            });
        }
        Ok(())
    }

    /// The host without port and brackets (`URL.Hostname`).
    pub fn hostname(&self) -> &str {
        if let Some(inner) = self.host.strip_prefix('[') {
            return inner.split(']').next().unwrap_or_default();
        }
        match self.host.rsplit_once(':') {
            Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
            _ => &self.host,
        }
    }

    /// Name and password as they stand in a URL.
    pub fn userinfo(&self) -> String {
        const ALSO: &str = "$&+,;=";
        match &self.user {
            None => String::new(),
            Some((name, None)) => escape(name, ALSO),
            Some((name, Some(password))) => format!("{}:{}", escape(name, ALSO), escape(password, ALSO)),
        }
    }

    /// The URL as text (`URL.String`).
    pub fn to_text(&self) -> String {
        let mut out = String::new();
        if !self.scheme.is_empty() {
            out.push_str(&self.scheme);
            out.push(':');
        }
        if self.opaque.is_empty() {
            if !self.scheme.is_empty() || !self.host.is_empty() || self.user.is_some() {
                if !self.host.is_empty() || !self.path.is_empty() || self.user.is_some() {
                    out.push_str("//");
                }
                if self.user.is_some() {
                    out.push_str(&self.userinfo());
                    out.push('@');
                }
                out.push_str(&escape(&self.host, "!$&'()*+,;=:[]<>\""));
            }
            let path = self.escaped_path();
            if !path.is_empty() && !path.starts_with('/') && !self.host.is_empty() {
                out.push('/');
            }
            // What has a colon in its first segment would read as a scheme.
            if out.is_empty() && path.split('/').next().is_some_and(|first| first.contains(':')) {
                out.push_str("./");
            }
            out.push_str(&path);
        } else {
            out.push_str(&self.opaque);
        }
        if !self.query.is_empty() {
            out.push('?');
            out.push_str(&self.query);
        }
        if !self.fragment.is_empty() {
            out.push('#');
            out.push_str(&escape(&self.fragment, "$&+,/:;=?@!()*"));
        }
        out
    }
}

/// What a path may hold beside letters, digits and `-_.~`.
const PATH_ALSO: &str = "$&+,/:;=@";

/// An absolute path without `.`, `..` and doubled slashes (`path.Clean`).
pub fn clean_path(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(kept.pop()),
            part => kept.push(part),
        }
    }
    format!("/{}", kept.join("/"))
}

/// A path as it stands in a URL.
pub fn path_escape(path: &str) -> String {
    escape(path, PATH_ALSO)
}

fn scheme(text: &str) -> Result<(&str, &str), String> {
    for (index, c) in text.char_indices() {
        match c {
            'a'..='z' | 'A'..='Z' => {}
            '0'..='9' | '+' | '-' | '.' if index > 0 => {}
            ':' if index == 0 => return Err("missing protocol scheme".to_owned()),
            ':' => return Ok((&text[..index], &text[index + 1..])),
            _ => break,
        }
    }
    Ok(("", text))
}

fn host_of(text: &str) -> Result<String, String> {
    let port = match (text.starts_with('['), text.rfind(']')) {
        (true, None) => return Err("missing ']' in host".to_owned()),
        (true, Some(end)) => &text[end + 1..],
        (false, _) => text.rfind(':').map_or("", |colon| &text[colon..]),
    };
    let digits = port.strip_prefix(':');
    if !port.is_empty() && !digits.is_some_and(|port| port.bytes().all(|byte| byte.is_ascii_digit())) {
        return Err(format!("invalid port {} after host", quote(port)));
    }
    let host = unescape(text)?;
    if text.contains('%') && host.bytes().zip(text.bytes()).any(|(byte, raw)| raw == b'%' && byte < 0x80) {
        let at = text.find('%').unwrap_or(0);
        return Err(format!("invalid URL escape {}", quote(text.get(at..at + 3).unwrap_or_default())));
    }
    match host.chars().find(|c| c.is_ascii() && !is_host(*c)) {
        Some(c) => Err(format!("invalid character {} in host name", quote(&c.to_string()))),
        None => Ok(host),
    }
}

fn is_host(c: char) -> bool {
    c.is_ascii_alphanumeric() || "-_.~!$&'()*+,;=:[]<>\"".contains(c)
}

/// Decodes `%41` (url.PathUnescape).
///
/// # Errors
/// Go's text for an escape that is none; ours for octets that are no UTF-8.
pub fn unescape(text: &str) -> Result<String, String> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        if *byte != b'%' {
            out.push(*byte);
            continue;
        }
        let digits = after.split_at_checked(2).filter(|(digits, _)| digits.iter().all(u8::is_ascii_hexdigit));
        let value = digits.and_then(|(digits, after)| {
            let value = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
            Some((value, after))
        });
        let Some((value, after)) = value else {
            let shown = String::from_utf8_lossy(&after[..after.len().min(2)]);
            return Err(format!("invalid URL escape {}", quote(&format!("%{shown}"))));
        };
        out.push(value);
        rest = after;
    }
    String::from_utf8(out).map_err(|_| "a URL that is not UTF-8 is not built".to_owned())
}

/// Decodes `%41` and `+` (url.QueryUnescape).
///
/// # Errors
/// As [`unescape`].
pub fn unescape_query(text: &str) -> Result<String, String> {
    unescape(&text.replace('+', " "))
}

/// The pairs of a query that can be read, in order; the others are left out (URL.Query).
pub fn query_pairs(query: &str) -> Vec<(String, String)> {
    let readable = query.split('&').filter(|pair| !pair.is_empty() && !pair.contains(';'));
    readable
        .filter_map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            Some((unescape_query(key).ok()?, unescape_query(value).ok()?))
        })
        .collect()
}

fn escape(text: &str, also: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        let c = char::from(byte);
        if c.is_ascii_alphanumeric() || "-_.~".contains(c) || (c.is_ascii() && also.contains(c)) {
            out.push(c);
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_kept_as_written_where_that_can_be() {
        for (text, path) in [
            ("https://h/a%2Fb", "/a%2Fb"),
            ("/a<b>/'", "/a%3Cb%3E/%27"),
            ("/a b", "/a%20b"),
            ("/%6b", "/%6b"),
            ("*", "*"),
        ] {
            assert_eq!(Url::parse(text).unwrap().escaped_path(), path, "{text}");
        }
        assert_eq!(Url::parse("https://h/a%2Fb?x=1#f").unwrap().to_text(), "https://h/a%2Fb?x=1#f");
    }

    #[test]
    fn joins_as_go_does() {
        for (base, element, joined) in [
            ("/", "/keys", "/keys"),
            ("", "keys", "keys"),
            ("/a/", "keys", "/a/keys"),
            ("/a/../b", "keys", "/b/keys"),
            ("a", "/keys", "a/keys"),
            ("/a b", "keys", "/a%20b/keys"),
            ("https://h", "keys", "https://h/keys"),
        ] {
            assert_eq!(Url::join_path(base, element).unwrap(), joined, "{base}");
        }
        assert_eq!(Url::join_path("/%zz", "keys").unwrap_err(), "parse \"/%zz\": invalid URL escape \"%zz\"");
    }

    #[test]
    fn parts_are_told_apart() {
        let url = Url::parse("postgres://u%40:p%20w@[::1]:5432/a%2Fb?x=1&y=%zz&z=a+b&p;q#f").unwrap();
        assert_eq!(url.user, Some(("u@".to_owned(), Some("p w".to_owned()))));
        assert_eq!(
            (
                url.scheme.as_str(),
                url.host.as_str(),
                url.hostname(),
                url.path.as_str(),
                url.fragment.as_str()
            ),
            ("postgres", "[::1]:5432", "::1", "/a/b", "f")
        );
        let pairs = query_pairs(&url.query);
        assert_eq!(pairs, [("x".into(), "1".into()), ("z".into(), "a b".into())]);
    }

    #[test]
    fn what_is_no_url_is_refused() {
        for (text, reason) in [
            ("postgres://%2Ftmp/db", "invalid URL escape \"%2F\""),
            ("postgres://h:1,2/db", "invalid port \":1,2\" after host"),
            ("postgres://u b@h/", "net/url: invalid userinfo"),
            ("postgres://h/%zz", "invalid URL escape \"%zz\""),
            ("postgres://[::1/", "missing ']' in host"),
            ("postgres://a b/", "invalid character \" \" in host name"),
            ("a\nb", "net/url: invalid control character in URL"),
            (":x", "missing protocol scheme"),
        ] {
            assert_eq!(Url::parse(text).unwrap_err(), reason, "{text}");
        }
    }
}
