//! Connections that read, on blocking threads. Each is opened when there is none idle.

use std::sync::Arc;

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
            if conn.is_autocommit() {
                // Under the lock, so that `close` either sees the connection or is seen here.
                let mut idle = pool.idle.lock();
                if !pool.permits.is_closed() {
                    idle.push(conn);
                }
            }
            drop(permit);
            outcome.map_err(|fault| fault.0)
        };
        tokio::task::spawn_blocking(read)
            .await
            .unwrap_or_else(|_| Err(Error::Internal("a read panicked".into())))
    }

    /// Ends the idle connections and refuses further reads; a read that runs ends by itself.
    pub(crate) fn close(&self) {
        self.0.permits.close();
        self.0.idle.lock().clear();
    }
}

fn snapshot<T>(conn: &mut SqliteSession, work: impl FnOnce(&mut dyn Session) -> Sql<T>) -> Sql<T> {
    conn.control("BEGIN")?;
    let outcome = work(conn);
    // Nothing was written: how the transaction ends does not matter.
    conn.control("ROLLBACK")?;
    outcome
}
