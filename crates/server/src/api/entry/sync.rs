//! What an agent may see: from the view, encoded already.
//!
//! An answer is a list of records and is written into the connection's buffer from their payloads; nothing is decoded,
//! cloned or encoded again where the agent asks as SPIRE's and ours do.

use std::sync::Arc;

use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint};
use spire_wire::api::server::entry::v1 as wire;
use spire_wire::api::types;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codec::EncodeBuf;
use tonic::{Code, Status, Streaming};
use tracing::Instrument as _;

use super::convert::apply_mask;
use crate::api::caller::AgentCaller;
use crate::api::route::{Call, Replies, Reply};
use crate::entries::{Answer, Payload, ViewRecord, is_agent_mask};

/// Entries or revisions in one message (pkg/server/endpoints, defaultEntryPageSize).
const PAGE: usize = 500;

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

    /// Appends the record as field `tag` of the message.
    fn write(&self, tag: u32, record: &ViewRecord, buffer: &mut EncodeBuf<'_>) {
        encode_key(tag, WireType::LengthDelimited, buffer);
        match self {
            Self::Encoded(answer) => {
                encode_varint(answer.len(record) as u64, buffer);
                answer.write(record, buffer);
            }
            Self::Masked(mask) => {
                let mut entry = Payload::decode(record);
                apply_mask(&mut entry, Some(mask));
                encode_varint(entry.encoded_len() as u64, buffer);
                // The buffer grows, so there is always room.
                let _ = entry.encode(buffer);
            }
        }
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
        for record in &self.records {
            self.shown.write(self.tag, record, buffer);
        }
        if self.more {
            prost::encoding::bool::encode(3, &true, buffer);
        }
        Ok(())
    }
}

/// An answer of `SyncAuthorizedEntries`.
pub(super) enum SyncReply {
    Revisions(wire::SyncAuthorizedEntriesResponse),
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
    requests: Streaming<wire::SyncAuthorizedEntriesRequest>,
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
    mut requests: Streaming<wire::SyncAuthorizedEntriesRequest>,
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
    let mut records = authorized(call, caller);
    if records.len() <= PAGE {
        return send(replies, entries(records, false)).await;
    }
    records.sort_unstable_by(|a, b| a.id.cmp(&b.id));
    let pages = records.len().div_ceil(PAGE);
    for (n, page) in records.chunks(PAGE).enumerate() {
        send(replies, SyncReply::Revisions(revisions(page, n + 1 < pages))).await?;
    }
    while let Some(request) = requests.message().await.or_else(gone)? {
        let mut ids = request.ids;
        ids.sort_unstable();
        let mut page = Vec::with_capacity(ids.len().min(PAGE));
        for id in ids {
            let Ok(found) = records.binary_search_by(|record| record.id.as_str().cmp(&id)) else { continue };
            if page.len() == PAGE {
                send(replies, entries(std::mem::take(&mut page), true)).await?;
            }
            page.extend(records.get(found).cloned());
        }
        send(replies, entries(page, false)).await?;
    }
    Ok(())
}

/// An agent that goes away has ended the exchange as it should.
fn gone(status: Status) -> Result<Option<wire::SyncAuthorizedEntriesRequest>, Status> {
    if status.code() == Code::Cancelled { Ok(None) } else { Err(status) }
}

fn revisions(page: &[Arc<ViewRecord>], more: bool) -> wire::SyncAuthorizedEntriesResponse {
    let entry_revisions = page
        .iter()
        .map(|record| wire::EntryRevision {
            id: record.id.to_string(),
            revision_number: record.revision,
            created_at: record.created_at.unix(),
        })
        .collect();
    wire::SyncAuthorizedEntriesResponse { entry_revisions, entries: Vec::new(), more }
}

async fn send(replies: &Replying, reply: SyncReply) -> Result<(), Status> {
    replies.send(Ok(reply)).await.map_err(|_| Status::cancelled("the agent went away"))
}

fn authorized(call: &Call, caller: &AgentCaller) -> Vec<Arc<ViewRecord>> {
    let mut records = Vec::new();
    call.api.deps.live.view().visit_authorized(caller.id(), |record| records.push(record.clone()));
    records
}
