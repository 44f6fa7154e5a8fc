//! Connecting as the reference's driver does (github.com/lib/pq: connector.go, ssl.go): several hosts in turn, TLS by
//! `sslmode`, passwords from a file, the kind of server that is wanted.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use spire_core::pki::pem;
use spire_net::tls::{Identity, ServerTrust, TlsClient, TlsVersions, UpgradeOptions};
use spire_ports::datastore::{Error, Result};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::runtime::Handle;
use tokio_postgres::config::SslNegotiation;
use tokio_postgres::tls::NoTls;
use tokio_postgres::{AsyncMessage, Client, Config, Connection};
use tracing::debug;

use super::fault::{of, unreachable};
use super::session::PgSession;
use super::stream::Upgrade;
use crate::aws::RdsLogin;
use crate::dsn::libpq::{ConnectionString, Host, SslMode, Surroundings, Target, password_of};
use crate::remote::Dial;
use crate::remote::stream::{Wire, tcp, unix};

/// How long one server may take to be reached, unless the connection string says. The driver waits for as long as the
/// system does, which is minutes.
const CONNECT_MAX: Duration = Duration::from_secs(15);

/// Called with the payload of each notification that a connection hears.
pub(super) type Listener = Arc<dyn Fn(&str) + Send + Sync>;

/// How to reach the database.
pub(super) struct Connector {
    target: ConnectionString,
    around: Surroundings,
    /// Tokens instead of a password.
    login: Option<RdsLogin>,
    /// What notifications of this server carry, once it is known that the database has them.
    own: Arc<OnceLock<Arc<str>>>,
}

/// Whether a connection is made with TLS.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Protection {
    Plain,
    /// TLS if the server has it.
    IfOffered,
    Tls,
}

impl Connector {
    /// Reads a connection string.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the driver's text.
    pub(super) fn parse(
        text: &str,
        login: Option<impl FnOnce(&ConnectionString) -> Result<RdsLogin>>,
    ) -> Result<Self> {
        let invalid = |text: String| Error::Invalid(format!("datastore-sql: {text}"));
        let around = surroundings();
        let target = ConnectionString::parse(text, &around, |path| std::fs::read_to_string(path))
            .map_err(|error| invalid(error.to_string()))?;
        if let Some(host) = target.hosts.iter().find(|host| is_cloud_sql(host)) {
            return Err(invalid(format!(
                "dialing the Cloud SQL instance {:?} is not supported yet; run the Cloud SQL Auth Proxy and connect to it",
                host.name
            )));
        }
        let login = match login {
            Some(_) if !target.password.is_empty() => {
                let text = "invalid postgres configuration: password should not be set when using IAM authentication";
                return Err(invalid(text.into()));
            }
            Some(login) => Some(login(&target)?),
            None => None,
        };
        Ok(Self { target, around, login, own: Arc::default() })
    }

    /// What messages call the database: no password is in it.
    pub(super) fn display(&self) -> String {
        let hosts: Vec<String> =
            self.target.hosts.iter().map(|host| format!("{}:{}", host.name, host.port)).collect();
        format!("{}/{}", hosts.join(","), self.target.database)
    }

    /// Has each commit that others must know of announced by this name.
    pub(super) fn announce_as(&self, own: Arc<str>) {
        // There is one name, which is set once.
        let _ = self.own.set(own);
    }

    /// A connection to the first of the servers that will do.
    pub(super) async fn client(&self, listener: Option<Listener>) -> Result<Client> {
        let mut order: Vec<&Host> = self.target.hosts.iter().collect();
        if self.target.shuffled {
            shuffle(&mut order);
        }
        let mut failure = Error::Unavailable("no host to connect to".into());
        let passes: &[Target] = match self.target.target {
            Target::PreferStandby => &[Target::Standby, Target::Any],
            ref other => std::slice::from_ref(other),
        };
        for wanted in passes {
            for host in &order {
                match self.connect_to(host, *wanted, &listener).await {
                    Ok(client) => return Ok(client),
                    Err(error) => failure = error,
                }
            }
        }
        Err(match failure {
            Error::Unavailable(text) => {
                Error::Unavailable(format!("cannot connect to the database at {}: {text}", self.display()))
            }
            other => other,
        })
    }

    async fn connect_to(&self, host: &Host, wanted: Target, listener: &Option<Listener>) -> Result<Client> {
        let protections: &[Protection] = match self.target.ssl.mode {
            SslMode::Disable => &[Protection::Plain],
            SslMode::Allow => &[Protection::Plain, Protection::Tls],
            SslMode::Prefer => &[Protection::IfOffered, Protection::Plain],
            SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => &[Protection::Tls],
        };
        let bound = self.target.connect_timeout.unwrap_or(CONNECT_MAX);
        let mut failure = None;
        for protection in protections {
            let attempt = async {
                let client = self.attempt(host, *protection, listener).await?;
                fits(&client, wanted).await?;
                Ok(client)
            };
            match tokio::time::timeout(bound, attempt).await {
                Ok(Ok(client)) => return Ok(client),
                // The first is what the operator will want to know of.
                Ok(Err(error)) => failure = failure.or(Some(error)),
                Err(_) => {
                    let text = format!("{}:{} did not answer within {bound:?}", host.name, host.port);
                    failure = failure.or(Some(Error::Unavailable(text)));
                }
            }
        }
        Err(failure.unwrap_or_else(|| Error::Unavailable("not tried".into())))
    }

    async fn attempt(
        &self,
        host: &Host,
        protection: Protection,
        listener: &Option<Listener>,
    ) -> Result<Client> {
        let mut config = self.config(host)?;
        let wire = reach(host).await?;
        let failed = |error: tokio_postgres::Error| match of(&error) {
            // Whatever a server refuses a login with, another try may succeed.
            Error::Internal(text) | Error::AlreadyExists(text) => Error::Unavailable(text),
            other => other,
        };
        if protection == Protection::Plain {
            config.ssl_mode(tokio_postgres::config::SslMode::Disable);
            let (client, connection) = config.connect_raw(wire, NoTls).await.map_err(failed)?;
            drive(connection, listener.clone());
            return Ok(client);
        }
        config.ssl_mode(match protection {
            Protection::IfOffered => tokio_postgres::config::SslMode::Prefer,
            _ => tokio_postgres::config::SslMode::Require,
        });
        if self.target.ssl.direct {
            config.ssl_negotiation(SslNegotiation::Direct);
        }
        let upgrade = Upgrade { tls: self.tls()?, host: host.name.clone() };
        let (client, connection) = config.connect_raw(wire, upgrade).await.map_err(failed)?;
        drive(connection, listener.clone());
        Ok(client)
    }

    fn config(&self, host: &Host) -> Result<Config> {
        let target = &self.target;
        let mut config = Config::new();
        config.user(&target.user);
        if !target.database.is_empty() {
            config.dbname(&target.database);
        }
        if !target.application_name.is_empty() {
            config.application_name(&target.application_name);
        }
        let mut options = target.options.clone();
        for (name, value) in &target.parameters {
            // Blanks and backslashes of a value are escaped, as the server splits this into arguments.
            let value = value.replace('\\', "\\\\").replace(' ', "\\ ");
            options.push_str(&format!(" -c {name}={value}"));
        }
        if !options.is_empty() {
            config.options(options.trim_start());
        }
        let password = match &self.login {
            Some(login) => Some(login.token(std::time::SystemTime::now())?.into_bytes()),
            None if !target.password.is_empty() => Some(target.password.expose().as_bytes().to_vec()),
            None => self.password_in_file(host),
        };
        if let Some(password) = password {
            config.password(password);
        }
        Ok(config)
    }

    /// What the password file says; libpq ignores one that others may read, and so do we.
    fn password_in_file(&self, host: &Host) -> Option<Vec<u8>> {
        use std::os::unix::fs::PermissionsExt;
        let path = match self.target.passfile.as_str() {
            "" => self.in_home(".pgpass")?,
            path => path.to_owned(),
        };
        let metadata = std::fs::metadata(&path).ok()?;
        if !metadata.is_file() || metadata.permissions().mode() & 0o077 != 0 {
            debug!(subsystem_name = "sql", path, "Password file is ignored: others may read it");
            return None;
        }
        let text = std::fs::read_to_string(&path).ok()?;
        let database =
            if self.target.database.is_empty() { &self.target.user } else { &self.target.database };
        let password = password_of(&text, host, database, &self.target.user)?;
        Some(password.expose().as_bytes().to_vec())
    }

    fn in_home(&self, name: &str) -> Option<String> {
        let (_, home) = self.around.variables.iter().find(|(key, home)| key == "HOME" && !home.is_empty())?;
        Some(format!("{}/{name}", home.trim_end_matches('/')))
    }

    /// TLS as the settings ask for it. Files are read for each connection, so that certificates may be renewed.
    fn tls(&self) -> Result<TlsClient> {
        let ssl = &self.target.ssl;
        let unusable = |text: String| Error::Unavailable(text);
        let home = |name: &str| self.in_home(&format!(".postgresql/{name}"));
        let content = |text: &str| -> Result<Vec<u8>> {
            if ssl.inline {
                return Ok(text.as_bytes().to_vec());
            }
            std::fs::read(text)
                .map_err(|error| unusable(spire_compat::errno::path_error("open", text, &error)))
        };
        let mut root = ssl.root.clone();
        if root.is_empty() && !ssl.inline {
            root = home("root.crt").filter(|path| std::path::Path::new(path).exists()).unwrap_or_default();
        }
        if !matches!(ssl.mode, SslMode::VerifyCa | SslMode::VerifyFull)
            && !ssl.inline
            && root != "system"
            && !std::path::Path::new(&root).exists()
        {
            // Weaker modes verify only where there is something to verify by.
            root.clear();
        }
        let authorities = match root.as_str() {
            "" | "system" => None,
            root => {
                let found = pem::certificates(&content(root)?).ok().filter(|found| !found.is_empty());
                Some(found.ok_or_else(|| unusable("pq: couldn't parse pem from sslrootcert".into()))?)
            }
        };
        let trust = match (ssl.mode, authorities) {
            (SslMode::VerifyFull, Some(authorities)) => ServerTrust::Authorities(authorities),
            (SslMode::VerifyFull, None) => ServerTrust::System,
            (_, Some(authorities)) => ServerTrust::AnyNameOf(authorities),
            (SslMode::VerifyCa, None) => ServerTrust::AnyNameOfSystem,
            (_, None) if root == "system" => ServerTrust::AnyNameOfSystem,
            (_, None) => ServerTrust::Anybody,
        };
        let identity = self.identity(&content)?;
        let versions = match (ssl.version_min.as_str(), ssl.version_max.as_str()) {
            ("TLSv1.3", _) => TlsVersions::Only13,
            (_, "TLSv1.2") => TlsVersions::Only12,
            (_, "TLSv1.0" | "TLSv1.1") => {
                return Err(unusable(
                    "ssl_max_protocol_version: TLS 1.2 is the oldest that is spoken".into(),
                ));
            }
            _ => TlsVersions::All,
        };
        let options = UpgradeOptions { trust, identity, alpn: &[b"postgresql"], sni: ssl.sni, versions };
        TlsClient::upgrade(options).map_err(|error| unusable(error.to_string()))
    }

    /// The client's certificate, if there is one.
    fn identity(&self, content: &impl Fn(&str) -> Result<Vec<u8>>) -> Result<Option<Arc<Identity>>> {
        let ssl = &self.target.ssl;
        let home = |name: &str| self.in_home(&format!(".postgresql/{name}"));
        let or_home = |path: &str, name: &str| match path {
            "" if !ssl.inline => home(name).unwrap_or_default(),
            path => path.to_owned(),
        };
        let (certificate, key) =
            (or_home(&ssl.certificate, "postgresql.crt"), or_home(&ssl.key, "postgresql.key"));
        if certificate.is_empty() || (!ssl.inline && !std::path::Path::new(&certificate).exists()) {
            return Ok(None);
        }
        if !ssl.inline {
            check_key_file(&key)?;
        }
        let identity = Identity::empty();
        identity
            .replace_pem(&content(&certificate)?, &content(&key)?)
            .map_err(|error| Error::Unavailable(error.to_string()))?;
        Ok(Some(identity))
    }
}

impl Dial for Connector {
    type Session = PgSession;

    async fn connect(&self) -> Result<PgSession> {
        let client = self.client(None).await?;
        Ok(PgSession::new(client, Handle::current(), Arc::clone(&self.own)))
    }
}

/// Whether a host is the connection name of an instance of GCP, `project:region:instance`.
fn is_cloud_sql(host: &Host) -> bool {
    let parts = host.name.split(':').count();
    parts >= 3 && host.address.is_none() && host.name.parse::<std::net::IpAddr>().is_err()
}

/// The environment, and who we are by the table of users.
fn surroundings() -> Surroundings {
    let uid = rustix::process::getuid().as_raw().to_string();
    let table = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let account = table.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1) == Some(uid.as_str())).then(|| name.to_owned())
    });
    Surroundings {
        variables: std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect(),
        account: account.unwrap_or_default(),
    }
}

/// The driver refuses keys that others may read (pqutil.SSLKeyPermissions): those of root may be read by a group.
fn check_key_file(path: &str) -> Result<()> {
    use std::os::unix::fs::MetadataExt;
    let metadata = std::fs::metadata(path)
        .map_err(|error| Error::Unavailable(spire_compat::errno::path_error("stat", path, &error)))?;
    let others = if metadata.uid() == 0 { 0o037 } else { 0o077 };
    if metadata.mode() & others != 0 {
        let text = if metadata.uid() == 0 {
            "pq: private key has world access; permissions should be u=rw,g=r (0640) or less"
        } else {
            "pq: private key has group or world access; permissions should be u=rw (0600) or less"
        };
        return Err(Error::Unavailable(text.into()));
    }
    Ok(())
}

async fn reach(host: &Host) -> Result<Wire> {
    let failed = |error: &std::io::Error| {
        Error::Unavailable(format!("dial {}: {}", host.name, spire_compat::errno::errno_text(error)))
    };
    if let Some(socket) = host.socket() {
        return unix(&socket).await.map_err(|error| failed(&error));
    }
    if let Some(address) = host.address {
        return tcp(SocketAddr::new(address, host.port)).await.map_err(|error| failed(&error));
    }
    let addresses = tokio::net::lookup_host((host.name.as_str(), host.port))
        .await
        .map_err(|error| Error::Unavailable(format!("lookup {}: {error}", host.name)))?;
    let mut failure = Error::Unavailable(format!("lookup {}: no such host", host.name));
    for address in addresses {
        match tcp(address).await {
            Ok(wire) => return Ok(wire),
            Err(error) => failure = failed(&error),
        }
    }
    Err(failure)
}

/// Moves bytes for a client until it is dropped or the server goes away.
fn drive<T: AsyncRead + AsyncWrite + Send + Unpin + 'static>(
    mut connection: Connection<Wire, T>,
    listener: Option<Listener>,
) {
    tokio::spawn(async move {
        loop {
            match std::future::poll_fn(|cx| connection.poll_message(cx)).await {
                Some(Ok(AsyncMessage::Notification(heard))) => {
                    if let Some(listener) = &listener {
                        listener(heard.payload());
                    }
                }
                Some(Ok(AsyncMessage::Notice(notice))) => {
                    debug!(subsystem_name = "sql", severity = notice.severity(), "{}", notice.message());
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => {
                    debug!(
                        subsystem_name = "sql",
                        error = unreachable(&error),
                        "A database connection ended"
                    );
                    return;
                }
                None => return,
            }
        }
    });
}

/// Whether the server is of the kind that is wanted.
async fn fits(client: &Client, wanted: Target) -> Result<()> {
    let truth = async |query: &str, yes: &str| -> Result<bool> {
        let rows = client.simple_query(query).await.map_err(|error| of(&error))?;
        Ok(rows.iter().any(|row| match row {
            tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0) == Some(yes),
            _ => false,
        }))
    };
    let in_recovery = "SELECT pg_catalog.pg_is_in_recovery()";
    let read_only = "SHOW transaction_read_only";
    let (fits, kind) = match wanted {
        Target::Any | Target::PreferStandby => return Ok(()),
        Target::ReadWrite => (!truth(read_only, "on").await?, "does not accept writes"),
        Target::ReadOnly => (truth(read_only, "on").await?, "accepts writes"),
        Target::Primary => (!truth(in_recovery, "t").await?, "is in recovery"),
        Target::Standby => (truth(in_recovery, "t").await?, "is not in recovery"),
    };
    if fits { Ok(()) } else { Err(Error::Unavailable(format!("the server {kind}"))) }
}

/// Puts hosts into another order each time; how even the choice is does not matter.
fn shuffle(hosts: &mut [&Host]) {
    use std::hash::{BuildHasher, RandomState};
    let keys = RandomState::new();
    hosts.sort_by_cached_key(|host| keys.hash_one((&host.name, host.port)));
}
