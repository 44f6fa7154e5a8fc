//! Values on their way to and from a database.

use spire_core::time::Timestamp;
use time::OffsetDateTime;

/// A value for a placeholder. A statement always has the same kind at the same placeholder, since some
/// databases prepare it for the kinds.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Param<'a> {
    /// A number; columns may be narrower.
    Int(i64),
    /// A truth; some databases keep it as a number.
    Bool(bool),
    /// Text; also a set of texts, rows or pairs as a JSON array, which a place of the statement unpacks.
    Text(&'a str),
    /// Bytes, or NULL.
    Blob(Option<&'a [u8]>),
    /// A moment, or NULL. Databases keep at least whole seconds of it.
    Time(Option<OffsetDateTime>),
}

/// A value that belongs to a condition, from which a [`Param`] is borrowed.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    Int(i64),
    Bool(bool),
    Text(String),
    Time(Timestamp),
}

/// What a column of a row holds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Cell<'a> {
    Null,
    Int(i64),
    Bool(bool),
    Text(&'a str),
    Blob(&'a [u8]),
    Time(OffsetDateTime),
}

/// The parameters of a statement, in the order of their numbers: each is turned by [`Param::from`].
macro_rules! params {
    ($($value:expr),* $(,)?) => {
        &[$($crate::sql::Param::from($value)),*]
    };
}
pub(crate) use params;

impl Value {
    pub(crate) fn param(&self) -> Param<'_> {
        match self {
            Self::Int(number) => Param::Int(*number),
            Self::Bool(truth) => Param::Bool(*truth),
            Self::Text(text) => Param::Text(text),
            Self::Time(at) => Param::Time(Some(at.to_utc())),
        }
    }
}

impl From<i64> for Param<'_> {
    fn from(number: i64) -> Self {
        Self::Int(number)
    }
}

impl From<i32> for Param<'_> {
    fn from(number: i32) -> Self {
        Self::Int(number.into())
    }
}

impl From<u32> for Param<'_> {
    fn from(number: u32) -> Self {
        Self::Int(number.into())
    }
}

impl From<bool> for Param<'_> {
    fn from(truth: bool) -> Self {
        Self::Bool(truth)
    }
}

impl<'a> From<&'a str> for Param<'a> {
    fn from(text: &'a str) -> Self {
        Self::Text(text)
    }
}

impl<'a> From<&'a String> for Param<'a> {
    fn from(text: &'a String) -> Self {
        Self::Text(text)
    }
}

impl<'a> From<&'a [u8]> for Param<'a> {
    fn from(blob: &'a [u8]) -> Self {
        Self::Blob(Some(blob))
    }
}

impl<'a> From<Option<&'a [u8]>> for Param<'a> {
    fn from(blob: Option<&'a [u8]>) -> Self {
        Self::Blob(blob)
    }
}

impl From<OffsetDateTime> for Param<'_> {
    fn from(at: OffsetDateTime) -> Self {
        Self::Time(Some(at))
    }
}

impl From<Timestamp> for Param<'_> {
    fn from(at: Timestamp) -> Self {
        Self::Time(Some(at.to_utc()))
    }
}

impl From<Option<Timestamp>> for Param<'_> {
    fn from(at: Option<Timestamp>) -> Self {
        Self::Time(at.map(Timestamp::to_utc))
    }
}
