//! What the operator decides about the CA, resolved.

use std::time::Duration;

use spire_core::authority::Kind;
use spire_core::pki::{DistinguishedName, KeyType};
use spire_core::spiffe::TrustDomain;

/// The CA's settings. [`CaConfig::new`] has the defaults of pkg/server/credtemplate/builder.go.
#[derive(Clone, Debug)]
pub struct CaConfig {
    /// Whose CA it is.
    pub trust_domain: TrustDomain,
    /// `ca_subject`; an empty one means the default, `C=US, O=SPIFFE`.
    pub ca_subject: DistinguishedName,
    /// `ca_ttl`: the lifetime of CAs, JWT keys and WIT keys.
    pub ca_ttl: Duration,
    /// `ca_key_type`; the server's own SVID has such a key, too.
    pub ca_key_type: KeyType,
    /// `jwt_key_type`.
    pub jwt_key_type: KeyType,
    /// The type of WIT keys.
    pub wit_key_type: KeyType,
    /// The subject of SVIDs; an empty one means the default, `C=US, O=SPIRE`.
    pub x509_svid_subject: DistinguishedName,
    /// `default_x509_svid_ttl`; also of the server's own SVID.
    pub x509_svid_ttl: Duration,
    /// `agent_ttl`; `None` means [`Self::x509_svid_ttl`].
    pub agent_ttl: Option<Duration>,
    /// `default_jwt_svid_ttl`.
    pub jwt_svid_ttl: Duration,
    /// `jwt_issuer`; empty for tokens without `iss`.
    pub jwt_issuer: String,
    /// The default TTL of WIT-SVIDs.
    pub wit_svid_ttl: Duration,
    /// The issuer of WIT-SVIDs; empty for tokens without `iss`.
    pub wit_issuer: String,
    /// `disable_jwt_svids`: no JWT keys are prepared, nothing is signed with one.
    pub jwt_svids_disabled: bool,
    /// The feature flag `wit-svid`: without it no WIT keys are prepared.
    pub wit_svids_enabled: bool,
}

impl CaConfig {
    /// The defaults.
    pub fn new(trust_domain: TrustDomain) -> Self {
        const HOUR: Duration = Duration::from_secs(3600);
        Self {
            trust_domain,
            ca_subject: DistinguishedName::default_ca(),
            ca_ttl: HOUR * 24,
            ca_key_type: KeyType::EcP256,
            jwt_key_type: KeyType::EcP256,
            wit_key_type: KeyType::EcP256,
            x509_svid_subject: DistinguishedName::default_svid(),
            x509_svid_ttl: HOUR,
            agent_ttl: None,
            jwt_svid_ttl: Duration::from_secs(300),
            jwt_issuer: String::new(),
            wit_svid_ttl: HOUR,
            wit_issuer: String::new(),
            jwt_svids_disabled: false,
            wit_svids_enabled: false,
        }
    }

    /// Whether authorities of that kind are made at all.
    pub fn has_keys(&self, kind: Kind) -> bool {
        match kind {
            Kind::X509 => true,
            Kind::Jwt => !self.jwt_svids_disabled,
            Kind::Wit => self.wit_svids_enabled,
        }
    }

    /// With empty subjects replaced by the defaults, as the reference does.
    pub(super) fn with_default_subjects(mut self) -> Self {
        if self.ca_subject.is_empty() {
            self.ca_subject = DistinguishedName::default_ca();
        }
        if self.x509_svid_subject.is_empty() {
            self.x509_svid_subject = DistinguishedName::default_svid();
        }
        self
    }
}
