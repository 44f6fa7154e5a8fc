//! Trust bundles: the authorities of one trust domain.

use std::time::Duration;

use bytes::Bytes;

use super::TrustDomain;
use crate::time::Timestamp;

/// The authorities of one trust domain (SPIFFE Trust Domain and Bundle specification).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle {
    /// Whose authorities these are.
    pub trust_domain: TrustDomain,
    /// X.509 roots in the order they were added.
    pub x509_authorities: Vec<X509Authority>,
    /// Keys that sign JWT-SVIDs.
    pub jwt_authorities: Vec<JwtAuthority>,
    /// Keys that sign WIT-SVIDs.
    pub wit_authorities: Vec<JwtAuthority>,
    /// How often a consumer should look for a newer bundle; zero when not said.
    pub refresh_hint: Duration,
    /// Grows by one with each change of content.
    pub sequence_number: u64,
}

/// One X.509 root of a bundle.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct X509Authority {
    /// The certificate, DER.
    pub der: Bytes,
    /// Whether what it signed must be replaced.
    pub tainted: bool,
}

/// One JWT (or WIT) signing key of a bundle.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct JwtAuthority {
    /// The key ID, as in the header of tokens.
    pub kid: String,
    /// The public key: SubjectPublicKeyInfo, DER.
    pub public_key: Bytes,
    /// When the key stops signing; the epoch when not known.
    pub not_after: Timestamp,
    /// Whether what it signed must be replaced.
    pub tainted: bool,
}

impl X509Authority {
    /// How many certificates may stand in one `asn1` field of a bundle. The reference knows no bound.
    pub const CERTIFICATES_MAX: usize = 64;
}

impl Bundle {
    /// A bundle without authorities.
    pub fn empty(trust_domain: TrustDomain) -> Self {
        Self {
            trust_domain,
            x509_authorities: Vec::new(),
            jwt_authorities: Vec::new(),
            wit_authorities: Vec::new(),
            refresh_hint: Duration::ZERO,
            sequence_number: 0,
        }
    }

    /// The JWT authority with that key ID.
    pub fn jwt_authority(&self, kid: &str) -> Option<&JwtAuthority> {
        self.jwt_authorities.iter().find(|a| a.kid == kid)
    }

    /// Adds the authorities of `other` that are not here yet, and takes over where it knows a key to last longer; returns
    /// whether anything changed. Authorities are compared by certificate or key ID, so a taint of an authority that is
    /// here stays as it is (pkg/server/datastore bundleutil.MergeBundles).
    pub fn merge(&mut self, other: &Self) -> bool {
        let before = self.x509_authorities.len();
        for authority in &other.x509_authorities {
            if !self.x509_authorities.iter().any(|a| a.der == authority.der) {
                self.x509_authorities.push(authority.clone());
            }
        }
        let jwt_changed = merge_keys(&mut self.jwt_authorities, &other.jwt_authorities);
        let wit_changed = merge_keys(&mut self.wit_authorities, &other.wit_authorities);
        self.x509_authorities.len() != before || jwt_changed || wit_changed
    }
}

fn merge_keys(here: &mut Vec<JwtAuthority>, other: &[JwtAuthority]) -> bool {
    let mut changed = false;
    for key in other {
        match here.iter_mut().find(|known| known.kid == key.kid) {
            None => here.push(key.clone()),
            Some(known) if known.public_key == key.public_key && known.not_after < key.not_after => {
                known.not_after = key.not_after;
            }
            Some(_) => continue,
        }
        changed = true;
    }
    changed
}
