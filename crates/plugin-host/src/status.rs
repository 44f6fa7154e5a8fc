//! gRPC statuses of a plugin as errors of the ports, and back for host services.

use std::error::Error as _;

use spire_net::grpc::plugin_code;
use spire_ports::plugins::{Error, ErrorKind, HostError, PluginType};
use tonic::{Code, Status};

/// The error that a status stands for. It gets the prefix that all plugin errors have once, however the plugin
/// wrote its text (pkg/common/plugin/facade.go).
pub(crate) fn error(plugin: (PluginType, &str), status: &Status) -> Error {
    if is_broken(status) {
        let text = format!("the connection to the plugin broke: {}", status.message());
        return Error::new(ErrorKind::Unavailable, plugin, text);
    }
    Error::new(kind(status.code()), plugin, bare(plugin, status.message()))
}

/// Whether the status is not the plugin's but of a connection that broke under the call.
pub(crate) fn is_broken(status: &Status) -> bool {
    status.source().is_some()
}

/// The text without a prefix that names the plugin.
fn bare<'a>(plugin: (PluginType, &str), message: &'a str) -> &'a str {
    let (kind, name) = (plugin.0.as_str().to_ascii_lowercase(), plugin.1);
    let message = message.strip_prefix(&format!("{kind}({name}): ")).unwrap_or(message);
    message.strip_prefix(name).and_then(|rest| rest.strip_prefix(": ")).unwrap_or(message)
}

/// The status as Go prints an error of it.
pub(crate) fn go_text(status: &Status) -> String {
    format!("rpc error: code = {:?} desc = {}", kind(status.code()), status.message())
}

fn kind(code: Code) -> ErrorKind {
    match code {
        Code::Cancelled => ErrorKind::Canceled,
        // A failure that says it is none.
        Code::Ok | Code::Unknown => ErrorKind::Unknown,
        Code::InvalidArgument => ErrorKind::InvalidArgument,
        Code::DeadlineExceeded => ErrorKind::DeadlineExceeded,
        Code::NotFound => ErrorKind::NotFound,
        Code::AlreadyExists => ErrorKind::AlreadyExists,
        Code::PermissionDenied => ErrorKind::PermissionDenied,
        Code::ResourceExhausted => ErrorKind::ResourceExhausted,
        Code::FailedPrecondition => ErrorKind::FailedPrecondition,
        Code::Aborted => ErrorKind::Aborted,
        Code::OutOfRange => ErrorKind::OutOfRange,
        Code::Unimplemented => ErrorKind::Unimplemented,
        Code::Internal => ErrorKind::Internal,
        Code::Unavailable => ErrorKind::Unavailable,
        Code::DataLoss => ErrorKind::DataLoss,
        Code::Unauthenticated => ErrorKind::Unauthenticated,
    }
}

/// What a host service answers.
pub(crate) fn of_host(error: &HostError) -> Status {
    Status::new(plugin_code(error.kind), error.message.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_has_its_prefix_once() {
        for text in ["no", "keymanager(x): no", "x: no", "keymanager(x): x: no"] {
            let error = error((PluginType::KeyManager, "x"), &Status::not_found(text));
            assert_eq!((error.kind, error.to_string().as_str()), (ErrorKind::NotFound, "keymanager(x): no"));
        }
        let other = error((PluginType::KeyManager, "x"), &Status::internal("keymanager(y): no"));
        assert_eq!(other.to_string(), "keymanager(x): keymanager(y): no");
    }
}
