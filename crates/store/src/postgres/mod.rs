//! PostgreSQL, and engines that speak its protocol.

mod connect;
mod fault;
mod hints;
mod session;
mod stream;
mod wire;

use std::sync::Arc;

use spire_ports::datastore::{Consistency, Result};
use tracing::info;

use crate::aws::RdsLogin;
use crate::config::{DatabaseType, SqlConfig};
use crate::convert::text_or_empty;
use crate::dsn::libpq::ConnectionString;
use crate::fault::Sql;
use crate::remote::{self, ATTEMPTS, Pool, Remote, Transact, backoff};
use crate::schema::migrate;
use crate::sql::{Isolation, Session};

use connect::Connector;
use hints::Hints;
use session::PgSession;

/// A database on a server.
pub(crate) struct Postgres {
    remote: Remote<Connector>,
    hints: Hints,
}

impl Postgres {
    /// Connects, and brings the schema up to date. Blocks; needs a runtime to be entered.
    pub(crate) fn open(config: &SqlConfig, kind: DatabaseType) -> Result<Self> {
        let (primary, replica) = remote::diallers(config, |text| connector_of(config, kind, text))?;
        let runtime = remote::runtime()?;
        let pool = Pool::open(Arc::clone(&primary), config, &runtime);
        let hears = runtime.block_on(greet(&pool, config, false))?;
        let hints = Hints::start(primary, hears, &runtime);
        let replica = replica.map(|connector| {
            Pool::open_replica(connector, config, &runtime, async |pool| greet(pool, config, true).await)
        });
        Ok(Self { remote: Remote::new(pool, replica), hints })
    }

    /// Runs the work on a snapshot; of the replica, if there is one that answers and is consistent enough.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        consistency: Consistency,
        work: impl FnMut(&mut dyn Session) -> Sql<T> + Send + 'static,
    ) -> Result<T> {
        self.remote.read(consistency, work).await
    }

    /// Runs the work in a transaction.
    pub(crate) async fn write<T: Send + 'static>(
        &self,
        isolation: Isolation,
        work: impl FnMut(&mut dyn Session) -> Sql<T> + Send + 'static,
    ) -> Result<T> {
        self.remote.write(isolation, work).await
    }

    /// Resolves when another server is said to have written.
    pub(crate) async fn changed(&self) {
        self.hints.heard().await;
    }

    /// Ends the connections that are idle; the others end with their operations. Later operations fail.
    pub(crate) fn close(&self) {
        self.hints.stop();
        self.remote.close();
    }
}

fn connector_of(config: &SqlConfig, kind: DatabaseType, text: &str) -> Result<Connector> {
    let login = config.aws.as_ref().filter(|_| kind == DatabaseType::AwsPostgres).map(|aws| {
        |target: &ConnectionString| {
            let endpoint = target.hosts.first().map(|host| format!("{}:{}", host.name, host.port));
            RdsLogin::new(aws, endpoint.unwrap_or_default(), target.user.clone())
        }
    });
    Connector::parse(text, login)
}

/// Looks at the version and, on the primary, at the schema and whether the database has notifications.
async fn greet(pool: &Pool<Connector>, config: &SqlConfig, read_only: bool) -> Result<bool> {
    let config = config.clone();
    pool.once(move |session| {
        prepare(session, &config, read_only)?;
        Ok(!read_only && hints::are_supported(session))
    })
    .await?
}

fn prepare(session: &mut PgSession, config: &SqlConfig, read_only: bool) -> Result<()> {
    let mut version = String::new();
    let shown = session.query("SHOW server_version", &[], &mut |row| {
        version = text_or_empty(row, 0)?.into_owned();
        Ok(false)
    });
    shown.map_err(|fault| fault.0)?;
    if !read_only {
        migrate_once_more(session, config).map_err(|fault| fault.0)?;
    }
    info!(
        subsystem_name = "sql",
        r#type = config.database_type,
        version,
        read_only,
        "Connected to SQL database"
    );
    Ok(())
}

/// Two servers that make a new schema at once are in each other's way; the one that lost finds it made.
fn migrate_once_more(session: &mut PgSession, config: &SqlConfig) -> Sql<()> {
    let mut attempt = 1;
    loop {
        match migrate(session, config.disable_migration) {
            Err(_) if attempt < ATTEMPTS && session.worst().is_some() && !session.is_lost() => {
                session.pause(backoff(attempt));
                session.forget();
                attempt += 1;
            }
            outcome => return outcome,
        }
    }
}

#[cfg(test)]
mod tests;
