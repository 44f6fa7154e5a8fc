//! `AttestAgent`: a node proves which it is.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use spire_core::model::Node;
use spire_core::spiffe::{Selector, SpiffeId};
use spire_net::grpc::plugin_code;
use spire_ports::plugins::{self, Attestation, Challenger, ErrorKind, PluginType};
use spire_wire::api::server::agent::v1 as wire;
use spire_wire::api::server::agent::v1::{attest_agent_request as asked, attest_agent_response as answered};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};
use tracing::Instrument as _;

use super::{sign, svid};
use crate::api::caller::AnyCaller;
use crate::api::limits::Bucket;
use crate::api::route::{Call, Replies};
use crate::api::status::{Context, fail, fail_with, quoted};
use crate::attest::{JOIN_TOKEN, JoinTokenError, join_token};

/// An attestation takes a few round trips and what an attestor asks of others; anybody may start one, so it ends.
const ATTESTATION_MAX: Duration = Duration::from_secs(120);

type Answers = mpsc::Sender<Result<wire::AttestAgentResponse, Status>>;

pub(super) async fn attest_agent(
    call: Arc<Call>,
    _: AnyCaller,
    mut requests: Streaming<wire::AttestAgentRequest>,
) -> Result<Replies<wire::AttestAgentResponse>, Status> {
    let (answers, receiver) = mpsc::channel(1);
    let serve = async move {
        let mut late = std::pin::pin!(tokio::time::sleep(ATTESTATION_MAX));
        let too_late = || fail(Code::DeadlineExceeded, "attestation took too long");
        let proven = tokio::select! {
            biased;
            proven = prove(&call, &mut requests, &answers) => proven,
            () = answers.closed() => Err(fail(Code::Cancelled, "attestation was broken off by the agent")),
            () = &mut late => Err(too_late()),
        };
        // Whom a proof admits is stored, whether the agent waits for that or not.
        let admitted = match proven {
            Ok(proven) => tokio::select! {
                admitted = admit(&call, proven) => admitted,
                () = late => Err(too_late()),
            },
            Err(status) => Err(status),
        };
        match admitted {
            Err(status) => {
                call.audit.failure(&status);
                // The agent may have gone.
                let _ = answers.send(Err(status)).await;
            }
            Ok(result) => {
                let step = Some(answered::Step::Result(result));
                match answers.send(Ok(wire::AttestAgentResponse { step })).await {
                    Ok(()) => call.audit.success(),
                    Err(_) => call.audit.failure(&fail_with(
                        Code::Internal,
                        "failed to send response over stream",
                        "the agent went away",
                    )),
                }
            }
        }
    };
    tokio::spawn(serve.in_current_span());
    Ok(Box::pin(ReceiverStream::new(receiver)))
}

/// What an agent proved, and what it wants signed.
struct Proven {
    kind: String,
    judged: Judged,
    csr: Bytes,
}

async fn prove(
    call: &Call,
    requests: &mut Streaming<wire::AttestAgentRequest>,
    answers: &Answers,
) -> Result<Proven, Status> {
    call.limit(Bucket::Attestation, 1, "attest agent rate limiting").await?;
    const RECEIVE: &str = "failed to receive request from stream";
    let first = match requests.message().await {
        Ok(Some(first)) => first,
        Ok(None) => return Err(fail_with(Code::InvalidArgument, RECEIVE, "EOF")),
        Err(status) => return Err(fail_with(Code::InvalidArgument, RECEIVE, status.message())),
    };
    let (kind, payload, csr) =
        params(first).map_err(|missing| fail_with(Code::InvalidArgument, "malformed param", missing))?;
    call.audit.add("node_attestor_type", kind.clone());
    let judged = judge(call, &kind, payload, requests, answers).await?;
    Ok(Proven { kind, judged, csr })
}

fn params(first: wire::AttestAgentRequest) -> Result<(String, Bytes, Bytes), &'static str> {
    let Some(asked::Step::Params(params)) = first.step else { return Err("missing params") };
    let data = params.data.ok_or("missing attestation data")?;
    let svid = params.params.ok_or("missing X509-SVID parameters")?;
    if svid.csr.is_empty() {
        return Err("missing CSR");
    }
    if data.r#type.is_empty() {
        return Err("missing attestation data type");
    }
    if data.payload.is_empty() {
        return Err("missing attestation data payload");
    }
    Ok((data.r#type, data.payload, svid.csr))
}

/// What a proof establishes.
struct Judged {
    attestation: Attestation,
    /// The join token that it was.
    token: Option<String>,
}

async fn judge(
    call: &Call,
    kind: &str,
    payload: Bytes,
    requests: &mut Streaming<wire::AttestAgentRequest>,
    answers: &Answers,
) -> Result<Judged, Status> {
    let context = Context { node_attestor_type: Some(kind), ..Context::default() };
    if kind == JOIN_TOKEN {
        let token = String::from_utf8_lossy(&payload).into_owned();
        let attested = join_token(&**call.store(), call.api.trust_domain(), &token, call.api.now()).await;
        let attestation = attested.map_err(|error| refused(context, &error))?;
        return Ok(Judged { attestation, token: Some(token) });
    }
    let attestor = call.api.deps.attestors.named(kind).ok_or_else(|| {
        let cause = format!("could not find node attestor type {}", quoted(kind));
        context.fail_with(Code::FailedPrecondition, "error getting node attestor", cause)
    })?;
    let client_ip = call.peer.address().map(|address| address.ip());
    let mut challenger = StreamChallenger { kind, requests, answers, client_ip };
    attestor
        .attest(payload, &mut challenger)
        .await
        .map(|attestation| Judged { attestation, token: None })
        .map_err(|error| context.fail(plugin_code(error.kind), &error.to_string()))
}

fn refused(context: Context<'_>, error: &JoinTokenError) -> Status {
    let code = match error {
        JoinTokenError::Unknown | JoinTokenError::Expired => Code::InvalidArgument,
        JoinTokenError::Store(_) | JoinTokenError::Id(_) => Code::Internal,
    };
    context.fail(code, &error.to_string())
}

/// Stores the agent and gives it its SVID.
async fn admit(call: &Call, proven: Proven) -> Result<answered::Result, Status> {
    let Proven { kind, judged, csr } = proven;
    let kind = kind.as_str();
    let Attestation { agent_id, mut selectors, can_reattest } = judged.attestation;
    let context =
        Context { node_attestor_type: Some(kind), agent_id: Some(agent_id.as_str()), ..Context::default() };
    call.audit.add("agent_id", agent_id.to_string());
    if call.api.deps.agent_id_as_selector {
        selectors = selectors.iter().cloned().chain([Selector::spiffe_id(&agent_id)]).collect();
    }
    check_agent_id(call, &agent_id, kind, context)?;
    let known = call
        .store()
        .node_row(&agent_id)
        .await
        .map_err(|e| context.fail_with(Code::Internal, "failed to fetch agent", e))?;
    if known.as_ref().is_some_and(Node::is_banned) {
        return Err(context.fail(Code::PermissionDenied, "failed to attest: agent is banned"));
    }
    let signed = sign(call, &agent_id, csr, context).await?;
    let node = Node {
        spiffe_id: agent_id.clone(),
        attestation_type: kind.into(),
        serial_number: signed.serial.to_string().into(),
        expires_at: signed.not_after,
        new_serial_number: Box::default(),
        new_expires_at: None,
        can_reattest,
        agent_version: known.as_ref().map(|node| node.agent_version.clone()).unwrap_or_default(),
        selectors,
    };
    let what =
        if known.is_some() { "failed to update attested agent" } else { "failed to create attested agent" };
    let live = &call.api.deps.live;
    let stored = match judged.token {
        None => live.attest_node(&node).await.map(Some),
        Some(token) => live.attest_node_by_token(&node, &token).await,
    };
    // Another agent may have used the token meanwhile.
    stored
        .map_err(|e| context.fail_with(Code::Internal, what, e))?
        .ok_or_else(|| refused(context, &JoinTokenError::Unknown))?;
    tracing::info!(
        node_attestor_type = kind,
        agent_id = %agent_id,
        address = call.peer.address().map_or_else(|| "@".to_owned(), |address| address.to_string()),
        "Agent attestation request completed"
    );
    Ok(answered::Result { svid: Some(svid(&agent_id, signed)), reattestable: can_reattest })
}

/// Attestors may be external, so what they say is checked; of an unusual ID there is a warning only, as in the
/// reference, since deployments have such.
fn check_agent_id(call: &Call, id: &SpiffeId, kind: &str, context: Context<'_>) -> Result<(), Status> {
    let ours = call.api.trust_domain();
    if id.path() == SpiffeId::server(ours).path() {
        return Err(context.fail(Code::Internal, "agent ID cannot collide with the server ID"));
    }
    if !id.is_member_of(ours) {
        // The reference warns only, but an agent of another trust domain could never use what it gets.
        let cause =
            format!("{} is not a member of trust domain {}", quoted(id.as_str()), quoted(ours.name()));
        return Err(context.fail_with(Code::Internal, "invalid agent ID", cause));
    }
    if !id.is_agent_of(kind) {
        tracing::warn!(
            error = format!("{} is not in the agent namespace for attestor {}", quoted(id.as_str()), quoted(kind)),
            node_attestor_type = kind,
            agent_id = %id,
            "The node attestor produced an invalid agent ID; future releases will enforce that agent IDs are within \
             the reserved agent namesepace for the node attestor"
        );
    }
    Ok(())
}

/// The way to the agent through its stream.
struct StreamChallenger<'a> {
    kind: &'a str,
    requests: &'a mut Streaming<wire::AttestAgentRequest>,
    answers: &'a Answers,
    client_ip: Option<IpAddr>,
}

impl StreamChallenger<'_> {
    fn broken(&self, message: String) -> plugins::Error {
        plugins::Error::new(ErrorKind::Internal, (PluginType::NodeAttestor, self.kind), message)
    }
}

#[async_trait]
impl Challenger for StreamChallenger<'_> {
    fn client_ip(&self) -> Option<IpAddr> {
        self.client_ip
    }

    async fn challenge(&mut self, challenge: Bytes) -> plugins::Result<Bytes> {
        let step = Some(answered::Step::Challenge(challenge));
        if self.answers.send(Ok(wire::AttestAgentResponse { step })).await.is_err() {
            return Err(self.broken("failed to send challenge to agent".to_owned()));
        }
        match self.requests.message().await {
            // A message of another kind counts as an empty response, as in the reference.
            Ok(Some(wire::AttestAgentRequest { step: Some(asked::Step::ChallengeResponse(response)) })) => {
                Ok(response)
            }
            Ok(Some(_)) => Ok(Bytes::new()),
            Ok(None) => Err(self.broken("failed to receive challenge from agent: EOF".to_owned())),
            Err(status) => {
                Err(self.broken(format!("failed to receive challenge from agent: {}", status.message())))
            }
        }
    }
}
