//! Calls judged by a policy that the user gave.
//!
//! The policy takes the place of what the types of handlers say: any caller may be let in to any method, and a proof is
//! then made of what is known of the caller.

use std::sync::Arc;

use bytes::Bytes;
use spire_ports::policy::{Decision, Policy, Question, Undecided};
use tokio::sync::Semaphore;
use tonic::{Code, Status};

use super::caller::{Allowed, Denial, Peer};

/// The policy, and how many calls it judges at once: as many as there are processors, since it computes.
pub(super) struct Judge {
    policy: Arc<dyn Policy>,
    turns: Semaphore,
}

/// What a policy may see of a request: its encoding as we understood it. The function is that of the method's type.
pub(super) type Shown = fn(Bytes) -> Result<Vec<u8>, Status>;

impl Judge {
    pub(super) fn new(policy: Arc<dyn Policy>) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self { policy, turns: Semaphore::new(processors) }
    }

    /// Whom the policy lets in to this call. `request` is the encoded request; none for methods with streams.
    pub(super) async fn allowed(
        &self,
        peer: &Peer,
        full_method: &'static str,
        request: Option<Vec<u8>>,
    ) -> Result<Allowed, Denial> {
        let caller = peer.id().map(ToString::to_string).unwrap_or_default();
        let caller_file_path = peer.executable();
        let policy = self.policy.clone();
        let failed = |status: Status| Denial::Failed(Box::new(status));
        let turn = self.turns.acquire().await;
        let turn = turn.map_err(|_| failed(Status::unavailable("server is stopping")))?;
        let decided = tokio::task::spawn_blocking(move || {
            policy.decide(&Question {
                caller: &caller,
                caller_file_path: &caller_file_path,
                full_method,
                request: request.as_deref(),
            })
        })
        .await;
        drop(turn);
        let decided = decided.map_err(|_| failed(Status::internal("the policy's evaluation ended early")))?;
        decided.map(allowed).map_err(|undecided| {
            let code = match undecided {
                Undecided::Policy(_) => Code::Unknown,
                Undecided::Malformed(_) => Code::Internal,
                Undecided::TooLarge { .. } => Code::ResourceExhausted,
            };
            failed(Status::new(code, undecided.to_string()))
        })
    }
}

fn allowed(decision: Decision) -> Allowed {
    Allowed {
        any: decision.allow,
        local: decision.allow_if_local,
        admin: decision.allow_if_admin,
        downstream: decision.allow_if_downstream,
        agent: decision.allow_if_agent,
    }
}
