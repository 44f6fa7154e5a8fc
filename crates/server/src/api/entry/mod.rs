//! `spire.api.server.entry.v1.Entry`: registration entries (pkg/server/api/entry/v1).

pub(super) mod convert;
mod ids;
mod sync;

use std::sync::Arc;

use spire_core::model::{Entry, EntryFilter, EntryId};
use spire_core::spiffe::TrustDomain;
use spire_ports::datastore::{self, Consistency, Creation};
use spire_ports::observe::Scalar;
use spire_wire::api::server::entry::v1 as wire;
use spire_wire::api::types;
use tonic::{Code, Status};

use super::audit::Fields;
use super::caller::AdminCaller;
use super::convert::{match_name, member_id, paging, selectors_text, workload_id};
use super::route::{Call, Route, exchange, unary};
use super::status::{self, Context, fail, fail_with, store_code};
use crate::entries::entry_to_wire;
use convert::{WireFilter, apply_mask};

pub(super) fn routes() -> Vec<Route> {
    vec![
        unary("/spire.api.server.entry.v1.Entry/CountEntries", count_entries),
        unary("/spire.api.server.entry.v1.Entry/ListEntries", list_entries),
        unary("/spire.api.server.entry.v1.Entry/GetEntry", get_entry),
        unary("/spire.api.server.entry.v1.Entry/BatchCreateEntry", batch_create),
        unary("/spire.api.server.entry.v1.Entry/BatchUpdateEntry", batch_update),
        unary("/spire.api.server.entry.v1.Entry/BatchDeleteEntry", batch_delete),
        unary("/spire.api.server.entry.v1.Entry/GetAuthorizedEntries", sync::authorized_entries),
        exchange("/spire.api.server.entry.v1.Entry/SyncAuthorizedEntries", sync::sync_authorized_entries),
    ]
}

async fn count_entries(
    call: Arc<Call>,
    _: AdminCaller,
    request: wire::CountEntriesRequest,
) -> Result<wire::CountEntriesResponse, Status> {
    let filter = filter_of(
        &call,
        request.filter.map(|f| WireFilter {
            by_spiffe_id: f.by_spiffe_id,
            by_parent_id: f.by_parent_id,
            by_selectors: f.by_selectors,
            by_federates_with: f.by_federates_with,
            by_hint: f.by_hint,
            by_downstream: f.by_downstream,
        }),
    )?;
    let count = call
        .store()
        .entry_count(&filter)
        .await
        .map_err(|e| fail_with(Code::Internal, "failed to count entries", e))?;
    call.audit.success();
    Ok(wire::CountEntriesResponse { count: i32::try_from(count).unwrap_or(i32::MAX) })
}

async fn list_entries(
    call: Arc<Call>,
    _: AdminCaller,
    request: wire::ListEntriesRequest,
) -> Result<wire::ListEntriesResponse, Status> {
    let filter = filter_of(
        &call,
        request.filter.map(|f| WireFilter {
            by_spiffe_id: f.by_spiffe_id,
            by_parent_id: f.by_parent_id,
            by_selectors: f.by_selectors,
            by_federates_with: f.by_federates_with,
            by_hint: f.by_hint,
            by_downstream: f.by_downstream,
        }),
    )?;
    let paging = paging(request.page_size, request.page_token);
    let page = call
        .store()
        .entry_list(&filter, paging.as_ref(), Consistency::Current)
        .await
        .map_err(|e| fail_with(Code::Internal, "failed to list entries", listing_error(e)))?;
    let entries = page
        .items
        .iter()
        .map(|entry| {
            let mut entry = entry_to_wire(entry);
            apply_mask(&mut entry, request.output_mask.as_ref());
            entry
        })
        .collect();
    call.audit.success();
    Ok(wire::ListEntriesResponse { entries, next_page_token: page.next })
}

/// The reference's datastore answers a bad page token with a status, whose text its API shows whole, of entries only.
fn listing_error(error: datastore::Error) -> String {
    match error {
        datastore::Error::Invalid(text) if text.starts_with("could not parse token") => {
            format!("datastore-sql: rpc error: code = InvalidArgument desc = {text}")
        }
        other => other.to_string(),
    }
}

async fn get_entry(
    call: Arc<Call>,
    _: AdminCaller,
    request: wire::GetEntryRequest,
) -> Result<types::Entry, Status> {
    if request.id.is_empty() {
        return Err(fail(Code::InvalidArgument, "missing ID"));
    }
    call.audit.add("entry_id", request.id.clone());
    let context = Context::entry(&request.id);
    let found = call
        .store()
        .entry_fetch(&EntryId::from_stored(request.id.as_str()))
        .await
        .map_err(|e| context.fail_with(Code::Internal, "failed to fetch entry", e))?;
    let entry = found.ok_or_else(|| context.fail(Code::NotFound, "entry not found"))?;
    let mut entry = entry_to_wire(&entry);
    apply_mask(&mut entry, request.output_mask.as_ref());
    call.audit.success();
    Ok(entry)
}

/// One transaction for all items that can be stored.
async fn batch_create(
    call: Arc<Call>,
    _: AdminCaller,
    request: wire::BatchCreateEntryRequest,
) -> Result<wire::BatchCreateEntryResponse, Status> {
    let api = &call.api;
    let mask = request.output_mask.as_ref();
    let mut audited: Vec<Fields> = Vec::new();
    let mut refused: Vec<Option<Status>> = Vec::with_capacity(request.entries.len());
    let mut entries = Vec::with_capacity(request.entries.len());
    for entry in request.entries {
        if call.audit.enabled() {
            audited.push(audit_fields(&entry, None));
        }
        match new_entry(entry, api.trust_domain()) {
            Ok(entry) => {
                entries.push(entry);
                refused.push(None);
            }
            Err(status) => refused.push(Some(status)),
        }
    }
    let ids: Vec<String> = entries.iter().map(|e: &Entry| e.spiffe_id.to_string()).collect();
    let created = if entries.is_empty() { Ok(Vec::new()) } else { api.deps.live.create(entries).await };
    let mut outcomes = per_item(created, ids.len()).into_iter().zip(ids);
    let results = refused
        .into_iter()
        .filter_map(|refused| match refused {
            Some(status) => Some(wire::batch_create_entry_response::Result {
                status: Some(status::item(&status)),
                entry: None,
            }),
            None => outcomes.next().map(|(outcome, id)| created_result(outcome, &id, mask)),
        })
        .collect::<Vec<_>>();
    for (result, fields) in results.iter().zip(audited) {
        call.audit.item(&result.status.clone().unwrap_or_default(), || fields);
    }
    Ok(wire::BatchCreateEntryResponse { results })
}

fn new_entry(wire: types::Entry, ours: &TrustDomain) -> Result<Entry, Status> {
    const ALL: spire_core::model::EntryMask = spire_core::model::EntryMask::ALL;
    let mut entry = convert::entry(wire, ALL, ours)
        .map_err(|e| fail_with(Code::InvalidArgument, "failed to convert entry", e))?;
    convert::check_new_id(&entry.id).map_err(|e| {
        Context::id(entry.spiffe_id.as_str()).fail_with(Code::InvalidArgument, "failed to create entry", e)
    })?;
    if entry.id.as_str().is_empty() {
        entry.id = EntryId::from_stored(uuid::Uuid::new_v4().to_string());
    }
    Ok(entry)
}

fn created_result(
    outcome: Result<Creation, datastore::Error>,
    id: &str,
    mask: Option<&types::EntryMask>,
) -> wire::batch_create_entry_response::Result {
    let (status, entry) = match outcome {
        Ok(Creation::Created(written)) => (status::ok(), written.value),
        Ok(Creation::Similar(existing)) => {
            let code = i32::from(Code::AlreadyExists);
            (types::Status { code, message: "similar entry already exists".to_owned() }, existing)
        }
        Err(error) => {
            let status = Context::id(id).fail_with(store_code(&error), "failed to create entry", error);
            let status = Some(status::item(&status));
            return wire::batch_create_entry_response::Result { status, entry: None };
        }
    };
    let mut entry = entry_to_wire(&entry);
    apply_mask(&mut entry, mask);
    wire::batch_create_entry_response::Result { status: Some(status), entry: Some(entry) }
}

async fn batch_update(
    call: Arc<Call>,
    _: AdminCaller,
    request: wire::BatchUpdateEntryRequest,
) -> Result<wire::BatchUpdateEntryResponse, Status> {
    let api = &call.api;
    let input_mask = convert::input_mask(request.input_mask.as_ref());
    let mut audited: Vec<Fields> = Vec::new();
    let mut refused: Vec<Option<Status>> = Vec::with_capacity(request.entries.len());
    let mut updates = Vec::with_capacity(request.entries.len());
    for entry in request.entries {
        if call.audit.enabled() {
            audited.push(audit_fields(&entry, request.input_mask.as_ref()));
        }
        let id = entry.id.clone();
        let context = Context::entry(&id);
        let checked = convert::entry(entry, input_mask, api.trust_domain())
            .map_err(|e| context.fail_with(Code::InvalidArgument, "failed to convert entry", e));
        match checked {
            Ok(entry) => {
                updates.push((entry, input_mask));
                refused.push(None);
            }
            Err(status) => refused.push(Some(status)),
        }
    }
    let ids: Vec<EntryId> = updates.iter().map(|(entry, _)| entry.id.clone()).collect();
    let updated = if updates.is_empty() { Ok(Vec::new()) } else { api.deps.live.update(updates).await };
    let mut outcomes = per_item(updated, ids.len()).into_iter().zip(ids);
    let results = refused
        .into_iter()
        .filter_map(|refused| {
            let (status, entry) = match refused {
                Some(status) => (status::item(&status), None),
                None => match outcomes.next()? {
                    (Ok(written), _) => {
                        let mut entry = entry_to_wire(&written.value);
                        apply_mask(&mut entry, request.output_mask.as_ref());
                        (status::ok(), Some(entry))
                    }
                    (Err(error), id) => {
                        let context = Context::entry(id.as_str());
                        let failed = context.fail_with(store_code(&error), "failed to update entry", error);
                        (status::item(&failed), None)
                    }
                },
            };
            Some(wire::batch_update_entry_response::Result { status: Some(status), entry })
        })
        .collect::<Vec<_>>();
    for (result, fields) in results.iter().zip(audited) {
        call.audit.item(&result.status.clone().unwrap_or_default(), || fields);
    }
    Ok(wire::BatchUpdateEntryResponse { results })
}

async fn batch_delete(
    call: Arc<Call>,
    _: AdminCaller,
    request: wire::BatchDeleteEntryRequest,
) -> Result<wire::BatchDeleteEntryResponse, Status> {
    let known: Vec<EntryId> =
        request.ids.iter().filter(|id| !id.is_empty()).map(|id| EntryId::from_stored(id.as_str())).collect();
    let deleted = if known.is_empty() { Ok(Vec::new()) } else { call.api.deps.live.delete(&known).await };
    let mut outcomes = per_item(deleted, known.len()).into_iter();
    let results = request
        .ids
        .into_iter()
        .filter_map(|id| {
            let context = Context::entry(&id);
            let status = if id.is_empty() {
                status::item(&fail(Code::InvalidArgument, "missing entry ID"))
            } else {
                match outcomes.next()? {
                    Ok(_) => status::ok(),
                    Err(datastore::Error::NotFound) => {
                        status::item(&context.fail(Code::NotFound, "entry not found"))
                    }
                    Err(e) => status::item(&context.fail_with(Code::Internal, "failed to delete entry", e)),
                }
            };
            call.audit.item(&status, || vec![("entry_id".into(), id.clone().into())]);
            Some(wire::batch_delete_entry_response::Result { status: Some(status), id })
        })
        .collect();
    Ok(wire::BatchDeleteEntryResponse { results })
}

/// Outcomes an item, also where the transaction as a whole failed.
fn per_item<T>(
    outcome: Result<Vec<Result<T, datastore::Error>>, datastore::Error>,
    count: usize,
) -> Vec<Result<T, datastore::Error>> {
    match outcome {
        Ok(outcomes) => outcomes,
        Err(error) => std::iter::repeat_with(|| Err(error.clone())).take(count).collect(),
    }
}

fn filter_of(call: &Call, wire: Option<WireFilter>) -> Result<EntryFilter, Status> {
    let Some(wire) = wire else { return Ok(EntryFilter::default()) };
    call.audit.extend(|| filter_fields(&wire, call.api.trust_domain()));
    convert::filter(wire, call.api.trust_domain())
        .map_err(|(what, cause)| fail_with(Code::InvalidArgument, what, cause))
}

/// What the audit log says of a filter.
fn filter_fields(wire: &WireFilter, ours: &TrustDomain) -> Fields {
    let mut fields: Fields = Vec::new();
    let mut add = |name: &'static str, value: Scalar| fields.push((name.into(), value));
    if let Some(hint) = &wire.by_hint {
        add("hint", hint.clone().into());
    }
    if let Some(id) = &wire.by_parent_id
        && let Ok(id) = member_id(Some(id), ours)
    {
        add("parent_id", id.to_string().into());
    }
    if let Some(id) = &wire.by_spiffe_id
        && let Ok(id) = workload_id(Some(id), ours)
    {
        add("spiffe_id", id.to_string().into());
    }
    if let Some(selectors) = &wire.by_selectors {
        add("by_selector_match", match_name(selectors.r#match).into());
        add("by_selectors", selectors_text(&selectors.selectors).into());
    }
    if let Some(federates) = &wire.by_federates_with {
        add("federates_with_match", match_name(federates.r#match).into());
        add("federates_with", federates.trust_domains.join(",").into());
    }
    if let Some(downstream) = wire.by_downstream {
        add("downstream", downstream.into());
    }
    fields
}

/// What the audit log says of an entry of a request.
fn audit_fields(entry: &types::Entry, mask: Option<&types::EntryMask>) -> Fields {
    let wants = |field: fn(&types::EntryMask) -> bool| mask.is_none_or(field);
    let mut fields: Fields = Vec::new();
    let mut add = |wanted: bool, name: &'static str, value: Scalar| {
        if wanted {
            fields.push((name.into(), value));
        }
    };
    let id = |id: &Option<types::Spiffeid>| super::convert::id(id.as_ref()).map(|id| id.to_string()).ok();
    let text = |text: String| Some(text).filter(|text| !text.is_empty());
    if let Some(entry_id) = text(entry.id.clone()) {
        add(true, "entry_id", entry_id.into());
    }
    if let Some(id) = id(&entry.spiffe_id) {
        add(wants(|m| m.spiffe_id), "spiffe_id", id.into());
    }
    if let Some(id) = id(&entry.parent_id) {
        add(wants(|m| m.parent_id), "parent_id", id.into());
    }
    if let Some(selectors) = text(selectors_text(&entry.selectors)) {
        add(wants(|m| m.selectors), "selectors", selectors.into());
    }
    add(wants(|m| m.x509_svid_ttl), "x509_svid_ttl", entry.x509_svid_ttl.into());
    add(wants(|m| m.jwt_svid_ttl), "jwt_svid_ttl", entry.jwt_svid_ttl.into());
    if let Some(names) = text(entry.federates_with.join(",")) {
        add(wants(|m| m.federates_with), "federates_with", names.into());
    }
    add(wants(|m| m.admin), "admin", entry.admin.into());
    add(wants(|m| m.downstream), "downstream", entry.downstream.into());
    add(wants(|m| m.expires_at), "expires_at", entry.expires_at.into());
    if let Some(names) = text(entry.dns_names.join(",")) {
        add(wants(|m| m.dns_names), "dns_name", names.into());
    }
    add(wants(|m| m.revision_number), "revision_number", entry.revision_number.into());
    add(wants(|m| m.store_svid), "store_svid", entry.store_svid.into());
    add(wants(|m| m.hint), "hint", entry.hint.clone().into());
    add(wants(|m| m.created_at), "created_at", entry.created_at.into());
    fields
}
