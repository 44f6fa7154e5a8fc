//! The live view over a datastore in memory: own writes, those of others, and who is woken.

use std::time::Duration;

use prost::Message;
use spire_core::model::{Attributes, Entry, EntryId, EntryMask, Node, NodeUpdate};
use spire_core::spiffe::{Selector, Selectors, SpiffeId, TrustDomain};
use spire_core::time::Timestamp;
use spire_ports::datastore::Nodes as _;
use spire_telemetry::InMem;
use spire_wire::api::types;

use super::changes::AgentStream;
use super::*;
use crate::testing::{FakeClock, MemoryStore, START};

fn td() -> TrustDomain {
    TrustDomain::parse("example.org").unwrap()
}

fn id(path: &str) -> SpiffeId {
    SpiffeId::from_path(&td(), path).unwrap()
}

fn selectors(values: &[&str]) -> Selectors {
    values.iter().map(|v| Selector::new("t", *v).unwrap()).collect()
}

fn entry(name: &str, parent: &str, path: &str, wants: &[&str]) -> Entry {
    Entry::new(EntryId::parse(name).unwrap(), id(parent), id(path), selectors(wants))
}

fn open(live: &LiveEntries, agent: &str) -> AgentStream {
    live.changes().open(&id(agent)).unwrap()
}

fn node(path: &str, has: &[&str]) -> Node {
    Node {
        spiffe_id: id(path),
        attestation_type: "x509pop".into(),
        serial_number: "1".into(),
        expires_at: Timestamp::from_unix(START + 3600),
        new_serial_number: Box::default(),
        new_expires_at: None,
        can_reattest: true,
        agent_version: Box::default(),
        selectors: selectors(has),
    }
}

const A: &str = "/spire/agent/x509pop/a";
const B: &str = "/spire/agent/x509pop/b";

async fn load(store: &Arc<MemoryStore>) -> Arc<LiveEntries> {
    LiveEntries::load(td(), store.clone(), FakeClock::new(), Intervals::default()).await.unwrap()
}

fn seen(live: &LiveEntries, agent: &str) -> Vec<String> {
    let mut names = Vec::new();
    live.view().visit_authorized(&id(agent), |record| names.push(record.id.to_string()));
    names.sort();
    names
}

/// What a stream would be woken for, now that all marks are delivered.
async fn woken(live: &LiveEntries, stream: &AgentStream) -> Option<Wake> {
    live.changes().round(&live.snapshot());
    tokio::time::timeout(Duration::ZERO, stream.woken()).await.ok()
}

fn full() -> Entry {
    let mut full = entry("full", A, "/w", &["x", "y"]);
    full.x509_svid_ttl = 10;
    full.jwt_svid_ttl = 20;
    full.federates_with = Box::new([TrustDomain::parse("other.org").unwrap()]);
    full.admin = true;
    full.downstream = true;
    full.expires_at = Timestamp::from_unix(5);
    full.dns_names = Box::new(["a.b".into(), "c".into()]);
    full.revision = 3;
    full.store_svid = true;
    full.hint = "hint".into();
    full.created_at = Timestamp::from_unix(7);
    full.attributes = Some(Attributes { disable_x509_svid_prefetch: true, jwt_svid_include_jti: true });
    full
}

#[test]
fn an_entry_is_encoded_once_for_both_questions() {
    let record = Record::new(&full(), 1, Payload::new(&full()));
    let answer = |answer: Answer| {
        let mut bytes = Vec::new();
        answer.write(&record, &mut bytes);
        assert_eq!(bytes.len(), answer.len(&record));
        types::Entry::decode(&*bytes).unwrap()
    };
    assert_eq!(answer(Answer::Whole), entry_to_wire(&full()));
    assert_eq!(Payload::decode(&record), entry_to_wire(&full()));
    let mut for_agent = entry_to_wire(&full());
    for_agent.parent_id = None;
    for_agent.x509_svid_ttl = 0;
    for_agent.jwt_svid_ttl = 0;
    for_agent.expires_at = 0;
    for_agent.dns_names = Vec::new();
    assert_eq!(answer(Answer::ForAgent), for_agent);
    let fields = record.payload.signing_fields();
    assert_eq!((fields.x509_svid_ttl, fields.jwt_svid_ttl, fields.include_jti()), (10, 20, true));
    assert_eq!(fields.dns_names, ["a.b", "c"]);
}

#[tokio::test]
async fn what_is_stored_is_there_at_the_start() {
    let store = MemoryStore::new();
    store.foreign_entry(&entry("w", A, "/w", &["x"]));
    store.foreign_entry(&entry("alias", "/spire/server", "/group", &["cluster"]));
    store.foreign_entry(&entry("below", "/group", "/below", &["x"]));
    store.rows.lock().nodes.push(node(A, &["cluster"]));
    let mut banned = node(B, &["cluster"]);
    banned.serial_number = Box::default();
    store.rows.lock().nodes.push(banned);
    let live = load(&store).await;
    assert_eq!(seen(&live, A), ["below", "w"]);
    assert_eq!(seen(&live, B), [""; 0], "a banned agent has no aliases");
}

#[tokio::test]
async fn own_writes_are_seen_at_once_and_not_read_again() {
    let store = MemoryStore::new();
    let live = load(&store).await;
    live.create(vec![entry("w", A, "/w", &["x"]), entry("v", A, "/v", &["x"])]).await.unwrap();
    assert_eq!(seen(&live, A), ["v", "w"]);
    let mut moved = entry("w", B, "/w", &["x"]);
    moved.hint = "no".into();
    let mask = EntryMask { parent_id: true, ..EntryMask::NONE };
    live.update(vec![(moved, mask)]).await.unwrap();
    assert_eq!((seen(&live, A), seen(&live, B)), (vec!["v".to_owned()], vec!["w".to_owned()]));
    let record = live.view().record(&EntryId::parse("w").unwrap()).unwrap().clone();
    assert_eq!((record.revision, Payload::decode(&record).hint), (1, String::new()));
    live.delete(&[EntryId::parse("v").unwrap()]).await.unwrap();
    assert_eq!(seen(&live, A), [""; 0]);
    // A row that only a second reading could bring in.
    store.rows.lock().entries[0].hint = "changed behind our back".into();
    live.catch_up().await.unwrap();
    let hint = || Payload::decode(live.view().record(&EntryId::parse("w").unwrap()).unwrap()).hint;
    assert_eq!(hint(), "");
    live.sweep().await.unwrap();
    assert_eq!(hint(), "changed behind our back", "but the sweep compares everything");
}

#[tokio::test]
async fn writes_of_other_servers_are_heard_by_their_events() {
    let store = MemoryStore::new();
    let live = load(&store).await;
    store.foreign_entry(&entry("w", A, "/w", &["x"]));
    assert_eq!(seen(&live, A), [""; 0]);
    live.catch_up().await.unwrap();
    assert_eq!(seen(&live, A), ["w"]);
    store.entries_delete_by_other(&EntryId::parse("w").unwrap());
    live.catch_up().await.unwrap();
    assert_eq!(seen(&live, A), [""; 0]);
}

#[tokio::test]
async fn an_event_that_becomes_visible_late_is_not_missed() {
    let store = MemoryStore::new();
    let live = load(&store).await;
    store.foreign_entry(&entry("late", A, "/late", &["x"]));
    let hidden = store.rows.lock().entry_events.remove(0);
    store.rows.lock().entries.clear();
    store
        .rows
        .lock()
        .entry_events
        .push(spire_ports::datastore::Event { id: 2, key: EntryId::parse("gone").unwrap() });
    live.catch_up().await.unwrap();
    store.rows.lock().entries.push(entry("late", A, "/late", &["x"]));
    store.rows.lock().entry_events.insert(0, hidden);
    live.catch_up().await.unwrap();
    assert_eq!(seen(&live, A), ["late"]);
}

/// A server starts while another has written but not committed: its event is lower than one that is visible.
#[tokio::test]
async fn what_commits_after_the_start_is_not_missed() {
    let store = MemoryStore::new();
    store.foreign_entry(&entry("first", A, "/first", &["x"]));
    store.foreign_entry(&entry("late", A, "/late", &["x"]));
    store.foreign_entry(&entry("last", A, "/last", &["x"]));
    let hidden = store.rows.lock().entry_events.remove(1);
    let late = store.rows.lock().entries.remove(1);
    let live = load(&store).await;
    assert_eq!(seen(&live, A), ["first", "last"]);
    {
        let mut rows = store.rows.lock();
        rows.entry_events.insert(1, hidden);
        rows.entries.insert(1, late);
    }
    live.catch_up().await.unwrap();
    assert_eq!(seen(&live, A), ["first", "last", "late"]);
}

#[tokio::test]
async fn a_sweep_sets_right_what_events_did_not_tell() {
    let store = MemoryStore::new();
    let live = load(&store).await;
    live.create(vec![entry("stays", A, "/s", &["x"]), entry("goes", A, "/g", &["x"])]).await.unwrap();
    store.rows.lock().entries.retain(|e| e.id.as_str() != "goes");
    store.rows.lock().entries.push(entry("comes", A, "/c", &["x"]));
    live.attest_node(&node(A, &["a"])).await.unwrap();
    live.attest_node(&node(B, &["b"])).await.unwrap();
    store.rows.lock().nodes.retain(|n| n.spiffe_id == id(A));
    live.sweep().await.unwrap();
    assert_eq!(seen(&live, A), ["comes", "stays"]);
    assert!(live.view().agent(&id(A)).is_some() && live.view().agent(&id(B)).is_none());
}

#[tokio::test]
async fn evicting_an_agent_takes_the_alias_of_its_token_along() {
    let store = MemoryStore::new();
    let live = load(&store).await;
    live.attest_node(&node(A, &[])).await.unwrap();
    let alias = Entry::new(
        EntryId::parse("alias").unwrap(),
        id(A),
        id("/alias"),
        [Selector::spiffe_id(&id(A))].into_iter().collect(),
    );
    live.create(vec![alias]).await.unwrap();
    assert_eq!(seen(&live, A), ["alias"]);
    live.evict_node(&id(A)).await.unwrap();
    live.catch_up().await.unwrap();
    assert_eq!(seen(&live, A), [""; 0]);
    assert!(live.view().agent(&id(A)).is_none());
}

#[tokio::test]
async fn only_agents_that_a_change_concerns_are_woken() {
    let store = MemoryStore::new();
    let live = load(&store).await;
    live.attest_node(&node(A, &["cluster", "a"])).await.unwrap();
    live.attest_node(&node(B, &["cluster", "b"])).await.unwrap();
    live.create(vec![entry("all", "/spire/server", "/all", &["cluster"])]).await.unwrap();
    live.create(vec![entry("just-b", "/spire/server", "/just-b", &["b"])]).await.unwrap();
    let (a, b) = (open(&live, A), open(&live, B));
    // What the set-up left is not for these streams, which are younger, but a round before them delivers it.
    let _ = (woken(&live, &a).await, woken(&live, &b).await);
    assert_eq!((woken(&live, &a).await, woken(&live, &b).await), (None, None));

    live.create(vec![entry("w", A, "/w", &["x"])]).await.unwrap();
    let sequence = live.changes().sequence() + 1;
    assert_eq!(woken(&live, &a).await, Some(Wake::Changed { entries: true, bundles: false, sequence }));
    assert_eq!(woken(&live, &b).await, None);

    live.create(vec![entry("under-b", "/just-b", "/x", &["x"])]).await.unwrap();
    assert_eq!(woken(&live, &a).await, None);
    assert!(woken(&live, &b).await.is_some());

    live.create(vec![entry("under-all", "/all", "/y", &["x"])]).await.unwrap();
    live.create(vec![entry("under-all-2", "/all", "/z", &["x"])]).await.unwrap();
    assert!(woken(&live, &a).await.is_some() && woken(&live, &b).await.is_some());
    assert_eq!(woken(&live, &a).await, None, "two changes came as one");

    live.delete(&[EntryId::parse("under-b").unwrap()]).await.unwrap();
    assert_eq!(woken(&live, &a).await, None);
    assert!(woken(&live, &b).await.is_some());

    live.changes().bundle_changed();
    let wake = woken(&live, &a).await;
    assert!(matches!(wake, Some(Wake::Changed { entries: false, bundles: true, .. })), "{wake:?}");
}

#[tokio::test]
async fn a_ban_ends_streams_wherever_it_was_made() {
    let store = MemoryStore::new();
    let live = load(&store).await;
    live.attest_node(&node(A, &["a"])).await.unwrap();
    live.attest_node(&node(B, &["b"])).await.unwrap();
    let (a, b) = (open(&live, A), open(&live, B));
    let ban = NodeUpdate {
        serial_number: Some(Box::default()),
        new_serial_number: Some(Box::default()),
        ..NodeUpdate::default()
    };
    live.update_node(&id(A), &ban).await.unwrap();
    assert_eq!(woken(&live, &a).await, Some(Wake::Ended));
    a.ended().await;
    assert_ne!(woken(&live, &b).await, Some(Wake::Ended));
    // By another server.
    spire_ports::datastore::Nodes::node_update(&*store, &id(B), &ban).await.unwrap();
    live.catch_up().await.unwrap();
    assert_eq!(woken(&live, &b).await, Some(Wake::Ended));
    drop((a, b));
    assert_eq!(live.changes().stream_count(), 0);
}

/// The row of another server's eviction is read, and the agent attests again before that is taken in.
#[tokio::test]
async fn an_agent_that_attests_again_is_not_lost_to_its_removal() {
    let store = MemoryStore::new();
    let live = load(&store).await;
    live.attest_node(&node(A, &["x"])).await.unwrap();
    store.node_delete(&id(A)).await.unwrap();
    store.silent.send_replace(true);
    let catching_up = tokio::spawn({
        let live = live.clone();
        async move { live.catch_up().await }
    });
    let asked = store.asked.load(std::sync::atomic::Ordering::Relaxed);
    while store.asked.load(std::sync::atomic::Ordering::Relaxed) == asked {
        tokio::task::yield_now().await;
    }
    live.attest_node(&node(A, &["x"])).await.unwrap();
    let stream = open(&live, A);
    store.silent.send_replace(false);
    catching_up.await.unwrap().unwrap();
    assert!(live.view().agent(&id(A)).is_some());
    assert_ne!(woken(&live, &stream).await, Some(Wake::Ended));
}

#[tokio::test]
async fn an_update_keeps_the_selectors_of_an_agent() {
    let store = MemoryStore::new();
    let live = load(&store).await;
    live.attest_node(&node(A, &["cluster"])).await.unwrap();
    let renewed = NodeUpdate { new_serial_number: Some("2".into()), ..NodeUpdate::default() };
    live.update_node(&id(A), &renewed).await.unwrap();
    assert_eq!(live.view().agent(&id(A)).unwrap().selectors, selectors(&["cluster"]));
}

#[tokio::test]
async fn so_many_expired_agents_are_pruned_at_a_time_and_no_more() {
    let store = MemoryStore::new();
    let live = load(&store).await;
    for name in ["a", "b", "c"] {
        live.attest_node(&node(&format!("/spire/agent/x509pop/{name}"), &[])).await.unwrap();
    }
    let later = Timestamp::from_unix(START + 3601);
    let mut left = Vec::new();
    for _ in 0..3 {
        assert!(live.prune_nodes(later, false, 2).await.unwrap() <= 2);
        left.push((store.rows.lock().nodes.len(), live.view().agent(&id(A)).is_some()));
    }
    assert_eq!(left, [(1, false), (0, false), (0, false)]);
}

#[tokio::test]
async fn expired_entries_are_pruned_from_store_and_view() {
    let store = MemoryStore::new();
    let live = load(&store).await;
    let mut short = entry("short", A, "/s", &["x"]);
    short.expires_at = Timestamp::from_unix(START + 10);
    live.create(vec![short, entry("long", A, "/l", &["x"])]).await.unwrap();
    assert_eq!(live.prune(Timestamp::from_unix(START + 10)).await, Ok(0));
    assert_eq!(live.prune(Timestamp::from_unix(START + 11)).await, Ok(1));
    assert_eq!(seen(&live, A), ["long"]);
}

#[tokio::test(start_paused = true)]
async fn the_running_view_wakes_streams_and_stops() {
    let store = MemoryStore::new();
    let live = load(&store).await;
    live.attest_node(&node(A, &[])).await.unwrap();
    let stream = open(&live, A);
    let stop = CancellationToken::new();
    let running = tokio::spawn(live.clone().run(stop.clone()));
    live.create(vec![entry("w", A, "/w", &["x"])]).await.unwrap();
    assert!(matches!(stream.woken().await, Wake::Changed { entries: true, .. }));
    store.foreign_entry(&entry("v", A, "/v", &["x"]));
    assert!(matches!(stream.woken().await, Wake::Changed { entries: true, .. }));
    assert_eq!(seen(&live, A), ["v", "w"]);
    stop.cancel();
    running.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn every_interval_is_the_configured_one() {
    let store = MemoryStore::new();
    let seconds = Duration::from_secs;
    let intervals = Intervals {
        catch_up: seconds(10),
        sweep: seconds(100),
        event_timeout: seconds(15 * 60),
        prune_events_older_than: seconds(50),
    };
    let live = LiveEntries::load(td(), store.clone(), FakeClock::new(), intervals).await.unwrap();
    let stop = CancellationToken::new();
    let running = tokio::spawn(live.clone().run(stop.clone()));
    // The first look comes at once.
    tokio::time::sleep(seconds(1)).await;
    store.foreign_entry(&entry("told", A, "/t", &["x"]));
    store.rows.lock().entries.push(entry("untold", A, "/u", &["x"]));
    tokio::time::sleep(seconds(8)).await;
    assert_eq!(seen(&live, A), [""; 0]);
    tokio::time::sleep(seconds(2)).await;
    assert_eq!(seen(&live, A), ["told"], "cache_reload_interval");
    assert!(store.rows.lock().events_pruned.is_empty());
    tokio::time::sleep(seconds(15)).await;
    assert_eq!(
        store.rows.lock().events_pruned,
        [Timestamp::from_unix(START - 50)],
        "prune_events_older_than"
    );
    tokio::time::sleep(seconds(73)).await;
    assert_eq!(seen(&live, A), ["told"]);
    tokio::time::sleep(seconds(2)).await;
    assert_eq!(seen(&live, A), ["told", "untold"], "full_cache_reload_interval");
    stop.cancel();
    running.await.unwrap();
}

#[tokio::test]
async fn sizes_and_reloads_are_measured() {
    let store = MemoryStore::new();
    let metrics = Arc::new(InMem::new());
    let intervals = Intervals::default();
    let live = LiveEntries::load_measured(td(), store, FakeClock::new(), intervals, metrics.clone());
    let live = live.await.unwrap();
    live.attest_node(&node(A, &["cluster"])).await.unwrap();
    live.create(vec![entry("w", A, "/w", &["x"]), entry("all", "/spire/server", "/all", &["cluster"])])
        .await
        .unwrap();
    live.emit_sizes().await;
    for (name, value) in [
        ("node.agents_by_id_cache.count", 1.0),
        ("entry.entries_by_entryid_cache.count", 2.0),
        ("entry.nodealiases_by_entryid_cache.count", 1.0),
        ("entry.nodealiases_by_selector_cache.count", 1.0),
        ("entry.skipped_entry_event_ids.count", 0.0),
    ] {
        assert_eq!(metrics.series(name).unwrap().last, value, "{name}");
    }
    assert_eq!(metrics.series("entry.cache.reload;status=OK").unwrap().count, 1);
    live.sweep().await.unwrap();
    assert_eq!(metrics.series("entry.cache.reload;status=OK").unwrap().count, 2);
}

/// Prints what an entry costs; read it with `--nocapture`. It is not asserted: the allocator decides.
#[test]
#[expect(clippy::print_stdout, reason = "a measurement")]
fn memory_of_fifty_thousand_entries() {
    const COUNT: usize = 50_000;
    fn resident() -> usize {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
        let pages = statm.split(' ').nth(1).and_then(|n| n.parse::<usize>().ok()).unwrap_or_default();
        pages * 4096
    }
    let mut view = View::new(td());
    let before = resident();
    for n in 0..COUNT {
        let name = format!("0f1e2d3c-4b5a-6978-8796-{n:012}");
        let mut one = entry(&name, A, &format!("/ns/default/sa/workload-{n}"), &[]);
        one.parent_id = id(&format!("/spire/agent/x509pop/{}", n / 500));
        one.selectors = [format!("uid:{n}"), "gid:1000".into()]
            .into_iter()
            .map(|v| Selector::new("unix", v).unwrap())
            .collect();
        view.upsert(Record::new(&one, n as u64, Payload::new(&one)));
    }
    let used = resident().saturating_sub(before);
    println!("{} bytes an entry", used / COUNT);
    assert_eq!(view.len(), COUNT);
}
