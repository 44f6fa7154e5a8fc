//! A session on SQLite: statements in place, rows without a copy.

use std::collections::HashMap;
use std::time::Duration;

use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, Statement, ToSql};
use time::OffsetDateTime;

use crate::convert::time_text;
use crate::fault::{Fault, Sql};
use crate::sql::{Cell, Dialect, Param, Row, Session};

/// How many expanded statements are kept: far more than this crate has.
const TEXTS: usize = 256;

/// A connection with the statements that it has seen.
pub(crate) struct SqliteSession {
    conn: Connection,
    /// Statements with places, written out.
    expanded: HashMap<Box<str>, Box<str>>,
    /// The time that was written last, and its text: all rows of an operation have the same.
    time: Option<(OffsetDateTime, String)>,
}

impl SqliteSession {
    pub(crate) fn new(conn: Connection) -> Self {
        Self { conn, expanded: HashMap::new(), time: None }
    }

    /// Whether no transaction is open.
    pub(crate) fn is_autocommit(&self) -> bool {
        self.conn.is_autocommit()
    }

    /// How long a statement waits for a lock.
    pub(crate) fn wait_at_most(&self, time: Duration) {
        // It fails for times that are no `int` of milliseconds only, and the one that is set was set before.
        let _ = self.conn.busy_timeout(time);
    }

    /// Runs a statement of transactions, which stays prepared.
    pub(crate) fn control(&self, sql: &str) -> rusqlite::Result<()> {
        self.conn.prepare_cached(sql)?.execute([]).map(drop)
    }
}

/// The text that SQLite takes. Most statements have no places and are their own.
fn text<'a>(expanded: &'a mut HashMap<Box<str>, Box<str>>, sql: &'a str) -> &'a str {
    if !sql.contains('{') {
        return sql;
    }
    if !expanded.contains_key(sql) {
        if expanded.len() >= TEXTS {
            expanded.clear();
        }
        expanded.insert(sql.into(), Dialect::Sqlite.expand(sql).into());
    }
    expanded.get(sql).map_or(sql, |text| text)
}

/// Gives a statement its parameters.
fn bind(
    statement: &mut Statement<'_>,
    params: &[Param<'_>],
    time: &mut Option<(OffsetDateTime, String)>,
) -> rusqlite::Result<()> {
    let wanted = statement.parameter_count();
    if wanted != params.len() {
        return Err(rusqlite::Error::InvalidParameterCount(params.len(), wanted));
    }
    for (number, param) in (1..).zip(params) {
        let Param::Time(Some(at)) = param else {
            statement.raw_bind_parameter(number, param)?;
            continue;
        };
        if time.as_ref().is_none_or(|(last, _)| last != at) {
            *time = Some((*at, time_text(*at)));
        }
        statement.raw_bind_parameter(number, time.as_ref().map(|(_, text)| text.as_str()))?;
    }
    Ok(())
}

impl Session for SqliteSession {
    fn dialect(&self) -> Dialect {
        Dialect::Sqlite
    }

    fn execute(&mut self, sql: &str, params: &[Param<'_>]) -> Sql<u64> {
        let sql = text(&mut self.expanded, sql);
        let mut statement = self.conn.prepare_cached(sql)?;
        bind(&mut statement, params, &mut self.time)?;
        Ok(u64::try_from(statement.raw_execute()?).unwrap_or(u64::MAX))
    }

    fn insert(&mut self, sql: &str, params: &[Param<'_>]) -> Sql<i64> {
        self.execute(sql, params)?;
        Ok(self.conn.last_insert_rowid())
    }

    fn query(
        &mut self,
        sql: &str,
        params: &[Param<'_>],
        each: &mut dyn FnMut(&dyn Row) -> Sql<bool>,
    ) -> Sql<()> {
        let sql = text(&mut self.expanded, sql);
        let mut statement = self.conn.prepare_cached(sql)?;
        bind(&mut statement, params, &mut self.time)?;
        let mut rows = statement.raw_query();
        while let Some(row) = rows.next()? {
            if !each(row)? {
                break;
            }
        }
        Ok(())
    }

    fn changes(&self) -> u64 {
        self.conn.total_changes()
    }

    fn batch(&mut self, sql: &str) -> Sql<()> {
        Ok(self.conn.execute_batch(sql)?)
    }
}

impl Row for rusqlite::Row<'_> {
    fn cell(&self, column: usize) -> Sql<Cell<'_>> {
        Ok(match self.get_ref(column)? {
            ValueRef::Null => Cell::Null,
            ValueRef::Integer(number) => Cell::Int(number),
            ValueRef::Text(text) => Cell::Text(std::str::from_utf8(text).map_err(Fault::unreadable)?),
            ValueRef::Blob(blob) => Cell::Blob(blob),
            ValueRef::Real(_) => {
                return Err(Fault::unreadable(format!("column {column} is a fraction")));
            }
        })
    }
}

impl ToSql for Param<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(match *self {
            Param::Int(number) => ToSqlOutput::from(number),
            Param::Bool(truth) => ToSqlOutput::from(truth),
            Param::Text(text) => ToSqlOutput::Borrowed(ValueRef::Text(text.as_bytes())),
            Param::Blob(Some(blob)) => ToSqlOutput::Borrowed(ValueRef::Blob(blob)),
            Param::Time(Some(at)) => ToSqlOutput::from(time_text(at)),
            Param::Blob(None) | Param::Time(None) => ToSqlOutput::Borrowed(ValueRef::Null),
        })
    }
}

/// What tests look at beyond the port.
#[cfg(test)]
impl SqliteSession {
    pub(crate) fn connection(&self) -> &Connection {
        &self.conn
    }
}
