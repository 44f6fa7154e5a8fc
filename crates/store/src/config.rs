//! What an operator says about the database (`plugin_data` of `DataStore "sql"`).

use std::time::Duration;

use spire_ports::datastore::{Error, Result};

use crate::aws::AwsConfig;

/// Configuration of the store, field by field as in `plugin_data`
/// (pkg/server/datastore/sqlcommon/config.go). Whoever parses the file fills it in.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct SqlConfig {
    /// `database_type`: see [`DatabaseType`].
    pub database_type: String,
    /// The block of `database_type` for a database with logins of AWS.
    pub aws: Option<AwsConfig>,
    /// `connection_string`: for SQLite a path or a `file:` URI, for PostgreSQL libpq's two forms, for MySQL
    /// that of go-sql-driver with `parseTime=true`.
    pub connection_string: String,
    /// `ro_connection_string`: a replica for reads that tolerate stale data; SQLite has none.
    pub ro_connection_string: String,
    /// `root_ca_path`: CA of a MySQL server.
    pub root_ca_path: String,
    /// `client_cert_path`: client certificate for a MySQL server.
    pub client_cert_path: String,
    /// `client_key_path`: key of that certificate.
    pub client_key_path: String,
    /// `max_open_conns`: 100 if not set, no bound if zero. For SQLite a bound on reading connections, of which there
    /// are never more than four.
    pub max_open_conns: Option<u32>,
    /// `max_idle_conns`: 100 if not set.
    pub max_idle_conns: Option<u32>,
    /// `conn_max_lifetime`; SQLite's connections have no reason to end.
    pub conn_max_lifetime: Option<Duration>,
    /// `disable_migration`: never alter the schema.
    pub disable_migration: bool,
    /// `log_sql`: log statements at DEBUG.
    pub log_sql: bool,
}

/// Without what may hold a password.
impl std::fmt::Debug for SqlConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SqlConfig").field("database_type", &self.database_type).finish_non_exhaustive()
    }
}

/// A kind of database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DatabaseType {
    /// `sqlite3`
    Sqlite,
    /// `postgres`
    Postgres,
    /// `aws_postgres`: with tokens of IAM for passwords.
    AwsPostgres,
    /// `mysql`, also MariaDB.
    Mysql,
    /// `aws_mysql`: with tokens of IAM for passwords.
    AwsMysql,
}

impl SqlConfig {
    /// A SQLite database at a path or `file:` URI.
    pub fn sqlite(connection_string: impl Into<String>) -> Self {
        Self {
            database_type: "sqlite3".into(),
            connection_string: connection_string.into(),
            ..Self::default()
        }
    }

    /// A SQLite database that lives in memory and ends with its store; for tests.
    pub fn in_memory() -> Self {
        Self::sqlite("file::memory:")
    }

    /// Checks the settings without touching a database.
    ///
    /// # Errors
    /// [`Error::Invalid`] says which setting is missing or not supported, as the reference's
    /// `configValidate` where it would refuse too.
    pub fn validate(&self) -> Result<DatabaseType> {
        let invalid = |text: String| Err(Error::Invalid(format!("datastore-sql: {text}")));
        if self.database_type.is_empty() {
            return invalid("database_type must be set".into());
        }
        if self.connection_string.is_empty() {
            return invalid("connection_string must be set".into());
        }
        match self.database_type.as_str() {
            "sqlite3" => Ok(DatabaseType::Sqlite),
            "postgres" => Ok(DatabaseType::Postgres),
            "aws_postgres" => match &self.aws {
                Some(aws) if aws.region.is_empty() => invalid("region must be specified".into()),
                Some(_) => Ok(DatabaseType::AwsPostgres),
                // Named without a block, it is an ordinary server with a password.
                None => Ok(DatabaseType::Postgres),
            },
            other @ ("cloudsqlpostgres" | "cloudsqlmysql") => {
                invalid(format!("database_type {other:?}: dialing GCP Cloud SQL is not supported yet"))
            }
            "mysql" | "aws_mysql" => {
                crate::mysql::validate(&self.connection_string)?;
                if !self.ro_connection_string.is_empty() {
                    crate::mysql::validate(&self.ro_connection_string)?;
                }
                match &self.aws {
                    Some(aws) if aws.region.is_empty() => invalid("region must be specified".into()),
                    Some(_) => Ok(DatabaseType::AwsMysql),
                    None => Ok(DatabaseType::Mysql),
                }
            }
            other => invalid(format!("unsupported database_type: {other}")),
        }
    }
}
