//! The signing plane for X.509: SVIDs of workloads, agents and the server itself, and downstream CAs.
//!
//! Without credential composers a certificate is written from the template straight into the buffer that
//! is signed, and nothing of it is parsed again. Source: pkg/server/ca/ca.go, pkg/server/credtemplate.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use async_trait::async_trait;
use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use bytes::Bytes;
use spire_core::authority::Kind;
use spire_core::pki::{
    Certificate, CertificateTemplate, DistinguishedName, EncodedName, Profile, PublicKey, SerialNumber,
    downstream_subject, validity,
};
use spire_core::spiffe::SpiffeId;
use spire_core::time::Timestamp;
use spire_ports::observe::names::server as metric;
use spire_ports::observe::{HealthCheck, HealthState, Metrics};
use spire_ports::plugins::CredentialComposer;

use super::active::{ActiveKey, ActiveX509};
use super::compose::Composed;
use super::config::CaConfig;
use super::error::SignError;
use super::validate;
use crate::clock::Clock;

/// What a workload's X.509-SVID is to say.
#[derive(Clone, Copy, Debug)]
pub struct WorkloadX509Params<'a> {
    /// The key of the workload.
    pub public_key: &'a PublicKey,
    /// Its SPIFFE ID.
    pub spiffe_id: &'a SpiffeId,
    /// DNS names; the first becomes the common name, too.
    pub dns_names: &'a [String],
    /// How long it is to be valid; zero for the default. The issuer's end of life caps it.
    pub ttl: Duration,
    /// Another subject than the configured one (only minting has one, from the CSR).
    pub subject: Option<&'a DistinguishedName>,
}

/// A certificate with its chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedX509 {
    /// The leaf first, then what leads to the root, without the root; DER.
    pub chain: Vec<Bytes>,
    /// The leaf's serial; prints in decimal.
    pub serial: SerialNumber,
    /// From when the leaf is valid.
    pub not_before: Timestamp,
    /// Until when the leaf is valid.
    pub not_after: Timestamp,
}

/// Which of the composers' hooks is meant.
#[derive(Clone, Copy)]
enum Hook<'a> {
    Server,
    Agent(&'a SpiffeId, &'a PublicKey),
    Workload(&'a SpiffeId, &'a PublicKey),
}

/// What differs between the kinds of SVIDs.
struct SvidTemplate<'a> {
    /// Such as `workload X509-SVID`, for errors.
    what: &'static str,
    hook: Hook<'a>,
    id: &'a SpiffeId,
    public_key: &'a PublicKey,
    /// The configured subject where `None`.
    subject: Option<DistinguishedName>,
    dns_names: &'a [String],
    ttl: Duration,
}

/// Signs credentials with the active authorities. Share it by `Arc`; readers never wait.
pub struct ServerCa {
    pub(super) config: CaConfig,
    pub(super) composers: Vec<Arc<dyn CredentialComposer>>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) metrics: Arc<dyn Metrics>,
    pub(super) jwt: ArcSwapOption<ActiveKey>,
    pub(super) wit: ArcSwapOption<ActiveKey>,
    x509: ArcSwapOption<ActiveX509>,
    svid_subject: EncodedName,
    server_id: SpiffeId,
    random: SystemRandom,
}

impl ServerCa {
    /// A CA without authorities; [`super::Authorities`] gives it some.
    ///
    /// # Errors
    /// The configured subject cannot be encoded.
    pub fn new(
        config: CaConfig,
        composers: Vec<Arc<dyn CredentialComposer>>,
        clock: Arc<dyn Clock>,
        metrics: Arc<dyn Metrics>,
    ) -> Result<Self, SignError> {
        let config = config.with_default_subjects();
        Ok(Self {
            svid_subject: config.x509_svid_subject.encode()?,
            server_id: SpiffeId::server(&config.trust_domain),
            config,
            composers,
            clock,
            metrics,
            jwt: ArcSwapOption::empty(),
            wit: ArcSwapOption::empty(),
            x509: ArcSwapOption::empty(),
            random: SystemRandom::new(),
        })
    }

    /// The settings.
    pub fn config(&self) -> &CaConfig {
        &self.config
    }

    /// The X.509 CA that signs now.
    pub fn active_x509(&self) -> Option<Arc<ActiveX509>> {
        self.x509.load_full()
    }

    /// The JWT key that signs now.
    pub fn active_jwt(&self) -> Option<Arc<ActiveKey>> {
        self.jwt.load_full()
    }

    /// The WIT key that signs now.
    pub fn active_wit(&self) -> Option<Arc<ActiveKey>> {
        self.wit.load_full()
    }

    pub(super) fn set_x509(&self, active: ActiveX509) {
        self.x509.store(Some(Arc::new(active)));
    }

    /// Signs a workload's X.509-SVID.
    ///
    /// # Errors
    /// [`SignError`]; nothing was issued then.
    pub async fn sign_workload_x509(&self, params: WorkloadX509Params<'_>) -> Result<SignedX509, SignError> {
        let given = params.subject.filter(|s| !s.is_empty());
        let subject = match (given, params.dns_names.first()) {
            (None, None) => None,
            (given, first) => {
                let mut subject = given.unwrap_or(&self.config.x509_svid_subject).clone();
                if let Some(first) = first {
                    subject.common_name.clone_from(first);
                }
                Some(subject)
            }
        };
        self.sign_svid(SvidTemplate {
            what: "workload X509-SVID",
            hook: Hook::Workload(params.spiffe_id, params.public_key),
            id: params.spiffe_id,
            public_key: params.public_key,
            subject,
            dns_names: params.dns_names,
            ttl: params.ttl,
        })
        .await
    }

    /// Signs an agent's X.509-SVID.
    ///
    /// # Errors
    /// [`SignError`]; nothing was issued then.
    pub async fn sign_agent_x509(
        &self,
        id: &SpiffeId,
        public_key: &PublicKey,
    ) -> Result<SignedX509, SignError> {
        self.sign_svid(SvidTemplate {
            what: "agent X509-SVID",
            hook: Hook::Agent(id, public_key),
            id,
            public_key,
            subject: None,
            dns_names: &[],
            ttl: self.config.agent_ttl.unwrap_or_default(),
        })
        .await
    }

    /// Signs the server's own X.509-SVID.
    ///
    /// # Errors
    /// [`SignError`]; nothing was issued then.
    pub async fn sign_server_x509(&self, public_key: &PublicKey) -> Result<SignedX509, SignError> {
        self.sign_svid(SvidTemplate {
            what: "server X509-SVID",
            hook: Hook::Server,
            id: &self.server_id,
            public_key,
            subject: None,
            dns_names: &[],
            ttl: Duration::ZERO,
        })
        .await
    }

    /// Signs a CA of a downstream server. A TTL of zero means `ca_ttl`.
    ///
    /// # Errors
    /// [`SignError`]; nothing was issued then.
    pub async fn sign_downstream_ca(
        &self,
        public_key: &PublicKey,
        ttl: Duration,
    ) -> Result<SignedX509, SignError> {
        const WHAT: &str = "unable to create downstream X509 CA";
        let active = self.x509.load_full().ok_or(SignError::NotAvailable(Kind::X509))?;
        let ttl = if ttl.is_zero() { self.config.ca_ttl } else { ttl };
        let now = self.clock.now();
        let (not_before, not_after) = validity(now, ttl, Some(active.issuer().not_after()));
        let subject = downstream_subject(&active.certificate().subject(), active.chain_len());
        let composed = self.compose_ca(Composed { subject, ..Composed::default() }).await?;
        let serial = self.serial()?;
        let id = self.config.trust_domain.id();
        let subject = composed.subject.encode()?;
        let template = CertificateTemplate {
            profile: Profile::Ca,
            serial,
            subject: &subject,
            not_before,
            not_after,
            public_key,
            dns_names: &[],
            uri: id.as_str(),
            policies: &composed.policies,
            extra_extensions: &composed.extra_extensions,
        };
        let der = active.issue(active.issuer().certificate(&template), WHAT).await?;
        validate::x509_ca(&Certificate::from_der(der.clone())?, &id, now)
            .map_err(|reason| SignError::Invalid { what: "downstream X509 CA", reason })?;
        self.metrics.incr_counter(metric::SERVER_CA_SIGN_X509_CA_SVID, 1.0, &[]);
        Ok(SignedX509 { chain: active.chain_of(der), serial, not_before, not_after })
    }

    async fn sign_svid(&self, t: SvidTemplate<'_>) -> Result<SignedX509, SignError> {
        let active = self.x509.load_full().ok_or(SignError::NotAvailable(Kind::X509))?;
        self.check_member("X509-SVID", t.id)?;
        let ttl = if t.ttl.is_zero() { self.config.x509_svid_ttl } else { t.ttl };
        let now = self.clock.now();
        let (not_before, not_after) = validity(now, ttl, Some(active.issuer().not_after()));
        // The times are ours whatever composers say, so they are looked at before anything is signed.
        validate::x509_svid_time(not_before, not_after, now)
            .map_err(|reason| SignError::Invalid { what: t.what, reason })?;
        let serial = self.serial()?;
        let mut template = CertificateTemplate {
            profile: Profile::Svid,
            serial,
            subject: &self.svid_subject,
            not_before,
            not_after,
            public_key: t.public_key,
            dns_names: t.dns_names,
            uri: t.id.as_str(),
            policies: &[],
            extra_extensions: &[],
        };
        let to_be_signed = if self.composers.is_empty() {
            let subject = t.subject.as_ref().map(DistinguishedName::encode).transpose()?;
            template.subject = subject.as_ref().unwrap_or(&self.svid_subject);
            active.issuer().certificate(&template)
        } else {
            let composed = self.compose_svid(&t).await?;
            let subject = composed.subject.encode()?;
            template.subject = &subject;
            template.dns_names = &composed.dns_names;
            template.extra_extensions = &composed.extra_extensions;
            active.issuer().certificate(&template)
        };
        let der = active.issue(to_be_signed, "failed to sign X509 SVID").await?;
        self.metrics.incr_counter(metric::SERVER_CA_SIGN_X509_SVID, 1.0, &[]);
        if !self.composers.is_empty() {
            validate::x509_svid(&Certificate::from_der(der.clone())?, t.id, now)
                .map_err(|reason| SignError::Invalid { what: t.what, reason })?;
        }
        Ok(SignedX509 { chain: active.chain_of(der), serial, not_before, not_after })
    }

    async fn compose_svid(&self, t: &SvidTemplate<'_>) -> Result<Composed, SignError> {
        let subject = t.subject.clone().unwrap_or_else(|| self.config.x509_svid_subject.clone());
        let start = Composed { subject, dns_names: t.dns_names.to_vec(), ..Composed::default() };
        let mut attributes = start.svid_attributes();
        for composer in &self.composers {
            attributes = match t.hook {
                Hook::Server => composer.server_x509_svid(attributes).await,
                Hook::Agent(id, key) => composer.agent_x509_svid(id, key, attributes).await,
                Hook::Workload(id, key) => composer.workload_x509_svid(id, key, attributes).await,
            }
            .map_err(SignError::Composer)?;
        }
        Composed::from_svid(attributes)
    }

    /// Lets the composers change what is to be said of a CA.
    pub(super) async fn compose_ca(&self, start: Composed) -> Result<Composed, SignError> {
        if self.composers.is_empty() {
            return Ok(start);
        }
        let mut attributes = start.ca_attributes();
        for composer in &self.composers {
            attributes = composer.server_x509_ca(attributes).await.map_err(SignError::Composer)?;
        }
        Composed::from_ca(attributes)
    }

    /// Only workloads, agents and servers of our own trust domain get SVIDs.
    pub(super) fn check_member(&self, what: &'static str, id: &SpiffeId) -> Result<(), SignError> {
        let trust_domain = &self.config.trust_domain;
        if !id.is_member_of(trust_domain) {
            return Err(SignError::NotMember { what, id: id.clone(), trust_domain: trust_domain.clone() });
        }
        if id.path().is_empty() {
            return Err(SignError::NoPath { what, id: id.clone(), trust_domain: trust_domain.clone() });
        }
        Ok(())
    }

    pub(super) fn serial(&self) -> Result<SerialNumber, SignError> {
        self.random_bytes().map(SerialNumber::from_random)
    }

    pub(super) fn random_bytes<const N: usize>(&self) -> Result<[u8; N], SignError> {
        let mut bytes = [0; N];
        self.random.fill(&mut bytes).map_err(|_| SignError::Entropy)?;
        Ok(bytes)
    }
}

/// The check `server.ca`: a workload SVID can be signed. The key is a fixed one, that of the reference
/// (pkg/server/ca/ca_health.go), whose private part nobody has.
#[async_trait]
impl HealthCheck for ServerCa {
    async fn check_health(&self) -> HealthState {
        let error = self.sign_for_health().await.err();
        HealthState::of_error("sign_x509_svid_err", error.as_ref().map(|e| e as &dyn std::fmt::Display))
    }
}

impl ServerCa {
    async fn sign_for_health(&self) -> Result<(), String> {
        let public_key = PublicKey::from_spki(HEALTH_KEY).map_err(|e| e.to_string())?;
        let id = SpiffeId::from_path(&self.config.trust_domain, "/for/health/check/only")
            .map_err(|e| e.to_string())?;
        let params = WorkloadX509Params {
            public_key: &public_key,
            spiffe_id: &id,
            dns_names: &[],
            ttl: Duration::ZERO,
            subject: None,
        };
        self.sign_workload_x509(params).await.map(|_| ()).map_err(|e| e.to_string())
    }
}

/// SubjectPublicKeyInfo on P-256.
const HEALTH_KEY: &[u8] = &[
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
    0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00, 0x04, 0xcc, 0xb6, 0x35, 0xfd, 0x24, 0x65, 0xb0,
    0xc2, 0x44, 0xc5, 0x39, 0xee, 0xbf, 0x30, 0x4e, 0xdb, 0xdd, 0x91, 0x8c, 0x68, 0xd4, 0xdc, 0xbf, 0x23,
    0x15, 0x1b, 0x66, 0x42, 0x5d, 0x02, 0x8c, 0x17, 0x87, 0x77, 0x15, 0x25, 0x18, 0xad, 0x4e, 0x90, 0xd2,
    0xc3, 0x62, 0x1d, 0x1b, 0xe8, 0x05, 0xb8, 0xb2, 0x25, 0xad, 0xfb, 0x2f, 0x83, 0x71, 0xb5, 0x00, 0x58,
    0xd6, 0xf5, 0xe1, 0xee, 0x73, 0x5a,
];
