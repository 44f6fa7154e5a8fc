//! What an agent may see: from the view, encoded already.
//!
//! An answer is a list of records and is written into the connection's buffer from their payloads; nothing is decoded,
//! cloned or encoded again where the agent asks as SPIRE's and ours do.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use bytes::BufMut;
use prost::encoding::{encoded_len_varint, key_len};
use spire_wire::api::server::entry::v1 as wire;
use spire_wire::api::types;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codec::EncodeBuf;
use tonic::{Code, Status, Streaming};
use tracing::Instrument as _;

use super::convert::apply_mask;
use super::ids::SyncRequest;
use crate::api::caller::AgentCaller;
use crate::api::route::{Call, Replies, Reply};
use crate::entries::{
    Answer, Payload, ViewRecord, is_agent_mask, number_len, put_head, put_number, put_text,
};

/// Entries or revisions in one message (pkg/server/endpoints, defaultEntryPageSize).
const PAGE: usize = 500;

/// About how long a revision is, to make room for a page of them: a UUID, a small number and a time.
const REVISION_LEN: usize = 52;

/// Messages made ahead of what the connection takes: a page is up to half a megabyte.
const AHEAD: usize = 2;

/// How records are shown.
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

    /// Appends the records as field `tag` of the message.
    fn write_all(&self, tag: u32, records: &[Arc<ViewRecord>], buffer: &mut EncodeBuf<'_>) {
        match self {
            Self::Encoded(answer) => {
                let field = |len: usize| key_len(tag) + encoded_len_varint(len as u64) + len;
                // Growing the buffer step by step would copy it each time.
                buffer.reserve(records.iter().map(|record| field(answer.len(record))).sum());
                let mut pen = Pen::new(buffer);
                for record in records {
                    let len = answer.len(record);
                    pen.write(field(len), &EntryField { tag, len, record, answer: *answer });
                }
                pen.finish();
            }
            Self::Masked(mask) => {
                for record in records {
                    let mut entry = Payload::decode(record);
                    apply_mask(&mut entry, Some(mask));
                    prost::encoding::message::encode(tag, &entry, buffer);
                }
            }
        }
    }
}

/// A field of an answer that can write itself.
trait Field {
    fn write(&self, buffer: &mut impl BufMut);
}

/// An entry of `len` octets.
struct EntryField<'a> {
    tag: u32,
    len: usize,
    record: &'a ViewRecord,
    answer: Answer,
}

impl Field for EntryField<'_> {
    fn write(&self, buffer: &mut impl BufMut) {
        put_head(self.tag, self.len, buffer);
        self.answer.write(self.record, buffer);
    }
}

/// A revision of `len` octets.
struct RevisionField<'a> {
    len: usize,
    record: &'a ViewRecord,
}

impl Field for RevisionField<'_> {
    fn write(&self, buffer: &mut impl BufMut) {
        put_head(1, self.len, buffer);
        put_text(1, self.record.id.as_bytes(), buffer);
        put_number(2, self.record.revision, buffer);
        put_number(3, self.record.created_at.unix(), buffer);
    }
}

/// Appends fields. A connection's buffer checks its room at each of the dozen pieces of a field, which costs more than the
/// pieces; so they are put together first.
struct Pen<'a, B> {
    buffer: &'a mut B,
    sheet: [u8; 4096],
    written: usize,
}

impl<'a, B: BufMut> Pen<'a, B> {
    fn new(buffer: &'a mut B) -> Self {
        Self { buffer, sheet: [0; 4096], written: 0 }
    }

    /// Appends a field of `len` octets.
    fn write(&mut self, len: usize, field: &impl Field) {
        if len > self.sheet.len() - self.written {
            self.turn();
        }
        match self.sheet.get_mut(self.written..self.written + len) {
            Some(mut place) => {
                field.write(&mut place);
                self.written += len;
            }
            None => field.write(self.buffer),
        }
    }

    fn turn(&mut self) {
        self.buffer.put_slice(&self.sheet[..self.written]);
        self.written = 0;
    }

    fn finish(mut self) {
        self.turn();
    }
}

/// An answer with entries: `GetAuthorizedEntriesResponse`, whose field 1 they are, or
/// `SyncAuthorizedEntriesResponse`, whose field 2.
pub(super) struct EntriesReply {
    tag: u32,
    shown: Shown,
    records: Vec<Arc<ViewRecord>>,
    more: bool,
}

impl Reply for EntriesReply {
    fn write(self, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        self.shown.write_all(self.tag, &self.records, buffer);
        if self.more {
            prost::encoding::bool::encode(3, &true, buffer);
        }
        Ok(())
    }
}

/// An answer with revisions: some of the records as field 1 of a `SyncAuthorizedEntriesResponse`.
pub(super) struct RevisionsReply {
    records: Arc<[Arc<ViewRecord>]>,
    page: Range<usize>,
    more: bool,
}

impl Reply for RevisionsReply {
    fn write(self, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        let page = self.records.get(self.page).unwrap_or_default();
        buffer.reserve(page.len() * REVISION_LEN);
        let mut pen = Pen::new(buffer);
        for record in page {
            let id = record.id.as_bytes();
            let len = key_len(1)
                + encoded_len_varint(id.len() as u64)
                + id.len()
                + number_len(2, record.revision)
                + number_len(3, record.created_at.unix());
            let whole = key_len(1) + encoded_len_varint(len as u64) + len;
            pen.write(whole, &RevisionField { len, record });
        }
        pen.finish();
        if self.more {
            prost::encoding::bool::encode(3, &true, buffer);
        }
        Ok(())
    }
}

/// An answer of `SyncAuthorizedEntries`.
pub(super) enum SyncReply {
    Revisions(RevisionsReply),
    Entries(EntriesReply),
}

impl Reply for SyncReply {
    fn write(self, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        match self {
            Self::Revisions(message) => message.write(buffer),
            Self::Entries(entries) => entries.write(buffer),
        }
    }
}

pub(super) async fn authorized_entries(
    call: Arc<Call>,
    caller: AgentCaller,
    request: wire::GetAuthorizedEntriesRequest,
) -> Result<EntriesReply, Status> {
    let records = authorized(&call, &caller);
    call.audit.success();
    Ok(EntriesReply { tag: 1, shown: Shown::by(request.output_mask), records, more: false })
}

pub(super) async fn sync_authorized_entries(
    call: Arc<Call>,
    caller: AgentCaller,
    requests: Streaming<SyncRequest>,
) -> Result<Replies<SyncReply>, Status> {
    let (replies, receiver) = mpsc::channel(AHEAD);
    let session = call.api.session(&caller);
    let serve = async move {
        let served = tokio::select! {
            served = serve_sync(&call, &caller, requests, &replies) => served,
            status = session.ended() => Err(status),
            () = replies.closed() => return,
        };
        match served {
            Ok(()) => call.audit.success(),
            Err(status) => {
                call.audit.failure(&status);
                // The agent may have gone.
                let _ = replies.send(Err(status)).await;
            }
        }
    };
    tokio::spawn(serve.in_current_span());
    Ok(Box::pin(ReceiverStream::new(receiver)))
}

type Replying = mpsc::Sender<Result<SyncReply, Status>>;

/// A few entries are sent at once; of many, first the revisions and then those that the agent asks for.
async fn serve_sync(
    call: &Call,
    caller: &AgentCaller,
    mut requests: Streaming<SyncRequest>,
    replies: &Replying,
) -> Result<(), Status> {
    let Some(first) = requests.message().await? else { return Err(Status::new(Code::Unknown, "EOF")) };
    if !first.ids.is_empty() {
        return Err(Status::invalid_argument("specifying IDs on initial request is not supported"));
    }
    if first.output_mask.as_ref().is_some_and(|mask| !mask.revision_number) {
        return Err(Status::invalid_argument("revision number cannot be masked"));
    }
    let shown = Shown::by(first.output_mask);
    let entries =
        |records, more| SyncReply::Entries(EntriesReply { tag: 2, shown: shown.clone(), records, more });
    let records = authorized(call, caller);
    if records.len() <= PAGE {
        return send(replies, entries(records, false)).await;
    }
    let records: Arc<[Arc<ViewRecord>]> = records.into();
    for start in (0..records.len()).step_by(PAGE) {
        let page = start..records.len().min(start + PAGE);
        let more = page.end < records.len();
        send(replies, SyncReply::Revisions(RevisionsReply { records: records.clone(), page, more })).await?;
    }
    let mut found = Found::new(&records);
    while let Some(request) = requests.message().await.or_else(gone)? {
        let mut page = Vec::with_capacity(request.ids.len().min(PAGE));
        for id in request.ids.iter() {
            let Some(record) = found.by_id(id) else { continue };
            if page.len() == PAGE {
                send(replies, entries(std::mem::take(&mut page), true)).await?;
            }
            page.push(record.clone());
        }
        send(replies, entries(page, false)).await?;
    }
    Ok(())
}

/// Finds records by id. Agents ask in the order in which they were told, so the next is nearly always the right one.
struct Found<'a> {
    records: &'a [Arc<ViewRecord>],
    next: usize,
    /// All of them, from the first time that an agent asks in another order.
    places: Option<HashMap<&'a str, usize>>,
}

impl<'a> Found<'a> {
    fn new(records: &'a [Arc<ViewRecord>]) -> Self {
        Self { records, next: 0, places: None }
    }

    fn by_id(&mut self, id: &str) -> Option<&'a Arc<ViewRecord>> {
        if let Some(record) = self.records.get(self.next)
            && record.id.as_bytes() == id.as_bytes()
        {
            self.next += 1;
            return Some(record);
        }
        let all = self.records.iter().enumerate();
        let places = self.places.get_or_insert_with(|| all.map(|(n, r)| (r.id.as_str(), n)).collect());
        let place = *places.get(id)?;
        self.next = place + 1;
        self.records.get(place)
    }
}

/// An agent that goes away has ended the exchange as it should.
fn gone(status: Status) -> Result<Option<SyncRequest>, Status> {
    if status.code() == Code::Cancelled { Ok(None) } else { Err(status) }
}

async fn send(replies: &Replying, reply: SyncReply) -> Result<(), Status> {
    replies.send(Ok(reply)).await.map_err(|_| Status::cancelled("the agent went away"))
}

fn authorized(call: &Call, caller: &AgentCaller) -> Vec<Arc<ViewRecord>> {
    let mut records = Vec::new();
    call.api.deps.live.view().visit_authorized(caller.id(), |record| records.push(record.clone()));
    records
}
