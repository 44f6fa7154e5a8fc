//! `entry update`.

use spire_compat::flag::FlagSet;
use spire_wire::api::server::entry::v1::entry_client::EntryClient;
use spire_wire::api::server::entry::v1::{BatchUpdateEntryRequest, GetEntryRequest};
use spire_wire::api::types;

use super::create::{DISABLE_PREFETCH, INCLUDE_JTI, check_ttls, from_flags, shared_flags};
use super::{data, print_results};
use crate::call::{ApiCommand, Call, running};
use crate::failure::{Doing, Failure};
use crate::pretty::parse_id;

pub(super) const UPDATE: ApiCommand = ApiCommand {
    path: "entry update",
    name: "entry update",
    synopsis: "Updates registration entries",
    flags,
    run: running!(run),
};

fn flags(flags: FlagSet) -> FlagSet {
    shared_flags(flags)
        .string("entryID", "", "The Registration Entry ID of the record to update")
        .switch("disableX509SVIDPrefetch", DISABLE_PREFETCH)
        .switch("jwtSVIDIncludeJTI", INCLUDE_JTI)
}

async fn run(call: &mut Call<'_>) -> Result<(), Failure> {
    let mut client = EntryClient::new(call.channel.clone());
    let path = call.flags.string("data").to_owned();
    let entries = if path.is_empty() {
        let mut entry = requested(call)?;
        let prefetch = call.flags.bool("disableX509SVIDPrefetch");
        let jti = call.flags.bool("jwtSVIDIncludeJTI");
        if prefetch || jti {
            // The attributes are replaced as one message, so those that no flag names come from the entry as it is.
            let request = GetEntryRequest { id: entry.id.clone(), ..Default::default() };
            let existing = client
                .get_entry(request)
                .await
                .doing("failed to fetch existing entry to merge additional attributes")?
                .into_inner();
            let mut attributes = existing.additional_attributes.unwrap_or_default();
            attributes.disable_x509_svid_prefetch |= prefetch;
            attributes.jwt_svid_include_jti |= jti;
            entry.additional_attributes = Some(attributes);
        }
        vec![entry]
    } else {
        data::entries(call.env, &path)?
    };
    let request = BatchUpdateEntryRequest { entries: entries.clone(), ..Default::default() };
    let mut response = client.batch_update_entry(request).await?.into_inner();
    for (result, asked) in response.results.iter_mut().zip(entries) {
        if result.status.as_ref().is_some_and(|s| s.code != 0) {
            result.entry = Some(asked);
        }
    }
    call.print(&response, |env, response| {
        let results = response.results.iter().map(|r| (r.status.as_ref(), r.entry.as_ref()));
        print_results(env, "update", results)
    })
}

fn requested(call: &mut Call<'_>) -> Result<types::Entry, Failure> {
    let flags = &call.flags;
    let required = [("entryID", "entry ID is required"), ("parentID", "a parent ID is required")];
    let [entry_id, parent_id] = required.map(|(name, text)| (flags.string(name).to_owned(), text));
    if entry_id.0.is_empty() {
        return Err(Failure::new(entry_id.1));
    }
    if flags.strings("selector").is_empty() {
        return Err(Failure::new("at least one selector is required"));
    }
    if parent_id.0.is_empty() {
        return Err(Failure::new(parent_id.1));
    }
    if flags.string("spiffeID").is_empty() {
        return Err(Failure::new("a SPIFFE ID is required"));
    }
    check_ttls(call)?;
    let parent_id = parse_id(&parent_id.0)?;
    let spiffe_id = parse_id(call.flags.string("spiffeID"))?;
    from_flags(call, entry_id.0, spiffe_id, parent_id)
}
