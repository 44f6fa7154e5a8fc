//! Which entries changed since the last sync: the SyncAuthorizedEntries dialogue.

use std::collections::HashSet;

use spire_core::model::{Entry, EntryId};
use spire_wire::api::server::entry::v1::{
    EntryRevision, SyncAuthorizedEntriesRequest, SyncAuthorizedEntriesResponse, entry_client::EntryClient,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use super::client::{CallError, RPC_TIMEOUT, ServerClient, entry_mask, timed_out, well_formed};

const DOING: &str = "failed to fetch authorized entries";

/// What is known of an entry: revision and time of creation, in Unix seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Known {
    /// The revision.
    pub revision: i64,
    /// When the entry was created; an ID may be given again.
    pub created_at: i64,
}

impl Known {
    /// Of this entry.
    pub(super) fn of(entry: &Entry) -> Self {
        Self { revision: entry.revision, created_at: entry.created_at.unix() }
    }

    /// Whether the server's entry is another. A server that does not say when it was created sends 0
    /// (pkg/agent/client: entryIsStale).
    fn is_stale(self, revision: i64, created_at: i64) -> bool {
        self.revision != revision || (created_at != 0 && self.created_at != created_at)
    }
}

/// What a sync found.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// New and changed entries.
    pub upserts: Vec<Entry>,
    /// Every entry ID that the server named: what else is known is gone.
    pub present: HashSet<EntryId>,
}

/// Asks for the entries that differ from what is known. The server sends either all entries, when they fit
/// one page, or the revisions of all, of which the changed ones are then asked for page by page
/// (pkg/agent/client: streamAndSyncEntries).
///
/// # Errors
/// [`CallError`] when the server or the network fails, or the server breaks the protocol.
pub(super) async fn sync_entries(
    client: &ServerClient,
    known: impl Fn(&EntryId) -> Option<Known>,
) -> Result<Changes, CallError> {
    let used = client.connection();
    let changes = tokio::time::timeout(RPC_TIMEOUT, dialogue(used.channel.clone(), known)).await;
    changes.unwrap_or_else(|_| Err(timed_out())).map_err(|status| {
        client.failed(&used, &status);
        CallError { doing: DOING, status: Box::new(status) }
    })
}

async fn dialogue(channel: Channel, known: impl Fn(&EntryId) -> Option<Known>) -> Result<Changes, Status> {
    let (requests, outgoing) = mpsc::channel(1);
    let first = SyncAuthorizedEntriesRequest { output_mask: Some(entry_mask()), ids: Vec::new() };
    // The channel has room for one and nobody else sends.
    requests.try_send(first).map_err(|_| Status::internal("stream is closed"))?;
    let mut answers =
        EntryClient::new(channel).sync_authorized_entries(ReceiverStream::new(outgoing)).await?.into_inner();

    let mut changes = Changes::default();
    let mut page = receive(&mut answers).await?;
    if page.entry_revisions.is_empty() {
        changes.take(page, &known);
        return Ok(changes);
    }
    let page_size = page.entry_revisions.len();
    let mut wanted = Vec::new();
    loop {
        if !page.entries.is_empty() {
            return Err(Status::unknown("unexpected entry in response receiving entry revisions"));
        }
        wanted.extend(page.entry_revisions.into_iter().filter_map(|r| changes.wanted(r, &known)));
        if !page.more {
            break;
        }
        page = receive(&mut answers).await?;
    }
    wanted.sort_unstable();
    for ids in wanted.chunks(page_size) {
        let request = SyncAuthorizedEntriesRequest { output_mask: None, ids: ids.to_vec() };
        requests.send(request).await.map_err(|_| Status::unavailable("stream is closed"))?;
        loop {
            let page = receive(&mut answers).await?;
            if !page.entry_revisions.is_empty() {
                return Err(Status::unknown(
                    "unexpected entry revisions in response while requesting entries",
                ));
            }
            let more = page.more;
            changes.take(page, &known);
            if !more {
                break;
            }
        }
    }
    Ok(changes)
}

async fn receive(
    answers: &mut Streaming<SyncAuthorizedEntriesResponse>,
) -> Result<SyncAuthorizedEntriesResponse, Status> {
    answers.message().await?.ok_or_else(|| Status::unknown("EOF"))
}

impl Changes {
    /// The ID of an entry that has to be asked for.
    fn wanted(
        &mut self,
        revision: EntryRevision,
        known: impl Fn(&EntryId) -> Option<Known>,
    ) -> Option<String> {
        if revision.id.is_empty() || revision.revision_number < 0 {
            tracing::warn!(
                entry_id = revision.id,
                revision_number = revision.revision_number,
                "Received malformed entry revision from SPIRE server; are the server and agent versions compatible?"
            );
            return None;
        }
        let id = EntryId::from_stored(revision.id);
        let stale = known(&id).is_none_or(|k| k.is_stale(revision.revision_number, revision.created_at));
        let wanted = stale.then(|| id.as_str().to_owned());
        self.present.insert(id);
        wanted
    }

    fn take(&mut self, page: SyncAuthorizedEntriesResponse, known: &impl Fn(&EntryId) -> Option<Known>) {
        for entry in page.entries.into_iter().filter_map(well_formed) {
            self.present.insert(entry.id.clone());
            if known(&entry.id).is_none_or(|k| k.is_stale(entry.revision, entry.created_at.unix())) {
                self.upserts.push(entry);
            }
        }
    }
}
