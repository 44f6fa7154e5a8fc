//! MySQL, MariaDB, and engines that speak their protocol.

pub(crate) mod client;
mod connect;
mod fault;
mod session;
mod statement;

use std::sync::Arc;

use spire_ports::datastore::{Consistency, Result};
use tracing::{info, warn};

use crate::aws::RdsLogin;
use crate::config::{DatabaseType, SqlConfig};
use crate::convert::text_or_empty;
use crate::dsn::mysql::{Address, Dsn};
use crate::fault::Sql;
use crate::remote::{self, Pool, Remote};
use crate::schema::migrate;
use crate::sql::{Isolation, Session};

use connect::Connector;
use session::MysqlSession;

/// A database on a server.
pub(crate) struct Mysql(Remote<Connector>);

/// Checks a connection string without touching a database (sqlstore.go: validateMySQLConfig).
///
/// # Errors
/// [`Error::Invalid`] with the reference's text, or ours for what is not built.
pub(crate) fn validate(text: &str) -> Result<()> {
    connect::parse(text).map(drop)
}

impl Mysql {
    /// Connects, and brings the schema up to date. Blocks; needs a runtime to be entered.
    pub(crate) fn open(config: &SqlConfig, kind: DatabaseType) -> Result<Self> {
        let runtime = remote::runtime()?;
        let (primary, replica) = remote::diallers(config, |text| {
            Connector::parse(text, config, |dsn| login(config, kind, dsn), runtime.clone())
        })?;
        let texts = primary.texts();
        let pool = Pool::open(primary, config, &runtime);
        let found = runtime.block_on(greet(&pool, config, false))?;
        if let Some(found) = &found {
            let _ = texts.set(Arc::clone(found));
        }
        let replica = replica.map(|connector| {
            if let Some(found) = found {
                let _ = connector.texts().set(found);
            }
            Pool::open_replica(connector, config, &runtime, async |pool| greet(pool, config, true).await)
        });
        Ok(Self(Remote::new(pool, replica)))
    }

    /// Runs the work on a snapshot; of the replica, if there is one that answers and is consistent enough.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        consistency: Consistency,
        work: impl FnMut(&mut dyn Session) -> Sql<T> + Send + 'static,
    ) -> Result<T> {
        self.0.read(consistency, work).await
    }

    /// Runs the work in a transaction.
    pub(crate) async fn write<T: Send + 'static>(
        &self,
        isolation: Isolation,
        work: impl FnMut(&mut dyn Session) -> Sql<T> + Send + 'static,
    ) -> Result<T> {
        self.0.write(isolation, work).await
    }

    /// Ends the connections. Later operations fail.
    pub(crate) fn close(&self) {
        self.0.close();
    }
}

fn login(config: &SqlConfig, kind: DatabaseType, dsn: &Dsn) -> Result<Option<RdsLogin>> {
    if kind != DatabaseType::AwsMysql {
        return Ok(None);
    }
    let endpoint = match &dsn.address {
        Address::Tcp { host, port, .. } => format!("{host}:{port}"),
        Address::Unix(path) | Address::Other(_, path) => path.clone(),
    };
    config.aws.as_ref().map(|aws| RdsLogin::new(aws, endpoint, dsn.user.clone())).transpose()
}

/// Looks at the version and, on the primary, at the schema; says the type of its texts. The connection is not used
/// again: it may hold the lock under which schemas are changed.
async fn greet(pool: &Pool<Connector>, config: &SqlConfig, read_only: bool) -> Result<Option<Arc<str>>> {
    let config = config.clone();
    pool.once(move |session| {
        let prepared = prepare(session, &config, read_only).map_err(|fault| fault.0);
        session.end();
        prepared
    })
    .await?
}

fn prepare(session: &mut MysqlSession, config: &SqlConfig, read_only: bool) -> Sql<Option<Arc<str>>> {
    let version = one_text(session, "SELECT VERSION()")?;
    if version.starts_with("5.7.") {
        warn!(
            subsystem_name = "sql",
            "MySQL 5.7 is no longer officially supported, and SPIRE does not guarantee compatibility with MySQL 5.7. \
             Consider upgrading to a newer version of MySQL."
        );
    }
    if !read_only {
        migrate(session, config.disable_migration)?;
        session.forget();
    }
    let texts = one_text(
        session,
        "SELECT CONCAT(CHARACTER_SET_NAME, ') COLLATE ', COLLATION_NAME) FROM information_schema.COLUMNS WHERE \
         TABLE_SCHEMA = DATABASE() AND TABLE_NAME = 'selectors' AND COLUMN_NAME = 'value'",
    )?;
    info!(
        subsystem_name = "sql",
        r#type = config.database_type,
        version,
        read_only,
        "Connected to SQL database"
    );
    Ok((!texts.is_empty()).then(|| texts.into()))
}

fn one_text(session: &mut MysqlSession, sql: &str) -> Sql<String> {
    let mut found = String::new();
    session.query(sql, &[], &mut |row| {
        found = text_or_empty(row, 0)?.into_owned();
        Ok(false)
    })?;
    Ok(found)
}
