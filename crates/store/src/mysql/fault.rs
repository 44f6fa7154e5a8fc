//! What MySQL says is wrong, by whose fault it is.

use spire_ports::datastore::Error;

use super::client::Failure;
use crate::remote::Meaning;

/// What an error means for the transaction in which it came up.
pub(super) fn meaning(failure: &Failure) -> Meaning {
    let Failure::Server(refusal) = failure else { return Meaning::Lost };
    match refusal.code {
        // Deadlocks, and rows that changed since a snapshot; in a Galera cluster also what lost the certification.
        1213 | 1020 => Meaning::Conflict,
        1062 => Meaning::Duplicate,
        // The server shuts down, ended the connection, is no part of its cluster, or takes no writes any more.
        1047 | 1053 | 1077 | 1079 | 1152 | 1158..=1161 | 1184 | 1290 | 1792 | 1836 | 1927 | 3168 | 4031 => {
            Meaning::Lost
        }
        _ => Meaning::Statement,
    }
}

/// The port's error. Texts are those of the reference's driver (github.com/go-sql-driver/mysql: MySQLError).
pub(super) fn of(failure: &Failure) -> Error {
    let text = failure.to_string();
    let Failure::Server(refusal) = failure else { return Error::Unavailable(text) };
    let unavailable = meaning(failure) == Meaning::Lost
        || meaning(failure) == Meaning::Conflict
        // Too many connections, memory, disk, locks that others hold for too long, statements that were ended; and
        // logins, which a rotation of passwords breaks for a while.
        || matches!(
            refusal.code,
            1021 | 1030 | 1037 | 1038 | 1040 | 1041 | 1044 | 1045 | 1049 | 1114 | 1129 | 1130 | 1142 | 1203 | 1205
                | 1226 | 1317 | 1524 | 1698 | 1969 | 3024 | 3159
        );
    match refusal.code {
        1062 => Error::AlreadyExists(text),
        _ if unavailable => Error::Unavailable(text),
        _ => Error::Internal(text),
    }
}
