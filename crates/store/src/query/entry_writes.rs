//! Registration entries: writing. An item of a batch is checked before it writes, so that one that fails leaves
//! nothing behind and the others need no savepoint: SQLite copies every page that a savepoint may restore. (Where a
//! statement that fails ends the transaction, each item has one.)

use spire_core::model::{Attributes, Entry, EntryId, EntryMask};
use spire_core::spiffe::TrustDomain;
use spire_core::time::Timestamp;
use spire_ports::datastore::{Creation, Error, Result, Written};
use time::OffsetDateTime;

use super::entries::{by_rows, row_by_entry_id, selectors_of};
use super::{each_row, entry_event, first_row};
use crate::convert::{
    attributes_to_blob, bundle_key, check_entry_id, integer, json_selectors, now, rounded, text_or_empty,
};
use crate::fault::Sql;
use crate::sql::{Savepoints, Session, params};

/// How many entries of one SPIFFE ID are compared before the search goes by parent instead.
const FEW: i64 = 64;

/// Creates entries; an outcome an item.
pub(super) fn create(conn: &mut dyn Session, entries: &[Entry]) -> Sql<Vec<Result<Creation>>> {
    let now = now();
    each_item(conn, entries, |conn, entry| {
        validate(entry)?;
        if let Some(similar) = similar(conn, entry)? {
            return Ok(Creation::Similar(similar));
        }
        let mut entry = entry.clone();
        let bundles = bundle_rows(conn, &mut entry.federates_with)?;
        entry.revision = 0;
        entry.created_at = rounded(now);
        entry.attributes = stored_attributes(entry.attributes);
        let attributes = attributes_to_blob(entry.attributes);
        let row = conn.insert(
            "INSERT INTO registered_entries (created_at, updated_at, entry_id, spiffe_id, parent_id, ttl, admin, \
             downstream, expiry, revision_number, store_svid, hint, jwt_svid_ttl, additional_attributes) \
             VALUES (?1, ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)",
            params![
                now,
                entry.id.as_str(),
                entry.spiffe_id.as_str(),
                entry.parent_id.as_str(),
                entry.x509_svid_ttl,
                entry.admin,
                entry.downstream,
                entry.expires_at.unix(),
                entry.revision,
                entry.store_svid,
                &*entry.hint,
                entry.jwt_svid_ttl,
                attributes.as_deref(),
            ],
        )?;
        insert_federates_with(conn, row, &bundles)?;
        insert_selectors(conn, row, &entry, now)?;
        insert_dns_names(conn, row, &entry, now)?;
        let event = entry_event(conn, entry.id.as_str(), now)?;
        Ok(Creation::Created(Written { value: entry, event }))
    })
}

/// Updates masked fields; an outcome an item.
pub(super) fn update(
    conn: &mut dyn Session,
    updates: &[(Entry, EntryMask)],
) -> Sql<Vec<Result<Written<Entry>>>> {
    let now = now();
    each_item(conn, updates, |conn, (update, mask)| {
        let Some((row, mut entry)) = row_by_entry_id(conn, update.id.as_str())? else {
            return Err(Error::NotFound.into());
        };
        entry.apply(update, *mask);
        validate_update(&entry, *mask)?;
        let bundles =
            if mask.federates_with { bundle_rows(conn, &mut entry.federates_with)? } else { Vec::new() };
        entry.revision += 1;
        entry.attributes = stored_attributes(entry.attributes);
        let attributes = attributes_to_blob(entry.attributes);
        conn.execute(
            "UPDATE registered_entries SET updated_at = ?1, spiffe_id = ?2, parent_id = ?3, ttl = ?4, admin = ?5, \
             downstream = ?6, expiry = ?7, revision_number = ?8, store_svid = ?9, hint = ?10, jwt_svid_ttl = ?11, \
             additional_attributes = ?12 WHERE id = ?13",
            params![
                now,
                entry.spiffe_id.as_str(),
                entry.parent_id.as_str(),
                entry.x509_svid_ttl,
                entry.admin,
                entry.downstream,
                entry.expires_at.unix(),
                entry.revision,
                entry.store_svid,
                &*entry.hint,
                entry.jwt_svid_ttl,
                attributes.as_deref(),
                row,
            ],
        )?;
        if mask.selectors {
            conn.execute("DELETE FROM selectors WHERE registered_entry_id = ?1", params![row])?;
            insert_selectors(conn, row, &entry, now)?;
        }
        if mask.dns_names {
            conn.execute("DELETE FROM dns_names WHERE registered_entry_id = ?1", params![row])?;
            insert_dns_names(conn, row, &entry, now)?;
        }
        if mask.federates_with {
            delete_federates_with(conn, row)?;
            insert_federates_with(conn, row, &bundles)?;
        }
        let event = entry_event(conn, entry.id.as_str(), now)?;
        Ok(Written { value: entry, event })
    })
}

/// Deletes entries; an outcome an item.
pub(super) fn delete(conn: &mut dyn Session, ids: &[EntryId]) -> Sql<Vec<Result<Written<Entry>>>> {
    each_item(conn, ids, |conn, id| match row_by_entry_id(conn, id.as_str())? {
        Some((row, entry)) => delete_row(conn, row, entry),
        None => Err(Error::NotFound.into()),
    })
}

/// Deletes entries that have expired.
pub(super) fn prune(
    conn: &mut dyn Session,
    expired_before: Timestamp,
    limit: u32,
) -> Sql<Vec<Written<Entry>>> {
    let mut rows = Vec::new();
    each_row(
        conn,
        "SELECT id FROM registered_entries WHERE expiry <> 0 AND expiry < ?1 ORDER BY id LIMIT ?2",
        params![expired_before.unix(), limit],
        |row| {
            rows.push(integer(row, 0)?);
            Ok(())
        },
    )?;
    let mut pruned = Vec::with_capacity(rows.len());
    for (row, entry) in by_rows(conn, &rows)? {
        pruned.push(delete_row(conn, row, entry)?);
    }
    Ok(pruned)
}

/// Deletes one entry with all that belongs to it, and appends the event.
pub(super) fn delete_row(conn: &mut dyn Session, row: i64, entry: Entry) -> Sql<Written<Entry>> {
    delete_federates_with(conn, row)?;
    conn.execute("DELETE FROM registered_entries WHERE id = ?1", params![row])?;
    conn.execute("DELETE FROM selectors WHERE registered_entry_id = ?1", params![row])?;
    conn.execute("DELETE FROM dns_names WHERE registered_entry_id = ?1", params![row])?;
    let event = entry_event(conn, entry.id.as_str(), now())?;
    Ok(Written { value: entry, event })
}

/// Runs the work for each item so that the failure of one leaves the others be. A failure of the database
/// itself, or of an item that has written, ends the batch, whose transaction is undone as a whole.
fn each_item<I, T>(
    conn: &mut dyn Session,
    items: impl IntoIterator<Item = I>,
    mut work: impl FnMut(&mut dyn Session, I) -> Sql<T>,
) -> Sql<Vec<Result<T>>> {
    let items = items.into_iter();
    let mut savepoints = Savepoints::default();
    let mut outcomes = Vec::with_capacity(items.size_hint().0);
    for item in items {
        let before = conn.changes();
        let undone = conn.dialect().failure_ends_transaction();
        match savepoints.run(conn, |conn| work(conn, item))? {
            Ok(value) => outcomes.push(Ok(value)),
            Err(fault) if matches!(fault.0, Error::Unavailable(_)) => return Err(fault),
            Err(fault) if !undone && conn.changes() != before => return Err(fault),
            Err(fault) => outcomes.push(Err(fault.0)),
        }
    }
    Ok(outcomes)
}

/// The rules of stored entries (pkg/server/datastore/sqlstore: validateRegistrationEntry).
fn validate(entry: &Entry) -> Sql<()> {
    if entry.store_svid && entry.attributes.is_some_and(|a| a.disable_x509_svid_prefetch) {
        return Err(
            Error::validation("specifying cache behaviour is incompatible with storable SVIDs").into()
        );
    }
    check_entry_id(&entry.id)?;
    validate_update(entry, EntryMask::ALL)
}

/// The rules that an update must keep (validateRegistrationEntryForUpdate).
fn validate_update(entry: &Entry, mask: EntryMask) -> Sql<()> {
    let invalid =
        |reason: &str| Err(Error::validation(format!("invalid registration entry: {reason}")).into());
    if mask.selectors && entry.selectors.is_empty() {
        return invalid("missing selector list");
    }
    let mut kinds = entry.selectors.iter().map(|selector| selector.kind());
    let first = kinds.next();
    // An update that concerns neither leaves an entry be that came to have both in the reference.
    if (mask.selectors || mask.store_svid) && entry.store_svid && kinds.any(|kind| Some(kind) != first) {
        return invalid("selector types must be the same when store SVID is enabled");
    }
    if entry.x509_svid_ttl < 0 {
        return invalid("X509SvidTtl is not set");
    }
    if entry.jwt_svid_ttl < 0 {
        return invalid("JwtSvidTtl is not set");
    }
    let mut names: Vec<&str> = entry.dns_names.iter().map(|name| &**name).collect();
    names.sort_unstable();
    if names.windows(2).any(|pair| pair[0] == pair[1]) {
        let text = "UNIQUE constraint failed: dns_names.registered_entry_id, dns_names.value";
        return Err(Error::AlreadyExists(text.into()).into());
    }
    Ok(())
}

/// Attributes that are all off are stored like none, and so read back as none.
fn stored_attributes(attributes: Option<Attributes>) -> Option<Attributes> {
    attributes.filter(|attributes| *attributes != Attributes::default())
}

/// The entry with the same SPIFFE ID, parent and selectors. The search goes by SPIFFE ID, unless many entries
/// share it: then by parent.
fn similar(conn: &mut dyn Session, entry: &Entry) -> Sql<Option<Entry>> {
    let (id, parent) = (entry.spiffe_id.as_str(), entry.parent_id.as_str());
    let mut seen = 0;
    let mut candidates: Vec<i64> = Vec::new();
    each_row(
        conn,
        "SELECT id, parent_id FROM registered_entries WHERE spiffe_id = ?1 LIMIT ?2",
        params![id, FEW],
        |row| {
            seen += 1;
            if text_or_empty(row, 1)? == parent {
                candidates.push(integer(row, 0)?);
            }
            Ok(())
        },
    )?;
    if seen == FEW {
        candidates.clear();
        each_row(
            conn,
            "SELECT id FROM registered_entries WHERE parent_id = ?2 AND {unindexed spiffe_id} = ?1",
            params![id, parent],
            |row| {
                candidates.push(integer(row, 0)?);
                Ok(())
            },
        )?;
    }
    candidates.sort_unstable();
    for row in candidates {
        if selectors_of(conn, row)? == entry.selectors {
            return Ok(by_rows(conn, &[row])?.pop().map(|(_, entry)| entry));
        }
    }
    Ok(None)
}

/// The rows of the bundles that an entry federates with. Puts the trust domains into the order in which
/// they are read back: that of the bundles' rows, without duplicates.
fn bundle_rows(conn: &mut dyn Session, domains: &mut Box<[TrustDomain]>) -> Sql<Vec<i64>> {
    if domains.is_empty() {
        return Ok(Vec::new());
    }
    let mut found: Vec<(i64, TrustDomain)> = Vec::with_capacity(domains.len());
    for domain in &**domains {
        let key = bundle_key(domain);
        let row = first_row(conn, "SELECT id FROM bundles WHERE trust_domain = ?1", params![&key], |row| {
            integer(row, 0)
        })?;
        match row {
            Some(row) => found.push((row, domain.clone())),
            None => {
                return Err(Error::NoBundle(format!("unable to find federated bundle {key:?}")).into());
            }
        }
    }
    found.sort_unstable_by_key(|(row, _)| *row);
    found.dedup_by_key(|(row, _)| *row);
    let (rows, ordered): (Vec<_>, Vec<_>) = found.into_iter().unzip();
    *domains = ordered.into();
    Ok(rows)
}

fn insert_federates_with(conn: &mut dyn Session, row: i64, bundles: &[i64]) -> Sql<()> {
    for bundle in bundles {
        conn.execute(
            "INSERT INTO federated_registration_entries (bundle_id, registered_entry_id) VALUES (?1, ?2)",
            params![*bundle, row],
        )?;
    }
    Ok(())
}

fn delete_federates_with(conn: &mut dyn Session, row: i64) -> Sql<()> {
    conn.execute("DELETE FROM federated_registration_entries WHERE registered_entry_id = ?1", params![row])?;
    Ok(())
}

fn insert_selectors(conn: &mut dyn Session, row: i64, entry: &Entry, now: OffsetDateTime) -> Sql<()> {
    if conn.dialect().inserts_sets() && entry.selectors.len() > 1 {
        conn.execute(
            "INSERT INTO selectors (created_at, updated_at, registered_entry_id, type, value) \
             SELECT ?1, ?1, ?2, W.kind, W.value FROM {pairs ?3}",
            params![now, row, &json_selectors(&entry.selectors)],
        )?;
        return Ok(());
    }
    for selector in &entry.selectors {
        conn.execute(
            "INSERT INTO selectors (created_at, updated_at, registered_entry_id, type, value) \
             VALUES (?1, ?1, ?2, ?3, ?4)",
            params![now, row, selector.kind(), selector.value()],
        )?;
    }
    Ok(())
}

fn insert_dns_names(conn: &mut dyn Session, row: i64, entry: &Entry, now: OffsetDateTime) -> Sql<()> {
    for name in &*entry.dns_names {
        conn.execute("INSERT INTO dns_names (created_at, updated_at, registered_entry_id, value) VALUES (?1, ?1, ?2, ?3)",
            params![now, row, &**name],
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use spire_core::spiffe::{Selector, SpiffeId};

    use super::*;

    /// The reference lets such entries come to be, by an update of `store_svid` alone.
    #[test]
    fn an_update_of_something_else_leaves_selectors_of_several_types_be() {
        let id = SpiffeId::parse("spiffe://example.org/a").unwrap();
        let selectors = ["a", "b"].map(|kind| Selector::new(kind, "1").unwrap()).into_iter().collect();
        let mut entry = Entry::new(EntryId::from_stored("e"), id.clone(), id, selectors);
        entry.store_svid = true;
        assert!(validate_update(&entry, EntryMask { hint: true, ..EntryMask::NONE }).is_ok());
        for mask in [
            EntryMask { selectors: true, ..EntryMask::NONE },
            EntryMask { store_svid: true, ..EntryMask::NONE },
            EntryMask::ALL,
        ] {
            assert!(validate_update(&entry, mask).is_err());
        }
    }
}
