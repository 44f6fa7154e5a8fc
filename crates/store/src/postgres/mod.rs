//! PostgreSQL, and engines that speak its protocol: connections in a pool, an operation a transaction, repeated where
//! others were in its way.

mod connect;
mod fault;
mod hints;
mod pool;
mod session;
pub(crate) mod stream;
mod wire;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use spire_ports::datastore::{Consistency, Error, EventId, Result};
use tokio::runtime::Handle;
use tracing::{info, warn};

use crate::aws::RdsLogin;
use crate::config::{DatabaseType, SqlConfig};
use crate::convert::{integer, text_or_empty};
use crate::dsn::libpq::ConnectionString;
use crate::fault::Sql;
use crate::schema::migrate;
use crate::sql::{Isolation, Session, params};

use connect::Connector;
use fault::Meaning;
use hints::Hints;
use pool::{Lease, Pool};
use session::PgSession;

/// How often an operation is tried at most. Conflicts among a handful of servers end after one or two; what loses
/// more often than this is better told to its caller.
const ATTEMPTS: u32 = 12;

/// The longest wait between attempts; the first ones are much shorter.
const BACKOFF_MAX: Duration = Duration::from_millis(250);

/// A database on a server.
pub(crate) struct Postgres {
    primary: Pool,
    /// Where reads go that tolerate stale data.
    replica: Option<Pool>,
    /// One at a time among the operations of this server that rest on what they did not find: against each other
    /// they would mostly fail and be repeated.
    absence: tokio::sync::Mutex<()>,
    hints: Hints,
}

/// What an operation does with its transaction.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Read,
    Write(Isolation),
}

impl Kind {
    /// What begins its transaction. A read sees one snapshot. A write sees what the isolation asks for: statements
    /// that stand for themselves run on READ COMMITTED; rows that are read and written back make a REPEATABLE READ
    /// fail where another wrote them; what must stay absent needs SERIALIZABLE. Engines without one of these levels
    /// take the next stronger.
    fn begin(self) -> &'static str {
        match self {
            Self::Read => "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
            Self::Write(Isolation::Statement) => "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE",
            Self::Write(Isolation::Rows) => "BEGIN ISOLATION LEVEL REPEATABLE READ READ WRITE",
            Self::Write(Isolation::Absence) => "BEGIN ISOLATION LEVEL SERIALIZABLE READ WRITE",
        }
    }
}

/// How an attempt ended.
enum Outcome<T> {
    Done(Result<T>),
    /// Nothing was committed, and another attempt may go better; the error is for the case that none is left.
    Again(Error, Meaning),
}

impl Postgres {
    /// Connects, and brings the schema up to date. Blocks; needs a runtime to be entered.
    pub(crate) fn open(config: &SqlConfig, kind: DatabaseType) -> Result<Self> {
        let connector = Arc::new(connector_of(config, kind, &config.connection_string)?);
        let replica = match config.ro_connection_string.as_str() {
            "" => None,
            text => Some(Arc::new(connector_of(config, kind, text)?)),
        };
        let runtime = Handle::try_current()
            .map_err(|_| Error::Invalid("datastore-sql: a database server needs an async runtime".into()))?;
        info!(subsystem_name = "sql", db_type = config.database_type, "Opening SQL database");
        let primary = Pool::new(Arc::clone(&connector), config, runtime.clone());
        let hints = runtime.block_on(async {
            let mut lease = primary.lease(false).await?;
            let (lease, opened) = tokio::task::spawn_blocking({
                let config = config.clone();
                move || {
                    let opened = prepare(&mut lease.session, &config, false);
                    let hears = opened.is_ok() && hints::are_supported(&mut lease.session);
                    (lease, opened.map(|()| hears))
                }
            })
            .await
            .map_err(|_| Error::Internal("opening the database panicked".into()))?;
            primary.give_back(lease);
            opened
        })?;
        let hints = Hints::start(connector, hints, &runtime);
        let replica = replica.map(|connector| {
            info!(subsystem_name = "sql", db_type = config.database_type, "Opening SQL database");
            Pool::new(connector, config, runtime.clone())
        });
        if let Some(replica) = &replica {
            runtime.block_on(greet_replica(replica, config));
        }
        Ok(Self { primary, replica, absence: tokio::sync::Mutex::default(), hints })
    }

    /// Runs the work on a snapshot; of the replica, if there is one that answers and is consistent enough.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        consistency: Consistency,
        mut work: impl FnMut(&mut dyn Session) -> Sql<T> + Send + 'static,
    ) -> Result<T> {
        let Some(replica) = self.replica.as_ref().filter(|_| consistency != Consistency::Current) else {
            return self.run(&self.primary, Kind::Read, work).await.0;
        };
        let recent = match consistency {
            Consistency::Seen(event) => {
                let counted =
                    self.run(&self.primary, Kind::Read, move |session| recent_events(session, event));
                counted.await.0?
            }
            _ => 0,
        };
        let on_replica = Arc::new(AtomicBool::new(true));
        let checks = Arc::clone(&on_replica);
        // The check and the work see one snapshot.
        let checked = move |session: &mut dyn Session| match consistency {
            Consistency::Seen(event) if checks.load(Relaxed) && recent_events(session, event)? < recent => {
                Err(Error::Unavailable("it lags behind".into()).into())
            }
            _ => work(session),
        };
        let (outcome, checked) = self.run(replica, Kind::Read, checked).await;
        match (outcome, checked) {
            (Err(Error::Unavailable(text)), Some(checked)) => {
                warn!(
                    subsystem_name = "sql",
                    error = text,
                    "The read-only database cannot be read from; reading from the primary instead"
                );
                on_replica.store(false, Relaxed);
                self.run(&self.primary, Kind::Read, checked).await.0
            }
            (outcome, _) => outcome,
        }
    }

    /// Runs the work in a transaction.
    pub(crate) async fn write<T: Send + 'static>(
        &self,
        isolation: Isolation,
        work: impl FnMut(&mut dyn Session) -> Sql<T> + Send + 'static,
    ) -> Result<T> {
        let _turn = match isolation {
            Isolation::Absence => Some(self.absence.lock().await),
            Isolation::Statement | Isolation::Rows => None,
        };
        self.run(&self.primary, Kind::Write(isolation), work).await.0
    }

    /// Resolves when another server is said to have written.
    pub(crate) async fn changed(&self) {
        self.hints.heard().await;
    }

    /// Ends the connections that are idle; the others end with their operations. Later operations fail.
    pub(crate) fn close(&self) {
        self.hints.stop();
        self.primary.close();
        if let Some(replica) = &self.replica {
            replica.close();
        }
    }

    /// Tries until it is done. Gives the work back unless it panicked.
    async fn run<T, W>(&self, pool: &Pool, kind: Kind, mut work: W) -> (Result<T>, Option<W>)
    where
        T: Send + 'static,
        W: FnMut(&mut dyn Session) -> Sql<T> + Send + 'static,
    {
        let own = self.hints.own_name();
        let mut fresh = false;
        let mut attempt = 1;
        loop {
            let mut lease = match pool.lease(fresh).await {
                Ok(lease) => lease,
                Err(error) => return (Err(error), Some(work)),
            };
            let reused = lease.reused;
            let own = own.clone();
            let ran = tokio::task::spawn_blocking(move || {
                let outcome = try_once(&mut lease, kind, own.as_deref(), &mut work);
                (outcome, lease, work)
            });
            let Ok((outcome, lease, back)) = ran.await else {
                return (Err(Error::Internal("a database operation panicked".into())), None);
            };
            work = back;
            pool.give_back(lease);
            match outcome {
                Outcome::Done(result) => return (result, Some(work)),
                Outcome::Again(error, why) => {
                    let retry = match why {
                        // A connection that was idle may have been lost long ago: a new one tells. One that was
                        // made for this and is lost again means that the server is not well.
                        Meaning::Lost => reused && !fresh,
                        // The second time it is what it says.
                        Meaning::Duplicate => attempt == 1,
                        Meaning::Conflict => attempt < ATTEMPTS,
                        Meaning::Statement => false,
                    };
                    if !retry {
                        return (Err(error), Some(work));
                    }
                    fresh = why == Meaning::Lost;
                    if why == Meaning::Conflict {
                        tokio::time::sleep(backoff(attempt)).await;
                    }
                    attempt += 1;
                }
            }
        }
    }
}

/// Waits longer each time, and never as long as a competitor that started with us.
fn backoff(attempt: u32) -> Duration {
    use std::hash::{BuildHasher, RandomState};
    let bound = Duration::from_millis(2 << attempt.min(8)).min(BACKOFF_MAX);
    let part = u32::try_from(RandomState::new().hash_one(attempt) % 1000).unwrap_or(0);
    bound / 4 + bound * part / 1000
}

/// One transaction.
fn try_once<T>(
    lease: &mut Lease,
    kind: Kind,
    own: Option<&str>,
    work: &mut impl FnMut(&mut dyn Session) -> Sql<T>,
) -> Outcome<T> {
    let session = &mut lease.session;
    let begun = match kind {
        Kind::Read => {
            session.begin_later(kind.begin());
            Ok(())
        }
        Kind::Write(_) => session.begin(kind.begin()),
    };
    if let Err(fault) = begun {
        return failed(session, fault.0);
    }
    // A panic must not leave a transaction open in the pool.
    let done = catch_unwind(AssertUnwindSafe(|| work(session)))
        .unwrap_or_else(|_| Err(Error::Internal("a database operation panicked".into()).into()));
    match (done, kind) {
        (Ok(value), Kind::Read) => {
            session.end_reading();
            Outcome::Done(Ok(value))
        }
        (Ok(value), Kind::Write(_)) => commit(session, own, value),
        (Err(fault), Kind::Read) => {
            session.end_reading();
            failed(session, fault.0)
        }
        (Err(fault), Kind::Write(_)) => {
            let outcome = failed(session, fault.0);
            if !session.is_lost() {
                // If this fails too, the connection is marked as lost and not used again.
                let _ = session.batch("ROLLBACK");
            }
            outcome
        }
    }
}

/// Ends a transaction that wrote.
fn commit<T>(session: &mut PgSession, own: Option<&str>, value: T) -> Outcome<T> {
    if session.worst().is_some() {
        // A statement failed and nothing undid it: the transaction is over, and a COMMIT would say so in silence.
        let _ = session.batch("ROLLBACK");
        return failed(session, Error::Unavailable("the transaction was rolled back".into()));
    }
    // In one message: the announcement costs no round trip.
    let commit = match own.filter(|_| session.is_announced()) {
        Some(own) => session.batch(&format!("{}; COMMIT", hints::announcement(own))),
        None => session.batch("COMMIT"),
    };
    match commit {
        Ok(()) => Outcome::Done(Ok(value)),
        Err(fault) if session.worst() == Some(Meaning::Conflict) => failed(session, fault.0),
        // Whether it was committed is not known, so that it must not be repeated.
        Err(fault) if session.is_lost() => Outcome::Done(Err(Error::Unavailable(format!(
            "the connection was lost while committing; the change may have been made or not: {}",
            text_of(fault.0)
        )))),
        Err(fault) => {
            // Where the announcement failed the transaction is still open.
            let _ = session.batch("ROLLBACK");
            Outcome::Done(Err(fault.0))
        }
    }
}

/// How many ids of events up to one are counted: more than those of transactions that run at once.
const RECENT: i64 = 1000;

/// How many entry events are visible of those up to this one. A replica shows no more of them than the primary did
/// before, and as many only where it shows the same: ids are not in the order of commits, so that the latest
/// alone would not tell.
pub(crate) fn recent_events(session: &mut dyn Session, event: EventId) -> Sql<i64> {
    let last = i64::try_from(event).unwrap_or(i64::MAX);
    let mut count = 0;
    session.query(
        "SELECT COUNT(*) FROM registered_entries_events WHERE id > ?1 AND id <= ?2",
        params![last.saturating_sub(RECENT), last],
        &mut |row| {
            count = integer(row, 0)?;
            Ok(false)
        },
    )?;
    Ok(count)
}

fn text_of(error: Error) -> String {
    match error {
        Error::Unavailable(text) | Error::Internal(text) => text,
        other => other.to_string(),
    }
}

/// An attempt that has committed nothing.
fn failed<T>(session: &PgSession, error: Error) -> Outcome<T> {
    match session.worst() {
        Some(why @ (Meaning::Conflict | Meaning::Duplicate | Meaning::Lost)) => Outcome::Again(error, why),
        Some(Meaning::Statement) | None if session.is_lost() => Outcome::Again(error, Meaning::Lost),
        Some(Meaning::Statement) | None => Outcome::Done(Err(error)),
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

/// Looks at the version and, on the primary, at the schema.
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

/// A replica that is away does not keep a server from starting.
async fn greet_replica(replica: &Pool, config: &SqlConfig) {
    let greeted = async {
        let mut lease = replica.lease(false).await?;
        let config = config.clone();
        let (lease, prepared) = tokio::task::spawn_blocking(move || {
            let prepared = prepare(&mut lease.session, &config, true);
            (lease, prepared)
        })
        .await
        .map_err(|_| Error::Internal("opening the database panicked".into()))?;
        replica.give_back(lease);
        prepared
    };
    if let Err(error) = greeted.await {
        warn!(subsystem_name = "sql", error = %error, "The read-only database cannot be reached; reading from the primary");
    }
}

#[cfg(test)]
mod tests;
