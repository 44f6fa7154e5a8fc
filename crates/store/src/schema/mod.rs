//! The reference's schema, word for word, and what happens to it when a database is opened.

mod migrate;
mod mysql;
mod postgres;
mod sqlite;
mod version;

use crate::sql::Dialect;

pub(crate) use migrate::migrate;

/// The version of this schema.
pub(crate) const SCHEMA_VERSION: i64 = 25;

/// The oldest version that is upgraded in place.
const OLDEST_UPGRADABLE: i64 = 23;

/// The release whose schema and behaviour this is; stored, and compared with what others stored.
const CODE_VERSION: &str = "1.15.3";

/// What a kind of database is told, and asked, about its schema.
pub(crate) struct Schema {
    /// Makes all tables and indexes of a new database, in the order of the reference.
    create: &'static [&'static str],
    /// The steps that lead away from a version: the column that each adds.
    steps: &'static [Step],
    /// A row if there is a table of the name in ?1.
    has_table: &'static str,
    /// A row if the table in ?1 has the column in ?2.
    has_column: &'static str,
    /// Begins a transaction in which the schema is changed.
    begin: &'static str,
}

/// A column that came with a version.
struct Step {
    from: i64,
    table: &'static str,
    column: &'static str,
    statement: &'static str,
}

impl Dialect {
    /// The schema on this kind of database.
    fn schema(self) -> &'static Schema {
        match self {
            Self::Sqlite => &sqlite::SCHEMA,
            Self::Postgres => &postgres::SCHEMA,
            Self::Mysql => &mysql::SCHEMA,
        }
    }
}

#[cfg(test)]
mod tests;
