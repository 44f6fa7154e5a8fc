//! The Entry service, and push.

use spire_wire::api::server::entry::v1::*;
use spire_wire::push::SubscribeRequest;
use spire_wire::push::update::Update;
use tokio_stream::StreamExt as _;

use super::*;

fn wire_entry(path: &str) -> types::Entry {
    types::Entry {
        spiffe_id: wire_id(path),
        parent_id: wire_id(AGENT),
        selectors: vec![types::Selector { r#type: "unix".into(), value: "uid:1".into() }],
        ..Default::default()
    }
}

async fn create(world: &World, entries: Vec<types::Entry>) -> Vec<(i32, String, Option<types::Entry>)> {
    let request = BatchCreateEntryRequest { entries, output_mask: None };
    let answer = world.entries(local()).batch_create_entry(request).await.unwrap().into_inner();
    let result = |r: batch_create_entry_response::Result| {
        let status = r.status.unwrap();
        (status.code, status.message, r.entry)
    };
    answer.results.into_iter().map(result).collect()
}

#[tokio::test]
async fn a_batch_has_a_status_an_item() {
    let world = World::new().await;
    let mut bad_hint = wire_entry("/hint");
    bad_hint.hint = "x".repeat(1025);
    let mut named = wire_entry("/named");
    named.id = "my-id".into();
    let mut bad_name = wire_entry("/bad-name");
    bad_name.id = "a/b".into();
    let results = create(
        &world,
        vec![
            wire_entry("/w"),
            wire_entry("/spire/server"),
            wire_entry("/w"),
            types::Entry { selectors: vec![], ..wire_entry("/x") },
            bad_hint,
            named,
            bad_name,
        ],
    )
    .await;
    let told: Vec<(i32, &str)> = results.iter().map(|(code, text, _)| (*code, text.as_str())).collect();
    let reserved = "failed to convert entry: invalid spiffe ID: \"spiffe://example.org/spire/server\" is not a \
                    workload in trust domain \"example.org\"; path is in the reserved namespace";
    let bad_id = "failed to create entry: datastore-validation: invalid registration entry: entry ID contains \
                  invalid characters";
    assert_eq!(
        told,
        [
            (0, "OK"),
            (3, reserved),
            (6, "similar entry already exists"),
            (3, "failed to convert entry: selector list is empty"),
            (3, "failed to convert entry: hint is too long, max length is 1024 characters"),
            (0, "OK"),
            (3, bad_id),
        ]
    );
    assert_eq!(results[0].2, results[2].2, "the existing one");
    assert_eq!(results[5].2.as_ref().unwrap().id, "my-id");
    assert_eq!(world.store.rows.lock().entries.len(), 2);
}

#[tokio::test]
async fn what_cannot_be_an_entry_is_refused_in_the_words_of_the_reference() {
    let world = World::new().await;
    let change = |change: fn(&mut types::Entry)| {
        let mut entry = wire_entry("/w");
        change(&mut entry);
        entry
    };
    let cases = [
        (change(|e| e.parent_id = None), "invalid parent ID: request must specify SPIFFE ID"),
        (
            change(|e| e.parent_id = wire_id("")),
            "invalid parent ID: \"spiffe://example.org\" is not a member of trust domain \"example.org\"; path is \
             empty",
        ),
        (
            change(|e| e.spiffe_id.as_mut().unwrap().trust_domain = "other.org".into()),
            "invalid spiffe ID: \"spiffe://other.org/w\" is not a member of trust domain \"example.org\"",
        ),
        (change(|e| e.spiffe_id = wire_id("no-slash")), "invalid spiffe ID: path must have a leading slash"),
        (
            change(|e| e.dns_names = vec!["a..b".into()]),
            "invalid DNS name: idna error\nidna: invalid label \"a..b\"",
        ),
        (change(|e| e.selectors[0].r#type = "a:b".into()), "selector type contains ':'"),
        (change(|e| e.selectors[0].value = String::new()), "missing selector value"),
        (
            change(|e| e.federates_with = vec!["Bad!".into()]),
            "invalid federated trust domain: trust domain characters are limited to lowercase letters, numbers, \
             dots, dashes, and underscores",
        ),
    ];
    for (entry, text) in cases {
        let results = create(&world, vec![entry]).await;
        assert_eq!((results[0].0, results[0].1.as_str()), (3, &*format!("failed to convert entry: {text}")));
    }
}

#[tokio::test]
async fn entries_are_found_listed_updated_and_deleted() {
    let world = World::new().await;
    for n in 0..3 {
        world.entry(&format!("e{n}"), AGENT, &format!("/w{n}"), |e| e.hint = format!("h{n}").into()).await;
    }
    let mut client = world.entries(local());
    let found = client.get_entry(GetEntryRequest { id: "e1".into(), output_mask: None }).await.unwrap();
    assert_eq!(found.into_inner().hint, "h1");
    let missing = client.get_entry(GetEntryRequest { id: "no".into(), output_mask: None }).await;
    assert_eq!(refused(missing), (Code::NotFound, "entry not found".into()));
    let none = client.get_entry(GetEntryRequest::default()).await;
    assert_eq!(refused(none), (Code::InvalidArgument, "missing ID".into()));

    let mask = types::EntryMask { hint: true, ..Default::default() };
    let request = ListEntriesRequest { page_size: 2, output_mask: Some(mask), ..Default::default() };
    let page = client.list_entries(request.clone()).await.unwrap().into_inner();
    let shown: Vec<_> = page.entries.iter().map(|e| (&*e.id, &*e.hint, e.spiffe_id.is_none())).collect();
    assert_eq!(shown, [("e0", "h0", true), ("e1", "h1", true)]);
    let request = ListEntriesRequest { page_token: page.next_page_token, ..request };
    assert_eq!(client.list_entries(request).await.unwrap().into_inner().entries.len(), 1);

    let filter = list_entries_request::Filter {
        by_selectors: Some(types::SelectorMatch::default()),
        ..Default::default()
    };
    let empty = client.list_entries(ListEntriesRequest { filter: Some(filter), ..Default::default() }).await;
    let text = "malformed selectors filter: empty selector set";
    assert_eq!(refused(empty), (Code::InvalidArgument, text.into()));

    let update = types::Entry { id: "e0".into(), hint: "new".into(), ..Default::default() };
    let request = BatchUpdateEntryRequest {
        entries: vec![update, types::Entry { id: "no".into(), ..Default::default() }],
        input_mask: Some(mask),
        output_mask: None,
    };
    let results = client.batch_update_entry(request).await.unwrap().into_inner().results;
    let updated = results[0].entry.as_ref().unwrap();
    assert_eq!((&*updated.hint, updated.revision_number, &updated.spiffe_id), ("new", 1, &wire_id("/w0")));
    assert_eq!(results[1].status.as_ref().unwrap().code, i32::from(Code::NotFound));

    let ids = vec!["e0".into(), String::new(), "no".into()];
    let results =
        client.batch_delete_entry(BatchDeleteEntryRequest { ids }).await.unwrap().into_inner().results;
    let told: Vec<_> =
        results.iter().map(|r| r.status.as_ref().unwrap()).map(|s| (s.code, &*s.message)).collect();
    assert_eq!(told, [(0, "OK"), (3, "missing entry ID"), (5, "entry not found")]);
    let count = client.count_entries(CountEntriesRequest::default()).await.unwrap().into_inner().count;
    assert_eq!(count, 2);
}

fn agent_mask() -> types::EntryMask {
    types::EntryMask {
        spiffe_id: true,
        selectors: true,
        federates_with: true,
        admin: true,
        downstream: true,
        revision_number: true,
        store_svid: true,
        hint: true,
        created_at: true,
        additional_attributes: true,
        ..Default::default()
    }
}

#[tokio::test]
async fn an_agent_gets_what_it_may_see_and_nothing_else() {
    let world = World::new().await;
    let agent = world.attested(AGENT).await;
    world.entry("mine", AGENT, "/mine", |e| e.dns_names = Box::new(["a".into()])).await;
    world.entry("theirs", "/spire/agent/x509pop/b", "/theirs", |_| {}).await;
    let other = types::EntryMask { dns_names: true, revision_number: true, ..Default::default() };
    for mask in [None, Some(agent_mask()), Some(other)] {
        let whole = world.store.rows.lock().entries[0].clone();
        let mut expected = crate::entries::entry_to_wire(&whole);
        entry::convert::apply_mask(&mut expected, mask.as_ref());
        let request = GetAuthorizedEntriesRequest { output_mask: mask };
        let got = world.entries(agent.clone()).get_authorized_entries(request).await.unwrap().into_inner();
        assert_eq!(got.entries, [expected.clone()], "{mask:?}");
        let first = SyncAuthorizedEntriesRequest { output_mask: mask, ids: vec![] };
        let requests = tokio_stream::iter([first]);
        let stream =
            world.entries(agent.clone()).sync_authorized_entries(requests).await.unwrap().into_inner();
        let got: Vec<_> = stream.collect::<Result<Vec<_>, _>>().await.unwrap();
        assert_eq!(got.len(), 1);
        assert_eq!((&got[0].entries, got[0].more), (&vec![expected], false), "{mask:?}");
    }
}

#[tokio::test]
async fn many_entries_are_synced_by_revision() {
    const COUNT: usize = 1100;
    let world = World::new().await;
    let agent = world.attested(AGENT).await;
    let selectors: spire_core::spiffe::Selectors =
        [Selector::new("unix", "uid:1").unwrap()].into_iter().collect();
    // Of all lengths: where they are long, a revision has a length of two octets.
    let name = |n: usize| format!("e{n:0width$}", width = 4 + n % 250);
    let entries = (0..COUNT).map(|n| {
        let name = EntryId::from_stored(name(n));
        Entry::new(name, id(AGENT), id(&format!("/w{n}")), selectors.clone())
    });
    world.live().create(entries.collect()).await.unwrap();

    let (ask, asked) = tokio::sync::mpsc::channel(4);
    let requests = tokio_stream::wrappers::ReceiverStream::new(asked);
    ask.send(SyncAuthorizedEntriesRequest { output_mask: Some(agent_mask()), ids: vec![] }).await.unwrap();
    let mut stream = world.entries(agent).sync_authorized_entries(requests).await.unwrap().into_inner();
    let mut ids = Vec::new();
    for expected in [(500, true), (500, true), (100, false)] {
        let page = stream.next().await.unwrap().unwrap();
        assert_eq!((page.entry_revisions.len(), page.more), expected);
        ids.extend(page.entry_revisions.into_iter().map(|r| r.id));
    }
    let sorted = |mut all: Vec<String>| {
        all.sort_unstable();
        all
    };
    assert_eq!(sorted(ids.clone()), sorted((0..COUNT).map(name).collect()));
    let mut wanted: Vec<String> = ids.iter().take(501).cloned().collect();
    wanted.reverse();
    wanted.push("not there".into());
    ask.send(SyncAuthorizedEntriesRequest { output_mask: None, ids: wanted }).await.unwrap();
    for expected in [(500, true), (1, false)] {
        let page = stream.next().await.unwrap().unwrap();
        assert_eq!((page.entries.len(), page.more), expected);
        assert!(page.entries.iter().all(|e| e.parent_id.is_none()), "the first mask stays");
    }
    drop(ask);
    assert!(stream.next().await.is_none());
}

#[tokio::test]
async fn a_sync_must_begin_as_agreed() {
    let world = World::new().await;
    let agent = world.attested(AGENT).await;
    let no_revision = types::EntryMask { spiffe_id: true, ..Default::default() };
    for (request, text) in [
        (
            SyncAuthorizedEntriesRequest { output_mask: None, ids: vec!["x".into()] },
            "specifying IDs on initial request is not supported",
        ),
        (
            SyncAuthorizedEntriesRequest { output_mask: Some(no_revision), ids: vec![] },
            "revision number cannot be masked",
        ),
    ] {
        let requests = tokio_stream::iter([request]);
        let mut stream =
            world.entries(agent.clone()).sync_authorized_entries(requests).await.unwrap().into_inner();
        let status = stream.next().await.unwrap().unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::InvalidArgument, text));
    }
}

#[tokio::test(start_paused = true)]
async fn a_change_is_pushed_and_a_ban_ends_the_stream() {
    let world = World::new().await;
    let agent = world.attested(AGENT).await;
    let stop = CancellationToken::new();
    let running = tokio::spawn(world.api.deps.live.clone().run(stop.clone()));
    let mut updates = world.push(agent).subscribe(SubscribeRequest::default()).await.unwrap().into_inner();
    let Some(Update::Changed(first)) = updates.next().await.unwrap().unwrap().update else { panic!() };
    assert!(first.entries_changed && first.bundle_changed);
    world.entry("mine", AGENT, "/mine", |_| {}).await;
    let Some(Update::Changed(second)) = updates.next().await.unwrap().unwrap().update else { panic!() };
    assert!(second.entries_changed && !second.bundle_changed && second.sequence > first.sequence);
    let ban = spire_wire::api::server::agent::v1::BanAgentRequest { id: wire_id(AGENT) };
    world.agents(local()).ban_agent(ban).await.unwrap();
    let ended = updates.next().await.unwrap().unwrap_err();
    assert_eq!(ended.code(), Code::PermissionDenied);
    assert!(updates.next().await.is_none());
    stop.cancel();
    running.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn streams_end_when_the_svid_of_their_connection_expires() {
    let world = World::new().await;
    let agent = world.attested(AGENT).await;
    world.clock.pass(3000);
    let began = tokio::time::Instant::now();
    let mut updates = world.push(agent).subscribe(SubscribeRequest::default()).await.unwrap().into_inner();
    updates.next().await.unwrap().unwrap();
    let ended = updates.next().await.unwrap().unwrap_err();
    assert_eq!(ended.message(), "agent SVID has expired");
    assert_eq!(began.elapsed().as_secs(), 601);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_stops_ends_its_streams() {
    let world = World::new().await;
    let agent = world.attested(AGENT).await;
    let mut updates =
        world.push(agent.clone()).subscribe(SubscribeRequest::default()).await.unwrap().into_inner();
    updates.next().await.unwrap().unwrap();
    let (_ask, asked) = tokio::sync::mpsc::channel(1);
    let requests = tokio_stream::wrappers::ReceiverStream::new(asked);
    let mut sync = world.entries(agent).sync_authorized_entries(requests).await.unwrap().into_inner();
    world.api.end_streams();
    assert_eq!(updates.next().await.unwrap().unwrap_err().code(), Code::Unavailable);
    assert_eq!(sync.next().await.unwrap().unwrap_err().code(), Code::Unavailable);
    assert!(updates.next().await.is_none() && sync.next().await.is_none());
    assert_eq!(world.live().changes().stream_count(), 0);
}
