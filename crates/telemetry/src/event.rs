//! A log line before it has a form: level, time, message and fields, gathered from an event and its spans.

use std::borrow::Cow;
use std::fmt;
use std::time::SystemTime;

use spire_compat::config::Level;
use spire_ports::observe::{Logged, Scalar};
use tracing::field::{Field, Visit};

/// A field's name: fixed at its call site, or one of [`Logged::Fields`].
pub(crate) type Name = Cow<'static, str>;

/// One event as the formats print it.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) level: Level,
    pub(crate) at: SystemTime,
    pub(crate) message: String,
    /// Sorted by name, each name once.
    pub(crate) fields: Vec<(Name, Value)>,
}

/// A field's value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Text(String),
    Signed(i64),
    Unsigned(u64),
    Wide(i128),
    Float(f64),
    Bool(bool),
    /// Shown by its name in text, and as the number in JSON.
    Named(i64, &'static str),
    Special(Logged),
}

impl From<Scalar> for Value {
    fn from(value: Scalar) -> Self {
        match value {
            Scalar::Text(text) => Self::Text(text.into_owned()),
            Scalar::Integer(number) => Self::Signed(number),
            Scalar::Bool(value) => Self::Bool(value),
            Scalar::Named(number, name) => Self::Named(number, name),
        }
    }
}

/// Gathers fields in the order in which they come; a later one of the same name wins.
#[derive(Debug, Default)]
pub(crate) struct Fields {
    pub(crate) message: Option<String>,
    pub(crate) list: Vec<(Name, Value)>,
}

impl Fields {
    /// The fields sorted by name as bytes, the last of each name.
    pub(crate) fn into_sorted(self) -> Vec<(Name, Value)> {
        let mut list = self.list;
        list.reverse();
        list.sort_by(|a, b| a.0.cmp(&b.0)); // stable: of one name the last recorded comes first
        list.dedup_by(|later, kept| later.0 == kept.0);
        list
    }

    fn push(&mut self, field: &Field, value: Value) {
        let name = field.name();
        if let Value::Special(Logged::Fields(many)) = value {
            self.list.extend(many.into_iter().map(|(name, value)| (name, value.into())));
            return;
        }
        if name == "message" {
            self.message = Some(match value {
                Value::Text(text) => text,
                other => other.to_text(),
            });
            return;
        }
        self.list.push((unclashed(name).into(), value));
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.push(field, Value::Float(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.push(field, Value::Signed(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.push(field, Value::Unsigned(value));
    }

    fn record_i128(&mut self, field: &Field, value: i128) {
        self.push(field, Value::Wide(value));
    }

    fn record_u128(&mut self, field: &Field, value: u128) {
        self.push(field, i128::try_from(value).map_or_else(|_| Value::Text(value.to_string()), Value::Wide));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.push(field, Value::Bool(value));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.push(field, Value::Text(value.to_owned()));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        let value = match value.downcast_ref::<Logged>() {
            Some(special) => Value::Special(special.clone()),
            None => Value::Text(chain(value)),
        };
        self.push(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.push(field, Value::Text(format!("{value:?}")));
    }
}

/// An error with its sources, as Go's wrapped errors read: `outer: inner: innermost`.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let sources = std::iter::successors(error.source(), |source| source.source());
    sources.take(MAX_SOURCES).fold(error.to_string(), |text, source| format!("{text}: {source}"))
}

/// A bound against chains that never end; real ones have a handful.
const MAX_SOURCES: usize = 16;

/// The names that logrus keeps for itself get a prefix (`prefixFieldClashes`), and raw identifiers lose theirs.
fn unclashed(name: &'static str) -> &'static str {
    match name.strip_prefix("r#").unwrap_or(name) {
        "time" => "fields.time",
        "msg" => "fields.msg",
        "level" => "fields.level",
        "logrus_error" => "fields.logrus_error",
        name => name,
    }
}
