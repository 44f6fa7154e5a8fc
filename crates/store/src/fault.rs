//! The error of this crate's inner functions: the port's error, made from the driver's.

use rusqlite::ErrorCode;
use spire_ports::datastore::Error;

/// Result of an inner function.
pub(crate) type Sql<T> = Result<T, Fault>;

/// The port's error, with conversions from what the driver and the encodings report.
#[derive(Debug)]
pub(crate) struct Fault(pub(crate) Error);

impl Fault {
    /// Stored data that cannot be read.
    pub(crate) fn unreadable(what: impl std::fmt::Display) -> Self {
        Self(Error::Internal(what.to_string()))
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

impl From<rusqlite::types::FromSqlError> for Fault {
    fn from(error: rusqlite::types::FromSqlError) -> Self {
        Self::unreadable(error)
    }
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        Self(match error {
            rusqlite::Error::QueryReturnedNoRows => Error::NotFound,
            rusqlite::Error::SqliteFailure(code, message) => {
                let message = message.unwrap_or_else(|| code.to_string());
                match code.code {
                    ErrorCode::ConstraintViolation => Error::AlreadyExists(message),
                    ErrorCode::DatabaseBusy
                    | ErrorCode::DatabaseLocked
                    | ErrorCode::DiskFull
                    | ErrorCode::CannotOpen
                    | ErrorCode::SystemIoFailure
                    | ErrorCode::ReadOnly
                    | ErrorCode::PermissionDenied
                    | ErrorCode::FileLockingProtocolFailed
                    | ErrorCode::OutOfMemory => Error::Unavailable(message),
                    _ => Error::Internal(message),
                }
            }
            other => Error::Internal(other.to_string()),
        })
    }
}
