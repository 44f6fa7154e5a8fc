//! Versions and migrations.

use rusqlite::Connection;

use super::{CODE_VERSION, SCHEMA_VERSION, migrate, sqlite};
use crate::sqlite::SqliteSession;

/// A database as another server left it.
fn database(version: i64, code_version: &str) -> SqliteSession {
    let mut session = SqliteSession::new(Connection::open_in_memory().unwrap());
    migrate(&mut session, false).unwrap();
    let conn = session.connection();
    if version < 25 {
        conn.execute_batch("ALTER TABLE registered_entries DROP COLUMN additional_attributes").unwrap();
    }
    if version < 24 {
        conn.execute_batch("ALTER TABLE attested_node_entries DROP COLUMN agent_version").unwrap();
    }
    conn.execute("UPDATE migrations SET version = ?1, code_version = ?2", (version, code_version)).unwrap();
    session
}

fn versions(session: &SqliteSession) -> (i64, String) {
    session
        .connection()
        .query_row("SELECT version, code_version FROM migrations", [], |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap()
}

fn columns(session: &SqliteSession, table: &str) -> Vec<(String, String)> {
    let mut statement = session.connection().prepare("SELECT name, type FROM pragma_table_info(?1)").unwrap();
    let columns = statement.query_map([table], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    columns.collect::<Result<_, _>>().unwrap()
}

#[test]
fn a_new_database_has_the_schema_as_text() {
    let conn = database(SCHEMA_VERSION, CODE_VERSION);
    let mut statement = conn
        .connection()
        .prepare("SELECT sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%' ORDER BY rowid")
        .unwrap();
    let stored = statement.query_map([], |row| row.get::<_, String>(0)).unwrap();
    let stored: Vec<String> = stored.collect::<Result<_, _>>().unwrap();
    assert_eq!(stored, sqlite::CREATE);
    assert_eq!(stored.len(), 30);
    assert_eq!(versions(&conn), (25, "1.15.3".into()));
}

#[test]
fn older_schemas_are_upgraded_step_by_step() {
    let new = database(SCHEMA_VERSION, CODE_VERSION);
    for (version, code) in [(23, "1.13.0"), (24, "1.14.3")] {
        let mut conn = database(version, code);
        migrate(&mut conn, false).unwrap();
        assert_eq!(versions(&conn), (25, "1.15.3".into()));
        for table in ["registered_entries", "attested_node_entries"] {
            assert_eq!(columns(&conn, table), columns(&new, table), "from {version}");
        }
        migrate(&mut conn, false).unwrap();
    }
}

#[test]
fn what_is_too_old_is_refused_and_left_alone() {
    let mut conn = database(22, "1.7.2");
    let refusal = migrate(&mut conn, false).unwrap_err().0.to_string();
    assert_eq!(
        refusal,
        "datastore-sql: migrating from schema version 22 requires a previous SPIRE release; please follow the \
         upgrade strategy at doc/upgrading.md"
    );
    assert_eq!(versions(&conn), (22, "1.7.2".into()));
}

#[test]
fn a_newer_schema_is_used_within_one_release() {
    migrate(&mut database(26, "1.16.0"), false).unwrap();
    let refusal = migrate(&mut database(26, "1.17.0"), false).unwrap_err().0.to_string();
    assert_eq!(refusal, "datastore-sql: incompatible DB schema and code version");
}

#[test]
fn without_migration_nothing_is_altered() {
    let mut near = database(24, "1.14.9");
    migrate(&mut near, true).unwrap();
    assert_eq!(versions(&near), (24, "1.14.9".into()));
    let refusal = migrate(&mut database(23, "1.13.0"), true).unwrap_err().0.to_string();
    assert_eq!(refusal, "datastore-sql: auto-migration must be enabled for current DB");
}

#[test]
fn the_latest_release_is_recorded() {
    for (stored, after) in [("1.15.2", "1.15.3"), ("1.16.0-dev-unk", "1.16.0-dev-unk"), ("", "1.15.3")] {
        let mut conn = database(25, stored);
        migrate(&mut conn, false).unwrap();
        assert_eq!(versions(&conn), (25, after.into()));
    }
    assert!(migrate(&mut database(25, "tomorrow"), false).is_err());
}
