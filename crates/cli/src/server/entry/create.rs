//! `entry create`.

use spire_compat::flag::FlagSet;
use spire_wire::api::server::entry::v1::BatchCreateEntryRequest;
use spire_wire::api::server::entry::v1::entry_client::EntryClient;
use spire_wire::api::types;
use spire_wire::api::types::entry::AdditionalAttributes;

use super::{data, print_results};
use crate::call::{ApiCommand, Call, running};
use crate::env::Env;
use crate::failure::{Doing, Failure};
use crate::pretty::{parse_id, parse_selector, to_i32};

/// The path of the server's own ID, which is the parent of nodes.
const SERVER_PATH: &str = "/spire/server";

pub(super) const CREATE: ApiCommand = ApiCommand {
    path: "entry create",
    name: "entry create",
    synopsis: "Creates registration entries",
    flags,
    run: running!(run),
};

fn flags(flags: FlagSet) -> FlagSet {
    shared_flags(flags)
        .string(
            "entryID",
            "",
            "A custom ID for this registration entry (optional). If not set, a new entry ID will be generated",
        )
        .bool("node", false, "If set, this entry will be applied to matching nodes rather than workloads")
        .bool("disableX509SVIDPrefetch", false, DISABLE_PREFETCH)
        .bool("jwtSVIDIncludeJTI", false, INCLUDE_JTI)
}

pub(super) const DISABLE_PREFETCH: &str =
    "A boolean value that, when set, disables prefetching X509 SVID for this entry";
pub(super) const INCLUDE_JTI: &str = "A boolean value that, when set, includes a unique 'jti' claim in JWT-SVIDs issued for this entry and bypasses the agent JWT-SVID cache";

/// What `create` and `update` have in common.
pub(super) fn shared_flags(flags: FlagSet) -> FlagSet {
    flags
        .string("parentID", "", "The SPIFFE ID of this record's parent")
        .string("spiffeID", "", "The SPIFFE ID that this record represents")
        .int(
            "x509SVIDTTL",
            0,
            "The lifetime, in seconds, for x509-SVIDs issued based on this registration entry.",
        )
        .int("jwtSVIDTTL", 0, "The lifetime, in seconds, for JWT-SVIDs issued based on this registration entry.")
        .string(
            "data",
            "",
            "Path to a file containing registration JSON (optional). If set to '-', read the JSON from stdin.",
        )
        .strings("selector", "A colon-delimited type:value selector. Can be used more than once")
        .strings("federatesWith", "SPIFFE ID of a trust domain to federate with. Can be used more than once")
        .bool(
            "admin",
            false,
            "If set, the SPIFFE ID in this entry will be granted access to the SPIRE Server's management APIs",
        )
        .bool("storeSVID", false, "A boolean value that, when set, indicates that the resulting issued SVID from this entry must be stored through an SVIDStore plugin")
        .bool(
            "downstream",
            false,
            "A boolean value that, when set, indicates that the entry describes a downstream SPIRE server",
        )
        .int("entryExpiry", 0, "An expiry, from epoch in seconds, for the resulting registration entry to be pruned")
        .strings("dns", "A DNS name that will be included in SVIDs issued based on this entry, where appropriate. Can be used more than once")
        .string("hint", "", "The entry hint, used to disambiguate entries with the same SPIFFE ID")
        .int("ttl", 0, "Old flag: sets -x509SVIDTTL and -jwtSVIDTTL")
        .hide("ttl")
}

async fn run(call: &mut Call<'_>) -> Result<(), Failure> {
    let path = call.flags.string("data").to_owned();
    let entries = if path.is_empty() { vec![requested(call)?] } else { data::entries(call.env, &path)? };
    let request = BatchCreateEntryRequest { entries: entries.clone(), ..Default::default() };
    let mut response = EntryClient::new(call.channel.clone()).batch_create_entry(request).await?.into_inner();
    // The API does not say which entries failed, so that is taken from the request.
    for (result, asked) in response.results.iter_mut().zip(entries) {
        if result.status.as_ref().is_some_and(|s| s.code != 0) {
            result.entry = Some(asked);
        }
    }
    call.print(&response, |env, response| {
        let results = response.results.iter().map(|r| (r.status.as_ref(), r.entry.as_ref()));
        print_results(env, "create", results)
    })
}

/// What the flags ask for.
fn requested(call: &mut Call<'_>) -> Result<types::Entry, Failure> {
    let flags = &call.flags;
    let node = flags.bool("node");
    if flags.strings("selector").is_empty() {
        return Err(Failure::new("at least one selector is required"));
    }
    if node && !flags.strings("federatesWith").is_empty() {
        return Err(Failure::new("node entries can not federate"));
    }
    if flags.string("parentID").is_empty() && !node {
        return Err(Failure::new("a parent ID is required if the node flag is not set"));
    }
    if flags.string("spiffeID").is_empty() {
        return Err(Failure::new("a SPIFFE ID is required"));
    }
    check_ttls(call)?;
    let flags = &call.flags;
    let spiffe_id = parse_id(flags.string("spiffeID"))?;
    let parent_id = if node {
        types::Spiffeid { trust_domain: spiffe_id.trust_domain.clone(), path: SERVER_PATH.to_owned() }
    } else {
        parse_id(flags.string("parentID"))?
    };
    let id = flags.string("entryID").to_owned();
    let attributes = AdditionalAttributes {
        disable_x509_svid_prefetch: flags.bool("disableX509SVIDPrefetch"),
        jwt_svid_include_jti: flags.bool("jwtSVIDIncludeJTI"),
    };
    let set = attributes.disable_x509_svid_prefetch || attributes.jwt_svid_include_jti;
    let entry = from_flags(call, id, spiffe_id, parent_id)?;
    Ok(types::Entry { additional_attributes: set.then_some(attributes), ..entry })
}

/// TTLs must not be negative.
pub(super) fn check_ttls(call: &Call<'_>) -> Result<(), Failure> {
    for (flag, kind) in [("x509SVIDTTL", "x509"), ("jwtSVIDTTL", "JWT"), ("ttl", "x509")] {
        if call.flags.int(flag) < 0 {
            return Err(Failure::new(format!("a positive {kind}-SVID TTL is required")));
        }
    }
    Ok(())
}

/// The entry without its additional attributes.
pub(super) fn from_flags(
    call: &mut Call<'_>,
    id: String,
    spiffe_id: types::Spiffeid,
    parent_id: types::Spiffeid,
) -> Result<types::Entry, Failure> {
    let flags = &call.flags;
    let old = flags.int("ttl");
    if flags.is_given("ttl") {
        warn_old_ttl(call.env, "-ttl", "-x509SVIDTTL and -jwtSVIDTTL");
    }
    let ttl = |name: &str| if flags.is_given(name) { flags.int(name) } else { old };
    Ok(types::Entry {
        id,
        spiffe_id: Some(spiffe_id),
        parent_id: Some(parent_id),
        selectors: flags.strings("selector").iter().map(|s| parse_selector(s)).collect::<Result<_, _>>()?,
        x509_svid_ttl: to_i32(ttl("x509SVIDTTL")).doing("invalid value for X509 SVID TTL")?,
        jwt_svid_ttl: to_i32(ttl("jwtSVIDTTL")).doing("invalid value for JWT SVID TTL")?,
        federates_with: flags.strings("federatesWith").to_vec(),
        admin: flags.bool("admin"),
        downstream: flags.bool("downstream"),
        expires_at: flags.int("entryExpiry"),
        dns_names: flags.strings("dns").to_vec(),
        store_svid: flags.bool("storeSVID"),
        hint: flags.string("hint").to_owned(),
        ..Default::default()
    })
}

/// SPIRE up to 1.10 had one TTL for both kinds of SVID.
pub(super) fn warn_old_ttl(env: &mut Env, old: &str, new: &str) {
    env.err(format_args!("Warning: {old} is an old name; use {new}\n"));
}
