//! The store: a database of one kind, and the traits in `query` on it.

use spire_ports::datastore::{Consistency, Error, Result};
use tracing::{info, warn};

use crate::config::{DatabaseType, SqlConfig};
use crate::fault::{Fault, Sql};
use crate::mysql::Mysql;
use crate::postgres::Postgres;
use crate::schema::migrate;
use crate::sql::{Isolation, Logged, Session};
use crate::sqlite::{Dsn, Readers, Writer, open_writer};

/// How many connections read at once. Each keeps a cache of pages, and more of them would wait for the same disk.
const READERS: u32 = 4;

/// The datastore on a SQL database. Its operations are those of the traits in [`spire_ports::datastore`].
///
/// A write is on disk when its future resolves. If the future is dropped before its turn, the write is not made. If it is dropped
/// later, the write may or may not be made.
pub struct SqlStore {
    backend: Backend,
    /// Whether statements are logged.
    logs: bool,
}

/// A database of one kind.
enum Backend {
    Sqlite(Sqlite),
    Postgres(Postgres),
    Mysql(Mysql),
}

struct Sqlite {
    writer: Writer,
    /// `None` for a database in memory, which only the connection that writes can see.
    readers: Option<Readers>,
}

impl SqlStore {
    /// Opens the database, and makes its schema or brings it up to date. A SQLite file that does not exist is made. The call
    /// blocks; for a database server it must run in an async runtime, where blocking is allowed.
    ///
    /// # Errors
    /// [`Error::Invalid`] for settings that are wrong or not supported, [`Error::Unavailable`] with the path
    /// for a file that cannot be opened or made, [`Error::Internal`] for a file that is not a database or
    /// whose schema this version cannot use.
    pub fn open(config: &SqlConfig) -> Result<Self> {
        let backend = match config.validate()? {
            DatabaseType::Sqlite => Backend::Sqlite(Sqlite::open(config)?),
            kind @ (DatabaseType::Postgres | DatabaseType::AwsPostgres) => {
                Backend::Postgres(Postgres::open(config, kind)?)
            }
            kind @ (DatabaseType::Mysql | DatabaseType::AwsMysql) => {
                Backend::Mysql(Mysql::open(config, kind)?)
            }
        };
        Ok(Self { backend, logs: config.log_sql })
    }

    /// Finishes the writes that were handed in and closes the database. Later operations fail.
    pub async fn close(&self) {
        match &self.backend {
            Backend::Sqlite(sqlite) => {
                if let Some(readers) = &sqlite.readers {
                    readers.close();
                }
                // The writer's connection goes last: the one that closes last tidies the write-ahead log away.
                sqlite.writer.close().await;
            }
            Backend::Postgres(postgres) => postgres.close(),
            Backend::Mysql(mysql) => mysql.close(),
        }
    }

    /// Resolves when another server on the database is said to have written; for ever pending where nobody says so.
    pub(crate) async fn changed_elsewhere(&self) {
        match &self.backend {
            Backend::Sqlite(_) | Backend::Mysql(_) => std::future::pending().await,
            Backend::Postgres(postgres) => postgres.changed().await,
        }
    }

    /// Runs the work on a snapshot of what is committed now.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        work: impl FnMut(&mut dyn Session) -> Sql<T> + Send + 'static,
    ) -> Result<T> {
        self.read_from(Consistency::Current, work).await
    }

    /// Runs the work on a snapshot, of a replica where that will do. It may run more than once.
    pub(crate) async fn read_from<T: Send + 'static>(
        &self,
        consistency: Consistency,
        work: impl FnMut(&mut dyn Session) -> Sql<T> + Send + 'static,
    ) -> Result<T> {
        let work = logged(self.logs, work);
        match &self.backend {
            Backend::Sqlite(Sqlite { readers: Some(readers), .. }) => readers.read(work).await,
            Backend::Sqlite(Sqlite { writer, readers: None }) => writer.write(work).await,
            Backend::Postgres(postgres) => postgres.read(consistency, work).await,
            Backend::Mysql(mysql) => mysql.read(consistency, work).await,
        }
    }

    /// As [`SqlStore::read`], for work of one statement that reads a row by its key.
    pub(crate) async fn read_row<T: Send + 'static>(
        &self,
        work: impl FnMut(&mut dyn Session) -> Sql<T> + Send + 'static,
    ) -> Result<T> {
        match &self.backend {
            Backend::Sqlite(Sqlite { readers: Some(readers), .. }) => {
                readers.read_row(logged(self.logs, work)).await
            }
            _ => self.read(work).await,
        }
    }

    /// As [`SqlStore::read`], for work that reads a row by its key and the little that belongs to it.
    pub(crate) async fn read_item<T: Send + 'static>(
        &self,
        work: impl FnMut(&mut dyn Session) -> Sql<T> + Send + 'static,
    ) -> Result<T> {
        match &self.backend {
            Backend::Sqlite(Sqlite { readers: Some(readers), .. }) => {
                readers.read_item(logged(self.logs, work)).await
            }
            _ => self.read(work).await,
        }
    }

    /// Runs the work in a transaction. It may run more than once, each time as if it had not run before.
    pub(crate) async fn write<T: Send + 'static>(
        &self,
        isolation: Isolation,
        work: impl FnMut(&mut dyn Session) -> Sql<T> + Send + 'static,
    ) -> Result<T> {
        let work = logged(self.logs, work);
        match &self.backend {
            Backend::Sqlite(sqlite) => sqlite.writer.write(work).await,
            Backend::Postgres(postgres) => postgres.write(isolation, work).await,
            Backend::Mysql(mysql) => mysql.write(isolation, work).await,
        }
    }
}

/// The work on a session that logs, if it is to. What is not wanted costs a look at a flag.
fn logged<T>(
    logs: bool,
    mut work: impl FnMut(&mut dyn Session) -> Sql<T>,
) -> impl FnMut(&mut dyn Session) -> Sql<T> {
    move |session| if logs { work(&mut Logged(session)) } else { work(session) }
}

impl Sqlite {
    fn open(config: &SqlConfig) -> Result<Self> {
        let dsn = Dsn::parse(&config.connection_string)?;
        info!(subsystem_name = "sql", db_type = config.database_type, "Opening SQL database");
        let mut conn = open_writer(&dsn).map_err(|fault| fault.0)?;
        migrate(&mut conn, config.disable_migration).map_err(|fault| told_where(fault, &dsn))?;
        info!(
            subsystem_name = "sql",
            r#type = config.database_type,
            version = rusqlite::version(),
            read_only = false,
            "Connected to SQL database"
        );
        if !config.ro_connection_string.is_empty() {
            warn!(
                subsystem_name = "sql",
                "Read-only connection is not applicable for sqlite3. Falling back to primary connection"
            );
        }
        let readers = (!dsn.is_in_memory()).then(|| {
            // Zero means unlimited, as in the reference.
            let size = match config.max_open_conns {
                None | Some(0) => READERS,
                Some(wanted) => wanted.min(READERS),
            };
            Readers::new(dsn.clone(), usize::try_from(size).unwrap_or(1))
        });
        Ok(Self { writer: Writer::start(conn, &dsn)?, readers })
    }
}

fn told_where(fault: Fault, dsn: &Dsn) -> Error {
    match fault.0 {
        Error::Unavailable(message) => Error::Unavailable(format!("{message}: {}", dsn.display())),
        other => other,
    }
}

#[cfg(test)]
mod tests;
