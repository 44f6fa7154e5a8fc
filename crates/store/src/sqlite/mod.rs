//! SQLite: opening, one writer, a few readers.

mod dsn;
mod readers;
mod session;
mod writer;

use std::time::Duration;

use rusqlite::{Connection, OpenFlags};
use spire_ports::datastore::Error;

pub(crate) use dsn::Dsn;
pub(crate) use readers::Readers;
pub(crate) use session::SqliteSession;
pub(crate) use writer::Writer;

use crate::fault::{Fault, Sql};

/// How many prepared statements a connection keeps: more than this crate has texts in common use.
const STATEMENTS: usize = 96;

/// Opens the connection that writes, and makes the file if there is none.
pub(crate) fn open_writer(dsn: &Dsn) -> Sql<SqliteSession> {
    let conn = open(dsn)?;
    // The reference forces both, whatever the connection string says.
    let set = || -> rusqlite::Result<()> {
        conn.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
        conn.execute_batch(dsn.level().pragma())?;
        // Pages that a savepoint may restore are kept in memory, not in a temporary file.
        conn.pragma_update(None, "temp_store", "MEMORY")?;
        conn.pragma_update(None, "foreign_keys", true)
    };
    set().map_err(|error| with_path(error, dsn))?;
    Ok(SqliteSession::new(conn))
}

/// Opens a connection that reads only. It may write to the `-shm` file, which WAL readers have to.
pub(crate) fn open_reader(dsn: &Dsn) -> Sql<SqliteSession> {
    let conn = open(dsn)?;
    conn.pragma_update(None, "query_only", true).map_err(|error| with_path(error, dsn))?;
    Ok(SqliteSession::new(conn))
}

fn open(dsn: &Dsn) -> Sql<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_URI
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let prepare = || -> rusqlite::Result<Connection> {
        let conn = Connection::open_with_flags(dsn.target(), flags)?;
        conn.busy_timeout(dsn.busy_timeout())?;
        conn.pragma_update(None, "cache_size", dsn.cache_size())?;
        conn.set_prepared_statement_cache_capacity(STATEMENTS);
        // A database that is not one is found out here and not at the first query.
        conn.query_row("SELECT COUNT(*) FROM sqlite_master", [], |_| Ok(()))?;
        Ok(conn)
    };
    prepare().map_err(|error| with_path(error, dsn))
}

/// Adds the path to an error of opening: "unable to open database file" alone does not say which.
fn with_path(error: rusqlite::Error, dsn: &Dsn) -> Fault {
    let path = dsn.display();
    let told = |message: String| if message.contains(path) { message } else { format!("{message}: {path}") };
    Fault(match Fault::from(error).0 {
        Error::Unavailable(message) => Error::Unavailable(told(message)),
        Error::Internal(message) => Error::Internal(told(message)),
        other => other,
    })
}

/// How long a statement waits for another process that writes, unless the connection string says.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Page cache of a connection, unless the connection string says: SQLite's own default, 2 MiB.
const CACHE_SIZE: i64 = -2000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commits_wait_for_the_disk_unless_told_otherwise() {
        let folder = tempfile::tempdir().unwrap();
        for (parameters, expected) in
            [("", 2), ("?_synchronous=EXTRA", 3), ("?_sync=NORMAL", 1), ("?_synchronous=OFF", 0)]
        {
            let dsn = Dsn::parse(&format!("{}{parameters}", folder.path().join("db").display())).unwrap();
            let writer = open_writer(&dsn).map_err(|fault| fault.0).unwrap();
            let level: i64 =
                writer.connection().query_row("PRAGMA synchronous", [], |row| row.get(0)).unwrap();
            assert_eq!(level, expected, "{parameters}");
        }
    }
}
