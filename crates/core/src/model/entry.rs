//! Registration entries: which workload gets which identity.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use super::{SelectorMatch, SetMatch};
use crate::spiffe::{Selectors, SpiffeId, TrustDomain};
use crate::time::Timestamp;

/// The identifier of an entry: a UUID, or 1 to 255 characters that the caller chose. Cheap to clone.
#[derive(Clone)]
pub struct EntryId(Text);

/// Nearly all are UUIDs, which stand where the ID is: an index over a million entries has a million allocations less, and reads
/// each ID with what stands beside it.
#[derive(Clone)]
enum Text {
    Uuid([u8; UUID_LEN]),
    Other(Arc<str>),
}

/// Length of a UUID as text.
const UUID_LEN: usize = 36;

/// Why a string is not an entry ID; texts as the reference's pkg/server/datastore sqlstore validation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryIdError {
    /// Longer than the column.
    #[error("entry ID too long")]
    TooLong,
    /// A character outside `[-._A-Za-z0-9]`.
    #[error("entry ID contains invalid characters")]
    BadCharacter,
    /// No characters at all.
    #[error("entry ID is empty")]
    Empty,
}

impl EntryId {
    /// Checks an ID that a caller chose.
    ///
    /// # Errors
    /// [`EntryIdError`] when it is empty, too long or has other characters than `[-._A-Za-z0-9]`.
    pub fn parse(id: &str) -> Result<Self, EntryIdError> {
        if id.is_empty() {
            Err(EntryIdError::Empty)
        } else if id.len() > 255 {
            Err(EntryIdError::TooLong)
        } else if !id.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'.' | b'_')) {
            Err(EntryIdError::BadCharacter)
        } else {
            Ok(Self::from_stored(id))
        }
    }

    /// As it stands in a store or in an answer of our server.
    pub fn from_stored(id: impl AsRef<str>) -> Self {
        let id = id.as_ref();
        Self(match id.as_bytes().try_into() {
            Ok(text) if id.is_ascii() => Text::Uuid(text),
            _ => Text::Other(id.into()),
        })
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        match &self.0 {
            // ASCII, by construction.
            Text::Uuid(text) => std::str::from_utf8(text).unwrap_or_default(),
            Text::Other(text) => text,
        }
    }

    /// The text, for writing and comparing.
    pub fn as_bytes(&self) -> &[u8] {
        match &self.0 {
            Text::Uuid(text) => text,
            Text::Other(text) => text.as_bytes(),
        }
    }
}

impl PartialEq for EntryId {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for EntryId {}

impl Ord for EntryId {
    fn cmp(&self, other: &Self) -> Ordering {
        self.as_bytes().cmp(other.as_bytes())
    }
}

impl PartialOrd for EntryId {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// As the text's own: maps by ID are asked by text.
impl Hash for EntryId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EntryId({self})")
    }
}

impl std::borrow::Borrow<str> for EntryId {
    fn borrow(&self) -> &str {
        self.as_str()
    }
}

/// A registration entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its identifier.
    pub id: EntryId,
    /// The identity that a matching workload gets.
    pub spiffe_id: SpiffeId,
    /// Who may attest it: an agent, an alias of agents, or the server for an alias itself.
    pub parent_id: SpiffeId,
    /// All of these must have been attested.
    pub selectors: Selectors,
    /// Lifetime of X.509-SVIDs in seconds; 0 is the server's default. Never negative.
    pub x509_svid_ttl: i32,
    /// Lifetime of JWT-SVIDs in seconds; 0 is the server's default. Never negative.
    pub jwt_svid_ttl: i32,
    /// Foreign trust domains whose bundles the workload gets.
    pub federates_with: Box<[TrustDomain]>,
    /// Whether the SVID may administer the server.
    pub admin: bool,
    /// Whether the SVID belongs to a downstream server, which may ask for a CA.
    pub downstream: bool,
    /// When the entry is pruned; the epoch is never.
    pub expires_at: Timestamp,
    /// DNS names of the X.509-SVID in order; the first is also its common name.
    pub dns_names: Box<[Box<str>]>,
    /// Starts at 0, one more with each update.
    pub revision: i64,
    /// Whether the SVID goes to an SVIDStore and not to workloads.
    pub store_svid: bool,
    /// How the workload should use this identity when it has several.
    pub hint: Box<str>,
    /// When it was created.
    pub created_at: Timestamp,
    /// Tunables of the agent's behaviour; `None` when never set, which the store keeps apart.
    pub attributes: Option<Attributes>,
}

/// Tunables of the agent's behaviour for one entry (`RegistrationEntry.AdditionalAttributes`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Do not fetch an X.509-SVID before a workload asks.
    pub disable_x509_svid_prefetch: bool,
    /// Give each JWT-SVID a `jti`; such tokens are not cached.
    pub jwt_svid_include_jti: bool,
}

impl Entry {
    /// An entry that has only the fields which every entry needs; the rest is the default.
    pub fn new(id: EntryId, parent_id: SpiffeId, spiffe_id: SpiffeId, selectors: Selectors) -> Self {
        Self {
            id,
            spiffe_id,
            parent_id,
            selectors,
            x509_svid_ttl: 0,
            jwt_svid_ttl: 0,
            federates_with: Box::default(),
            admin: false,
            downstream: false,
            expires_at: Timestamp::EPOCH,
            dns_names: Box::default(),
            revision: 0,
            store_svid: false,
            hint: Box::default(),
            created_at: Timestamp::EPOCH,
            attributes: None,
        }
    }

    /// Whether the entry has expired at `now`.
    pub fn is_expired(&self, now: Timestamp) -> bool {
        self.expires_at != Timestamp::EPOCH && self.expires_at < now
    }

    /// Takes the fields that the mask names from `update`. The id, revision and creation time stay.
    pub fn apply(&mut self, update: &Self, mask: EntryMask) {
        fn take<T: Clone>(wanted: bool, to: &mut T, from: &T) {
            if wanted {
                *to = from.clone();
            }
        }
        take(mask.spiffe_id, &mut self.spiffe_id, &update.spiffe_id);
        take(mask.parent_id, &mut self.parent_id, &update.parent_id);
        take(mask.selectors, &mut self.selectors, &update.selectors);
        take(mask.x509_svid_ttl, &mut self.x509_svid_ttl, &update.x509_svid_ttl);
        take(mask.jwt_svid_ttl, &mut self.jwt_svid_ttl, &update.jwt_svid_ttl);
        take(mask.federates_with, &mut self.federates_with, &update.federates_with);
        take(mask.admin, &mut self.admin, &update.admin);
        take(mask.downstream, &mut self.downstream, &update.downstream);
        take(mask.expires_at, &mut self.expires_at, &update.expires_at);
        take(mask.dns_names, &mut self.dns_names, &update.dns_names);
        take(mask.store_svid, &mut self.store_svid, &update.store_svid);
        take(mask.hint, &mut self.hint, &update.hint);
        take(mask.attributes, &mut self.attributes, &update.attributes);
    }
}

/// Which fields an update changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the field of Entry of that name")]
pub struct EntryMask {
    pub spiffe_id: bool,
    pub parent_id: bool,
    pub selectors: bool,
    pub x509_svid_ttl: bool,
    pub jwt_svid_ttl: bool,
    pub federates_with: bool,
    pub admin: bool,
    pub downstream: bool,
    pub expires_at: bool,
    pub dns_names: bool,
    pub store_svid: bool,
    pub hint: bool,
    pub attributes: bool,
}

impl EntryMask {
    /// Every field: what an absent mask means.
    pub const ALL: Self = Self::of(true);
    /// No field.
    pub const NONE: Self = Self::of(false);

    const fn of(on: bool) -> Self {
        Self {
            spiffe_id: on,
            parent_id: on,
            selectors: on,
            x509_svid_ttl: on,
            jwt_svid_ttl: on,
            federates_with: on,
            admin: on,
            downstream: on,
            expires_at: on,
            dns_names: on,
            store_svid: on,
            hint: on,
            attributes: on,
        }
    }
}

/// Which entries a listing or count wants; all that are set must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EntryFilter {
    /// Exactly this identity.
    pub spiffe_id: Option<SpiffeId>,
    /// Exactly this parent.
    pub parent_id: Option<SpiffeId>,
    /// Selectors compared as a set.
    pub selectors: Option<SelectorMatch>,
    /// Trust domains compared as a set.
    pub federates_with: Option<FederatesWithMatch>,
    /// Exactly this hint.
    pub hint: Option<String>,
    /// Only downstream entries, or only others.
    pub downstream: Option<bool>,
}

/// A set of trust domains and how an entry's set must compare with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FederatesWithMatch {
    /// The domains asked for; never empty.
    pub trust_domains: Vec<TrustDomain>,
    /// How the entry's set compares.
    pub how: SetMatch,
}
