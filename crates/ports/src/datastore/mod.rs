//! The datastore port: what a server keeps, one small trait a resource.
//!
//! Every write is one transaction, durable when it returns. A batch is one transaction with a savepoint an
//! item, since each item has a status of its own. Each write of an entry or node also appends a row to the
//! events table in the same transaction, by which other servers on the same database learn of it.
//!
//! # Errors
//! Every operation may fail with [`Error::Unavailable`] (the database cannot be reached, is locked or has no room) and
//! with [`Error::Internal`] (what is stored cannot be read). What else an operation refuses stands with it. The errors
//! of items of a batch are in its outcomes; where the call fails, nothing was written.

#[cfg(feature = "conformance")]
pub mod conformance;
mod error;

use async_trait::async_trait;
use spire_core::model::{
    CaJournal, Entry, EntryFilter, EntryId, EntryMask, FederationRelationship, FederationUpdate, JoinToken,
    Node, NodeFilter, NodeUpdate, Page, Paging,
};
use spire_core::spiffe::{Bundle, JwtAuthority, Selectors, SpiffeId, TrustDomain};
use spire_core::time::Timestamp;

pub use error::{Error, Result};

/// All that a server stores.
pub trait DataStore:
    Bundles + Entries + Nodes + JoinTokens + Federation + Journals + Events + Send + Sync
{
}

impl<T: Bundles + Entries + Nodes + JoinTokens + Federation + Journals + Events + Send + Sync> DataStore
    for T
{
}

/// Whether a read may come from a replica that lags behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Consistency {
    /// From the primary.
    #[default]
    Current,
    /// From a replica.
    TolerateStale,
    /// From a replica, if it shows every entry event up to this one that the primary shows by now. Such a replica also shows
    /// what the transactions of those events wrote.
    Seen(EventId),
}

/// What happens to entries that federate with a bundle that is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeleteMode {
    /// Refuse ([`Error::InUse`]).
    Restrict,
    /// Delete those entries too.
    Delete,
    /// Unlink them.
    Dissociate,
}

/// The identifier of a row in an events table. Identifiers grow and may have gaps. A row may become visible later than rows
/// with greater identifiers.
pub type EventId = u64;

/// A value, and the event that its write appended. Of two events of one entry or node, the greater one is the later
/// write, so a reader can order what it hears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written<T> {
    /// The row after the write (before it, for a deletion).
    pub value: T,
    /// The event appended in the same transaction.
    pub event: EventId,
}

/// What became of one item of a batch creation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Creation {
    /// It is new.
    Created(Written<Entry>),
    /// An entry with the same SPIFFE ID, parent and selectors exists: this one.
    Similar(Entry),
}

/// Trust bundles, own and federated.
#[async_trait]
pub trait Bundles {
    /// The bundle of a trust domain.
    async fn bundle_fetch(&self, trust_domain: &TrustDomain) -> Result<Option<Bundle>>;
    /// All bundles in row order, or a page of them.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a page of no size, and for a token that is not a number.
    async fn bundle_list(&self, paging: Option<&Paging>) -> Result<Page<Bundle>>;
    /// How many bundles there are.
    async fn bundle_count(&self) -> Result<u32>;
    /// Stores a new one.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`] if there is one.
    async fn bundle_create(&self, bundle: &Bundle) -> Result<Bundle>;
    /// Stores a bundle, whether the trust domain has one or not.
    async fn bundle_set(&self, bundle: &Bundle) -> Result<Bundle>;
    /// Replaces the parts of a stored bundle that the mask names.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is none.
    async fn bundle_update(&self, bundle: &Bundle, mask: BundleMask) -> Result<Bundle>;
    /// Adds the authorities that a bundle does not have yet, and makes the bundle if there is none. The sequence number
    /// grows by one if the content changed.
    async fn bundle_append(&self, bundle: &Bundle) -> Result<Bundle>;
    /// Removes it. Entries that federate with it follow the mode, and each of them gets an event.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is none; [`Error::InUse`] if entries federate with it and the mode
    /// forbids that.
    async fn bundle_delete(&self, trust_domain: &TrustDomain, mode: DeleteMode) -> Result<()>;
    /// Drops authorities that expired by the time. Returns whether the content changed.
    ///
    /// # Errors
    /// [`Error::Invalid`] where a kind that has authorities, or X.509, would be left without any
    /// (pkg/common/bundleutil: PruneBundle).
    async fn bundle_prune(&self, trust_domain: &TrustDomain, expired_before: Timestamp) -> Result<bool>;
    /// Marks the X.509 authority with that subject key ID (hex) as tainted.
    ///
    /// # Errors
    /// [`Error::NotFound`] without a bundle, [`Error::Missing`] if the bundle has none such,
    /// [`Error::Invalid`] if it is tainted already.
    async fn x509_authority_taint(&self, trust_domain: &TrustDomain, subject_key_id: &str) -> Result<()>;
    /// Removes a tainted X.509 authority.
    ///
    /// # Errors
    /// [`Error::NotFound`] without a bundle, [`Error::Missing`] if the bundle has none such,
    /// [`Error::Invalid`] if it is not tainted.
    async fn x509_authority_revoke(&self, trust_domain: &TrustDomain, subject_key_id: &str) -> Result<()>;
    /// Marks a JWT authority as tainted and returns it.
    ///
    /// # Errors
    /// As [`Bundles::x509_authority_taint`].
    async fn jwt_authority_taint(&self, trust_domain: &TrustDomain, kid: &str) -> Result<JwtAuthority>;
    /// Removes a tainted JWT authority and returns it.
    ///
    /// # Errors
    /// As [`Bundles::x509_authority_revoke`].
    async fn jwt_authority_revoke(&self, trust_domain: &TrustDomain, kid: &str) -> Result<JwtAuthority>;
    /// Marks a WIT authority as tainted and returns it.
    ///
    /// # Errors
    /// As [`Bundles::x509_authority_taint`].
    async fn wit_authority_taint(&self, trust_domain: &TrustDomain, kid: &str) -> Result<JwtAuthority>;
    /// Removes a tainted WIT authority and returns it.
    ///
    /// # Errors
    /// As [`Bundles::x509_authority_revoke`].
    async fn wit_authority_revoke(&self, trust_domain: &TrustDomain, kid: &str) -> Result<JwtAuthority>;
}

/// Which parts of a bundle an update replaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the field of Bundle of that name")]
pub struct BundleMask {
    pub x509_authorities: bool,
    pub jwt_authorities: bool,
    pub wit_authorities: bool,
    pub refresh_hint: bool,
    pub sequence_number: bool,
}

impl BundleMask {
    /// Every part.
    pub const ALL: Self = Self {
        x509_authorities: true,
        jwt_authorities: true,
        wit_authorities: true,
        refresh_hint: true,
        sequence_number: true,
    };
}

/// Registration entries.
#[async_trait]
pub trait Entries {
    /// Creates entries in one transaction, an outcome an item, in order. Ids are the caller's; `created_at`
    /// is set by the store.
    ///
    /// # Errors
    /// Of an item: [`Error::AlreadyExists`] when its id is taken or it has a DNS name twice,
    /// [`Error::NoBundle`] when it federates with a bundle that is not there, [`Error::Invalid`] when it
    /// breaks another rule of stored entries (pkg/server/datastore/sqlstore: validateRegistrationEntry).
    async fn entries_create(&self, entries: Vec<Entry>) -> Result<Vec<Result<Creation>>>;
    /// The entry with this id, if there is one.
    async fn entry_fetch(&self, id: &EntryId) -> Result<Option<Entry>>;
    /// The entries with these ids, as far as they exist, in no order.
    async fn entries_fetch(&self, ids: &[EntryId]) -> Result<Vec<Entry>>;
    /// Entries in row order, all or a page of them.
    ///
    /// # Errors
    /// [`Error::Invalid`] as [`Bundles::bundle_list`], and for a filter by no selectors or by no trust
    /// domains.
    async fn entry_list(
        &self,
        filter: &EntryFilter,
        paging: Option<&Paging>,
        consistency: Consistency,
    ) -> Result<Page<Entry>>;
    /// How many match.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a filter by no selectors or by no trust domains.
    async fn entry_count(&self, filter: &EntryFilter) -> Result<u32>;
    /// Updates the masked fields of each in one transaction; the revision grows by one. Attributes that are
    /// all off come back as `None`.
    ///
    /// # Errors
    /// Of an item: [`Error::NotFound`] for an unknown id, otherwise as [`Entries::entries_create`], by the
    /// rules of updates (validateRegistrationEntryForUpdate).
    async fn entries_update(&self, updates: Vec<(Entry, EntryMask)>) -> Result<Vec<Result<Written<Entry>>>>;
    /// Deletes each in one transaction.
    ///
    /// # Errors
    /// Of an item: [`Error::NotFound`] for an unknown id.
    async fn entries_delete(&self, ids: &[EntryId]) -> Result<Vec<Result<Written<Entry>>>>;
    /// Deletes entries that expired before the time, at most `limit` in a call, and returns them.
    async fn entries_prune(&self, expired_before: Timestamp, limit: u32) -> Result<Vec<Written<Entry>>>;
}

/// Attested nodes and their selectors.
#[async_trait]
pub trait Nodes {
    /// Stores a node with its selectors after an attestation, in one transaction. They replace what the last attestation of
    /// that agent left.
    async fn node_attest(&self, node: &Node) -> Result<Written<Node>>;
    /// As [`Nodes::node_attest`], for an agent with a join token. The same transaction uses the token up, so that two
    /// agents never share it, and no agent loses it without being stored. Without such a token nothing is written, and
    /// the answer is `None`.
    async fn node_attest_by_token(&self, node: &Node, token: &str) -> Result<Option<Written<Node>>>;
    /// The node of this agent, with its selectors.
    async fn node_fetch(&self, id: &SpiffeId) -> Result<Option<Node>>;
    /// The node of this agent without its selectors. Each call of an agent is checked against it.
    async fn node_row(&self, id: &SpiffeId) -> Result<Option<Node>>;
    /// The nodes with these ids, as far as they exist, with their selectors.
    async fn nodes_fetch(&self, ids: &[SpiffeId]) -> Result<Vec<Node>>;
    /// Nodes in row order, all or a page of them.
    ///
    /// # Errors
    /// [`Error::Invalid`] as [`Bundles::bundle_list`], and for a filter by no selectors.
    async fn node_list(&self, filter: &NodeFilter, paging: Option<&Paging>) -> Result<Page<Node>>;
    /// How many match.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a filter by no selectors.
    async fn node_count(&self, filter: &NodeFilter) -> Result<u32>;
    /// Sets fields of a node.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is none.
    async fn node_update(&self, id: &SpiffeId, update: &NodeUpdate) -> Result<Written<Node>>;
    /// Removes a node and its selectors. For a node of the attestor `join_token`, the entry that stood for
    /// the token's agent ID goes too (its one selector is `spiffe_id` with the parent's ID), with an entry
    /// event: whoever keeps entries hears of it by [`Events::entry_events`].
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is none.
    async fn node_delete(&self, id: &SpiffeId) -> Result<Written<Node>>;
    /// Removes nodes whose SVID expired before the time, at most `limit` in a call, and returns their ids. Banned nodes stay.
    /// Nodes that cannot attest again stay unless `include_non_reattestable` is set.
    async fn nodes_prune(
        &self,
        expired_before: Timestamp,
        include_non_reattestable: bool,
        limit: u32,
    ) -> Result<Vec<Written<SpiffeId>>>;
    /// The selectors of a node; empty if there are none.
    async fn node_selectors(&self, id: &SpiffeId, consistency: Consistency) -> Result<Selectors>;
    /// Replaces the selectors of a node.
    async fn node_selectors_set(&self, id: &SpiffeId, selectors: &Selectors) -> Result<EventId>;
}

/// Join tokens.
#[async_trait]
pub trait JoinTokens {
    /// Stores a token.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`] if it is there.
    async fn join_token_create(&self, token: &JoinToken) -> Result<()>;
    /// A token that was not used yet; [`Nodes::node_attest_by_token`] uses it.
    async fn join_token_fetch(&self, token: &str) -> Result<Option<JoinToken>>;
    /// Removes a token, and returns whether it was there.
    async fn join_token_delete(&self, token: &str) -> Result<bool>;
    /// Removes tokens that expired before the time.
    async fn join_tokens_prune(&self, expired_before: Timestamp) -> Result<()>;
}

/// Dynamic federation relationships.
#[async_trait]
pub trait Federation {
    /// Stores a relationship, with its first bundle if it has one.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`] if there is one; [`Error::Invalid`] if the bundle is of another trust
    /// domain.
    async fn federation_create(
        &self,
        relationship: &FederationRelationship,
    ) -> Result<FederationRelationship>;
    /// One relationship, with its bundle if that is known.
    async fn federation_fetch(&self, trust_domain: &TrustDomain) -> Result<Option<FederationRelationship>>;
    /// Relationships in row order, all or a page of them.
    ///
    /// # Errors
    /// [`Error::Invalid`] as [`Bundles::bundle_list`].
    async fn federation_list(&self, paging: Option<&Paging>) -> Result<Page<FederationRelationship>>;
    /// Sets fields of one.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is none; [`Error::Invalid`] if the bundle is of another trust domain.
    async fn federation_update(
        &self,
        trust_domain: &TrustDomain,
        update: &FederationUpdate,
    ) -> Result<FederationRelationship>;
    /// Removes one; its bundle stays.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is none.
    async fn federation_delete(&self, trust_domain: &TrustDomain) -> Result<()>;
}

/// A stored journal and the row that it is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredJournal {
    /// The row.
    pub id: u64,
    /// Hex subject key ID of the X.509 authority that was active when it was stored.
    pub active_x509_authority_id: String,
    /// The journal.
    pub journal: CaJournal,
}

/// CA journals, one for each server.
#[async_trait]
pub trait Journals {
    /// Stores a journal in its row, or in a new one; returns the row.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is no such row.
    async fn journal_set(
        &self,
        id: Option<u64>,
        active_x509_authority_id: &str,
        journal: &CaJournal,
    ) -> Result<u64>;
    /// The journal whose active X.509 authority is this one.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an empty ID.
    async fn journal_fetch(&self, active_x509_authority_id: &str) -> Result<Option<StoredJournal>>;
    /// Removes journals all of whose authorities expired before the time.
    async fn journals_prune(&self, all_expired_before: Timestamp) -> Result<()>;
}

/// A change of an entry or node, made by any of the servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event<K> {
    /// The row.
    pub id: EventId,
    /// What changed. The reader has to read the object again; if it is not there, it was deleted.
    pub key: K,
}

/// The change logs through which servers on one database hear of each other's writes.
#[async_trait]
pub trait Events {
    /// Entry events after an id, oldest first, at most `limit`.
    async fn entry_events(&self, after: EventId, limit: u32) -> Result<Vec<Event<EntryId>>>;
    /// Node events after an id, oldest first, at most `limit`.
    async fn node_events(&self, after: EventId, limit: u32) -> Result<Vec<Event<SpiffeId>>>;
    /// The greatest ids that entry and node events have had so far, pruned events included; 0 if there were no events.
    async fn latest_events(&self) -> Result<(EventId, EventId)>;
    /// The entry events with these ids that are visible by now, oldest first. For ids that were skipped before.
    async fn entry_events_among(&self, ids: &[EventId]) -> Result<Vec<Event<EntryId>>>;
    /// The node events with these ids that are visible by now, oldest first.
    async fn node_events_among(&self, ids: &[EventId]) -> Result<Vec<Event<SpiffeId>>>;
    /// Resolves when another server may have appended events since the last call. This is a hint to poll sooner: it may
    /// come without reason, late, or never. By default it never comes. Cancel safe.
    async fn changed_elsewhere(&self) {
        std::future::pending().await
    }
    /// Removes the events that were appended before the time.
    async fn events_prune(&self, created_before: Timestamp) -> Result<()>;
}
