//! Cases of [`Nodes`](crate::datastore::Nodes).

use std::collections::BTreeSet;
use std::sync::Arc;

use spire_core::model::{Node, NodeFilter, NodeUpdate, SelectorMatch, SetMatch};
use spire_core::spiffe::Selectors;
use spire_core::time::Timestamp;

use super::{Dice, NOW, entry, entry_id, id, node, paging, selectors};
use crate::datastore::{Consistency, DataStore, Error};

/// Every field survives, selectors too.
pub async fn an_attested_node_reads_back(store: Arc<dyn DataStore>) {
    let mut wanted = node("/spire/agent/a");
    wanted.new_serial_number = "99".into();
    wanted.new_expires_at = Some(Timestamp::from_unix(1_700_000_001));
    wanted.can_reattest = true;
    wanted.selectors = selectors(&["x:2", "x:1"]);
    assert_eq!(store.node_fetch(&wanted.spiffe_id).await, Ok(None));
    let written = store.node_attest(&wanted).await.unwrap();
    assert_eq!(written.value, wanted);
    assert_eq!(store.node_fetch(&wanted.spiffe_id).await, Ok(Some(wanted.clone())));
    let row = Node { selectors: Selectors::default(), ..wanted.clone() };
    assert_eq!(store.node_row(&wanted.spiffe_id).await, Ok(Some(row)));
    assert_eq!(store.node_row(&id("/none")).await, Ok(None));
    let plain = node("/spire/agent/b");
    store.node_attest(&plain).await.unwrap();
    let mut found =
        store.nodes_fetch(&[id("/none"), plain.spiffe_id.clone(), wanted.spiffe_id.clone()]).await.unwrap();
    found.sort_by(|a, b| a.spiffe_id.cmp(&b.spiffe_id));
    assert_eq!(found, [wanted, plain]);
}

/// One row an agent, however often it attests. It keeps the type of the first time.
pub async fn attesting_again_replaces(store: Arc<dyn DataStore>) {
    let mut wanted = node("/spire/agent/a");
    wanted.selectors = selectors(&["x:1", "x:2"]);
    wanted.new_serial_number = "5".into();
    let first = store.node_attest(&wanted).await.unwrap();
    wanted.serial_number = "777".into();
    wanted.new_serial_number = "".into();
    wanted.expires_at = Timestamp::from_unix(5);
    wanted.selectors = selectors(&["x:2", "x:3"]);
    let again = Node { attestation_type: "another".into(), ..wanted.clone() };
    let second = store.node_attest(&again).await.unwrap();
    assert!(second.event > first.event);
    assert_eq!(store.node_fetch(&wanted.spiffe_id).await, Ok(Some(wanted)));
    assert_eq!(store.node_count(&NodeFilter::default()).await, Ok(1));
}

/// `None` leaves a field as it is.
pub async fn updates_set_named_fields(store: Arc<dyn DataStore>) {
    let mut wanted = node("/spire/agent/a");
    wanted.selectors = selectors(&["x:1"]);
    assert_eq!(store.node_update(&wanted.spiffe_id, &NodeUpdate::default()).await, Err(Error::NotFound));
    store.node_attest(&wanted).await.unwrap();
    let renew = NodeUpdate {
        new_serial_number: Some("2".into()),
        new_expires_at: Some(Some(Timestamp::from_unix(1_900_000_000))),
        ..NodeUpdate::default()
    };
    wanted.new_serial_number = "2".into();
    wanted.new_expires_at = Some(Timestamp::from_unix(1_900_000_000));
    assert_eq!(store.node_update(&wanted.spiffe_id, &renew).await.unwrap().value, wanted);
    let promote = NodeUpdate {
        serial_number: Some("2".into()),
        expires_at: Some(Timestamp::from_unix(1_900_000_000)),
        new_serial_number: Some("".into()),
        new_expires_at: Some(None),
        can_reattest: Some(true),
        agent_version: Some("2.0".into()),
    };
    wanted.serial_number = "2".into();
    wanted.expires_at = Timestamp::from_unix(1_900_000_000);
    wanted.new_serial_number = "".into();
    wanted.new_expires_at = None;
    wanted.can_reattest = true;
    wanted.agent_version = "2.0".into();
    assert_eq!(store.node_update(&wanted.spiffe_id, &promote).await.unwrap().value, wanted);
    assert_eq!(store.node_fetch(&wanted.spiffe_id).await, Ok(Some(wanted)));
}

/// Row and selectors go together.
pub async fn deletion_takes_selectors_along(store: Arc<dyn DataStore>) {
    let mut wanted = node("/spire/agent/a");
    wanted.selectors = selectors(&["x:1"]);
    assert_eq!(store.node_delete(&wanted.spiffe_id).await, Err(Error::NotFound));
    store.node_attest(&wanted).await.unwrap();
    assert_eq!(store.node_delete(&wanted.spiffe_id).await.unwrap().value, wanted);
    assert_eq!(store.node_fetch(&wanted.spiffe_id).await, Ok(None));
    let left = store.node_selectors(&wanted.spiffe_id, Consistency::Current).await.unwrap();
    assert!(left.is_empty());
}

/// The entry that a join token's agent ID made goes with the agent; other entries of the agent stay.
pub async fn deletion_takes_the_token_alias_along(store: Arc<dyn DataStore>) {
    let mut agent = node("/spire/agent/join_token/t");
    let parent = "/spire/agent/join_token/t";
    let own = format!("spiffe_id:{}", agent.spiffe_id);
    let made = |name: &str, wanted: &[&str]| entry(name, parent, &format!("/{name}"), wanted);
    for kind in ["x509pop", "join_token"] {
        agent.attestation_type = kind.into();
        store.node_attest(&agent).await.unwrap();
        let entries =
            vec![made("alias", &[&own]), made("more", &[&own, "x:1"]), made("workload", &["unix:uid:1"])];
        store.entries_create(entries).await.unwrap();
        let (before, _) = store.latest_events().await.unwrap();
        store.node_delete(&agent.spiffe_id).await.unwrap();
        let gone = kind == "join_token";
        assert_eq!(store.entry_fetch(&entry_id("alias")).await.unwrap().is_none(), gone, "{kind}");
        let events = store.entry_events(before, 10).await.unwrap();
        assert_eq!(
            events.iter().map(|e| e.key.as_str()).collect::<Vec<_>>(),
            if gone { vec!["alias"] } else { vec![] }
        );
    }
    assert!(store.entry_fetch(&entry_id("more")).await.unwrap().is_some());
    assert!(store.entry_fetch(&entry_id("workload")).await.unwrap().is_some());
}

/// Banned ones stay, and those that cannot attest again unless asked for; a call takes at most its limit.
pub async fn expired_nodes_are_pruned(store: Arc<dyn DataStore>) {
    for (name, expiry, can_reattest, serial) in [
        ("valid", 20, true, "1"),
        ("banned", 10, true, ""),
        ("tofu", 10, false, "1"),
        ("a", 10, true, "1"),
        ("b", 19, true, "1"),
        ("c", 11, true, "1"),
    ] {
        let mut wanted = node(&format!("/spire/agent/{name}"));
        wanted.expires_at = Timestamp::from_unix(expiry);
        wanted.can_reattest = can_reattest;
        wanted.serial_number = serial.into();
        store.node_attest(&wanted).await.unwrap();
    }
    let before = Timestamp::from_unix(20);
    let prune = async |tofu: bool, limit: u32| {
        let pruned = store.nodes_prune(before, tofu, limit).await.unwrap();
        pruned.iter().map(|w| w.value.path().rsplit('/').next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let (_, event) = store.latest_events().await.unwrap();
    assert_eq!(prune(false, 2).await, ["a", "b"]);
    assert_eq!(prune(false, 2).await, ["c"]);
    assert_eq!(prune(true, 10).await, ["tofu"]);
    assert!(prune(true, 10).await.is_empty());
    assert_eq!(store.node_count(&NodeFilter::default()).await, Ok(2));
    assert_eq!(store.node_events(event, 10).await.unwrap().len(), 4);
}

const SELECTORS: &[&str] = &["x:1", "x:2", "y:a:b", "z:'"];
const KINDS: &[&str] = &["join_token", "x509pop"];

fn random_filter(dice: &mut Dice) -> NodeFilter {
    let matches = [SetMatch::Exact, SetMatch::Subset, SetMatch::Superset, SetMatch::Any];
    let wanted = dice.some(SELECTORS);
    let time = |dice: &mut Dice| Timestamp::from_unix(NOW.unix() + i64::try_from(dice.roll(6)).unwrap());
    NodeFilter {
        attestation_type: (dice.roll(3) == 0).then(|| dice.one(KINDS).to_owned()),
        banned: (dice.roll(3) == 0).then(|| dice.flip()),
        expires_before: (dice.roll(3) == 0).then(|| time(dice)),
        valid_at: (dice.roll(3) == 0).then(|| time(dice)),
        selectors: (dice.flip() && !wanted.is_empty()).then(|| SelectorMatch {
            selectors: selectors(&wanted),
            how: matches[usize::try_from(dice.roll(4)).unwrap()],
        }),
        can_reattest: (dice.roll(3) == 0).then(|| dice.flip()),
        fetch_selectors: dice.flip(),
    }
}

fn holds(filter: &NodeFilter, node: &Node) -> bool {
    let texts = |all: &Selectors| all.iter().map(ToString::to_string).collect::<BTreeSet<_>>();
    filter.attestation_type.as_ref().is_none_or(|wanted| *node.attestation_type == **wanted)
        && filter.banned.is_none_or(|wanted| node.serial_number.is_empty() == wanted)
        && filter.expires_before.is_none_or(|at| node.expires_at < at)
        && filter.valid_at.is_none_or(|at| node.expires_at >= at)
        && filter.can_reattest.is_none_or(|wanted| node.can_reattest == wanted)
        && filter.selectors.as_ref().is_none_or(|wanted| {
            let (row, set) = (texts(&node.selectors), texts(&wanted.selectors));
            match wanted.how {
                SetMatch::Exact => row == set,
                SetMatch::Subset => !row.is_empty() && row.is_subset(&set),
                SetMatch::Superset => row.is_superset(&set),
                SetMatch::Any => !row.is_disjoint(&set),
            }
        })
}

/// Listings, pages and counts against a naive model.
pub async fn nodes_as_a_naive_model_lists_them(store: Arc<dyn DataStore>) {
    let mut dice = Dice(0xA6E7);
    let mut model = Vec::new();
    for i in 0..60 {
        // Names out of order, so that order by row and order by name differ.
        let mut wanted = node(&format!("/spire/agent/{}", (i * 37) % 60));
        wanted.attestation_type = dice.one(KINDS).into();
        wanted.serial_number = if dice.roll(4) == 0 { "" } else { "1" }.into();
        wanted.expires_at = Timestamp::from_unix(NOW.unix() + i64::try_from(dice.roll(6)).unwrap());
        wanted.can_reattest = dice.flip();
        wanted.selectors = selectors(&dice.some(SELECTORS));
        store.node_attest(&wanted).await.unwrap();
        model.push(wanted);
    }
    let mut found = 0;
    for _ in 0..200 {
        let filter = random_filter(&mut dice);
        let mut expected: Vec<_> = model.iter().filter(|node| holds(&filter, node)).cloned().collect();
        found += expected.len();
        if !filter.fetch_selectors {
            expected.iter_mut().for_each(|node| node.selectors = Selectors::default());
        }
        assert_eq!(store.node_list(&filter, None).await.unwrap().items, expected, "{filter:?}");
        let count = store.node_count(&filter).await.unwrap();
        assert_eq!(usize::try_from(count).unwrap(), expected.len(), "{filter:?}");
        let mut paged = Vec::new();
        let mut token = String::new();
        loop {
            let page = store.node_list(&filter, Some(&paging(7, &token))).await.unwrap();
            assert_eq!(page.items.is_empty(), page.next.is_empty());
            if page.items.is_empty() {
                break;
            }
            paged.extend(page.items);
            token = page.next;
        }
        assert_eq!(paged, expected, "{filter:?}");
    }
    assert!(found > 500, "filters that match nothing prove nothing: {found}");
}

/// Also for an agent that has no row.
pub async fn selectors_are_replaced_as_a_set(store: Arc<dyn DataStore>) {
    let agent = id("/spire/agent/a");
    for wanted in [selectors(&["x:1", "x:2"]), selectors(&["x:2", "x:3"]), selectors(&[])] {
        let (_, before) = store.latest_events().await.unwrap();
        let event = store.node_selectors_set(&agent, &wanted).await.unwrap();
        assert!(event > before);
        assert_eq!(store.node_selectors(&agent, Consistency::Current).await, Ok(wanted));
    }
}
