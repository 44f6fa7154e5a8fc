//! Rounds against a server in memory: applying twice changes nothing, an export is applied without a difference, pruning
//! touches the owner's entries only.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use proptest::prelude::*;
use serde_json::{Value, json};
use spire_wire::api::types;
use spire_wire::api::types::FederationRelationship;
use tonic::Code;

use super::content::{Change, content, entry_changes, key, normalize};
use super::document::{Items, Syntax};
use super::export::{Form, yaml_item};
use super::owner::Owner;
use super::registry::{Answer, Registry};
use super::report::{Report, Tally};
use super::round::{Policy, round};
use super::sources::Sources;
use crate::env::Env;
use crate::failure::Failure;
use crate::output::Format;

#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A server: refuses what the real one refuses of entries as such.
#[derive(Clone, Default)]
struct Model {
    entries: Vec<types::Entry>,
    relationships: BTreeMap<String, FederationRelationship>,
    made: u32,
    calls: Vec<(&'static str, usize)>,
}

fn status(code: Code) -> types::Status {
    types::Status { code: i32::from(code), message: String::new() }
}

impl Model {
    fn with(entries: &[(&str, &str)]) -> Self {
        let mut model = Self::default();
        for (id, path) in entries {
            let mut entry = entry(path, &["unix:uid:1"]);
            entry.id = (*id).to_owned();
            model.entries.push(entry);
        }
        model
    }

    fn ids(&self) -> BTreeSet<&str> {
        self.entries.iter().map(|entry| entry.id.as_str()).collect()
    }
}

impl Registry for Model {
    async fn page(&mut self, token: String) -> Result<(Vec<types::Entry>, String), Failure> {
        // Tokens are IDs, as a database's are row numbers: deletions in between move nothing.
        let after = token.parse::<usize>().unwrap_or(0);
        let page: Vec<_> = self.entries.iter().skip(after).take(2).cloned().collect();
        let next = if page.len() < 2 { String::new() } else { (after + 2).to_string() };
        Ok((page, next))
    }

    async fn entry(&mut self, id: &str) -> Result<Option<types::Entry>, Failure> {
        Ok(self.entries.iter().find(|entry| entry.id == id).cloned())
    }

    async fn similar(&mut self, entry: &types::Entry) -> Result<Option<types::Entry>, Failure> {
        Ok(self.entries.iter().find(|known| key(known) == key(entry)).cloned())
    }

    async fn create(&mut self, entries: Vec<types::Entry>) -> Result<Vec<Answer>, Failure> {
        self.calls.push(("create", entries.len()));
        let mut answers = Vec::new();
        for mut entry in entries {
            if let Some(similar) = self.similar(&entry).await? {
                answers.push(Answer { status: status(Code::AlreadyExists), entry: Some(similar) });
                continue;
            }
            if self.entry(&entry.id).await?.is_some() {
                answers.push(Answer { status: status(Code::Internal), entry: None });
                continue;
            }
            if entry.id.is_empty() {
                self.made += 1;
                entry.id = format!("made-{}", self.made);
            }
            entry.created_at = 7;
            self.entries.push(entry.clone());
            answers.push(Answer { status: status(Code::Ok), entry: Some(entry) });
        }
        Ok(answers)
    }

    async fn update(&mut self, entries: Vec<types::Entry>) -> Result<Vec<Answer>, Failure> {
        self.calls.push(("update", entries.len()));
        let update = |entry: types::Entry| match self.entries.iter_mut().find(|known| known.id == entry.id) {
            Some(known) => {
                *known = types::Entry { revision_number: known.revision_number + 1, ..entry };
                Answer { status: status(Code::Ok), entry: None }
            }
            None => Answer { status: status(Code::NotFound), entry: None },
        };
        Ok(entries.into_iter().map(update).collect())
    }

    async fn delete(&mut self, ids: Vec<String>) -> Result<Vec<Answer>, Failure> {
        self.calls.push(("delete", ids.len()));
        let delete = |id: String| {
            // A hole stays, as page tokens of the model count entries.
            match self.entries.iter_mut().find(|entry| entry.id == id) {
                Some(entry) => {
                    *entry = types::Entry { id: format!("deleted-{id}"), ..Default::default() };
                    Answer { status: status(Code::Ok), entry: None }
                }
                None => Answer { status: status(Code::NotFound), entry: None },
            }
        };
        Ok(ids.into_iter().map(delete).collect())
    }

    async fn relationships(&mut self) -> Result<Vec<FederationRelationship>, Failure> {
        Ok(self.relationships.values().cloned().collect())
    }

    async fn create_relationships(
        &mut self,
        all: Vec<FederationRelationship>,
    ) -> Result<Vec<Answer>, Failure> {
        self.calls.push(("create relationships", all.len()));
        let answers = all.iter().map(|_| Answer { status: status(Code::Ok), entry: None }).collect();
        self.relationships.extend(all.into_iter().map(|r| (r.trust_domain.clone(), r)));
        Ok(answers)
    }

    async fn update_relationships(
        &mut self,
        all: Vec<FederationRelationship>,
    ) -> Result<Vec<Answer>, Failure> {
        self.create_relationships(all).await
    }

    async fn delete_relationships(&mut self, trust_domains: Vec<String>) -> Result<Vec<Answer>, Failure> {
        self.calls.push(("delete relationships", trust_domains.len()));
        let delete = |name: String| {
            let code = if self.relationships.remove(&name).is_some() { Code::Ok } else { Code::NotFound };
            Answer { status: status(code), entry: None }
        };
        Ok(trust_domains.into_iter().map(delete).collect())
    }
}

fn id(path: &str) -> Option<types::Spiffeid> {
    Some(types::Spiffeid { trust_domain: "a.org".to_owned(), path: path.to_owned() })
}

fn entry(path: &str, selectors: &[&str]) -> types::Entry {
    let selector = |text: &&str| {
        let (kind, value) = text.split_once(':').unwrap();
        types::Selector { r#type: kind.to_owned(), value: value.to_owned() }
    };
    types::Entry {
        spiffe_id: id(path),
        parent_id: id("/node"),
        selectors: selectors.iter().map(selector).collect(),
        ..Default::default()
    }
}

/// Runs a round for this text; what came of it, and what was said.
fn run(model: &mut Model, text: &str, policy: &Policy) -> (Result<Tally, String>, String) {
    let (stdout, stderr) = (Captured::default(), Captured::default());
    let mut env = Env {
        stdin: Box::new(std::io::Cursor::new(text.as_bytes().to_vec())),
        stdout: Box::new(stdout.clone()),
        stderr: Box::new(stderr.clone()),
        variables: BTreeMap::new(),
        directory: "/".into(),
        clock: SystemTime::now,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let done = Sources::open(&mut env, &["-".to_owned()]).and_then(|sources| {
        let survey = sources.survey(policy.owner.as_ref())?;
        let mut report = Report::new(&mut env, Format::Pretty, false, false);
        let tally = runtime.block_on(round(model, &sources, &survey, policy, &mut report))?;
        report.ended(tally, policy.dry_run);
        Ok(tally)
    });
    let text = |captured: &Captured| String::from_utf8(captured.0.lock().unwrap().clone()).unwrap();
    (done.map_err(|failure| failure.to_string()), text(&stdout) + &text(&stderr))
}

fn owned(prune: bool) -> Policy {
    Policy { owner: Some(Owner::parse("team").unwrap()), prune, ..Policy::default() }
}

fn tally(created: u64, updated: u64, deleted: u64, unchanged: u64, failed: u64) -> Tally {
    Tally { created, updated, deleted, unchanged, failed }
}

#[test]
fn the_life_of_a_file() {
    let mut model = Model::with(&[("someone-s", "/other")]);
    let file = "entries:
- entry_id: team.web
  spiffe_id: spiffe://a.org/web
  parent_id: spiffe://a.org/node
  selectors: [unix:uid:1, unix:gid:2]
- spiffe_id: spiffe://a.org/db
  parent_id: spiffe://a.org/node
  selectors: [unix:uid:2]
federation_relationships:
- trust_domain: b.org
  bundle_endpoint_url: https://b.org/bundle
  https_web: {}
";
    let (done, said) = run(&mut model, file, &Policy { dry_run: true, ..owned(true) });
    assert_eq!(done, Ok(tally(3, 0, 0, 0, 0)), "{said}");
    assert!(model.calls.is_empty() && model.entries.len() == 1);
    let (done, said) = run(&mut model, file, &owned(true));
    assert_eq!(done, Ok(tally(3, 0, 0, 0, 0)), "{said}");
    assert!(said.starts_with(
        "+ federation_relationship b.org  # standard input:10:3\n      bundle_endpoint_url: \"https://b.org/bundle\"\n      \
         bundle_endpoint_profile: \"https_web\"\n+ entry team.web  # standard input:2:3\n      spiffe_id: \
         \"spiffe://a.org/web\"\n      parent_id: \"spiffe://a.org/node\"\n      selectors: \
         [\"unix:gid:2\",\"unix:uid:1\"]\n+ entry team.",
    ), "{said}");
    assert!(said.ends_with("3 created, 0 updated, 0 deleted, 0 unchanged, 0 failed\n"), "{said}");
    model.calls.clear();
    let (done, said) = run(&mut model, file, &owned(true));
    assert_eq!((done, said.lines().count()), (Ok(tally(0, 0, 0, 3, 0)), 1), "{said}");
    assert!(model.calls.is_empty(), "nothing is asked for");

    // Another selector of an entry with an ID is a change of it, and what is taken out of the file goes.
    let changed = file.replace("unix:gid:2", "unix:gid:3").replace("https://b", "https://c");
    let changed = changed.replace("spiffe_id: spiffe://a.org/db", "spiffe_id: spiffe://a.org/db2");
    let (done, said) = run(&mut model, &changed, &owned(true));
    assert_eq!(done, Ok(tally(1, 2, 1, 0, 0)), "{said}");
    assert!(said.contains("      selectors: -\"unix:gid:2\" +\"unix:gid:3\"\n"), "{said}");
    assert!(
        said.contains("      bundle_endpoint_url: \"https://b.org/bundle\" -> \"https://c.org/bundle\"\n"),
        "{said}"
    );
    assert!(model.ids().contains("someone-s") && model.ids().contains("team.web"));
    assert_eq!(run(&mut model, &changed, &owned(true)).0, Ok(tally(0, 0, 0, 3, 0)));
}

#[test]
fn mistakes_are_found_before_anything_is_changed() {
    const GOOD: &str =
        "{spiffe_id: spiffe://a.org/x, parent_id: spiffe://a.org/n, selectors: [a:b], entry_id: team.x";
    let good = format!("- {GOOD}}}");
    // Each mistake is at the last place of a text in the item.
    let table = [
        (format!("- {GOOD}, ttl_x509: 5}}"), "ttl_x509", "unknown key \"ttl_x509\" of an entry"),
        (format!("- {GOOD}, admin: 1}}"), "1}", "true or false is due here"),
        (format!("- {GOOD}, x509_svid_ttl: -1}}"), "-1", "x509_svid_ttl is negative"),
        (format!("- {GOOD}, x509_svid_ttl: 2147483648}}"), "2147483648", "2147483648 is out of range"),
        (format!("- {GOOD}, hint: true}}"), "true", "a text is due here; put it into quotes"),
        (
            format!("- {GOOD}, id: team.y}}"),
            "id: team.y",
            "\"id\" and \"entry_id\" are the same; one of them is enough",
        ),
        (
            good.replace("team.x", "other.x"),
            "{",
            "the entry ID \"other.x\" is not one of owner \"team\": it has to begin with \"team.\"",
        ),
        (good.replace("team.x", "team/x"), "team/x", "entry ID contains invalid characters"),
        (good.replace("a:b", "ab"), "ab]", "selector \"ab\" must be formatted as type:value"),
        (good.replace("[a:b]", "[]"), "[]", "an entry needs a selector"),
        (good.replace("a.org/n,", "A/n,"), "spiffe://A", ""),
        ("- {}".to_owned(), "{}", "an entry needs \"spiffe_id\""),
        ("- 5".to_owned(), "5", "an entry is a mapping"),
    ];
    for (item, marked, want) in table {
        let mut model = Model::default();
        let (done, _) = run(&mut model, &format!("entries:\n{item}\n"), &owned(true));
        let column = item.rfind(marked).unwrap() + 1;
        let want = format!("nothing was changed:\nstandard input:2:{column}: {want}");
        let said = done.unwrap_err();
        assert!(said.starts_with(&want), "{item}: {said}");
        assert!(model.calls.is_empty());
    }
    let twice =
        run(&mut Model::default(), &format!("entries:\n{good}\n{good}\n"), &owned(true)).0.unwrap_err();
    assert_eq!(
        twice,
        "nothing was changed:\nstandard input:3:3: the SPIFFE ID, parent and selectors are those of the entry at standard \
         input:2:3\nstandard input:3:3: the entry ID is that of the entry at standard input:2:3"
    );
    let three = format!("entries:\n- 1\n- {GOOD}}}\n- 2\n- [\n");
    let said = run(&mut Model::default(), &three, &owned(false)).0.unwrap_err();
    assert_eq!(said.lines().count(), 4, "all are told: {said}");
}

#[test]
fn what_other_commands_take_and_print() {
    let data = json!({
        "entries": [{
            "selectors": [{ "type": "unix", "value": "uid:1" }], "spiffe_id": "spiffe://a.org/web",
            "parent_id": "spiffe://a.org/node", "x509_svid_ttl": 60, "jwt_svid_ttl": 0, "entry_id": "e1",
            "federates_with": ["spiffe://b.org"], "admin": true, "entryExpiry": 1_900_000_000, "dns_names": ["z", "a"],
            "hint": "h", "additional_attributes": { "jwt_svid_include_jti": true },
        }],
        "federationRelationships": [{
            "trustDomain": "b.org", "bundleEndpointURL": "https://b.org", "bundleEndpointProfile": "https_spiffe",
            "endpointSPIFFEID": "spiffe://b.org/server", "trustDomainBundle": null,
        }],
    });
    let shown = json!({
        "entries": [{
            "id": "e1", "spiffe_id": { "trust_domain": "a.org", "path": "/web" },
            "parent_id": { "trust_domain": "a.org", "path": "/node" },
            "selectors": [{ "type": "unix", "value": "uid:1" }], "x509_svid_ttl": 60, "federates_with": ["b.org"],
            "admin": true, "downstream": false, "expires_at": "1900000000", "dns_names": ["z", "a"],
            "revision_number": "3", "store_svid": false, "jwt_svid_ttl": 0, "hint": "h", "created_at": "1700000000",
            "additional_attributes": { "disable_x509_svid_prefetch": false, "jwt_svid_include_jti": true },
        }],
        "next_page_token": "",
    });
    let listed = json!({
        "federation_relationships": [{
            "trust_domain": "b.org", "bundle_endpoint_url": "https://b.org",
            "https_spiffe": { "endpoint_spiffe_id": "spiffe://b.org/server" },
            "trust_domain_bundle": {
                "trust_domain": "b.org", "x509_authorities": [{ "asn1": "AAAA", "tainted": false }],
                "jwt_authorities": [{ "public_key": "AAAA", "key_id": "k", "expires_at": "5", "tainted": true }],
                "wit_authorities": [], "refresh_hint": "300", "sequence_number": "2",
            },
        }],
        "next_page_token": "",
    });
    let mut model = Model::default();
    let (done, said) = run(&mut model, &data.to_string(), &Policy::default());
    assert_eq!(done, Ok(tally(2, 0, 0, 0, 0)), "{said}");
    for other in [shown, listed] {
        let (done, said) = run(&mut model, &other.to_string(), &Policy::default());
        assert_eq!(done, Ok(tally(0, 0, 0, 1, 0)), "{said}");
    }
    assert_eq!(model.entries[0].expires_at, 1_900_000_000);
    assert_eq!(model.entries[0].dns_names, ["z", "a"]);
}

#[test]
fn owners_leave_each_other_alone() {
    let item = |id: &str| {
        let id = if id.is_empty() { String::new() } else { format!("entry_id: {id}, ") };
        format!(
            "entries:\n- {{{id}spiffe_id: spiffe://a.org/web, parent_id: spiffe://a.org/node, selectors: [unix:uid:1]}}\n"
        )
    };
    // Somebody else's stands in the way, whether the file gives an ID or not.
    for id in ["team.web", ""] {
        let mut model = Model::with(&[("team2.web", "/web"), ("teamwork", "/x"), ("team.old", "/old")]);
        let (done, said) = run(&mut model, &item(id), &owned(true));
        assert_eq!(done, Ok(tally(0, 0, 1, 0, 1)), "{said}");
        assert!(said.contains("ID team2.web, which does not belong to owner"), "{said}");
        assert!(model.ids().contains("team2.web") && model.ids().contains("teamwork"));
    }
    // One's own under another name is replaced where pruning is allowed.
    let mut model = Model::with(&[("team.old", "/web")]);
    let (done, said) = run(&mut model, &item("team.web"), &owned(false));
    assert_eq!(done, Ok(tally(0, 0, 0, 0, 1)), "{said}");
    assert!(said.contains("-prune would replace it"), "{said}");
    let (done, said) = run(&mut model, &item("team.web"), &owned(true));
    assert_eq!(done, Ok(tally(1, 0, 1, 0, 0)), "{said}");
    assert!(said.starts_with("-/+ entry team.web"), "{said}");
    assert_eq!(run(&mut model, &item("team.web"), &owned(true)).0, Ok(tally(0, 0, 0, 1, 0)));
    // Without an owner, an entry of any ID is the one that the file means, and an ID that differs is a conflict.
    let mut model = Model::with(&[("uuid", "/web")]);
    assert_eq!(run(&mut model, &item(""), &Policy::default()).0, Ok(tally(0, 0, 0, 1, 0)));
    assert_eq!(run(&mut model, &item("other"), &Policy::default()).0, Ok(tally(0, 0, 0, 0, 1)));
    // Two of one owner exchange their selectors.
    let mut model = Model::with(&[("team.a", "/web"), ("team.b", "/b")]);
    let swapped = item("team.b")
        + "- {entry_id: team.a, spiffe_id: spiffe://a.org/b, parent_id: spiffe://a.org/node, selectors: [unix:uid:1]}\n";
    assert_eq!(run(&mut model, &swapped, &owned(true)).0, Ok(tally(0, 2, 0, 0, 0)));
    assert_eq!(run(&mut model, &swapped, &owned(true)).0, Ok(tally(0, 0, 0, 2, 0)));
}

#[test]
fn nothing_is_not_everything() {
    let mut model = Model::with(&[("team.a", "/a")]);
    let refused = run(&mut model, "entries: []\n", &owned(true)).0.unwrap_err();
    assert!(refused.contains("-allow-empty"), "{refused}");
    let meant = Policy { allow_empty: true, ..owned(true) };
    assert_eq!(run(&mut model, "entries: []\n", &meant).0, Ok(tally(0, 0, 1, 0, 0)));
}

#[test]
fn relationships_go_only_where_the_files_name_all_of_them() {
    let file = |names: &[&str]| {
        let item = |name: &&str| {
            format!(
                "- trust_domain: {name}\n  bundle_endpoint_url: https://{name}/bundle\n  https_web: {{}}\n"
            )
        };
        format!("federation_relationships:\n{}", names.iter().map(item).collect::<String>())
    };
    let mut model = Model::default();
    let names = |model: &Model| model.relationships.keys().cloned().collect::<Vec<_>>().join(" ");
    assert_eq!(
        run(&mut model, &file(&["b.org", "c.org", "d.org"]), &Policy::default()).0,
        Ok(tally(3, 0, 0, 0, 0))
    );
    // Pruning entries leaves relationships alone.
    let entries = Policy { allow_empty: true, ..owned(true) };
    assert_eq!(run(&mut model, &file(&["b.org"]), &entries).0, Ok(tally(0, 0, 0, 1, 0)));
    assert_eq!(names(&model), "b.org c.org d.org");
    let all = Policy { prune_federation: true, ..Policy::default() };
    let (done, said) = run(&mut model, &file(&["b.org", "e.org"]), &Policy { dry_run: true, ..all.clone() });
    assert_eq!((done, names(&model).as_str()), (Ok(tally(1, 0, 2, 1, 0)), "b.org c.org d.org"), "{said}");
    let (done, said) = run(&mut model, &file(&["b.org", "e.org"]), &all);
    assert_eq!((done, names(&model).as_str()), (Ok(tally(1, 0, 2, 1, 0)), "b.org e.org"), "{said}");
    assert!(said.contains("\n- federation_relationship c.org\n"), "{said}");
    assert_eq!(model.calls.last(), Some(&("delete relationships", 2)), "last, in one call");
    assert_eq!(run(&mut model, &file(&["b.org", "e.org"]), &all).0, Ok(tally(0, 0, 0, 2, 0)));
    // Files of entries alone are no wish to federate with nobody.
    let refused = run(&mut model, "entries: []\n", &all).0.unwrap_err();
    assert!(refused.contains("-allow-empty") && names(&model) == "b.org e.org", "{refused}");
    let meant = Policy { allow_empty: true, ..all };
    assert_eq!(run(&mut model, "entries: []\n", &meant).0, Ok(tally(0, 0, 2, 0, 0)));
}

#[test]
fn batches_are_bounded() {
    let mut file = String::from("entries:\n");
    for n in 0..1201 {
        file.push_str(&format!(
            "- {{spiffe_id: spiffe://a.org/{n}, parent_id: spiffe://a.org/node, selectors: [a:b]}}\n"
        ));
    }
    let mut model = Model::default();
    assert_eq!(run(&mut model, &file, &Policy::default()).0, Ok(tally(1201, 0, 0, 0, 0)));
    assert_eq!(model.calls, [("create", 500), ("create", 500), ("create", 201)]);
}

/// Entries that differ from each other in every way.
fn entries() -> impl Strategy<Value = Vec<types::Entry>> {
    let text =
        || prop::sample::select(vec!["", "x", "true", "5", "a: b", "ä\u{2028}\"'\\", "-", "# no", "null"]);
    let one = (
        0..4_usize,
        prop::collection::btree_set(0..4_usize, 1..3),
        (0..3_i32, 0..3_i32, 0..3_i64),
        any::<[bool; 5]>(),
        text(),
        prop::collection::vec(prop::sample::select(vec!["a.b", "b", "c.d"]), 0..3),
        prop::collection::btree_set(prop::sample::select(vec!["b.org", "c.org"]), 0..3),
        (prop::option::of(0..6_usize), any::<bool>()),
    );
    let made = one.prop_map(|(path, selectors, numbers, flags, hint, names, with, (own, is_owned))| {
        let selectors: Vec<String> = selectors.iter().map(|n| format!("unix:uid:{n}")).collect();
        let texts: Vec<&str> = selectors.iter().map(String::as_str).collect();
        let mut entry = entry(&format!("/w{path}"), &texts);
        (entry.x509_svid_ttl, entry.jwt_svid_ttl, entry.expires_at) = numbers;
        [entry.admin, entry.downstream, entry.store_svid] = [flags[0], flags[1], flags[2]];
        entry.additional_attributes = Some(types::entry::AdditionalAttributes {
            disable_x509_svid_prefetch: flags[3],
            jwt_svid_include_jti: flags[4],
        });
        entry.hint = hint.to_owned();
        entry.dns_names = names.into_iter().map(ToOwned::to_owned).collect();
        entry.federates_with = with.into_iter().map(ToOwned::to_owned).collect();
        entry.id = own.map_or(String::new(), |n| format!("{}.{n}", if is_owned { "team" } else { "other" }));
        normalize(&mut entry);
        entry
    });
    prop::collection::vec(made, 0..8).prop_map(|all| {
        let (mut keys, mut ids) = (BTreeSet::new(), BTreeSet::new());
        all.into_iter()
            .filter(|e| keys.insert(key(e)) && (e.id.is_empty() || ids.insert(e.id.clone())))
            .collect()
    })
}

/// As `spire export` writes them.
fn written(entries: &[types::Entry], form: Form) -> String {
    let items = entries.iter().map(|entry| super::export::entry_item(entry, form));
    match form {
        Form::Yaml if entries.is_empty() => "entries: []\n".to_owned(),
        Form::Yaml => {
            let items = items.enumerate().map(|(n, item)| yaml_item(&item, n == 0));
            items.fold("entries:".to_owned(), |text, item| text + &item)
        }
        Form::Json => {
            let items: Vec<Value> = items
                .map(|item| Value::Object(item.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()))
                .collect();
            json!({ "entries": items }).to_string()
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever was there and whatever the files say: with an owner and pruning, entries of others are as they were; a second round
    /// does nothing more than the first left over; and when nothing failed, the owner's entries are those of the files.
    #[test]
    fn rounds_converge(there in entries(), wanted in entries()) {
        let wanted: Vec<_> = wanted.into_iter().filter(|e| !e.id.starts_with("other")).collect();
        let mut model = Model::default();
        for (n, mut entry) in there.into_iter().enumerate() {
            if entry.id.is_empty() {
                entry.id = format!("uuid-{n}");
            }
            model.entries.push(entry);
        }
        let policy = Policy { allow_empty: true, ..owned(true) };
        let foreign = |model: &Model| -> Vec<types::Entry> {
            let others = model.entries.iter().filter(|e| !e.id.starts_with("team."));
            others.filter(|e| !e.id.starts_with("deleted-")).cloned().collect()
        };
        let before = foreign(&model);
        let file = written(&wanted, Form::Yaml);
        let first = run(&mut model, &file, &policy);
        prop_assert_eq!(foreign(&model), before, "{}", first.1);
        let first = first.0.unwrap();
        // Where two exchange what they are in two steps, the second round ends it.
        let (second, said) = run(&mut model, &file, &policy);
        let second = second.unwrap();
        if first.failed == 0 {
            prop_assert_eq!(second.changes() + second.failed, 0, "{}", said);
            let mut owned: Vec<_> = model.entries.iter().filter(|e| e.id.starts_with("team.")).map(content).collect();
            let mut due: Vec<_> = wanted.iter().map(content).collect();
            owned.sort_unstable();
            due.sort_unstable();
            prop_assert_eq!(owned, due);
        }
        let (third, said) = run(&mut model, &file, &policy);
        let third = third.unwrap();
        prop_assert!(third.changes() == 0 || second.failed > 0, "{}", said);
    }

    #[test]
    fn an_export_is_no_difference(all in entries()) {
        let mut model = Model::default();
        for (n, mut entry) in all.into_iter().enumerate() {
            if entry.id.is_empty() {
                entry.id = format!("uuid-{n}");
            }
            model.entries.push(entry);
        }
        for form in [Form::Yaml, Form::Json] {
            let text = written(&model.entries, form);
            let count = model.entries.len() as u64;
            let (done, said) = run(&mut model, &text, &Policy::default());
            prop_assert_eq!(done, Ok(tally(0, 0, 0, count, 0)), "{}\n{}", text, said);
            prop_assert!(model.calls.is_empty());
        }
    }

    #[test]
    fn texts_survive(hint in any::<String>()) {
        prop_assume!(!hint.contains('\0'));
        let mut wanted = entry("/x", &["a:b"]);
        wanted.hint = hint;
        for (form, syntax) in [(Form::Yaml, Syntax::Yaml), (Form::Json, Syntax::Json)] {
            let text = written(std::slice::from_ref(&wanted), form);
            let read = Items::new(text.as_bytes(), syntax).next();
            let (_, node) = read.map_err(|flaw| TestCaseError::fail(format!("{text}\n{flaw}")))?.unwrap();
            let read = super::desired::entry(node).map_err(|flaw| TestCaseError::fail(flaw.to_string()))?;
            prop_assert_eq!(&read.hint, &wanted.hint, "{}", text);
        }
    }
}

#[test]
fn order_of_dns_names_is_a_difference_and_order_of_sets_is_none() {
    let mut a = entry("/x", &["a:1", "b:2"]);
    let mut b = entry("/x", &["b:2", "a:1", "a:1"]);
    a.federates_with = vec!["b.org".into(), "c.org".into()];
    b.federates_with = vec!["c.org".into(), "spiffe://b.org".into()];
    b.additional_attributes = Some(Default::default());
    normalize(&mut a);
    normalize(&mut b);
    assert_eq!((entry_changes(&a, &b), key(&a), content(&a)), (vec![], key(&b), content(&b)));
    a.dns_names = vec!["a".into(), "b".into()];
    b.dns_names = vec!["b".into(), "a".into()];
    let change = Change { field: "dns_names", from: json!(["a", "b"]), to: json!(["b", "a"]) };
    assert_eq!(entry_changes(&a, &b), [change]);
    assert_ne!(content(&a), content(&b));
    assert_eq!(key(&a), key(&b));
}
