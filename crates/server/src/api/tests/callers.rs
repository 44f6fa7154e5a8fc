//! Who may call what: every method by every kind of caller, against a golden list (`callers.txt`). A method that is
//! served but not in the list, or listed but not served, fails here; and so does one that lets anybody in who is not
//! listed.

use prost::Message as _;

use super::*;
use crate::api::caller::Allowed;
use spire_wire::api::server::agent::v1::{BanAgentRequest, CountAgentsRequest, PostStatusRequest};
use spire_wire::api::server::bundle::v1::GetBundleRequest;
use spire_wire::api::types::permission_denied_details::Reason;

pub(super) struct Listed {
    pub(super) path: &'static str,
    pub(super) allowed: Allowed,
    pub(super) tcp: bool,
    pub(super) unix: bool,
}

pub(super) fn golden() -> Vec<Listed> {
    include_str!("callers.txt")
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            let [path, callers, place] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
            let has = |kind| callers.split(',').any(|listed| listed == kind);
            Listed {
                path,
                allowed: Allowed {
                    any: has("any"),
                    local: has("local"),
                    admin: has("admin"),
                    downstream: has("downstream"),
                    agent: has("agent"),
                },
                tcp: place != "unix",
                unix: place != "tcp",
            }
        })
        .collect()
}

#[tokio::test]
async fn routes_are_those_listed_with_the_callers_listed() {
    let world = World::new().await;
    let sorted = |mut all: Vec<(&'static str, Allowed)>| {
        all.sort_by_key(|(path, _)| *path);
        all
    };
    let listed = |on: fn(&Listed) -> bool| {
        sorted(golden().iter().filter(|l| on(l)).map(|l| (l.path, l.allowed)).collect())
    };
    assert_eq!(sorted(world.api.tcp_service().paths().collect()), listed(|l| l.tcp));
    assert_eq!(sorted(world.api.unix_service().paths().collect()), listed(|l| l.unix));
}

/// The gRPC status of a call without a message: what the authorisation says, or the complaint that the message is
/// missing.
async fn status_of(world: &World, peer: Peer, path: &str) -> Option<(String, String)> {
    let request = Request::builder()
        .method("POST")
        .uri(path)
        .header("content-type", "application/grpc")
        .body(Body::empty())
        .unwrap();
    let response = world.connection(peer).call(request).await.unwrap();
    let header = |name| response.headers().get(name).map(|v| v.to_str().unwrap().to_owned());
    header("grpc-status").map(|code| (code, header("grpc-message").unwrap_or_default()))
}

/// Whether a caller is one of those allowed.
pub(super) type IsRight = fn(Allowed) -> bool;

const DENIED: &str = "7";

#[tokio::test]
async fn every_wrong_caller_is_denied_and_every_right_one_let_in() {
    let world =
        World::with(|deps| deps.rate_limits = RateLimits { attestation: false, signing: false }).await;
    everyone_is_judged_rightly(&world).await;
}

/// Every method by every kind of caller, as the list says.
pub(super) async fn everyone_is_judged_rightly(world: &World) {
    let agent = world.attested(AGENT).await;
    world.entry("boss", AGENT, "/boss", |e| e.admin = true).await;
    world.entry("down", AGENT, "/down", |e| e.downstream = true).await;
    world.entry("work", AGENT, "/work", |_| {}).await;
    let callers: Vec<(&str, Peer, IsRight)> = vec![
        ("local", local(), |a| a.local),
        ("anonymous", anonymous(), |_| false),
        ("admin by configuration", tls("/admin", "1"), |a| a.admin),
        ("admin by entry", tls("/boss", "1"), |a| a.admin),
        ("downstream", tls("/down", "1"), |a| a.downstream),
        ("agent", agent, |a| a.agent),
        ("agent with another SVID", tls(AGENT, "8"), |_| false),
        ("agent that is not attested", tls("/spire/agent/x509pop/other", "7"), |_| false),
        ("workload", tls("/work", "1"), |_| false),
        ("server", tls("/spire/server", "1"), |_| false),
    ];
    for listed in golden() {
        for (name, peer, right) in &callers {
            let served = if matches!(peer, Peer::Local(_)) { listed.unix } else { listed.tcp };
            let status = status_of(world, peer.clone(), listed.path).await;
            if !served {
                let (code, _) = status.unwrap_or_else(|| panic!("{name} reached {}", listed.path));
                assert_eq!(code, "12", "{} by {name}: not served there", listed.path);
                continue;
            }
            let let_in = listed.allowed.any || right(listed.allowed);
            let denied = status.as_ref().is_some_and(|(code, _)| code == DENIED);
            assert_eq!(!denied, let_in, "{} by {name}: {status:?}", listed.path);
            if denied {
                let (_, message) = status.unwrap();
                let message = message.replace("%20", " ");
                assert_eq!(message, format!("authorization denied for method {}", listed.path), "by {name}");
            }
        }
    }
}

#[tokio::test]
async fn unknown_methods_are_answered_as_grpc_go_does() {
    let world = World::new().await;
    for (path, text) in [
        (
            "/spire.api.server.agent.v1.Agent/Nonsense",
            "unknown method Nonsense for service spire.api.server.agent.v1.Agent",
        ),
        ("/nonsense.Service/Method", "unknown service nonsense.Service"),
    ] {
        let (code, message) = status_of(&world, local(), path).await.unwrap();
        assert_eq!((code.as_str(), message.replace("%20", " ").as_str()), ("12", text));
    }
}

async fn reason_of(world: &World, peer: Peer) -> Option<Reason> {
    let status = world.agents(peer).post_status(PostStatusRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    let details = spire_wire::rpc::Status::decode(status.details()).unwrap().details;
    let [any] = &details[..] else { return None };
    assert_eq!(any.type_url, "type.googleapis.com/spire.api.types.PermissionDeniedDetails");
    Some(types::PermissionDeniedDetails::decode(&*any.value).unwrap().reason())
}

#[tokio::test]
async fn agents_are_told_why_they_are_denied() {
    let world = World::new().await;
    let agent = world.attested(AGENT).await;
    assert_eq!(reason_of(&world, tls(AGENT, "8")).await, Some(Reason::AgentNotActive));
    let other = tls("/spire/agent/x509pop/other", "7");
    assert_eq!(reason_of(&world, other).await, Some(Reason::AgentNotAttested));
    assert_eq!(reason_of(&world, anonymous()).await, None);
    let ban = BanAgentRequest { id: wire_id(AGENT) };
    world.agents(local()).ban_agent(ban).await.unwrap();
    assert_eq!(reason_of(&world, agent.clone()).await, Some(Reason::AgentBanned));
    world.clock.pass(3601);
    assert_eq!(reason_of(&world, agent).await, Some(Reason::AgentExpired));
}

#[tokio::test]
async fn a_renewed_svid_becomes_the_current_one_when_it_is_first_used() {
    let world = World::new().await;
    let old = world.attested(AGENT).await;
    let renewed = spire_core::model::NodeUpdate {
        new_serial_number: Some("8".into()),
        new_expires_at: Some(Some(Timestamp::from_unix(START + 7200))),
        ..Default::default()
    };
    world.live().update_node(&id(AGENT), &renewed).await.unwrap();
    world.agents(old.clone()).post_status(PostStatusRequest::default()).await.unwrap();
    world.agents(tls(AGENT, "8")).post_status(PostStatusRequest::default()).await.unwrap();
    let node = world.store.node_fetch(&id(AGENT)).await.unwrap().unwrap();
    assert_eq!((&*node.serial_number, &*node.new_serial_number), ("8", ""));
    assert_eq!(node.expires_at, Timestamp::from_unix(START + 7200));
    assert_eq!(reason_of(&world, old).await, Some(Reason::AgentNotActive));
}

#[tokio::test]
async fn without_a_datastore_nobody_is_taken_for_an_agent_or_admin() {
    let world = World::new().await;
    world.attested(AGENT).await;
    world.store.rows.lock().broken = true;
    let (code, text) = refused(world.agents(tls(AGENT, "8")).post_status(PostStatusRequest::default()).await);
    assert_eq!(code, Code::Internal);
    assert_eq!(text, "unable to look up agent information: datastore-sql: database is locked");
    let (code, text) =
        refused(world.agents(tls("/boss", "1")).count_agents(CountAgentsRequest::default()).await);
    assert_eq!(code, Code::Internal);
    assert_eq!(text, "failed to fetch caller entries: datastore-sql: database is locked");
}

#[tokio::test]
async fn staleness_spares_reads_until_a_ban_made_here() {
    let world = World::with(|deps| deps.node_info_staleness = Duration::from_secs(3600)).await;
    let agent = world.attested(AGENT).await;
    world.agents(agent.clone()).post_status(PostStatusRequest::default()).await.unwrap();
    world.store.rows.lock().broken = true;
    world.agents(agent.clone()).post_status(PostStatusRequest::default()).await.unwrap();
    world.store.rows.lock().broken = false;
    let ban = BanAgentRequest { id: wire_id(AGENT) };
    world.agents(local()).ban_agent(ban).await.unwrap();
    assert_eq!(reason_of(&world, agent).await, Some(Reason::AgentBanned));
}

#[tokio::test]
async fn a_known_agent_is_served_while_the_datastore_is_away() {
    let world = World::new().await;
    let agent = world.attested(AGENT).await;
    world.store.rows.lock().broken = true;
    world.agents(agent.clone()).post_status(PostStatusRequest::default()).await.unwrap();
    let seen = world.bundles(agent).get_bundle(GetBundleRequest::default()).await.unwrap().into_inner();
    assert_eq!(seen.trust_domain, "example.org", "an agent's sync needs it");
    // Another SVID of the same agent is not what was known.
    let (code, _) = refused(world.agents(tls(AGENT, "77")).post_status(PostStatusRequest::default()).await);
    assert_eq!(code, Code::Internal);
}

#[tokio::test]
async fn an_agent_that_is_gone_is_not_known_while_the_datastore_is_away() {
    let world = World::new().await;
    let agent = world.attested(AGENT).await;
    world.agents(agent.clone()).post_status(PostStatusRequest::default()).await.unwrap();
    world.live().prune_nodes(Timestamp::from_unix(START + 7200), true, 10).await.unwrap();
    world.store.rows.lock().broken = true;
    let (code, _) = refused(world.agents(agent).post_status(PostStatusRequest::default()).await);
    assert_eq!(code, Code::Internal);
}

#[tokio::test]
async fn the_routes_for_a_listener_reach_our_dispatch() {
    let world = World::new().await;
    for (path, code) in [
        ("/grpc.health.v1.Health/Check", "13"), // the message is missing, so it came to the handler
        ("/grpc.health.v1.Health/Nonsense", "12"),
    ] {
        let mut request = Request::builder().uri(path).method("POST").body(Body::empty()).unwrap();
        request.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
        request.extensions_mut().insert(local());
        let response = world.api.unix_routes().call(request).await.unwrap();
        assert_eq!(response.headers()["grpc-status"], code, "{path}");
    }
    let mut request = Request::builder().uri("/grpc.health.v1.Health/Check").body(Body::empty()).unwrap();
    request.extensions_mut().insert(anonymous());
    let response = world.api.tcp_service().call(request).await.unwrap();
    assert_eq!(response.headers()["grpc-message"], "unknown%20service%20grpc.health.v1.Health");
}
