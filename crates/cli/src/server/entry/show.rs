//! `entry show` and `entry count`.

use std::cmp::Ordering;

use spire_compat::flag::FlagSet;
use spire_wire::api::server::entry::v1::entry_client::EntryClient;
use spire_wire::api::server::entry::v1::{
    CountEntriesRequest, GetEntryRequest, ListEntriesRequest, ListEntriesResponse, count_entries_request,
    list_entries_request,
};
use spire_wire::api::types;

use super::block;
use super::filter::{self, Filter, Words};
use crate::call::{ApiCommand, Call, running};
use crate::failure::{Doing, Failure};
use crate::pretty::{counted, counted_i32};

/// Entries of one page: an answer stays below the 4 MiB that gRPC clients take.
const PAGE_SIZE: i32 = 500;

pub(super) const SHOW: ApiCommand = ApiCommand {
    path: "entry show",
    name: "entry show",
    synopsis: "Displays configured registration entries",
    flags: show_flags,
    run: running!(show),
};

pub(super) const COUNT: ApiCommand = ApiCommand {
    path: "entry count",
    name: "entry count",
    synopsis: "Count registration entries",
    flags: count_flags,
    run: running!(count),
};

fn show_flags(flags: FlagSet) -> FlagSet {
    let words = Words {
        parent_id: "The Parent ID of the records to show",
        spiffe_id: "The SPIFFE ID of the records to show",
        hint: "The Hint of the records to show (optional)",
    };
    filter::flags(flags, &words).string("entryID", "", "The Entry ID of the records to show")
}

fn count_flags(flags: FlagSet) -> FlagSet {
    let words = Words {
        parent_id: "The Parent ID of the records to count",
        spiffe_id: "The SPIFFE ID of the records to count",
        hint: "The Hint of the records to count (optional)",
    };
    filter::flags(flags, &words)
}

async fn show(call: &mut Call<'_>) -> Result<(), Failure> {
    let mut client = EntryClient::new(call.channel.clone());
    let id = call.flags.string("entryID").to_owned();
    let mut entries = if id.is_empty() {
        list(&mut client, Filter::from_flags(&call.flags)?).await?
    } else {
        let flags = &call.flags;
        let others = [flags.string("parentID"), flags.string("spiffeID")];
        if others != ["", ""] || !flags.strings("selector").is_empty() {
            return Err(Failure::new("the -entryID flag can't be combined with others"));
        }
        let request = GetEntryRequest { id: id.clone(), ..Default::default() };
        let entry = client.get_entry(request).await.doing(format_args!("error fetching entry ID {id}"))?;
        vec![entry.into_inner()]
    };
    sort(&mut entries);
    let response = ListEntriesResponse { entries, ..Default::default() };
    call.print(&response, |env, response| {
        let found = response.entries.len();
        env.out(format_args!("Found {found} {}\n", counted(found, "entry", "entries")));
        response.entries.iter().for_each(|entry| env.out(block(entry)));
        Ok(())
    })
}

async fn list(
    client: &mut EntryClient<tonic::transport::Channel>,
    filter: Filter,
) -> Result<Vec<types::Entry>, Failure> {
    let filter = list_entries_request::Filter {
        by_parent_id: filter.by_parent_id,
        by_spiffe_id: filter.by_spiffe_id,
        by_selectors: filter.by_selectors,
        by_federates_with: filter.by_federates_with,
        by_hint: filter.by_hint,
        by_downstream: filter.by_downstream,
    };
    let mut entries = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListEntriesRequest {
            filter: Some(filter.clone()),
            page_size: PAGE_SIZE,
            page_token,
            ..Default::default()
        };
        let page = client.list_entries(request).await.doing("error fetching entries")?.into_inner();
        entries.extend(page.entries);
        if page.next_page_token.is_empty() {
            return Ok(entries);
        }
        page_token = page.next_page_token;
    }
}

/// By SPIFFE ID, parent ID, TTLs and selectors, the selectors of each in order too (pkg/common/util/sort.go).
fn sort(entries: &mut [types::Entry]) {
    let selector =
        |a: &types::Selector, b: &types::Selector| (&a.r#type, &a.value).cmp(&(&b.r#type, &b.value));
    for entry in entries.iter_mut() {
        entry.selectors.sort_by(selector);
    }
    entries.sort_by(|a, b| {
        let id =
            |id: &Option<types::Spiffeid>| id.as_ref().map(|id| (id.trust_domain.clone(), id.path.clone()));
        let key = |e: &types::Entry| {
            (id(&e.spiffe_id), id(&e.parent_id), e.x509_svid_ttl, e.jwt_svid_ttl, e.selectors.len())
        };
        key(a).cmp(&key(b)).then_with(|| {
            let pairs = a.selectors.iter().zip(&b.selectors);
            pairs.map(|(a, b)| selector(a, b)).find(|o| o.is_ne()).unwrap_or(Ordering::Equal)
        })
    });
}

async fn count(call: &mut Call<'_>) -> Result<(), Failure> {
    let filter = Filter::from_flags(&call.flags)?;
    let filter = count_entries_request::Filter {
        by_parent_id: filter.by_parent_id,
        by_spiffe_id: filter.by_spiffe_id,
        by_selectors: filter.by_selectors,
        by_federates_with: filter.by_federates_with,
        by_hint: filter.by_hint,
        by_downstream: filter.by_downstream,
    };
    let request = CountEntriesRequest { filter: Some(filter) };
    let response = EntryClient::new(call.channel.clone()).count_entries(request).await?.into_inner();
    call.print(&response, |env, response| {
        let count = response.count;
        env.out(format_args!("{count} registration {}\n", counted_i32(count, "entry", "entries")));
        Ok(())
    })
}
