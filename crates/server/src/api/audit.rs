//! The audit log: one line a call, or one an item of a batch (`audit_log_enabled`; pkg/server/api/audit).

use std::borrow::Cow;

use parking_lot::Mutex;
use spire_wire::api::types;
use tonic::{Code, Status};

use super::status::code_name;

/// Fields of audit lines by name. The names that can be printed are those of [`emit`]; others are left out.
pub(super) type Fields = Vec<(&'static str, Cow<'static, str>)>;

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
    pub(super) fn add(&self, name: &'static str, value: impl Into<Cow<'static, str>>) {
        if self.enabled {
            self.fields.lock().push((name, value.into()));
        }
    }

    /// The call went well.
    pub(crate) fn success(&self) {
        if self.enabled {
            emit(&self.fields.lock(), None);
        }
    }

    /// The call failed.
    pub(super) fn failure(&self, status: &Status) {
        if self.enabled {
            emit(&self.fields.lock(), Some((code_name(status.code()), status.message())));
        }
    }

    /// An item of a batch is done; its line has its own fields only.
    pub(super) fn item(&self, status: &types::Status, fields: impl FnOnce() -> Fields) {
        if !self.enabled {
            return;
        }
        let failure =
            (status.code != 0).then(|| (code_name(Code::from_i32(status.code)), status.message.as_str()));
        emit(&fields(), failure);
    }
}

fn emit(fields: &Fields, failure: Option<(&str, &str)>) {
    let field =
        |name: &str| fields.iter().rev().find(|(known, _)| *known == name).map(|(_, value)| value.as_ref());
    tracing::info!(
        r#type = "audit",
        status = if failure.is_some() { "error" } else { "success" },
        status_code = failure.map(|(code, _)| code),
        status_message = failure.map(|(_, message)| message),
        admin = field("admin"),
        agent_id = field("agent_id"),
        agent_version = field("agent_version"),
        audience = field("audience"),
        bundle_endpoint_url = field("bundle_endpoint_url"),
        csr = field("csr"),
        dns_name = field("dns_name"),
        downstream = field("downstream"),
        expires_at = field("expires_at"),
        federates_with = field("federates_with"),
        hint = field("hint"),
        mode = field("mode"),
        new_log_level = field("new_log_level"),
        node_attestor_type = field("node_attestor_type"),
        parent_id = field("parent_id"),
        entry_id = field("entry_id"),
        revision_number = field("revision_number"),
        selectors = field("selectors"),
        spiffe_id = field("spiffe_id"),
        store_svid = field("store_svid"),
        trust_domain_id = field("trust_domain_id"),
        ttl = field("ttl"),
        jwt_authority_key_id = field("jwt_authority_key_id"),
        "API accessed"
    );
}
