//! A small datastore in memory, keys and a clock for tests of this crate. It keeps the promises that the services rely
//! on: outcomes an item, events that grow, row order, atomic tokens.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};

use async_trait::async_trait;
use parking_lot::Mutex;
use spire_core::model::{
    CaJournal, Entry, EntryFilter, EntryId, EntryMask, FederationRelationship, FederationUpdate, JoinToken,
    Node, NodeFilter, NodeUpdate, Page, Paging,
};
use spire_core::pki::{Certificate, KeyType, LocalKey, PublicKey, SignatureAlgorithm};
use spire_core::spiffe::{Bundle, JwtAuthority, Selectors, SpiffeId, TrustDomain, X509Authority};
use spire_core::time::Timestamp;
use spire_ports::datastore::*;
use spire_ports::plugins::{self, Key, KeyManager};

use crate::clock::Clock;

/// The time at which tests begin.
pub(crate) const START: i64 = 1_700_000_000;

pub(crate) struct FakeClock(AtomicI64);

impl FakeClock {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self(AtomicI64::new(START)))
    }

    pub(crate) fn pass(&self, seconds: i64) {
        self.0.fetch_add(seconds, Ordering::Relaxed);
    }
}

impl Clock for FakeClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_unix(self.0.load(Ordering::Relaxed))
    }
}

#[derive(Default)]
pub(crate) struct MemoryStore {
    pub(crate) rows: Mutex<Rows>,
    /// While true, what was read or written is not answered by the calls that use [`MemoryStore::answered`].
    pub(crate) silent: tokio::sync::watch::Sender<bool>,
    /// How many calls wait for that or got through.
    pub(crate) asked: AtomicUsize,
}

#[derive(Default)]
pub(crate) struct Rows {
    pub(crate) bundles: Vec<Bundle>,
    pub(crate) entries: Vec<Entry>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) tokens: Vec<JoinToken>,
    pub(crate) relationships: Vec<FederationRelationship>,
    pub(crate) journals: Vec<StoredJournal>,
    pub(crate) entry_events: Vec<Event<EntryId>>,
    pub(crate) node_events: Vec<Event<SpiffeId>>,
    /// The times before which events were pruned.
    pub(crate) events_pruned: Vec<Timestamp>,
    /// Answers every call with an error.
    pub(crate) broken: bool,
}

impl Rows {
    fn entry_event(&mut self, key: &EntryId) -> EventId {
        let id = self.entry_events.last().map_or(1, |e| e.id + 1);
        self.entry_events.push(Event { id, key: key.clone() });
        id
    }

    fn node_event(&mut self, key: &SpiffeId) -> EventId {
        let id = self.node_events.last().map_or(1, |e| e.id + 1);
        self.node_events.push(Event { id, key: key.clone() });
        id
    }
}

impl MemoryStore {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    fn rows(&self) -> Result<parking_lot::MutexGuard<'_, Rows>> {
        let rows = self.rows.lock();
        if rows.broken { Err(Error::Unavailable("database is locked".into())) } else { Ok(rows) }
    }

    async fn answered<T>(&self, answer: Result<T>) -> Result<T> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.silent.subscribe().wait_for(|silent| !silent).await.unwrap();
        answer
    }

    /// A write of another server: the view is not told.
    pub(crate) fn foreign_entry(&self, entry: &Entry) {
        let mut rows = self.rows.lock();
        rows.entries.retain(|e| e.id != entry.id);
        rows.entries.push(entry.clone());
        rows.entry_event(&entry.id);
    }
}

impl MemoryStore {
    /// A deletion by another server: the view is not told.
    pub(crate) fn entries_delete_by_other(&self, id: &EntryId) {
        let mut rows = self.rows.lock();
        rows.entries.retain(|e| e.id != *id);
        rows.entry_event(id);
    }
}

/// Rows after the token, at most a page of them; the token is the place of the last one.
fn page<T: Clone>(all: impl Iterator<Item = T>, paging: Option<&Paging>) -> Result<Page<T>> {
    let Some(paging) = paging else { return Ok(Page { items: all.collect(), next: String::new() }) };
    let skip = match paging.token.as_str() {
        "" => 0,
        token => {
            token.parse::<usize>().map_err(|_| Error::Invalid(format!("could not parse token '{token}'")))?
        }
    };
    let items: Vec<T> = all.skip(skip).take(paging.size as usize).collect();
    let next = if items.is_empty() { String::new() } else { (skip + items.len()).to_string() };
    Ok(Page { items, next })
}

fn matches(entry: &Entry, filter: &EntryFilter) -> bool {
    filter.spiffe_id.as_ref().is_none_or(|id| *id == entry.spiffe_id)
        && filter.parent_id.as_ref().is_none_or(|id| *id == entry.parent_id)
        && filter.selectors.as_ref().is_none_or(|wanted| wanted.matches(&entry.selectors))
        && filter.hint.as_ref().is_none_or(|hint| **hint == *entry.hint)
        && filter.downstream.is_none_or(|downstream| downstream == entry.downstream)
}

fn node_matches(node: &Node, filter: &NodeFilter) -> bool {
    filter.attestation_type.as_ref().is_none_or(|kind| **kind == *node.attestation_type)
        && filter.banned.is_none_or(|banned| banned == node.is_banned())
        && filter.can_reattest.is_none_or(|can| can == node.can_reattest)
        && filter.expires_before.is_none_or(|at| node.expires_at < at)
        && filter.selectors.as_ref().is_none_or(|wanted| wanted.matches(&node.selectors))
}

impl Rows {
    fn update_node(&mut self, id: &SpiffeId, update: &NodeUpdate) -> Result<Written<Node>> {
        let node = self.nodes.iter_mut().find(|n| n.spiffe_id == *id).ok_or(Error::NotFound)?;
        let update = update.clone();
        node.serial_number = update.serial_number.unwrap_or_else(|| node.serial_number.clone());
        node.expires_at = update.expires_at.unwrap_or(node.expires_at);
        node.new_serial_number = update.new_serial_number.unwrap_or_else(|| node.new_serial_number.clone());
        node.new_expires_at = update.new_expires_at.unwrap_or(node.new_expires_at);
        node.can_reattest = update.can_reattest.unwrap_or(node.can_reattest);
        node.agent_version = update.agent_version.unwrap_or_else(|| node.agent_version.clone());
        // As the port allows: the answer to an update comes without selectors.
        let value = Node { selectors: Selectors::default(), ..node.clone() };
        let event = self.node_event(id);
        Ok(Written { value, event })
    }

    fn bundle(&mut self, trust_domain: &TrustDomain) -> Result<&mut Bundle> {
        self.bundles.iter_mut().find(|b| b.trust_domain == *trust_domain).ok_or(Error::NotFound)
    }
}

fn authority_id(authority: &X509Authority) -> String {
    Certificate::from_der(authority.der.clone()).unwrap().authority_id()
}

fn taint(keys: &mut [JwtAuthority], kid: &str) -> Result<JwtAuthority> {
    let key = keys.iter_mut().find(|key| key.kid == kid && !key.tainted).ok_or(Error::NotFound)?;
    key.tainted = true;
    Ok(key.clone())
}

fn revoke(keys: &mut Vec<JwtAuthority>, kid: &str) -> Result<JwtAuthority> {
    let at = keys.iter().position(|key| key.kid == kid && key.tainted).ok_or(Error::NotFound)?;
    Ok(keys.remove(at))
}

#[async_trait]
impl Bundles for MemoryStore {
    async fn bundle_fetch(&self, trust_domain: &TrustDomain) -> Result<Option<Bundle>> {
        let found =
            self.rows().map(|rows| rows.bundles.iter().find(|b| b.trust_domain == *trust_domain).cloned());
        self.answered(found).await
    }
    async fn bundle_list(&self, paging: Option<&Paging>) -> Result<Page<Bundle>> {
        page(self.rows()?.bundles.iter().cloned(), paging)
    }
    async fn bundle_count(&self) -> Result<u32> {
        Ok(self.rows()?.bundles.len() as u32)
    }
    async fn bundle_create(&self, bundle: &Bundle) -> Result<Bundle> {
        let mut rows = self.rows()?;
        if rows.bundles.iter().any(|b| b.trust_domain == bundle.trust_domain) {
            return Err(Error::AlreadyExists("UNIQUE constraint failed: bundles.trust_domain".into()));
        }
        rows.bundles.push(bundle.clone());
        Ok(bundle.clone())
    }
    async fn bundle_set(&self, bundle: &Bundle) -> Result<Bundle> {
        let mut rows = self.rows()?;
        rows.bundles.retain(|b| b.trust_domain != bundle.trust_domain);
        rows.bundles.push(bundle.clone());
        Ok(bundle.clone())
    }
    async fn bundle_update(&self, bundle: &Bundle, mask: BundleMask) -> Result<Bundle> {
        let mut rows = self.rows()?;
        let known =
            rows.bundles.iter_mut().find(|b| b.trust_domain == bundle.trust_domain).ok_or(Error::NotFound)?;
        if mask.x509_authorities {
            known.x509_authorities.clone_from(&bundle.x509_authorities);
        }
        if mask.refresh_hint {
            known.refresh_hint = bundle.refresh_hint;
        }
        Ok(known.clone())
    }
    async fn bundle_append(&self, bundle: &Bundle) -> Result<Bundle> {
        let mut rows = self.rows()?;
        if let Some(known) = rows.bundles.iter_mut().find(|b| b.trust_domain == bundle.trust_domain) {
            if known.merge(bundle) {
                known.sequence_number += 1;
            }
            return Ok(known.clone());
        }
        rows.bundles.push(bundle.clone());
        Ok(bundle.clone())
    }
    async fn bundle_delete(&self, trust_domain: &TrustDomain, _: DeleteMode) -> Result<()> {
        let mut rows = self.rows()?;
        let before = rows.bundles.len();
        rows.bundles.retain(|b| b.trust_domain != *trust_domain);
        if rows.bundles.len() == before { Err(Error::NotFound) } else { Ok(()) }
    }
    async fn bundle_prune(&self, _: &TrustDomain, _: Timestamp) -> Result<bool> {
        Ok(false)
    }
    async fn x509_authority_taint(&self, trust_domain: &TrustDomain, id: &str) -> Result<()> {
        let mut rows = self.rows()?;
        let all = &mut rows.bundle(trust_domain)?.x509_authorities;
        all.iter_mut().find(|a| authority_id(a) == id).ok_or(Error::NotFound)?.tainted = true;
        Ok(())
    }
    async fn x509_authority_revoke(&self, trust_domain: &TrustDomain, id: &str) -> Result<()> {
        let mut rows = self.rows()?;
        let all = &mut rows.bundle(trust_domain)?.x509_authorities;
        let at = all.iter().position(|a| a.tainted && authority_id(a) == id).ok_or(Error::NotFound)?;
        all.remove(at);
        Ok(())
    }
    async fn jwt_authority_taint(&self, trust_domain: &TrustDomain, kid: &str) -> Result<JwtAuthority> {
        taint(&mut self.rows()?.bundle(trust_domain)?.jwt_authorities, kid)
    }
    async fn jwt_authority_revoke(&self, trust_domain: &TrustDomain, kid: &str) -> Result<JwtAuthority> {
        revoke(&mut self.rows()?.bundle(trust_domain)?.jwt_authorities, kid)
    }
    async fn wit_authority_taint(&self, trust_domain: &TrustDomain, kid: &str) -> Result<JwtAuthority> {
        taint(&mut self.rows()?.bundle(trust_domain)?.wit_authorities, kid)
    }
    async fn wit_authority_revoke(&self, trust_domain: &TrustDomain, kid: &str) -> Result<JwtAuthority> {
        revoke(&mut self.rows()?.bundle(trust_domain)?.wit_authorities, kid)
    }
}

#[async_trait]
impl Entries for MemoryStore {
    async fn entries_create(&self, entries: Vec<Entry>) -> Result<Vec<Result<Creation>>> {
        let mut rows = self.rows()?;
        let mut outcomes = Vec::new();
        for mut entry in entries {
            let similar = rows.entries.iter().find(|e| {
                e.spiffe_id == entry.spiffe_id
                    && e.parent_id == entry.parent_id
                    && e.selectors == entry.selectors
            });
            if let Some(similar) = similar {
                outcomes.push(Ok(Creation::Similar(similar.clone())));
                continue;
            }
            if rows.entries.iter().any(|e| e.id == entry.id) {
                outcomes.push(Err(Error::AlreadyExists(
                    "UNIQUE constraint failed: registered_entries.entry_id".into(),
                )));
                continue;
            }
            entry.created_at = Timestamp::from_unix(START);
            let event = rows.entry_event(&entry.id);
            rows.entries.push(entry.clone());
            outcomes.push(Ok(Creation::Created(Written { value: entry, event })));
        }
        Ok(outcomes)
    }
    async fn entry_fetch(&self, id: &EntryId) -> Result<Option<Entry>> {
        Ok(self.rows()?.entries.iter().find(|e| e.id == *id).cloned())
    }
    async fn entries_fetch(&self, ids: &[EntryId]) -> Result<Vec<Entry>> {
        Ok(self.rows()?.entries.iter().filter(|e| ids.contains(&e.id)).cloned().collect())
    }
    async fn entry_list(
        &self,
        filter: &EntryFilter,
        paging: Option<&Paging>,
        _: Consistency,
    ) -> Result<Page<Entry>> {
        page(self.rows()?.entries.iter().filter(|e| matches(e, filter)).cloned(), paging)
    }
    async fn entry_count(&self, filter: &EntryFilter) -> Result<u32> {
        Ok(self.rows()?.entries.iter().filter(|e| matches(e, filter)).count() as u32)
    }
    async fn entries_update(&self, updates: Vec<(Entry, EntryMask)>) -> Result<Vec<Result<Written<Entry>>>> {
        let mut rows = self.rows()?;
        let mut outcomes = Vec::new();
        for (update, mask) in updates {
            let Some(known) = rows.entries.iter_mut().find(|e| e.id == update.id) else {
                outcomes.push(Err(Error::NotFound));
                continue;
            };
            known.apply(&update, mask);
            known.revision += 1;
            let value = known.clone();
            let event = rows.entry_event(&value.id);
            outcomes.push(Ok(Written { value, event }));
        }
        Ok(outcomes)
    }
    async fn entries_delete(&self, ids: &[EntryId]) -> Result<Vec<Result<Written<Entry>>>> {
        let mut rows = self.rows()?;
        let mut outcomes = Vec::new();
        for id in ids {
            let Some(at) = rows.entries.iter().position(|e| e.id == *id) else {
                outcomes.push(Err(Error::NotFound));
                continue;
            };
            let value = rows.entries.remove(at);
            let event = rows.entry_event(id);
            outcomes.push(Ok(Written { value, event }));
        }
        Ok(outcomes)
    }
    async fn entries_prune(&self, expired_before: Timestamp, limit: u32) -> Result<Vec<Written<Entry>>> {
        let expired: Vec<EntryId> = {
            let rows = self.rows()?;
            let expired = rows.entries.iter().filter(|e| e.is_expired(expired_before));
            expired.take(limit as usize).map(|e| e.id.clone()).collect()
        };
        self.entries_delete(&expired).await?.into_iter().collect()
    }
}

#[async_trait]
impl Nodes for MemoryStore {
    async fn node_attest(&self, node: &Node) -> Result<Written<Node>> {
        let mut rows = self.rows()?;
        rows.nodes.retain(|n| n.spiffe_id != node.spiffe_id);
        rows.nodes.push(node.clone());
        let event = rows.node_event(&node.spiffe_id);
        Ok(Written { value: node.clone(), event })
    }
    async fn node_attest_by_token(&self, node: &Node, token: &str) -> Result<Option<Written<Node>>> {
        if self.join_token_delete(token).await? { self.node_attest(node).await.map(Some) } else { Ok(None) }
    }
    async fn node_fetch(&self, id: &SpiffeId) -> Result<Option<Node>> {
        Ok(self.rows()?.nodes.iter().find(|n| n.spiffe_id == *id).cloned())
    }
    async fn node_row(&self, id: &SpiffeId) -> Result<Option<Node>> {
        let found = self.node_fetch(id).await?;
        Ok(found.map(|node| Node { selectors: Selectors::default(), ..node }))
    }
    async fn nodes_fetch(&self, ids: &[SpiffeId]) -> Result<Vec<Node>> {
        let found = self
            .rows()
            .map(|rows| rows.nodes.iter().filter(|n| ids.contains(&n.spiffe_id)).cloned().collect());
        self.answered(found).await
    }
    async fn node_list(&self, filter: &NodeFilter, paging: Option<&Paging>) -> Result<Page<Node>> {
        page(self.rows()?.nodes.iter().filter(|n| node_matches(n, filter)).cloned(), paging)
    }
    async fn node_count(&self, filter: &NodeFilter) -> Result<u32> {
        Ok(self.rows()?.nodes.iter().filter(|n| node_matches(n, filter)).count() as u32)
    }
    async fn node_update(&self, id: &SpiffeId, update: &NodeUpdate) -> Result<Written<Node>> {
        let written = self.rows().and_then(|mut rows| rows.update_node(id, update));
        self.answered(written).await
    }
    async fn node_delete(&self, id: &SpiffeId) -> Result<Written<Node>> {
        let mut rows = self.rows()?;
        let at = rows.nodes.iter().position(|n| n.spiffe_id == *id).ok_or(Error::NotFound)?;
        let value = rows.nodes.remove(at);
        let event = rows.node_event(id);
        let alias: Selectors = [spire_core::spiffe::Selector::spiffe_id(id)].into_iter().collect();
        let gone: Vec<EntryId> = rows
            .entries
            .iter()
            .filter(|e| e.parent_id == *id && e.selectors == alias)
            .map(|e| e.id.clone())
            .collect();
        rows.entries.retain(|e| !gone.contains(&e.id));
        for id in &gone {
            rows.entry_event(id);
        }
        Ok(Written { value, event })
    }
    async fn nodes_prune(&self, before: Timestamp, all: bool, limit: u32) -> Result<Vec<Written<SpiffeId>>> {
        let mut rows = self.rows()?;
        let expired: Vec<SpiffeId> = rows
            .nodes
            .iter()
            .filter(|n| n.expires_at < before && !n.is_banned() && (all || n.can_reattest))
            .take(limit as usize)
            .map(|n| n.spiffe_id.clone())
            .collect();
        rows.nodes.retain(|n| !expired.contains(&n.spiffe_id));
        Ok(expired.into_iter().map(|id| Written { event: rows.node_event(&id), value: id }).collect())
    }
    async fn node_selectors(&self, id: &SpiffeId, _: Consistency) -> Result<Selectors> {
        Ok(self.node_fetch(id).await?.map(|n| n.selectors).unwrap_or_default())
    }
    async fn node_selectors_set(&self, id: &SpiffeId, selectors: &Selectors) -> Result<EventId> {
        let mut rows = self.rows()?;
        if let Some(node) = rows.nodes.iter_mut().find(|n| n.spiffe_id == *id) {
            node.selectors = selectors.clone();
        }
        Ok(rows.node_event(id))
    }
}

#[async_trait]
impl JoinTokens for MemoryStore {
    async fn join_token_create(&self, token: &JoinToken) -> Result<()> {
        self.rows()?.tokens.push(token.clone());
        Ok(())
    }
    async fn join_token_fetch(&self, token: &str) -> Result<Option<JoinToken>> {
        Ok(self.rows()?.tokens.iter().find(|t| t.token == token).cloned())
    }
    async fn join_token_delete(&self, token: &str) -> Result<bool> {
        let mut rows = self.rows()?;
        let before = rows.tokens.len();
        rows.tokens.retain(|t| t.token != token);
        Ok(rows.tokens.len() < before)
    }
    async fn join_tokens_prune(&self, before: Timestamp) -> Result<()> {
        self.rows()?.tokens.retain(|t| t.expires_at >= before);
        Ok(())
    }
}

#[async_trait]
impl Federation for MemoryStore {
    async fn federation_create(
        &self,
        relationship: &FederationRelationship,
    ) -> Result<FederationRelationship> {
        self.rows()?.relationships.push(relationship.clone());
        Ok(relationship.clone())
    }
    async fn federation_fetch(&self, trust_domain: &TrustDomain) -> Result<Option<FederationRelationship>> {
        Ok(self.rows()?.relationships.iter().find(|r| r.trust_domain == *trust_domain).cloned())
    }
    async fn federation_list(&self, paging: Option<&Paging>) -> Result<Page<FederationRelationship>> {
        page(self.rows()?.relationships.iter().cloned(), paging)
    }
    async fn federation_update(
        &self,
        td: &TrustDomain,
        update: &FederationUpdate,
    ) -> Result<FederationRelationship> {
        let mut rows = self.rows()?;
        let known = rows.relationships.iter_mut().find(|r| r.trust_domain == *td).ok_or(Error::NotFound)?;
        if let Some(url) = &update.endpoint_url {
            known.endpoint_url.clone_from(url);
        }
        if let Some(endpoint) = &update.endpoint {
            known.endpoint = endpoint.clone();
        }
        Ok(known.clone())
    }
    async fn federation_delete(&self, td: &TrustDomain) -> Result<()> {
        let mut rows = self.rows()?;
        let before = rows.relationships.len();
        rows.relationships.retain(|r| r.trust_domain != *td);
        if rows.relationships.len() == before { Err(Error::NotFound) } else { Ok(()) }
    }
}

#[async_trait]
impl Journals for MemoryStore {
    async fn journal_set(&self, id: Option<u64>, active: &str, journal: &CaJournal) -> Result<u64> {
        let mut rows = self.rows()?;
        let id = id.unwrap_or(rows.journals.len() as u64 + 1);
        rows.journals.retain(|j| j.id != id);
        rows.journals.push(StoredJournal {
            id,
            active_x509_authority_id: active.to_owned(),
            journal: journal.clone(),
        });
        Ok(id)
    }
    async fn journal_fetch(&self, active: &str) -> Result<Option<StoredJournal>> {
        Ok(self.rows()?.journals.iter().find(|j| j.active_x509_authority_id == active).cloned())
    }
    async fn journals_prune(&self, _: Timestamp) -> Result<()> {
        Ok(())
    }
}

#[async_trait]
impl Events for MemoryStore {
    async fn entry_events(&self, after: EventId, limit: u32) -> Result<Vec<Event<EntryId>>> {
        let rows = self.rows()?;
        Ok(rows.entry_events.iter().filter(|e| e.id > after).take(limit as usize).cloned().collect())
    }
    async fn node_events(&self, after: EventId, limit: u32) -> Result<Vec<Event<SpiffeId>>> {
        let rows = self.rows()?;
        Ok(rows.node_events.iter().filter(|e| e.id > after).take(limit as usize).cloned().collect())
    }
    async fn latest_events(&self) -> Result<(EventId, EventId)> {
        let rows = self.rows()?;
        Ok((rows.entry_events.last().map_or(0, |e| e.id), rows.node_events.last().map_or(0, |e| e.id)))
    }
    async fn entry_events_among(&self, ids: &[EventId]) -> Result<Vec<Event<EntryId>>> {
        Ok(self.rows()?.entry_events.iter().filter(|e| ids.contains(&e.id)).cloned().collect())
    }
    async fn node_events_among(&self, ids: &[EventId]) -> Result<Vec<Event<SpiffeId>>> {
        Ok(self.rows()?.node_events.iter().filter(|e| ids.contains(&e.id)).cloned().collect())
    }
    async fn events_prune(&self, created_before: Timestamp) -> Result<()> {
        self.rows()?.events_pruned.push(created_before);
        Ok(())
    }
}

/// Keys in memory.
#[derive(Default)]
pub(crate) struct MemoryKeys(Mutex<BTreeMap<String, Arc<LocalKey>>>);

struct MemoryKey(String, Arc<LocalKey>);

#[async_trait]
impl Key for MemoryKey {
    fn id(&self) -> &str {
        &self.0
    }
    fn public_key(&self) -> &PublicKey {
        self.1.public_key()
    }
    async fn sign(&self, algorithm: SignatureAlgorithm, message: &[u8]) -> plugins::Result<Vec<u8>> {
        Ok(self.1.sign(algorithm, message).expect("a key signs with its own algorithm"))
    }
}

#[async_trait]
impl KeyManager for MemoryKeys {
    fn name(&self) -> &str {
        "memory"
    }
    async fn generate_key(&self, id: &str, key_type: KeyType) -> plugins::Result<Arc<dyn Key>> {
        let key = Arc::new(LocalKey::generate(key_type).expect("a key"));
        self.0.lock().insert(id.to_owned(), key.clone());
        Ok(Arc::new(MemoryKey(id.to_owned(), key)))
    }
    async fn key(&self, id: &str) -> plugins::Result<Option<Arc<dyn Key>>> {
        let key = self.0.lock().get(id).cloned();
        Ok(key.map(|key| Arc::new(MemoryKey(id.to_owned(), key)) as Arc<dyn Key>))
    }
    async fn keys(&self) -> plugins::Result<Vec<Arc<dyn Key>>> {
        let keys = self.0.lock().clone();
        Ok(keys.into_iter().map(|(id, key)| Arc::new(MemoryKey(id, key)) as Arc<dyn Key>).collect())
    }
}
