//! What can go wrong with the datastore, by whose fault it is.

use crate::observe::GrpcCode;

/// Result of a datastore operation.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a datastore operation failed. `Display` is the whole text that API callers see, prefix included
/// (pkg/server/datastore/sqlstore).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The row does not exist.
    #[error("datastore-sql: record not found")]
    NotFound,
    /// What the request names inside a row (an authority of a bundle, say) is not there.
    #[error("{0}")]
    Missing(String),
    /// A row with that key exists; the text is the constraint's.
    #[error("datastore-sql: {0}")]
    AlreadyExists(String),
    /// The request cannot be stored or answered as it is. The text is whole: some of the reference's have
    /// the prefix `datastore-validation: `, others none.
    #[error("{0}")]
    Invalid(String),
    /// An entry is to federate with a trust domain that has no bundle. Not `Invalid`: API callers get another code
    /// for it (pkg/server/datastore/sqlstore: makeFederatesWith).
    #[error("{0}")]
    NoBundle(String),
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

impl Error {
    /// A request that breaks a rule of stored objects; the text gets the reference's prefix.
    pub fn validation(message: impl std::fmt::Display) -> Self {
        Self::Invalid(format!("datastore-validation: {message}"))
    }
}

impl GrpcCode for Error {
    fn grpc_code(&self) -> &'static str {
        match self {
            Self::NotFound | Self::Missing(_) => "NotFound",
            Self::AlreadyExists(_) => "AlreadyExists",
            Self::Invalid(_) => "InvalidArgument",
            Self::InUse(_) => "FailedPrecondition",
            Self::Unavailable(_) => "Unavailable",
            Self::NoBundle(_) | Self::Internal(_) => "Unknown",
        }
    }
}
