//! The datastore with its calls measured (pkg/common/telemetry/server/datastore/wrapper.go).
//!
//! A batch counts as so many calls, as the reference makes them; its time is that of the batch.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use spire_core::model::{
    CaJournal, Entry, EntryFilter, EntryId, EntryMask, FederationRelationship, FederationUpdate, JoinToken,
    Node, NodeFilter, NodeUpdate, Page, Paging,
};
use spire_core::spiffe::{Bundle, JwtAuthority, Selectors, SpiffeId, TrustDomain};
use spire_core::time::Timestamp;
use spire_ports::datastore::{
    BundleMask, Bundles, Consistency, Creation, DataStore, DeleteMode, Entries, Error, Event, EventId,
    Events, Federation, JoinTokens, Journals, Nodes, Result, StoredJournal, Written,
};
use spire_ports::observe::names::{self, Name, server as metric};
use spire_ports::observe::{Call, GrpcCode, Label, Metrics};

/// A datastore whose calls are measured.
pub(in crate::runtime) struct MeteredStore {
    store: Arc<dyn DataStore>,
    metrics: Arc<dyn Metrics>,
}

impl MeteredStore {
    pub(in crate::runtime) fn new(store: Arc<dyn DataStore>, metrics: Arc<dyn Metrics>) -> Arc<Self> {
        Arc::new(Self { store, metrics })
    }

    async fn call<T>(&self, name: Name, work: impl Future<Output = Result<T>>) -> Result<T> {
        let call = Call::start(&*self.metrics, name);
        let result = work.await;
        call.done(code(result.as_ref().err()));
        result
    }

    /// One call of the port for two of the reference.
    async fn both<T>(&self, names: [Name; 2], work: impl Future<Output = Result<T>>) -> Result<T> {
        let [first, second] = names;
        self.call(first, self.call(second, work)).await
    }

    /// A call that has an outcome an item.
    async fn batch<T>(
        &self,
        name: Name,
        work: impl Future<Output = Result<Vec<Result<T>>>>,
    ) -> Result<Vec<Result<T>>> {
        let start = Instant::now();
        let result = work.await;
        let mut outcomes: BTreeMap<&str, u16> = BTreeMap::new();
        match &result {
            Ok(items) => items.iter().for_each(|item| {
                let count = outcomes.entry(code(item.as_ref().err())).or_default();
                *count = count.saturating_add(1);
            }),
            Err(error) => drop(outcomes.insert(code(Some(error)), 1)),
        }
        let elapsed: Vec<&str> = name.iter().copied().chain([names::ELAPSED_TIME]).collect();
        for (status, count) in outcomes {
            let labels = [Label::new(names::label::STATUS, status)];
            self.metrics.incr_counter(name, f32::from(count), &labels);
            self.metrics.measure_since(&elapsed, start, &labels);
        }
        result
    }
}

fn code(error: Option<&Error>) -> &'static str {
    error.map_or("OK", GrpcCode::grpc_code)
}

#[async_trait]
impl Bundles for MeteredStore {
    async fn bundle_fetch(&self, trust_domain: &TrustDomain) -> Result<Option<Bundle>> {
        self.call(metric::DATASTORE_BUNDLE_FETCH, self.store.bundle_fetch(trust_domain)).await
    }

    async fn bundle_list(&self, paging: Option<&Paging>) -> Result<Page<Bundle>> {
        self.call(metric::DATASTORE_BUNDLE_LIST, self.store.bundle_list(paging)).await
    }

    async fn bundle_count(&self) -> Result<u32> {
        self.call(metric::DATASTORE_BUNDLE_COUNT, self.store.bundle_count()).await
    }

    async fn bundle_create(&self, bundle: &Bundle) -> Result<Bundle> {
        self.call(metric::DATASTORE_BUNDLE_CREATE, self.store.bundle_create(bundle)).await
    }

    async fn bundle_set(&self, bundle: &Bundle) -> Result<Bundle> {
        self.call(metric::DATASTORE_BUNDLE_SET, self.store.bundle_set(bundle)).await
    }

    async fn bundle_update(&self, bundle: &Bundle, mask: BundleMask) -> Result<Bundle> {
        self.call(metric::DATASTORE_BUNDLE_UPDATE, self.store.bundle_update(bundle, mask)).await
    }

    async fn bundle_append(&self, bundle: &Bundle) -> Result<Bundle> {
        self.call(metric::DATASTORE_BUNDLE_APPEND, self.store.bundle_append(bundle)).await
    }

    async fn bundle_delete(&self, trust_domain: &TrustDomain, mode: DeleteMode) -> Result<()> {
        self.call(metric::DATASTORE_BUNDLE_DELETE, self.store.bundle_delete(trust_domain, mode)).await
    }

    async fn bundle_prune(&self, trust_domain: &TrustDomain, expired_before: Timestamp) -> Result<bool> {
        self.call(metric::DATASTORE_BUNDLE_PRUNE, self.store.bundle_prune(trust_domain, expired_before)).await
    }

    async fn x509_authority_taint(&self, trust_domain: &TrustDomain, subject_key_id: &str) -> Result<()> {
        self.call(
            metric::DATASTORE_BUNDLE_X509_TAINT,
            self.store.x509_authority_taint(trust_domain, subject_key_id),
        )
        .await
    }

    async fn x509_authority_revoke(&self, trust_domain: &TrustDomain, subject_key_id: &str) -> Result<()> {
        self.call(
            metric::DATASTORE_BUNDLE_X509_REVOKE,
            self.store.x509_authority_revoke(trust_domain, subject_key_id),
        )
        .await
    }

    async fn jwt_authority_taint(&self, trust_domain: &TrustDomain, kid: &str) -> Result<JwtAuthority> {
        self.call(metric::DATASTORE_BUNDLE_JWT_TAINT, self.store.jwt_authority_taint(trust_domain, kid)).await
    }

    async fn jwt_authority_revoke(&self, trust_domain: &TrustDomain, kid: &str) -> Result<JwtAuthority> {
        self.call(metric::DATASTORE_BUNDLE_JWT_REVOKE, self.store.jwt_authority_revoke(trust_domain, kid))
            .await
    }

    // The reference has no metric for these two.

    async fn wit_authority_taint(&self, trust_domain: &TrustDomain, kid: &str) -> Result<JwtAuthority> {
        self.store.wit_authority_taint(trust_domain, kid).await
    }

    async fn wit_authority_revoke(&self, trust_domain: &TrustDomain, kid: &str) -> Result<JwtAuthority> {
        self.store.wit_authority_revoke(trust_domain, kid).await
    }
}

#[async_trait]
impl Entries for MeteredStore {
    async fn entries_create(&self, entries: Vec<Entry>) -> Result<Vec<Result<Creation>>> {
        self.batch(metric::DATASTORE_REGISTRATION_ENTRY_CREATE, self.store.entries_create(entries)).await
    }

    async fn entry_fetch(&self, id: &EntryId) -> Result<Option<Entry>> {
        self.call(metric::DATASTORE_REGISTRATION_ENTRY_FETCH, self.store.entry_fetch(id)).await
    }

    async fn entries_fetch(&self, ids: &[EntryId]) -> Result<Vec<Entry>> {
        self.call(metric::DATASTORE_REGISTRATION_ENTRY_FETCH, self.store.entries_fetch(ids)).await
    }

    async fn entry_list(
        &self,
        filter: &EntryFilter,
        paging: Option<&Paging>,
        consistency: Consistency,
    ) -> Result<Page<Entry>> {
        self.call(
            metric::DATASTORE_REGISTRATION_ENTRY_LIST,
            self.store.entry_list(filter, paging, consistency),
        )
        .await
    }

    async fn entry_count(&self, filter: &EntryFilter) -> Result<u32> {
        self.call(metric::DATASTORE_REGISTRATION_ENTRY_COUNT, self.store.entry_count(filter)).await
    }

    async fn entries_update(&self, updates: Vec<(Entry, EntryMask)>) -> Result<Vec<Result<Written<Entry>>>> {
        self.batch(metric::DATASTORE_REGISTRATION_ENTRY_UPDATE, self.store.entries_update(updates)).await
    }

    async fn entries_delete(&self, ids: &[EntryId]) -> Result<Vec<Result<Written<Entry>>>> {
        self.batch(metric::DATASTORE_REGISTRATION_ENTRY_DELETE, self.store.entries_delete(ids)).await
    }

    async fn entries_prune(&self, expired_before: Timestamp, limit: u32) -> Result<Vec<Written<Entry>>> {
        self.call(metric::DATASTORE_REGISTRATION_ENTRY_PRUNE, self.store.entries_prune(expired_before, limit))
            .await
    }
}

#[async_trait]
impl Nodes for MeteredStore {
    async fn node_attest(&self, node: &Node) -> Result<Written<Node>> {
        let names = [metric::DATASTORE_NODE_CREATE, metric::DATASTORE_NODE_SELECTORS_SET];
        self.both(names, self.store.node_attest(node)).await
    }

    async fn node_attest_by_token(&self, node: &Node, token: &str) -> Result<Option<Written<Node>>> {
        let names = [metric::DATASTORE_NODE_CREATE, metric::DATASTORE_NODE_SELECTORS_SET];
        let attested = self.both(names, self.store.node_attest_by_token(node, token));
        self.call(metric::DATASTORE_JOIN_TOKEN_DELETE, attested).await
    }

    async fn node_fetch(&self, id: &SpiffeId) -> Result<Option<Node>> {
        self.call(metric::DATASTORE_NODE_FETCH, self.store.node_fetch(id)).await
    }

    async fn node_row(&self, id: &SpiffeId) -> Result<Option<Node>> {
        self.call(metric::DATASTORE_NODE_FETCH, self.store.node_row(id)).await
    }

    async fn nodes_fetch(&self, ids: &[SpiffeId]) -> Result<Vec<Node>> {
        self.call(metric::DATASTORE_NODE_FETCH, self.store.nodes_fetch(ids)).await
    }

    async fn node_list(&self, filter: &NodeFilter, paging: Option<&Paging>) -> Result<Page<Node>> {
        self.call(metric::DATASTORE_NODE_LIST, self.store.node_list(filter, paging)).await
    }

    async fn node_count(&self, filter: &NodeFilter) -> Result<u32> {
        self.call(metric::DATASTORE_NODE_COUNT, self.store.node_count(filter)).await
    }

    async fn node_update(&self, id: &SpiffeId, update: &NodeUpdate) -> Result<Written<Node>> {
        self.call(metric::DATASTORE_NODE_UPDATE, self.store.node_update(id, update)).await
    }

    async fn node_delete(&self, id: &SpiffeId) -> Result<Written<Node>> {
        self.call(metric::DATASTORE_NODE_DELETE, self.store.node_delete(id)).await
    }

    async fn nodes_prune(
        &self,
        expired_before: Timestamp,
        include_non_reattestable: bool,
        limit: u32,
    ) -> Result<Vec<Written<SpiffeId>>> {
        self.call(
            metric::DATASTORE_NODE_PRUNE,
            self.store.nodes_prune(expired_before, include_non_reattestable, limit),
        )
        .await
    }

    async fn node_selectors(&self, id: &SpiffeId, consistency: Consistency) -> Result<Selectors> {
        self.call(metric::DATASTORE_NODE_SELECTORS_FETCH, self.store.node_selectors(id, consistency)).await
    }

    async fn node_selectors_set(&self, id: &SpiffeId, selectors: &Selectors) -> Result<EventId> {
        self.call(metric::DATASTORE_NODE_SELECTORS_SET, self.store.node_selectors_set(id, selectors)).await
    }
}

#[async_trait]
impl JoinTokens for MeteredStore {
    async fn join_token_create(&self, token: &JoinToken) -> Result<()> {
        self.call(metric::DATASTORE_JOIN_TOKEN_CREATE, self.store.join_token_create(token)).await
    }

    async fn join_token_fetch(&self, token: &str) -> Result<Option<JoinToken>> {
        self.call(metric::DATASTORE_JOIN_TOKEN_FETCH, self.store.join_token_fetch(token)).await
    }

    async fn join_token_delete(&self, token: &str) -> Result<bool> {
        self.call(metric::DATASTORE_JOIN_TOKEN_DELETE, self.store.join_token_delete(token)).await
    }

    async fn join_tokens_prune(&self, expired_before: Timestamp) -> Result<()> {
        self.call(metric::DATASTORE_JOIN_TOKEN_PRUNE, self.store.join_tokens_prune(expired_before)).await
    }
}

#[async_trait]
impl Federation for MeteredStore {
    async fn federation_create(
        &self,
        relationship: &FederationRelationship,
    ) -> Result<FederationRelationship> {
        self.call(
            metric::DATASTORE_FEDERATION_RELATIONSHIP_CREATE,
            self.store.federation_create(relationship),
        )
        .await
    }

    async fn federation_fetch(&self, trust_domain: &TrustDomain) -> Result<Option<FederationRelationship>> {
        self.call(metric::DATASTORE_FEDERATION_RELATIONSHIP_FETCH, self.store.federation_fetch(trust_domain))
            .await
    }

    async fn federation_list(&self, paging: Option<&Paging>) -> Result<Page<FederationRelationship>> {
        self.call(metric::DATASTORE_FEDERATION_RELATIONSHIP_LIST, self.store.federation_list(paging)).await
    }

    async fn federation_update(
        &self,
        trust_domain: &TrustDomain,
        update: &FederationUpdate,
    ) -> Result<FederationRelationship> {
        self.call(
            metric::DATASTORE_FEDERATION_RELATIONSHIP_UPDATE,
            self.store.federation_update(trust_domain, update),
        )
        .await
    }

    async fn federation_delete(&self, trust_domain: &TrustDomain) -> Result<()> {
        self.call(
            metric::DATASTORE_FEDERATION_RELATIONSHIP_DELETE,
            self.store.federation_delete(trust_domain),
        )
        .await
    }
}

#[async_trait]
impl Journals for MeteredStore {
    async fn journal_set(
        &self,
        id: Option<u64>,
        active_x509_authority_id: &str,
        journal: &CaJournal,
    ) -> Result<u64> {
        self.call(
            metric::DATASTORE_CA_JOURNAL_SET,
            self.store.journal_set(id, active_x509_authority_id, journal),
        )
        .await
    }

    async fn journal_fetch(&self, active_x509_authority_id: &str) -> Result<Option<StoredJournal>> {
        self.call(metric::DATASTORE_CA_JOURNAL_FETCH, self.store.journal_fetch(active_x509_authority_id))
            .await
    }

    async fn journals_prune(&self, all_expired_before: Timestamp) -> Result<()> {
        self.call(metric::DATASTORE_CA_JOURNAL_PRUNE, self.store.journals_prune(all_expired_before)).await
    }
}

#[async_trait]
impl Events for MeteredStore {
    async fn entry_events(&self, after: EventId, limit: u32) -> Result<Vec<Event<EntryId>>> {
        self.call(metric::DATASTORE_REGISTRATION_ENTRY_EVENT_LIST, self.store.entry_events(after, limit))
            .await
    }

    async fn node_events(&self, after: EventId, limit: u32) -> Result<Vec<Event<SpiffeId>>> {
        self.call(metric::DATASTORE_NODE_EVENT_LIST, self.store.node_events(after, limit)).await
    }

    async fn latest_events(&self) -> Result<(EventId, EventId)> {
        let names = [metric::DATASTORE_REGISTRATION_ENTRY_EVENT_LIST, metric::DATASTORE_NODE_EVENT_LIST];
        self.both(names, self.store.latest_events()).await
    }

    async fn entry_events_among(&self, ids: &[EventId]) -> Result<Vec<Event<EntryId>>> {
        self.call(metric::DATASTORE_REGISTRATION_ENTRY_EVENT_FETCH, self.store.entry_events_among(ids)).await
    }

    async fn node_events_among(&self, ids: &[EventId]) -> Result<Vec<Event<SpiffeId>>> {
        self.call(metric::DATASTORE_NODE_EVENT_FETCH, self.store.node_events_among(ids)).await
    }

    async fn changed_elsewhere(&self) {
        self.store.changed_elsewhere().await;
    }

    async fn events_prune(&self, created_before: Timestamp) -> Result<()> {
        let names = [metric::DATASTORE_REGISTRATION_ENTRY_EVENT_PRUNE, metric::DATASTORE_NODE_EVENT_PRUNE];
        self.both(names, self.store.events_prune(created_before)).await
    }
}
