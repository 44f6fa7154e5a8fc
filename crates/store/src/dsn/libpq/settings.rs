//! The settings of a connection string: their names in strings and in the environment, and what their values may be.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use spire_compat::quote::quote;

use super::{ConnectionString, Host, PORT, Ssl, SslMode, Surroundings, Target};
use crate::dsn::{DsnError, Password, Result, without_brackets};

/// Variables of libpq that the driver refuses to ignore.
const UNSUPPORTED: [&str; 12] = [
    "PGREQUIRESSL",
    "PGSSLCOMPRESSION",
    "PGREALM",
    "PGGSSENCMODE",
    "PGGSSDELEGATION",
    "PGGSSLIB",
    "PGREQUIREAUTH",
    "PGCHANNELBINDING",
    "PGSSLCERTMODE",
    "PGSSLCRL",
    "PGSSLCRLDIR",
    "PGREQUIREPEER",
];

/// All settings with the variables that stand for them, in the order in which the driver looks at them.
const SETTINGS: [(&str, &str); 34] = [
    ("host", "PGHOST"),
    ("hostaddr", "PGHOSTADDR"),
    ("port", "PGPORT"),
    ("dbname", "PGDATABASE"),
    ("user", "PGUSER"),
    ("password", "PGPASSWORD"),
    ("passfile", "PGPASSFILE"),
    ("options", "PGOPTIONS"),
    ("application_name", "PGAPPNAME"),
    ("fallback_application_name", ""),
    ("sslmode", "PGSSLMODE"),
    ("sslnegotiation", "PGSSLNEGOTIATION"),
    ("sslcert", "PGSSLCERT"),
    ("sslkey", "PGSSLKEY"),
    ("sslrootcert", "PGSSLROOTCERT"),
    ("sslsni", "PGSSLSNI"),
    ("ssl_min_protocol_version", "SSLPGMINPROTOCOLVERSION"),
    ("ssl_max_protocol_version", "SSLPGMAXPROTOCOLVERSION"),
    ("sslinline", ""),
    ("krbsrvname", ""),
    ("krbspn", ""),
    ("connect_timeout", "PGCONNECT_TIMEOUT"),
    ("binary_parameters", ""),
    ("disable_prepared_binary_result", ""),
    ("client_encoding", "PGCLIENTENCODING"),
    ("datestyle", "PGDATESTYLE"),
    ("tz", "PGTZ"),
    ("geqo", "PGGEQO"),
    ("target_session_attrs", "PGTARGETSESSIONATTRS"),
    ("load_balance_hosts", "PGLOADBALANCEHOSTS"),
    ("min_protocol_version", "PGMINPROTOCOLVERSION"),
    ("max_protocol_version", "PGMAXPROTOCOLVERSION"),
    ("service", "PGSERVICE"),
    // What a string may not say.
    ("", "PGSERVICEFILE"),
];

const SSL_MODES: &[(&str, SslMode)] = &[
    ("disable", SslMode::Disable),
    ("allow", SslMode::Allow),
    ("prefer", SslMode::Prefer),
    ("require", SslMode::Require),
    ("verify-full", SslMode::VerifyFull),
    ("verify-ca", SslMode::VerifyCa),
];
const NEGOTIATIONS: &[(&str, bool)] = &[("postgres", false), ("direct", true)];
const TARGETS: &[(&str, Target)] = &[
    ("any", Target::Any),
    ("read-write", Target::ReadWrite),
    ("read-only", Target::ReadOnly),
    ("primary", Target::Primary),
    ("standby", Target::Standby),
    ("prefer-standby", Target::PreferStandby),
];
const ORDERS: &[(&str, bool)] = &[("disable", false), ("random", true)];
const PROTOCOLS: &[(&str, ())] = &[("3.0", ()), ("3.2", ()), ("latest", ())];
const TLS_VERSIONS: &[(&str, ())] = &[("TLSv1.0", ()), ("TLSv1.1", ()), ("TLSv1.2", ()), ("TLSv1.3", ())];

/// Where settings come from; later ones replace earlier ones.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    Environment,
    Text,
    Service,
}

/// Settings whose values were checked one by one.
#[derive(Default)]
pub(super) struct Draft {
    /// By their names in strings; that of a service file by its variable.
    values: BTreeMap<&'static str, String>,
    parameters: BTreeMap<String, String>,
    pub(super) service: String,
}

impl Draft {
    /// Takes what the environment says.
    pub(super) fn apply_environment(&mut self, around: &Surroundings) -> Result<()> {
        for (name, _) in &around.variables {
            if UNSUPPORTED.contains(&name.as_str()) {
                return Err(DsnError::new(format!("pq: environment variable ${name} is not supported")));
            }
            if name == "PGKRBSRVNAME" {
                return Err(DsnError::new(format!(
                    "pq: environment variable ${name} is not supported as Kerberos is not enabled"
                )));
            }
        }
        let known = SETTINGS.iter().filter(|(_, variable)| !variable.is_empty());
        let options = known
            .filter_map(|(_, variable)| Some(((*variable).to_owned(), around.variable(variable)?.to_owned())))
            .collect();
        self.apply(options, Origin::Environment)
    }

    /// Takes what a string or a service file says.
    pub(super) fn apply(&mut self, mut options: BTreeMap<String, String>, from: Origin) -> Result<()> {
        for (key, variable) in SETTINGS {
            let name = if from == Origin::Environment { variable } else { key };
            let Some(value) = options.remove(name).filter(|_| !name.is_empty()) else { continue };
            check(key, &value).map_err(|reason| {
                DsnError::new(match from {
                    Origin::Environment => format!("pq: wrong value for ${name}: {reason}"),
                    _ => format!("pq: wrong value for {}: {reason}", quote(name)),
                })
            })?;
            if key == "service" {
                self.service.clone_from(&value);
            }
            self.values.insert(if key.is_empty() { variable } else { key }, value);
        }
        match (from, options.pop_first()) {
            (_, None) => {}
            (Origin::Service, Some((key, _))) => {
                return Err(DsnError::new(format!(
                    "pq: unknown setting {} in service file for service {}",
                    quote(&key),
                    quote(&self.service)
                )));
            }
            (_, Some((key, value))) => {
                options.insert(key, value);
                // Worked by accident once, and still does.
                if let Some(database) = options.remove("database") {
                    self.values.insert("dbname", database);
                }
                self.parameters = options;
            }
        }
        Ok(())
    }

    /// The value of a setting; `None` where nothing sets it.
    pub(super) fn value(&self, key: &str) -> Option<&str> {
        self.values.get(key).map(String::as_str)
    }

    fn text(&self, key: &str) -> String {
        self.value(key).unwrap_or_default().to_owned()
    }

    fn parsed<T: Default>(&self, key: &str, parse: impl Fn(&str) -> Outcome<T>) -> Result<T> {
        self.value(key).map_or_else(|| Ok(T::default()), |value| parse(value).map_err(DsnError::new))
    }

    /// What the settings say together (newConfig).
    pub(super) fn finish(mut self, around: &Surroundings) -> Result<ConnectionString> {
        let hosts = self.hosts()?;
        let encoding = self.value("client_encoding").filter(|name| !is_utf8(name));
        if let Some(other) = encoding {
            let other = quote(other);
            return Err(DsnError::new(format!(
                "pq: unsupported client_encoding {other}: must be absent or \"UTF8\""
            )));
        }
        if let Some(other) = self.value("datestyle").filter(|style| *style != "ISO, MDY") {
            let other = quote(other);
            return Err(DsnError::new(format!(
                "pq: unsupported datestyle {other}: must be absent or \"ISO, MDY\""
            )));
        }
        let user = self.value("user").or_else(|| around.variable("USER").filter(|user| !user.is_empty()));
        let user = user.unwrap_or(&around.account).to_owned();
        let protocol_min = self.value("min_protocol_version").unwrap_or("3.0").to_owned();
        let protocol_max = self.value("max_protocol_version").unwrap_or("3.0");
        if protocol_min.as_str() > protocol_max {
            return Err(DsnError::new(format!(
                "pq: min_protocol_version {} cannot be greater than max_protocol_version {}",
                quote(&protocol_min),
                quote(protocol_max)
            )));
        }
        let on_socket = hosts.first().is_some_and(|host| host.socket().is_some());
        let ssl = self.ssl(on_socket)?;
        let application_name =
            self.value("application_name").or_else(|| self.value("fallback_application_name"));
        Ok(ConnectionString {
            shuffled: self.parsed("load_balance_hosts", |value| one_of(value, ORDERS))?,
            database: self.text("dbname"),
            user,
            password: Password::from(self.text("password")),
            passfile: self.text("passfile"),
            options: self.text("options"),
            application_name: application_name.unwrap_or_default().to_owned(),
            ssl,
            connect_timeout: self.parsed("connect_timeout", seconds)?,
            target: self.parsed("target_session_attrs", |value| one_of(value, TARGETS))?,
            protocol_min,
            parameters: std::mem::take(&mut self.parameters),
            hosts,
        })
    }

    fn hosts(&self) -> Result<Vec<Host>> {
        let names = self.value("host").map(host_names).unwrap_or_default();
        let addresses = self.parsed("hostaddr", addresses)?;
        let ports = self.parsed("port", ports)?;
        let named = names.first().is_some_and(|name| !name.is_empty());
        if named && !addresses.is_empty() && names.len() != addresses.len() {
            return Err(DsnError::new(format!(
                "pq: could not match {} host names to {} hostaddr values",
                names.len(),
                addresses.len()
            )));
        }
        let count = names.len().max(addresses.len()).max(1);
        if count > 1 && ports.len() > 1 && ports.len() != count {
            return Err(DsnError::new(format!(
                "pq: could not match {} port numbers to {count} hosts",
                ports.len()
            )));
        }
        let first_port = ports.first().copied().unwrap_or(PORT);
        let host = |at: usize| {
            let address = addresses.get(at).copied().flatten();
            let name = names.get(at).map(String::as_str).filter(|name| !name.is_empty());
            let name = match (name, address) {
                (Some(name), _) => without_brackets(name).to_owned(),
                (None, Some(address)) => address.to_string(),
                (None, None) => "localhost".to_owned(),
            };
            Host { name, address, port: ports.get(at).copied().unwrap_or(first_port) }
        };
        Ok((0..count).map(host).collect())
    }

    fn ssl(&self, on_socket: bool) -> Result<Ssl> {
        let root = self.text("sslrootcert");
        let said = self.value("sslmode");
        let mut mode = self.parsed("sslmode", |value| one_of(value, SSL_MODES))?;
        let direct = self.parsed("sslnegotiation", |value| one_of(value, NEGOTIATIONS))?;
        let weak = |because: &str, instead: &str| {
            let shown = quote(if on_socket { "disable" } else { said.unwrap_or_default() });
            Err(DsnError::new(format!(
                "pq: weak sslmode {shown} may not be used with {because} (use {instead})"
            )))
        };
        // There is no TLS on unix sockets.
        if on_socket {
            mode = SslMode::Disable;
        }
        if direct && matches!(mode, SslMode::Disable | SslMode::Allow | SslMode::Prefer) {
            return weak("sslnegotiation=direct", "\"require\", \"verify-ca\", or \"verify-full\"");
        }
        if root == "system" && !on_socket {
            match said {
                None => mode = SslMode::VerifyFull,
                Some(_) if mode == SslMode::VerifyFull => {}
                Some(_) => return weak("sslrootcert=system", "\"verify-full\""),
            }
        }
        Ok(Ssl {
            mode,
            direct,
            certificate: self.text("sslcert"),
            key: self.text("sslkey"),
            root,
            inline: self.parsed("sslinline", truth)?,
            sni: self.value("sslsni").map_or(Ok(true), truth).map_err(DsnError::new)?,
            version_min: self.text("ssl_min_protocol_version"),
            version_max: self.text("ssl_max_protocol_version"),
        })
    }
}

/// A value, or what is wrong with it.
type Outcome<T> = std::result::Result<T, String>;

/// Checks the value of one setting.
fn check(key: &str, value: &str) -> Outcome<()> {
    match key {
        "hostaddr" => addresses(value).map(drop),
        "port" => ports(value).map(drop),
        "sslmode" => one_of(value, SSL_MODES).map(drop),
        "sslnegotiation" => one_of(value, NEGOTIATIONS).map(drop),
        "target_session_attrs" => one_of(value, TARGETS).map(drop),
        "load_balance_hosts" => one_of(value, ORDERS).map(drop),
        "min_protocol_version" | "max_protocol_version" => one_of(value, PROTOCOLS),
        "ssl_min_protocol_version" | "ssl_max_protocol_version" => one_of(value, TLS_VERSIONS),
        "sslsni" | "sslinline" | "binary_parameters" | "disable_prepared_binary_result" => {
            truth(value).map(drop)
        }
        "connect_timeout" => seconds(value).map(drop),
        _ => Ok(()),
    }
}

fn one_of<T: Copy>(value: &str, known: &[(&str, T)]) -> Outcome<T> {
    if let Some((_, found)) = known.iter().find(|(name, _)| *name == value) {
        return Ok(*found);
    }
    let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
    let names = match names.as_slice() {
        [others @ .., last] => format!("{}, or {last}", others.join(", ")),
        [] => String::new(),
    };
    Err(format!("{} is not supported; supported values are {names}", quote(value)))
}

fn host_names(value: &str) -> Vec<String> {
    let mut names: Vec<String> = value.split(',').map(str::to_owned).collect();
    for name in names.iter_mut().skip(1).filter(|name| name.is_empty()) {
        "localhost".clone_into(name);
    }
    names
}

fn addresses(value: &str) -> Outcome<Vec<Option<IpAddr>>> {
    let address = |(at, text): (usize, &str)| match text {
        "" if at > 0 => Ok(None),
        text => text.parse().map(Some).map_err(|_| format!("ParseAddr({}): unable to parse IP", quote(text))),
    };
    value.split(',').enumerate().map(address).collect()
}

fn ports(value: &str) -> Outcome<Vec<u16>> {
    let port = |(at, text): (usize, &str)| match text {
        "" if at > 0 => Ok(PORT),
        text => number(text, "ParseUint", text.parse().ok()),
    };
    value.split(',').enumerate().map(port).collect()
}

/// `None` for no bound.
fn seconds(value: &str) -> Outcome<Option<Duration>> {
    let digits = value.strip_prefix(['+', '-']).unwrap_or(value);
    let wrong = number(digits, "ParseInt", Some(())).map_err(|_| number_error("ParseInt", value, true));
    wrong?;
    let seconds: i64 = value.parse().map_err(|_| number_error("ParseInt", value, false))?;
    Ok(u64::try_from(seconds).ok().filter(|seconds| *seconds > 0).map(Duration::from_secs))
}

/// The parsed number, if the text has nothing but digits and it is in range.
fn number<T>(text: &str, function: &str, parsed: Option<T>) -> Outcome<T> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    parsed.filter(|_| is_number).ok_or_else(|| number_error(function, text, !is_number))
}

fn number_error(function: &str, text: &str, is_syntax: bool) -> String {
    let reason = if is_syntax { "invalid syntax" } else { "value out of range" };
    format!("strconv.{function}: parsing {}: {reason}", quote(text))
}

fn truth(value: &str) -> Outcome<bool> {
    match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" | "yes" | "on" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" | "no" | "off" => Ok(false),
        _ => Err(number_error("ParseBool", value, true)),
    }
}

/// All that PostgreSQL takes for UTF-8: `utf-8`, `Unicode` and worse.
fn is_utf8(name: &str) -> bool {
    let letters: String = name.chars().filter(char::is_ascii_alphanumeric).collect();
    matches!(letters.to_ascii_lowercase().as_str(), "utf8" | "unicode")
}
