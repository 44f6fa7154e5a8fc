//! A bounded pool of connections, with the settings of Go's `database/sql`, which the reference has.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use spire_ports::datastore::{Error, Result};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::{info, warn};

use super::{Dial, Transact};
use crate::config::SqlConfig;

/// Connections at once, and idle ones, unless the configuration says (pkg/server/datastore/sqlstore: openDB).
const CONNECTIONS: usize = 100;

/// How long a connection may be idle. The reference's, which has no setting for it.
const IDLE_MAX: Duration = Duration::from_secs(30);

/// How long an operation waits for its turn. Callers of an overloaded server are better told than kept.
const WAIT_MAX: Duration = Duration::from_secs(20);

/// The way to a server.
pub(crate) struct Pool<D: Dial> {
    dialler: Arc<D>,
    permits: Arc<Semaphore>,
    idle: Arc<Mutex<Vec<Idle<D::Session>>>>,
    idle_max: usize,
    lifetime: Option<Duration>,
}

struct Idle<S> {
    session: S,
    made: Instant,
    since: Instant,
}

/// A connection that an operation has for itself.
pub(crate) struct Lease<S> {
    pub(crate) session: S,
    made: Instant,
    /// Whether it was idle before, and may have been lost meanwhile.
    pub(crate) reused: bool,
    _permit: OwnedSemaphorePermit,
}

impl<D: Dial> Pool<D> {
    /// Opens a database, which the log says. The first operation connects.
    pub(crate) fn open(dialler: Arc<D>, config: &SqlConfig, runtime: &Handle) -> Self {
        info!(subsystem_name = "sql", db_type = config.database_type, "Opening SQL database");
        let count = |wanted: Option<u32>| wanted.map(|n| usize::try_from(n).unwrap_or(usize::MAX));
        // Zero is no bound on connections; on idle ones it means none.
        let open = match count(config.max_open_conns) {
            None => CONNECTIONS,
            Some(0) => Semaphore::MAX_PERMITS,
            Some(wanted) => wanted.min(Semaphore::MAX_PERMITS),
        };
        let pool = Self {
            dialler,
            permits: Arc::new(Semaphore::new(open)),
            idle: Arc::default(),
            idle_max: count(config.max_idle_conns).unwrap_or(CONNECTIONS).min(open),
            lifetime: config.conn_max_lifetime,
        };
        runtime.spawn(end_idle(Arc::downgrade(&pool.idle), pool.lifetime));
        pool
    }

    /// Opens the read-only database and greets it. Blocks. One that is away does not keep a server from starting.
    pub(crate) fn open_replica<T>(
        dialler: Arc<D>,
        config: &SqlConfig,
        runtime: &Handle,
        greet: impl AsyncFnOnce(&Self) -> Result<T>,
    ) -> Self {
        let pool = Self::open(dialler, config, runtime);
        if let Err(error) = runtime.block_on(greet(&pool)) {
            warn!(
                subsystem_name = "sql",
                error = %error,
                "The read-only database cannot be reached; reading from the primary"
            );
        }
        pool
    }

    /// A connection, idle or new. `fresh` asks for a new one: idle ones have proven to be lost.
    pub(crate) async fn lease(&self, fresh: bool) -> Result<Lease<D::Session>> {
        let turn = tokio::time::timeout(WAIT_MAX, Arc::clone(&self.permits).acquire_owned()).await;
        let permit = match turn {
            Ok(Ok(permit)) => permit,
            Ok(Err(_)) => return Err(Error::Unavailable("the datastore is closed".into())),
            Err(_) => {
                let text = "all connections of the pool are busy; max_open_conns may be too low for the load";
                return Err(Error::Unavailable(text.into()));
            }
        };
        if fresh {
            self.idle.lock().clear();
        }
        // The one that was used last: the others may end of being idle.
        while let Some(Idle { session, made, .. }) = self.pop() {
            if !session.is_lost() && !outlived(made, self.lifetime) {
                return Ok(Lease { session, made, reused: true, _permit: permit });
            }
        }
        let session = self.dialler.connect().await?;
        Ok(Lease { session, made: Instant::now(), reused: false, _permit: permit })
    }

    fn pop(&self) -> Option<Idle<D::Session>> {
        self.idle.lock().pop()
    }

    /// Takes a connection back whose transaction has ended.
    pub(crate) fn give_back(&self, lease: Lease<D::Session>) {
        let Lease { session, made, .. } = lease;
        let mut idle = self.idle.lock();
        let useful = !session.is_lost() && !outlived(made, self.lifetime) && !self.permits.is_closed();
        if useful && idle.len() < self.idle_max {
            idle.push(Idle { session, made, since: Instant::now() });
        }
    }

    /// Runs the work on a connection, outside of any transaction.
    pub(crate) async fn once<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut D::Session) -> T + Send + 'static,
    ) -> Result<T> {
        let mut lease = self.lease(false).await?;
        let (lease, done) = tokio::task::spawn_blocking(move || {
            let done = work(&mut lease.session);
            (lease, done)
        })
        .await
        .map_err(|_| Error::Internal("opening the database panicked".into()))?;
        self.give_back(lease);
        Ok(done)
    }

    /// Ends idle connections and refuses further operations.
    pub(crate) fn close(&self) {
        self.permits.close();
        self.idle.lock().clear();
    }
}

fn outlived(made: Instant, lifetime: Option<Duration>) -> bool {
    lifetime.is_some_and(|lifetime| made.elapsed() > lifetime)
}

/// Ends connections that were idle for long, as long as there is a pool.
async fn end_idle<S: Transact>(idle: Weak<Mutex<Vec<Idle<S>>>>, lifetime: Option<Duration>) {
    let mut tick = tokio::time::interval(IDLE_MAX / 4);
    loop {
        tick.tick().await;
        let Some(idle) = idle.upgrade() else { return };
        idle.lock().retain(|idle| {
            idle.since.elapsed() < IDLE_MAX && !outlived(idle.made, lifetime) && !idle.session.is_lost()
        });
    }
}
