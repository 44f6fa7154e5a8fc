//! Policies of users, good and bad.

use std::fs;
use std::path::Path;

use prost::Message as _;
use regorus::Value;
use spire_ports::policy::{Decision, Policy, Question, Undecided};
use spire_wire::api::server::entry::v1::{BatchCreateEntryRequest, ListEntriesRequest, list_entries_request};
use spire_wire::api::server::trustdomain::v1::BatchCreateFederationRelationshipRequest;
use spire_wire::api::types::{
    Entry, EntryMask, FederationRelationship, HttpsWebProfile, Selector, SelectorMatch, Spiffeid,
    X509Certificate, federation_relationship::BundleEndpointProfile,
};

use super::{PolicyError, RegoPolicy};
use crate::request::Requests;

const CREATE: &str = "/spire.api.server.entry.v1.Entry/BatchCreateEntry";
const LIST: &str = "/spire.api.server.entry.v1.Entry/ListEntries";
const ATTEST: &str = "/spire.api.server.agent.v1.Agent/AttestAgent";

/// A policy whose `allow` has these conditions; the other rules are false.
fn allowing(conditions: &str) -> String {
    format!(
        r#"package spire
result := {{
    "allow": allow,
    "allow_if_local": false, "allow_if_admin": false, "allow_if_downstream": false, "allow_if_agent": false,
}}
default allow := false
allow if {{
    {conditions}
}}
"#
    )
}

fn policy(module: &str) -> Result<RegoPolicy, PolicyError> {
    RegoPolicy::new("policy.rego", module.to_owned(), Value::new_object())
}

fn allows(policy: &RegoPolicy, question: Question<'_>) -> bool {
    policy.decide(&question).expect("a decision").allow
}

const NOBODY: Question<'static> =
    Question { caller: "", caller_file_path: "", full_method: ATTEST, request: None };

fn entry(path: &str) -> Entry {
    let id = |path: &str| Some(Spiffeid { trust_domain: "example.org".to_owned(), path: path.to_owned() });
    Entry {
        spiffe_id: id(path),
        parent_id: id("/host"),
        selectors: vec![Selector { r#type: "unix".to_owned(), value: "uid:1000".to_owned() }],
        ..Entry::default()
    }
}

#[test]
fn every_part_of_the_input_can_be_looked_at() {
    let question = Question { caller: "spiffe://example.org/me", ..NOBODY };
    for (conditions, expected) in [
        ("1 == 2", false),
        ("input.caller == \"spiffe://example.org/me\"", true),
        ("input.caller == \"spiffe://example.org/you\"", false),
        ("startswith(input.full_method, \"/spire.api.server.agent.\")", true),
        ("input.caller_file_path == \"\"", true),
        ("input.req == null", true),
        ("input.req.x", false),
    ] {
        let policy = policy(&allowing(conditions)).expect(conditions);
        assert_eq!(allows(&policy, question), expected, "{conditions}");
    }
    let local = Question { caller_file_path: "/usr/bin/tool", ..NOBODY };
    let by_path = policy(&allowing("input.caller_file_path == \"/usr/bin/tool\"")).expect("loads");
    assert!(allows(&by_path, local) && !allows(&by_path, NOBODY));
}

#[test]
fn a_policy_judges_what_is_asked_for() {
    let only_db = policy(&allowing(
        "every entry in input.req.entries { startswith(entry.spiffe_id.path, \"/db/\") }\n    input.req.entries",
    ))
    .expect("loads");
    let asked = |entries: Vec<Entry>| {
        let request = BatchCreateEntryRequest { entries, output_mask: None }.encode_to_vec();
        allows(&only_db, Question { full_method: CREATE, request: Some(&request), ..NOBODY })
    };
    assert!(asked(vec![entry("/db/a"), entry("/db/b")]));
    assert!(!asked(vec![entry("/db/a"), entry("/web")]));
    assert!(!asked(vec![]));
}

/// What `encoding/json` makes of the Go structs of these requests; written down from Go's output.
#[test]
fn requests_look_as_go_shows_them() {
    let requests = Requests::of_server();
    let shown = |method: &str, message: Vec<u8>| {
        let value = requests.value(method, &message).expect("a request");
        serde_json::from_str::<serde_json::Value>(&value.to_json_str().expect("JSON")).expect("JSON")
    };
    let create = BatchCreateEntryRequest {
        entries: vec![Entry {
            x509_svid_ttl: -1,
            expires_at: i64::MAX,
            dns_names: vec!["a".to_owned(), String::new()],
            admin: true,
            ..entry("/w")
        }],
        output_mask: Some(EntryMask::default()),
    };
    assert_eq!(
        shown(CREATE, create.encode_to_vec()),
        serde_json::json!({
            "entries": [{
                "spiffe_id": {"trust_domain": "example.org", "path": "/w"},
                "parent_id": {"trust_domain": "example.org", "path": "/host"},
                "selectors": [{"type": "unix", "value": "uid:1000"}],
                "x509_svid_ttl": -1, "admin": true, "expires_at": i64::MAX, "dns_names": ["a", ""],
            }],
            "output_mask": {},
        })
    );
    let list = ListEntriesRequest {
        filter: Some(list_entries_request::Filter {
            by_selectors: Some(SelectorMatch { selectors: vec![], r#match: 2 }),
            by_hint: Some(String::new()),
            by_downstream: Some(false),
            ..Default::default()
        }),
        page_size: 5,
        ..Default::default()
    };
    assert_eq!(
        shown(LIST, list.encode_to_vec()),
        serde_json::json!({
            "filter": {"by_selectors": {"match": 2}, "by_hint": {}, "by_downstream": {}}, "page_size": 5,
        })
    );
    let federate = |profile| {
        let one = FederationRelationship {
            trust_domain: "b.test".to_owned(),
            bundle_endpoint_profile: profile,
            trust_domain_bundle: Some(spire_wire::api::types::Bundle {
                x509_authorities: vec![X509Certificate { asn1: vec![1, 2, 255].into(), tainted: false }],
                ..Default::default()
            }),
            ..Default::default()
        };
        let request = BatchCreateFederationRelationshipRequest {
            federation_relationships: vec![one],
            output_mask: None,
        };
        let method = "/spire.api.server.trustdomain.v1.TrustDomain/BatchCreateFederationRelationship";
        shown(method, request.encode_to_vec())["federation_relationships"][0].clone()
    };
    assert_eq!(
        federate(Some(BundleEndpointProfile::HttpsWeb(HttpsWebProfile {}))),
        serde_json::json!({
            "trust_domain": "b.test", "BundleEndpointProfile": {"HttpsWeb": {}},
            "trust_domain_bundle": {"x509_authorities": [{"asn1": "AQL/"}]},
        })
    );
    assert_eq!(federate(None)["BundleEndpointProfile"], serde_json::Value::Null);
    assert_eq!(shown("/grpc.health.v1.Health/Check", vec![]), serde_json::json!({}));
}

#[test]
fn no_request_has_a_field_that_cannot_be_shown() {
    assert_eq!(Requests::of_server().unsupported(), Vec::<String>::new());
}

#[test]
fn malformed_and_immense_requests_are_not_judged() {
    let open = policy(&allowing("true")).expect("loads");
    let decided =
        |request: &[u8]| open.decide(&Question { full_method: CREATE, request: Some(request), ..NOBODY });
    for bad in [&[0x0a][..], &[0x0a, 5, 1], &[0xff; 20], &[0x0a, 2, 0x0a, 0xff], &[0x0b], &[0x08, 1]] {
        assert!(matches!(decided(bad), Err(Undecided::Malformed(_))), "{bad:?}");
    }
    // Two octets make one entry.
    let immense = [0x0a, 0].repeat(300_000);
    assert!(matches!(decided(&immense), Err(Undecided::TooLarge { .. })));
    decided(&[0x0a, 0].repeat(1000)).expect("1,000 empty entries");
    let unknown = Question { full_method: "/no.Such/Method", request: Some(&[]), ..NOBODY };
    assert!(matches!(open.decide(&unknown), Err(Undecided::Malformed(_))));
}

#[test]
fn bad_policies_are_refused_with_their_place() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("my.rego");
    let name = path.display();
    let refused = |module: &str| {
        fs::write(&path, module).expect("written");
        RegoPolicy::load(&path, None).expect_err(module).to_string()
    };
    let no_if = refused("package spire\n\nallow = true { 1 == 1 }\n");
    assert!(no_if.starts_with(&format!("{name}:3:")), "{no_if}");
    let unfinished = refused("package spire\n\nresult := {\n");
    assert!(unfinished.starts_with(&format!("{name}:")), "{unfinished}");
    let unknown = refused(&allowing("no_such_function(1)"));
    assert!(unknown.contains("no_such_function") && unknown.contains(&format!("{name}:8:")), "{unknown}");
    let misconfigured =
        "authpolicy engine failed to validate on sample test inputs: policy is misconfigured: ";
    for (module, fault) in [
        ("package other\nresult := {}\n", "policy: no matching policies found"),
        ("package spire\nresult := 1 if input.nothing\n", "policy: no matching policies found"),
        ("package spire\nresult := true\n", "unexpected type in evaluating policy result expression"),
        ("package spire\nresult := {}\n", "policy: result did not contain \"allow\" bool value"),
        ("package spire\nresult := {\"allow\": 1}\n", "policy: result did not contain \"allow\" bool value"),
    ] {
        assert_eq!(refused(module), format!("{misconfigured}{fault}"), "{module}");
    }
    let missing = RegoPolicy::load(&folder.path().join("none"), None).expect_err("no file").to_string();
    assert!(missing.contains("No such file"), "{missing}");

    fs::write(&path, allowing("true")).expect("written");
    let data = folder.path().join("data.json");
    for (text, place) in [("{\n  \"a\": }", "line 2 column"), ("[]", "not an object"), ("", "EOF")] {
        fs::write(&data, text).expect("written");
        let error = RegoPolicy::load(&path, Some(&data)).expect_err(text).to_string();
        assert!(error.starts_with("error decoding JSON databindings: ") && error.contains(place), "{error}");
    }
}

#[test]
fn a_policy_that_does_not_end_is_ended() {
    let endless = "    count([1 | some a in numbers.range(1, 3000); some b in numbers.range(1, 3000)]) > 0";
    let conditions = format!("input.caller == \"spiffe://example.org/slow\"\n{endless}");
    let policy = policy(&allowing(&conditions)).expect("loads");
    assert!(!allows(&policy, NOBODY));
    let slow = policy.decide(&Question { caller: "spiffe://example.org/slow", ..NOBODY });
    assert!(matches!(slow, Err(Undecided::Policy(_))), "{slow:?}");
}

/// The policy in `conf/policy`; that it decides as the server does by itself is tested where the server is.
#[test]
fn the_sample_policy_loads() {
    let conf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../conf/policy");
    let policy = RegoPolicy::load(&conf.join("policy.rego"), Some(&conf.join("policy_data.json")));
    let decision = policy.expect("loads").decide(&NOBODY).expect("a decision");
    assert_eq!(decision, Decision { allow: true, ..Decision::default() });
}
