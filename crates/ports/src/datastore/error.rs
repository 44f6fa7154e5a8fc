//! What can go wrong with the datastore, by whose fault it is.

/// Result of a datastore operation.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a datastore operation failed. The texts are what API callers see after `datastore-sql: `
/// (pkg/server/datastore/sqlstore).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The row does not exist.
    #[error("datastore-sql: record not found")]
    NotFound,
    /// A row with that key exists; the text is the constraint's.
    #[error("datastore-sql: {0}")]
    AlreadyExists(String),
    /// The request cannot be stored as it is.
    #[error("datastore-validation: {0}")]
    Invalid(String),
    /// Other rows still refer to it.
    #[error("datastore-sql: {0}")]
    InUse(String),
    /// The database cannot be reached, is locked or its disk is full; trying again later may help.
    #[error("datastore-sql: {0}")]
    Unavailable(String),
    /// Stored data cannot be read, or the database broke a promise.
    #[error("datastore-sql: {0}")]
    Internal(String),
}
