//! CA journals.

use async_trait::async_trait;
use spire_core::model::CaJournal;
use spire_core::time::Timestamp;
use spire_ports::datastore::{Error, Journals, Result, StoredJournal};
use tracing::info;

use super::{each_row, first_row, readable};
use crate::convert::{blob, integer, journal_from_blob, journal_to_blob, now};
use crate::fault::Sql;
use crate::sql::{Isolation, Row, Session, params};
use crate::store::SqlStore;

#[async_trait]
impl Journals for SqlStore {
    async fn journal_set(
        &self,
        id: Option<u64>,
        active_x509_authority_id: &str,
        journal: &CaJournal,
    ) -> Result<u64> {
        let (active, blob) = (active_x509_authority_id.to_owned(), journal_to_blob(journal));
        self.write(Isolation::Statement, move |conn| set(conn, id, &active, &blob)).await
    }

    async fn journal_fetch(&self, active_x509_authority_id: &str) -> Result<Option<StoredJournal>> {
        if active_x509_authority_id.is_empty() {
            return Err(Error::Invalid("active X509 authority ID is required".into()));
        }
        let active = active_x509_authority_id.to_owned();
        self.read(move |conn| {
            first_row(
                conn,
                "SELECT id, data FROM ca_journals WHERE active_x509_authority_id = ?1 ORDER BY id LIMIT 1",
                params![&active],
                |row| {
                    Ok(StoredJournal {
                        id: u64::try_from(integer(row, 0)?).unwrap_or(0),
                        active_x509_authority_id: active.clone(),
                        journal: decode(row, 1)?,
                    })
                },
            )
        })
        .await
    }

    async fn journals_prune(&self, all_expired_before: Timestamp) -> Result<()> {
        self.write(Isolation::Rows, move |conn| prune(conn, all_expired_before)).await
    }
}

fn set(conn: &mut dyn Session, id: Option<u64>, active: &str, blob: &[u8]) -> Sql<u64> {
    let Some(id) = id else {
        let row = conn.insert(
            "INSERT INTO ca_journals (created_at, updated_at, data, active_x509_authority_id, \
             active_jwt_authority_id) VALUES (?1, ?1, ?2, ?3, '')",
            params![now(), blob, active],
        )?;
        return Ok(u64::try_from(row).unwrap_or(0));
    };
    let changed = conn.execute(
        "UPDATE ca_journals SET updated_at = ?1, data = ?2, active_x509_authority_id = ?3 WHERE id = ?4",
        params![now(), blob, active, i64::try_from(id).unwrap_or(i64::MAX)],
    )?;
    if changed == 0 { Err(Error::NotFound.into()) } else { Ok(id) }
}

fn decode(row: &dyn Row, column: usize) -> Sql<CaJournal> {
    journal_from_blob(blob(row, column)?.unwrap_or_default())
}

fn prune(conn: &mut dyn Session, all_expired_before: Timestamp) -> Sql<()> {
    let mut stale = Vec::new();
    each_row(conn, "SELECT id, data FROM ca_journals", &[], |row| {
        let id: i64 = integer(row, 0)?;
        // One that cannot be read may be of a newer version: it stays.
        if let Some(journal) = readable("ca_journals", id, decode(row, 1)) {
            let expiries = journal.x509.iter().map(|ca| ca.not_after);
            let keys = journal.jwt.iter().chain(&journal.wit).map(|key| key.not_after);
            if expiries.chain(keys).all(|not_after| not_after <= all_expired_before) {
                stale.push(id);
            }
        }
        Ok(())
    })?;
    for id in stale {
        conn.execute("DELETE FROM ca_journals WHERE id = ?1", params![id])?;
        info!(subsystem_name = "sql", ca_journal_id = id, "Pruned stale CA journal record");
    }
    Ok(())
}
