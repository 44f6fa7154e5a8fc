//! A plugin's log lines in our log, as SPIRE shows them (go-plugin: logStderr; pkg/common/log/hclog_adapter.go).

use std::borrow::Cow;

use serde_json::Value;
use spire_ports::observe::{Logged, Scalar};

/// Longest line that is read as one; what is longer comes in pieces (go-plugin: `PluginLogBufferSize`).
pub(crate) const LINE_MAX: usize = 64 << 10;
/// Fields of one line; the rest of a line that has more is dropped.
const FIELDS_MAX: usize = 64;
/// Longest name of a field.
const NAME_LENGTH_MAX: usize = 128;

/// Who logs.
#[derive(Clone, Debug)]
pub(crate) struct PluginLog {
    pub(crate) kind: &'static str,
    pub(crate) name: String,
    /// `name.program`.
    subsystem: String,
}

impl PluginLog {
    pub(crate) fn new(kind: &'static str, name: &str, program: &str) -> Self {
        Self { kind, name: name.to_owned(), subsystem: format!("{name}.{program}") }
    }
}

/// A level of hclog.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    /// Not shown at any level of ours.
    Trace,
    Debug,
    Info,
    Warn,
    Error,
}

/// Fields whose names the plugin chooses.
pub(crate) type Fields = Vec<(Cow<'static, str>, Scalar)>;

/// What a line says.
#[derive(Debug, PartialEq)]
pub(crate) struct Line {
    pub(crate) level: Level,
    pub(crate) message: String,
    pub(crate) fields: Fields,
}

/// Reads the lines of one child. After a panic its untagged lines are errors.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    panicking: bool,
}

impl Lines {
    /// Reads a line, whatever it is.
    pub(crate) fn read(&mut self, line: &str) -> Line {
        match serde_json::from_str::<serde_json::Map<String, Value>>(line) {
            Ok(entry) => json(line, entry),
            Err(_) => self.plain(line),
        }
    }

    fn plain(&mut self, line: &str) -> Line {
        if line.starts_with("panic: ") || line.starts_with("fatal error: ") {
            self.panicking = true;
        }
        let tagged = [
            ("[TRACE]", Level::Trace),
            ("[DEBUG]", Level::Debug),
            ("[INFO]", Level::Info),
            ("[WARN]", Level::Warn),
            ("[ERROR]", Level::Error),
        ];
        let level = match tagged.iter().find(|(tag, _)| line.starts_with(tag)) {
            Some((_, level)) => *level,
            None if self.panicking => Level::Error,
            None => Level::Debug,
        };
        Line { level, message: line.to_owned(), fields: Vec::new() }
    }
}

fn json(line: &str, mut entry: serde_json::Map<String, Value>) -> Line {
    let mut take = |name: &str| match entry.remove(name) {
        Some(Value::String(text)) => Some(text),
        _ => None,
    };
    let (message, level, timestamp) = (take("@message"), take("@level"), take("@timestamp"));
    let level = match level.as_deref().map(str::to_ascii_lowercase).as_deref() {
        Some("trace") => Level::Trace,
        Some("debug") => Level::Debug,
        Some("info") => Level::Info,
        Some("warn") => Level::Warn,
        Some("error") => Level::Error,
        // JSON of somebody else.
        _ => {
            return Line { level: Level::Debug, message: line.to_owned(), fields: Vec::new() };
        }
    };
    let mut fields: Fields = entry
        .into_iter()
        .take(FIELDS_MAX)
        .filter_map(|(name, field)| Some((unclashed(name)?, value(field))))
        .collect();
    if let Some(timestamp) = timestamp {
        fields.push(("timestamp".into(), milliseconds(&timestamp).into()));
    }
    Line { level, message: message.unwrap_or_default(), fields }
}

/// The time as hclog prints it again: with milliseconds, and no colon in the zone (hclog: `TimeFormat`).
fn milliseconds(timestamp: &str) -> String {
    let Some((seconds, rest)) = timestamp.split_once('.') else { return timestamp.to_owned() };
    let zone = rest.trim_start_matches(|c: char| c.is_ascii_digit());
    let fraction: String = rest.chars().take(3.min(rest.len() - zone.len())).collect();
    format!("{seconds}.{fraction}{}", zone.replace(':', ""))
}

fn value(value: Value) -> Scalar {
    match value {
        Value::String(text) => text.into(),
        Value::Bool(yes) => yes.into(),
        Value::Number(number) => number.as_i64().map_or_else(|| number.to_string().into(), Scalar::Integer),
        other => other.to_string().into(),
    }
}

/// The name of a field, if it is a sane one. Those that logrus keeps for itself get a prefix (`prefixFieldClashes`).
fn unclashed(name: String) -> Option<Cow<'static, str>> {
    if name.is_empty() || name.len() > NAME_LENGTH_MAX {
        return None;
    }
    Some(match name.as_str() {
        "time" | "msg" | "level" | "logrus_error" => format!("fields.{name}").into(),
        _ => name.into(),
    })
}

/// An event with the fields of a plugin; ours stand last, so that a plugin cannot speak in the name of another.
macro_rules! event {
    ($level:ident, $log:expr, $subsystem:expr, $fields:expr, $message:expr) => {
        tracing::$level!(
            fields = Logged::Fields($fields.clone()).value(),
            external = true,
            plugin_name = $log.name,
            plugin_type = $log.kind,
            subsystem_name = $subsystem,
            "{}",
            $message
        )
    };
}

impl PluginLog {
    /// Logs a line of the plugin.
    pub(crate) fn line(&self, line: &Line) {
        let Line { level, message, fields } = line;
        match level {
            Level::Trace => {}
            Level::Debug => event!(debug, self, self.subsystem, fields, message),
            Level::Info => event!(info, self, self.subsystem, fields, message),
            Level::Warn => event!(warn, self, self.subsystem, fields, message),
            Level::Error => event!(error, self, self.subsystem, fields, message),
        }
    }

    /// Says something of the plugin ourselves.
    pub(crate) fn say(&self, level: Level, message: &str, fields: &[(&'static str, &dyn std::fmt::Display)]) {
        let fields: Fields =
            fields.iter().map(|(name, value)| ((*name).into(), value.to_string().into())).collect();
        match level {
            Level::Trace => {}
            Level::Debug => event!(debug, self, "catalog", fields, message),
            Level::Info => event!(info, self, "catalog", fields, message),
            Level::Warn => event!(warn, self, "catalog", fields, message),
            Level::Error => event!(error, self, "catalog", fields, message),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &[&str]) -> Vec<Line> {
        let mut reader = Lines::default();
        lines.iter().map(|line| reader.read(line)).collect()
    }

    #[test]
    fn a_line_of_hclog_keeps_level_message_and_fields() {
        let mut lines = read(&[
            r#"{"@level":"warn","@message":"hello","@timestamp":"2026-01-02T03:04:05.000006Z","a":1,"b":"x","c":[1.5],"msg":true}"#,
        ]);
        lines[0].fields.sort_by(|a, b| a.0.cmp(&b.0));
        let expected = Line {
            level: Level::Warn,
            message: "hello".to_owned(),
            fields: vec![
                ("a".into(), Scalar::Integer(1)),
                ("b".into(), "x".into()),
                ("c".into(), "[1.5]".into()),
                ("fields.msg".into(), Scalar::Bool(true)),
                ("timestamp".into(), "2026-01-02T03:04:05.000Z".into()),
            ],
        };
        assert_eq!(lines, [expected]);
    }

    #[test]
    fn times_are_shown_as_hclog_does() {
        for (told, shown) in [
            ("2026-01-02T03:04:05.678901Z", "2026-01-02T03:04:05.678Z"),
            ("2026-01-02T03:04:05.678901+02:00", "2026-01-02T03:04:05.678+0200"),
            ("2026-01-02T03:04:05.é", "2026-01-02T03:04:05.é"),
            ("yesterday", "yesterday"),
        ] {
            assert_eq!(milliseconds(told), shown);
        }
    }

    #[test]
    fn other_lines_are_debug_unless_tagged_or_after_a_panic() {
        let levels = |lines: &[&str]| read(lines).into_iter().map(|line| line.level).collect::<Vec<_>>();
        assert_eq!(
            levels(&["x", "[ERROR] x", "[INFO] y", r#"{"level":"info"}"#, "[1]"]),
            [Level::Debug, Level::Error, Level::Info, Level::Debug, Level::Debug]
        );
        assert_eq!(
            levels(&["panic: no", "goroutine 1", "[DEBUG] z"]),
            [Level::Error, Level::Error, Level::Debug]
        );
    }

    #[test]
    fn fields_are_bounded() {
        let names = (0..2 * FIELDS_MAX).map(|i| format!(",\"{i}\":1")).collect::<String>();
        let line = format!(r#"{{"@level":"info","@message":"x"{names}}}"#);
        assert_eq!(read(&[&line])[0].fields.len(), FIELDS_MAX);
        assert_eq!(unclashed("x".repeat(NAME_LENGTH_MAX + 1)), None);
        assert_eq!(unclashed(String::new()), None);
    }
}
