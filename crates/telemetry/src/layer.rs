//! The `tracing` layer: which events are printed, and which fields their spans lend them.

use spire_compat::config::Level;
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

use std::time::SystemTime;

use crate::event::{Entry, Fields, Name, Value};
use crate::format::Formatter;
use crate::level::{LogLevel, filter, level_of};
use crate::sink::Sink;

/// Prints events. Our own follow the level; those of other people's crates are printed from `warn` on only.
#[derive(Debug)]
pub(crate) struct LogLayer {
    level: LogLevel,
    formatter: Formatter,
    source_location: bool,
    sink: Sink,
}

/// The fields of a span, kept in its extensions.
struct SpanFields(Vec<(Name, Value)>);

impl LogLayer {
    pub(crate) fn new(level: LogLevel, formatter: Formatter, source_location: bool, sink: Sink) -> Self {
        Self { level, formatter, source_location, sink }
    }

    /// Depends on the level and the call site's fixed data only, so `tracing` may remember the answer until the
    /// level changes.
    fn wants(&self, metadata: &Metadata<'_>) -> bool {
        let current = self.level.current();
        let ours = is_ours(metadata.target());
        if metadata.is_span() {
            // Context belongs to lines of every level, as logrus' fields do; so spans do not follow the level.
            return ours && *metadata.level() <= filter(current).max(LevelFilter::INFO);
        }
        level_of(metadata) <= if ours { current } else { current.min(Level::Warn) }
    }
}

impl<S> Layer<S> for LogLayer
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.wants(metadata) { Interest::always() } else { Interest::never() }
    }

    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        self.wants(metadata)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(filter(self.level.current()).max(LevelFilter::INFO))
    }

    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut fields =
            Fields { message: None, list: Vec::with_capacity(attributes.metadata().fields().len()) };
        attributes.record(&mut fields);
        span.extensions_mut().insert(SpanFields(fields.list));
    }

    fn on_record(&self, id: &Id, record: &Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut fields = Fields::default();
        record.record(&mut fields);
        let mut extensions = span.extensions_mut();
        let Some(SpanFields(kept)) = extensions.get_mut::<SpanFields>() else { return };
        for (name, value) in fields.list {
            // A field that is recorded again and again must not grow the span.
            match kept.iter_mut().find(|(kept_name, _)| *kept_name == name) {
                Some((_, kept_value)) => *kept_value = value,
                None => kept.push((name, value)),
            }
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let metadata = event.metadata();
        let mut fields = Fields::default();
        if let Some(scope) = context.event_scope(event) {
            for span in scope.from_root() {
                if let Some(SpanFields(kept)) = span.extensions().get::<SpanFields>() {
                    fields.list.extend(kept.iter().cloned());
                }
            }
        }
        event.record(&mut fields);
        if self.source_location {
            add_source(&mut fields, metadata);
        }
        let entry = Entry {
            level: level_of(metadata),
            at: SystemTime::now(),
            message: fields.message.take().unwrap_or_default(),
            fields: fields.into_sorted(),
        };
        self.sink.write(&self.formatter, entry);
    }
}

/// Adds the place of the call as the reference's hook does, over fields of these names. Rust's call sites do not
/// know their function, so its module stands in.
fn add_source(fields: &mut Fields, metadata: &Metadata<'_>) {
    if let Some(file) = metadata.file() {
        let name = file.rsplit('/').next().unwrap_or(file);
        let line = metadata.line().unwrap_or(0);
        fields.list.push(("file".into(), Value::Text(format!("{name}:{line}"))));
    }
    let module = metadata.module_path().unwrap_or_else(|| metadata.target());
    fields.list.push(("func".into(), Value::Text(module.to_owned())));
}

/// Our crates and binaries; any other target is a library's.
fn is_ours(target: &str) -> bool {
    target.starts_with("spire") || target.starts_with("oidc_discovery_provider")
}
