//! A session on PostgreSQL: a connection for the length of an operation, driven from a thread that may block.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::{FutureExt, TryStreamExt, pin_mut};
use spire_ports::datastore::Error;
use tokio::runtime::Handle;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Statement};

use super::fault::{meaning, of};
use super::hints;
use super::wire::type_of;
use crate::fault::{Fault, Sql};
use crate::remote::{Kind, Meaning, Transact};
use crate::sql::{Dialect, Isolation, Param, Row, Session};

/// How many prepared statements a connection keeps: more than this crate has texts in common use.
const STATEMENTS: usize = 256;

/// How long the server may be silent while an answer is due. Longer than any statement of this crate takes, and
/// short enough that a server behind a dead network does not hold callers for minutes.
const SILENCE: Duration = Duration::from_secs(30);

/// A connection and what was prepared on it.
pub(super) struct PgSession {
    client: Client,
    runtime: Handle,
    /// What notifications of this server carry, once it is known that the database has them.
    own: Arc<OnceLock<Arc<str>>>,
    statements: HashMap<Box<str>, Statement>,
    changes: u64,
    /// Whether the transaction only reads.
    reading: bool,
    /// A transaction that only reads is begun together with its first statement.
    pending: Option<&'static str>,
    /// The worst that happened since the transaction began.
    worst: Option<Meaning>,
    announced: bool,
}

/// What begins a transaction. A read sees one snapshot. A write sees what the isolation asks for: statements
/// that stand for themselves run on READ COMMITTED; rows that are read and written back make a REPEATABLE READ
/// fail where another wrote them; what must stay absent needs SERIALIZABLE. Engines without one of these levels
/// take the next stronger.
fn beginning(kind: Kind) -> &'static str {
    match kind {
        Kind::Read => "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
        Kind::Write(Isolation::Statement) => "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE",
        Kind::Write(Isolation::Rows) => "BEGIN ISOLATION LEVEL REPEATABLE READ READ WRITE",
        Kind::Write(Isolation::Absence) => "BEGIN ISOLATION LEVEL SERIALIZABLE READ WRITE",
    }
}

impl PgSession {
    pub(super) fn new(client: Client, runtime: Handle, own: Arc<OnceLock<Arc<str>>>) -> Self {
        Self {
            client,
            runtime,
            own,
            statements: HashMap::new(),
            changes: 0,
            reading: false,
            pending: None,
            worst: None,
            announced: false,
        }
    }

    /// Lets others go ahead.
    pub(super) fn pause(&self, wait: Duration) {
        self.runtime.block_on(tokio::time::sleep(wait));
    }

    /// Takes what happened as dealt with.
    pub(super) fn forget(&mut self) {
        self.worst = self.worst.filter(|worst| *worst == Meaning::Lost);
    }

    /// The prepared statement of a text, from now on known.
    async fn prepared(
        client: &Client,
        statements: &mut HashMap<Box<str>, Statement>,
        sql: &str,
        tail: &str,
        params: &[Param<'_>],
    ) -> Result<Statement, tokio_postgres::Error> {
        if let Some(statement) = statements.get(sql) {
            return Ok(statement.clone());
        }
        let text = Dialect::Postgres.translate(sql);
        let types: Vec<Type> = params.iter().map(type_of).collect();
        let statement = client.prepare_typed(&format!("{text}{tail}"), &types).await?;
        if statements.len() >= STATEMENTS {
            statements.clear();
        }
        statements.insert(sql.into(), statement.clone());
        Ok(statement)
    }

    /// Runs a statement and hands out its rows; returns how many it touched.
    fn run(
        &mut self,
        sql: &str,
        tail: &str,
        params: &[Param<'_>],
        each: &mut dyn FnMut(&dyn Row) -> Sql<bool>,
    ) -> Sql<u64> {
        let Self { client, runtime, statements, pending, .. } = self;
        let begin = pending.take();
        let work = async {
            let begun = async {
                match begin {
                    Some(sql) => client.batch_execute(sql).await,
                    None => Ok(()),
                }
            };
            let answered = async {
                let statement = Self::prepared(client, statements, sql, tail, params).await?;
                let params = params.iter().map(|param| -> &(dyn ToSql + Sync) { param });
                client.query_raw(&statement, params).await
            };
            // The first is sent first: both travel together. Only reads are begun so, since the second would run
            // without a transaction if the first failed.
            let both = async {
                let (begun, answered) = tokio::join!(begun, answered);
                begun.and(answered)
            };
            let rows = heard(both).await?;
            pin_mut!(rows);
            while let Some(row) = heard(rows.try_next()).await? {
                match each(&row) {
                    Ok(true) => {}
                    Ok(false) => return Ok(Ok(0)),
                    Err(fault) => return Ok(Err(fault)),
                }
            }
            Ok::<_, Trouble>(Ok(rows.rows_affected().unwrap_or(0)))
        };
        match runtime.block_on(work) {
            Ok(outcome) => outcome,
            Err(error) => Err(self.failed(error)),
        }
    }

    fn failed(&mut self, error: Trouble) -> Fault {
        let (found, fault) = match &error {
            Trouble::Reported(error) => (meaning(error), of(error)),
            Trouble::Silent => (Meaning::Lost, Error::Unavailable(SILENT.into())),
        };
        // The first one counts: what follows it is that the transaction is over.
        if self.worst.is_none() || found == Meaning::Lost {
            self.worst = Some(found);
        }
        fault.into()
    }

    /// An error that was dealt with: a savepoint undid it.
    fn forgive(&mut self) {
        if matches!(self.worst, Some(Meaning::Statement | Meaning::Duplicate)) {
            self.worst = None;
        }
    }
}

const SILENT: &str = "the database does not answer";

/// Why a statement failed.
enum Trouble {
    Reported(tokio_postgres::Error),
    Silent,
}

impl From<tokio_postgres::Error> for Trouble {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Reported(error)
    }
}

/// Waits for the next piece of an answer, but not for ever.
async fn heard<T>(piece: impl Future<Output = Result<T, tokio_postgres::Error>>) -> Result<T, Trouble> {
    match tokio::time::timeout(SILENCE, piece).await {
        Ok(piece) => Ok(piece?),
        Err(_) => Err(Trouble::Silent),
    }
}

impl Session for PgSession {
    fn dialect(&self) -> Dialect {
        Dialect::Postgres
    }

    fn execute(&mut self, sql: &str, params: &[Param<'_>]) -> Sql<u64> {
        let touched = self.run(sql, "", params, &mut |_| Ok(true))?;
        self.changes += touched;
        Ok(touched)
    }

    fn insert(&mut self, sql: &str, params: &[Param<'_>]) -> Sql<i64> {
        let mut id = None;
        self.run(sql, " RETURNING id", params, &mut |row| {
            id = Some(crate::convert::integer(row, 0)?);
            Ok(true)
        })?;
        self.changes += 1;
        id.ok_or_else(|| Fault::unreadable("the database gave no id"))
    }

    fn query(
        &mut self,
        sql: &str,
        params: &[Param<'_>],
        each: &mut dyn FnMut(&dyn Row) -> Sql<bool>,
    ) -> Sql<()> {
        self.run(sql, "", params, each).map(drop)
    }

    fn changes(&self) -> u64 {
        self.changes
    }

    fn batch(&mut self, sql: &str) -> Sql<()> {
        let work = heard(self.client.batch_execute(sql));
        match self.runtime.block_on(work) {
            Ok(()) => {
                if sql.starts_with("ROLLBACK TO") {
                    self.forgive();
                }
                Ok(())
            }
            Err(error) => Err(self.failed(error)),
        }
    }

    fn announce(&mut self) {
        self.announced = true;
    }
}

impl Transact for PgSession {
    /// A transaction that reads costs no round trip to begin.
    fn begin(&mut self, kind: Kind) -> Sql<()> {
        self.worst = None;
        self.announced = false;
        self.reading = kind == Kind::Read;
        self.pending = self.reading.then_some(beginning(kind));
        if self.reading { Ok(()) } else { self.batch(beginning(kind)) }
    }

    /// In one message with the announcement, which costs no round trip so.
    fn commit(&mut self) -> Sql<()> {
        let own = self.own.get().filter(|_| self.announced).cloned();
        match own {
            Some(own) => self.batch(&format!("{}; COMMIT", hints::announcement(&own))),
            None => self.batch("COMMIT"),
        }
    }

    fn roll_back(&mut self) {
        if !self.reading {
            // If this fails too, the connection is marked as lost and not used again.
            let _ = self.batch("ROLLBACK");
        } else if self.pending.take().is_none() {
            // Nobody waits for the answer: whatever comes next on the connection is answered after it. The first poll
            // hands the message to the connection.
            let _ = self.client.batch_execute("ROLLBACK").now_or_never();
        }
    }

    fn is_lost(&self) -> bool {
        self.client.is_closed() || self.worst == Some(Meaning::Lost)
    }

    fn worst(&self) -> Option<Meaning> {
        self.worst
    }

    fn is_over(&self) -> bool {
        self.worst.is_some()
    }
}
