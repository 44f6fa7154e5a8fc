//! PostgreSQL connection strings, `host=h user=u …` or `postgres://u:p@h/db?…`, as github.com/lib/pq v1.12 reads them
//! (its connector.go): with the environment variables of libpq below them, and a service file above.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use spire_compat::quote::quote;
use spire_compat::url::{Url, query_pairs};

use super::{DsnError, Password, Result, split_host_port, without_brackets};

mod files;
mod settings;

pub use files::password_of;
use settings::{Draft, Origin};

/// Where the server listens, unless the string says.
const PORT: u16 = 5432;

/// What a connection string asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionString {
    /// Where to, in the order in which they are tried; at least one.
    pub hosts: Vec<Host>,
    /// Whether to try them in any order (`load_balance_hosts=random`).
    pub shuffled: bool,
    /// `dbname`; empty is the server's default, which is the user's name.
    pub database: String,
    /// `user`
    pub user: String,
    /// `password`
    pub password: Password,
    /// `passfile`: where to look for the password if there is none. Empty is `.pgpass` in the home directory.
    pub passfile: String,
    /// `options`: arguments of the backend.
    pub options: String,
    /// `application_name`, or the fallback for it.
    pub application_name: String,
    /// How the connection is protected.
    pub ssl: Ssl,
    /// `connect_timeout`
    pub connect_timeout: Option<Duration>,
    /// `target_session_attrs`
    pub target: Target,
    /// `min_protocol_version`: `3.0`, `3.2` or `latest`.
    pub protocol_min: String,
    /// What the string says beyond: run-time parameters for the start of the session.
    pub parameters: BTreeMap<String, String>,
}

/// A server to try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// A name, an address without brackets, or the folder of a unix socket.
    pub name: String,
    /// `hostaddr`: the address to use instead of asking for that of the name.
    pub address: Option<IpAddr>,
    /// The port.
    pub port: u16,
}

impl Host {
    /// The unix socket, where the name is a folder or an abstract one.
    pub fn socket(&self) -> Option<String> {
        let is_socket = self.address.is_none() && self.name.starts_with(['/', '@']);
        is_socket.then(|| format!("{}/.s.PGSQL.{}", self.name.trim_end_matches('/'), self.port))
    }
}

/// How a connection is protected.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Ssl {
    /// `sslmode`
    pub mode: SslMode,
    /// `sslnegotiation=direct`: TLS without asking for it first.
    pub direct: bool,
    /// `sslcert`: a file, or PEM itself where [`Ssl::inline`] says so. Empty is the file in the home directory.
    pub certificate: String,
    /// `sslkey`, likewise.
    pub key: String,
    /// `sslrootcert`, likewise; `system` stands for the roots of the system.
    pub root: String,
    /// `sslinline`
    pub inline: bool,
    /// `sslsni`: whether the name of the host is sent.
    pub sni: bool,
    /// `ssl_min_protocol_version`, such as `TLSv1.2`; may be empty.
    pub version_min: String,
    /// `ssl_max_protocol_version`; may be empty.
    pub version_max: String,
}

impl fmt::Debug for Ssl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Keys may be in it.
        let inline = |text: &str| if self.inline { "inline".to_owned() } else { text.to_owned() };
        f.debug_struct("Ssl")
            .field("mode", &self.mode)
            .field("direct", &self.direct)
            .field("certificate", &inline(&self.certificate))
            .field("key", &inline(&self.key))
            .field("root", &inline(&self.root))
            .field("sni", &self.sni)
            .field("version_min", &self.version_min)
            .field("version_max", &self.version_max)
            .finish()
    }
}

/// `sslmode`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SslMode {
    /// Never TLS.
    Disable,
    /// TLS where the server wants nothing else.
    Allow,
    /// TLS where the server has it.
    Prefer,
    /// TLS, with the server's certificate verified only where a root is named or lies in the home directory.
    #[default]
    Require,
    /// TLS with a certificate of a known authority.
    VerifyCa,
    /// TLS with such a certificate for the name of the host.
    VerifyFull,
}

/// `target_session_attrs`: which server of several will do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the value of that name")]
pub enum Target {
    #[default]
    Any,
    ReadWrite,
    ReadOnly,
    Primary,
    Standby,
    PreferStandby,
}

/// What surrounds a program, as far as a connection string depends on it.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// Environment variables.
    pub variables: Vec<(String, String)>,
    /// The name of the user whom the process runs as, where `USER` does not say.
    pub account: String,
}

impl Surroundings {
    fn variable(&self, name: &str) -> Option<&str> {
        self.variables.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// A file of that name in the home directory.
    fn in_home(&self, name: &str) -> Option<String> {
        let home = self.variable("HOME").filter(|home| !home.is_empty())?;
        Some(format!("{}/{name}", home.trim_end_matches('/')))
    }
}

impl ConnectionString {
    /// Parses a connection string. `read` reads the service file, if one is asked for; what it fails with goes into
    /// the error.
    ///
    /// # Errors
    /// The driver's text.
    pub fn parse(
        text: &str,
        around: &Surroundings,
        read: impl FnOnce(&str) -> std::io::Result<String>,
    ) -> Result<Self> {
        let mut draft = Draft::default();
        draft.apply_environment(around)?;
        let is_url = text.starts_with("postgres://") || text.starts_with("postgresql://");
        let options = if is_url { pairs(&of_url(text)?)? } else { pairs(text)? };
        draft.apply(options, Origin::Text)?;
        if !draft.service.is_empty() {
            let options = files::service(&draft, around, read)?;
            draft.apply(options, Origin::Service)?;
        }
        draft.finish(around)
    }
}

/// `key=value` pairs by the rules of libpq: blanks around the equals sign, values in single quotes, backslashes that
/// make the next character an ordinary one. The last of several with one key counts.
fn pairs(text: &str) -> Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let end = rest.find(|c: char| c == '=' || c.is_whitespace()).unwrap_or(rest.len());
        let (key, after) = rest.split_at(end);
        let Some(after) = after.trim_start().strip_prefix('=') else {
            return Err(DsnError::new(format!(
                "missing \"=\" after {} in connection info string",
                quote(key)
            )));
        };
        let (value, after) = value(after.trim_start())?;
        found.insert(key.to_owned(), value);
        rest = after.trim_start();
    }
    Ok(found)
}

/// The value at the beginning of a text, and what follows it.
fn value(text: &str) -> Result<(String, &str)> {
    let quoted = text.strip_prefix('\'');
    let text = quoted.unwrap_or(text);
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '\'' if quoted.is_some() => return Ok((value, &text[at + 1..])),
            c if quoted.is_none() && c.is_whitespace() => return Ok((value, &text[at..])),
            '\\' => match characters.next() {
                Some((_, escaped)) => value.push(escaped),
                None if quoted.is_some() => {}
                None => return Err(DsnError::new("missing character after backslash")),
            },
            c => value.push(c),
        }
    }
    match quoted {
        Some(_) => Err(DsnError::new("unterminated quoted string literal in connection string")),
        None => Ok((value, "")),
    }
}

/// A URL as pairs.
fn of_url(text: &str) -> Result<String> {
    let url = Url::parse(text).map_err(|reason| {
        DsnError::new(format!("parse {}: {}", quote(&masked(text)), without_secret(&reason)))
    })?;
    let mut parts: Vec<String> = Vec::new();
    let mut add = |key: &str, value: &str| {
        if !value.is_empty() {
            parts.push(format!("{key}='{}'", value.replace('\\', "\\\\").replace('\'', "\\'")));
        }
    };
    if let Some((user, password)) = &url.user {
        add("user", user);
        add("password", password.as_deref().unwrap_or_default());
    }
    match split_host_port(&url.host) {
        Some((host, port)) => {
            add("host", host);
            add("port", port);
        }
        None => add("host", without_brackets(&url.host)),
    }
    add("dbname", url.path.strip_prefix('/').unwrap_or_default());
    let mut seen: Vec<String> = Vec::new();
    for (key, value) in query_pairs(&url.query) {
        // The first of several values counts.
        if !seen.contains(&key) {
            add(&key, &value);
            seen.push(key);
        }
    }
    parts.sort();
    Ok(parts.join(" "))
}

/// A URL of which nothing is shown that may belong to a password.
fn masked(text: &str) -> String {
    match text.split_once("://") {
        Some((scheme, rest)) if rest.contains('@') => format!("{scheme}://xxxxx"),
        _ => text.split('?').next().unwrap_or_default().to_owned(),
    }
}

/// Go's reasons quote what they found, which may be a piece of a password that holds a `/`, `?` or `#`.
fn without_secret(reason: &str) -> &str {
    for kind in ["invalid port", "invalid URL escape", "invalid character"] {
        if reason.starts_with(kind) {
            return kind;
        }
    }
    reason
}

#[cfg(test)]
mod tests;
