//! What the server has, in so little memory that a million entries take 50 MiB, and what is to be done with an entry
//! of a file.

use spire_wire::api::types;

use super::content::{Digest, content, digest, key};
use super::owner::Owner;

/// Entries of the server by ID and by what they cannot share. Of each it keeps digests only.
#[derive(Default)]
pub(super) struct Known {
    rows: Vec<Row>,
    /// Rows in the order of their IDs, once [`Known::sort`] was called.
    by_id: Vec<u32>,
}

struct Row {
    key: Digest,
    id: Digest,
    content: Digest,
    owned: bool,
    claimed: bool,
}

/// What an entry of a file takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The server has it as it is.
    Same,
    /// The server lacks it.
    Create,
    /// The server has one with this ID that differs.
    UpdateById,
    /// The server has one with the same SPIFFE ID, parent and selectors that differs; the file gives no ID.
    UpdateByKey,
    /// An entry that nobody wants stands in the way, and may go.
    Replace,
    /// One stands in the way that must not go.
    Conflict,
}

impl Known {
    /// Takes in an entry of the server, which must be normal. More than 2^32 are passed over.
    pub(super) fn add(&mut self, entry: &types::Entry, owner: Option<&Owner>) {
        if let Ok(row) = u32::try_from(self.rows.len()) {
            self.by_id.push(row);
            self.rows.push(Row {
                key: key(entry),
                id: digest(&entry.id),
                content: content(entry),
                owned: owner.is_some_and(|owner| owner.owns(&entry.id)),
                claimed: false,
            });
        }
    }

    /// To be called when all are added.
    pub(super) fn sort(&mut self) {
        let Self { rows, by_id } = self;
        rows.sort_unstable_by_key(|row| row.key);
        by_id.sort_unstable_by_key(|row| rows.get(*row as usize).map(|row| row.id));
    }

    fn with_id(&self, id: Digest) -> Option<usize> {
        let id_of = |row: &u32| self.rows.get(*row as usize).map(|row| row.id);
        let at = self.by_id.binary_search_by(|row| id_of(row).cmp(&Some(id))).ok()?;
        self.by_id.get(at).map(|row| *row as usize)
    }

    fn with_key(&self, key: Digest) -> Option<usize> {
        self.rows.binary_search_by_key(&key, |row| row.key).ok()
    }

    /// What `entry`, which must be normal, takes. `is_explicit` says that the file gives its ID; `wanted` are the
    /// digests of all IDs in the files, sorted; `may_replace` that owned entries that nobody wants may go.
    pub(super) fn judge(
        &mut self,
        entry: &types::Entry,
        is_explicit: bool,
        wanted: &[Digest],
        owner: Option<&Owner>,
        may_replace: bool,
    ) -> Verdict {
        if !entry.id.is_empty()
            && let Some(row) = self.with_id(digest(&entry.id))
        {
            return self.claim(row, entry, Verdict::UpdateById);
        }
        let Some(row) = self.with_key(key(entry)) else { return Verdict::Create };
        let Some(found) = self.rows.get(row) else { return Verdict::Create };
        if wanted.binary_search(&found.id).is_ok() {
            // That one is on its way to other selectors.
            return Verdict::Create;
        }
        match (is_explicit, owner) {
            (false, None) => self.claim(row, entry, Verdict::UpdateByKey),
            (false, Some(_)) if found.owned => self.claim(row, entry, Verdict::UpdateByKey),
            (true, Some(_)) if found.owned && may_replace && !found.claimed => Verdict::Replace,
            _ => Verdict::Conflict,
        }
    }

    fn claim(&mut self, row: usize, entry: &types::Entry, otherwise: Verdict) -> Verdict {
        match self.rows.get_mut(row) {
            Some(row) => {
                row.claimed = true;
                if row.content == content(entry) { Verdict::Same } else { otherwise }
            }
            None => Verdict::Create,
        }
    }

    /// Whether the entry with this ID was there before and belongs to nobody in the files.
    pub(super) fn is_unclaimed(&self, id: &str) -> bool {
        self.with_id(digest(id)).and_then(|row| self.rows.get(row)).is_some_and(|row| !row.claimed)
    }

    /// The entry with this ID was dealt with.
    pub(super) fn settle(&mut self, id: &str) {
        if let Some(row) = self.with_id(digest(id)).and_then(|row| self.rows.get_mut(row)) {
            row.claimed = true;
        }
    }
}
