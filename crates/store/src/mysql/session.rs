//! A session on MySQL: a connection for the length of an operation, driven from a thread that may block.

use std::collections::HashMap;
use std::sync::Arc;

use time::{Date, Month, OffsetDateTime, Time};
use tokio::runtime::Handle;

use super::client::{Client, Effect, Failure, Field, Moment};
use super::fault::{meaning, of};
use super::statement::Statement;
use crate::fault::{Fault, Sql};
use crate::remote::{Kind, Meaning, Transact};
use crate::sql::{Cell, Dialect, Isolation, Param, Row, Session};

/// How many canonical statements are kept in parts; all of this crate's are fewer.
const STATEMENTS: usize = 512;

/// A connection, and its transaction.
pub(super) struct MysqlSession {
    client: Client,
    runtime: Handle,
    /// The type of the tables' texts.
    texts: Arc<str>,
    statements: HashMap<Box<str>, Arc<Statement>>,
    changes: u64,
    /// Whether rows that are read are locked.
    locking: bool,
    lost: bool,
    worst: Option<Meaning>,
}

impl MysqlSession {
    pub(super) fn new(client: Client, runtime: Handle, texts: Arc<str>) -> Self {
        Self {
            client,
            runtime,
            texts,
            statements: HashMap::new(),
            changes: 0,
            locking: false,
            lost: false,
            worst: None,
        }
    }

    /// Takes what happened as dealt with.
    pub(super) fn forget(&mut self) {
        self.worst = None;
    }

    /// Ends the connection, and with it the locks that it has by name.
    pub(super) fn end(&mut self) {
        self.lost = true;
    }

    fn parsed(&mut self, sql: &str) -> Arc<Statement> {
        if let Some(statement) = self.statements.get(sql) {
            return Arc::clone(statement);
        }
        if self.statements.len() >= STATEMENTS {
            self.statements.clear();
        }
        let statement = Arc::new(Statement::parse(sql));
        self.statements.insert(sql.into(), Arc::clone(&statement));
        statement
    }

    /// Runs a statement and hands out its rows.
    fn run(
        &mut self,
        sql: &str,
        tail: &str,
        params: &[Param<'_>],
        each: &mut dyn FnMut(&dyn Row) -> Sql<bool>,
    ) -> Sql<Effect> {
        let rendered = self.parsed(sql).render(params, &self.texts, tail)?;
        let mut found = |fields: Vec<Field<'_>>| each(&Found(fields));
        let work = self.client.execute(&rendered.text, rendered.recurs, &rendered.values, &mut found);
        match self.runtime.block_on(work) {
            Ok(outcome) => outcome,
            Err(failure) => Err(self.failed(&failure)),
        }
    }

    fn failed(&mut self, failure: &Failure) -> Fault {
        let found = meaning(failure);
        self.lost |= found == Meaning::Lost;
        // The first one counts: what follows it is that the transaction is over.
        if self.worst.is_none() || found == Meaning::Lost {
            self.worst = Some(found);
        }
        of(failure).into()
    }

    fn command(&mut self, sql: &str) -> Sql<()> {
        match self.runtime.block_on(self.client.command(sql)) {
            Ok(()) => Ok(()),
            Err(failure) => Err(self.failed(&failure)),
        }
    }
}

impl Session for MysqlSession {
    fn dialect(&self) -> Dialect {
        Dialect::Mysql
    }

    fn execute(&mut self, sql: &str, params: &[Param<'_>]) -> Sql<u64> {
        let touched = self.run(sql, "", params, &mut |_| Ok(true))?.touched;
        self.changes += touched;
        Ok(touched)
    }

    fn insert(&mut self, sql: &str, params: &[Param<'_>]) -> Sql<i64> {
        let id = self.run(sql, "", params, &mut |_| Ok(true))?.id;
        self.changes += 1;
        let id = i64::try_from(id).ok().filter(|id| *id > 0);
        id.ok_or_else(|| Fault::unreadable("the database gave no id"))
    }

    fn query(
        &mut self,
        sql: &str,
        params: &[Param<'_>],
        each: &mut dyn FnMut(&dyn Row) -> Sql<bool>,
    ) -> Sql<()> {
        let tail = if self.locking { " FOR UPDATE" } else { "" };
        self.run(sql, tail, params, each).map(drop)
    }

    fn changes(&self) -> u64 {
        self.changes
    }

    fn batch(&mut self, sql: &str) -> Sql<()> {
        match self.runtime.block_on(self.client.command(sql)) {
            Ok(()) => {}
            // A server that was killed while it made the schema has left a part of it.
            Err(failure) if is_made_already(&failure) => {}
            Err(failure) => return Err(self.failed(&failure)),
        }
        if sql.starts_with("ROLLBACK TO")
            && matches!(self.worst, Some(Meaning::Statement | Meaning::Duplicate))
        {
            // A savepoint undid what failed.
            self.worst = None;
        }
        Ok(())
    }
}

impl Transact for MysqlSession {
    /// A read sees one snapshot. A write sees what is committed, and locks the rows that it reads in order to change
    /// them, as the reference does (sqlstore.go: withReadModifyWriteTx): REPEATABLE READ would let two of them lose what
    /// one wrote. What must stay absent is guarded by a row that all who rely on it lock first: SERIALIZABLE would lock gaps,
    /// over which whoever creates entries would deadlock, and clusters do not have it.
    fn begin(&mut self, kind: Kind) -> Sql<()> {
        self.worst = None;
        self.locking = matches!(kind, Kind::Write(Isolation::Rows | Isolation::Absence));
        self.command(match kind {
            Kind::Read => "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; START TRANSACTION READ ONLY",
            Kind::Write(Isolation::Statement | Isolation::Rows) => {
                "SET TRANSACTION ISOLATION LEVEL READ COMMITTED; START TRANSACTION"
            }
            Kind::Write(Isolation::Absence) => {
                "SET TRANSACTION ISOLATION LEVEL READ COMMITTED; START TRANSACTION; \
                 SELECT id FROM migrations ORDER BY id LIMIT 1 FOR UPDATE"
            }
        })
    }

    fn commit(&mut self) -> Sql<()> {
        self.command("COMMIT")
    }

    fn roll_back(&mut self) {
        // Where this fails the connection is marked as lost and not used again.
        if self.command("ROLLBACK").is_err() {
            self.lost = true;
        }
    }

    fn is_lost(&self) -> bool {
        self.lost
    }

    fn worst(&self) -> Option<Meaning> {
        self.worst
    }

    fn is_over(&self) -> bool {
        matches!(self.worst, Some(Meaning::Conflict | Meaning::Lost))
    }
}

/// Whether a table, column or index of that name exists.
fn is_made_already(failure: &Failure) -> bool {
    matches!(failure, Failure::Server(refusal) if matches!(refusal.code, 1050 | 1060 | 1061))
}

/// A row that was read.
struct Found<'a>(Vec<Field<'a>>);

impl Row for Found<'_> {
    fn cell(&self, column: usize) -> Sql<Cell<'_>> {
        let missing = || Fault::unreadable(format!("a row has no column {column}"));
        Ok(match self.0.get(column).ok_or_else(missing)? {
            Field::Null => Cell::Null,
            Field::Int(number) => Cell::Int(*number),
            Field::Text(bytes) => Cell::Text(std::str::from_utf8(bytes).map_err(Fault::unreadable)?),
            Field::Blob(bytes) => Cell::Blob(bytes),
            Field::Time(moment) => Cell::Time(time(*moment).map_err(Fault::unreadable)?),
        })
    }
}

fn time(moment: Moment) -> Result<OffsetDateTime, time::error::ComponentRange> {
    let Moment { date: (year, month, day), clock: (hour, minute, second), micros } = moment;
    let date = Date::from_calendar_date(year.into(), Month::try_from(month)?, day)?;
    let clock = Time::from_hms_micro(hour, minute, second, micros)?;
    Ok(date.with_time(clock).assume_utc())
}
