//! The one strict SPIFFE ID type.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;
use std::sync::Arc;

use super::trust_domain::is_trust_domain_char;
use super::{IdError, TrustDomain};

const SCHEME: &str = "spiffe://";

/// Longest ID that implementations must support (SPIFFE-ID specification, section 2.3); longer ones are
/// refused, so that no peer makes us keep more.
const MAX_LEN: usize = 2048;

/// A SPIFFE ID, valid by construction. Cheap to clone; 24 bytes.
///
/// Source: SPIFFE-ID specification, section 2; characters as go-spiffe's `spiffeid`.
#[derive(Clone)]
pub struct SpiffeId {
    text: Arc<str>,
    /// Where the path starts in `text`; equal to its length when there is none.
    path_start: u16,
}

impl SpiffeId {
    /// Parses a whole ID.
    ///
    /// # Errors
    /// [`IdError`] says what the string violates.
    pub fn parse(id: &str) -> Result<Self, IdError> {
        if id.is_empty() {
            return Err(IdError::Empty);
        }
        let Some(rest) = id.strip_prefix(SCHEME) else {
            return Err(IdError::WrongScheme);
        };
        let name_len = rest.find('/').unwrap_or(rest.len());
        let (name, path) = rest.split_at(name_len);
        if !name.bytes().all(is_trust_domain_char) {
            return Err(IdError::BadTrustDomainChar);
        }
        if name.is_empty() {
            return Err(IdError::MissingTrustDomain);
        }
        validate_path(path)?;
        if id.len() > MAX_LEN || name.len() > 255 {
            return Err(IdError::TooLong);
        }
        Ok(Self::from_valid(id.into(), SCHEME.len() + name_len))
    }

    /// The ID of `path` (empty, or starting with a slash) in a trust domain.
    ///
    /// # Errors
    /// [`IdError`] when the path is not valid.
    pub fn from_path(trust_domain: &TrustDomain, path: &str) -> Result<Self, IdError> {
        validate_path(path)?;
        let path_start = SCHEME.len() + trust_domain.name().len();
        if path_start + path.len() > MAX_LEN {
            return Err(IdError::TooLong);
        }
        let text: Arc<str> = format!("{SCHEME}{trust_domain}{path}").into();
        Ok(Self::from_valid(text, path_start))
    }

    pub(super) fn of_trust_domain(trust_domain: &TrustDomain) -> Self {
        let text: Arc<str> = trust_domain.id_string().into();
        let path_start = text.len();
        Self::from_valid(text, path_start)
    }

    fn from_valid(text: Arc<str>, path_start: usize) -> Self {
        // MAX_LEN fits u16, and every caller has checked it.
        Self { path_start: u16::try_from(path_start).unwrap_or(u16::MAX), text }
    }

    /// The whole ID.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The path with its leading slash, or an empty string.
    pub fn path(&self) -> &str {
        &self.text[usize::from(self.path_start)..]
    }

    /// The name of the trust domain, borrowed.
    pub fn trust_domain_name(&self) -> &str {
        &self.text[SCHEME.len()..usize::from(self.path_start)]
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> TrustDomain {
        // The name was checked when the ID was parsed, so this cannot fail.
        TrustDomain::from_name(self.trust_domain_name()).unwrap_or_else(|_| unreachable!("parsed before"))
    }

    /// Whether the ID belongs to the trust domain.
    pub fn is_member_of(&self, trust_domain: &TrustDomain) -> bool {
        self.trust_domain_name() == trust_domain.name()
    }

    /// Whether the path is `/spire` or below it, which SPIRE keeps for itself
    /// (pkg/common/idutil: IsReservedPath).
    pub fn is_reserved(&self) -> bool {
        self.path() == "/spire" || self.path().starts_with("/spire/")
    }

    /// Whether this is an agent's ID: path below `/spire/agent/`.
    pub fn is_agent(&self) -> bool {
        self.path().starts_with("/spire/agent/")
    }

    /// Whether this is an agent's ID that the named node attestor may give.
    pub fn is_agent_of(&self, node_attestor: &str) -> bool {
        self.path()
            .strip_prefix("/spire/agent/")
            .and_then(|rest| rest.strip_prefix(node_attestor))
            .is_some_and(|rest| rest.starts_with('/'))
    }

    /// The ID of every server in a trust domain: `/spire/server`.
    pub fn server(trust_domain: &TrustDomain) -> Self {
        Self::from_path(trust_domain, "/spire/server").unwrap_or_else(|_| unreachable!("constant path"))
    }

    /// An agent's ID from the path below `/spire/agent`, which starts with a slash.
    ///
    /// # Errors
    /// [`IdError`] when the suffix is not a valid path.
    pub fn agent(trust_domain: &TrustDomain, suffix: &str) -> Result<Self, IdError> {
        validate_path(suffix)?;
        Self::from_path(trust_domain, &format!("/spire/agent{suffix}"))
    }
}

fn validate_path(path: &str) -> Result<(), IdError> {
    if path.is_empty() {
        return Ok(());
    }
    let Some(segments) = path.strip_prefix('/') else {
        return Err(IdError::NoLeadingSlash);
    };
    let mut segments = segments.split('/').peekable();
    while let Some(segment) = segments.next() {
        match segment_error(segment) {
            Some(IdError::EmptySegment) if segments.peek().is_none() => return Err(IdError::TrailingSlash),
            Some(error) => return Err(error),
            None => {}
        }
    }
    Ok(())
}

/// What is wrong with one path segment, if anything.
pub fn segment_error(segment: &str) -> Option<IdError> {
    match segment {
        "" => Some(IdError::EmptySegment),
        "." | ".." => Some(IdError::DotSegment),
        _ if segment.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'.' | b'_')) => None,
        _ => Some(IdError::BadPathSegmentChar),
    }
}

impl FromStr for SpiffeId {
    type Err = IdError;

    fn from_str(s: &str) -> Result<Self, IdError> {
        Self::parse(s)
    }
}

impl PartialEq for SpiffeId {
    fn eq(&self, other: &Self) -> bool {
        // Children of one parent share its text.
        Arc::ptr_eq(&self.text, &other.text) || self.text == other.text
    }
}

impl Eq for SpiffeId {}

impl PartialOrd for SpiffeId {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for SpiffeId {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.text.cmp(&other.text)
    }
}

impl Hash for SpiffeId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SpiffeId({})", self.text)
    }
}
