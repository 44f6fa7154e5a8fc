//! Registration entries: reading. Writing is in `entry_writes`.

use async_trait::async_trait;
use spire_core::model::{Entry, EntryFilter, EntryId, EntryMask, Page, Paging};
use spire_core::spiffe::Selectors;
use spire_core::time::Timestamp;
use spire_ports::datastore::{Consistency, Creation, Entries, Result, Written};

use super::{borrowed, children, count, each_row, entry_writes, filter, page, readable};
use crate::convert::{
    Interner, attributes_from_blob, blob, flag, integer, json_texts, number_or_zero, rounded, spiffe_id,
    text_or_empty, time_or_none,
};
use crate::fault::Sql;
use crate::sql::{Isolation, Param, Row, Session, params};
use crate::store::SqlStore;

const TABLE: &str = "registered_entries";

const SELECT: &str = "SELECT E.id, E.entry_id, E.spiffe_id, E.parent_id, E.ttl, E.admin, E.downstream, E.expiry, \
                      E.revision_number, E.store_svid, E.hint, E.jwt_svid_ttl, E.additional_attributes, \
                      E.created_at FROM registered_entries E";

#[async_trait]
impl Entries for SqlStore {
    async fn entries_create(&self, entries: Vec<Entry>) -> Result<Vec<Result<Creation>>> {
        self.write(Isolation::Absence, move |conn| entry_writes::create(conn, &entries)).await
    }

    async fn entry_fetch(&self, id: &EntryId) -> Result<Option<Entry>> {
        let id = id.clone();
        self.read_item(move |conn| by_entry_id(conn, id.as_str())).await
    }

    async fn entries_fetch(&self, ids: &[EntryId]) -> Result<Vec<Entry>> {
        let ids = json_texts(ids.iter().map(EntryId::as_str));
        self.read(move |conn| {
            let sql = format!("{SELECT} WHERE E.entry_id {{in_texts ?1}} ORDER BY E.id");
            Ok(load(conn, &sql, params![&ids])?.into_iter().filter_map(|(_, entry)| entry).collect())
        })
        .await
    }

    async fn entry_list(
        &self,
        filter: &EntryFilter,
        paging: Option<&Paging>,
        consistency: Consistency,
    ) -> Result<Page<Entry>> {
        let conditions = filter::entries(filter, 3).map_err(|fault| fault.0)?;
        let paging = paging.cloned();
        self.read_from(consistency, move |conn| {
            let sql = format!("{SELECT} WHERE E.id > ?1{} ORDER BY E.id LIMIT ?2", conditions.sql);
            page(paging.as_ref(), |after, limit| {
                load(conn, &sql, &borrowed(&[after, limit], &conditions.values))
            })
        })
        .await
    }

    async fn entry_count(&self, filter: &EntryFilter) -> Result<u32> {
        let conditions = filter::entries(filter, 1).map_err(|fault| fault.0)?;
        self.read(move |conn| {
            let sql = format!("SELECT COUNT(*) FROM registered_entries E WHERE TRUE{}", conditions.sql);
            count(conn, &sql, &borrowed(&[], &conditions.values))
        })
        .await
    }

    async fn entries_update(&self, updates: Vec<(Entry, EntryMask)>) -> Result<Vec<Result<Written<Entry>>>> {
        // An entry must not come to federate with a bundle that another deletes meanwhile.
        let links = updates.iter().any(|(_, mask)| mask.federates_with);
        let isolation = if links { Isolation::Absence } else { Isolation::Rows };
        self.write(isolation, move |conn| entry_writes::update(conn, &updates)).await
    }

    async fn entries_delete(&self, ids: &[EntryId]) -> Result<Vec<Result<Written<Entry>>>> {
        let ids = ids.to_vec();
        self.write(Isolation::Rows, move |conn| entry_writes::delete(conn, &ids)).await
    }

    async fn entries_prune(&self, expired_before: Timestamp, limit: u32) -> Result<Vec<Written<Entry>>> {
        self.write(Isolation::Rows, move |conn| entry_writes::prune(conn, expired_before, limit)).await
    }
}

/// The entry with that id.
pub(super) fn by_entry_id(conn: &mut dyn Session, id: &str) -> Sql<Option<Entry>> {
    Ok(row_by_entry_id(conn, id)?.map(|(_, entry)| entry))
}

/// The entry with that id, and its row id. One that cannot be read is as if it were not there.
pub(super) fn row_by_entry_id(conn: &mut dyn Session, id: &str) -> Sql<Option<(i64, Entry)>> {
    let sql = select_where(" WHERE E.entry_id = ?1");
    let found = load(conn, &sql, params![id])?;
    Ok(found.into_iter().find_map(|(row, entry)| Some((row, entry?))))
}

/// The entries in those rows; `rows` need not be sorted.
pub(super) fn by_rows(conn: &mut dyn Session, rows: &[i64]) -> Sql<Vec<(i64, Entry)>> {
    let sql = select_where(" WHERE E.id {in_rows ?1} ORDER BY E.id");
    let found = load(conn, &sql, params![&crate::convert::json_rows(rows)])?;
    Ok(found.into_iter().filter_map(|(row, entry)| Some((row, entry?))).collect())
}

fn select_where(tail: &str) -> String {
    format!("{SELECT}{tail}")
}

/// The selectors in a row's set.
pub(super) fn selectors_of(conn: &mut dyn Session, row: i64) -> Sql<Selectors> {
    let mut interner = Interner::default();
    let mut selectors = Vec::new();
    each_row(
        conn,
        "SELECT type, value FROM selectors WHERE registered_entry_id = ?1",
        params![row],
        |row| {
            selectors.push(interner.selector(&text_or_empty(row, 0)?, &text_or_empty(row, 1)?));
            Ok(())
        },
    )?;
    Ok(selectors.into_iter().collect())
}

/// Complete entries of a query that starts with [`SELECT`] and is ordered by row id. Those that cannot be
/// read are `None`.
fn load(conn: &mut dyn Session, sql: &str, values: &[Param<'_>]) -> Sql<Vec<(i64, Option<Entry>)>> {
    let mut interner = Interner::default();
    let mut rows: Vec<i64> = Vec::new();
    let mut entries: Vec<(i64, Entry)> = Vec::new();
    each_row(conn, sql, values, |row| {
        let id: i64 = integer(row, 0)?;
        rows.push(id);
        entries.extend(readable(TABLE, id, from_row(row, &mut interner)).map(|entry| (id, entry)));
        Ok(())
    })?;
    children::attach(conn, &mut entries, &mut interner)?;
    let mut entries = entries.into_iter().peekable();
    Ok(rows
        .into_iter()
        .map(|row| (row, entries.next_if(|(id, _)| *id == row).map(|(_, entry)| entry)))
        .collect())
}

fn from_row(row: &dyn Row, interner: &mut Interner) -> Sql<Entry> {
    let ttl = |column| {
        Ok::<_, crate::fault::Fault>(i32::try_from(number_or_zero(row, column)?).unwrap_or(0).max(0))
    };
    let id = EntryId::from_stored(&*text_or_empty(row, 1)?);
    let mut entry = Entry::new(
        id,
        interner.parent(&text_or_empty(row, 3)?)?,
        spiffe_id(&text_or_empty(row, 2)?)?,
        Selectors::default(),
    );
    entry.x509_svid_ttl = ttl(4)?;
    entry.admin = flag(row, 5)?;
    entry.downstream = flag(row, 6)?;
    entry.expires_at = Timestamp::from_unix(number_or_zero(row, 7)?);
    entry.revision = number_or_zero(row, 8)?;
    entry.store_svid = flag(row, 9)?;
    entry.hint = text_or_empty(row, 10)?.into();
    entry.jwt_svid_ttl = ttl(11)?;
    entry.attributes = attributes_from_blob(blob(row, 12)?)?;
    entry.created_at = time_or_none(row, 13)?.map_or(Timestamp::EPOCH, rounded);
    Ok(entry)
}
