//! MySQL connection strings, `user:password@net(address)/database?parseTime=true`, as
//! github.com/go-sql-driver/mysql v1.10 reads them (its dsn.go).

use std::collections::BTreeMap;
use std::time::Duration;

use spire_compat::duration::GoDuration;
use spire_compat::quote::quote;
use spire_compat::url::{unescape, unescape_query};

use super::{DsnError, Password, Result, split_host_port, without_brackets};

/// What a connection may read at once, unless the string says: the driver's 64 MiB.
const MAX_ALLOWED_PACKET: u32 = 64 << 20;

/// Where the server listens, unless the string says.
const PORT: u16 = 3306;

/// Collations in which an octet of a character may look like a quote (collations.go).
const UNSAFE_COLLATIONS: [&str; 12] = [
    "big5_bin",
    "big5_chinese_ci",
    "cp932_bin",
    "cp932_japanese_ci",
    "gb18030_bin",
    "gb18030_chinese_ci",
    "gb18030_unicode_520_ci",
    "gb2312_bin",
    "gbk_bin",
    "gbk_chinese_ci",
    "sjis_bin",
    "sjis_japanese_ci",
];

/// A connection string in parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dsn {
    /// Who connects.
    pub user: String,
    /// With what.
    pub password: Password,
    /// Where to.
    pub address: Address,
    /// The database.
    pub database: String,
    /// `tls`
    pub tls: Tls,
    /// `allowFallbackToPlaintext`, and implied by `tls=preferred`.
    pub fallback_to_plaintext: bool,
    /// `allowCleartextPasswords`
    pub cleartext_passwords: bool,
    /// `allowNativePasswords`
    pub native_passwords: bool,
    /// `charset`: the first that the server knows is taken.
    pub charsets: Vec<String>,
    /// `collation`
    pub collation: String,
    /// `compress`
    pub compress: bool,
    /// `connectionAttributes`, as `key:value,…`
    pub connection_attributes: String,
    /// `parseTime`, which the reference insists on.
    pub parse_time: bool,
    /// `rejectReadOnly`: a connection whose server became read-only is given up.
    pub reject_read_only: bool,
    /// `timeout`: of connecting.
    pub connect_timeout: Option<Duration>,
    /// `readTimeout`
    pub read_timeout: Option<Duration>,
    /// `writeTimeout`
    pub write_timeout: Option<Duration>,
    /// `maxAllowedPacket` in octets; zero asks the server.
    pub max_allowed_packet: u32,
    /// `loc`: the zone in which times are stored. Empty is UTC.
    pub location: String,
    /// `serverPubKey`, a name that programs may register and the reference does not.
    pub server_public_key: String,
    /// Whatever else: system variables with the expressions that they are set to.
    pub variables: BTreeMap<String, String>,
}

/// Where a server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// `tcp(host:port)`, also `tcp4` and `tcp6`, which the addresses of the host must be then.
    Tcp {
        /// A name or an address without brackets.
        host: String,
        /// The port.
        port: u16,
        /// Which addresses count.
        family: Family,
    },
    /// `unix(path)`
    Unix(String),
    /// A network of a dialler that is not built, such as `cloudsql`, with its address.
    Other(String, String),
}

/// A family of IP addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Either.
    Any,
    /// IPv4
    V4,
    /// IPv6
    V6,
}

/// How a connection is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tls {
    /// Not at all.
    Off,
    /// With the server's certificate verified.
    Verify,
    /// Without a look at the server's certificate.
    SkipVerify,
}

impl Dsn {
    /// Parses a connection string.
    ///
    /// # Errors
    /// The driver's text, or ours for what only fails later there.
    pub fn parse(text: &str) -> Result<Self> {
        let mut draft = Draft::default();
        // The last slash, since a password or the path of a socket may have others.
        match text.rsplit_once('/') {
            Some((left, right)) => {
                draft.authority(left)?;
                let (database, parameters) = right.split_once('?').unwrap_or((right, ""));
                draft.parameters(parameters)?;
                draft.dsn.database = unescape(database)
                    .map_err(|why| DsnError::new(format!("invalid dbname {}: {why}", quote(database))))?;
            }
            None if text.is_empty() => {}
            None => {
                return Err(DsnError::new("invalid DSN: missing the slash separating the database name"));
            }
        }
        draft.finish()
    }
}

/// What is known of a string whose parts depend on each other.
struct Draft {
    dsn: Dsn,
    network: String,
    address: String,
    tls: String,
    interpolate: bool,
}

impl Default for Draft {
    fn default() -> Self {
        Self {
            dsn: Dsn {
                user: String::new(),
                password: Password::default(),
                address: Address::Unix(String::new()),
                database: String::new(),
                tls: Tls::Off,
                fallback_to_plaintext: false,
                cleartext_passwords: false,
                native_passwords: true,
                charsets: Vec::new(),
                collation: String::new(),
                compress: false,
                connection_attributes: String::new(),
                parse_time: false,
                reject_read_only: false,
                connect_timeout: None,
                read_timeout: None,
                write_timeout: None,
                max_allowed_packet: MAX_ALLOWED_PACKET,
                location: String::new(),
                server_public_key: String::new(),
                variables: BTreeMap::new(),
            },
            network: String::new(),
            address: String::new(),
            tls: String::new(),
            interpolate: false,
        }
    }
}

impl Draft {
    /// `user:password@net(address)`
    fn authority(&mut self, text: &str) -> Result<()> {
        let place = match text.rsplit_once('@') {
            Some((who, place)) => {
                let (user, password) = who.split_once(':').unwrap_or((who, ""));
                user.clone_into(&mut self.dsn.user);
                self.dsn.password = Password::from(password.to_owned());
                place
            }
            None => text,
        };
        match place.split_once('(') {
            None => place.clone_into(&mut self.network),
            Some((network, address)) => {
                let Some(address) = address.strip_suffix(')') else {
                    return Err(DsnError::new(if address.contains(')') {
                        "invalid DSN: did you forget to escape a param value?"
                    } else {
                        "invalid DSN: network address not terminated (missing closing brace)"
                    }));
                };
                network.clone_into(&mut self.network);
                address.clone_into(&mut self.address);
            }
        }
        Ok(())
    }

    fn parameters(&mut self, text: &str) -> Result<()> {
        for (key, value) in text.split('&').filter_map(|pair| pair.split_once('=')) {
            self.parameter(key, value)?;
        }
        Ok(())
    }

    fn parameter(&mut self, key: &str, value: &str) -> Result<()> {
        let dsn = &mut self.dsn;
        match key {
            "allowCleartextPasswords" => dsn.cleartext_passwords = flag(value)?,
            "allowFallbackToPlaintext" => dsn.fallback_to_plaintext = flag(value)?,
            "allowNativePasswords" => dsn.native_passwords = flag(value)?,
            "compress" => dsn.compress = flag(value)?,
            "interpolateParams" => self.interpolate = flag(value)?,
            "parseTime" => dsn.parse_time = flag(value)?,
            "rejectReadOnly" => dsn.reject_read_only = flag(value)?,
            // They change how results look or what other programs could do, which is nothing here.
            "allowAllFiles" | "allowOldPasswords" | "checkConnLiveness" | "clientFoundRows"
            | "columnsWithAlias" | "multiStatements" => {
                flag(value)?;
            }
            "charset" => dsn.charsets = value.split(',').map(str::to_owned).collect(),
            "collation" => value.clone_into(&mut dsn.collation),
            "loc" => dsn.location = decoded(value)?,
            // Times here have whole seconds or microseconds as the columns do.
            "timeTruncate" => {
                duration(value).map_err(|why| {
                    DsnError::new(format!("invalid timeTruncate value: {value}, error: {why}"))
                })?;
            }
            "timeout" => dsn.connect_timeout = duration(value)?,
            "readTimeout" => dsn.read_timeout = duration(value)?,
            "writeTimeout" => dsn.write_timeout = duration(value)?,
            "serverPubKey" => {
                dsn.server_public_key = unescape_query(value)
                    .map_err(|why| DsnError::new(format!("invalid value for server pub key name: {why}")))?;
            }
            "strict" => {
                return Err(DsnError::new(
                    "strict mode has been removed. See https://github.com/go-sql-driver/mysql/wiki/strict-mode",
                ));
            }
            "tls" => self.tls = tls_name(value)?,
            "maxAllowedPacket" => dsn.max_allowed_packet = packet(value)?,
            "connectionAttributes" => {
                dsn.connection_attributes = unescape_query(value)
                    .map_err(|why| DsnError::new(format!("invalid connectionAttributes value: {why}")))?;
            }
            _ => {
                dsn.variables.insert(key.to_owned(), decoded(value)?);
            }
        }
        Ok(())
    }

    /// What the parts say together (Config.normalize).
    fn finish(mut self) -> Result<Dsn> {
        if self.interpolate && UNSAFE_COLLATIONS.contains(&self.dsn.collation.as_str()) {
            return Err(DsnError::new(
                "invalid DSN: interpolateParams can not be used with unsafe collations",
            ));
        }
        self.dsn.address = address(&self.network, &self.address)?;
        self.dsn.tls = match self.tls.as_str() {
            "" | "false" => Tls::Off,
            "true" => Tls::Verify,
            "skip-verify" => Tls::SkipVerify,
            "preferred" => {
                self.dsn.fallback_to_plaintext = true;
                Tls::SkipVerify
            }
            other => return Err(DsnError::new(format!("invalid value / unknown config name: {other}"))),
        };
        match self.dsn.server_public_key.as_str() {
            "" => Ok(self.dsn),
            name => Err(DsnError::new(format!("invalid value / unknown server pub key name: {name}"))),
        }
    }
}

fn address(network: &str, address: &str) -> Result<Address> {
    let family = match network {
        "" | "tcp" => Family::Any,
        "tcp4" => Family::V4,
        "tcp6" => Family::V6,
        "unix" if address.is_empty() => return Ok(Address::Unix("/tmp/mysql.sock".to_owned())),
        "unix" => return Ok(Address::Unix(address.to_owned())),
        other if address.is_empty() => {
            return Err(DsnError::new(format!("default addr for network '{other}' unknown")));
        }
        other => return Ok(Address::Other(other.to_owned(), address.to_owned())),
    };
    if address.is_empty() {
        return match family {
            Family::Any => Ok(Address::Tcp { host: "127.0.0.1".to_owned(), port: PORT, family }),
            _ => Err(DsnError::new(format!("default addr for network '{network}' unknown"))),
        };
    }
    let (host, port) = match split_host_port(address) {
        Some((host, port)) => {
            let known = port.parse().ok().filter(|_| port.bytes().all(|byte| byte.is_ascii_digit()));
            (host, known.ok_or_else(|| DsnError::new(format!("address {address}: unknown port")))?)
        }
        None => (without_brackets(address), PORT),
    };
    // A dialler without a host means this machine.
    let host = if host.is_empty() { "localhost" } else { host };
    Ok(Address::Tcp { host: host.to_owned(), port, family })
}

fn flag(value: &str) -> Result<bool> {
    truth(value).ok_or_else(|| DsnError::new(format!("invalid bool value: {value}")))
}

fn truth(value: &str) -> Option<bool> {
    match value {
        "1" | "true" | "TRUE" | "True" => Some(true),
        "0" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

fn tls_name(value: &str) -> Result<String> {
    if let Some(on) = truth(value) {
        return Ok(on.to_string());
    }
    let lower = value.to_ascii_lowercase();
    if lower == "skip-verify" || lower == "preferred" {
        return Ok(lower);
    }
    unescape_query(value).map_err(|why| DsnError::new(format!("invalid value for TLS config name: {why}")))
}

fn decoded(value: &str) -> Result<String> {
    unescape_query(value).map_err(DsnError::new)
}

/// `None` for no bound.
fn duration(value: &str) -> Result<Option<Duration>> {
    let parsed: GoDuration =
        value.parse().map_err(|why: spire_compat::duration::DurationError| DsnError::new(why.to_string()))?;
    Ok(parsed.to_std().filter(|duration| !duration.is_zero()))
}

fn packet(value: &str) -> Result<u32> {
    let digits = value.strip_prefix(['+', '-']).unwrap_or(value);
    let reason = if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        "invalid syntax"
    } else {
        match value.parse::<i64>() {
            // More than a packet's length can say is no bound at all.
            Ok(size) => return Ok(u32::try_from(size.max(0)).unwrap_or(u32::MAX)),
            Err(_) => "value out of range",
        }
    };
    Err(DsnError::new(format!("strconv.Atoi: parsing {}: {reason}", quote(value))))
}

#[cfg(test)]
mod tests;
