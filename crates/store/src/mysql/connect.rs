//! Connecting as the reference's driver does (github.com/go-sql-driver/mysql: connector.go), with what the reference adds
//! for certificates (pkg/server/datastore/sqlstore/mysql.go).

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use spire_core::pki::pem;
use spire_net::tls::{Identity, ServerTrust, TlsClient, TlsVersions, UpgradeOptions};
use spire_ports::datastore::{Error, Result};
use tokio::runtime::Handle;
use tracing::debug;

use super::client::{Client, Failure, Greeting};
use super::fault::of;
use super::session::MysqlSession;
use crate::aws::RdsLogin;
use crate::config::SqlConfig;
use crate::dsn::mysql::{Address, Dsn, Family, Tls};
use crate::remote::Dial;
use crate::remote::stream::{Wire, tcp, unix};

/// How long a server may take to be reached, unless the connection string says. The driver waits for as long as the
/// system does, which is minutes.
const CONNECT_MAX: Duration = Duration::from_secs(15);

/// How long the server may be silent while an answer is due, unless the connection string says. Longer than any
/// statement of this crate takes, and short enough that a server behind a dead network does not hold callers for minutes.
const SILENCE: Duration = Duration::from_secs(30);

/// The longest answer where the connection string leaves it to the server: the protocol's own bound.
const PACKET_MAX: u32 = 1 << 30;

/// What a new connection is told. Texts that a column cannot hold are refused instead of cut. Whoever holds a lock for
/// ten seconds is not well, and one who holds it and says nothing for two minutes is gone: its transaction ends.
const SETTINGS: &str = "SET SESSION sql_mode = CONCAT(@@SESSION.sql_mode, ',STRICT_TRANS_TABLES'), \
                        SESSION innodb_lock_wait_timeout = 10, SESSION wait_timeout = 120";

/// The type of the tables' texts where nobody changed it: gorm makes tables with `DEFAULT CHARSET=utf8`.
const TEXTS: &str = "utf8) COLLATE utf8_general_ci";

/// How to reach the database.
pub(super) struct Connector {
    dsn: Dsn,
    tls: Option<TlsClient>,
    /// Tokens instead of a password.
    login: Option<RdsLogin>,
    runtime: Handle,
    /// The type of the tables' texts, once it is known.
    texts: Arc<OnceLock<Arc<str>>>,
}

impl Connector {
    /// Reads a connection string, and the certificates that the configuration names.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the reference's text.
    pub(super) fn parse(
        text: &str,
        config: &SqlConfig,
        login: impl FnOnce(&Dsn) -> Result<Option<RdsLogin>>,
        runtime: Handle,
    ) -> Result<Self> {
        let dsn = parse(text)?;
        let tls = tls(&dsn, config)?;
        let login = login(&dsn)?;
        if login.is_some() && !dsn.password.is_empty() {
            return Err(invalid("unexpected password in connection string for IAM authentication"));
        }
        Ok(Self { dsn, tls, login, runtime, texts: Arc::default() })
    }

    /// Where the tables' type of texts is kept for all connections.
    pub(super) fn texts(&self) -> Arc<OnceLock<Arc<str>>> {
        Arc::clone(&self.texts)
    }

    /// What messages call the database: no password is in it.
    fn display(&self) -> String {
        let database = &self.dsn.database;
        match &self.dsn.address {
            Address::Tcp { host, port, .. } => format!("{host}:{port}/{database}"),
            Address::Unix(path) | Address::Other(_, path) => format!("{path}/{database}"),
        }
    }

    async fn open(&self) -> Result<Client> {
        let dsn = &self.dsn;
        let token = match &self.login {
            Some(login) => Some(login.token(SystemTime::now())?),
            None => None,
        };
        let (stream, host) = match &dsn.address {
            Address::Tcp { host, port, family } => (reach(host, *port, *family).await?, Some(host.as_str())),
            Address::Unix(path) | Address::Other(_, path) => {
                let failed = |error: std::io::Error| unreachable("unix", path, &error);
                (unix(path).await.map_err(failed)?, None)
            }
        };
        let pairs = dsn.connection_attributes.split(',').filter_map(|pair| pair.split_once(':'));
        let greeting = Greeting {
            user: &dsn.user,
            password: token.as_deref().unwrap_or(dsn.password.expose()),
            database: &dsn.database,
            cleartext: dsn.cleartext_passwords,
            native: dsn.native_passwords,
            attributes: pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
            tls: self.tls.clone().zip(host),
            local: host.is_none(),
            fallback: dsn.fallback_to_plaintext,
            packet_max: usize::try_from(match dsn.max_allowed_packet {
                0 => PACKET_MAX,
                octets => octets,
            })
            .unwrap_or(usize::MAX),
            silence: dsn.read_timeout.unwrap_or(SILENCE),
        };
        let mut client = Client::connect(stream, &greeting).await.map_err(|failure| refused(&failure))?;
        self.set_up(&mut client).await.map_err(|failure| refused(&failure))?;
        Ok(client)
    }

    /// Tells a new connection what the connection string and this crate want.
    async fn set_up(&self, client: &mut Client) -> std::result::Result<(), Failure> {
        let dsn = &self.dsn;
        match client.command(SETTINGS).await {
            // An engine that only speaks the protocol may lack one of them.
            Err(Failure::Server(refusal)) => {
                debug!(subsystem_name = "sql", error = %refusal, "The database does not take our settings");
            }
            outcome => outcome?,
        }
        let collation = match dsn.collation.as_str() {
            "" => String::new(),
            name => format!(" COLLATE {name}"),
        };
        let mut outcome = Ok(());
        for charset in &dsn.charsets {
            outcome = client.command(&format!("SET NAMES {charset}{collation}")).await;
            if outcome.is_ok() {
                break;
            }
        }
        outcome?;
        if dsn.charsets.is_empty() && !collation.is_empty() {
            client.command(&format!("SET NAMES utf8mb4{collation}")).await?;
        }
        if !dsn.variables.is_empty() {
            let all: Vec<String> =
                dsn.variables.iter().map(|(name, value)| format!("{name} = {value}")).collect();
            client.command(&format!("SET {}", all.join(", "))).await?;
        }
        Ok(())
    }
}

impl Dial for Connector {
    type Session = MysqlSession;

    async fn connect(&self) -> Result<MysqlSession> {
        let bound = self.dsn.connect_timeout.unwrap_or(CONNECT_MAX);
        let opened = tokio::time::timeout(bound, self.open())
            .await
            .unwrap_or_else(|_| Err(Error::Unavailable(format!("no answer within {bound:?}"))));
        let client = opened.map_err(|error| match error {
            Error::Unavailable(text) => {
                Error::Unavailable(format!("cannot connect to the database at {}: {text}", self.display()))
            }
            other => other,
        })?;
        let texts = self.texts.get().cloned().unwrap_or_else(|| Arc::from(TEXTS));
        Ok(MysqlSession::new(client, self.runtime.clone(), texts))
    }
}

/// Reads a connection string and refuses what the reference refuses, and what is not built.
pub(super) fn parse(text: &str) -> Result<Dsn> {
    let dsn = Dsn::parse(text).map_err(invalid)?;
    if !dsn.parse_time {
        return Err(invalid("invalid mysql config: missing parseTime=true param in connection_string"));
    }
    if let Address::Other(network, address) = &dsn.address {
        return Err(invalid(match network.as_str() {
            "cloudsql" => {
                "the network \"cloudsql\" of a connection string is not supported yet; use the Cloud SQL \
                           Auth Proxy and its address instead"
                    .to_owned()
            }
            _ => format!("dial {network} {address}: unknown network {network}"),
        }));
    }
    if !matches!(dsn.location.as_str(), "" | "UTC") {
        let text = format!("loc={} is not supported: times are stored in UTC", dsn.location);
        return Err(invalid(text));
    }
    Ok(dsn)
}

fn invalid(text: impl std::fmt::Display) -> Error {
    Error::Invalid(format!("datastore-sql: {text}"))
}

/// Whatever a server refuses a connection with, another try may succeed.
fn refused(failure: &Failure) -> Error {
    match of(failure) {
        Error::Internal(text) | Error::AlreadyExists(text) => Error::Unavailable(text),
        other => other,
    }
}

fn unreachable(network: &str, place: impl std::fmt::Display, error: &std::io::Error) -> Error {
    let why = spire_compat::errno::errno_text(error);
    Error::Unavailable(format!("dial {network} {place}: connect: {why}"))
}

async fn reach(host: &str, port: u16, family: Family) -> Result<Wire> {
    let unknown = |why: String| Error::Unavailable(format!("lookup {host}: {why}"));
    let found = tokio::net::lookup_host((host, port)).await.map_err(|error| unknown(error.to_string()))?;
    let addresses = found.filter(|address| match family {
        Family::Any => true,
        Family::V4 => address.is_ipv4(),
        Family::V6 => address.is_ipv6(),
    });
    let mut failure = unknown("no suitable address found".into());
    for address in addresses.collect::<Vec<SocketAddr>>() {
        match tcp(address).await {
            Ok(wire) => return Ok(wire),
            Err(error) => failure = unreachable("tcp", address, &error),
        }
    }
    Err(failure)
}

/// TLS, by the connection string or by the files of the configuration, which go first.
fn tls(dsn: &Dsn, config: &SqlConfig) -> Result<Option<TlsClient>> {
    let with_client = !config.client_cert_path.is_empty() && !config.client_key_path.is_empty();
    let trust = if !config.root_ca_path.is_empty() {
        ServerTrust::Authorities(authorities(&config.root_ca_path)?)
    } else {
        match dsn.tls {
            _ if with_client => ServerTrust::System,
            Tls::Off => return Ok(None),
            Tls::Verify => ServerTrust::System,
            Tls::SkipVerify => ServerTrust::Anybody,
        }
    };
    let identity = if with_client { Some(identity(config)?) } else { None };
    let options = UpgradeOptions { trust, identity, alpn: &[], sni: true, versions: TlsVersions::All };
    TlsClient::upgrade(options).map(Some).map_err(invalid)
}

fn authorities(path: &str) -> Result<Vec<spire_core::pki::Certificate>> {
    let text = std::fs::read(path)
        .map_err(|_| invalid("invalid mysql config: cannot find Root CA defined in root_ca_path"))?;
    pem::certificates(&text)
        .map_err(|_| invalid("invalid mysql config: failed to parse Root CA defined in root_ca_path"))
}

fn identity(config: &SqlConfig) -> Result<Arc<Identity>> {
    let failed = || {
        invalid(
            "invalid mysql config: failed to load client certificate defined in client_cert_path and client_key_path",
        )
    };
    let read = |path: &str| std::fs::read(path).map_err(|_| failed());
    let identity = Identity::empty();
    identity
        .replace_pem(&read(&config.client_cert_path)?, &read(&config.client_key_path)?)
        .map_err(|_| failed())?;
    Ok(identity)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_reference_or_we_refuse_is_said() {
        for (text, reason) in [
            (
                "u@tcp(h)/db",
                "datastore-sql: invalid mysql config: missing parseTime=true param in connection_string",
            ),
            ("u@h", "datastore-sql: invalid DSN: missing the slash separating the database name"),
            ("u@quic(h:1)/db?parseTime=true", "datastore-sql: dial quic h:1: unknown network quic"),
            (
                "u@/db?parseTime=true&loc=Local",
                "datastore-sql: loc=Local is not supported: times are stored in UTC",
            ),
        ] {
            assert_eq!(parse(text).unwrap_err().to_string(), reason);
        }
        let error = parse("u@cloudsql(a:b:c)/db?parseTime=true").unwrap_err().to_string();
        assert!(error.contains("not supported yet"), "{error}");
        assert!(parse("u:p@tcp(h)/db?parseTime=true&loc=UTC").is_ok());
    }
}
