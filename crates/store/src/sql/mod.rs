//! What the operations in `query` see of a database: a session on it, statements in one canonical text, typed
//! parameters and the cells of a row (docs/adr/0011-one-session-three-databases.md).
//!
//! A canonical statement has numbered placeholders `?1`, `?2`, … and, where databases differ, a place in braces
//! that [`dialect`] writes out. Each adapter translates a text once and keeps it prepared.

pub(crate) mod dialect;
mod logged;
mod value;

pub(crate) use dialect::Dialect;
pub(crate) use logged::Logged;
pub(crate) use value::{Cell, Param, Value, params};

use crate::fault::Sql;

/// A connection inside a transaction that its caller began and will end. The work on it is synchronous: the
/// adapter owns a thread for as long as the operation lasts.
///
/// While rows are read no other statement can run, since not every database can do both at once.
pub(crate) trait Session {
    /// The kind of database, for what even canonical statements cannot hide.
    fn dialect(&self) -> Dialect;

    /// Runs a statement; returns how many rows it touched.
    fn execute(&mut self, sql: &str, params: &[Param<'_>]) -> Sql<u64>;

    /// Inserts one row into a table whose key is `id`; returns the id that the database gave.
    fn insert(&mut self, sql: &str, params: &[Param<'_>]) -> Sql<i64>;

    /// Calls `each` with every row until it returns `false`.
    fn query(
        &mut self,
        sql: &str,
        params: &[Param<'_>],
        each: &mut dyn FnMut(&dyn Row) -> Sql<bool>,
    ) -> Sql<()>;

    /// A number that grows whenever a statement touched a row.
    fn changes(&self) -> u64;

    /// Says that the transaction appends to an events table: where the database can, other servers hear of it when
    /// it commits.
    fn announce(&mut self) {}

    /// Runs statements as they are, without parameters or result: transactions, savepoints, schema.
    fn batch(&mut self, sql: &str) -> Sql<()>;
}

/// A row that a query found.
pub(crate) trait Row {
    /// What a column holds, by its index.
    fn cell(&self, column: usize) -> Sql<Cell<'_>>;
}

/// What a transaction that writes must not see change. SQLite has one writer, so that there all are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Isolation {
    /// Statements that stand for themselves: what one decides rests on its own condition alone, or on rows
    /// that an earlier statement of the transaction has locked.
    Statement,
    /// Rows are read, changed and written back; that another wrote them meanwhile must not go unnoticed.
    Rows,
    /// What was *not* found must stay absent until the commit: no second entry of the same kind, no entry
    /// that federates with a bundle that is being deleted.
    Absence,
}

/// The savepoints of a batch, one an item, on databases where a statement that fails would end the transaction.
#[derive(Default)]
pub(crate) struct Savepoints {
    is_open: bool,
}

impl Savepoints {
    /// Runs the work so that its statements can be undone, and the transaction go on. The inner result is the work's.
    pub(crate) fn run<T>(
        &mut self,
        conn: &mut dyn Session,
        work: impl FnOnce(&mut dyn Session) -> Sql<T>,
    ) -> Sql<Sql<T>> {
        if !conn.dialect().failure_ends_transaction() {
            return Ok(work(conn));
        }
        // The end of one travels with the beginning of the next; the commit ends the last.
        let next = if self.is_open { conn.dialect().next_savepoint() } else { "SAVEPOINT item" };
        conn.batch(next)?;
        self.is_open = true;
        let outcome = work(conn);
        if outcome.is_err() {
            conn.batch("ROLLBACK TO SAVEPOINT item")?;
        }
        Ok(outcome)
    }
}
