//! The audit log: one line a call, or one an item of a batch (`audit_log_enabled`; pkg/server/api/audit).

use std::borrow::Cow;

use parking_lot::Mutex;
use spire_ports::observe::{Logged, Scalar};
use spire_wire::api::types;
use tonic::{Code, Status};

use super::status::code_name;

/// Fields of audit lines.
pub(super) type Fields = Vec<(Cow<'static, str>, Scalar)>;

/// The audit log of one call.
#[derive(Debug, Default)]
pub(crate) struct Audit {
    enabled: bool,
    fields: Mutex<Fields>,
}

impl Audit {
    pub(super) fn new(enabled: bool) -> Self {
        Self { enabled, fields: Mutex::default() }
    }

    /// Whether there is an audit log at all: what it costs to make fields is saved otherwise.
    pub(super) fn enabled(&self) -> bool {
        self.enabled
    }

    /// Adds a field to every line of the call.
    pub(super) fn add(&self, name: &'static str, value: impl Into<Scalar>) {
        if self.enabled {
            self.fields.lock().push((name.into(), value.into()));
        }
    }

    /// Adds fields to every line of the call.
    pub(super) fn extend(&self, fields: impl FnOnce() -> Fields) {
        if self.enabled {
            self.fields.lock().extend(fields());
        }
    }

    /// The call went well.
    pub(crate) fn success(&self) {
        if self.enabled {
            emit(self.fields.lock().clone(), None);
        }
    }

    /// The call failed.
    pub(super) fn failure(&self, status: &Status) {
        if self.enabled {
            emit(self.fields.lock().clone(), Some((status.code(), status.message())));
        }
    }

    /// An item of a batch is done; its line has its own fields only.
    pub(super) fn item(&self, status: &types::Status, fields: impl FnOnce() -> Fields) {
        if !self.enabled {
            return;
        }
        let failure = (status.code != 0).then(|| (Code::from_i32(status.code), status.message.as_str()));
        emit(fields(), failure);
    }
}

fn emit(mut fields: Fields, failure: Option<(Code, &str)>) {
    if let Some((code, _)) = failure {
        fields.push(("status_code".into(), Scalar::Named(i32::from(code).into(), code_name(code))));
    }
    tracing::info!(
        r#type = "audit",
        status = if failure.is_some() { "error" } else { "success" },
        status_message = failure.map(|(_, message)| message),
        fields = Logged::Fields(fields).value(),
        "API accessed"
    );
}
