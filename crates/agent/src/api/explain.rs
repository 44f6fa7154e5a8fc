//! Why a process gets the identities that it gets, or none: for itself on the socket of the Workload API, for whoever
//! operates the agent on the admin socket. Ours; SPIRE has no counterpart (docs/explain.md).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use prost::{Message, Name};
use prost_types::Any;
use spire_core::explain::{Lack, Near};
use spire_core::model::Entry;
use spire_core::spiffe::{Selector, Selectors, SpiffeId};
use spire_net::ratelimit::PerKeyLimiter;
use spire_net::uds::PeerInfo;
use spire_ports::observe::{Label, names};
use spire_wire::api::types;
use spire_wire::explain as wire;
use spire_wire::rpc::ErrorInfo;
use tonic::{Request, Response, Status};

use crate::runtime::{AttestorFailed, Core, WorkloadAttestation, WorkloadError};

/// Octets of selectors in the details of a status: trailers are bounded, 8 KiB in many clients.
const DETAILS_MAX: usize = 2048;

/// Calls a second for each user: each attests a process, and compares its selectors with all entries.
const CALLS_PER_SECOND: u32 = 10;

/// Explains on either socket.
#[derive(Clone)]
pub(super) struct Explanations {
    core: Arc<Core>,
    attestation: Arc<WorkloadAttestation>,
    limiter: Arc<PerKeyLimiter<u32>>,
}

/// What may be told.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Audience {
    /// The process itself: nothing of others.
    Process,
    Operator,
}

impl Explanations {
    pub(super) fn new(core: Arc<Core>, attestation: Arc<WorkloadAttestation>) -> Self {
        Self { core, attestation, limiter: Arc::new(PerKeyLimiter::per_second(CALLS_PER_SECOND)) }
    }

    /// Who calls, if its user may call now. That is said before anything is attested.
    fn caller<T>(&self, request: &Request<T>, method: &'static str) -> Result<PeerInfo, Status> {
        let peer = request.extensions().get::<PeerInfo>().cloned();
        let peer = peer.ok_or_else(|| Status::internal("peer tracker watcher missing from context"))?;
        let now = Instant::now();
        if self.limiter.bucket(peer.uid(), now).allow(1, now) {
            return Ok(peer);
        }
        self.core.metrics().incr_counter(
            names::agent::WORKLOAD_API_RATE_LIMIT_EXCEEDED,
            1.0,
            &[Label::new(names::label::METHOD, method)],
        );
        Err(Status::unavailable(format!("rate limit exceeded for {method}")))
    }

    fn explain(
        &self,
        pid: i32,
        attested: Result<(Selectors, Vec<AttestorFailed>), WorkloadError>,
        audience: Audience,
    ) -> wire::Explanation {
        let operator = audience == Audience::Operator;
        let mut explanation =
            wire::Explanation { pid, sync: Some(self.sync(operator)), ..Default::default() };
        if operator {
            explanation.agent_id = Some(id(self.core.svid().id()));
        }
        let failure = |failed: &AttestorFailed| wire::AttestorFailure {
            name: failed.name().to_owned(),
            error: if operator { failed.to_string() } else { String::new() },
        };
        let selectors = match attested {
            Ok((selectors, failures)) => {
                explanation.failures = failures.iter().map(failure).collect();
                selectors
            }
            Err(error) => {
                explanation.attestation_error =
                    if operator { error.to_string() } else { "workload attestation failed".to_owned() };
                if let WorkloadError::Failed(failures) = &error {
                    explanation.failures = failures.iter().map(failure).collect();
                }
                return explanation;
            }
        };
        explanation.selectors = selectors.iter().map(selector).collect();
        if let Some(served) = self.core.identities().look(&selectors) {
            let view = &served.view;
            let identity = |m: &spire_core::svids::Match| wire::Identity {
                spiffe_id: Some(id(&m.entry.spiffe_id)),
                entry_id: m.entry.id.as_str().to_owned(),
                x509_svid_expires_at: m.svid.as_ref().map_or(0, |svid| svid.not_after.unix()),
                missing_bundles: (view.missing_bundles.iter())
                    .filter(|(entry, _)| entry.id == m.entry.id)
                    .map(|(_, domain)| domain.name().to_owned())
                    .collect(),
            };
            explanation.identities = view.matches.iter().map(identity).collect();
        }
        if operator {
            let (count, near) = self.core.nearest(&selectors);
            explanation.entry_count = u32::try_from(count).unwrap_or(u32::MAX);
            explanation.near = near.iter().map(near_entry).collect();
        }
        explanation
    }

    fn sync(&self, operator: bool) -> wire::Sync {
        let state = self.core.sync_state();
        let (failed_at, error) = state.failure.clone().map_or((0, String::new()), |(at, e)| (at.unix(), e));
        wire::Sync {
            last_success: state.last_success.unix(),
            pushed: state.pushed,
            failing: state.failure.is_some(),
            error: if operator { error } else { String::new() },
            failed_at,
            now: self.core.clock().now().unix(),
        }
    }
}

#[async_trait]
impl wire::caller_server::Caller for Explanations {
    async fn explain(
        &self,
        request: Request<wire::ExplainCallerRequest>,
    ) -> Result<Response<wire::Explanation>, Status> {
        // As every call that tells a process of its identity (SPIFFE Workload API, section 4.2).
        let mut values = request.metadata().get_all("workload.spiffe.io").iter();
        if !(values.next().is_some_and(|value| value == "true") && values.next().is_none()) {
            return Err(Status::invalid_argument("security header missing from request"));
        }
        let peer = self.caller(&request, "/spire.explain.v1.Caller/Explain")?;
        let attested = self.attestation.attest_in_detail(&peer).await;
        let pid = i32::try_from(peer.pid()).unwrap_or(0);
        Ok(Response::new(self.explain(pid, attested, Audience::Process)))
    }
}

#[async_trait]
impl wire::process_server::Process for Explanations {
    async fn explain(
        &self,
        request: Request<wire::ExplainProcessRequest>,
    ) -> Result<Response<wire::Explanation>, Status> {
        self.caller(&request, "/spire.explain.v1.Process/Explain")?;
        let pid = request.into_inner().pid;
        if pid <= 0 {
            return Err(Status::invalid_argument("a process ID is greater than zero"));
        }
        let attested = self.attestation.attest_pid_in_detail(pid).await;
        Ok(Response::new(self.explain(pid, attested, Audience::Operator)))
    }
}

/// Adds, for programs, what a process may know of why it has no identity. The code and the message stay.
pub(super) fn with_details(status: &Status, core: &Core, selectors: &Selectors) -> Status {
    let sync = core.sync_state();
    let age = core.clock().now().unix().saturating_sub(sync.last_success.unix()).max(0);
    let mut attested = String::new();
    for selector in selectors {
        let text = selector.to_string();
        if attested.len() + text.len() >= DETAILS_MAX {
            attested.push_str(",…");
            break;
        }
        if !attested.is_empty() {
            attested.push(',');
        }
        attested.push_str(&text);
    }
    let info = ErrorInfo {
        reason: "NO_MATCHING_ENTRY".to_owned(),
        domain: "spire-agent".to_owned(),
        metadata: BTreeMap::from([
            ("attested_selectors".to_owned(), attested),
            ("seconds_since_sync".to_owned(), age.to_string()),
            ("sync_failing".to_owned(), sync.failure.is_some().to_string()),
        ]),
    };
    let detailed = spire_wire::rpc::Status {
        code: status.code() as i32,
        message: status.message().to_owned(),
        details: vec![Any { type_url: ErrorInfo::type_url(), value: info.encode_to_vec() }],
    };
    Status::with_details(status.code(), status.message(), detailed.encode_to_vec().into())
}

fn id(id: &SpiffeId) -> types::Spiffeid {
    types::Spiffeid { trust_domain: id.trust_domain_name().to_owned(), path: id.path().to_owned() }
}

fn selector(selector: &Selector) -> types::Selector {
    types::Selector { r#type: selector.kind().to_owned(), value: selector.value().to_owned() }
}

fn near_entry(near: &Near<Arc<Entry>>) -> wire::NearEntry {
    let lack = |lack: &Lack| wire::Lack {
        selector: Some(selector(&lack.selector)),
        instead: lack.instead.iter().map(selector).collect(),
    };
    wire::NearEntry {
        entry_id: near.entry.id.as_str().to_owned(),
        spiffe_id: Some(id(&near.entry.spiffe_id)),
        lacks: near.lacks.iter().map(lack).collect(),
        shared: u32::try_from(near.shared).unwrap_or(u32::MAX),
    }
}
