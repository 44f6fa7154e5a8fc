//! `spire.api.server.agent.v1.Agent`: agents, their attestation and renewal (pkg/server/api/agent/v1).

mod admin;
mod attest;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use spire_core::model::{Entry, EntryId, JoinToken, NodeUpdate};
use spire_core::pki::VerifiedCsr;
use spire_core::spiffe::{Selector, SpiffeId};
use spire_ports::datastore;
use spire_wire::api::server::agent::v1 as wire;
use spire_wire::api::types;
use spire_wire::api::types::permission_denied_details::Reason;
use tonic::{Code, Status};

use super::caller::{AdminCaller, AgentCaller};
use super::convert::{hash, id_to_wire, workload_id};
use super::limits::Bucket;
use super::route::{Call, Route, streaming, unary};
use super::status::{Context, denied, fail, fail_with};
use crate::attest::join_token_agent;
use crate::ca::SignedX509;

/// Longest version that an agent may report, in bytes.
const AGENT_VERSION_MAX: usize = 255;

pub(super) fn routes() -> Vec<Route> {
    vec![
        unary("/spire.api.server.agent.v1.Agent/CountAgents", admin::count_agents),
        unary("/spire.api.server.agent.v1.Agent/ListAgents", admin::list_agents),
        unary("/spire.api.server.agent.v1.Agent/GetAgent", admin::agent),
        unary("/spire.api.server.agent.v1.Agent/DeleteAgent", admin::delete_agent),
        unary("/spire.api.server.agent.v1.Agent/BanAgent", admin::ban_agent),
        streaming("/spire.api.server.agent.v1.Agent/AttestAgent", attest::attest_agent),
        unary("/spire.api.server.agent.v1.Agent/RenewAgent", renew_agent),
        unary("/spire.api.server.agent.v1.Agent/CreateJoinToken", create_join_token),
        unary("/spire.api.server.agent.v1.Agent/PostStatus", post_status),
    ]
}

/// A new SVID for an agent that cannot attest again. It is pending until the agent first uses it.
async fn renew_agent(
    call: Arc<Call>,
    caller: AgentCaller,
    request: wire::RenewAgentRequest,
) -> Result<wire::RenewAgentResponse, Status> {
    let csr = request.params.as_ref().map(|params| params.csr.clone());
    if let Some(csr) = csr.as_ref().filter(|csr| !csr.is_empty()) {
        call.audit.add("csr", hash(csr));
    }
    call.limit(Bucket::X509, 1, "renew agent rate limiting").await?;
    let node = call
        .store()
        .node_row(caller.id())
        .await
        .map_err(|e| fail_with(Code::Internal, "failed to fetch agent", e))?
        .ok_or_else(|| fail(Code::NotFound, "agent not found"))?;
    if node.can_reattest {
        return Err(denied(Reason::AgentMustReattest, "agent must reattest instead of renew"));
    }
    tracing::info!("Renewing agent SVID");
    let csr = csr.ok_or_else(|| fail(Code::InvalidArgument, "params cannot be nil"))?;
    if csr.is_empty() {
        return Err(fail(Code::InvalidArgument, "missing CSR"));
    }
    let signed = sign(&call, caller.id(), csr, Context::default()).await?;
    let update = NodeUpdate {
        new_serial_number: Some(signed.serial.to_string().into()),
        new_expires_at: Some(Some(signed.not_after)),
        ..NodeUpdate::default()
    };
    update_node(&call, caller.id(), &update, Context::default()).await?;
    call.audit.success();
    Ok(wire::RenewAgentResponse { svid: Some(svid(caller.id(), signed)) })
}

async fn post_status(
    call: Arc<Call>,
    caller: AgentCaller,
    request: wire::PostStatusRequest,
) -> Result<wire::PostStatusResponse, Status> {
    call.limit(Bucket::PostStatus, 1, "post status rate limiting").await?;
    let id = caller.id();
    let context = Context::id(id.as_str());
    call.audit.add("spiffe_id", id.to_string());
    let version = request.agent_version;
    if !version.is_empty() {
        if version.len() > AGENT_VERSION_MAX {
            let text = "agent version is too long (max 255 characters)";
            return Err(context.fail(Code::InvalidArgument, text));
        }
        call.audit.add("agent_version", version.clone());
        let update = NodeUpdate { agent_version: Some(version.as_str().into()), ..NodeUpdate::default() };
        update_node(&call, id, &update, context).await?;
        tracing::debug!(spiffe_id = %id, agent_version = version, "Agent status updated");
    }
    call.audit.success();
    Ok(wire::PostStatusResponse {})
}

/// A token, and the alias of the agent that will use it where an identity is asked for.
async fn create_join_token(
    call: Arc<Call>,
    _: AdminCaller,
    request: wire::CreateJoinTokenRequest,
) -> Result<types::JoinToken, Status> {
    if request.ttl > 0 {
        call.audit.add("ttl", request.ttl);
    }
    let ttl = u64::try_from(request.ttl).unwrap_or(0);
    if ttl == 0 {
        return Err(fail(Code::InvalidArgument, "ttl is required, you must provide one"));
    }
    let alias = match &request.agent_id {
        None => None,
        Some(id) => Some(
            workload_id(Some(id), call.api.trust_domain())
                .map_err(|e| fail_with(Code::InvalidArgument, "invalid agent ID", e))?,
        ),
    };
    if let Some(alias) = &alias {
        call.audit.add("spiffe_id", alias.to_string());
    }
    let token = match request.token {
        token if token.is_empty() => uuid::Uuid::new_v4().to_string(),
        token => token,
    };
    let expires_at = call.api.now() + Duration::from_secs(ttl);
    call.store()
        .join_token_create(&JoinToken { token: token.clone(), expires_at })
        .await
        .map_err(|e| fail_with(Code::Internal, "failed to create token", e))?;
    if let Some(alias) = alias {
        create_alias(&call, &token, alias)
            .await
            .map_err(|e| fail_with(Code::Internal, "failed to create join token registration entry", e))?;
    }
    call.audit.success();
    Ok(types::JoinToken { value: token, expires_at: expires_at.unix() })
}

/// The alias has the shape by which the datastore finds it when the agent is evicted: its parent is the agent, and its
/// one selector is the agent's ID.
async fn create_alias(call: &Call, token: &str, alias: SpiffeId) -> Result<(), String> {
    let agent = join_token_agent(call.api.trust_domain(), token)
        .map_err(|e| format!("failed to create join token ID: {e}"))?;
    let selectors = [Selector::spiffe_id(&agent)].into_iter().collect();
    let id = EntryId::from_stored(uuid::Uuid::new_v4().to_string());
    let created = call.api.deps.live.create(vec![Entry::new(id, agent, alias, selectors)]).await;
    let created = created.map_err(|e| e.to_string())?;
    created.into_iter().try_for_each(|one| one.map(drop)).map_err(|e| e.to_string())
}

/// Signs an agent's SVID. Only the key is taken from the request.
async fn sign(call: &Call, id: &SpiffeId, csr: Bytes, context: Context<'_>) -> Result<SignedX509, Status> {
    let csr = VerifiedCsr::from_der(csr)
        .map_err(|e| context.fail_with(Code::InvalidArgument, "failed to parse CSR", e))?;
    call.api
        .ca()
        .sign_agent_x509(id, csr.public_key())
        .await
        .map_err(|e| context.fail_with(Code::Internal, "failed to sign X509 SVID", e))
}

async fn update_node(
    call: &Call,
    id: &SpiffeId,
    update: &NodeUpdate,
    context: Context<'_>,
) -> Result<(), Status> {
    match call.api.deps.live.update_node(id, update).await {
        Ok(_) => Ok(()),
        Err(datastore::Error::NotFound) => Err(context.fail(Code::NotFound, "agent not found")),
        Err(error) => Err(context.fail_with(Code::Internal, "failed to update agent", error)),
    }
}

fn svid(id: &SpiffeId, signed: SignedX509) -> types::X509svid {
    types::X509svid {
        id: Some(id_to_wire(id)),
        expires_at: signed.not_after.unix(),
        cert_chain: signed.chain,
        hint: String::new(),
    }
}
