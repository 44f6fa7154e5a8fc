//! The trust domain of a SPIFFE ID.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::{IdError, SpiffeId};

/// A trust domain name such as `example.org`, without scheme. Cheap to clone.
///
/// Source: SPIFFE-ID specification, section 2.1.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// Parses a name (`example.org`) or any SPIFFE ID (`spiffe://example.org/x`), whose domain is taken.
    ///
    /// # Errors
    /// [`IdError`] says what the string violates.
    pub fn parse(id_or_name: &str) -> Result<Self, IdError> {
        if id_or_name.is_empty() {
            return Err(IdError::MissingTrustDomain);
        }
        // `:/` and not `://`, so that `spiffe:/example.org` is told that its scheme is wrong.
        if id_or_name.contains(":/") {
            return SpiffeId::parse(id_or_name).map(|id| id.trust_domain());
        }
        Self::from_name(id_or_name)
    }

    pub(super) fn from_name(name: &str) -> Result<Self, IdError> {
        if !name.bytes().all(is_trust_domain_char) {
            return Err(IdError::BadTrustDomainChar);
        }
        // The specification bounds the name at 255 bytes, which DNS also does.
        if name.len() > 255 {
            return Err(IdError::TooLong);
        }
        Ok(Self(name.into()))
    }

    /// The bare name, such as `example.org`.
    pub fn name(&self) -> &str {
        &self.0
    }

    /// The ID of the trust domain itself: `spiffe://example.org`.
    pub fn id(&self) -> SpiffeId {
        SpiffeId::of_trust_domain(self)
    }

    /// The ID of the trust domain as text, the form that the store and the Workload API use as a key.
    pub fn id_string(&self) -> String {
        format!("spiffe://{}", self.0)
    }
}

pub(super) const fn is_trust_domain_char(c: u8) -> bool {
    matches!(c, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_')
}

impl FromStr for TrustDomain {
    type Err = IdError;

    fn from_str(s: &str) -> Result<Self, IdError> {
        Self::parse(s)
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TrustDomain({})", self.0)
    }
}
