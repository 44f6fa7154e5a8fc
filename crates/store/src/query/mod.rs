//! The operations, one file a trait: its implementation, and the statements behind it.

mod bundles;
mod children;
mod entries;
mod entry_writes;
mod events;
mod federation;
mod filter;
mod journals;
mod nodes;
mod tokens;

use spire_core::model::{Page, Paging};
use spire_ports::datastore::{Error, EventId};
use time::OffsetDateTime;
use tracing::warn;

use crate::convert::{now, number_or_zero, row_of_token};
use crate::fault::{Fault, Sql};
use crate::sql::{Param, Row, Session, Value, params};

/// Calls `each` with every row.
fn each_row(
    conn: &mut dyn Session,
    sql: &str,
    params: &[Param<'_>],
    mut each: impl FnMut(&dyn Row) -> Sql<()>,
) -> Sql<()> {
    conn.query(sql, params, &mut |row| each(row).map(|()| true))
}

/// The first row, if there is one.
fn first_row<T>(
    conn: &mut dyn Session,
    sql: &str,
    params: &[Param<'_>],
    mut read: impl FnMut(&dyn Row) -> Sql<T>,
) -> Sql<Option<T>> {
    let mut found = None;
    conn.query(sql, params, &mut |row| {
        found = Some(read(row)?);
        Ok(false)
    })?;
    Ok(found)
}

/// A single number, NULL as zero.
fn number(conn: &mut dyn Session, sql: &str, params: &[Param<'_>]) -> Sql<i64> {
    Ok(first_row(conn, sql, params, |row| number_or_zero(row, 0))?.unwrap_or(0))
}

/// A count for the port.
fn count(conn: &mut dyn Session, sql: &str, params: &[Param<'_>]) -> Sql<u32> {
    Ok(u32::try_from(number(conn, sql, params)?).unwrap_or(u32::MAX))
}

/// Row ids start at 1 and are positive.
fn event_id(row: i64) -> EventId {
    EventId::try_from(row).unwrap_or(0)
}

/// Appends to the log of entry changes.
fn entry_event(conn: &mut dyn Session, entry_id: &str, now: OffsetDateTime) -> Sql<EventId> {
    conn.announce();
    let row = conn.insert(
        "INSERT INTO registered_entries_events (created_at, updated_at, entry_id) VALUES (?1, ?1, ?2)",
        params![now, entry_id],
    )?;
    Ok(event_id(row))
}

/// Appends to the log of node changes.
fn node_event(conn: &mut dyn Session, spiffe_id: &str) -> Sql<EventId> {
    conn.announce();
    let row = conn.insert(
        "INSERT INTO attested_node_entries_events (created_at, updated_at, spiffe_id) VALUES (?1, ?1, ?2)",
        params![now(), spiffe_id],
    )?;
    Ok(event_id(row))
}

/// Numbers and the values of conditions, in this order, as parameters.
fn borrowed<'a>(numbers: &[i64], values: &'a [Value]) -> Vec<Param<'a>> {
    numbers.iter().map(|number| Param::Int(*number)).chain(values.iter().map(Value::param)).collect()
}

/// A row of a listing: its id, and its value unless what is stored cannot be read.
type Listed<T> = (i64, Option<T>);

/// Where a page starts and how many rows it may have: (row id before it, limit). Without paging, all rows:
/// a limit that no table reaches is understood by every database.
fn bounds(paging: Option<&Paging>) -> Sql<(i64, i64)> {
    match paging {
        None => Ok((0, i64::MAX)),
        Some(Paging { size: 0, .. }) => {
            Err(Error::Invalid("cannot paginate with pagesize = 0".into()).into())
        }
        Some(paging) => Ok((row_of_token(&paging.token)?, paging.size.into())),
    }
}

/// Makes a page of what `fetch` finds after a row id. Rows that cannot be read are left out; a page of
/// nothing else is not returned, since callers take an empty page for the end.
fn page<T>(paging: Option<&Paging>, mut fetch: impl FnMut(i64, i64) -> Sql<Vec<Listed<T>>>) -> Sql<Page<T>> {
    let (mut after, limit) = bounds(paging)?;
    loop {
        let rows = fetch(after, limit)?;
        let Some((last, _)) = rows.last() else {
            return Ok(Page { items: Vec::new(), next: String::new() });
        };
        after = *last;
        let items: Vec<T> = rows.into_iter().filter_map(|(_, value)| value).collect();
        if paging.is_none() {
            return Ok(Page { items, next: String::new() });
        }
        if !items.is_empty() {
            return Ok(Page { items, next: after.to_string() });
        }
    }
}

/// Keeps a value that could be read; otherwise warns, once a table and process, and leaves the row out.
/// Databases of older versions hold IDs that are not valid any more.
fn readable<T>(table: &'static str, row: i64, value: Sql<T>) -> Option<T> {
    static WARNED: parking_lot::Mutex<Vec<&'static str>> = parking_lot::Mutex::new(Vec::new());
    match value {
        Ok(value) => Some(value),
        Err(Fault(error)) => {
            let mut warned = WARNED.lock();
            if !warned.contains(&table) {
                warned.push(table);
                warn!(subsystem_name = "sql", table, row, error = %error, "Skipping rows that cannot be read");
            }
            None
        }
    }
}
