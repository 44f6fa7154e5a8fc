//! The one thread that writes. Jobs that queue up while it is busy share a transaction, so that a burst of
//! writers pays for one wait on the disk; each is told of success only after the commit.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::JoinHandle;

use parking_lot::Mutex;
use spire_ports::datastore::{Error, Result};
use tokio::sync::{mpsc, oneshot};
use tracing::error;

use super::dsn::Dsn;
use super::session::SqliteSession;
use crate::fault::{Fault, Sql};
use crate::sql::Session;

/// How many jobs may wait; beyond that callers wait to hand theirs in.
const QUEUE: usize = 256;

/// How many jobs share a transaction at most: a bound on how long the first waits for the last.
const JOBS_PER_TRANSACTION: usize = 64;

/// The way to the thread.
pub(crate) struct Writer {
    messages: mpsc::Sender<Message>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

enum Message {
    Work(Box<dyn Job>),
    Close,
}

/// Something to write, with someone who waits for it.
trait Job: Send {
    /// Does the work in the transaction that is open. Whether its effects are to stay.
    fn run(&mut self, conn: &mut dyn Session) -> bool;
    /// Tells the one who waits, after the transaction ended this way.
    fn settle(self: Box<Self>, commit: &Result<()>);
    /// Tells the one who waits that there was no transaction to run in.
    fn refuse(self: Box<Self>, error: Error);
}

struct Task<T, F> {
    work: Option<F>,
    outcome: Result<T>,
    reply: oneshot::Sender<Result<T>>,
}

impl<T: Send, F: FnOnce(&mut dyn Session) -> Sql<T> + Send> Job for Task<T, F> {
    fn run(&mut self, conn: &mut dyn Session) -> bool {
        let Some(work) = self.work.take() else { return false };
        if self.reply.is_closed() {
            // Whoever asked has gone, and nothing is done yet.
            return false;
        }
        // A panic of one job must not take the writer, and with it all other writes, along.
        self.outcome = catch_unwind(AssertUnwindSafe(|| work(conn)))
            .unwrap_or_else(|_| Err(Fault(Error::Internal("a write panicked".into()))))
            .map_err(|fault| fault.0);
        self.outcome.is_ok()
    }

    fn settle(self: Box<Self>, commit: &Result<()>) {
        let outcome = match (self.outcome, commit) {
            (Ok(_), Err(error)) => Err(error.clone()),
            (outcome, _) => outcome,
        };
        // A caller that has gone does not want to know.
        let _ = self.reply.send(outcome);
    }

    fn refuse(self: Box<Self>, error: Error) {
        let _ = self.reply.send(Err(error));
    }
}

impl Writer {
    /// Starts the thread.
    pub(crate) fn start(mut conn: SqliteSession, dsn: &Dsn) -> Result<Self> {
        let (messages, queue) = mpsc::channel(QUEUE);
        let path = dsn.display().to_owned();
        let thread = std::thread::Builder::new()
            .name("sql-writer".into())
            .spawn(move || serve(&mut conn, queue, &path))
            .map_err(|error| Error::Unavailable(format!("cannot start the writer: {error}")))?;
        Ok(Self { messages, thread: Mutex::new(Some(thread)) })
    }

    /// Runs the work in a transaction; when this returns `Ok`, it is on disk. The work may share its transaction with others,
    /// and its effects are undone when it fails.
    pub(crate) async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut dyn Session) -> Sql<T> + Send + 'static,
    ) -> Result<T> {
        let closed = || Error::Unavailable("the datastore is closed".into());
        let (reply, outcome) = oneshot::channel();
        let task = Task { work: Some(work), outcome: Err(closed()), reply };
        self.messages.send(Message::Work(Box::new(task))).await.map_err(|_| closed())?;
        outcome.await.map_err(|_| closed())?
    }

    /// Lets the thread finish what is queued, and waits for it. Later writes fail.
    pub(crate) async fn close(&self) {
        // An error means that the thread has ended already.
        let _ = self.messages.send(Message::Close).await;
        let thread = self.thread.lock().take();
        if let Some(thread) = thread {
            let joined = tokio::task::spawn_blocking(move || thread.join()).await;
            if !matches!(joined, Ok(Ok(()))) {
                error!(subsystem_name = "sql", "The database writer ended in a panic");
            }
        }
    }
}

fn serve(conn: &mut SqliteSession, mut queue: mpsc::Receiver<Message>, path: &str) {
    let mut transactions = Transactions { conn, path };
    while let Some(message) = queue.blocking_recv() {
        match message {
            Message::Work(job) => transactions.run(job, &mut queue),
            // The rest of the queue is still served; `recv` ends after it.
            Message::Close => queue.close(),
        }
    }
}

/// The connection that writes, transaction after transaction.
struct Transactions<'a> {
    conn: &'a mut SqliteSession,
    path: &'a str,
}

impl Transactions<'_> {
    /// Serves one job and those that wait behind it in one transaction.
    fn run(&mut self, first: Box<dyn Job>, queue: &mut mpsc::Receiver<Message>) {
        if let Err(error) = self.conn.control("BEGIN IMMEDIATE") {
            first.refuse(reported(error.into(), self.path));
            return;
        }
        let mut jobs = Vec::new();
        let mut next = Some(first);
        let mut lost = Ok(());
        while let Some(mut job) = next.take() {
            let ran = if jobs.is_empty() {
                undoable(self.conn, |conn| job.run(conn))
            } else {
                savepoint(self.conn, |conn| job.run(conn)).map(|()| true)
            };
            jobs.push(job);
            match ran {
                Ok(true) => {}
                Ok(false) => break,
                Err(fault) => {
                    lost = Err(reported(fault, self.path));
                    break;
                }
            }
            if jobs.len() < JOBS_PER_TRANSACTION {
                match queue.try_recv() {
                    Ok(Message::Work(job)) => next = Some(job),
                    Ok(Message::Close) => queue.close(),
                    Err(_) => {}
                }
            }
        }
        // The first job may have undone its transaction; then there is nothing to commit.
        let ended = lost.and_then(|()| if self.conn.is_autocommit() { Ok(()) } else { self.commit() });
        if ended.is_err() && !self.conn.is_autocommit() {
            // Nothing more can be done about a rollback that fails; the next BEGIN will report it.
            let _ = self.conn.batch("ROLLBACK");
        }
        for job in jobs {
            job.settle(&ended);
        }
    }

    fn commit(&self) -> Result<()> {
        self.conn.control("COMMIT").map_err(|error| reported(Fault::from(error), self.path))
    }
}

/// Runs the first job of a transaction: undoing it is undoing the transaction, which costs nothing until it
/// happens. Whether the transaction is still open.
fn undoable(conn: &mut SqliteSession, run: impl FnOnce(&mut dyn Session) -> bool) -> Sql<bool> {
    let keep = run(conn);
    match (keep, conn.is_autocommit()) {
        (true, true) => Err(rolled_back()),
        (true, false) => Ok(true),
        (false, true) => Ok(false),
        (false, false) => {
            conn.batch("ROLLBACK")?;
            Ok(false)
        }
    }
}

/// A full disk, among others, makes SQLite roll back everything.
fn rolled_back() -> Fault {
    Error::Unavailable("the transaction was rolled back".into()).into()
}

/// Runs a further job so that it can be undone alone. An error means that the whole transaction is lost.
fn savepoint(conn: &mut SqliteSession, run: impl FnOnce(&mut dyn Session) -> bool) -> Sql<()> {
    conn.control("SAVEPOINT job")?;
    let keep = run(conn);
    if conn.is_autocommit() {
        return Err(rolled_back());
    }
    if !keep {
        conn.control("ROLLBACK TO job")?;
    }
    Ok(conn.control("RELEASE job")?)
}

/// Logs a failure of the database itself with its path, which callers over the network are not told.
fn reported(fault: Fault, path: &str) -> Error {
    error!(subsystem_name = "sql", path, error = %fault.0, "Failed to write to the database");
    fault.0
}
