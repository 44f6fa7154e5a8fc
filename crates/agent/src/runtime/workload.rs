//! Workload attestation: what is known of the process at the other end of a connection.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use spire_core::spiffe::{Selector, Selectors};
use spire_net::uds::{PeerError, PeerInfo, PinnedProcess};
use spire_ports::observe::{Call, GrpcCode, Metrics, names};
use spire_ports::plugins::{self, ErrorKind, WorkloadAttestor, WorkloadReference};

use super::identities::selector_list;

/// The longest that all attestors together may take. A container that is just starting is looked for for up to
/// half a minute by the reference's attestors; a client that waits less gives up by itself.
pub(super) const TIMEOUT: Duration = Duration::from_secs(60);

/// Why a workload was not attested.
#[derive(Debug, thiserror::Error)]
pub enum WorkloadError {
    /// Every attestor failed.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Failed(Vec<AttestorFailed>),
    /// The attestors took too long.
    #[error("context deadline exceeded")]
    Timeout,
    /// No attestor knows references of this type.
    #[error("no workload attestor handled reference")]
    UnknownReference,
    /// The process that connected is gone, or is another by now.
    #[error("could not verify existence of the original caller: {0}")]
    Gone(#[from] PeerError),
}

/// One attestor failed.
#[derive(Debug, thiserror::Error)]
#[error("workload attestor {name:?} failed: {cause}")]
pub struct AttestorFailed {
    pub(super) name: String,
    cause: plugins::Error,
}

impl AttestorFailed {
    /// What kind of failure it was.
    pub fn kind(&self) -> ErrorKind {
        self.cause.kind
    }

    /// The text as a status of gRPC has it, where the reference shows the plugin's status within.
    pub fn status_text(&self) -> String {
        let Self { name, cause } = self;
        format!("workload attestor {name:?} failed: rpc error: code = {} desc = {cause}", cause.kind.code())
    }
}

impl GrpcCode for WorkloadError {
    fn grpc_code(&self) -> &'static str {
        match self {
            // Go finds the first status among joined errors.
            Self::Failed(errors) => errors.first().map_or("Unknown", |error| error.cause.grpc_code()),
            Self::UnknownReference => "Unimplemented",
            Self::Timeout | Self::Gone(_) => "Unknown",
        }
    }
}

/// Asks all workload attestors.
pub struct WorkloadAttestation {
    pub(super) attestors: Vec<Arc<dyn WorkloadAttestor>>,
    metrics: Arc<dyn Metrics>,
    own_pid: u32,
}

impl WorkloadAttestation {
    /// With these attestors, of which there is at least one in a running agent.
    pub fn new(attestors: Vec<Arc<dyn WorkloadAttestor>>, metrics: Arc<dyn Metrics>) -> Self {
        Self { attestors, metrics, own_pid: std::process::id() }
    }

    /// Whether the process is this agent itself.
    pub fn is_agent(&self, pid: u32) -> bool {
        pid == self.own_pid
    }

    /// The selectors of a connection's process, which must still be the one that connected.
    ///
    /// # Errors
    /// [`WorkloadError`] when every attestor failed, time ran out, or the process is gone.
    pub async fn attest(&self, peer: &PeerInfo) -> Result<Selectors, WorkloadError> {
        let call = Call::start(&*self.metrics, names::agent::WORKLOAD_API_WORKLOAD_ATTESTATION);
        let result = self.selectors(peer.pid()).await;
        call.done_with(&result);
        let selectors = result?;
        // Attestors read by process ID; only now is it certain whose data that was.
        peer.check_alive()?;
        if !self.is_agent(peer.pid()) && tracing::enabled!(tracing::Level::DEBUG) {
            tracing::debug!(
                subsystem_name = "workload_attestor",
                pid = peer.pid(),
                selectors = selector_list(&selectors),
                "PID attested to have selectors"
            );
        }
        Ok(selectors)
    }

    /// The selectors of a process that somebody else named. It must run from before the attestation until after it.
    ///
    /// # Errors
    /// As [`WorkloadAttestation::attest`].
    pub async fn attest_pid(&self, pid: i32) -> Result<Selectors, WorkloadError> {
        let call = Call::start(&*self.metrics, names::agent::WORKLOAD_API_WORKLOAD_ATTESTATION);
        let result = self.pinned(pid, self.selectors(pid.unsigned_abs())).await;
        call.done_with(&result);
        let selectors = result?;
        tracing::debug!(
            subsystem_name = "workload_attestor",
            pid,
            selectors = selector_list(&selectors),
            "PID attested to have selectors"
        );
        Ok(selectors)
    }

    /// The selectors of what a broker refers to; a process must run from before the attestation until after it.
    ///
    /// # Errors
    /// [`WorkloadError`] when no attestor knows such references, every attestor that does failed, time ran out, or the
    /// process is gone.
    pub async fn attest_reference(&self, reference: &WorkloadReference) -> Result<Selectors, WorkloadError> {
        let call = Call::start(&*self.metrics, names::agent::WORKLOAD_API_WORKLOAD_ATTESTATION);
        let collecting = self.collect(|attestor| self.ask_reference(attestor, reference));
        let result = match reference.pid {
            Some(pid) => self.pinned(pid, collecting).await,
            None => collecting.await,
        };
        call.done_with(&result);
        let selectors = result?;
        tracing::debug!(
            subsystem_name = "workload_attestor",
            reference_type = reference.type_url,
            selectors = selector_list(&selectors),
            "Reference attested to have selectors"
        );
        Ok(selectors)
    }

    /// The selectors of a process, whoever that is. An attestor that fails is left out as long as another does
    /// not.
    ///
    /// # Errors
    /// [`WorkloadError`] when every attestor failed or time ran out.
    pub async fn selectors(&self, pid: u32) -> Result<Selectors, WorkloadError> {
        self.collect(|attestor| async move { self.ask(attestor, pid).await.map(Some) }).await
    }

    /// Attests a process while it is pinned, and then checks that it still runs. If it cannot be pinned, an error of the attestors
    /// comes first; if the attestors succeed, the failed pinning is the error.
    async fn pinned(
        &self,
        pid: i32,
        attesting: impl Future<Output = Result<Selectors, WorkloadError>>,
    ) -> Result<Selectors, WorkloadError> {
        let process = PinnedProcess::open(pid);
        let selectors = attesting.await?;
        process?.check_alive()?;
        Ok(selectors)
    }

    /// Asks all attestors at once. `None` is of one that does not know what it is asked for.
    async fn collect<'a, F>(
        &'a self,
        ask: impl Fn(&'a dyn WorkloadAttestor) -> F,
    ) -> Result<Selectors, WorkloadError>
    where
        F: Future<Output = Result<Option<Vec<Selector>>, AttestorFailed>>,
    {
        let mut found: Vec<Selector> = Vec::new();
        let (mut failures, mut answers) = (Vec::new(), 0_usize);
        let mut pending: FuturesUnordered<_> = self.attestors.iter().map(|a| ask(&**a)).collect();
        let all = async {
            while let Some(answer) = pending.next().await {
                match answer {
                    Ok(Some(selectors)) => {
                        answers += 1;
                        found.extend(selectors);
                    }
                    Ok(None) => {}
                    Err(failure) => failures.push(failure),
                }
            }
        };
        if tokio::time::timeout(TIMEOUT, all).await.is_err() {
            tracing::error!(subsystem_name = "workload_attestor", "Timed out collecting selectors");
            return Err(WorkloadError::Timeout);
        }
        drop(pending);
        if answers == 0 {
            let error = if failures.is_empty() {
                WorkloadError::UnknownReference
            } else {
                WorkloadError::Failed(failures)
            };
            return Err(error);
        }
        if !failures.is_empty() {
            let error = WorkloadError::Failed(failures);
            tracing::error!(subsystem_name = "workload_attestor", error = %error, "Failed to collect all selectors");
        }
        let count = f32::from(u16::try_from(found.len()).unwrap_or(u16::MAX));
        self.metrics.add_sample(names::agent::WORKLOAD_API_DISCOVERED_SELECTORS, count, &[]);
        Ok(found.into_iter().collect())
    }

    async fn ask_reference(
        &self,
        attestor: &dyn WorkloadAttestor,
        reference: &WorkloadReference,
    ) -> Result<Option<Vec<Selector>>, AttestorFailed> {
        let mut call = Call::start(&*self.metrics, names::agent::WORKLOAD_API_WORKLOAD_ATTESTOR);
        call.label(names::label::ATTESTOR, attestor.name());
        let (name, reference_type) = (attestor.name(), &reference.type_url);
        let answer = attestor.attest_reference(reference).await;
        if let Err(error) = &answer
            && error.kind == ErrorKind::Unimplemented
        {
            call.done("OK");
            tracing::debug!(
                subsystem_name = "workload_attestor", reference_type, error = %error,
                "workload attestor {name:?} does not support reference attestation"
            );
            return Ok(None);
        }
        call.done_with(&answer);
        answer.map(Some).map_err(|cause| {
            tracing::error!(
                subsystem_name = "workload_attestor", reference_type, error = %cause, "workload attestor {name:?} failed"
            );
            AttestorFailed { name: name.to_owned(), cause }
        })
    }

    pub(super) async fn ask(
        &self,
        attestor: &dyn WorkloadAttestor,
        pid: u32,
    ) -> Result<Vec<Selector>, AttestorFailed> {
        let mut call = Call::start(&*self.metrics, names::agent::WORKLOAD_API_WORKLOAD_ATTESTOR);
        call.label(names::label::ATTESTOR, attestor.name());
        let answer = attestor.attest(i32::try_from(pid).unwrap_or(0)).await;
        call.done_with(&answer);
        answer.map_err(|cause| {
            let name = attestor.name().to_owned();
            tracing::error!(
                subsystem_name = "workload_attestor", pid, error = %cause, "workload attestor {name:?} failed"
            );
            AttestorFailed { name, cause }
        })
    }
}

#[cfg(test)]
mod tests;
