//! gRPC statuses in the words of grpc-go, and what a refusal by the server means for the agent.

use std::fmt;

use prost::Message;
use spire_wire::api::types::{PermissionDeniedDetails, permission_denied_details::Reason};
use tonic::{Code, Status};

pub use spire_net::grpc::code_name;

/// A status as grpc-go prints it: `rpc error: code = NotFound desc = entry not found`.
pub(super) struct GoStatus<'a>(pub &'a Status);

impl fmt::Display for GoStatus<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rpc error: code = {} desc = {}", code_name(self.0.code()), self.0.message())
    }
}

/// What a server's refusal means for the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing special: try again later.
    Retry,
    /// The agent's SVID is of no use any more: attest again, or stop (pkg/common/nodeutil: ShouldAgentReattest).
    Reattest,
    /// The agent is banned (pkg/common/nodeutil: ShouldAgentShutdown).
    Banned,
}

/// The verdict that a status carries in its details.
pub(super) fn verdict(status: &Status) -> Verdict {
    if status.code() != Code::PermissionDenied {
        return Verdict::Retry;
    }
    let Ok(detailed) = spire_wire::rpc::Status::decode(status.details()) else { return Verdict::Retry };
    for detail in &detailed.details {
        if !detail.type_url.ends_with("/spire.api.types.PermissionDeniedDetails") {
            continue;
        }
        match PermissionDeniedDetails::decode(&detail.value[..]).map(|d| d.reason()) {
            Ok(Reason::AgentBanned) => return Verdict::Banned,
            Ok(
                Reason::AgentExpired
                | Reason::AgentNotActive
                | Reason::AgentNotAttested
                | Reason::AgentMustReattest,
            ) => return Verdict::Reattest,
            _ => {}
        }
    }
    Verdict::Retry
}

/// Whether a call failed because the server's certificate leads to no authority that we know. The text is
/// looked at because it crosses tonic's and rustls' errors (pkg/common/x509util: IsUnknownAuthorityError).
pub(super) fn is_unknown_authority(error: &dyn fmt::Display) -> bool {
    error.to_string().contains("x509: certificate signed by unknown authority")
}

#[cfg(test)]
mod tests {
    use prost_types::Any;

    use super::*;

    fn denied(code: Code, reason: Reason) -> Status {
        let details = PermissionDeniedDetails { reason: reason.into() };
        let status = spire_wire::rpc::Status {
            code: code.into(),
            message: "no".to_owned(),
            details: vec![
                Any { type_url: "type.googleapis.com/other".to_owned(), value: vec![1] },
                Any {
                    type_url: "type.googleapis.com/spire.api.types.PermissionDeniedDetails".to_owned(),
                    value: details.encode_to_vec(),
                },
            ],
        };
        Status::with_details(code, "no", status.encode_to_vec().into())
    }

    #[test]
    fn details_decide() {
        for (reason, expected) in [
            (Reason::AgentBanned, Verdict::Banned),
            (Reason::AgentExpired, Verdict::Reattest),
            (Reason::AgentNotActive, Verdict::Reattest),
            (Reason::AgentNotAttested, Verdict::Reattest),
            (Reason::AgentMustReattest, Verdict::Reattest),
            (Reason::Unknown, Verdict::Retry),
        ] {
            assert_eq!(verdict(&denied(Code::PermissionDenied, reason)), expected);
        }
        assert_eq!(verdict(&denied(Code::Unavailable, Reason::AgentBanned)), Verdict::Retry);
        assert_eq!(verdict(&Status::permission_denied("plain")), Verdict::Retry);
        let broken = Status::with_details(Code::PermissionDenied, "x", vec![255, 255].into());
        assert_eq!(verdict(&broken), Verdict::Retry);
    }

    #[test]
    fn errors_are_counted_by_the_code_within() {
        use spire_ports::observe::GrpcCode as _;
        use spire_ports::plugins::{Error, ErrorKind, PluginType};

        use crate::runtime::attest::AttestError;
        use crate::runtime::client::CallError;
        use crate::runtime::error::AgentError;

        let call = || CallError { doing: "x", status: Box::new(Status::permission_denied("no")) };
        let plugin = || Error::new(ErrorKind::DeadlineExceeded, (PluginType::KeyManager, "k"), "slow");
        for (error, expected) in [
            (AgentError::from(call()), "PermissionDenied"),
            (AgentError::from(AttestError::Bundle(call())), "PermissionDenied"),
            (AgentError::from(AttestError::GenerateKey(plugin())), "DeadlineExceeded"),
            (AgentError::from(plugin()), "DeadlineExceeded"),
            (
                AgentError::SvidExpired { doing: "rotate", cause: Box::new(AgentError::from(call())) },
                "PermissionDenied",
            ),
            (AgentError::from(AttestError::NoBundle), "Unknown"),
            (AgentError::NotReattestable, "Unknown"),
        ] {
            assert_eq!(error.grpc_code(), expected, "{error}");
        }
    }

    #[test]
    fn prints_as_go() {
        let status = Status::cancelled("context canceled");
        assert_eq!(GoStatus(&status).to_string(), "rpc error: code = Canceled desc = context canceled");
    }
}
