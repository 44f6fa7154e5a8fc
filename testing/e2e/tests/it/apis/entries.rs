//! Registration entries.

use spire_wire::api::server::entry::v1 as entry;
use spire_wire::api::server::entry::v1::list_entries_request::Filter;
use spire_wire::api::types;

use super::calls::{ENTRY, create, id, id_of, new_entry, selector};
use super::client::Client;

/// Entries by what is special about them.
fn peculiar_entries() -> Vec<(&'static str, types::Entry)> {
    let attributes = |prefetch, jti| types::entry::AdditionalAttributes {
        disable_x509_svid_prefetch: prefetch,
        jwt_svid_include_jti: jti,
    };
    vec![
        (
            "whole",
            new_entry("/whole", |e| {
                e.id = "my-entry.1_A".into();
                e.selectors = vec![selector("a", "2:3"), selector("z", "1")];
                (e.x509_svid_ttl, e.jwt_svid_ttl, e.expires_at) = (60, 30, 4_000_000_000);
                (e.admin, e.downstream, e.store_svid) = (true, true, false);
                e.dns_names = vec!["*.a.example.org".into(), "b.example.org".into()];
                e.hint = "a hint".into();
                e.revision_number = 7;
                e.created_at = 7;
                e.additional_attributes = Some(attributes(true, true));
            }),
        ),
        ("plain", new_entry("/plain", |_| {})),
        ("again", new_entry("/plain", |e| e.x509_svid_ttl = 5)),
        ("id in use", new_entry("/other", |e| e.id = "my-entry.1_A".into())),
        ("no parent", new_entry("/x", |e| e.parent_id = None)),
        ("no id", new_entry("/x", |e| e.spiffe_id = None)),
        ("empty path", new_entry("", |_| {})),
        ("empty parent path", new_entry("/x", |e| e.parent_id = id(""))),
        ("server's parent", new_entry("/x", |e| e.parent_id = id("/spire/server"))),
        ("reserved", new_entry("/spire/agent/x", |_| {})),
        ("reserved root", new_entry("/spire", |_| {})),
        ("other trust domain", new_entry("/x", |e| e.spiffe_id = id_of("other.test", "/x"))),
        ("other parent", new_entry("/x", |e| e.parent_id = id_of("other.test", "/x"))),
        ("bad trust domain", new_entry("/x", |e| e.spiffe_id = id_of("Other", "/x"))),
        ("no trust domain", new_entry("/x", |e| e.spiffe_id = id_of("", "/x"))),
        ("dots", new_entry("/a/../b", |_| {})),
        ("two slashes", new_entry("/a//b", |_| {})),
        ("last slash", new_entry("/a/", |_| {})),
        ("no slash", new_entry("a", |_| {})),
        ("bad letter", new_entry("/a b", |_| {})),
        ("no selectors", new_entry("/x", |e| e.selectors.clear())),
        ("no selector type", new_entry("/x", |e| e.selectors = vec![selector("", "v")])),
        ("colon in type", new_entry("/x", |e| e.selectors = vec![selector("a:b", "v")])),
        ("no selector value", new_entry("/x", |e| e.selectors = vec![selector("a", "")])),
        ("hint", new_entry("/x", |e| e.hint = "h".repeat(1025))),
        ("long hint", new_entry("/hint", |e| e.hint = "h".repeat(1024))),
        ("negative ttl", new_entry("/x", |e| e.x509_svid_ttl = -1)),
        ("negative jwt ttl", new_entry("/x", |e| e.jwt_svid_ttl = -1)),
        ("negative expiry", new_entry("/x", |e| e.expires_at = -1)),
        ("unknown trust domain", new_entry("/x", |e| e.federates_with = vec!["other.test".into()])),
        ("bad federated", new_entry("/x", |e| e.federates_with = vec!["Bad".into()])),
        ("entry id", new_entry("/x", |e| e.id = "has space".into())),
        ("long entry id", new_entry("/x", |e| e.id = "i".repeat(256))),
        (
            "store mixed",
            new_entry("/x", |e| {
                e.store_svid = true;
                e.selectors = vec![selector("a", "1"), selector("b", "1")];
            }),
        ),
        (
            "store and no prefetch",
            new_entry("/x", |e| {
                e.store_svid = true;
                e.additional_attributes = Some(attributes(true, false));
            }),
        ),
        ("store", new_entry("/store", |e| e.store_svid = true)),
    ]
}

/// Filters of both requests.
fn list_filters() -> Vec<(String, Filter)> {
    let selectors = |how, list: &[(&str, &str)]| {
        let selectors = list.iter().map(|(kind, value)| selector(kind, value)).collect();
        Some(types::SelectorMatch { selectors, r#match: how })
    };
    let federates = |how, names: &[&str]| {
        let trust_domains = names.iter().map(|name| (*name).to_owned()).collect();
        Some(types::FederatesWithMatch { trust_domains, r#match: how })
    };
    let mut filters: Vec<(String, Filter)> = vec![
        ("none".into(), Filter::default()),
        ("id".into(), Filter { by_spiffe_id: id("/plain"), ..Default::default() }),
        ("reserved id".into(), Filter { by_spiffe_id: id("/spire/agent/a"), ..Default::default() }),
        ("bad id".into(), Filter { by_spiffe_id: id_of("x y", "/"), ..Default::default() }),
        ("parent".into(), Filter { by_parent_id: id("/host"), ..Default::default() }),
        ("bad parent".into(), Filter { by_parent_id: id_of("other.test", "/host"), ..Default::default() }),
        ("hint".into(), Filter { by_hint: Some("a hint".into()), ..Default::default() }),
        ("empty hint".into(), Filter { by_hint: Some(String::new()), ..Default::default() }),
        ("downstream".into(), Filter { by_downstream: Some(true), ..Default::default() }),
        ("not downstream".into(), Filter { by_downstream: Some(false), ..Default::default() }),
        (
            "both".into(),
            Filter { by_parent_id: id("/host"), by_spiffe_id: id("/whole"), ..Default::default() },
        ),
        ("no selectors".into(), Filter { by_selectors: selectors(0, &[]), ..Default::default() }),
        ("bad selector".into(), Filter { by_selectors: selectors(0, &[("", "x")]), ..Default::default() }),
        ("no trust domains".into(), Filter { by_federates_with: federates(0, &[]), ..Default::default() }),
        (
            "bad trust domain".into(),
            Filter { by_federates_with: federates(0, &["B ad"]), ..Default::default() },
        ),
    ];
    for how in 0..4 {
        for list in [
            &[("z", "1")][..],
            &[("z", "1"), ("a", "2:3")],
            &[("z", "1"), ("a", "2:3"), ("q", "q")],
            &[("q", "q")],
        ] {
            let filter = Filter { by_selectors: selectors(how, list), ..Default::default() };
            filters.push((format!("selectors {how} {}", list.len()), filter));
        }
        let filter = Filter { by_federates_with: federates(how, &["other.test"]), ..Default::default() };
        filters.push((format!("federates {how}"), filter));
    }
    filters
}

pub(super) async fn entries(client: &mut Client) {
    let cases = peculiar_entries();
    for (name, entry) in cases {
        call!(client, name, ENTRY, "BatchCreateEntry", create(vec![entry]) => entry::BatchCreateEntryResponse);
    }
    for name in [
        "",
        " ",
        "a",
        "A.b",
        "a.",
        ".a",
        "a..b",
        "*",
        "*.",
        "*.a",
        "a.*",
        "*a.b",
        "*.*.a",
        "-a",
        "a-",
        "a_b",
        "a b",
        "ä.de",
        "xn--mller-kva.de",
        "ab--c",
        "1.2.3.4",
        "a/b",
        "https://a",
    ] {
        let entry = new_entry("/dns", |e| {
            e.dns_names = vec![name.to_owned()];
            e.selectors = vec![selector("dns", &format!("{name}x"))];
        });
        call!(client, &format!("dns {name:?}"), ENTRY, "BatchCreateEntry", create(vec![entry]) => entry::BatchCreateEntryResponse);
    }
    let mixed = entry::BatchCreateEntryRequest {
        entries: vec![
            new_entry("/m1", |_| {}),
            new_entry("", |_| {}),
            new_entry("/m1", |_| {}),
            new_entry("/m2", |_| {}),
        ],
        output_mask: Some(types::EntryMask { spiffe_id: true, ..Default::default() }),
    };
    call!(client, "mixed, masked", ENTRY, "BatchCreateEntry", mixed => entry::BatchCreateEntryResponse);
    call!(client, "nothing", ENTRY, "BatchCreateEntry", create(vec![]) => entry::BatchCreateEntryResponse);
}

pub(super) async fn filters(client: &mut Client) {
    let filters = list_filters();
    for (name, filter) in filters {
        // EntryFilter of both requests has the same fields.
        let count = entry::CountEntriesRequest {
            filter: Some(entry::count_entries_request::Filter {
                by_spiffe_id: filter.by_spiffe_id.clone(),
                by_parent_id: filter.by_parent_id.clone(),
                by_selectors: filter.by_selectors.clone(),
                by_federates_with: filter.by_federates_with.clone(),
                by_hint: filter.by_hint.clone(),
                by_downstream: filter.by_downstream,
            }),
        };
        call!(client, &name, ENTRY, "CountEntries", count => entry::CountEntriesResponse);
        let list = entry::ListEntriesRequest { filter: Some(filter), ..Default::default() };
        call!(client, &name, ENTRY, "ListEntries", list => entry::ListEntriesResponse);
    }
    for (size, token) in [(0, ""), (2, ""), (2, "2"), (1000, ""), (-1, ""), (2, "999999"), (2, "x"), (0, "x")]
    {
        let list =
            entry::ListEntriesRequest { page_size: size, page_token: token.into(), ..Default::default() };
        call!(client, &format!("page {size} {token:?}"), ENTRY, "ListEntries", list => entry::ListEntriesResponse);
    }
    let masks = [
        types::EntryMask::default(),
        types::EntryMask {
            spiffe_id: true,
            selectors: true,
            hint: true,
            additional_attributes: true,
            ..Default::default()
        },
        types::EntryMask {
            parent_id: true,
            x509_svid_ttl: true,
            jwt_svid_ttl: true,
            admin: true,
            downstream: true,
            ..Default::default()
        },
        types::EntryMask {
            expires_at: true,
            dns_names: true,
            revision_number: true,
            store_svid: true,
            created_at: true,
            ..Default::default()
        },
    ];
    for (n, mask) in masks.into_iter().enumerate() {
        let get = entry::GetEntryRequest { id: "my-entry.1_A".into(), output_mask: Some(mask) };
        call!(client, &format!("mask {n}"), ENTRY, "GetEntry", get => types::Entry);
    }
    for name in ["", "unknown", "my-entry.1_A"] {
        let get = entry::GetEntryRequest { id: name.into(), output_mask: None };
        call!(client, &format!("{name:?}"), ENTRY, "GetEntry", get => types::Entry);
    }
}

pub(super) async fn entry_changes(client: &mut Client) {
    let update = |entry, input_mask| entry::BatchUpdateEntryRequest {
        entries: vec![entry],
        input_mask,
        output_mask: None,
    };
    let mine = |change: fn(&mut types::Entry)| {
        new_entry("/whole", |e| {
            e.id = "my-entry.1_A".into();
            change(e);
        })
    };
    let cases: Vec<(&str, types::Entry, Option<types::EntryMask>)> = vec![
        ("all", mine(|e| e.hint = "new".into()), None),
        ("nothing", mine(|e| e.hint = "newer".into()), Some(types::EntryMask::default())),
        (
            "masked",
            mine(|e| (e.hint, e.admin) = ("newest".into(), true)),
            Some(types::EntryMask { hint: true, ..Default::default() }),
        ),
        (
            "bad but masked",
            mine(|e| e.selectors.clear()),
            Some(types::EntryMask { admin: true, ..Default::default() }),
        ),
        (
            "bad",
            mine(|e| e.selectors.clear()),
            Some(types::EntryMask { selectors: true, ..Default::default() }),
        ),
        (
            "ttl",
            mine(|e| e.x509_svid_ttl = -5),
            Some(types::EntryMask { x509_svid_ttl: true, ..Default::default() }),
        ),
        ("reserved", mine(|e| e.spiffe_id = id("/spire/x")), None),
        ("unknown", new_entry("/whole", |e| e.id = "unknown".into()), None),
        ("no entry id", new_entry("/whole", |_| {}), None),
        ("federates", mine(|e| e.federates_with = vec!["nobody.test".into()]), None),
        ("same as another", new_entry("/plain", |e| e.id = "my-entry.1_A".into()), None),
        (
            "attributes",
            mine(|e| e.additional_attributes = None),
            Some(types::EntryMask { additional_attributes: true, ..Default::default() }),
        ),
    ];
    for (name, entry, mask) in cases {
        call!(client, name, ENTRY, "BatchUpdateEntry", update(entry, mask) => entry::BatchUpdateEntryResponse);
    }
    for ids in [&[][..], &[""], &["unknown"], &["my-entry.1_A", "", "my-entry.1_A"]] {
        let delete = entry::BatchDeleteEntryRequest { ids: ids.iter().map(|id| (*id).to_owned()).collect() };
        call!(client, &format!("{ids:?}"), ENTRY, "BatchDeleteEntry", delete => entry::BatchDeleteEntryResponse);
    }
    call!(client, "local", ENTRY, "GetAuthorizedEntries", entry::GetAuthorizedEntriesRequest::default() => entry::GetAuthorizedEntriesResponse);
    let sync = vec![entry::SyncAuthorizedEntriesRequest::default()];
    client
        .stream::<_, entry::SyncAuthorizedEntriesResponse>(
            "local",
            &format!("{ENTRY}/SyncAuthorizedEntries"),
            sync,
        )
        .await;
}
