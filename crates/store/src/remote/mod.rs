//! Databases across a network: an operation is a transaction on a connection of a pool, driven from a thread that may
//! block, and repeated where others were in its way and nothing was committed.

mod pool;
pub(crate) mod stream;

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use spire_ports::datastore::{Consistency, Error, EventId, Result};
use tokio::runtime::Handle;
use tracing::warn;

use crate::config::SqlConfig;
use crate::convert::integer;
use crate::fault::Sql;
use crate::sql::{Isolation, Session, params};

pub(crate) use pool::Pool;

/// How often an operation is tried at most. Conflicts among a handful of servers end after one or two; what loses
/// more often than this is better told to its caller.
pub(crate) const ATTEMPTS: u32 = 12;

/// The longest wait between attempts; the first ones are much shorter.
const BACKOFF_MAX: Duration = Duration::from_millis(250);

/// What makes connections to one kind of database.
pub(crate) trait Dial: Send + Sync + 'static {
    /// A connection.
    type Session: Transact;

    /// A new connection.
    fn connect(&self) -> impl Future<Output = Result<Self::Session>> + Send;
}

/// A session that can begin and end transactions.
pub(crate) trait Transact: Session + Send + Sized + 'static {
    /// Begins a transaction and forgets what happened before it.
    fn begin(&mut self, kind: Kind) -> Sql<()>;

    /// Commits.
    fn commit(&mut self) -> Sql<()>;

    /// Undoes all; where that fails the connection is lost.
    fn roll_back(&mut self);

    /// Whether the connection can be used no more.
    fn is_lost(&self) -> bool;

    /// The worst that happened since the transaction began.
    fn worst(&self) -> Option<Meaning>;

    /// Whether there is nothing left to commit: what failed has ended the transaction, and nothing undid it.
    fn is_over(&self) -> bool;
}

/// What an operation does with its transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    Write(Isolation),
}

/// What an error means for the transaction in which it came up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// The statement is at fault; the connection is well.
    Statement,
    /// Another transaction was in the way. This one did not commit and can be repeated.
    Conflict,
    /// A row with that key came to be. A repetition would find it.
    Duplicate,
    /// The connection is lost, or the server is about to end it.
    Lost,
}

/// A database on a server.
pub(crate) struct Remote<D: Dial> {
    primary: Pool<D>,
    /// Where reads go that tolerate stale data.
    replica: Option<Pool<D>>,
    /// One at a time among the operations of this server that rest on what they did not find: against each other
    /// they would mostly wait or fail.
    absence: tokio::sync::Mutex<()>,
}

/// Where the drivers of connections run.
pub(crate) fn runtime() -> Result<Handle> {
    Handle::try_current()
        .map_err(|_| Error::Invalid("datastore-sql: a database server needs an async runtime".into()))
}

/// The ways to the primary and, where the configuration has one, to the replica.
pub(crate) fn diallers<D: Dial>(
    config: &SqlConfig,
    parse: impl Fn(&str) -> Result<D>,
) -> Result<(Arc<D>, Option<Arc<D>>)> {
    let primary = parse(&config.connection_string)?;
    let replica = match config.ro_connection_string.as_str() {
        "" => None,
        text => Some(Arc::new(parse(text)?)),
    };
    Ok((Arc::new(primary), replica))
}

/// How an attempt ended.
enum Outcome<T> {
    Done(Result<T>),
    /// Nothing was committed, and another attempt may go better; the error is for the case that none is left.
    Again(Error, Meaning),
}

impl<D: Dial> Remote<D> {
    pub(crate) fn new(primary: Pool<D>, replica: Option<Pool<D>>) -> Self {
        Self { primary, replica, absence: tokio::sync::Mutex::default() }
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

    /// Ends the connections that are idle; the others end with their operations. Later operations fail.
    pub(crate) fn close(&self) {
        self.primary.close();
        if let Some(replica) = &self.replica {
            replica.close();
        }
    }

    /// Tries until it is done. Gives the work back unless it panicked.
    async fn run<T, W>(&self, pool: &Pool<D>, kind: Kind, mut work: W) -> (Result<T>, Option<W>)
    where
        T: Send + 'static,
        W: FnMut(&mut dyn Session) -> Sql<T> + Send + 'static,
    {
        let mut fresh = false;
        let mut attempt = 1;
        loop {
            let mut lease = match pool.lease(fresh).await {
                Ok(lease) => lease,
                Err(error) => return (Err(error), Some(work)),
            };
            let reused = lease.reused;
            let ran = tokio::task::spawn_blocking(move || {
                let outcome = try_once(&mut lease.session, kind, &mut work);
                (outcome, lease, work)
            });
            let Ok((outcome, lease, back)) = ran.await else {
                return (Err(Error::Internal("a database operation panicked".into())), None);
            };
            work = back;
            pool.give_back(lease);
            let (error, why) = match outcome {
                Outcome::Done(result) => return (result, Some(work)),
                Outcome::Again(error, why) => (error, why),
            };
            let again = match why {
                // A connection that was idle may have been lost long ago: a new one tells. One that was made for
                // this and is lost again means that the server is not well.
                Meaning::Lost => reused && !fresh,
                // The second time it is what it says.
                Meaning::Duplicate => attempt == 1,
                Meaning::Conflict => attempt < ATTEMPTS,
                Meaning::Statement => false,
            };
            if !again {
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

/// Waits longer each time, and never as long as a competitor that started with us.
pub(crate) fn backoff(attempt: u32) -> Duration {
    use std::hash::{BuildHasher, RandomState};
    let bound = Duration::from_millis(2 << attempt.min(8)).min(BACKOFF_MAX);
    let part = u32::try_from(RandomState::new().hash_one(attempt) % 1000).unwrap_or(0);
    bound / 4 + bound * part / 1000
}

/// One transaction.
fn try_once<T>(
    session: &mut impl Transact,
    kind: Kind,
    work: &mut impl FnMut(&mut dyn Session) -> Sql<T>,
) -> Outcome<T> {
    if let Err(fault) = session.begin(kind) {
        return failed(session, fault.0);
    }
    // A panic must not leave a transaction open in the pool.
    let done = catch_unwind(AssertUnwindSafe(|| work(session)))
        .unwrap_or_else(|_| Err(Error::Internal("a database operation panicked".into()).into()));
    match (done, kind) {
        (Ok(value), Kind::Read) => {
            session.roll_back();
            Outcome::Done(Ok(value))
        }
        // Work that went on after a lost race has nothing to commit, and a COMMIT might say so in silence.
        (Ok(_), Kind::Write(_)) if session.is_over() => {
            session.roll_back();
            failed(session, Error::Unavailable("the transaction was rolled back".into()))
        }
        (Ok(value), Kind::Write(_)) => commit(session, value),
        (Err(fault), _) => {
            let outcome = failed(session, fault.0);
            if !session.is_lost() {
                session.roll_back();
            }
            outcome
        }
    }
}

/// Ends a transaction that wrote.
fn commit<T>(session: &mut impl Transact, value: T) -> Outcome<T> {
    match session.commit() {
        Ok(()) => Outcome::Done(Ok(value)),
        Err(fault) if session.worst() == Some(Meaning::Conflict) => failed(session, fault.0),
        // Whether it was committed is not known, so that it must not be repeated.
        Err(fault) if session.is_lost() => Outcome::Done(Err(Error::Unavailable(format!(
            "the connection was lost while committing; the change may have been made or not: {}",
            text_of(fault.0)
        )))),
        Err(fault) => {
            session.roll_back();
            Outcome::Done(Err(fault.0))
        }
    }
}

/// How many ids of events up to one are counted: more than those of transactions that run at once.
const RECENT: i64 = 1000;

/// How many entry events are visible of those up to this one. A replica shows no more of them than the primary did
/// before, and as many only where it shows the same: ids are not in the order of commits, so that the latest
/// alone would not tell.
fn recent_events(session: &mut dyn Session, event: EventId) -> Sql<i64> {
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
fn failed<T>(session: &impl Transact, error: Error) -> Outcome<T> {
    match session.worst() {
        Some(why @ (Meaning::Conflict | Meaning::Duplicate | Meaning::Lost)) => Outcome::Again(error, why),
        Some(Meaning::Statement) | None if session.is_lost() => Outcome::Again(error, Meaning::Lost),
        Some(Meaning::Statement) | None => Outcome::Done(Err(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_short_first_and_bounded() {
        for attempt in 1..=ATTEMPTS {
            let wait = backoff(attempt);
            assert!(wait > Duration::ZERO && wait <= BACKOFF_MAX * 5 / 4, "{attempt}: {wait:?}");
        }
        assert!(backoff(1) < Duration::from_millis(10));
    }
}
