//! Which path is which document, as Go's `http.ServeMux` finds it (Go 1.26 src/net/http/server.go: findHandler).

use spire_compat::url::{Url, clean_path, path_escape, unescape};

use crate::domains::split_host_port;

/// The paths of the two documents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Routes {
    prefix: String,
    /// A prefix that does not begin with a slash begins with a host, for the reference's HTTP library.
    host: Option<String>,
    discovery: Vec<String>,
    keys: Vec<String>,
    /// How clients ask for the keys, unless told otherwise.
    keys_path: String,
}

/// What a path leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// `/.well-known/openid-configuration`
    Discovery,
    /// `/keys`
    Keys,
    /// The same path without doubled slashes and dots.
    Redirect(String),
    /// Nothing.
    Unknown,
    /// No path.
    Invalid,
}

impl Routes {
    /// The paths below `server_path_prefix`; an empty one is `/`.
    ///
    /// # Errors
    /// The prefix is no path.
    pub fn new(prefix: &str) -> Result<Self, String> {
        let prefix = if prefix.is_empty() { "/" } else { prefix };
        let discovery = Url::join_path(prefix, "/.well-known/openid-configuration")?;
        let keys = Url::join_path(prefix, "/keys")?;
        if prefix.contains(['{', '}']) {
            // The reference ends with a panic.
            return Err("server_path_prefix must not have braces".to_owned());
        }
        let host = discovery.find('/').filter(|slash| *slash > 0).map(|slash| discovery[..slash].to_owned());
        let segments = |path: &str| {
            let path = &path[path.find('/').unwrap_or_default()..];
            segments(path).ok_or_else(|| format!("invalid path {path:?}"))
        };
        Ok(Self {
            prefix: prefix.to_owned(),
            host,
            discovery: segments(&discovery)?,
            keys: segments(&keys)?,
            keys_path: keys,
        })
    }

    /// The prefix as configured, `/` for none.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// What the path of a request, as it came, leads to.
    pub(crate) fn target(&self, host: &str, path: &str) -> Target {
        if path == self.keys_path {
            return Target::Keys;
        }
        if !path.starts_with('/') {
            return Target::Invalid;
        }
        let decoded = match unescape(path) {
            Ok(decoded) => decoded,
            Err(reason) if reason.starts_with("invalid URL escape") => return Target::Invalid,
            // Not UTF-8, so none of ours.
            Err(_) => return Target::Unknown,
        };
        let canonical = Url { path: decoded, raw_path: path.to_owned(), ..Url::default() };
        let escaped = canonical.escaped_path();
        let clean = cleaned(&escaped);
        if clean != escaped {
            return Target::Redirect(path_escape(&clean));
        }
        if let Some(own) = &self.host {
            let host = split_host_port(host).map_or(host, |(host, _)| host);
            if host != own {
                return Target::Unknown;
            }
        }
        match segments(&clean) {
            Some(asked) if asked == self.keys => Target::Keys,
            Some(asked) if asked == self.discovery => Target::Discovery,
            _ => Target::Unknown,
        }
    }
}

/// net/http's cleanPath: a slash at the end stays.
fn cleaned(path: &str) -> String {
    let mut clean = clean_path(path);
    if path.ends_with('/') && clean != "/" {
        clean.push('/');
    }
    clean
}

fn segments(path: &str) -> Option<Vec<String>> {
    path.split('/').skip(1).map(|segment| unescape(segment).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_found_as_the_reference_finds_them() {
        let routes = Routes::new("").unwrap();
        assert_eq!(routes.prefix(), "/");
        for (path, target) in [
            ("/keys", Target::Keys),
            ("/%6beys", Target::Keys),
            ("/.well-known/openid-configuration", Target::Discovery),
            ("/keys/", Target::Unknown),
            ("/keys%2F", Target::Unknown),
            ("/", Target::Unknown),
            ("/x", Target::Unknown),
            ("/k%zz", Target::Invalid),
            ("/k%ff", Target::Unknown),
            ("", Target::Invalid),
            ("//keys", Target::Redirect("/keys".into())),
            ("/./keys", Target::Redirect("/keys".into())),
            ("/keys/../keys", Target::Redirect("/keys".into())),
            ("/a%2Fb//c", Target::Redirect("/a%252Fb/c".into())),
            ("/a<b>//'", Target::Redirect("/a%253Cb%253E/%2527".into())),
        ] {
            assert_eq!(routes.target("h", path), target, "{path}");
        }
    }

    #[test]
    fn below_a_prefix() {
        for prefix in ["/foo/bar", "/foo/bar/", "/foo//bar"] {
            let routes = Routes::new(prefix).unwrap();
            assert_eq!(routes.target("h", "/foo/bar/keys"), Target::Keys, "{prefix}");
            assert_eq!(routes.target("h", "/keys"), Target::Unknown, "{prefix}");
        }
        let routes = Routes::new("foo/bar").unwrap();
        assert_eq!(routes.target("foo:80", "/bar/keys"), Target::Keys);
        assert_eq!(routes.target("h", "/bar/keys"), Target::Unknown);
        assert!(Routes::new("/%zz").is_err());
        assert!(Routes::new("/{x}").is_err());
    }
}
