//! What the agent's runtime is told: the resolved configuration, without anything that plugins or logging need.

use std::path::PathBuf;
use std::time::Duration;

use spire_core::pki::KeyType;
use spire_core::spiffe::{SpiffeId, TrustDomain};

use crate::config::BrokerConfig;

/// Settings of one agent. The binary fills it from the configuration file and flags.
#[derive(Clone, Debug)]
pub struct Options {
    /// The trust domain of the server and of this agent.
    pub trust_domain: TrustDomain,
    /// The folder that keeps `agent-data.json`; made when it is missing.
    pub data_dir: PathBuf,
    /// Host of the server, a name or an address without brackets.
    pub server_host: String,
    /// Port of the server.
    pub server_port: u16,
    /// The Workload API's socket; none serves no workloads (the public endpoint is disabled).
    pub socket_path: Option<PathBuf>,
    /// The admin APIs' socket; none serves no admin APIs.
    pub admin_socket_path: Option<PathBuf>,
    /// Identities of this trust domain whose workloads may ask for those of others.
    pub authorized_delegates: Vec<SpiffeId>,
    /// The Broker API; none does not serve it.
    pub broker: Option<BrokerConfig>,
    /// Where the first trust comes from.
    pub trust_bundle: TrustBundle,
    /// What to do when server and stored bundle do not agree.
    pub rebootstrap: Rebootstrap,
    /// Time between entry syncs when the server does not push.
    pub sync_interval: Duration,
    /// Ask for changed entries only; the older call is the fallback.
    pub use_sync_authorized_entries: bool,
    /// X.509-SVIDs to hold, softly; 0 is the default of 1000.
    pub x509_svid_cache_max_size: usize,
    /// JWT-SVIDs to hold; 0 is the default of 1000.
    pub jwt_svid_cache_max_size: usize,
    /// How long to wait for a new JWT-SVID when a cached one is still valid; none is the usual 30 s.
    pub jwt_svid_cache_hit_timeout: Option<Duration>,
    /// How long SVIDs must stay valid without a server.
    pub availability_target: Option<Duration>,
    /// The type of workloads' keys.
    pub workload_key_type: KeyType,
    /// Only key exchanges that resist quantum computers.
    pub require_pq_kem: bool,
    /// Do not serve the Workload API on the socket.
    pub disable_workload_api: bool,
    /// Do not serve Envoy's SDS on the socket.
    pub disable_sds_api: bool,
    /// What Envoy asks for by names that are not identities.
    pub sds: SdsOptions,
    /// Give bundles to workloads without an identity too.
    pub allow_unauthenticated_verifiers: bool,
    /// Claims of foreign JWT-SVIDs to return beside `sub`, `exp` and `aud`.
    pub allowed_foreign_jwt_claims: Vec<String>,
    /// Serve WIT-SVIDs and their bundles (the feature flag `wit-svid`).
    pub wit_svids_enabled: bool,
    /// Selectors, or their prefixes up to a colon, that may be logged when no identity is issued.
    pub log_selectors: Vec<String>,
    /// Calls a second for each attested selector set; 0 is no limit.
    pub rate_limits: RateLimits,
}

/// Where the first trust in the server comes from. A stored bundle comes before all of these.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TrustBundle {
    /// A file.
    Path {
        /// The file.
        path: PathBuf,
        /// What is in it.
        format: BundleFormat,
    },
    /// A URL: https, or http over a unix socket.
    Url {
        /// The URL.
        url: String,
        /// The socket, when there is one.
        unix_socket: Option<PathBuf>,
        /// What is there.
        format: BundleFormat,
    },
    /// Another agent's Workload API: `unix:///…` or `tcp://ip:port`.
    WorkloadApi(String),
    /// Whoever answers is trusted, once.
    Insecure,
}

/// The form of a trust bundle.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BundleFormat {
    /// Certificates in PEM.
    #[default]
    Pem,
    /// SPIFFE's JWKS.
    Spiffe,
}

/// What to do when the server shows a certificate that the stored bundle does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rebootstrap {
    /// Keep trying; fail.
    Never,
    /// After the delay, fetch a new bundle, if the node attestor allows attesting again.
    Auto(Duration),
    /// As `Auto`, and refuse to run with a node attestor that does not allow it.
    Always(Duration),
}

impl Rebootstrap {
    /// How long server and bundle must disagree before trust is found anew; none is never.
    pub fn delay(self) -> Option<Duration> {
        match self {
            Self::Never => None,
            Self::Auto(delay) | Self::Always(delay) => Some(delay),
        }
    }
}

/// `experimental.ratelimit`: calls a second, and at once, for each attested selector set; 0 is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the limit of the RPC of that name")]
pub struct RateLimits {
    pub fetch_x509_svid: u32,
    pub fetch_x509_bundles: u32,
    pub fetch_jwt_svid: u32,
    pub fetch_jwt_bundles: u32,
    pub stream_secrets: u32,
    pub fetch_secrets: u32,
}

/// `sds`: names of secrets beside SPIFFE IDs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SdsOptions {
    /// The first identity's certificate and key.
    pub default_svid_name: String,
    /// The authorities of the agent's trust domain.
    pub default_bundle_name: String,
    /// The authorities of every trust domain, for the SPIFFE validator. The other name comes first when both are one.
    pub default_all_bundles_name: String,
    /// Plain authorities instead of the SPIFFE validator, unless a node's metadata says otherwise.
    pub disable_spiffe_cert_validation: bool,
}

impl Default for SdsOptions {
    fn default() -> Self {
        Self {
            default_svid_name: "default".to_owned(),
            default_bundle_name: "ROOTCA".to_owned(),
            default_all_bundles_name: "ALL".to_owned(),
            disable_spiffe_cert_validation: false,
        }
    }
}

impl Options {
    /// The reference's defaults, for what an agent cannot do without.
    pub fn new(trust_domain: TrustDomain, data_dir: PathBuf, trust_bundle: TrustBundle) -> Self {
        Self {
            trust_domain,
            data_dir,
            server_host: String::new(),
            server_port: 0,
            socket_path: None,
            admin_socket_path: None,
            authorized_delegates: Vec::new(),
            broker: None,
            trust_bundle,
            rebootstrap: Rebootstrap::Never,
            sync_interval: DEFAULT_SYNC_INTERVAL,
            use_sync_authorized_entries: true,
            x509_svid_cache_max_size: 0,
            jwt_svid_cache_max_size: 0,
            jwt_svid_cache_hit_timeout: None,
            availability_target: None,
            workload_key_type: KeyType::EcP256,
            require_pq_kem: false,
            disable_workload_api: false,
            disable_sds_api: false,
            sds: SdsOptions::default(),
            allow_unauthenticated_verifiers: false,
            allowed_foreign_jwt_claims: Vec::new(),
            wit_svids_enabled: false,
            log_selectors: Vec::new(),
            rate_limits: RateLimits::default(),
        }
    }

    /// The server as `host:port`, with brackets where an IPv6 address needs them.
    pub fn server_address(&self) -> String {
        if self.server_host.contains(':') {
            format!("[{}]:{}", self.server_host, self.server_port)
        } else {
            format!("{}:{}", self.server_host, self.server_port)
        }
    }
}

/// The reference's default (pkg/agent/manager: defaultSyncInterval).
pub const DEFAULT_SYNC_INTERVAL: Duration = Duration::from_secs(5);

/// SVIDs of each kind to hold when nothing is configured (pkg/agent/manager/cache: DefaultSVIDCacheMaxSize).
pub const DEFAULT_SVID_CACHE_MAX_SIZE: usize = 1000;
