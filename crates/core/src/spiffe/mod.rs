//! SPIFFE's nouns: trust domains, IDs, selectors and bundles. Parsing is validating, and nothing is ever
//! normalised, joined or decoded.

mod bundle;
mod id;
mod selector;
mod trust_domain;

pub use bundle::{Bundle, JwtAuthority, X509Authority};
pub use id::{SpiffeId, segment_error};
pub use selector::{Selector, SelectorError, Selectors};
pub use trust_domain::TrustDomain;

/// Why a string is not a SPIFFE ID or trust domain. The texts are those of go-spiffe, which users see in
/// RPC statuses and may parse (SPIFFE-ID specification, section 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// The string is empty.
    #[error("cannot be empty")]
    Empty,
    /// It does not start with `spiffe://`.
    #[error("scheme is missing or invalid")]
    WrongScheme,
    /// Nothing stands between the scheme and the path.
    #[error("trust domain is missing")]
    MissingTrustDomain,
    /// A character that a trust domain cannot have.
    #[error(
        "trust domain characters are limited to lowercase letters, numbers, dots, dashes, and underscores"
    )]
    BadTrustDomainChar,
    /// A character that a path segment cannot have.
    #[error("path segment characters are limited to letters, numbers, dots, dashes, and underscores")]
    BadPathSegmentChar,
    /// `.` or `..` as a segment.
    #[error("path cannot contain dot segments")]
    DotSegment,
    /// Two slashes in a row.
    #[error("path cannot contain empty segments")]
    EmptySegment,
    /// A path that does not start with a slash.
    #[error("path must have a leading slash")]
    NoLeadingSlash,
    /// A path that ends with a slash.
    #[error("path cannot have a trailing slash")]
    TrailingSlash,
    /// The ID is longer than 2048 bytes (SPIFFE-ID specification, section 2.3).
    #[error("SPIFFE ID is longer than 2048 bytes")]
    TooLong,
}

#[cfg(test)]
mod tests;
