//! The Agent service.

use async_trait::async_trait;
use spire_core::pki::Certificate;
use spire_ports::plugins::{self, Attestation, Challenger, ErrorKind, NodeAttestor, PluginType};
use spire_wire::api::server::agent::v1::*;
use tokio_stream::StreamExt as _;

use super::*;

fn params(kind: &str, payload: &[u8]) -> AttestAgentRequest {
    let params = attest_agent_request::Params {
        data: Some(types::AttestationData { r#type: kind.into(), payload: Bytes::copy_from_slice(payload) }),
        params: Some(AgentX509svidParams { csr: csr(&[], &[]) }),
    };
    AttestAgentRequest { step: Some(attest_agent_request::Step::Params(params)) }
}

async fn attest(
    world: &World,
    requests: Vec<AttestAgentRequest>,
) -> Result<attest_agent_response::Result, Status> {
    let requests = tokio_stream::iter(requests);
    // Through the unix socket, where calls are not limited.
    let mut answers = world.agents(local()).attest_agent(requests).await?.into_inner();
    loop {
        match answers.next().await.expect("an answer")?.step {
            Some(attest_agent_response::Step::Result(result)) => return Ok(result),
            Some(attest_agent_response::Step::Challenge(challenge)) => assert_eq!(&*challenge, b"who?"),
            None => panic!("empty answer"),
        }
    }
}

fn told<T: std::fmt::Debug>(answer: Result<T, Status>) -> (Code, String) {
    let status = answer.unwrap_err();
    (status.code(), status.message().to_owned())
}

async fn token(world: &World, agent_id: Option<types::Spiffeid>) -> types::JoinToken {
    let request = CreateJoinTokenRequest { ttl: 60, token: String::new(), agent_id };
    world.agents(local()).create_join_token(request).await.unwrap().into_inner()
}

#[tokio::test]
async fn a_join_token_admits_one_agent_once() {
    let world = World::new().await;
    let token = token(&world, wire_id("/alias")).await;
    assert_eq!(token.expires_at, START + 60);
    let admitted = attest(&world, vec![params("join_token", token.value.as_bytes())]).await.unwrap();
    assert!(!admitted.reattestable);
    let svid = admitted.svid.unwrap();
    let agent = format!("/spire/agent/join_token/{}", token.value);
    assert_eq!(svid.id, wire_id(&agent));
    let leaf = Certificate::from_der(svid.cert_chain[0].clone()).unwrap();
    assert_eq!(leaf.uris(), [format!("spiffe://example.org{agent}")]);
    let node = world.store.node_fetch(&id(&agent)).await.unwrap().unwrap();
    assert_eq!((&*node.serial_number, node.expires_at), (&*leaf.serial(), leaf.not_after()));
    let alias = world.store.rows.lock().entries[0].clone();
    assert_eq!((alias.spiffe_id, alias.parent_id.clone()), (id("/alias"), id(&agent)));
    assert_eq!(alias.selectors.as_slice(), [Selector::spiffe_id(&alias.parent_id)]);

    let again = attest(&world, vec![params("join_token", token.value.as_bytes())]).await;
    let text = "failed to attest: join token does not exist or has already been used";
    assert_eq!(told(again), (Code::InvalidArgument, text.into()));
}

#[tokio::test]
async fn an_attestation_that_fails_does_not_cost_the_token() {
    let world = World::new().await;
    let token = token(&world, None).await.value;
    let mut garbage = params("join_token", token.as_bytes());
    let Some(attest_agent_request::Step::Params(asked)) = &mut garbage.step else { unreachable!() };
    asked.params.as_mut().unwrap().csr = Bytes::from_static(b"x");
    let (code, text) = told(attest(&world, vec![garbage]).await);
    assert_eq!((code, text.starts_with("failed to parse CSR")), (Code::InvalidArgument, true), "{text}");
    assert_eq!(world.store.rows.lock().nodes.len(), 0);
    attest(&world, vec![params("join_token", token.as_bytes())]).await.unwrap();
    assert_eq!(world.store.rows.lock().tokens.len(), 0);
}

#[tokio::test]
async fn of_many_agents_with_one_token_one_is_admitted() {
    let world = World::new().await;
    let token = token(&world, None).await.value;
    let attempts = (0..8).map(|_| attest(&world, vec![params("join_token", token.as_bytes())]));
    let outcomes = futures_util::future::join_all(attempts).await;
    let (admitted, others): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(Result::is_ok);
    assert_eq!(admitted.len(), 1);
    let text = "failed to attest: join token does not exist or has already been used";
    for other in others {
        assert_eq!(told(other), (Code::InvalidArgument, text.to_owned()));
    }
    let serial =
        Certificate::from_der(admitted[0].as_ref().unwrap().svid.clone().unwrap().cert_chain[0].clone());
    assert_eq!(&*world.store.rows.lock().nodes[0].serial_number, &*serial.unwrap().serial());
}

#[tokio::test]
async fn an_expired_token_is_consumed_all_the_same() {
    let world = World::new().await;
    let token = token(&world, None).await;
    world.clock.pass(61);
    let late = attest(&world, vec![params("join_token", token.value.as_bytes())]).await;
    assert_eq!(told(late), (Code::InvalidArgument, "join token expired".into()));
    assert!(world.store.rows.lock().tokens.is_empty());
}

#[tokio::test]
async fn tokens_are_made_as_asked() {
    let world = World::new().await;
    let mut client = world.agents(local());
    let without_ttl = client.create_join_token(CreateJoinTokenRequest::default()).await;
    let text = "ttl is required, you must provide one";
    assert_eq!(refused(without_ttl), (Code::InvalidArgument, text.into()));
    let foreign = types::Spiffeid { trust_domain: "other.org".into(), path: "/x".into() };
    let request = CreateJoinTokenRequest { ttl: 1, token: String::new(), agent_id: Some(foreign) };
    let text = "invalid agent ID: \"spiffe://other.org/x\" is not a member of trust domain \"example.org\"";
    assert_eq!(refused(client.create_join_token(request).await), (Code::InvalidArgument, text.into()));
    assert!(world.store.rows.lock().tokens.is_empty(), "no token where the ID is bad");
    let chosen = CreateJoinTokenRequest { ttl: 1, token: "chosen".into(), agent_id: None };
    assert_eq!(client.create_join_token(chosen).await.unwrap().into_inner().value, "chosen");
}

/// Admits who answers a challenge rightly.
struct Quiz;

#[async_trait]
impl NodeAttestor for Quiz {
    fn name(&self) -> &str {
        "quiz"
    }
    async fn attest(&self, payload: Bytes, challenger: &mut dyn Challenger) -> plugins::Result<Attestation> {
        let answer = challenger.challenge(Bytes::from_static(b"who?")).await?;
        if answer != "me" {
            let plugin = (PluginType::NodeAttestor, "quiz");
            return Err(plugins::Error::new(ErrorKind::PermissionDenied, plugin, "wrong answer"));
        }
        let name = String::from_utf8(payload.to_vec()).unwrap();
        let selectors = [Selector::new("quiz", "knows").unwrap()].into_iter().collect();
        Ok(Attestation { agent_id: id(&name), selectors, can_reattest: true })
    }
}

fn response(text: &'static str) -> AttestAgentRequest {
    let response = attest_agent_request::Step::ChallengeResponse(Bytes::from_static(text.as_bytes()));
    AttestAgentRequest { step: Some(response) }
}

async fn quiz() -> World {
    World::with(|deps| deps.attestors = Arc::new(Attestors::new([Arc::new(Quiz) as Arc<dyn NodeAttestor>])))
        .await
}

#[tokio::test]
async fn plugins_challenge_agents() {
    let world = quiz().await;
    let path = "/spire/agent/quiz/a";
    for _ in 0..2 {
        let admitted = attest(&world, vec![params("quiz", path.as_bytes()), response("me")]).await.unwrap();
        assert!(admitted.reattestable);
    }
    assert_eq!(world.live().view().agent(&id(path)).unwrap().selectors.len(), 1);
    let wrong = attest(&world, vec![params("quiz", path.as_bytes()), response("you")]).await;
    assert_eq!(told(wrong), (Code::PermissionDenied, "nodeattestor(quiz): wrong answer".into()));
    let ban = BanAgentRequest { id: wire_id(path) };
    world.agents(local()).ban_agent(ban).await.unwrap();
    let banned = attest(&world, vec![params("quiz", path.as_bytes()), response("me")]).await;
    assert_eq!(told(banned), (Code::PermissionDenied, "failed to attest: agent is banned".into()));
    let server = attest(&world, vec![params("quiz", b"/spire/server"), response("me")]).await;
    assert_eq!(told(server), (Code::Internal, "agent ID cannot collide with the server ID".into()));
}

#[tokio::test]
async fn malformed_attestations_are_refused() {
    let world = quiz().await;
    let missing = |change: fn(&mut attest_agent_request::Params)| {
        let mut request = params("quiz", b"x");
        if let Some(attest_agent_request::Step::Params(params)) = &mut request.step {
            change(params);
        }
        request
    };
    let cases = [
        (response("x"), "missing params"),
        (missing(|p| p.data = None), "missing attestation data"),
        (missing(|p| p.params = None), "missing X509-SVID parameters"),
        (missing(|p| p.params.as_mut().unwrap().csr = Bytes::new()), "missing CSR"),
        (missing(|p| p.data.as_mut().unwrap().r#type = String::new()), "missing attestation data type"),
        (missing(|p| p.data.as_mut().unwrap().payload = Bytes::new()), "missing attestation data payload"),
    ];
    for (request, text) in cases {
        let answer = attest(&world, vec![request]).await;
        assert_eq!(told(answer), (Code::InvalidArgument, format!("malformed param: {text}")));
    }
    let unknown = attest(&world, vec![params("nope", b"x")]).await;
    let text = "error getting node attestor: could not find node attestor type \"nope\"";
    assert_eq!(told(unknown), (Code::FailedPrecondition, text.into()));
}

#[tokio::test(start_paused = true)]
async fn attestations_of_one_address_wait_their_turn() {
    let world = World::new().await;
    let began = tokio::time::Instant::now();
    for _ in 0..3 {
        let requests = tokio_stream::iter([params("join_token", b"unknown")]);
        let mut answers = world.agents(anonymous()).attest_agent(requests).await.unwrap().into_inner();
        assert_eq!(answers.next().await.unwrap().unwrap_err().code(), Code::InvalidArgument);
    }
    assert_eq!(began.elapsed().as_secs(), 2, "one a second");
}

#[tokio::test]
async fn renewal_is_for_agents_that_cannot_attest_again() {
    let world = World::new().await;
    let agent = world.attested(AGENT).await;
    let request = || RenewAgentRequest { params: Some(AgentX509svidParams { csr: csr(&[], &[]) }) };
    let status = world.agents(agent.clone()).renew_agent(request()).await.unwrap_err();
    assert_eq!(status.message(), "agent must reattest instead of renew");
    assert!(!status.details().is_empty());
    world.store.rows.lock().nodes[0].can_reattest = false;
    let svid = world.agents(agent.clone()).renew_agent(request()).await.unwrap().into_inner().svid.unwrap();
    let leaf = Certificate::from_der(svid.cert_chain[0].clone()).unwrap();
    let node = world.store.rows.lock().nodes[0].clone();
    assert_eq!((&*node.serial_number, &*node.new_serial_number), ("7", &*leaf.serial()));
    let without = world.agents(agent.clone()).renew_agent(RenewAgentRequest { params: None }).await;
    assert_eq!(refused(without), (Code::InvalidArgument, "params cannot be nil".into()));
    let garbage = RenewAgentRequest { params: Some(AgentX509svidParams { csr: Bytes::from_static(b"x") }) };
    let (code, text) = refused(world.agents(agent).renew_agent(garbage).await);
    assert_eq!(code, Code::InvalidArgument);
    assert!(text.starts_with("failed to parse CSR: "), "{text}");
}

#[tokio::test]
async fn agents_are_listed_shown_and_removed() {
    let world = World::new().await;
    let agent = world.attested(AGENT).await;
    let version = PostStatusRequest { agent_version: "1.15.3".into(), ..Default::default() };
    world.agents(agent.clone()).post_status(version).await.unwrap();
    let long = PostStatusRequest { agent_version: "x".repeat(256), ..Default::default() };
    let text = "agent version is too long (max 255 characters)";
    assert_eq!(refused(world.agents(agent).post_status(long).await), (Code::InvalidArgument, text.into()));
    let mut client = world.agents(local());
    let listed = client.list_agents(ListAgentsRequest::default()).await.unwrap().into_inner().agents;
    let shown = client.get_agent(GetAgentRequest { id: wire_id(AGENT), output_mask: None }).await.unwrap();
    assert_eq!(listed, [shown.into_inner()]);
    assert_eq!(
        (&*listed[0].agent_version, listed[0].selectors.len(), listed[0].banned),
        ("1.15.3", 1, false)
    );
    let bad = client.get_agent(GetAgentRequest { id: wire_id("/w"), output_mask: None }).await;
    let text = "invalid agent ID: \"spiffe://example.org/w\" is not an agent in trust domain \"example.org\"; path \
                is not in the agent namespace";
    assert_eq!(refused(bad), (Code::InvalidArgument, text.into()));
    client.ban_agent(BanAgentRequest { id: wire_id(AGENT) }).await.unwrap();
    let filter = count_agents_request::Filter { by_banned: Some(true), ..Default::default() };
    let count =
        client.count_agents(CountAgentsRequest { filter: Some(filter) }).await.unwrap().into_inner().count;
    assert_eq!(count, 1);
    let by_selector_match = Some(types::SelectorMatch::default());
    let filter = list_agents_request::Filter { by_selector_match, ..Default::default() };
    let empty = client.list_agents(ListAgentsRequest { filter: Some(filter), ..Default::default() }).await;
    let text = "failed to list agents: cannot list by empty selectors set";
    assert_eq!(refused(empty), (Code::Internal, text.into()));
    client.delete_agent(DeleteAgentRequest { id: wire_id(AGENT) }).await.unwrap();
    let again = client.delete_agent(DeleteAgentRequest { id: wire_id(AGENT) }).await;
    assert_eq!(refused(again), (Code::NotFound, "agent not found".into()));
}
