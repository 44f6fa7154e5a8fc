//! What belongs to the entries of a listing: selectors, DNS names and trust domains, each fetched with one
//! statement, or all with one, and merged in row order.

use spire_core::model::Entry;
use spire_core::spiffe::{Selector, Selectors, TrustDomain};

use super::{each_row, readable};
use crate::convert::{Interner, integer, json_rows, text_or_empty, trust_domain};
use crate::fault::Sql;
use crate::sql::{Row, Session, params};

/// A statement in two forms; its rows start with the row id of the entry, in order.
struct Children {
    /// For entries whose row ids lie close together: between ?1 and ?2.
    range: &'static str,
    /// For scattered ones: in the JSON array ?1.
    scattered: &'static str,
}

macro_rules! children {
    ($head:literal, $owner:literal, $tail:literal) => {
        Children {
            range: concat!($head, " WHERE ", $owner, " BETWEEN ?1 AND ?2 ", $tail),
            scattered: concat!($head, " WHERE ", $owner, " {in_rows ?1} ", $tail),
        }
    };
}

const SELECTORS: Children = children!(
    "SELECT registered_entry_id, type, value FROM selectors",
    "registered_entry_id",
    "ORDER BY registered_entry_id"
);

const DNS_NAMES: Children = children!(
    "SELECT registered_entry_id, value FROM dns_names",
    "registered_entry_id",
    "ORDER BY registered_entry_id, id"
);

const FEDERATES_WITH: Children = children!(
    "SELECT F.registered_entry_id, B.trust_domain FROM federated_registration_entries F \
     {join} bundles B ON B.id = F.bundle_id",
    "F.registered_entry_id",
    "ORDER BY F.registered_entry_id, F.bundle_id"
);

/// All of them, told apart by their second column.
macro_rules! united {
    ($which:literal) => {
        concat!(
            "SELECT registered_entry_id, 0, id, type, value FROM selectors WHERE registered_entry_id ",
            $which,
            " UNION ALL SELECT registered_entry_id, 1, id, '', value FROM dns_names WHERE registered_entry_id ",
            $which,
            " UNION ALL SELECT F.registered_entry_id, 2, F.bundle_id, '', B.trust_domain \
             FROM federated_registration_entries F {join} bundles B ON B.id = F.bundle_id \
             WHERE F.registered_entry_id ",
            $which,
            " ORDER BY 1, 2, 3"
        )
    };
}

const UNITED: Children = Children { range: united!("BETWEEN ?1 AND ?2"), scattered: united!("{in_rows ?1}") };

/// Completes entries. They must be in the order of their row ids.
pub(super) fn attach(
    conn: &mut dyn Session,
    entries: &mut [(i64, Entry)],
    interner: &mut Interner,
) -> Sql<()> {
    let rows: Vec<i64> = entries.iter().map(|(row, _)| *row).collect();
    if conn.dialect().unites_tables() {
        return attach_united(conn, entries, &rows, interner);
    }
    let mut own: Vec<Selector> = Vec::new();
    let mut owner = 0;
    each_child(conn, &SELECTORS, &rows, |index, row| {
        if index != owner {
            entries[owner].1.selectors = own.drain(..).collect();
            owner = index;
        }
        own.push(interner.selector(&text_or_empty(row, 1)?, &text_or_empty(row, 2)?));
        Ok(())
    })?;
    if let Some((_, last)) = entries.get_mut(owner) {
        last.selectors = Selectors::from_iter(own);
    }
    let mut names: Vec<(usize, Box<str>)> = Vec::new();
    each_child(conn, &DNS_NAMES, &rows, |index, row| {
        names.push((index, text_or_empty(row, 1)?.into()));
        Ok(())
    })?;
    distribute(names, |index, names| entries[index].1.dns_names = names);
    let mut domains: Vec<(usize, TrustDomain)> = Vec::new();
    each_child(conn, &FEDERATES_WITH, &rows, |index, row| {
        let domain = text_or_empty(row, 1).and_then(|text| trust_domain(&text));
        domains.extend(readable("bundles", rows[index], domain).map(|domain| (index, domain)));
        Ok(())
    })?;
    distribute(domains, |index, domains| entries[index].1.federates_with = domains);
    Ok(())
}

/// As [`attach`], with one statement.
fn attach_united(
    conn: &mut dyn Session,
    entries: &mut [(i64, Entry)],
    rows: &[i64],
    interner: &mut Interner,
) -> Sql<()> {
    let mut selectors: Vec<(usize, Selector)> = Vec::new();
    let mut names: Vec<(usize, Box<str>)> = Vec::new();
    let mut domains: Vec<(usize, TrustDomain)> = Vec::new();
    each_child(conn, &UNITED, rows, |index, row| {
        let value = text_or_empty(row, 4)?;
        match integer(row, 1)? {
            0_i64 => selectors.push((index, interner.selector(&text_or_empty(row, 3)?, &value))),
            1 => names.push((index, value.into())),
            _ => {
                let domain = readable("bundles", rows[index], trust_domain(&value));
                domains.extend(domain.map(|domain| (index, domain)));
            }
        }
        Ok(())
    })?;
    distribute(selectors, |index, own| entries[index].1.selectors = own.into_iter().collect());
    distribute(names, |index, names| entries[index].1.dns_names = names);
    distribute(domains, |index, domains| entries[index].1.federates_with = domains);
    Ok(())
}

/// Hands each index all its values; they come sorted by index.
fn distribute<T>(values: Vec<(usize, T)>, mut give: impl FnMut(usize, Box<[T]>)) {
    let mut values = values.into_iter().peekable();
    while let Some((index, first)) = values.next() {
        let mut own = vec![first];
        while let Some((_, next)) = values.next_if(|(next, _)| *next == index) {
            own.push(next);
        }
        give(index, own.into());
    }
}

/// Calls `each` with the children of the entries in `rows` (sorted), and the index of their entry.
fn each_child(
    conn: &mut dyn Session,
    children: &Children,
    rows: &[i64],
    mut each: impl FnMut(usize, &dyn Row) -> Sql<()>,
) -> Sql<()> {
    let (Some(first), Some(last)) = (rows.first(), rows.last()) else {
        return Ok(());
    };
    let mut index = 0;
    let merge = |row: &dyn Row| {
        let owner: i64 = integer(row, 0)?;
        while rows.get(index).is_some_and(|row| *row < owner) {
            index += 1;
        }
        if rows.get(index) == Some(&owner) { each(index, row) } else { Ok(()) }
    };
    let span = last.abs_diff(*first);
    if span <= 4 * u64::try_from(rows.len()).unwrap_or(u64::MAX / 4) {
        each_row(conn, children.range, params![*first, *last], merge)
    } else {
        each_row(conn, children.scattered, params![&json_rows(rows)], merge)
    }
}
