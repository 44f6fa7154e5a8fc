//! Why a command failed, in the words of grpc-go where a call did.

use std::fmt;

use tonic::{Code, Status};

/// What a command prints behind `Error: ` before it ends with exit code 1.
#[derive(Debug)]
pub(crate) struct Failure(String);

impl Failure {
    /// A failure with this text.
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// `context: text`.
    pub(crate) fn context(self, context: impl fmt::Display) -> Self {
        Self(format!("{context}: {}", self.0))
    }

    /// Something that only a server that does not follow the API can cause.
    pub(crate) fn missing(what: &str) -> Self {
        Self(format!("server response missing {what}"))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self(rpc_text(&status))
    }
}

/// Adds what was being done to an error.
pub(crate) trait Doing<T> {
    /// The failure as `what: text`.
    fn doing(self, what: impl fmt::Display) -> Result<T, Failure>;
}

impl<T, E: Into<Failure>> Doing<T> for Result<T, E> {
    fn doing(self, what: impl fmt::Display) -> Result<T, Failure> {
        self.map_err(|error| error.into().context(what))
    }
}

/// Any error by its text.
pub(crate) fn plain(error: impl fmt::Display) -> Failure {
    Failure(error.to_string())
}

/// `rpc error: code = NotFound desc = …` (grpc-go internal/status, Error).
pub(crate) fn rpc_text(status: &Status) -> String {
    let dial = spire_net::tls::dial_error(status);
    let (code, message) = match dial {
        Some(dial) => (code_name(Code::Unavailable as i32), dial.to_string()),
        None => (code_name(status.code() as i32), status.message().to_owned()),
    };
    format!("rpc error: code = {code} desc = {message}")
}

/// Whether the call failed because nothing could be connected to.
pub(crate) fn is_dial_error(status: &Status) -> bool {
    spire_net::tls::dial_error(status).is_some()
}

/// The name of a status code as Go prints it (grpc-go codes/code_string.go).
pub(crate) fn code_name(code: i32) -> String {
    let name = match code {
        0 => "OK",
        1 => "Canceled",
        2 => "Unknown",
        3 => "InvalidArgument",
        4 => "DeadlineExceeded",
        5 => "NotFound",
        6 => "AlreadyExists",
        7 => "PermissionDenied",
        8 => "ResourceExhausted",
        9 => "FailedPrecondition",
        10 => "Aborted",
        11 => "OutOfRange",
        12 => "Unimplemented",
        13 => "Internal",
        14 => "Unavailable",
        15 => "DataLoss",
        16 => "Unauthenticated",
        other => return format!("Code({other})"),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_those_of_grpc_go() {
        let denied = Status::permission_denied("no identity issued");
        assert_eq!(rpc_text(&denied), "rpc error: code = PermissionDenied desc = no identity issued");
        assert_eq!(
            rpc_text(&Status::cancelled("context canceled")),
            "rpc error: code = Canceled desc = context canceled"
        );
        assert_eq!(code_name(99), "Code(99)");
        let failure: Result<(), _> = Err(Status::not_found("x")).doing("error fetching entries");
        assert_eq!(
            failure.unwrap_err().to_string(),
            "error fetching entries: rpc error: code = NotFound desc = x"
        );
    }
}
