//! The change logs. Rows are appended by the writes themselves, in `entry_writes` and `nodes`.

use async_trait::async_trait;
use spire_core::model::EntryId;
use spire_core::spiffe::SpiffeId;
use spire_core::time::Timestamp;
use spire_ports::datastore::{Event, EventId, Events, Result};

use super::filter::Conditions;
use super::{borrowed, each_row, event_id, number, readable};
use crate::convert::{integer, json_rows, spiffe_id, text_or_empty};
use crate::fault::Sql;
use crate::sql::{Isolation, Session, params};
use crate::store::SqlStore;

/// The statements on one of the two logs.
struct Log {
    table: &'static str,
    after: &'static str,
    among: &'static str,
    latest: &'static str,
}

macro_rules! log {
    ($table:literal, $key:literal) => {
        Log {
            table: $table,
            after: concat!("SELECT id, ", $key, " FROM ", $table, " WHERE id > ?1 ORDER BY id LIMIT ?2"),
            among: concat!("SELECT id, ", $key, " FROM ", $table, " WHERE id {in_rows ?1} ORDER BY id"),
            latest: concat!("SELECT {last_id ", $table, "}"),
        }
    };
}

const ENTRIES: Log = log!("registered_entries_events", "entry_id");
const NODES: Log = log!("attested_node_entries_events", "spiffe_id");

#[async_trait]
impl Events for SqlStore {
    async fn entry_events(&self, after: EventId, limit: u32) -> Result<Vec<Event<EntryId>>> {
        self.read(move |conn| list(conn, &ENTRIES, after, limit, entry_key)).await
    }

    async fn node_events(&self, after: EventId, limit: u32) -> Result<Vec<Event<SpiffeId>>> {
        self.read(move |conn| list(conn, &NODES, after, limit, spiffe_id)).await
    }

    async fn latest_events(&self) -> Result<(EventId, EventId)> {
        self.read(|conn| {
            let entries = event_id(number(conn, ENTRIES.latest, &[])?);
            Ok((entries, event_id(number(conn, NODES.latest, &[])?)))
        })
        .await
    }

    async fn entry_events_among(&self, ids: &[EventId]) -> Result<Vec<Event<EntryId>>> {
        let rows = json_rows(&ids.iter().copied().map(row_id).collect::<Vec<_>>());
        self.read(move |conn| among(conn, &ENTRIES, &rows, entry_key)).await
    }

    async fn node_events_among(&self, ids: &[EventId]) -> Result<Vec<Event<SpiffeId>>> {
        let rows = json_rows(&ids.iter().copied().map(row_id).collect::<Vec<_>>());
        self.read(move |conn| among(conn, &NODES, &rows, spiffe_id)).await
    }

    async fn changed_elsewhere(&self) {
        Self::changed_elsewhere(self).await;
    }

    async fn events_prune(&self, created_before: Timestamp) -> Result<()> {
        self.write(Isolation::Statement, move |conn| {
            for log in [&ENTRIES, &NODES] {
                let mut old = Conditions::new(1);
                old.before("created_at", created_before);
                let sql = format!("DELETE FROM {} WHERE TRUE{}", log.table, old.sql);
                conn.execute(&sql, &borrowed(&[], &old.values))?;
            }
            Ok(())
        })
        .await
    }
}

#[expect(clippy::unnecessary_wraps, reason = "the key of the other log is parsed and may fail")]
fn entry_key(id: &str) -> Sql<EntryId> {
    Ok(EntryId::from_stored(id))
}

fn row_id(id: EventId) -> i64 {
    i64::try_from(id).unwrap_or(i64::MAX)
}

fn list<K>(
    conn: &mut dyn Session,
    log: &Log,
    after: EventId,
    limit: u32,
    key: impl Fn(&str) -> Sql<K>,
) -> Sql<Vec<Event<K>>> {
    let mut events = Vec::new();
    let mut after = row_id(after);
    loop {
        let mut rows = 0;
        let start = after;
        each_row(conn, log.after, params![start, limit], |row| {
            after = integer(row, 0)?;
            rows += 1;
            let key = readable(log.table, after, text_or_empty(row, 1).and_then(|text| key(&text)));
            events.extend(key.map(|key| Event { id: event_id(after), key }));
            Ok(())
        })?;
        // Callers take an empty answer for the end of the log.
        if rows < limit || rows == 0 || !events.is_empty() {
            return Ok(events);
        }
    }
}

fn among<K>(
    conn: &mut dyn Session,
    log: &Log,
    rows: &str,
    key: impl Fn(&str) -> Sql<K>,
) -> Sql<Vec<Event<K>>> {
    let mut events = Vec::new();
    each_row(conn, log.among, params![rows], |row| {
        let id = integer(row, 0)?;
        let key = readable(log.table, id, text_or_empty(row, 1).and_then(|text| key(&text)));
        events.extend(key.map(|key| Event { id: event_id(id), key }));
        Ok(())
    })?;
    Ok(events)
}
