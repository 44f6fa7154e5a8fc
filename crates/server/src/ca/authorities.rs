//! Which authorities are active: loading, rotating and recording them.
//!
//! All changes happen under one lock, one after the other; what they lead to is published behind atomic
//! pointers. The order of effects is that of [`spire_core::authority`]: key, certificate, bundle, journal,
//! and only then memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use spire_core::authority::{Authority, Kind, Slots, Step};
use spire_core::model::{CaJournal, KeyRecord, SlotName, X509CaRecord};
use spire_core::pki::Certificate;
use spire_core::time::Timestamp;
use spire_ports::datastore::{Bundles, DataStore, Journals};
use spire_ports::observe::names::{label, server as metric};
use spire_ports::observe::{HealthCheck, HealthState, Label, Logged, Metrics};
use spire_ports::plugins::{CredentialComposer, Key, KeyManager, UpstreamAuthority};
use tokio::sync::Mutex;

use super::active::{ActiveKey, ActiveX509};
use super::bundle::BundleChanges;
use super::config::CaConfig;
use super::error::CaError;
use super::sign::ServerCa;
use super::upstream::Upstream;
use crate::clock::Clock;

/// The name of the subsystem in logs.
pub(super) const SUBSYSTEM: &str = "ca_manager";
/// More failed rotations than this make the server unhealthy (pkg/server/ca/rotator).
const FAILURES_MAX: u64 = 10;
/// A rotation takes at most: prepare and activate the current, prepare and activate the next authority.
const STEPS_MAX: usize = 4;

/// The world that authorities live in.
#[derive(Clone)]
pub struct CaPorts {
    /// Where bundles are stored.
    pub bundles: Arc<dyn Bundles + Send + Sync>,
    /// Where journals are stored.
    pub journals: Arc<dyn Journals + Send + Sync>,
    /// Where private keys live.
    pub key_manager: Arc<dyn KeyManager>,
    /// Who signs our CA; `None` for self-signed CAs.
    pub upstream: Option<Arc<dyn UpstreamAuthority>>,
    /// Hooks on what is signed, in order.
    pub composers: Vec<Arc<dyn CredentialComposer>>,
    /// Where metrics go.
    pub metrics: Arc<dyn Metrics>,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
}

impl CaPorts {
    /// Over one datastore, without upstream authority and composers.
    pub fn new(
        store: &Arc<dyn DataStore>,
        key_manager: Arc<dyn KeyManager>,
        metrics: Arc<dyn Metrics>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            bundles: Arc::clone(store) as Arc<dyn Bundles + Send + Sync>,
            journals: Arc::clone(store) as Arc<dyn Journals + Send + Sync>,
            key_manager,
            upstream: None,
            composers: Vec::new(),
            metrics,
            clock,
        }
    }
}

/// An authority whose key and certificate exist but that is not recorded yet. It is kept when the bundle
/// or the journal cannot be written, so that trying again does not make another one.
pub(super) struct Made<A> {
    pub(super) authority: A,
    pub(super) key: Arc<dyn Key>,
}

/// One kind's machine with the keys in its slots.
pub(super) struct Lane<A> {
    pub(super) slots: Slots<A>,
    pub(super) keys: [Option<Arc<dyn Key>>; 2],
    pub(super) made: Option<Made<A>>,
}

impl<A: Authority> Default for Lane<A> {
    fn default() -> Self {
        Self { slots: Slots::default(), keys: [None, None], made: None }
    }
}

impl<A> Lane<A> {
    pub(super) fn key_mut(&mut self, slot: SlotName) -> &mut Option<Arc<dyn Key>> {
        &mut self.keys[usize::from(slot == SlotName::B)]
    }
}

#[derive(Default)]
pub(super) struct State {
    pub(super) x509: Lane<X509CaRecord>,
    pub(super) jwt: Lane<KeyRecord>,
    pub(super) wit: Lane<KeyRecord>,
    pub(super) journal_row: Option<u64>,
}

impl State {
    pub(super) fn keys(&self, kind: Kind) -> &Lane<KeyRecord> {
        if kind == Kind::Wit { &self.wit } else { &self.jwt }
    }

    pub(super) fn keys_mut(&mut self, kind: Kind) -> &mut Lane<KeyRecord> {
        if kind == Kind::Wit { &mut self.wit } else { &mut self.jwt }
    }
}

/// What a journal is to say where it differs from memory.
pub(super) enum Change<'a> {
    X509(&'a Slots<X509CaRecord>),
    Key(Kind, &'a Slots<KeyRecord>),
}

/// Decides which authorities are active. Share it by `Arc`.
pub struct Authorities {
    pub(super) config: CaConfig,
    pub(super) ports: CaPorts,
    pub(super) ca: Arc<ServerCa>,
    pub(super) changes: Arc<BundleChanges>,
    pub(super) upstream: Option<Upstream>,
    pub(super) state: Mutex<State>,
    pub(super) publishing_warned: [AtomicBool; 2],
    x509_slots: ArcSwap<Slots<X509CaRecord>>,
    jwt_slots: ArcSwap<Slots<KeyRecord>>,
    wit_slots: ArcSwap<Slots<KeyRecord>>,
    failures: AtomicU64,
}

impl Authorities {
    /// Loads what journal and keys allow, prepares and activates what is due, and makes the bundle known.
    /// When it returns, X.509-SVIDs can be signed (and tokens, unless their keys failed to rotate, which
    /// is logged and tried again).
    ///
    /// # Errors
    /// [`CaError`] when there is no X.509 CA to sign with.
    pub async fn start(config: CaConfig, ports: CaPorts) -> Result<Arc<Self>, CaError> {
        let config = config.with_default_subjects();
        let ca = ServerCa::new(
            config.clone(),
            ports.composers.clone(),
            Arc::clone(&ports.clock),
            Arc::clone(&ports.metrics),
        )?;
        let changes = Arc::new(BundleChanges::new(config.trust_domain.clone(), Arc::clone(&ports.bundles)));
        let upstream = ports.upstream.clone().map(|plugin| {
            let follows_wit = config.has_keys(Kind::Wit);
            Upstream::new(plugin, Arc::clone(&changes), follows_wit)
        });
        let authorities = Arc::new(Self {
            ca: Arc::new(ca),
            changes,
            upstream,
            state: Mutex::default(),
            publishing_warned: Default::default(),
            x509_slots: ArcSwap::default(),
            jwt_slots: ArcSwap::default(),
            wit_slots: ArcSwap::default(),
            failures: AtomicU64::new(0),
            config,
            ports,
        });
        authorities.load().await?;
        match authorities.rotate().await {
            Err(error) if authorities.ca.active_x509().is_none() => return Err(error),
            // An authority that still signs is better than no server; rotation goes on trying.
            Err(_) | Ok(()) => {}
        }
        authorities.changes.refresh().await?;
        Ok(authorities)
    }

    /// What signs.
    pub fn ca(&self) -> &Arc<ServerCa> {
        &self.ca
    }

    /// The bundle and its changes.
    pub fn bundle_changes(&self) -> &Arc<BundleChanges> {
        &self.changes
    }

    /// Whether an UpstreamAuthority signs our CAs.
    pub fn has_upstream(&self) -> bool {
        self.upstream.is_some()
    }

    /// The X.509 slots as they are now.
    pub fn x509_slots(&self) -> Arc<Slots<X509CaRecord>> {
        self.x509_slots.load_full()
    }

    /// The JWT slots as they are now.
    pub fn jwt_slots(&self) -> Arc<Slots<KeyRecord>> {
        self.jwt_slots.load_full()
    }

    /// The WIT slots as they are now.
    pub fn wit_slots(&self) -> Arc<Slots<KeyRecord>> {
        self.wit_slots.load_full()
    }

    /// Prepares and activates whatever is due, of every kind. Idempotent; call it as often as you like.
    ///
    /// # Errors
    /// The first failure, which is logged already. Kinds after a failed one are still rotated, unless
    /// there is no X.509 authority at all, without which the journal cannot be stored.
    pub async fn rotate(&self) -> Result<(), CaError> {
        let mut state = self.state.lock().await;
        let mut first = None;
        if let Err(error) = self.rotate_x509(&mut state).await {
            self.count_failure("Unable to rotate X509 CA", &error);
            if state.x509.slots.active().is_none() {
                return Err(error);
            }
            first = Some(error);
        }
        for (kind, message) in
            [(Kind::Jwt, "Unable to rotate JWT key"), (Kind::Wit, "Unable to rotate WIT key")]
        {
            if !self.config.has_keys(kind) {
                continue;
            }
            if let Err(error) = self.rotate_keys(&mut state, kind).await {
                self.count_failure(message, &error);
                first = first.or(Some(error));
            }
        }
        first.map_or(Ok(()), Err)
    }

    /// Drops from the bundle what expired over a day ago.
    ///
    /// # Errors
    /// The datastore's.
    pub async fn prune_bundle(&self) -> Result<(), CaError> {
        const MARGIN: std::time::Duration = std::time::Duration::from_secs(24 * 3600);
        let before = self.ports.clock.now() - MARGIN;
        if self.ports.bundles.bundle_prune(&self.config.trust_domain, before).await? {
            self.ports.metrics.incr_counter(metric::CA_MANAGER_BUNDLE_PRUNED, 1.0, &[]);
            tracing::debug!(
                subsystem_name = SUBSYSTEM,
                "Expired certificates were successfully pruned from bundle"
            );
            self.changes.refresh().await?;
        }
        Ok(())
    }

    /// Drops journals (of servers that are gone) all of whose authorities expired over two weeks ago.
    ///
    /// # Errors
    /// The datastore's.
    pub async fn prune_journals(&self) -> Result<(), CaError> {
        const MARGIN: std::time::Duration = std::time::Duration::from_secs(14 * 24 * 3600);
        Ok(self.ports.journals.journals_prune(self.ports.clock.now() - MARGIN).await?)
    }

    async fn rotate_x509(&self, state: &mut State) -> Result<(), CaError> {
        for _ in 0..STEPS_MAX {
            match state.x509.slots.step(self.ports.clock.now()) {
                None => break,
                Some(Step::Prepare(slot)) => self.prepare_x509(state, slot).await?,
                Some(Step::Activate(slot)) => self.activate_x509(state, slot).await?,
                Some(Step::Restore(slot)) => self.restore_x509(state, slot).await?,
            }
        }
        Ok(())
    }

    async fn rotate_keys(&self, state: &mut State, kind: Kind) -> Result<(), CaError> {
        for _ in 0..STEPS_MAX {
            match state.keys(kind).slots.step(self.ports.clock.now()) {
                None => break,
                Some(Step::Prepare(slot)) => self.prepare_key(state, kind, slot).await?,
                Some(Step::Activate(slot)) => self.activate_key(state, kind, slot).await?,
                Some(Step::Restore(slot)) => self.restore_key(state, kind, slot).await?,
            }
        }
        Ok(())
    }

    /// Records the X.509 authority in the slot as active, then lets it sign.
    pub(super) async fn activate_x509(&self, state: &mut State, slot: SlotName) -> Result<(), CaError> {
        let next = state.x509.slots.activated(slot)?;
        self.store_journal(state, Change::X509(&next)).await?;
        state.x509.slots = next;
        self.serve_x509(state, true)
    }

    /// Records the key in the slot as active, then lets it sign.
    pub(super) async fn activate_key(
        &self,
        state: &mut State,
        kind: Kind,
        slot: SlotName,
    ) -> Result<(), CaError> {
        let next = state.keys(kind).slots.activated(slot)?;
        self.store_journal(state, Change::Key(kind, &next)).await?;
        state.keys_mut(kind).slots = next;
        self.serve_key(state, kind, true);
        Ok(())
    }

    /// Stores memory's journal with one change. Before there is an active X.509 authority there is no row
    /// to store it in, as the row is found by that authority's key.
    pub(super) async fn store_journal(&self, state: &mut State, change: Change<'_>) -> Result<(), CaError> {
        let mut x509 = &state.x509.slots;
        let (mut jwt, mut wit) = (&state.jwt.slots, &state.wit.slots);
        match change {
            Change::X509(next) => x509 = next,
            Change::Key(Kind::Wit, next) => wit = next,
            Change::Key(_, next) => jwt = next,
        }
        let Some(active) = x509.active() else {
            tracing::debug!(
                subsystem_name = SUBSYSTEM,
                "There is no active X.509 authority yet. Can't save CA journal in the datastore"
            );
            return Ok(());
        };
        let journal = CaJournal {
            x509: x509.history().to_vec(),
            jwt: jwt.history().to_vec(),
            wit: wit.history().to_vec(),
        };
        if state.journal_row.is_none() {
            tracing::info!(subsystem_name = SUBSYSTEM, "Creating a new CA journal entry");
        }
        let row = self
            .ports
            .journals
            .journal_set(state.journal_row, active.id(), &journal)
            .await
            .map_err(CaError::JournalWrite)?;
        tracing::debug!(
            subsystem_name = SUBSYSTEM,
            ca_journal_id = row,
            local_authority_id = active.id(),
            "Successfully stored CA journal entry in datastore"
        );
        state.journal_row = Some(row);
        Ok(())
    }

    /// Hands the active X.509 authority to the signing plane.
    pub(super) fn serve_x509(&self, state: &State, log: bool) -> Result<(), CaError> {
        self.show(state);
        let Some(active) = state.x509.slots.active() else { return Ok(()) };
        let Some(key) = state.x509.keys[usize::from(active.slot == SlotName::B)].clone() else {
            return Ok(());
        };
        let certificate = parse(active.certificate.clone(), "CA certificate")?;
        self.ca.set_x509(ActiveX509::new(key, certificate, active.upstream_chain.clone())?);
        if !log {
            return Ok(());
        }
        tracing::info!(
            subsystem_name = SUBSYSTEM,
            slot = active.slot.as_str(),
            issued_at = Logged::Time(active.issued_at.unix()).value(),
            expiration = Logged::Time(active.not_after.unix()).value(),
            local_authority_id = active.id(),
            upstream_authority_id = active.upstream_authority_id.as_str(),
            "X509 CA activated"
        );
        self.ports.metrics.incr_counter(metric::CA_MANAGER_X509_CA_ACTIVATE, 1.0, &[]);
        let left = seconds_left(active.not_after, self.ports.clock.now());
        let labels = [Label::new(label::TRUST_DOMAIN_ID, self.config.trust_domain.name())];
        #[expect(clippy::cast_precision_loss, reason = "times of this age fit an f64 exactly")]
        let expiration = active.not_after.unix() as f64;
        self.ports.metrics.set_gauge(metric::MANAGER_X509_CA_ROTATE_EXPIRATION, expiration, &labels);
        self.ports.metrics.set_gauge(metric::MANAGER_X509_CA_ROTATE_TTL, left, &labels);
        tracing::debug!(
            subsystem_name = SUBSYSTEM,
            trust_domain_id = self.config.trust_domain.id_string(),
            ttl = left,
            "Successfully rotated X.509 CA"
        );
        Ok(())
    }

    /// Hands the active key to the signing plane.
    pub(super) fn serve_key(&self, state: &State, kind: Kind, log: bool) {
        self.show(state);
        let lane = state.keys(kind);
        let Some(active) = lane.slots.active() else { return };
        let Some(key) = lane.keys[usize::from(active.slot == SlotName::B)].clone() else { return };
        let signing = ActiveKey { key, kind, kid: active.kid.clone(), not_after: active.not_after };
        let (place, counter, message) = match kind {
            Kind::Wit => (&self.ca.wit, metric::MANAGER_WIT_KEY_ACTIVATE, "WIT key activated"),
            _ => (&self.ca.jwt, metric::MANAGER_JWT_KEY_ACTIVATE, "JWT key activated"),
        };
        place.store(Some(Arc::new(signing)));
        if log {
            tracing::info!(
                subsystem_name = SUBSYSTEM,
                slot = active.slot.as_str(),
                issued_at = Logged::Time(active.issued_at.unix()).value(),
                expiration = Logged::Time(active.not_after.unix()).value(),
                local_authority_id = active.id(),
                "{message}"
            );
            self.ports.metrics.incr_counter(counter, 1.0, &[]);
        }
    }

    /// Publishes copies of the slots, which the API reads without waiting for the state.
    pub(super) fn show(&self, state: &State) {
        self.x509_slots.store(Arc::new(state.x509.slots.clone()));
        self.jwt_slots.store(Arc::new(state.jwt.slots.clone()));
        self.wit_slots.store(Arc::new(state.wit.slots.clone()));
    }

    fn count_failure(&self, message: &str, error: &CaError) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        tracing::error!(subsystem_name = SUBSYSTEM, error = %error, "{message}");
    }
}

/// The check `server.ca.rotator`: rotation did not fail too often since the start.
#[async_trait]
impl HealthCheck for Authorities {
    async fn check_health(&self) -> HealthState {
        let failed = self.failures.load(Ordering::Relaxed) > FAILURES_MAX;
        let error = "rotations exceed the threshold number of failures";
        HealthState::of_error("rotation_err", failed.then_some(&error as &dyn std::fmt::Display))
    }
}

pub(super) fn parse(der: bytes::Bytes, what: &'static str) -> Result<Certificate, CaError> {
    Certificate::from_der(der).map_err(|error| CaError::Recorded { what, error })
}

#[expect(clippy::cast_precision_loss, reason = "lifetimes fit an f64 exactly")]
fn seconds_left(not_after: Timestamp, now: Timestamp) -> f64 {
    not_after.unix().saturating_sub(now.unix()) as f64
}
