//! Views as subscribers see them, and selector sets that come and go.

use spire_core::model::Entry;
use spire_core::spiffe::{Bundle, Selector, SpiffeId};
use spire_core::svids::{Limits, Rotation};
use spire_ports::observe::NoMetrics;
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::*;
use crate::fixture::domain;

fn set(values: &[&str]) -> Selectors {
    values.iter().map(|v| Selector::new("t", *v).unwrap()).collect()
}

fn identities() -> (Arc<Identities>, Clock) {
    let clock = Clock::Since { base: Timestamp::from_unix(1_000_000), start: Instant::now() };
    let cache = X509Cache::new(Bundle::empty(domain()), Rotation::default(), Limits { max_svids: 10 });
    (Identities::new(cache, clock, Arc::new(NoMetrics), Events::new()), clock)
}

fn entry(id: &str, selector: &str) -> Entry {
    let spiffe_id = SpiffeId::parse(&format!("spiffe://test.org/{id}")).unwrap();
    Entry::new(EntryId::from_stored(id), spiffe_id.clone(), spiffe_id, set(&[selector]))
}

fn add(identities: &Identities, entries: Vec<Entry>) {
    identities.apply(Delta { upserts: entries, ..Delta::default() });
}

fn issue(identities: &Identities, clock: Clock, id: &str) {
    let now = clock.now();
    let svid = X509Svid {
        spiffe_id: SpiffeId::parse("spiffe://a.org/w").unwrap(),
        chain: Vec::new(),
        private_key: Zeroizing::new(Vec::new()),
        not_before: now,
        not_after: now + Duration::from_secs(3600),
    };
    identities.issued(vec![(EntryId::from_stored(id), 0, Arc::new(svid))]);
}

#[tokio::test(start_paused = true)]
async fn a_subscriber_waits_for_its_svid_and_hears_of_changes() {
    let (identities, clock) = identities();
    add(&identities, vec![entry("a", "x")]);
    let mut first = identities.subscribe(&set(&["x", "y"]));
    let mut second = identities.subscribe(&set(&["x", "y"]));
    let mut stranger = identities.subscribe(&set(&["z"]));
    assert!(!stranger.first().await.unwrap().view.has_identity());
    let waiting = tokio::spawn(async move { (first.first().await.unwrap(), first) });
    identities.wait_for_stale().await;
    assert_eq!(identities.stale(10).1, 1);
    issue(&identities, clock, "a");
    let (served, mut first) = waiting.await.unwrap();
    assert!(served.view.has_identity());
    assert!(Arc::ptr_eq(&served, &second.first().await.unwrap()), "one view for equal selectors");
    add(&identities, vec![entry("b", "y")]);
    assert_eq!(first.changed().await.unwrap().view.matches.len(), 2);
    assert!(!stranger.views.has_changed().unwrap());
    identities.close();
    assert!(first.changed().await.is_none() && stranger.changed().await.is_none());
    assert!(identities.subscribe(&set(&["new"])).first().await.is_none(), "nothing starts after the end");
}

#[tokio::test(start_paused = true)]
async fn an_identity_that_does_not_come_keeps_no_others_back() {
    let (identities, clock) = identities();
    add(&identities, vec![entry("a", "x"), entry("b", "y")]);
    issue(&identities, clock, "a");
    let mut subscription = identities.subscribe(&set(&["x", "y"]));
    let served = subscription.first().await.unwrap();
    let ready: Vec<&str> = served.view.identities().map(|(entry, _)| entry.id.as_str()).collect();
    assert_eq!(ready, ["a"]);
    // Later the other one comes as a change, and a new workload need not wait.
    issue(&identities, clock, "b");
    assert_eq!(subscription.changed().await.unwrap().view.identities().count(), 2);
    let mut later = identities.subscribe(&set(&["x", "y"]));
    assert_eq!(later.first().await.unwrap().view.identities().count(), 2);

    // One without any waits for its first, however long that takes, and no longer.
    add(&identities, vec![entry("c", "z"), entry("d", "z")]);
    let mut poor = identities.subscribe(&set(&["z"]));
    assert!(tokio::time::timeout(READY_MAX * 10, poor.first()).await.is_err());
    issue(&identities, clock, "d");
    let served = poor.first().await.unwrap();
    assert_eq!(served.view.identities().count(), 1);
    identities.close();
    assert!(poor.first().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn idle_selector_sets_are_forgotten_and_come_back() {
    let (identities, clock) = identities();
    let workload = set(&["x"]);
    drop(identities.subscribe(&workload));
    let open = identities.subscribe(&set(&["y"]));
    let stale_handle = identities.group(&workload);
    tokio::time::advance(Duration::from_secs(30)).await;
    identities.sweep();
    assert_eq!(identities.groups.load().len(), 2, "not idle for long enough");
    tokio::time::advance(Duration::from_secs(31)).await;
    identities.sweep();
    assert_eq!(identities.groups.load().len(), 1);
    assert!(stale_handle.users.lock().forgotten);
    assert_eq!(identities.subscriber_count(), 1);
    add(&identities, vec![entry("a", "x")]);
    let mut again = identities.subscribe(&workload);
    issue(&identities, clock, "a");
    assert!(again.first().await.unwrap().view.has_identity());
    drop(open);
}

#[tokio::test(start_paused = true)]
async fn many_short_lived_selector_sets_take_no_memory() {
    let (identities, _) = identities();
    let held = identities.subscribe(&set(&["held"]));
    for n in 0..GROUPS_MAX + 10 {
        identities.look(&set(&[&n.to_string()])).unwrap();
    }
    assert!(identities.groups.load().len() <= GROUPS_MAX);
    assert!(identities.groups.load().contains_key(held.selectors()));
}

#[test]
fn loggable_selectors_are_chosen_by_prefix() {
    let selectors: Selectors = [("unix", "uid:1"), ("unix", "user:me"), ("k8s", "ns:a")]
        .iter()
        .map(|(k, v)| Selector::new(*k, *v).unwrap())
        .collect();
    let text = |allowed: &[&str]| {
        selector_text(&selectors, &allowed.iter().map(|a| (*a).to_owned()).collect::<Vec<_>>())
    };
    assert_eq!(text(&[]), "");
    assert_eq!(text(&["unix", "k8s:ns:a"]), "k8s:ns:a,unix:uid:1,unix:user:me");
    assert_eq!(text(&["unix:u", "k8"]), "");
    assert_eq!(selector_list(&set(&["a"])), "[type:\"t\" value:\"a\"]");
}
