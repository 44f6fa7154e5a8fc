//! What PostgreSQL says is wrong, by whose fault it is.

use std::error::Error as _;

use spire_ports::datastore::Error;
use tokio_postgres::error::SqlState;

use crate::remote::Meaning;

/// What an error means for the transaction in which it came up.
pub(super) fn meaning(error: &tokio_postgres::Error) -> Meaning {
    let Some(code) = error.code() else { return Meaning::Lost };
    // 40xxx: transaction rollback. 40003 is that nobody knows whether it was done.
    if *code == SqlState::T_R_STATEMENT_COMPLETION_UNKNOWN {
        return Meaning::Lost;
    }
    match &code.code()[..2] {
        "40" => Meaning::Conflict,
        // 57P0x: shutting down; 08: connection; 53: out of connections, memory or disk; 25006 is a primary that has
        // become a replica.
        "08" => Meaning::Lost,
        "57" if *code != SqlState::QUERY_CANCELED => Meaning::Lost,
        "25" if *code == SqlState::READ_ONLY_SQL_TRANSACTION => Meaning::Lost,
        _ if *code == SqlState::UNIQUE_VIOLATION => Meaning::Duplicate,
        _ => Meaning::Statement,
    }
}

/// The port's error. Texts are those of the reference's driver (github.com/lib/pq: Error).
pub(super) fn of(error: &tokio_postgres::Error) -> Error {
    let Some(reported) = error.as_db_error() else {
        return Error::Unavailable(unreachable(error));
    };
    let code = reported.code().code();
    let text = format!("pq: {} ({code})", reported.message());
    match &code[..2] {
        // Integrity constraints.
        "23" => Error::AlreadyExists(text),
        // Connections, resources, operators and lost races; logins, which a rotation of passwords breaks for a while.
        "08" | "53" | "57" | "58" | "40" | "28" | "25" => Error::Unavailable(text),
        _ => Error::Internal(text),
    }
}

/// Why there is no connection, all causes in one line.
pub(super) fn unreachable(error: &tokio_postgres::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        text = format!("{text}: {source}");
        cause = source.source();
    }
    text
}
