//! What an agent may see: from the view, encoded already.
//!
//! An answer is put together from the payloads of records; nothing is decoded, cloned or encoded again where the agent asks
//! as SPIRE's and ours do.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use prost::encoding::{encoded_len_varint, key_len};
use spire_wire::api::server::entry::v1 as wire;
use spire_wire::api::types;
use tokio::time::Instant;
use tonic::codec::EncodeBuf;
use tonic::{Code, Status, Streaming};
use tracing::Instrument as _;

use super::convert::apply_mask;
use super::ids::SyncRequest;
use crate::api::Session;
use crate::api::caller::AgentCaller;
use crate::api::encoded::{Encoded, Exchange, Outbox};
use crate::api::route::{Call, Reply};
use crate::entries::{
    Answer, Payload, Sink, View, ViewRecord, is_agent_mask, number_len, put_head, put_number, put_text,
    text_len,
};

/// Entries or revisions in one message (pkg/server/endpoints, defaultEntryPageSize).
const PAGE: usize = 500;

/// About how long a revision is, to make room for a page of them: a UUID, a small number and a time.
const REVISION_LEN: usize = 52;

/// What field 3 takes.
const MORE_LEN: usize = 2;

/// How long an exchange keeps the view that it began with, whose entries may have changed long since: SPIRE's agent and ours
/// are done in a second.
const EXCHANGE_MAX: Duration = Duration::from_secs(600);

/// How entries are shown.
#[derive(Clone, Debug)]
enum Shown {
    /// From what is encoded.
    Encoded(Answer),
    /// Other fields; these answers are decoded and encoded.
    Masked(types::EntryMask),
}

impl Shown {
    fn by(mask: Option<types::EntryMask>) -> Self {
        match mask {
            None => Self::Encoded(Answer::Whole),
            Some(mask) if is_agent_mask(&mask) => Self::Encoded(Answer::ForAgent),
            Some(mask) => Self::Masked(mask),
        }
    }

    /// How long the entries will be, as field `tag` of a message; 0 if that is not known before.
    fn len(&self, tag: u32, records: &[&ViewRecord]) -> usize {
        let Self::Encoded(answer) = self else { return 0 };
        let field = |len: usize| key_len(tag) + encoded_len_varint(len as u64) + len;
        records.iter().map(|record| field(answer.len(record))).sum()
    }

    /// Appends the entries as field `tag` of a message.
    fn write(&self, tag: u32, records: &[&ViewRecord], message: &mut impl Sink) {
        for record in records {
            match self {
                Self::Encoded(answer) => {
                    put_head(tag, answer.len(record), message);
                    answer.write(record, message);
                }
                Self::Masked(mask) => {
                    let mut entry = Payload::decode(record);
                    apply_mask(&mut entry, Some(mask));
                    prost::encoding::message::encode(tag, &entry, message);
                }
            }
        }
    }
}

/// A `SyncAuthorizedEntriesResponse` with entries, its field 2. It is made where the view is at hand: to own each record for a
/// while, and no longer, would cost as much as to write it.
fn entries(shown: &Shown, records: &[&ViewRecord], more: bool) -> Result<Encoded, Status> {
    Encoded::new(shown.len(2, records) + MORE_LEN, |message| {
        shown.write(2, records, message);
        put_more(more, message);
    })
}

/// A `SyncAuthorizedEntriesResponse` with revisions, its field 1.
fn revisions(records: &[&ViewRecord], more: bool) -> Result<Encoded, Status> {
    Encoded::new(records.len() * REVISION_LEN + MORE_LEN, |message| {
        for record in records {
            put_revision(record, message);
        }
        put_more(more, message);
    })
}

fn put_revision(record: &ViewRecord, message: &mut Vec<u8>) {
    let id = record.id.as_bytes();
    let (revision, created_at) = (record.revision, record.created_at.unix());
    let is_short = id.len() <= SHORT_ID_LEN;
    // Nearly all are short: their length is one octet, and is filled in afterwards.
    let len = || text_len(1, id) + number_len(2, revision) + number_len(3, created_at);
    put_head(1, if is_short { 0 } else { len() }, message);
    let start = message.len();
    put_text(1, id, message);
    put_number(2, revision, message);
    put_number(3, created_at, message);
    if is_short {
        message[start - 1] = u8::try_from(message.len() - start).unwrap_or_default();
    }
}

/// A revision with an ID up to this length is shorter than 128 octets: two numbers have at most eleven each.
const SHORT_ID_LEN: usize = 100;

/// Field 3 of a `SyncAuthorizedEntriesResponse`.
fn put_more(more: bool, message: &mut Vec<u8>) {
    if more {
        prost::encoding::bool::encode(3, &true, message);
    }
}

/// All entries of an agent in one answer, made when the connection takes it: one that is not read keeps nothing.
pub(super) struct AuthorizedEntries {
    call: Arc<Call>,
    caller: AgentCaller,
    shown: Shown,
}

impl Reply for AuthorizedEntries {
    fn write(self, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        let view = self.call.api.deps.live.view();
        let records = authorized(&view, &self.caller);
        buffer.reserve(self.shown.len(1, &records));
        self.shown.write(1, &records, buffer);
        Ok(())
    }
}

pub(super) async fn authorized_entries(
    call: Arc<Call>,
    caller: AgentCaller,
    request: wire::GetAuthorizedEntriesRequest,
) -> Result<AuthorizedEntries, Status> {
    call.audit.success();
    Ok(AuthorizedEntries { call, caller, shown: Shown::by(request.output_mask) })
}

pub(super) fn sync_authorized_entries(
    call: Arc<Call>,
    caller: AgentCaller,
    requests: Streaming<SyncRequest>,
) -> Result<Exchange, Status> {
    let session = call.api.session(&caller)?;
    let longest = Instant::now() + EXCHANGE_MAX;
    let (end, why): (_, fn() -> _) =
        if session.end < longest { (session.end, Session::expired) } else { (longest, too_long) };
    let answers = Outbox::default();
    let replies = answers.clone();
    // Here already: an agent may go away before the first poll.
    let mut ending = Ending { call, session, end, why, is_told: false, is_ended: false };
    let serve = async move {
        let (call, session, told) = (&ending.call, &ending.session, &mut ending.is_told);
        let served = tokio::select! {
            // What ends it is looked at whenever it waits.
            biased;
            served = serve_sync(call, &caller, requests, &replies, told) => served,
            status = session.ended_early() => Err(status),
        };
        ending.end(served)
    };
    Ok(Exchange::new(serve.in_current_span(), answers, end, why))
}

fn too_long() -> Status {
    Status::deadline_exceeded("the exchange took too long")
}

/// Says in the audit log how an exchange ended, also where it is dropped because the agent went away, or at its time.
struct Ending {
    call: Arc<Call>,
    session: Session,
    end: Instant,
    /// Why it ends then.
    why: fn() -> Status,
    /// The agent has all that it asked for.
    is_told: bool,
    is_ended: bool,
}

impl Ending {
    fn end(&mut self, served: Result<(), Status>) -> Result<(), Status> {
        self.is_ended = true;
        match served {
            Err(status) if !(self.is_told && status.code() == Code::Cancelled) => {
                self.call.audit.failure(&status);
                Err(status)
            }
            // An agent that goes away once it was told what it asked for has ended the exchange as it should: SPIRE's cancels it.
            _ => {
                self.call.audit.success();
                Ok(())
            }
        }
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        if self.is_ended {
            return;
        }
        // An agent that reads nothing is not told, and neither is one that is gone.
        let status = self.session.has_ended_early().unwrap_or_else(|| {
            let is_over = Instant::now() >= self.end;
            if is_over { (self.why)() } else { Status::cancelled("the agent went away") }
        });
        let _ = self.end(Err(status));
    }
}

/// A few entries are sent at once; of many, first the revisions and then those that the agent asks for. `told` is set while
/// the agent has all that it asked for.
async fn serve_sync(
    call: &Call,
    caller: &AgentCaller,
    mut requests: Streaming<SyncRequest>,
    answers: &Outbox,
    told: &mut bool,
) -> Result<(), Status> {
    let Some(first) = requests.message().await? else { return Err(Status::new(Code::Unknown, "EOF")) };
    if !first.ids.is_empty() {
        return Err(Status::invalid_argument("specifying IDs on initial request is not supported"));
    }
    if first.output_mask.as_ref().is_some_and(|mask| !mask.revision_number) {
        return Err(Status::invalid_argument("revision number cannot be masked"));
    }
    let shown = Shown::by(first.output_mask);
    let view = call.api.deps.live.snapshot();
    let records = authorized(&view, caller);
    if records.len() <= PAGE {
        return answers.send(|| entries(&shown, &records, false)).await;
    }
    let mut sent = 0;
    for page in records.chunks(PAGE) {
        sent += page.len();
        answers.send(|| revisions(page, sent < records.len())).await?;
    }
    let mut found = Found::new(&records);
    *told = true;
    while let Some(request) = requests.message().await? {
        *told = false;
        let mut page = Vec::with_capacity(request.ids.len().min(PAGE));
        for id in request.ids.iter() {
            let Some(record) = found.by_id(id) else { continue };
            if page.len() == PAGE {
                answers.send(|| entries(&shown, &page, true)).await?;
                page.clear();
            }
            page.push(record);
        }
        answers.send(|| entries(&shown, &page, false)).await?;
        *told = true;
    }
    Ok(())
}

/// Finds records by id. Agents ask in the order in which they were told, so the next is nearly always the right one.
struct Found<'a> {
    records: &'a [&'a ViewRecord],
    next: usize,
    /// Where each is, from the first time that an agent asks in another order.
    places: Option<HashMap<&'a [u8], usize>>,
}

impl<'a> Found<'a> {
    fn new(records: &'a [&'a ViewRecord]) -> Self {
        Self { records, next: 0, places: None }
    }

    fn by_id(&mut self, id: &[u8]) -> Option<&'a ViewRecord> {
        if let Some(record) = self.records.get(self.next)
            && record.id.as_bytes() == id
        {
            self.next += 1;
            return Some(record);
        }
        let all = self.records.iter().enumerate();
        let places = self.places.get_or_insert_with(|| all.map(|(n, r)| (r.id.as_bytes(), n)).collect());
        let place = *places.get(id)?;
        self.next = place + 1;
        self.records.get(place).copied()
    }
}

fn authorized<'a>(view: &'a View, caller: &AgentCaller) -> Vec<&'a ViewRecord> {
    let mut records = Vec::with_capacity(PAGE);
    view.visit_authorized(caller.id(), |record| records.push(&**record));
    records
}
