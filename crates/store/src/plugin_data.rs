//! Reading `plugin_data` of `DataStore "sql"` (pkg/server/datastore/sqlcommon/config.go).

use std::time::Duration;

use spire_compat::duration::GoDuration;
use spire_compat::hcl::{Body, DecodeError, Fragment};
use spire_ports::datastore::{Error, Result};
use spire_ports::plugins::PluginType;
use spire_ports::plugins::catalog::warn_of_unused;

use crate::{AwsConfig, SqlConfig};

impl SqlConfig {
    /// The settings in a `plugin_data` block; without one, none are set.
    ///
    /// # Errors
    /// [`Error::Invalid`] names the key that cannot be read.
    pub fn from_plugin_data(data: Option<&Fragment>) -> Result<Self> {
        let Some(data) = data else { return Ok(Self::default()) };
        let invalid = |error: DecodeError| Error::Invalid(format!("datastore-sql: {error}"));
        let mut body = data.body().map_err(invalid)?;
        let unused = body.collect_unused();
        let config = read(&mut body).map_err(invalid)??.with_lifetime(&mut body)?;
        drop(body);
        warn_of_unused((PluginType::DataStore.as_str(), "sql"), &unused);
        Ok(config)
    }

    fn with_lifetime(mut self, body: &mut Body<'_>) -> Result<Self> {
        let invalid = |why: String| Error::Invalid(format!("datastore-sql: {why}"));
        let text = body.take_string("conn_max_lifetime").map_err(|e| invalid(e.to_string()))?;
        self.conn_max_lifetime = match text.filter(|t| !t.is_empty()) {
            None => None,
            Some(text) => {
                let parsed: GoDuration = text
                    .parse()
                    .map_err(|e| invalid(format!("failed to parse conn_max_lifetime {text:?}: {e}")))?;
                parsed.to_std().filter(|d| *d > Duration::ZERO)
            }
        };
        Ok(self)
    }
}

/// The inner error is one in the reference's words (parseDatabaseTypeASTNode).
fn read(body: &mut Body<'_>) -> std::result::Result<Result<SqlConfig>, DecodeError> {
    let count = |n: Option<i64>| n.and_then(|n| u32::try_from(n).ok());
    // `database_type` may be a block for a database with cloud credentials; its label is the type.
    let (database_type, aws) = match body.take_string("database_type") {
        Ok(text) => (text.unwrap_or_default(), None),
        Err(error) => {
            let mut blocks = body.take_labelled("database_type")?;
            let (label, block) = blocks.pop().ok_or(error)?;
            if !blocks.is_empty() {
                return Ok(Err(Error::Invalid("exactly one database type is expected".into())));
            }
            if !matches!(label.as_str(), "aws_mysql" | "aws_postgres") {
                return Ok(Err(Error::Invalid(format!("unknown database type: {label}"))));
            }
            (label, Some(aws(block)?))
        }
    };
    Ok(Ok(SqlConfig {
        database_type,
        aws,
        connection_string: body.take_string("connection_string")?.unwrap_or_default(),
        ro_connection_string: body.take_string("ro_connection_string")?.unwrap_or_default(),
        root_ca_path: body.take_string("root_ca_path")?.unwrap_or_default(),
        client_cert_path: body.take_string("client_cert_path")?.unwrap_or_default(),
        client_key_path: body.take_string("client_key_path")?.unwrap_or_default(),
        max_open_conns: count(body.take_int("max_open_conns")?),
        max_idle_conns: count(body.take_int("max_idle_conns")?),
        conn_max_lifetime: None,
        disable_migration: body.take_bool("disable_migration")?.unwrap_or_default(),
        log_sql: body.take_bool("log_sql")?.unwrap_or_default(),
    }))
}

/// The block of a database with logins of AWS.
fn aws(mut body: Body<'_>) -> std::result::Result<AwsConfig, DecodeError> {
    Ok(AwsConfig {
        region: body.take_string("region")?.unwrap_or_default(),
        access_key_id: body.take_string("access_key_id")?.unwrap_or_default(),
        secret_access_key: body.take_string("secret_access_key")?.unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Result<SqlConfig> {
        let document = spire_compat::hcl::parse(text).unwrap();
        SqlConfig::from_plugin_data(Some(&document.into()))
    }

    #[test]
    fn keys_are_read() {
        let read = config(
            "database_type = \"sqlite3\"\nconnection_string = \"./x\"\nmax_open_conns = 5\nconn_max_lifetime = \"1m\"\ndisable_migration = true\nlog_sql = true",
        )
        .unwrap();
        assert_eq!((read.database_type.as_str(), read.connection_string.as_str()), ("sqlite3", "./x"));
        assert_eq!((read.max_open_conns, read.conn_max_lifetime), (Some(5), Some(Duration::from_secs(60))));
        assert!(read.disable_migration && read.log_sql);
    }

    #[test]
    fn a_block_names_the_type_by_its_label() {
        let read = config("database_type \"aws_postgres\" {\n region = \"x\"\n}\nconnection_string = \"c\"")
            .unwrap();
        assert_eq!(read.database_type, "aws_postgres");
        assert_eq!(read.aws.as_ref().map(|aws| aws.region.as_str()), Some("x"));
        for (text, refusal) in [
            ("database_type \"azure\" {}", "unknown database type: azure"),
            (
                "database_type \"aws_postgres\" {}\ndatabase_type \"aws_mysql\" {}",
                "exactly one database type is expected",
            ),
        ] {
            assert_eq!(config(text).unwrap_err().to_string(), refusal);
        }
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let error = config("conn_max_lifetime = \"soon\"").unwrap_err().to_string();
        assert!(error.contains("conn_max_lifetime"), "{error}");
        assert!(config("disable_migration = \"yes\"").is_err());
    }
}
