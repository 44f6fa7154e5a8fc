//! PostgreSQL without a server: what is decided before there is one.

use super::*;

#[test]
fn a_server_needs_a_runtime() {
    let config = SqlConfig {
        database_type: "postgres".into(),
        connection_string: "host=127.0.0.1".into(),
        ..SqlConfig::default()
    };
    let refusal = Postgres::open(&config, DatabaseType::Postgres).err().map(|error| error.to_string());
    assert_eq!(refusal.as_deref(), Some("datastore-sql: a database server needs an async runtime"));
}
