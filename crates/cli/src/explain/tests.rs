//! What the report says.

use serde_json::json;
use spire_core::explain::Node;
use spire_core::model::{Entry, EntryId};
use spire_core::spiffe::{Selector, Selectors, SpiffeId};
use spire_wire::api::types;
use spire_wire::explain::{AttestorFailure, Explanation, Identity, Lack, NearEntry, Sync};

use super::registry::Registry;
use super::report::Report;

fn id(path: &str) -> types::Spiffeid {
    types::Spiffeid { trust_domain: "a.org".to_owned(), path: path.to_owned() }
}

fn selector(value: &str) -> types::Selector {
    types::Selector { r#type: "unix".to_owned(), value: value.to_owned() }
}

fn explanation(for_operator: bool) -> Explanation {
    let near = NearEntry {
        entry_id: "e1".to_owned(),
        spiffe_id: Some(id("/web")),
        lacks: vec![Lack { selector: Some(selector("uid:1")), instead: vec![selector("uid:0")] }],
        shared: 1,
    };
    Explanation {
        pid: 7,
        selectors: vec![selector("gid:0"), selector("uid:0")],
        sync: Some(Sync { last_success: 100, pushed: true, now: 103, ..Sync::default() }),
        agent_id: for_operator.then(|| id("/spire/agent/x/1")),
        entry_count: u32::from(for_operator),
        near: if for_operator { vec![near] } else { Vec::new() },
        ..Explanation::default()
    }
}

fn entry(name: &str, path: &str, parent: &str, selectors: &[&str]) -> Entry {
    let spiffe_id = |path: &str| SpiffeId::parse(&format!("spiffe://a.org{path}")).unwrap();
    Entry::new(EntryId::from_stored(name), spiffe_id(parent), spiffe_id(path), set(selectors))
}

fn set(values: &[&str]) -> Selectors {
    values.iter().map(|value| Selector::new("unix", *value).unwrap()).collect()
}

fn node(suffix: &str, selectors: &[&str]) -> Node {
    Node {
        id: SpiffeId::parse(&format!("spiffe://a.org/spire/agent/x/{suffix}")).unwrap(),
        selectors: set(selectors),
    }
}

#[test]
fn an_operator_sees_what_the_nearest_entries_lack() {
    let explanation = explanation(true);
    let text = Report::new(&explanation, None).text();
    assert_eq!(
        text,
        "No identity: no entry matches, for each wants a selector that the process lacks

Process     7
Agent       spiffe://a.org/spire/agent/x/1
Synced      3 s ago, the server tells of changes, 1 entry
Attested    unix:gid:0
            unix:uid:0

Nearest entries:
  spiffe://a.org/web (entry e1)
    lacks unix:uid:1 (the process has unix:uid:0)
"
    );
    let json = Report::new(&explanation, None).json();
    let lacks = json!([{"selector": "unix:uid:1", "instead": ["unix:uid:0"]}]);
    assert_eq!((&json["near"][0]["lacks"], &json["sync"]["seconds_ago"]), (&lacks, &json!(3)));
}

#[test]
fn the_server_says_where_entries_lead() {
    let entries = vec![
        entry("direct", "/a", "/spire/agent/x/1", &["uid:0"]),
        entry("node", "/node", "/spire/server", &["n:1", "n:2"]),
        entry("far", "/b", "/node", &["gid:0", "uid:0"]),
        entry("near", "/c", "/node", &["gid:0", "uid:9"]),
        entry("lost", "/d", "/nobody", &["uid:8"]),
        entry("other", "/e", "/spire/agent/x/2", &["uid:7"]),
    ];
    let registry = Registry::of(entries, vec![node("1", &["n:1"])], true);
    let mut explanation = explanation(true);
    let text = Report::new(&explanation, Some(&registry)).text();
    assert!(text.starts_with("No identity: an entry matches, but this agent does not have it\n"), "{text}");
    assert!(text.contains("1 entry of the server's 6"), "{text}");
    let (_, lists) = text.split_once("Entries that match").unwrap();
    assert_eq!(
        lists,
        " and that the agent does not have:
  spiffe://a.org/a (entry direct)
    parent spiffe://a.org/spire/agent/x/1
    leads to agent spiffe://a.org/spire/agent/x/1
  spiffe://a.org/b (entry far)
    parent spiffe://a.org/node
    does not lead to agent spiffe://a.org/spire/agent/x/1: node entry node (spiffe://a.org/node) wants unix:n:2, which \
the agent's node lacks

Nearest entries:
  spiffe://a.org/c (entry near)
    lacks unix:uid:9 (the process has unix:uid:0)
    parent spiffe://a.org/node
    does not lead to agent spiffe://a.org/spire/agent/x/1: node entry node (spiffe://a.org/node) wants unix:n:2, which \
the agent's node lacks
  spiffe://a.org/d (entry lost)
    lacks unix:uid:8 (the process has unix:uid:0)
    parent spiffe://a.org/nobody
    does not lead to agent spiffe://a.org/spire/agent/x/1: no agent and no entry has the ID spiffe://a.org/nobody
  spiffe://a.org/e (entry other)
    lacks unix:uid:7 (the process has unix:uid:0)
    parent spiffe://a.org/spire/agent/x/2
    does not lead to agent spiffe://a.org/spire/agent/x/1: spiffe://a.org/spire/agent/x/2 is another agent
"
    );

    // Without the agent's ID, an entry that leads to some agent shows that one only.
    explanation.agent_id = None;
    let nodes = vec![node("1", &["n:1"]), node("2", &["n:1", "n:2"])];
    let registry = Registry::of(
        vec![
            entry("node", "/node", "/spire/server", &["n:1", "n:2"]),
            entry("far", "/b", "/node", &["gid:0"]),
        ],
        nodes,
        false,
    );
    let text = Report::new(&explanation, Some(&registry)).text();
    let way = "    leads to agent spiffe://a.org/spire/agent/x/2 by node entry node (spiffe://a.org/node)\n";
    assert!(text.contains(way) && !text.contains("does not lead"), "{text}");
}

#[test]
fn a_process_sees_itself_and_what_is_wrong_with_its_agent() {
    let mut explanation = explanation(false);
    explanation.failures = vec![AttestorFailure { name: "docker".to_owned(), error: String::new() }];
    explanation.identities = vec![
        Identity {
            spiffe_id: Some(id("/web")),
            entry_id: "e1".to_owned(),
            x509_svid_expires_at: 163,
            missing_bundles: vec!["b.org".to_owned()],
        },
        Identity { spiffe_id: Some(id("/api")), entry_id: "e2".to_owned(), ..Identity::default() },
    ];
    let sync = Sync { pushed: false, failing: true, failed_at: 101, ..explanation.sync.unwrap() };
    explanation.sync = Some(sync);
    assert_eq!(
        Report::new(&explanation, None).text(),
        "1 of 2 identities has no X.509-SVID yet

Process     7
Synced      3 s ago, the agent asks from time to time; failed 2 s ago
Attested    unix:gid:0
            unix:uid:0
Failed      docker
Identities  spiffe://a.org/web (entry e1), X.509-SVID expires in 60 s, no bundle of b.org
            spiffe://a.org/api (entry e2), no X.509-SVID yet
"
    );
    explanation.identities.truncate(1);
    assert!(Report::new(&explanation, None).text().starts_with("The process has 1 identity\n"));
    let failed =
        Explanation { attestation_error: "workload attestation failed".to_owned(), ..Explanation::default() };
    let text = Report::new(&failed, None).text();
    assert!(
        text.starts_with("No identity: the process could not be attested: workload attestation failed\n"),
        "{text}"
    );
}
