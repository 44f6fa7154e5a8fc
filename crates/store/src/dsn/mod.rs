//! Connection strings of database servers, read as the reference's drivers read them. Pure: files and the
//! environment are arguments.

use std::fmt;

pub mod libpq;
pub mod mysql;

/// Why a connection string cannot be used; the text is that of the reference's driver. Passwords are not in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct DsnError(String);

impl DsnError {
    fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

/// Result of parsing.
pub type Result<T> = std::result::Result<T, DsnError>;

/// A password, which `Debug` does not show.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Password(String);

impl Password {
    /// The password itself.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<String> for Password {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "none" } else { "hidden" })
    }
}

/// `host:port`, `[v6]:port` in parts; `None` where there is no port or it is unclear (net.SplitHostPort).
fn split_host_port(text: &str) -> Option<(&str, &str)> {
    let (host, port) = text.rsplit_once(':')?;
    let bare = |host: &str| !host.contains(['[', ']']);
    match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(inner) => (bare(inner) && bare(port)).then_some((inner, port)),
        None => (bare(host) && bare(port) && !host.contains(':')).then_some((host, port)),
    }
}

/// A host without the brackets that IPv6 addresses wear in URLs.
fn without_brackets(host: &str) -> &str {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_split_from_hosts() {
        for (text, parts) in [
            ("h:1", Some(("h", "1"))),
            ("h:", Some(("h", ""))),
            (":1", Some(("", "1"))),
            ("[::1]:1", Some(("::1", "1"))),
            ("h", None),
            ("::1", None),
            ("[::1]", None),
            ("[a]b:1", None),
            ("h:1,i:2", None),
        ] {
            assert_eq!(split_host_port(text), parts, "{text}");
        }
    }

    #[test]
    fn passwords_are_not_shown() {
        assert_eq!(format!("{:?}", Password::from("secret".to_owned())), "hidden");
    }
}
