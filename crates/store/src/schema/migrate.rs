//! Opening a database: a new one gets the schema, an older one the missing steps, a newer one is used or
//! refused (pkg/server/datastore/sqlstore/migration.go: migrateDB).

use spire_ports::datastore::Error;
use tracing::{debug, error, info, warn};

use super::version::Version;
use super::{CODE_VERSION, OLDEST_UPGRADABLE, SCHEMA_VERSION, Schema};
use crate::convert::{now, number_or_zero, text_or_empty};
use crate::fault::Sql;
use crate::sql::{Param, Session, params};

/// Brings the schema of the database to what this code needs, or refuses to work with it.
pub(crate) fn migrate(conn: &mut dyn Session, disabled: bool) -> Sql<()> {
    let Some((version, code_version)) = stored_version(conn)? else {
        return initialize(conn);
    };
    let ours = code_version_of(CODE_VERSION)?;
    let theirs = code_version_of(&code_version).inspect_err(|error| {
        error!(subsystem_name = "sql", schema = version, error = %error.0, "Error getting DB code version");
    })?;
    if version == SCHEMA_VERSION {
        debug!(
            subsystem_name = "sql", schema = version, version_info = %theirs,
            "Code and DB schema versions are the same. No migration needed"
        );
        if ours.is_later_than(&theirs) {
            record_version(conn, SCHEMA_VERSION)?;
        }
        return Ok(());
    }
    if disabled {
        if ours.is_compatible_with(&theirs) {
            return Ok(());
        }
        let refusal = "auto-migration must be enabled for current DB";
        error!(
            subsystem_name = "sql", schema = version, version_info = %theirs, error = refusal,
            "Auto-migrate must be enabled"
        );
        return Err(Error::Internal(refusal.into()).into());
    }
    if version > SCHEMA_VERSION {
        if !ours.is_compatible_with(&theirs) {
            error!(
                subsystem_name = "sql", schema = version, version_info = %theirs,
                "Incompatible DB schema is too new for code version, upgrade SPIRE Server"
            );
            return Err(Error::Internal("incompatible DB schema and code version".into()).into());
        }
        warn!(
            subsystem_name = "sql", schema = version, version_info = %theirs,
            "DB schema is ahead of code version, upgrading SPIRE Server is recommended"
        );
        return Ok(());
    }
    upgrade(conn, version)
}

fn code_version_of(text: &str) -> Sql<Version> {
    Version::parse(text).ok_or_else(|| {
        let reason = format!("unable to parse code version from DB: {text:?} is not a version");
        Error::Internal(format!("error getting DB code version: {reason}")).into()
    })
}

/// The row of `migrations`; `None` in a new database.
fn stored_version(conn: &mut dyn Session) -> Sql<Option<(i64, String)>> {
    let has_table = conn.dialect().schema().has_table;
    if !exists(conn, has_table, params!["migrations"])? {
        return Ok(None);
    }
    // A table without a row stands for version 0, as gorm's FirstOrCreate makes it.
    let mut stored = (0, String::new());
    conn.query("SELECT version, code_version FROM migrations ORDER BY id LIMIT 1", &[], &mut |row| {
        stored = (number_or_zero(row, 0)?, text_or_empty(row, 1)?.into_owned());
        Ok(false)
    })?;
    Ok(Some(stored))
}

fn initialize(conn: &mut dyn Session) -> Sql<()> {
    info!(subsystem_name = "sql", "Initializing new database");
    in_transaction(conn, |conn| {
        // Two servers may start on the same new file: the one that waited finds the work done.
        if stored_version(conn)?.is_some() {
            return Ok(());
        }
        for statement in conn.dialect().schema().create {
            conn.batch(statement)?;
        }
        conn.execute(
            "INSERT INTO migrations (created_at, updated_at, version, code_version) VALUES (?1, ?1, ?2, ?3)",
            params![now(), SCHEMA_VERSION, CODE_VERSION],
        )?;
        Ok(())
    })
}

/// Runs the steps that are missing, each in a transaction of its own.
fn upgrade(conn: &mut dyn Session, mut version: i64) -> Sql<()> {
    info!(subsystem_name = "sql", schema = version, "Running migrations...");
    while version < SCHEMA_VERSION {
        info!(subsystem_name = "sql", schema = version, version_info = version, "Migrating version");
        if version < OLDEST_UPGRADABLE {
            return Err(Error::Internal(format!(
                "migrating from schema version {version} requires a previous SPIRE release; please follow the \
                 upgrade strategy at doc/upgrading.md"
            ))
            .into());
        }
        in_transaction(conn, |conn| {
            let Schema { steps, has_column, .. } = conn.dialect().schema();
            for step in steps.iter().filter(|step| step.from == version) {
                if !exists(conn, has_column, params![step.table, step.column])? {
                    conn.batch(step.statement)?;
                }
            }
            record_version(conn, version + 1)
        })?;
        version += 1;
    }
    info!(subsystem_name = "sql", schema = version, "Done running migrations");
    Ok(())
}

/// Whether the query finds a row.
fn exists(conn: &mut dyn Session, sql: &str, params: &[Param<'_>]) -> Sql<bool> {
    let mut found = false;
    conn.query(sql, params, &mut |_| {
        found = true;
        Ok(false)
    })?;
    Ok(found)
}

fn record_version(conn: &mut dyn Session, version: i64) -> Sql<()> {
    conn.execute(
        "UPDATE migrations SET version = ?1, code_version = ?2, updated_at = ?3",
        params![version, CODE_VERSION, now()],
    )?;
    Ok(())
}

fn in_transaction(conn: &mut dyn Session, work: impl FnOnce(&mut dyn Session) -> Sql<()>) -> Sql<()> {
    conn.batch(conn.dialect().schema().begin)?;
    match work(conn) {
        Ok(()) => conn.batch("COMMIT"),
        Err(error) => {
            // What failed is reported; the database may have rolled back by itself already.
            let _ = conn.batch("ROLLBACK");
            Err(error)
        }
    }
}
