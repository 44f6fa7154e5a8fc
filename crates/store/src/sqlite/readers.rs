//! Connections that read, on blocking threads or at once. Each is opened when there is none idle.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use spire_ports::datastore::{Error, Result};
use tokio::sync::Semaphore;

use super::session::SqliteSession;
use super::{Dsn, open_reader};
use crate::fault::Sql;
use crate::sql::Session;

/// A bounded pool of connections. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Readers(Arc<Pool>);

struct Pool {
    dsn: Dsn,
    permits: Arc<Semaphore>,
    idle: Mutex<Vec<SqliteSession>>,
}

impl Readers {
    /// A pool of at most `size` connections, none of them open yet.
    pub(crate) fn new(dsn: Dsn, size: usize) -> Self {
        Self(Arc::new(Pool {
            dsn,
            permits: Arc::new(Semaphore::new(size.max(1))),
            idle: Mutex::new(Vec::new()),
        }))
    }

    /// Runs the work on a snapshot of the database: all its statements see the same state, the latest
    /// commit included.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut dyn Session) -> Sql<T> + Send + 'static,
    ) -> Result<T> {
        let closed = || Error::Unavailable("the datastore is closed".into());
        let permit = self.0.permits.clone().acquire_owned().await.map_err(|_| closed())?;
        let pool = self.0.clone();
        let read = move || {
            let idle = pool.idle.lock().pop();
            let mut conn = match idle {
                Some(conn) => conn,
                None => open_reader(&pool.dsn).map_err(|fault| fault.0)?,
            };
            let outcome = snapshot(&mut conn, work);
            pool.keep(conn);
            drop(permit);
            outcome.map_err(|fault| fault.0)
        };
        tokio::task::spawn_blocking(read)
            .await
            .unwrap_or_else(|_| Err(Error::Internal("a read panicked".into())))
    }

    /// As [`Readers::read`], for one statement that reads a row by its key: on this thread, where a connection is idle and nothing
    /// has to be waited for. Such a read takes less than the way to another thread and back (docs/adr/0004). A statement alone is a
    /// snapshot by itself, and what begins and ends a transaction would be a fourth of its cost.
    pub(crate) async fn read_row<T: Send + 'static>(
        &self,
        mut work: impl FnMut(&mut dyn Session) -> Sql<T> + Send + 'static,
    ) -> Result<T> {
        match self.at_once(|conn| work(conn)) {
            Some(row) => Ok(row),
            None => self.read(work).await,
        }
    }

    /// As [`Readers::read_row`], for a row and what belongs to it in other tables.
    pub(crate) async fn read_item<T: Send + 'static>(
        &self,
        mut work: impl FnMut(&mut dyn Session) -> Sql<T> + Send + 'static,
    ) -> Result<T> {
        match self.at_once(|conn| snapshot(conn, &mut work)) {
            Some(item) => Ok(item),
            None => self.read(work).await,
        }
    }

    fn at_once<T>(&self, read: impl FnOnce(&mut SqliteSession) -> Sql<T>) -> Option<T> {
        let _permit = self.0.permits.try_acquire().ok()?;
        let mut conn = self.0.idle.lock().pop()?;
        conn.wait_at_most(Duration::ZERO);
        let outcome = read(&mut conn);
        conn.wait_at_most(self.0.dsn.busy_timeout());
        self.0.keep(conn);
        // An error may be that of a lock, and comes again where it is another.
        outcome.ok()
    }

    /// Ends the idle connections and refuses further reads; a read that runs ends by itself.
    pub(crate) fn close(&self) {
        self.0.permits.close();
        self.0.idle.lock().clear();
    }
}

impl Pool {
    /// Takes a connection back, unless work left it in a state that nobody knows.
    fn keep(&self, conn: SqliteSession) {
        if conn.is_autocommit() {
            // Under the lock, so that `close` either sees the connection or is seen here.
            let mut idle = self.idle.lock();
            if !self.permits.is_closed() {
                idle.push(conn);
            }
        }
    }
}

fn snapshot<T>(conn: &mut SqliteSession, work: impl FnOnce(&mut dyn Session) -> Sql<T>) -> Sql<T> {
    conn.control("BEGIN")?;
    let outcome = work(conn);
    // Nothing was written: how the transaction ends does not matter.
    conn.control("ROLLBACK")?;
    outcome
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread::{self, ThreadId};

    use super::super::open_writer;
    use super::*;

    async fn row(readers: &Readers) -> ThreadId {
        readers.read_row(|_| Ok(thread::current().id())).await.unwrap()
    }

    #[tokio::test]
    async fn a_row_is_read_on_this_thread_where_a_connection_is_idle() {
        let folder = tempfile::tempdir().unwrap();
        let dsn = Dsn::parse(&folder.path().join("db").display().to_string()).unwrap();
        let _writer = open_writer(&dsn).map_err(|fault| fault.0).unwrap();
        let readers = Readers::new(dsn, 1);
        let here = thread::current().id();
        assert_ne!(row(&readers).await, here, "the connection had to be opened");
        assert_eq!(row(&readers).await, here);

        let (release, released) = mpsc::channel::<()>();
        let (busy, held) = (readers.clone(), readers.clone());
        let long = tokio::spawn(async move {
            busy.read(move |_| {
                let _ = released.recv();
                Ok(())
            })
            .await
        });
        while held.0.permits.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        let waiting = tokio::spawn(async move { row(&held).await });
        tokio::task::yield_now().await;
        release.send(()).unwrap();
        long.await.unwrap().unwrap();
        assert_ne!(waiting.await.unwrap(), here, "the only connection was busy");

        readers.close();
        assert!(readers.read_row(|_| Ok(())).await.is_err());
    }
}
