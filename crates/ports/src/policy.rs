//! The port of a policy that a user gives the server: who may call what, instead of what is compiled in
//! (`experimental.auth_opa_policy_engine`; the reference's pkg/server/authpolicy).

use std::fmt::Debug;

/// A call that is to be judged.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// SPIFFE ID of the caller; empty where it showed none.
    pub caller: &'a str,
    /// Path of the program of a local caller, where callers are tracked; otherwise empty.
    pub caller_file_path: &'a str,
    /// Such as `/spire.api.server.entry.v1.Entry/ListEntries`.
    pub full_method: &'a str,
    /// The encoded request message; `None` for methods with a stream of requests or answers.
    pub request: Option<&'a [u8]>,
}

/// What the policy says of a call: it goes ahead if any of these holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Decision {
    /// Whoever calls.
    pub allow: bool,
    /// If the caller is on this machine.
    pub allow_if_local: bool,
    /// If the caller is an administrator.
    pub allow_if_admin: bool,
    /// If the caller is a downstream server.
    pub allow_if_downstream: bool,
    /// If the caller is an agent.
    pub allow_if_agent: bool,
}

/// Why a policy says nothing of a call; the call is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Undecided {
    /// The policy is at fault: no result, one of another form, or an evaluation that failed. Texts as the
    /// reference's.
    #[error("{0}")]
    Policy(String),
    /// The request is not one that its method takes.
    #[error("grpc: failed to unmarshal the received message: {0}")]
    Malformed(String),
    /// The request has more parts than a policy is shown.
    #[error("policy: request has too many parts to be judged (more than {max})")]
    TooLarge {
        /// The bound.
        max: usize,
    },
}

/// Judges calls.
pub trait Policy: Debug + Send + Sync {
    /// What may go ahead. It computes, maybe for long, and does not wait.
    ///
    /// # Errors
    /// [`Undecided`]; the call must be refused then.
    fn decide(&self, question: &Question<'_>) -> Result<Decision, Undecided>;
}
