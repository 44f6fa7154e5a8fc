//! Events of `tracing` as lines of hclog, which the host puts into its own log with their level and fields.

use std::fmt;
use std::io::{self, Write};

use serde_json::{Map, Value};
use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::{LookupSpan, Registry};

const TIMESTAMP: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z");

/// Sends the events of this process to the host, unless somebody listens to them already.
pub(crate) fn install() {
    // One that is there was wanted.
    let _ = tracing::subscriber::set_global_default(Registry::default().with(ToHost));
}

struct ToHost;

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for ToHost {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        // Hosts do not show the lowest level, and what the libraries under this one say of each frame is nobody's.
        let level = *metadata.level();
        if level == Level::TRACE || (level == Level::DEBUG && is_transport(metadata.target())) {
            return;
        }
        let mut fields = Fields::default();
        event.record(&mut fields);
        let line = line(&level, fields.0, OffsetDateTime::now_utc());
        // Nobody is left to tell where this fails.
        let _ = io::stderr().lock().write_all(line.as_bytes());
    }
}

/// Whether it is one of the libraries that carry calls.
fn is_transport(target: &str) -> bool {
    let library = target.split("::").next().unwrap_or_default();
    ["h2", "hyper", "hyper_util", "tonic", "tower"].contains(&library)
}

fn line(level: &Level, mut fields: Map<String, Value>, now: OffsetDateTime) -> String {
    let message = fields.remove("message").unwrap_or_else(|| Value::String(String::new()));
    fields.insert("@level".to_owned(), Value::String(level.as_str().to_ascii_lowercase()));
    fields.insert("@message".to_owned(), message);
    fields.insert("@timestamp".to_owned(), Value::String(now.format(TIMESTAMP).unwrap_or_default()));
    format!("{}\n", Value::Object(fields))
}

#[derive(Default)]
struct Fields(Map<String, Value>);

impl Fields {
    fn put(&mut self, field: &Field, value: impl Into<Value>) {
        self.0.insert(field.name().to_owned(), value.into());
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_a_line_of_hclog() {
        let fields = Map::from_iter([
            ("message".to_owned(), Value::from("hello\nworld")),
            ("count".to_owned(), Value::from(3)),
        ]);
        let now = OffsetDateTime::from_unix_timestamp_nanos(1_700_000_000_123_456_789).expect("a time");
        assert_eq!(
            line(&Level::WARN, fields, now),
            "{\"@level\":\"warn\",\"@message\":\"hello\\nworld\",\"@timestamp\":\"2023-11-14T22:13:20.123456Z\",\"count\":3}\n"
        );
    }
}
