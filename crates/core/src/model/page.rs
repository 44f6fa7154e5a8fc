//! Paging and set comparison of listings.

use crate::spiffe::Selectors;

/// What a caller asks for: rows after a token, at most `size` of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paging {
    /// Where the page before ended; empty for the first page.
    pub token: PageToken,
    /// Never 0; a page never holds more rows than this.
    pub size: u32,
}

/// Opaque to callers; the decimal row id of the last row seen, empty at the start and at the end.
pub type PageToken = String;

/// One page of a listing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page<T> {
    /// The rows, in row order.
    pub items: Vec<T>,
    /// Where the next page starts; empty when nothing was found or no paging was asked for.
    pub next: PageToken,
}

/// How a set of a row compares with the set that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetMatch {
    /// Equal.
    Exact,
    /// The row's set is not empty and part of the one asked for.
    Subset,
    /// The row's set has all that were asked for.
    Superset,
    /// The row's set has one of those asked for.
    Any,
}

impl SetMatch {
    /// Whether a row's set matches, given how many of its members are in the wanted set and the sizes.
    pub fn holds(self, common: usize, row: usize, wanted: usize) -> bool {
        match self {
            Self::Exact => common == row && common == wanted,
            Self::Subset => row > 0 && common == row,
            Self::Superset => common == wanted,
            Self::Any => common > 0,
        }
    }
}

/// Selectors asked for, and how a row's set must compare with them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SelectorMatch {
    /// Never empty.
    pub selectors: Selectors,
    /// How the row's set compares.
    pub how: SetMatch,
}

impl SelectorMatch {
    /// Whether a row with these selectors matches.
    pub fn matches(&self, row: &Selectors) -> bool {
        let common = row.iter().filter(|s| self.selectors.contains(s)).count();
        self.how.holds(common, row.len(), self.selectors.len())
    }
}
