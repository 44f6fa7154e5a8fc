//! Calls that their clients cancel.

use spire_telemetry::{Capture, InMem};
use spire_wire::api::server::agent::v1::*;
use spire_wire::api::server::entry::v1::SyncAuthorizedEntriesRequest;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;

use super::*;

/// Status and message of the audit lines, once there is one.
async fn audited(log: &Capture) -> Vec<(String, Option<String>)> {
    let text = |field: Option<&str>| field.map(str::to_owned);
    loop {
        let lines = log.entries().into_iter().filter(|line| line.message == "API accessed");
        let found: Vec<_> = lines
            .map(|line| (text(line.field("status")).unwrap(), text(line.field("status_message"))))
            .collect();
        if !found.is_empty() {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn soon<T>(what: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(Duration::from_millis(50), what).await.ok()
}

#[tokio::test(start_paused = true)]
async fn a_write_that_its_client_cancels_is_finished_and_audited() {
    let world = World::new().await;
    world.attested(AGENT).await;
    let log = Capture::new(Level::Info);
    let _installed = log.install();
    world.store.silent.send_replace(true);
    let ban = BanAgentRequest { id: wire_id(AGENT) };
    assert!(soon(world.agents(local()).ban_agent(ban)).await.is_none(), "the store is silent");
    assert!(world.live().view().agent(&id(AGENT)).is_some());
    world.store.silent.send_replace(false);
    assert_eq!(audited(&log).await, [("success".to_owned(), None)]);
    assert!(world.live().view().agent(&id(AGENT)).is_none());
    assert!(log.entries().iter().any(|line| line.message == "Agent banned"));
}

#[tokio::test(start_paused = true)]
async fn more_calls_than_may_go_on_without_a_client_are_audited_all_the_same() {
    let world = World::new().await;
    world.attested(AGENT).await;
    let log = Capture::new(Level::Info);
    let _installed = log.install();
    let _all = world.api.abandoned.clone().acquire_many_owned(ABANDONED_MAX as u32).await.unwrap();
    world.store.silent.send_replace(true);
    let ban = BanAgentRequest { id: wire_id(AGENT) };
    assert!(soon(world.agents(local()).ban_agent(ban)).await.is_none());
    assert_eq!(audited(&log).await, [("error".to_owned(), Some("context canceled".to_owned()))]);
}

#[tokio::test]
async fn whose_turn_comes_after_its_deadline_is_refused_at_once() {
    let world = World::new().await;
    let agent = world.attested(AGENT).await;
    let text =
        "rejecting request due to post status rate limiting: rate: Wait(n=1) would exceed context deadline";
    for _ in 0..1000 {
        let mut request = tonic::Request::new(PostStatusRequest::default());
        request.set_timeout(Duration::from_millis(1));
        if let Err(status) = world.agents(agent.clone()).post_status(request).await {
            assert_eq!((status.code(), status.message()), (Code::ResourceExhausted, text));
            return;
        }
    }
    panic!("ten a second are let through");
}

#[tokio::test(start_paused = true)]
async fn who_is_gone_does_not_wait_for_its_turn() {
    let world = World::new().await;
    let agent = world.attested(AGENT).await;
    let log = Capture::new(Level::Info);
    let _installed = log.install();
    while soon(world.agents(agent.clone()).post_status(PostStatusRequest::default())).await.is_some() {
        log.take();
    }
    let text = "rejecting request due to post status rate limiting: context canceled";
    assert_eq!(audited(&log).await, [("error".to_owned(), Some(text.to_owned()))]);
}

#[tokio::test(start_paused = true)]
async fn an_attestation_that_is_broken_off_is_audited() {
    let world = World::new().await;
    let log = Capture::new(Level::Info);
    let _installed = log.install();
    let (_ask, asked) = tokio::sync::mpsc::channel(1);
    let answers = world.agents(local()).attest_agent(ReceiverStream::new(asked)).await.unwrap();
    drop(answers);
    let text = "attestation was broken off by the agent".to_owned();
    assert_eq!(audited(&log).await, [("error".to_owned(), Some(text))]);
}

/// SPIRE's agents end each exchange of more than a page so.
#[tokio::test(start_paused = true)]
async fn a_sync_that_its_agent_ends_with_all_in_hand_went_well() {
    let metrics = Arc::new(InMem::new());
    let world = World::with(|deps| deps.metrics = metrics.clone()).await;
    let agent = world.attested(AGENT).await;
    let selectors: spire_core::spiffe::Selectors =
        [Selector::new("unix", "uid:1").unwrap()].into_iter().collect();
    let entries = (0..501).map(|n| {
        let name = EntryId::from_stored(format!("e{n:04}"));
        Entry::new(name, id(AGENT), id(&format!("/w{n}")), selectors.clone())
    });
    world.live().create(entries.collect()).await.unwrap();
    let log = Capture::new(Level::Info);
    let _installed = log.install();
    let sync = async || {
        let (ask, asked) = tokio::sync::mpsc::channel(4);
        ask.send(SyncAuthorizedEntriesRequest::default()).await.unwrap();
        let answers = world.entries(agent.clone()).sync_authorized_entries(ReceiverStream::new(asked)).await;
        (ask, answers.unwrap().into_inner())
    };
    let counted = |status| {
        let counter = format!("rpc.entry.v1.entry.sync_authorized_entries;status={status}");
        metrics.all().into_iter().any(|(key, _)| key == counter)
    };
    let (_ask, mut answers) = sync().await;
    for more in [true, false] {
        assert_eq!(answers.next().await.unwrap().unwrap().more, more);
    }
    drop(answers);
    assert_eq!(audited(&log).await, [("success".to_owned(), None)]);
    assert!(counted("OK") && !counted("Canceled"), "{:?}", metrics.all());
    log.take();
    drop(sync().await);
    assert_eq!(audited(&log).await, [("error".to_owned(), Some("the agent went away".to_owned()))]);
    assert!(counted("Canceled"));
    log.take();
    // One that knows all and stays silent is no success, whether it reads the end or not.
    let (_ask, mut answers) = sync().await;
    for more in [true, false] {
        assert_eq!(answers.next().await.unwrap().unwrap().more, more);
    }
    tokio::time::sleep(Duration::from_secs(601)).await;
    assert_eq!(audited(&log).await, [("error".to_owned(), Some("the exchange took too long".to_owned()))]);
    assert_eq!(answers.next().await.unwrap().unwrap_err().code(), Code::DeadlineExceeded);
    log.take();
    let (_ask, mut answers) = sync().await;
    answers.next().await.unwrap().unwrap();
    world.api.end_streams();
    drop(answers);
    assert_eq!(audited(&log).await, [("error".to_owned(), Some("server is stopping".to_owned()))]);
}
