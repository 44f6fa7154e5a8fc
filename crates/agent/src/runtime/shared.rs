//! What the agent's tasks share.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use spire_core::model::Entry;
use spire_core::pki::Certificate;
use spire_core::pki::chain::is_signed_by_root;
use spire_core::spiffe::Bundle;
use spire_core::svids::{Jitter, JwtCache, JwtKey, JwtLookup, JwtSvid, Rotation, WitCache, X509Svid};
use spire_core::time::Timestamp;
use spire_net::tls::Identity;
use spire_ports::observe::{Call, Metrics, names};
use spire_ports::plugins::{AgentNodeAttestor, SvidStore};
use spire_telemetry::LogLevel;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::attest::AgentSvid;
use super::backoff::random;
use super::bootstrap::TrustSources;
use super::client::{JwtError, RPC_TIMEOUT, ServerClient};
use super::clock::Clock;
use super::error::AgentError;
use super::events::{Event, Events};
use super::explain::Hints;
use super::identities::Identities;
use super::keys::SvidKeys;
use super::live::Live;
use super::options::{DEFAULT_SVID_CACHE_MAX_SIZE, Options, RateLimits};
use super::storage::Storage;
use super::stores::Stores;
use super::trust::{Trust, certificates};

/// An attested agent: its identity, its connection and what it serves.
pub struct Core {
    pub(super) options: Arc<Options>,
    pub(super) clock: Clock,
    pub(super) storage: Arc<Storage>,
    pub(super) keys: SvidKeys,
    pub(super) attestor: Arc<dyn AgentNodeAttestor>,
    pub(super) metrics: Arc<dyn Metrics>,
    pub(super) events: Events,
    pub(super) client: ServerClient,
    pub(super) sources: Mutex<TrustSources>,
    pub(super) rotation: Rotation,
    /// What TLS trusts and shows.
    pub(super) trust: Arc<Trust>,
    identity: Arc<Identity>,
    svid: ArcSwap<Held>,
    /// The agent's SVID must be replaced now: a tainted authority signed it.
    pub(super) rotate_now: Notify,
    pub(super) tainted: AtomicBool,
    /// Something changed at the server.
    pub(super) sync_now: Notify,
    /// The server is there again: what failed need not wait any longer.
    pub(super) fetch_now: Notify,
    /// When a batch of X.509-SVIDs failed that waits to be tried again.
    pub(super) fetch_failed: Mutex<Option<Instant>>,
    /// The server tells of changes.
    pub(super) pushed: AtomicBool,
    /// The server knows SyncAuthorizedEntries.
    pub(super) syncs_changes: AtomicBool,
    last_sync: AtomicI64,
    /// Authorities whose taint has been dealt with.
    pub(super) seen_taints: Mutex<HashSet<String>>,
    jwt: Mutex<JwtCache>,
    pub(super) wit: Mutex<WitCache>,
    /// Held by who fetches WIT-SVIDs, so that one key is made for an identity and not one a stream.
    pub(super) wit_fetch: tokio::sync::Mutex<()>,
    identities: Arc<Identities>,
    live: Live,
    /// Where SVIDs of entries with `store_svid` go.
    pub(super) stores: Stores,
    /// When and why the last sync failed.
    pub(super) sync_failure: Mutex<Option<(Timestamp, String)>>,
    pub(super) hints: Hints,
}

/// The agent's SVID and when to replace it.
struct Held {
    svid: AgentSvid,
    renew_at: Timestamp,
}

/// What a [`Core`] is made of.
pub struct Parts {
    /// The settings.
    pub options: Arc<Options>,
    /// The time.
    pub clock: Clock,
    /// Where SVID and bundle are kept.
    pub storage: Arc<Storage>,
    /// The agent's keys.
    pub keys: SvidKeys,
    /// Who makes the proof.
    pub attestor: Arc<dyn AgentNodeAttestor>,
    /// Where metrics go.
    pub metrics: Arc<dyn Metrics>,
    /// Where events go.
    pub events: Events,
    /// Where trust came from.
    pub sources: TrustSources,
    /// The agent's SVID.
    pub svid: AgentSvid,
    /// Whether the server gave it just now; else it is a stored one.
    pub fresh: bool,
    /// The bundle of the trust domain.
    pub bundle: Bundle,
    /// What is served.
    pub identities: Arc<Identities>,
    /// What is shared with those that operate the agent.
    pub live: Live,
    /// Where SVIDs of entries with `store_svid` go.
    pub svid_stores: Vec<Arc<dyn SvidStore>>,
}

impl Core {
    /// Connects the parts; nothing is called yet.
    ///
    /// # Errors
    /// [`AgentError`] when certificate and key do not go together.
    pub fn new(parts: Parts) -> Result<Arc<Self>, AgentError> {
        let options = parts.options;
        let identity = Arc::clone(&parts.live.identity);
        let trust = Trust::new(options.trust_domain.clone(), certificates(&parts.bundle));
        parts.live.trust.fill(trust.clone());
        let client = ServerClient::new(&options, trust.clone(), Some(Arc::clone(&identity)))?;
        let or_default = |size: usize| if size == 0 { DEFAULT_SVID_CACHE_MAX_SIZE } else { size };
        let max_jwt = or_default(options.jwt_svid_cache_max_size);
        let max_wit = or_default(options.x509_svid_cache_max_size);
        let rotation = Rotation::new(options.availability_target);
        let renew_at = match parts.fresh {
            true => renewal(rotation, &parts.svid, parts.clock.now()),
            // One that is past its half-life is due: an agent that never runs for long would not come to it.
            false => {
                let leaf = parts.svid.leaf();
                rotation.renew_x509_at(leaf.not_before(), leaf.not_after(), Jitter::from_random(random()))
            }
        };
        let held = Held { renew_at, svid: parts.svid };
        let core = Self {
            clock: parts.clock,
            storage: parts.storage,
            keys: parts.keys,
            attestor: parts.attestor,
            metrics: parts.metrics,
            events: parts.events,
            client,
            sources: Mutex::new(parts.sources),
            rotation,
            trust,
            identity,
            svid: ArcSwap::from_pointee(held),
            rotate_now: Notify::new(),
            tainted: AtomicBool::new(false),
            sync_now: Notify::new(),
            fetch_now: Notify::new(),
            fetch_failed: Mutex::default(),
            pushed: AtomicBool::new(false),
            syncs_changes: AtomicBool::new(options.use_sync_authorized_entries),
            last_sync: AtomicI64::new(0),
            seen_taints: Mutex::default(),
            jwt: Mutex::new(JwtCache::new(max_jwt)),
            wit: Mutex::new(WitCache::new(max_wit, rotation)),
            wit_fetch: tokio::sync::Mutex::default(),
            identities: parts.identities,
            live: parts.live,
            stores: Stores::new(parts.svid_stores),
            sync_failure: Mutex::default(),
            hints: Hints::default(),
            options,
        };
        core.show(&core.svid.load().svid)?;
        Ok(Arc::new(core))
    }

    /// What is served to workloads.
    pub fn identities(&self) -> &Arc<Identities> {
        &self.identities
    }

    /// The settings.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Where metrics go.
    pub fn metrics(&self) -> &Arc<dyn Metrics> {
        &self.metrics
    }

    /// Tells whoever watches.
    pub fn emit(&self, event: impl FnOnce() -> Event) {
        self.events.emit(event);
    }

    /// The time.
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// The agent's SVID.
    pub fn svid(&self) -> AgentSvid {
        self.svid.load().svid.clone()
    }

    /// When the agent's SVID is to be replaced.
    pub(super) fn renew_at(&self) -> Timestamp {
        self.svid.load().renew_at
    }

    /// When entries were last brought up to date; the epoch when never.
    pub fn last_sync(&self) -> Timestamp {
        Timestamp::from_unix(self.last_sync.load(Ordering::Relaxed))
    }

    pub(super) fn set_last_sync(&self, now: Timestamp) {
        self.last_sync.store(now.unix(), Ordering::Relaxed);
    }

    /// The limits of the Workload API that are in force.
    pub fn rate_limits(&self) -> RateLimits {
        self.live.rate_limits.load().as_deref().copied().unwrap_or(self.options.rate_limits)
    }

    /// JWT-SVIDs that are cached.
    pub fn jwt_svid_count(&self) -> usize {
        self.jwt.lock().len()
    }

    /// X.509-SVIDs that are held for stores.
    pub fn stored_svid_count(&self) -> usize {
        self.stores.svid_count()
    }

    /// The agent's certificate and key, as TLS shows them.
    pub fn identity(&self) -> &Arc<Identity> {
        &self.identity
    }

    /// The level of the log, where it can be changed.
    pub fn log_level(&self) -> Option<&LogLevel> {
        self.live.log.as_ref()
    }

    /// Shows another SVID from now on, stores it, and makes the connection anew.
    ///
    /// # Errors
    /// [`AgentError::Identity`] when certificate and key do not go together; then the old one stays.
    pub(super) fn replace_svid(&self, svid: AgentSvid) -> Result<(), AgentError> {
        self.show(&svid)?;
        if let Err(error) = self.storage.store_svid(&svid.chain, svid.reattestable) {
            tracing::warn!(subsystem_name = "manager", error = %error, "Could not store SVID");
        }
        let (spiffe_id, expires_at) = (svid.id().clone(), svid.leaf().not_after());
        self.svid.store(Arc::new(Held { renew_at: renewal(self.rotation, &svid, self.clock.now()), svid }));
        self.tainted.store(false, Ordering::Relaxed);
        self.client.release();
        self.events.emit(|| Event::AgentRotated { spiffe_id, expires_at });
        Ok(())
    }

    fn show(&self, svid: &AgentSvid) -> Result<(), AgentError> {
        let key = spire_net::tls::key_signer(Arc::clone(&svid.key));
        self.identity.replace_signer(&svid.chain, key).map_err(|e| AgentError::Identity(e.to_string()))
    }

    /// Forgets the agent's SVID on disk: it is of no use any more.
    pub(super) fn delete_svid(&self) {
        if let Err(error) = self.storage.delete_svid() {
            tracing::error!(subsystem_name = "manager", error = %error, "Failed to remove SVID");
        }
    }

    /// Trusts the authorities of this bundle and keeps them.
    pub(super) fn trust_bundle(&self, authorities: Vec<Certificate>) {
        if let Err(error) = self.storage.store_bundle(&authorities) {
            tracing::error!(subsystem_name = "manager", error = %error, "Could not store bundle");
        }
        if *self.trust.current() != *authorities {
            self.trust.replace(authorities);
        }
    }

    /// Has everything replaced that a newly tainted authority of this bundle signed
    /// (pkg/agent/manager/sync.go: processTaintedAuthorities).
    pub(super) fn taint(&self, bundle: &Bundle) {
        let tainted: Vec<Certificate> = bundle
            .x509_authorities
            .iter()
            .filter(|a| a.tainted)
            .filter_map(|a| Certificate::from_der(a.der.clone()).ok())
            .filter(|c| self.seen_taints.lock().insert(c.authority_id()))
            .collect();
        if !tainted.is_empty() {
            let ids: Vec<String> = tainted.iter().map(Certificate::authority_id).collect();
            tracing::debug!(
                subsystem_name = "manager",
                subject_key_ids = ids.join(","),
                "New tainted X.509 authorities found"
            );
            self.taint_x509(&tainted);
        }
        let keys: HashSet<String> = bundle
            .jwt_authorities
            .iter()
            .filter(|a| a.tainted)
            .filter(|a| self.seen_taints.lock().insert(format!("jwt {}", a.kid)))
            .map(|a| a.kid.clone())
            .collect();
        if !keys.is_empty() {
            let ids: Vec<&str> = keys.iter().map(String::as_str).collect();
            tracing::debug!(
                subsystem_name = "manager",
                jwt_authority_key_ids = ids.join(","),
                "New tainted JWT authorities found"
            );
            let call =
                Call::start(&*self.metrics, names::agent::CACHE_MANAGER_WORKLOAD_PROCESS_TAINTED_JWT_SVIDS);
            let removed = self.jwt.lock().taint(&keys);
            call.done("OK");
            let total: usize = removed.values().sum();
            self.metrics.add_sample(
                names::agent::CACHE_MANAGER_TAINTED_JWT_SVIDS_WORKLOAD,
                total as f32,
                &[],
            );
            for (kid, count) in removed {
                tracing::info!(
                    subsystem_name = "cache_manager",
                    jwt_authority_key_ids = kid,
                    tainted_jwt_svids = count,
                    "JWT-SVIDs were removed from the JWT cache because they were issued by a tainted authority"
                );
            }
        }
    }

    /// Has WIT-SVIDs replaced that a newly tainted key signed; whoever follows them gets others at its next look.
    pub(super) fn taint_wit(&self, bundle: &Bundle) {
        let keys: HashSet<String> = bundle
            .wit_authorities
            .iter()
            .filter(|a| a.tainted)
            .filter(|a| self.seen_taints.lock().insert(format!("wit {}", a.kid)))
            .map(|a| a.kid.clone())
            .collect();
        if !keys.is_empty() {
            let count = self.wit.lock().taint(&keys);
            tracing::info!(
                subsystem_name = "cache_manager",
                tainted_wit_svids = count,
                "WIT-SVIDs were removed from the cache because they were issued by a tainted authority"
            );
        }
    }

    fn taint_x509(&self, tainted: &[Certificate]) {
        let now = self.clock.now();
        let signed = |chain: &[Certificate]| {
            is_signed_by_root(chain, tainted, now).unwrap_or_else(|error| {
                tracing::error!(
                    subsystem_name = "cache_manager", error = %error,
                    "Failed to check if SVID is signed by tainted authority"
                );
                false
            })
        };
        let call =
            Call::start(&*self.metrics, names::agent::CACHE_MANAGER_WORKLOAD_PROCESS_TAINTED_X509_SVIDS);
        let count = self.identities.taint(|svid| {
            let chain: Vec<Certificate> =
                svid.chain.iter().filter_map(|der| Certificate::from_der(der.clone()).ok()).collect();
            signed(&chain)
        });
        call.done("OK");
        self.metrics.add_sample(names::agent::CACHE_MANAGER_TAINTED_X509_SVIDS_WORKLOAD, count as f32, &[]);
        tracing::info!(subsystem_name = "cache_manager", tainted_x509_svids = count, "Tainted X.509 SVIDs");
        if signed(&self.svid.load().svid.chain) {
            tracing::info!(
                subsystem_name = "manager",
                "Agent SVID is tainted by a root authority, forcing rotation"
            );
            self.tainted.store(true, Ordering::Relaxed);
            self.rotate_now.notify_one();
        }
    }

    /// A JWT-SVID for an entry: the cached one while it is fresh, else a new one, else the cached one while it
    /// is valid (pkg/agent/manager/manager.go: FetchJWTSVID). The server is asked once: whoever waits asks again, and may
    /// not have the time that other attempts take.
    ///
    /// # Errors
    /// [`JwtError`] when the server gives none and no valid one is cached.
    pub async fn jwt_svid(&self, entry: &Entry, audience: &[String]) -> Result<Arc<JwtSvid>, JwtError> {
        // A token with a `jti` is made for one use.
        let cached = !entry.attributes.is_some_and(|a| a.jwt_svid_include_jti);
        let key = JwtKey::new(&entry.spiffe_id, audience);
        let known = match cached {
            true => self.jwt.lock().lookup(&key, self.clock.now()),
            false => JwtLookup::Absent,
        };
        let timeout = match &known {
            JwtLookup::Fresh(svid) => return Ok(Arc::clone(svid)),
            JwtLookup::Renew(_) => self.options.jwt_svid_cache_hit_timeout.unwrap_or(RPC_TIMEOUT),
            JwtLookup::Expired | JwtLookup::Absent => RPC_TIMEOUT,
        };
        match self.client.new_jwt_svid(&entry.id, audience, timeout).await {
            Ok((id, svid)) => {
                let svid = Arc::new(svid);
                if cached {
                    let jitter = Jitter::from_random(random());
                    let mut jwt = self.jwt.lock();
                    jwt.insert(JwtKey::new(&id, audience), Arc::clone(&svid), jitter);
                    let size = u32::try_from(jwt.len()).unwrap_or(u32::MAX);
                    drop(jwt);
                    self.metrics.set_gauge(names::agent::JWT_SVID_CACHE_SIZE, f64::from(size), &[]);
                }
                self.events.emit(|| Event::JwtIssued { spiffe_id: id, expires_at: svid.expires_at });
                Ok(svid)
            }
            Err(error) => {
                tracing::error!(subsystem_name = "manager", error = %error, "Failed to fetch JWT SVID");
                match known {
                    JwtLookup::Fresh(svid) | JwtLookup::Renew(svid) if !svid.is_expired(self.clock.now()) => {
                        tracing::warn!(
                            subsystem_name = "manager", spiffe_id = %entry.spiffe_id, error = %error,
                            "Unable to renew JWT; returning cached copy"
                        );
                        Ok(svid)
                    }
                    JwtLookup::Absent => Err(JwtError::New(error)),
                    _ => Err(JwtError::Renew { spiffe_id: entry.spiffe_id.clone(), cause: error }),
                }
            }
        }
    }

    /// Whether this SVID lives too briefly for the availability target; says so in the log.
    pub(super) fn warn_if_short(&self, entry: &Entry, svid: &X509Svid) {
        let lifetime: Duration = svid.not_after.since(svid.not_before);
        if self.rotation.misses_target(lifetime) {
            tracing::warn!(
                subsystem_name = "manager", spiffe_id = %entry.spiffe_id, entry_id = %entry.id,
                "X509 SVID lifetime isn't long enough to guarantee the availability_target, falling back to the default rotation strategy"
            );
        }
    }
}

fn renewal(rotation: Rotation, svid: &AgentSvid, now: Timestamp) -> Timestamp {
    let leaf = svid.leaf();
    rotation.renew_new_x509_at(leaf.not_before(), leaf.not_after(), now, Jitter::from_random(random()))
}
