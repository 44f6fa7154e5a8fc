//! Answers that are errors: their texts, and the lines that they leave in the log (pkg/common/api/status.go).

use std::fmt::Display;

use prost::{Message, Name};
use spire_ports::datastore;
use spire_wire::api::types;
use spire_wire::api::types::permission_denied_details::Reason;
use tonic::{Code, Status};

pub(super) use spire_net::grpc::code_name;

/// What a log line of an error says beside the error.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Context<'a> {
    pub(super) entry_id: Option<&'a str>,
    pub(super) spiffe_id: Option<&'a str>,
    pub(super) trust_domain_id: Option<&'a str>,
    pub(super) node_attestor_type: Option<&'a str>,
    pub(super) agent_id: Option<&'a str>,
    pub(super) local_authority_id: Option<&'a str>,
    pub(super) subject_key_id: Option<&'a str>,
}

impl<'a> Context<'a> {
    pub(super) fn entry(id: &'a str) -> Self {
        Self { entry_id: Some(id), ..Self::default() }
    }

    pub(super) fn id(id: &'a str) -> Self {
        Self { spiffe_id: Some(id), ..Self::default() }
    }

    pub(super) fn trust_domain(name: &'a str) -> Self {
        Self { trust_domain_id: Some(name), ..Self::default() }
    }

    /// The status `message`, logged.
    pub(super) fn fail(&self, code: Code, message: &str) -> Status {
        self.log(code, message, None);
        Status::new(code, message)
    }

    /// The status `message: cause`, logged. Of what was not found the cause is not told.
    pub(super) fn fail_with(&self, code: Code, message: &str, cause: impl Display) -> Status {
        if code == Code::NotFound {
            return self.fail(code, message);
        }
        let cause = cause.to_string();
        self.log(code, message, Some(&cause));
        Status::new(code, format!("{message}: {cause}"))
    }

    fn log(&self, code: Code, message: &str, error: Option<&str>) {
        let message = match code {
            Code::InvalidArgument => format!("Invalid argument: {message}"),
            _ => capitalized(message),
        };
        let Self { entry_id, spiffe_id, trust_domain_id, node_attestor_type, agent_id, .. } = *self;
        let Self { local_authority_id, subject_key_id, .. } = *self;
        tracing::error!(
            error,
            entry_id,
            spiffe_id,
            trust_domain_id,
            node_attestor_type,
            agent_id,
            local_authority_id,
            subject_key_id,
            "{message}"
        );
    }
}

/// The status `message`, logged.
pub(super) fn fail(code: Code, message: &str) -> Status {
    Context::default().fail(code, message)
}

/// The status `message: cause`, logged.
pub(super) fn fail_with(code: Code, message: &str, cause: impl Display) -> Status {
    Context::default().fail_with(code, message, cause)
}

/// The status of an item that went well.
pub(super) fn ok() -> types::Status {
    types::Status { code: 0, message: "OK".to_owned() }
}

/// The status of an item.
pub(super) fn item(status: &Status) -> types::Status {
    types::Status { code: i32::from(status.code()), message: status.message().to_owned() }
}

/// PermissionDenied with its reason in the details.
pub(super) fn denied(reason: Reason, message: impl Into<String>) -> Status {
    let message = message.into();
    let details = types::PermissionDeniedDetails { reason: reason.into() };
    let rich = spire_wire::rpc::Status {
        code: Code::PermissionDenied.into(),
        message: message.clone(),
        details: vec![prost_types::Any {
            type_url: types::PermissionDeniedDetails::type_url(),
            value: details.encode_to_vec(),
        }],
    };
    Status::with_details(Code::PermissionDenied, message, rich.encode_to_vec().into())
}

/// The code of a datastore's error where the reference passes it on (Unknown counts as Internal).
pub(super) fn store_code(error: &datastore::Error) -> Code {
    match error {
        datastore::Error::NotFound | datastore::Error::Missing(_) => Code::NotFound,
        datastore::Error::AlreadyExists(_) => Code::AlreadyExists,
        datastore::Error::Invalid(_) => Code::InvalidArgument,
        datastore::Error::InUse(_) => Code::FailedPrecondition,
        datastore::Error::Unavailable(_) | datastore::Error::NoBundle(_) | datastore::Error::Internal(_) => {
            Code::Internal
        }
    }
}

/// A status as Go prints it as an error.
pub(crate) fn go_error(status: &Status) -> String {
    spire_net::grpc::status_text(status)
}

/// A text as Go's `%q` shows it, for the plain texts that IDs and names are.
pub(super) fn quoted(text: &str) -> String {
    spire_compat::quote::quote(text)
}

fn capitalized(message: &str) -> String {
    let mut chars = message.chars();
    chars.next().map_or_else(String::new, |first| first.to_ascii_uppercase().to_string() + chars.as_str())
}
