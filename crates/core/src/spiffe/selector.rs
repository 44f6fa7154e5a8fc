//! Selectors: attested properties of a node or workload.

use std::fmt;
use std::sync::Arc;

/// One attested property, written `type:value`. Cheap to clone; order is type, then value.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Selector {
    kind: Arc<str>,
    value: Arc<str>,
}

/// Why a pair is not a selector; texts as the reference's pkg/server/api/selector.go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    /// The type is empty.
    #[error("missing selector type")]
    MissingType,
    /// The type has a colon, so `type:value` could not be read back.
    #[error("selector type contains ':'")]
    ColonInType,
    /// The value is empty.
    #[error("missing selector value")]
    MissingValue,
}

impl Selector {
    /// A selector from its two parts.
    ///
    /// # Errors
    /// [`SelectorError`] names the part that is wrong.
    pub fn new(kind: impl Into<Arc<str>>, value: impl Into<Arc<str>>) -> Result<Self, SelectorError> {
        let (kind, value) = (kind.into(), value.into());
        if kind.is_empty() {
            Err(SelectorError::MissingType)
        } else if kind.contains(':') {
            Err(SelectorError::ColonInType)
        } else if value.is_empty() {
            Err(SelectorError::MissingValue)
        } else {
            Ok(Self { kind, value })
        }
    }

    /// The selector that makes an alias apply to one node: type `spiffe_id`, value its ID.
    pub fn spiffe_id(id: &super::SpiffeId) -> Self {
        Self { kind: "spiffe_id".into(), value: id.as_str().into() }
    }

    /// As it stands in a store that another version may have written: both parts are taken as they are.
    pub fn from_stored(kind: impl Into<Arc<str>>, value: impl Into<Arc<str>>) -> Self {
        Self { kind: kind.into(), value: value.into() }
    }

    /// The type, such as `unix`.
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// The value, such as `uid:1000`.
    pub fn value(&self) -> &str {
        &self.value
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.kind, self.value)
    }
}

impl fmt::Debug for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// A set of selectors: sorted by type then value, without duplicates. Cheap to clone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Selectors(Arc<[Selector]>);

impl Selectors {
    /// The selectors in order.
    pub fn as_slice(&self) -> &[Selector] {
        &self.0
    }

    /// In order.
    pub fn iter(&self) -> std::slice::Iter<'_, Selector> {
        self.0.iter()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the selector is in the set.
    pub fn contains(&self, selector: &Selector) -> bool {
        self.0.binary_search(selector).is_ok()
    }

    /// Whether every selector of this set is also in `other`: what makes an entry match a workload.
    pub fn is_subset_of(&self, other: &Self) -> bool {
        self.len() <= other.len() && self.iter().all(|s| other.contains(s))
    }
}

impl FromIterator<Selector> for Selectors {
    fn from_iter<I: IntoIterator<Item = Selector>>(iter: I) -> Self {
        let mut all: Vec<_> = iter.into_iter().collect();
        all.sort_unstable();
        all.dedup();
        Self(all.into())
    }
}

impl<'a> IntoIterator for &'a Selectors {
    type Item = &'a Selector;
    type IntoIter = std::slice::Iter<'a, Selector>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}
