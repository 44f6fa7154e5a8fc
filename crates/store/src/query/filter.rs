//! Conditions of listings, put together from a fixed set of texts: values are always bound.

use spire_core::model::{EntryFilter, NodeFilter, SelectorMatch, SetMatch};
use spire_core::time::Timestamp;
use spire_ports::datastore::Error;

use crate::convert::{bundle_key, json_selectors, json_texts};
use crate::fault::Sql;
use crate::sql::Value;

/// Conditions, each starting with ` AND `, and the values of their placeholders in order.
pub(super) struct Conditions {
    pub(super) sql: String,
    pub(super) values: Vec<Value>,
    /// The number of the first placeholder.
    first: usize,
}

/// A set that belongs to a row, as rows of another table.
struct SetTable {
    /// The wanted set, as a place of canonical statements.
    wanted: &'static str,
    /// Joined with it: the members that equal one of its rows.
    common: &'static str,
    /// The column that names the owner.
    owner: &'static str,
    /// The number of members that the owner in the group has.
    size: &'static str,
}

const ENTRY_SELECTORS: SetTable = SetTable {
    wanted: "pairs",
    common: "{join} selectors S ON S.type = W.kind AND S.value = W.value",
    owner: "S.registered_entry_id",
    size: "(SELECT COUNT(*) FROM selectors A WHERE A.registered_entry_id = S.registered_entry_id)",
};

const ENTRY_FEDERATES_WITH: SetTable = SetTable {
    wanted: "texts",
    common: "{join} bundles B ON B.trust_domain = W.value \
             {join} federated_registration_entries F ON F.bundle_id = B.id",
    owner: "F.registered_entry_id",
    size: "(SELECT COUNT(*) FROM federated_registration_entries A \
            WHERE A.registered_entry_id = F.registered_entry_id)",
};

const NODE_SELECTORS: SetTable = SetTable {
    wanted: "pairs",
    common: "{join} node_resolver_map_entries S ON S.type = W.kind AND S.value = W.value",
    owner: "S.spiffe_id",
    size: "(SELECT COUNT(*) FROM node_resolver_map_entries A WHERE A.spiffe_id = S.spiffe_id)",
};

impl Conditions {
    /// None yet; their placeholders are numbered from `first`.
    pub(super) fn new(first: usize) -> Self {
        Self { sql: String::new(), values: Vec::new(), first }
    }

    /// Keeps a value; returns its placeholder.
    fn bind(&mut self, value: Value) -> String {
        self.values.push(value);
        format!("?{}", self.first + self.values.len() - 1)
    }

    fn equals(&mut self, column: &str, value: Value) {
        let value = self.bind(value);
        self.sql.push_str(&format!(" AND {column} = {value}"));
    }

    /// The owner's set compares with the wanted one as [`SetMatch::holds`] says. The wanted set has no
    /// duplicates, and neither has a stored one.
    fn set(&mut self, column: &str, table: &SetTable, wanted: String, size: usize, how: SetMatch) {
        let SetTable { wanted: place, common, owner, size: all } = table;
        let set = self.bind(Value::Text(wanted));
        let size = i64::try_from(size).unwrap_or(i64::MAX);
        let having = match how {
            SetMatch::Exact => {
                format!("HAVING COUNT(*) = {} AND {all} = COUNT(*)", self.bind(Value::Int(size)))
            }
            SetMatch::Subset => format!("HAVING {all} = COUNT(*)"),
            SetMatch::Superset => format!("HAVING COUNT(*) = {}", self.bind(Value::Int(size))),
            SetMatch::Any => String::new(),
        };
        self.sql.push_str(&format!(
            " AND {column} IN (SELECT {owner} FROM {{{place} {set}}} {common} GROUP BY {owner} {having})"
        ));
    }

    fn selectors(&mut self, column: &str, table: &SetTable, wanted: &SelectorMatch, empty: &str) -> Sql<()> {
        if wanted.selectors.is_empty() {
            return Err(Error::Invalid(empty.into()).into());
        }
        let json = json_selectors(&wanted.selectors);
        self.set(column, table, json, wanted.selectors.len(), wanted.how);
        Ok(())
    }

    /// The time in the column is before `at`.
    pub(super) fn before(&mut self, column: &str, at: Timestamp) {
        let at = self.bind(Value::Time(at));
        self.sql.push_str(&format!(" AND {{before {column} {at}}}"));
    }

    /// The time in the column is `at` or later.
    fn since(&mut self, column: &str, at: Timestamp) {
        let at = self.bind(Value::Time(at));
        self.sql.push_str(&format!(" AND {{since {column} {at}}}"));
    }
}

/// Which entries: columns of `registered_entries E`; placeholders from `first` on.
pub(super) fn entries(filter: &EntryFilter, first: usize) -> Sql<Conditions> {
    let mut conditions = Conditions::new(first);
    if let Some(parent) = &filter.parent_id {
        conditions.equals("E.parent_id", Value::Text(parent.as_str().into()));
    }
    if let Some(id) = &filter.spiffe_id {
        conditions.equals("E.spiffe_id", Value::Text(id.as_str().into()));
    }
    if let Some(hint) = &filter.hint {
        conditions.equals("E.hint", Value::Text(hint.clone()));
    }
    if let Some(downstream) = filter.downstream {
        conditions.equals("COALESCE(E.downstream, FALSE)", Value::Bool(downstream));
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

/// Which nodes: columns of `attested_node_entries N`; placeholders from `first` on.
pub(super) fn nodes(filter: &NodeFilter, first: usize) -> Sql<Conditions> {
    let mut conditions = Conditions::new(first);
    if let Some(kind) = &filter.attestation_type {
        conditions.equals("N.data_type", Value::Text(kind.clone()));
    }
    match filter.banned {
        Some(true) => conditions.sql.push_str(" AND COALESCE(N.serial_number, '') = ''"),
        Some(false) => conditions.sql.push_str(" AND N.serial_number <> ''"),
        None => {}
    }
    if let Some(can_reattest) = filter.can_reattest {
        conditions.equals("COALESCE(N.can_reattest, FALSE)", Value::Bool(can_reattest));
    }
    if let Some(at) = filter.expires_before {
        conditions.before("N.expires_at", at);
    }
    if let Some(at) = filter.valid_at {
        conditions.since("N.expires_at", at);
    }
    if let Some(wanted) = &filter.selectors {
        conditions.selectors("N.spiffe_id", &NODE_SELECTORS, wanted, "cannot list by empty selectors set")?;
    }
    Ok(conditions)
}
