//! The datastore on SQL: the reference's schema and encodings, so that either server opens the other's
//! database. `query` is one set of operations for all kinds of databases; what differs is in `sql::dialect`.
//!
//! On SQLite one thread owns the connection that writes and shares a transaction among the jobs that wait
//! ([`sqlite`](self)); a few connections read. Every function in `query` is synchronous and works on a
//! session, inside a transaction that its caller opened. On database servers an operation has a thread and a pooled
//! connection for as long as it lasts (`postgres`, `mysql`).

mod aws;
mod config;
mod convert;
pub mod dsn;
mod fault;
pub mod fuzzing;
mod mysql;
mod plugin_data;
mod postgres;
mod query;
mod remote;
mod schema;
mod sql;
mod sqlite;
mod store;

pub use aws::AwsConfig;
pub use config::{DatabaseType, SqlConfig};
pub use store::SqlStore;
