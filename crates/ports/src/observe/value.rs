//! Log values that text and JSON show differently: lists, times, durations.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

/// A log field's value of a kind that `tracing` does not have.
///
/// Hand it to an event by [`Logged::value`]: `tracing::info!(admin_ids = Logged::list(&ids).value(), "Configured")`.
/// It then prints as in the reference's logs: a list as `[a b]` in text and as an array in JSON, a time in the
/// machine's zone (`2026-11-23 03:44:55 +0000 UTC`; RFC 3339 in JSON), a duration as `1m30s` (nanoseconds in JSON).
/// Outside our log sinks its [`fmt::Display`] stands in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Logged {
    /// Texts in order.
    List(Vec<String>),
    /// A point in time: seconds since the Unix epoch.
    Time(i64),
    /// A span of time.
    Duration(Duration),
    /// The value that is absent, printed as `<nil>` and `null`.
    Nil,
    /// Fields whose names are not known before, such as those of an audit line. They stand beside the event's others; the
    /// name of the field that brings them is not shown.
    Fields(Vec<(Cow<'static, str>, Scalar)>),
}

/// A plain value of one of [`Logged::Fields`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scalar {
    /// A text.
    Text(Cow<'static, str>),
    /// A number.
    Integer(i64),
    /// True or false.
    Bool(bool),
    /// A number that has a name, such as the code of a status: the name in text, the number in JSON.
    Named(i64, &'static str),
}

impl From<String> for Scalar {
    fn from(text: String) -> Self {
        Self::Text(text.into())
    }
}

impl From<&'static str> for Scalar {
    fn from(text: &'static str) -> Self {
        Self::Text(text.into())
    }
}

impl From<i64> for Scalar {
    fn from(number: i64) -> Self {
        Self::Integer(number)
    }
}

impl From<i32> for Scalar {
    fn from(number: i32) -> Self {
        Self::Integer(number.into())
    }
}

impl From<bool> for Scalar {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl fmt::Display for Scalar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Integer(number) => number.fmt(f),
            Self::Bool(value) => value.fmt(f),
            Self::Named(_, name) => f.write_str(name),
        }
    }
}

impl Logged {
    /// A list of anything that prints.
    pub fn list<T: fmt::Display>(items: impl IntoIterator<Item = T>) -> Self {
        Self::List(items.into_iter().map(|item| item.to_string()).collect())
    }

    /// This value as `tracing` takes it. (An error value is the one kind that keeps its type on the way.)
    pub fn value(&self) -> &(dyn std::error::Error + 'static) {
        self
    }
}

impl std::error::Error for Logged {}

impl fmt::Display for Logged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::List(items) => write!(f, "[{}]", items.join(" ")),
            Self::Time(seconds) => write!(f, "{seconds}"),
            Self::Duration(duration) => write!(f, "{duration:?}"),
            Self::Nil => f.write_str("<nil>"),
            Self::Fields(fields) => {
                for (n, (name, value)) in fields.iter().enumerate() {
                    write!(f, "{}{name}={value}", if n == 0 { "" } else { " " })?;
                }
                Ok(())
            }
        }
    }
}
