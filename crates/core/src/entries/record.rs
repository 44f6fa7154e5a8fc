//! What the index keeps of one entry.

use crate::model::{Entry, EntryId};
use crate::spiffe::{Selectors, SpiffeId};
use crate::time::Timestamp;

/// One entry in the index.
///
/// Fields stand in the order in which a sync of an agent asks for them, so that it reads two cache lines a record to find what is
/// new, and one more to send it.
#[derive(Clone, Debug)]
#[repr(C)]
pub struct Record<P> {
    /// The entry.
    pub id: EntryId,
    /// Its revision.
    pub revision: i64,
    /// When it was created.
    pub created_at: Timestamp,
    /// Its parent; the allocation is shared by all children of that parent.
    pub parent_id: SpiffeId,
    /// The first bits of the identity's hash, which the index fills in: it saves a walk from reading each identity.
    pub(super) identity_hash: u32,
    /// What a caller with this identity may do beyond being a workload.
    pub rights: Rights,
    /// Its identity, which may be the parent of others.
    pub spiffe_id: SpiffeId,
    /// What the server keeps with the entry.
    pub payload: P,
    /// When it is pruned; the epoch is never.
    pub expires_at: Timestamp,
    /// Selectors, kept for aliases only; empty for other entries, whose selectors are in the payload.
    pub alias_selectors: Selectors,
    /// The write that the record comes from: a greater one is later.
    pub event: u64,
}

/// Special rights of an identity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rights {
    /// It may administer the server.
    pub admin: bool,
    /// It is a downstream server.
    pub downstream: bool,
}

impl<P> Record<P> {
    /// The record of an entry after the write `event`.
    pub fn new(entry: &Entry, event: u64, payload: P) -> Self {
        let is_alias = is_server(&entry.parent_id);
        Self {
            id: entry.id.clone(),
            parent_id: entry.parent_id.clone(),
            spiffe_id: entry.spiffe_id.clone(),
            revision: entry.revision,
            created_at: entry.created_at,
            expires_at: entry.expires_at,
            rights: Rights { admin: entry.admin, downstream: entry.downstream },
            alias_selectors: if is_alias { entry.selectors.clone() } else { Selectors::default() },
            event,
            identity_hash: 0,
            payload,
        }
    }

    /// Whether the entry is an alias for nodes.
    pub fn is_alias(&self) -> bool {
        is_server(&self.parent_id)
    }
}

/// Whether an ID is that of the servers, the parent of aliases.
fn is_server(id: &SpiffeId) -> bool {
    id.path() == "/spire/server"
}
