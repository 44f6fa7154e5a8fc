//! A world in memory that survives "restarts" and whose effects can stop working at any moment.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use spire_core::model::{CaJournal, Page, Paging};
use spire_core::pki::{Certificate, KeyType, LocalKey, PublicKey, SignatureAlgorithm, VerifiedCsr};
use spire_core::spiffe::{Bundle, JwtAuthority, SpiffeId, TrustDomain, X509Authority};
use spire_core::time::Timestamp;
use spire_ports::datastore::{
    BundleMask, Bundles, DeleteMode, Error as StoreError, Journals, Result as StoreResult, StoredJournal,
};
use spire_ports::observe::NoMetrics;
use spire_ports::plugins::{
    self, CredentialComposer, ErrorKind, JwtAuthorityUpdates, Key, KeyManager, LocalBundle, MintedCa,
    PluginType, UpstreamAuthority,
};
use tokio::sync::mpsc;

use crate::ca::{Authorities, CaConfig, CaError, CaPorts, ServerCa};
use crate::clock::Clock;

/// When every test begins.
pub(super) const START: i64 = 1_700_000_000;

#[derive(Default)]
pub(super) struct FakeClock(AtomicI64);

impl Clock for FakeClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_unix(self.0.load(Ordering::SeqCst))
    }
}

/// Everything outside the process.
pub(super) struct World {
    pub(super) clock: Arc<FakeClock>,
    pub(super) keys: Mutex<BTreeMap<String, Arc<LocalKey>>>,
    pub(super) bundle: Mutex<Option<Bundle>>,
    pub(super) journals: Mutex<Vec<StoredJournal>>,
    /// How many more effects work; every one takes one.
    effects: AtomicU32,
    pub(super) generated: AtomicU32,
}

impl World {
    pub(super) fn new() -> Arc<Self> {
        let world = Self {
            clock: Arc::default(),
            keys: Mutex::default(),
            bundle: Mutex::default(),
            journals: Mutex::default(),
            effects: AtomicU32::new(u32::MAX),
            generated: AtomicU32::new(0),
        };
        world.clock.0.store(START, Ordering::SeqCst);
        Arc::new(world)
    }

    pub(super) fn pass(&self, seconds: i64) {
        self.clock.0.fetch_add(seconds, Ordering::SeqCst);
    }

    /// From now on only so many effects work.
    pub(super) fn allow(&self, effects: u32) {
        self.effects.store(effects, Ordering::SeqCst);
    }

    pub(super) fn heal(&self) {
        self.allow(u32::MAX);
    }

    fn spend(&self) -> bool {
        self.effects.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok()
    }

    fn store_effect(&self) -> StoreResult<()> {
        if self.spend() { Ok(()) } else { Err(StoreError::Unavailable("disk is full".into())) }
    }

    pub(super) fn config() -> CaConfig {
        let mut config = CaConfig::new(trust_domain());
        config.ca_ttl = Duration::from_secs(600);
        config.x509_svid_ttl = Duration::from_secs(60);
        config.jwt_svid_ttl = Duration::from_secs(30);
        config
    }

    pub(super) fn ports(self: &Arc<Self>) -> CaPorts {
        CaPorts {
            bundles: Arc::clone(self) as Arc<dyn Bundles + Send + Sync>,
            journals: Arc::clone(self) as Arc<dyn Journals + Send + Sync>,
            key_manager: Arc::clone(self) as Arc<dyn KeyManager>,
            upstream: None,
            composers: Vec::new(),
            metrics: Arc::new(NoMetrics),
            clock: Arc::clone(&self.clock) as Arc<dyn Clock>,
        }
    }

    pub(super) async fn start(self: &Arc<Self>) -> Result<Arc<Authorities>, CaError> {
        Authorities::start(Self::config(), self.ports()).await
    }

    pub(super) async fn start_composed(
        self: &Arc<Self>,
        composer: Arc<dyn CredentialComposer>,
    ) -> Arc<Authorities> {
        self.start_with_composers(vec![composer]).await
    }

    pub(super) async fn start_with_composers(
        self: &Arc<Self>,
        composers: Vec<Arc<dyn CredentialComposer>>,
    ) -> Arc<Authorities> {
        let mut ports = self.ports();
        ports.composers.extend(composers);
        Authorities::start(Self::config(), ports).await.unwrap()
    }

    pub(super) fn stored_bundle(&self) -> Bundle {
        self.bundle.lock().clone().unwrap()
    }
}

pub(super) fn trust_domain() -> TrustDomain {
    TrustDomain::parse("example.org").unwrap()
}

pub(super) fn workload() -> SpiffeId {
    SpiffeId::parse("spiffe://example.org/workload").unwrap()
}

/// The ID of the authority that signs.
pub(super) fn active_id(ca: &ServerCa) -> String {
    ca.active_x509().map(|a| a.certificate().authority_id()).unwrap_or_default()
}

struct FakeKey {
    id: String,
    key: Arc<LocalKey>,
}

#[async_trait]
impl Key for FakeKey {
    fn id(&self) -> &str {
        &self.id
    }

    fn public_key(&self) -> &PublicKey {
        self.key.public_key()
    }

    async fn sign(&self, algorithm: SignatureAlgorithm, message: &[u8]) -> plugins::Result<Vec<u8>> {
        self.key.sign(algorithm, message).map_err(|e| plugin_error(ErrorKind::Internal, e.to_string()))
    }
}

fn plugin_error(kind: ErrorKind, message: impl Into<String>) -> plugins::Error {
    plugins::Error::new(kind, (PluginType::KeyManager, "fake"), message)
}

#[async_trait]
impl KeyManager for World {
    fn name(&self) -> &str {
        "fake"
    }

    async fn generate_key(&self, id: &str, key_type: KeyType) -> plugins::Result<Arc<dyn Key>> {
        if !self.spend() {
            return Err(plugin_error(ErrorKind::Unavailable, "no key"));
        }
        self.generated.fetch_add(1, Ordering::SeqCst);
        let key = Arc::new(LocalKey::generate(key_type).unwrap());
        self.keys.lock().insert(id.to_owned(), Arc::clone(&key));
        Ok(Arc::new(FakeKey { id: id.to_owned(), key }))
    }

    async fn key(&self, id: &str) -> plugins::Result<Option<Arc<dyn Key>>> {
        let key = self.keys.lock().get(id).cloned();
        Ok(key.map(|key| Arc::new(FakeKey { id: id.to_owned(), key }) as Arc<dyn Key>))
    }

    async fn keys(&self) -> plugins::Result<Vec<Arc<dyn Key>>> {
        let keys = self.keys.lock();
        Ok(keys
            .iter()
            .map(|(id, key)| Arc::new(FakeKey { id: id.clone(), key: Arc::clone(key) }) as Arc<dyn Key>)
            .collect())
    }
}

#[async_trait]
impl Journals for World {
    async fn journal_set(&self, id: Option<u64>, active: &str, journal: &CaJournal) -> StoreResult<u64> {
        self.store_effect()?;
        let mut all = self.journals.lock();
        let id = id.unwrap_or(all.len() as u64 + 1);
        let stored =
            StoredJournal { id, active_x509_authority_id: active.to_owned(), journal: journal.clone() };
        match all.iter_mut().find(|j| j.id == id) {
            Some(place) => *place = stored,
            None => all.push(stored),
        }
        Ok(id)
    }

    async fn journal_fetch(&self, active: &str) -> StoreResult<Option<StoredJournal>> {
        Ok(self.journals.lock().iter().find(|j| j.active_x509_authority_id == active).cloned())
    }

    async fn journals_prune(&self, before: Timestamp) -> StoreResult<()> {
        self.journals.lock().retain(|j| j.journal.x509.iter().any(|a| a.not_after >= before));
        Ok(())
    }
}

/// The subject key ID of a stored root.
fn id_of(authority: &X509Authority) -> String {
    Certificate::from_der(authority.der.clone()).unwrap().authority_id()
}

#[async_trait]
impl Bundles for World {
    async fn bundle_fetch(&self, _: &TrustDomain) -> StoreResult<Option<Bundle>> {
        Ok(self.bundle.lock().clone())
    }

    async fn bundle_append(&self, addition: &Bundle) -> StoreResult<Bundle> {
        self.store_effect()?;
        let mut bundle = self.bundle.lock();
        let bundle = bundle.get_or_insert_with(|| Bundle::empty(trust_domain()));
        if bundle.merge(addition) {
            bundle.sequence_number += 1;
        }
        Ok(bundle.clone())
    }

    async fn bundle_prune(&self, _: &TrustDomain, before: Timestamp) -> StoreResult<bool> {
        let mut bundle = self.bundle.lock();
        let Some(bundle) = bundle.as_mut() else { return Ok(false) };
        let count = bundle.x509_authorities.len() + bundle.jwt_authorities.len();
        bundle
            .x509_authorities
            .retain(|a| Certificate::from_der(a.der.clone()).unwrap().not_after() >= before);
        bundle.jwt_authorities.retain(|a| a.not_after >= before);
        Ok(bundle.x509_authorities.len() + bundle.jwt_authorities.len() != count)
    }

    async fn x509_authority_taint(&self, _: &TrustDomain, id: &str) -> StoreResult<()> {
        self.store_effect()?;
        let mut bundle = self.bundle.lock();
        let all = &mut bundle.as_mut().ok_or(StoreError::NotFound)?.x509_authorities;
        all.iter_mut().find(|a| id_of(a) == id).ok_or(StoreError::NotFound)?.tainted = true;
        Ok(())
    }

    async fn x509_authority_revoke(&self, _: &TrustDomain, id: &str) -> StoreResult<()> {
        let mut bundle = self.bundle.lock();
        let all = &mut bundle.as_mut().ok_or(StoreError::NotFound)?.x509_authorities;
        if !all.iter().any(|a| a.tainted && id_of(a) == id) {
            return Err(StoreError::Invalid("it is not possible to revoke an untainted root CA".into()));
        }
        all.retain(|a| id_of(a) != id);
        Ok(())
    }

    async fn jwt_authority_taint(&self, _: &TrustDomain, kid: &str) -> StoreResult<JwtAuthority> {
        taint(&mut self.bundle.lock().as_mut().ok_or(StoreError::NotFound)?.jwt_authorities, kid)
    }

    async fn jwt_authority_revoke(&self, _: &TrustDomain, kid: &str) -> StoreResult<JwtAuthority> {
        revoke(&mut self.bundle.lock().as_mut().ok_or(StoreError::NotFound)?.jwt_authorities, kid)
    }

    async fn wit_authority_taint(&self, _: &TrustDomain, kid: &str) -> StoreResult<JwtAuthority> {
        taint(&mut self.bundle.lock().as_mut().ok_or(StoreError::NotFound)?.wit_authorities, kid)
    }

    async fn wit_authority_revoke(&self, _: &TrustDomain, kid: &str) -> StoreResult<JwtAuthority> {
        revoke(&mut self.bundle.lock().as_mut().ok_or(StoreError::NotFound)?.wit_authorities, kid)
    }

    async fn bundle_list(&self, _: Option<&Paging>) -> StoreResult<Page<Bundle>> {
        Err(unused())
    }

    async fn bundle_count(&self) -> StoreResult<u32> {
        Err(unused())
    }

    async fn bundle_create(&self, _: &Bundle) -> StoreResult<Bundle> {
        Err(unused())
    }

    async fn bundle_set(&self, _: &Bundle) -> StoreResult<Bundle> {
        Err(unused())
    }

    async fn bundle_update(&self, _: &Bundle, _: BundleMask) -> StoreResult<Bundle> {
        Err(unused())
    }

    async fn bundle_delete(&self, _: &TrustDomain, _: DeleteMode) -> StoreResult<()> {
        Err(unused())
    }
}

fn taint(keys: &mut [JwtAuthority], kid: &str) -> StoreResult<JwtAuthority> {
    let key = keys.iter_mut().find(|key| key.kid == kid).ok_or(StoreError::NotFound)?;
    key.tainted = true;
    Ok(key.clone())
}

fn revoke(keys: &mut Vec<JwtAuthority>, kid: &str) -> StoreResult<JwtAuthority> {
    let at = keys.iter().position(|key| key.kid == kid && key.tainted).ok_or(StoreError::NotFound)?;
    Ok(keys.remove(at))
}

/// The CA has no use for these.
fn unused() -> StoreError {
    StoreError::Internal("the CA does not use this".into())
}

/// An upstream authority of two levels: a root, which it can replace, signs the server's CA.
pub(super) struct FakeUpstream {
    clock: Arc<FakeClock>,
    root: Mutex<ServerCaParts>,
    pub(super) roots: Mutex<Vec<X509Authority>>,
    streams: Mutex<Vec<mpsc::Sender<plugins::Result<Vec<X509Authority>>>>>,
    /// Its keys, JWT and WIT, where it takes any.
    pub(super) keys: Mutex<FakeKeys>,
    bundle_streams: Mutex<Vec<mpsc::Sender<plugins::Result<Told>>>>,
    pub(super) jwt_supported: bool,
}

/// The keys of a fake upstream.
#[derive(Default)]
pub(super) struct FakeKeys {
    pub(super) jwt_authorities: Vec<JwtAuthority>,
    pub(super) wit_authorities: Vec<JwtAuthority>,
}

/// What a follower of the bundle is told.
type Told = (Vec<X509Authority>, Vec<JwtAuthority>);

/// A CA that signs by itself.
struct ServerCaParts {
    key: LocalKey,
    certificate: Certificate,
}

impl ServerCaParts {
    fn new(now: Timestamp) -> Self {
        use spire_core::pki::{
            CertificateTemplate, DistinguishedName, Profile, SerialNumber, self_signed, validity,
        };
        let key = LocalKey::generate(KeyType::EcP256).unwrap();
        let subject = DistinguishedName::default_ca().encode().unwrap();
        let (not_before, not_after) = validity(now, Duration::from_secs(1_000_000), None);
        let to_be_signed = self_signed(&CertificateTemplate {
            profile: Profile::Ca,
            serial: SerialNumber::from_random([7; 16]),
            subject: &subject,
            not_before,
            not_after,
            public_key: key.public_key(),
            dns_names: &[],
            uri: "",
            policies: &[],
            extra_extensions: &[],
        })
        .unwrap();
        let signature = key.sign(to_be_signed.algorithm(), to_be_signed.bytes()).unwrap();
        let certificate = Certificate::from_der(to_be_signed.assemble(&signature)).unwrap();
        Self { key, certificate }
    }

    fn authority(&self) -> X509Authority {
        X509Authority { der: self.certificate.der().clone(), tainted: false }
    }
}

impl FakeUpstream {
    pub(super) fn new(clock: &Arc<FakeClock>, jwt_supported: bool) -> Arc<Self> {
        let root = ServerCaParts::new(clock.now());
        Arc::new(Self {
            clock: Arc::clone(clock),
            roots: Mutex::new(vec![root.authority()]),
            root: Mutex::new(root),
            streams: Mutex::default(),
            keys: Mutex::default(),
            bundle_streams: Mutex::default(),
            jwt_supported,
        })
    }

    /// A new root signs from now on and the old one is tainted; streams hear of it.
    pub(super) async fn taint_root(&self) -> String {
        let old = self.root.lock().certificate.clone();
        let new = ServerCaParts::new(self.clock.now());
        {
            let mut roots = self.roots.lock();
            for root in roots.iter_mut() {
                root.tainted = true;
            }
            roots.push(new.authority());
        }
        *self.root.lock() = new;
        self.announce().await;
        old.authority_id()
    }

    /// Drops tainted roots.
    pub(super) async fn revoke_tainted(&self) {
        self.roots.lock().retain(|r| !r.tainted);
        self.announce().await;
    }

    fn told(&self) -> Told {
        (self.roots.lock().clone(), self.keys.lock().jwt_authorities.clone())
    }

    /// How many follow the bundle.
    pub(super) fn followers(&self) -> usize {
        self.bundle_streams.lock().iter().filter(|stream| !stream.is_closed()).count()
    }

    /// Ends every stream of the bundle.
    pub(super) fn break_streams(&self) {
        self.bundle_streams.lock().clear();
    }

    /// Tells who follows the bundle.
    pub(super) async fn announce_bundle(&self) {
        let streams = self.bundle_streams.lock().clone();
        for stream in streams {
            let _ = stream.send(Ok(self.told())).await;
        }
    }

    fn unsupported() -> plugins::Error {
        let plugin = (PluginType::UpstreamAuthority, "fake-upstream");
        plugins::Error::new(ErrorKind::Unimplemented, plugin, "not implemented")
    }

    async fn announce(&self) {
        let roots = self.roots.lock().clone();
        let streams = self.streams.lock().clone();
        for stream in streams {
            // Streams of CAs that were replaced are closed.
            let _ = stream.send(Ok(roots.clone())).await;
        }
    }
}

#[async_trait]
impl UpstreamAuthority for FakeUpstream {
    fn name(&self) -> &str {
        "fake-upstream"
    }

    async fn mint_x509_ca(&self, csr: &[u8], id: &SpiffeId, ttl: Duration) -> plugins::Result<MintedCa> {
        use spire_core::pki::{CertificateTemplate, Issuer, Profile, SerialNumber, validity};
        let csr = VerifiedCsr::from_der(csr.to_vec()).unwrap();
        assert_eq!(csr.uris(), [id.as_str()]);
        let root = self.root.lock();
        let (not_before, not_after) = validity(self.clock.now(), ttl, None);
        let to_be_signed = Issuer::new(&root.certificate)
            .unwrap()
            .certificate(&CertificateTemplate {
                profile: Profile::Ca,
                serial: SerialNumber::from_random([9; 16]),
                subject: csr.subject_name(),
                not_before,
                not_after,
                public_key: csr.public_key(),
                dns_names: &[],
                uri: id.as_str(),
                policies: &[],
                extra_extensions: &[],
            })
            .unwrap();
        let signature = root.key.sign(to_be_signed.algorithm(), to_be_signed.bytes()).unwrap();
        let (sender, updates) = mpsc::channel(4);
        self.streams.lock().push(sender);
        Ok(MintedCa {
            chain: vec![to_be_signed.assemble(&signature).into()],
            roots: self.roots.lock().clone(),
            updates,
        })
    }

    async fn publish_jwt_key(
        &self,
        key: &JwtAuthority,
    ) -> plugins::Result<(Vec<JwtAuthority>, JwtAuthorityUpdates)> {
        if !self.jwt_supported {
            return Err(Self::unsupported());
        }
        let mut keys = self.keys.lock();
        keys.jwt_authorities.push(key.clone());
        if keys.jwt_authorities.len() == 1 {
            keys.jwt_authorities.push(JwtAuthority { kid: "upstream-key".into(), ..key.clone() });
        }
        Ok((keys.jwt_authorities.clone(), mpsc::channel(1).1))
    }

    async fn publish_wit_key(&self, key: &JwtAuthority) -> plugins::Result<Vec<JwtAuthority>> {
        if !self.jwt_supported {
            return Err(Self::unsupported());
        }
        let mut keys = self.keys.lock();
        keys.wit_authorities.push(key.clone());
        Ok(keys.wit_authorities.clone())
    }

    async fn wit_keys(&self) -> plugins::Result<Vec<JwtAuthority>> {
        Ok(self.keys.lock().wit_authorities.clone())
    }

    async fn subscribe_to_local_bundle(&self) -> plugins::Result<LocalBundle> {
        if !self.jwt_supported {
            return Err(Self::unsupported());
        }
        let (sender, updates) = mpsc::channel(4);
        self.bundle_streams.lock().push(sender);
        let (x509_authorities, jwt_authorities) = self.told();
        Ok(LocalBundle { x509_authorities, jwt_authorities, updates })
    }
}
