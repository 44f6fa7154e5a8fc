//! A session on PostgreSQL: a connection for the length of an operation, driven from a thread that may block.

use std::collections::HashMap;
use std::future::Future;
use std::time::Duration;

use futures_util::{FutureExt, TryStreamExt, pin_mut};
use spire_ports::datastore::Error;
use tokio::runtime::Handle;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Statement};

use super::fault::{Meaning, meaning, of};
use super::wire::type_of;
use crate::fault::{Fault, Sql};
use crate::sql::{Dialect, Param, Row, Session};

/// How many prepared statements a connection keeps: more than this crate has texts in common use.
const STATEMENTS: usize = 256;

/// How long the server may be silent while an answer is due. Longer than any statement of this crate takes, and
/// short enough that a server behind a dead network does not hold callers for minutes.
const SILENCE: Duration = Duration::from_secs(30);

/// A connection and what was prepared on it.
pub(super) struct PgSession {
    client: Client,
    runtime: Handle,
    statements: HashMap<Box<str>, Statement>,
    changes: u64,
    /// A transaction that only reads is begun together with its first statement.
    pending: Option<&'static str>,
    /// The worst that happened since the transaction began.
    worst: Option<Meaning>,
    announced: bool,
}

impl PgSession {
    pub(super) fn new(client: Client, runtime: Handle) -> Self {
        Self {
            client,
            runtime,
            statements: HashMap::new(),
            changes: 0,
            pending: None,
            worst: None,
            announced: false,
        }
    }

    /// Whether the connection can be used no more.
    pub(super) fn is_lost(&self) -> bool {
        self.client.is_closed() || self.worst == Some(Meaning::Lost)
    }

    /// The worst that happened since [`Self::begin`].
    pub(super) fn worst(&self) -> Option<Meaning> {
        self.worst
    }

    /// Lets others go ahead.
    pub(super) fn pause(&self, wait: Duration) {
        self.runtime.block_on(tokio::time::sleep(wait));
    }

    /// Takes what happened as dealt with.
    pub(super) fn forget(&mut self) {
        self.worst = self.worst.filter(|worst| *worst == Meaning::Lost);
    }

    /// Whether the transaction changed what other servers look at.
    pub(super) fn is_announced(&self) -> bool {
        self.announced
    }

    /// Begins a transaction that writes.
    pub(super) fn begin(&mut self, sql: &'static str) -> Sql<()> {
        self.fresh();
        self.batch(sql)
    }

    /// Begins a transaction that reads, which costs no round trip of its own.
    pub(super) fn begin_later(&mut self, sql: &'static str) {
        self.fresh();
        self.pending = Some(sql);
    }

    fn fresh(&mut self) {
        self.worst = None;
        self.announced = false;
        self.pending = None;
    }

    /// Ends a transaction that read, without waiting for the answer: whatever comes next on the connection is
    /// answered after it.
    pub(super) fn end_reading(&mut self) {
        if self.pending.take().is_none() {
            // The first poll hands the message to the connection.
            let _ = self.client.batch_execute("ROLLBACK").now_or_never();
        }
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
