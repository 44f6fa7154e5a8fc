//! Conditions of listings, put together from a fixed set of texts: values are always bound.

use rusqlite::types::Value;
use spire_core::model::{EntryFilter, NodeFilter, SelectorMatch, SetMatch};
use spire_core::time::Timestamp;
use spire_ports::datastore::Error;

use crate::convert::{bundle_key, json_selectors, json_texts, timestamp_text};
use crate::fault::Sql;

/// Conditions, each starting with ` AND `, and the values of their question marks in order.
#[derive(Default)]
pub(super) struct Conditions {
    pub(super) sql: String,
    pub(super) values: Vec<Value>,
}

/// A set that belongs to a row, as rows of another table.
struct SetTable {
    /// Rows of the wanted set, each joined with the members it equals: `W` wanted, then the table.
    common: &'static str,
    /// The column that names the owner.
    owner: &'static str,
    /// The number of members that the owner in the group has.
    size: &'static str,
}

const ENTRY_SELECTORS: SetTable = SetTable {
    common: "json_each(?) W CROSS JOIN selectors S \
             ON S.type = json_extract(W.value, '$[0]') AND S.value = json_extract(W.value, '$[1]')",
    owner: "S.registered_entry_id",
    size: "(SELECT COUNT(*) FROM selectors A WHERE A.registered_entry_id = S.registered_entry_id)",
};

const ENTRY_FEDERATES_WITH: SetTable = SetTable {
    common: "json_each(?) W CROSS JOIN bundles B ON B.trust_domain = W.value \
             CROSS JOIN federated_registration_entries F ON F.bundle_id = B.id",
    owner: "F.registered_entry_id",
    size: "(SELECT COUNT(*) FROM federated_registration_entries A \
            WHERE A.registered_entry_id = F.registered_entry_id)",
};

const NODE_SELECTORS: SetTable = SetTable {
    common: "json_each(?) W CROSS JOIN node_resolver_map_entries S \
             ON S.type = json_extract(W.value, '$[0]') AND S.value = json_extract(W.value, '$[1]')",
    owner: "S.spiffe_id",
    size: "(SELECT COUNT(*) FROM node_resolver_map_entries A WHERE A.spiffe_id = S.spiffe_id)",
};

impl Conditions {
    fn equals(&mut self, column: &str, value: impl Into<Value>) {
        self.sql.push_str(" AND ");
        self.sql.push_str(column);
        self.sql.push_str(" = ?");
        self.values.push(value.into());
    }

    /// The owner's set compares with the wanted one as [`SetMatch::holds`] says. The wanted set has no
    /// duplicates, and neither has a stored one.
    fn set(&mut self, column: &str, table: &SetTable, wanted: String, size: usize, how: SetMatch) {
        let SetTable { common, owner, size: all } = table;
        let having = match how {
            SetMatch::Exact => format!("HAVING COUNT(*) = ? AND {all} = COUNT(*)"),
            SetMatch::Subset => format!("HAVING {all} = COUNT(*)"),
            SetMatch::Superset => "HAVING COUNT(*) = ?".to_owned(),
            SetMatch::Any => String::new(),
        };
        self.sql
            .push_str(&format!(" AND {column} IN (SELECT {owner} FROM {common} GROUP BY {owner} {having})"));
        self.values.push(wanted.into());
        if matches!(how, SetMatch::Exact | SetMatch::Superset) {
            self.values.push(i64::try_from(size).unwrap_or(i64::MAX).into());
        }
    }

    fn selectors(&mut self, column: &str, table: &SetTable, wanted: &SelectorMatch, empty: &str) -> Sql<()> {
        if wanted.selectors.is_empty() {
            return Err(Error::Invalid(empty.into()).into());
        }
        let json = json_selectors(&wanted.selectors);
        self.set(column, table, json, wanted.selectors.len(), wanted.how);
        Ok(())
    }

    /// Compares a time column. The text decides within a margin of two days, which an index can use; what is
    /// inside the margin is compared as a time, since a reference server writes its local time zone.
    pub(super) fn time(&mut self, column: &str, operator: &str, at: Timestamp) {
        const MARGIN: std::time::Duration = std::time::Duration::from_secs(2 * 86_400);
        let coarse = if operator.starts_with('<') { at + MARGIN } else { at - MARGIN };
        self.sql.push_str(&format!(" AND {column} {operator} ? AND unixepoch({column}) {operator} ?"));
        self.values.push(timestamp_text(coarse).into());
        self.values.push(at.unix().into());
    }
}

/// Which entries: columns of `registered_entries E`.
pub(super) fn entries(filter: &EntryFilter) -> Sql<Conditions> {
    let mut conditions = Conditions::default();
    if let Some(parent) = &filter.parent_id {
        conditions.equals("E.parent_id", parent.as_str().to_owned());
    }
    if let Some(id) = &filter.spiffe_id {
        conditions.equals("E.spiffe_id", id.as_str().to_owned());
    }
    if let Some(hint) = &filter.hint {
        conditions.equals("E.hint", hint.clone());
    }
    if let Some(downstream) = filter.downstream {
        conditions.equals("COALESCE(E.downstream, 0)", i64::from(downstream));
    }
    if let Some(wanted) = &filter.selectors {
        conditions.selectors("E.id", &ENTRY_SELECTORS, wanted, "cannot list by empty selector set")?;
    }
    if let Some(wanted) = &filter.federates_with {
        let mut keys: Vec<_> = wanted.trust_domains.iter().map(bundle_key).collect();
        keys.sort_unstable();
        keys.dedup();
        if keys.is_empty() {
            return Err(Error::Invalid("cannot list by empty trust domain set".into()).into());
        }
        let json = json_texts(keys.iter().map(String::as_str));
        conditions.set("E.id", &ENTRY_FEDERATES_WITH, json, keys.len(), wanted.how);
    }
    Ok(conditions)
}

/// Which nodes: columns of `attested_node_entries N`.
pub(super) fn nodes(filter: &NodeFilter) -> Sql<Conditions> {
    let mut conditions = Conditions::default();
    if let Some(kind) = &filter.attestation_type {
        conditions.equals("N.data_type", kind.clone());
    }
    match filter.banned {
        Some(true) => conditions.sql.push_str(" AND COALESCE(N.serial_number, '') = ''"),
        Some(false) => conditions.sql.push_str(" AND N.serial_number <> ''"),
        None => {}
    }
    if let Some(can_reattest) = filter.can_reattest {
        conditions.equals("COALESCE(N.can_reattest, 0)", i64::from(can_reattest));
    }
    if let Some(at) = filter.expires_before {
        conditions.time("N.expires_at", "<", at);
    }
    if let Some(at) = filter.valid_at {
        conditions.time("N.expires_at", ">=", at);
    }
    if let Some(wanted) = &filter.selectors {
        conditions.selectors("N.spiffe_id", &NODE_SELECTORS, wanted, "cannot list by empty selectors set")?;
    }
    Ok(conditions)
}
