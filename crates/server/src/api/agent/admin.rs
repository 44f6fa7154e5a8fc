//! Listing and removing agents.

use std::sync::Arc;

use spire_core::model::{NodeFilter, NodeUpdate};
use spire_core::time::Timestamp;
use spire_ports::datastore;
use spire_wire::api::server::agent::v1 as wire;
use spire_wire::api::types;
use time::macros::format_description;
use time::{PrimitiveDateTime, UtcOffset};
use tonic::{Code, Status};

use crate::api::caller::AdminCaller;
use crate::api::convert::{agent_id, agent_to_wire, match_name, paging, selector_match, selectors_text};
use crate::api::route::Call;
use crate::api::status::{Context, fail_with};

pub(super) async fn count_agents(
    call: Arc<Call>,
    _: AdminCaller,
    request: wire::CountAgentsRequest,
) -> Result<wire::CountAgentsResponse, Status> {
    const WHAT: &str = "failed to count agents";
    let filter = match request.filter {
        None => NodeFilter::default(),
        Some(f) => filter(
            &call,
            f.by_attestation_type,
            f.by_selector_match,
            f.by_banned,
            f.by_can_reattest,
            &f.by_expires_before,
            WHAT,
        )?,
    };
    let count = call.store().node_count(&filter).await.map_err(|e| fail_with(Code::Internal, WHAT, e))?;
    call.audit.success();
    Ok(wire::CountAgentsResponse { count: i32::try_from(count).unwrap_or(i32::MAX) })
}

pub(super) async fn list_agents(
    call: Arc<Call>,
    _: AdminCaller,
    request: wire::ListAgentsRequest,
) -> Result<wire::ListAgentsResponse, Status> {
    const WHAT: &str = "failed to list agents";
    let mut filter = match request.filter {
        None => NodeFilter::default(),
        Some(f) => filter(
            &call,
            f.by_attestation_type,
            f.by_selector_match,
            f.by_banned,
            f.by_can_reattest,
            &f.by_expires_before,
            WHAT,
        )?,
    };
    let mask = request.output_mask.as_ref();
    filter.fetch_selectors = mask.is_none_or(|mask| mask.selectors);
    let paging = paging(request.page_size, request.page_token);
    let page = call
        .store()
        .node_list(&filter, paging.as_ref())
        .await
        .map_err(|e| fail_with(Code::Internal, WHAT, e))?;
    let agents = page
        .items
        .iter()
        .map(|node| {
            let mut agent = agent_to_wire(node);
            apply_mask(&mut agent, mask);
            agent
        })
        .collect();
    call.audit.success();
    Ok(wire::ListAgentsResponse { agents, next_page_token: page.next })
}

pub(super) async fn agent(
    call: Arc<Call>,
    _: AdminCaller,
    request: wire::GetAgentRequest,
) -> Result<types::Agent, Status> {
    let id = agent_id(request.id.as_ref(), call.api.trust_domain())
        .map_err(|e| fail_with(Code::InvalidArgument, "invalid agent ID", e))?;
    call.audit.add("spiffe_id", id.to_string());
    let context = Context::id(id.as_str());
    let node = call
        .store()
        .node_fetch(&id)
        .await
        .map_err(|e| context.fail_with(Code::Internal, "failed to fetch agent", e))?
        .ok_or_else(|| context.fail(Code::NotFound, "agent not found"))?;
    let mut agent = agent_to_wire(&node);
    apply_mask(&mut agent, request.output_mask.as_ref());
    call.audit.success();
    Ok(agent)
}

/// Evicts an agent: its row goes, its streams end, and an alias of its join token goes with it.
pub(super) async fn delete_agent(
    call: Arc<Call>,
    _: AdminCaller,
    request: wire::DeleteAgentRequest,
) -> Result<(), Status> {
    let id = agent_id(request.id.as_ref(), call.api.trust_domain())
        .map_err(|e| fail_with(Code::InvalidArgument, "invalid agent ID", e))?;
    call.audit.add("spiffe_id", id.to_string());
    let context = Context::id(id.as_str());
    match call.api.deps.live.evict_node(&id).await {
        Ok(_) => {}
        Err(datastore::Error::NotFound) => return Err(context.fail(Code::NotFound, "agent not found")),
        Err(error) => return Err(context.fail_with(Code::Internal, "failed to remove agent", error)),
    }
    call.api.authorizer.forget(&id);
    tracing::info!(spiffe_id = %id, "Agent deleted");
    call.audit.success();
    Ok(())
}

/// Bans an agent: its row stays without serial numbers, and its streams end.
pub(super) async fn ban_agent(
    call: Arc<Call>,
    _: AdminCaller,
    request: wire::BanAgentRequest,
) -> Result<(), Status> {
    let id = agent_id(request.id.as_ref(), call.api.trust_domain())
        .map_err(|e| fail_with(Code::InvalidArgument, "invalid agent ID", e))?;
    call.audit.add("spiffe_id", id.to_string());
    let context = Context::id(id.as_str());
    let ban = NodeUpdate {
        serial_number: Some(Box::default()),
        new_serial_number: Some(Box::default()),
        ..NodeUpdate::default()
    };
    match call.api.deps.live.update_node(&id, &ban).await {
        Ok(_) => {}
        Err(datastore::Error::NotFound) => return Err(context.fail(Code::NotFound, "agent not found")),
        Err(error) => return Err(context.fail_with(Code::Internal, "failed to ban agent", error)),
    }
    call.api.authorizer.forget(&id);
    tracing::info!(spiffe_id = %id, "Agent banned");
    call.audit.success();
    Ok(())
}

fn filter(
    call: &Call,
    attestation_type: String,
    selectors: Option<types::SelectorMatch>,
    banned: Option<bool>,
    can_reattest: Option<bool>,
    expires_before: &str,
    what: &str,
) -> Result<NodeFilter, Status> {
    if !attestation_type.is_empty() {
        call.audit.add("node_attestor_type", attestation_type.clone());
    }
    if let Some(banned) = banned {
        call.audit.add("by_banned", banned);
    }
    if let Some(can_reattest) = can_reattest {
        call.audit.add("by_can_reattest", can_reattest);
    }
    if let Some(selectors) = &selectors {
        call.audit.add("by_selector_match", match_name(selectors.r#match));
        call.audit.add("by_selectors", selectors_text(&selectors.selectors));
    }
    let selectors = selectors
        .map(selector_match)
        .transpose()
        .map_err(|e| fail_with(Code::InvalidArgument, "failed to parse selectors", e))?;
    if selectors.as_ref().is_some_and(|wanted| wanted.selectors.is_empty()) {
        // The reference's datastore refuses it, and its API tells that as its own failure.
        return Err(fail_with(Code::Internal, what, "cannot list by empty selectors set"));
    }
    Ok(NodeFilter {
        attestation_type: Some(attestation_type).filter(|kind| !kind.is_empty()),
        banned,
        can_reattest,
        expires_before: go_time(expires_before),
        selectors,
        ..NodeFilter::default()
    })
}

/// A time in Go's layout `2006-01-02 15:04:05 -0700 -07`. As in the reference, any other text is no filter.
fn go_time(text: &str) -> Option<Timestamp> {
    const AT: &[time::format_description::BorrowedFormatItem<'_>] =
        format_description!("[year]-[month]-[day] [hour]:[minute]:[second]");
    const OFFSET: &[time::format_description::BorrowedFormatItem<'_>] =
        format_description!("[offset_hour sign:mandatory][offset_minute]");
    const HOURS: &[time::format_description::BorrowedFormatItem<'_>] =
        format_description!("[offset_hour sign:mandatory]");
    if text.get(19..20)? != " " || text.get(25..26)? != " " {
        return None;
    }
    UtcOffset::parse(text.get(26..)?, HOURS).ok()?;
    let at = PrimitiveDateTime::parse(text.get(..19)?, AT).ok()?;
    let offset = UtcOffset::parse(text.get(20..25)?, OFFSET).ok()?;
    Some(at.assume_offset(offset).into())
}

fn apply_mask(agent: &mut types::Agent, mask: Option<&types::AgentMask>) {
    let Some(mask) = mask else { return };
    fn keep<T: Default>(wanted: bool, field: &mut T) {
        if !wanted {
            *field = T::default();
        }
    }
    keep(mask.attestation_type, &mut agent.attestation_type);
    keep(mask.x509svid_serial_number, &mut agent.x509svid_serial_number);
    keep(mask.x509svid_expires_at, &mut agent.x509svid_expires_at);
    keep(mask.selectors, &mut agent.selectors);
    keep(mask.banned, &mut agent.banned);
    keep(mask.can_reattest, &mut agent.can_reattest);
    keep(mask.agent_version, &mut agent.agent_version);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_the_command_line() {
        assert_eq!(go_time("2023-11-14 22:13:20 +0000 +00"), Some(Timestamp::from_unix(1_700_000_000)));
        assert_eq!(go_time("2023-11-14 23:13:20 +0100 +01"), Some(Timestamp::from_unix(1_700_000_000)));
        for bad in [
            "",
            "2023-11-14",
            "tomorrow",
            "2023-11-14 22:13:20 UTC",
            "2023-11-14 22:13:20 +0000",
            "2023-11-14 22:13:20 +0000 +00x",
        ] {
            assert_eq!(go_time(bad), None, "{bad}");
        }
    }
}
