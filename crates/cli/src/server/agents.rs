//! `agent …` (cmd/spire-server/cli/agent).

use serde::Serialize;
use spire_compat::duration::GoDuration;
use spire_compat::flag::{FlagSet, Parsed};
use spire_compat::quote::quote;
use spire_wire::api::server::agent::v1::agent_client::AgentClient;
use spire_wire::api::server::agent::v1::{
    BanAgentRequest, CountAgentsRequest, DeleteAgentRequest, GetAgentRequest, ListAgentsRequest,
    ListAgentsResponse, count_agents_request, list_agents_request,
};
use spire_wire::api::types;
use spire_wire::api::types::selector_match::MatchBehavior;

use crate::call::{ApiCommand, Call, running};
use crate::dispatch::Command;
use crate::env::Env;
use crate::failure::{Doing, Failure, rpc_text};
use crate::output::Format;
use crate::pretty::{counted, counted_i32, parse_id, parse_selector, valid_id_text};
use crate::{view, zone};

/// Agents of one page: an answer stays below the 4 MiB that gRPC clients take.
const PAGE_SIZE: i32 = 1000;

pub(super) fn commands<H: 'static>() -> [Command<H>; 6] {
    let command = |path, synopsis, flags, run| ApiCommand { path, name: path, synopsis, flags, run };
    [
        command("agent list", "Lists attested agents and their SPIFFE IDs", filter_flags, running!(list))
            .server(),
        command(
            "agent show",
            "Shows the details of an attested agent given its SPIFFE ID",
            |flags| flags.string("spiffeID", "", "The SPIFFE ID of the agent to show (agent identity)"),
            running!(show),
        )
        .server(),
        command("agent count", "Count attested agents", filter_flags, running!(count)).server(),
        command(
            "agent evict",
            "Evicts an attested agent given its SPIFFE ID",
            |flags| flags.string("spiffeID", "", "The SPIFFE ID of the agent to evict (agent identity)"),
            running!(evict),
        )
        .server(),
        command(
            "agent ban",
            "Ban an attested agent given its SPIFFE ID",
            |flags| flags.string("spiffeID", "", "The SPIFFE ID of the agent to ban (agent identity)"),
            running!(ban),
        )
        .server(),
        command(
            "agent purge",
            "Purge expired agents that were attested using a non-TOFU security model based on a given time",
            purge_flags,
            running!(purge),
        )
        .server(),
    ]
}

fn filter_flags(flags: FlagSet) -> FlagSet {
    flags
        .strings("selector", "A colon-delimited type:value selector. Can be used more than once")
        .string("attestationType", "", "Filter by attestation type, like join_token or x509pop.")
        .custom("canReattest", "", any, "Filter based on string received, 'true': agents that can reattest, 'false': agents that can't reattest, other value will return all.")
        .custom("banned", "", any, "Filter based on string received, 'true': banned agents, 'false': not banned agents, other value will return all.")
        .string("expiresBefore", "", "Filter by expiration time (format: \"2006-01-02 15:04:05 -0700 -07\")")
        .string(
            "matchSelectorsOn",
            "superset",
            "The match mode used when filtering by selectors. Options: exact, any, superset and subset",
        )
}

#[allow(clippy::unnecessary_wraps, reason = "the shape of a flag's check")]
fn any(_: &str) -> Result<(), String> {
    Ok(())
}

fn filter(flags: &Parsed) -> Result<list_agents_request::Filter, Failure> {
    let selectors = flags.strings("selector");
    let by_selector_match = if selectors.is_empty() {
        None
    } else {
        let r#match = match_behavior(flags.string("matchSelectorsOn"))
            .ok_or_else(|| Failure::new("unsupported match behavior"))? as i32;
        let parsed = |text: &String| {
            parse_selector(text).doing(format_args!("error parsing selector {}", quote(text)))
        };
        Some(types::SelectorMatch {
            selectors: selectors.iter().map(parsed).collect::<Result<_, _>>()?,
            r#match,
        })
    };
    let by_expires_before = flags.string("expiresBefore").to_owned();
    if !by_expires_before.is_empty() {
        check_date(&by_expires_before)?;
    }
    let either = |name: &str| match flags.string(name) {
        "true" => Some(true),
        "false" => Some(false),
        _ => None,
    };
    Ok(list_agents_request::Filter {
        by_attestation_type: flags.string("attestationType").to_owned(),
        by_selector_match,
        by_banned: either("banned"),
        by_can_reattest: either("canReattest"),
        by_expires_before,
    })
}

pub(super) fn match_behavior(text: &str) -> Option<MatchBehavior> {
    Some(match text {
        "exact" => MatchBehavior::MatchExact,
        "any" => MatchBehavior::MatchAny,
        "superset" => MatchBehavior::MatchSuperset,
        "subset" => MatchBehavior::MatchSubset,
        _ => return None,
    })
}

/// The layout of dates, in Go's notation.
const LAYOUT: &str = "2006-01-02 15:04:05 -0700 -07";

/// Checks a date of [`LAYOUT`]. The server parses what it gets again; this finds mistakes early.
fn check_date(text: &str) -> Result<(), Failure> {
    const PARTS: [(&str, &str); 8] = [
        ("dddd", "2006"),
        ("-dd", "-01"),
        ("-dd", "-02"),
        (" dd", " 15"),
        (":dd", ":04"),
        (":dd", ":05"),
        (" sdddd", " -0700"),
        (" sdd", " -07"),
    ];
    let mut left = text;
    for (pattern, name) in PARTS {
        // A separator stands before all parts but the first. A blank may be several, or missing at the end.
        let (separator, pattern) = match pattern.split_at(1) {
            ("d", _) => ("", pattern),
            parts => parts,
        };
        let name = &name[separator.len()..];
        let wrong = |value: &str, element: &str| {
            let (text, value, element) = (quote(text), quote(value), quote(element));
            Failure::new(format!(
                "date is not valid: parsing time {text} as \"{LAYOUT}\": cannot parse {value} as {element}"
            ))
        };
        left = match left.strip_prefix(separator) {
            Some(rest) if separator == " " => rest.trim_start_matches(' '),
            Some(rest) => rest,
            None if separator == " " && left.is_empty() => left,
            None => return Err(wrong(left, separator)),
        };
        let fits = |(c, p): (char, char)| match p {
            'd' => c.is_ascii_digit(),
            _ => matches!(c, '+' | '-'),
        };
        let head = left.get(..pattern.len());
        if !head.is_some_and(|head| head.chars().zip(pattern.chars()).all(fits)) {
            return Err(wrong(left, name));
        }
        left = &left[pattern.len()..];
    }
    if left.is_empty() {
        return Ok(());
    }
    Err(Failure::new(format!("date is not valid: parsing time {}: extra text: {}", quote(text), quote(left))))
}

async fn list(call: &mut Call<'_>) -> Result<(), Failure> {
    let filter = filter(&call.flags)?;
    let mut client = AgentClient::new(call.channel.clone());
    let mut response = ListAgentsResponse::default();
    let mut page_token = String::new();
    loop {
        let request = ListAgentsRequest {
            filter: Some(filter.clone()),
            page_size: PAGE_SIZE,
            page_token,
            ..Default::default()
        };
        let page = client.list_agents(request).await?.into_inner();
        response.agents.extend(page.agents);
        if page.next_page_token.is_empty() {
            break;
        }
        page_token = page.next_page_token;
    }
    call.print(&response, |env, response| {
        let count = response.agents.len();
        if count == 0 {
            env.out("No attested agents found\n");
            return Ok(());
        }
        env.out(format_args!("Found {count} attested {}:\n\n", counted(count, "agent", "agents")));
        response.agents.iter().try_for_each(|agent| print_agent(env, agent))
    })
}

fn print_agent(env: &mut Env, agent: &types::Agent) -> Result<(), Failure> {
    let id = valid_id_text(agent.id.as_ref())?;
    let expiry = zone::local(env, agent.x509svid_expires_at);
    let mut text = format!(
        "SPIFFE ID         : {id}\nAttestation type  : {}\nExpiration time   : {expiry}\n",
        agent.attestation_type
    );
    if agent.banned {
        // A banned agent has no serial number.
        text.push_str("Banned            : true\n");
    } else {
        text.push_str(&format!("Serial number     : {}\n", agent.x509svid_serial_number));
    }
    text.push_str(&format!("Can re-attest     : {}\n", agent.can_reattest));
    if !agent.agent_version.is_empty() {
        text.push_str(&format!("Agent version     : {}\n", agent.agent_version));
    }
    env.out(format_args!("{text}\n"));
    Ok(())
}

/// `-spiffeID`, which must be given.
fn required_id(flags: &Parsed) -> Result<types::Spiffeid, Failure> {
    match flags.string("spiffeID") {
        "" => Err(Failure::new("a SPIFFE ID is required")),
        text => parse_id(text),
    }
}

async fn show(call: &mut Call<'_>) -> Result<(), Failure> {
    let request = GetAgentRequest { id: Some(required_id(&call.flags)?), ..Default::default() };
    let agent = AgentClient::new(call.channel.clone()).get_agent(request).await?.into_inner();
    call.print(&agent, |env, agent| {
        env.out("Found an attested agent given its SPIFFE ID\n\n");
        print_agent(env, agent)?;
        for selector in &agent.selectors {
            env.out(format_args!("Selectors         : {}:{}\n", selector.r#type, selector.value));
        }
        Ok(())
    })
}

async fn count(call: &mut Call<'_>) -> Result<(), Failure> {
    let filter = filter(&call.flags)?;
    let filter = count_agents_request::Filter {
        by_attestation_type: filter.by_attestation_type,
        by_selector_match: filter.by_selector_match,
        by_banned: filter.by_banned,
        by_can_reattest: filter.by_can_reattest,
        by_expires_before: filter.by_expires_before,
    };
    let request = CountAgentsRequest { filter: Some(filter) };
    let response = AgentClient::new(call.channel.clone()).count_agents(request).await?.into_inner();
    call.print(&response, |env, response| {
        env.out(format_args!(
            "{} attested {}\n",
            response.count,
            counted_i32(response.count, "agent", "agents")
        ));
        Ok(())
    })
}

async fn evict(call: &mut Call<'_>) -> Result<(), Failure> {
    let request = DeleteAgentRequest { id: Some(required_id(&call.flags)?) };
    AgentClient::new(call.channel.clone()).delete_agent(request).await?;
    call.print(&(), |env, ()| {
        env.out("Agent evicted successfully\n");
        Ok(())
    })
}

async fn ban(call: &mut Call<'_>) -> Result<(), Failure> {
    let request = BanAgentRequest { id: Some(required_id(&call.flags)?) };
    AgentClient::new(call.channel.clone()).ban_agent(request).await?;
    call.print(&(), |env, ()| {
        env.out("Agent banned successfully\n");
        Ok(())
    })
}

fn purge_flags(flags: FlagSet) -> FlagSet {
    flags
        .duration("expiredFor", GoDuration::from_secs(30 * 24 * 60 * 60), "Amount of time that has passed since the agent's SVID has expired. It is used to determine which agents to purge.")
        .bool("dryRun", false, "Indicates that the command will not perform any action, but will print the agents that would be purged.")
}

/// What `purge` did, in the order of the reference's JSON.
#[derive(Serialize)]
struct Purged {
    expired_agents: Vec<Expired>,
}

#[derive(Serialize)]
struct Expired {
    agent_id: String,
    deleted: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    error: String,
}

async fn purge(call: &mut Call<'_>) -> Result<(), Failure> {
    let mut client = AgentClient::new(call.channel.clone());
    let dry_run = call.flags.bool("dryRun");
    let allowed = i128::from(call.flags.duration("expiredFor").as_nanos());
    let request = ListAgentsRequest {
        filter: Some(list_agents_request::Filter { by_can_reattest: Some(true), ..Default::default() }),
        output_mask: Some(types::AgentMask { x509svid_expires_at: true, ..Default::default() }),
        ..Default::default()
    };
    let agents = client.list_agents(request).await.doing("failed to list agents")?.into_inner().agents;
    let now = i128::from(call.env.unix_now());
    let mut purged = Purged { expired_agents: Vec::new() };
    for agent in agents {
        let agent_id = valid_id_text(agent.id.as_ref())?;
        if (now - i128::from(agent.x509svid_expires_at)) * 1_000_000_000 <= allowed {
            continue;
        }
        let mut result = Expired { agent_id, deleted: false, error: String::new() };
        if !dry_run {
            match client.delete_agent(DeleteAgentRequest { id: agent.id }).await {
                Ok(_) => result.deleted = true,
                Err(status) => result.error = rpc_text(&status),
            }
        }
        purged.expired_agents.push(result);
    }
    if call.format == Format::Json {
        let json = serde_json::to_string(&purged).map_err(crate::failure::plain)?;
        call.env.out(format_args!("{}\n", view::escaped(json)));
        return Ok(());
    }
    print_purged(call.env, &purged.expired_agents, dry_run);
    Ok(())
}

fn print_purged(env: &mut Env, expired: &[Expired], dry_run: bool) {
    if expired.is_empty() {
        env.out("No agents to purge.\n");
        return;
    }
    env.out(format_args!(
        "Found {} expired {}\n\n",
        expired.len(),
        counted(expired.len(), "agent", "agents")
    ));
    let id = |agent: &Expired| format!("SPIFFE ID         : {}\n", agent.agent_id);
    if dry_run {
        env.out("\nAgents that can be purged:\n");
        expired.iter().for_each(|agent| env.out(id(agent)));
        return;
    }
    let (gone, left): (Vec<_>, Vec<_>) = expired.iter().partition(|agent| agent.deleted);
    if !gone.is_empty() {
        env.out("Agents purged:\n");
        gone.iter().for_each(|agent| env.out(id(agent)));
    }
    if !left.is_empty() {
        env.out("Agents not purged:\n");
        for agent in left {
            env.out(format_args!("{}Error             : {}\n", id(agent), agent.error));
        }
    }
}
