//! Who an entry belongs to: the part of its ID before the first dot (docs/adr/0012).

use super::content::Digest;

/// Longest name of an owner: a DNS label, which leaves 191 characters of an entry ID.
const NAME_MAX: usize = 63;

/// An owner of entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Owner(String);

impl Owner {
    /// A name of letters, digits, `-` and `_`; without a dot, so that no owner's IDs begin with another's.
    pub(super) fn parse(name: &str) -> Result<Self, String> {
        let known = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_');
        match name.len() {
            1..=NAME_MAX if name.bytes().all(known) => Ok(Self(name.to_owned())),
            _ => Err(format!("an owner's name is 1 to {NAME_MAX} letters, digits, \"-\" and \"_\"")),
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.0
    }

    /// Whether the entry with this ID is the owner's.
    pub(super) fn owns(&self, entry_id: &str) -> bool {
        entry_id.strip_prefix(&self.0).is_some_and(|rest| rest.starts_with('.'))
    }

    /// The ID of an owned entry that a file gives none: the same for the same SPIFFE ID, parent and selectors.
    pub(super) fn derived(&self, key: Digest) -> String {
        format!("{}.{key:032x}", self.0)
    }
}
