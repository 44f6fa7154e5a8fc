//! The three forms of a line: logrus' text, its terminal form, its JSON (`text_formatter.go`, `json_formatter.go`
//! of logrus v1.9.4, as the reference sets them up in `pkg/common/log/options.go`).

use std::borrow::Cow;
use std::io::Write as _;
use std::time::{Duration, SystemTime};

use spire_compat::config::{Level, LogFormat};
use spire_compat::duration::GoDuration;
use spire_compat::quote::push_quoted;
use spire_ports::observe::Logged;

use crate::event::{Entry, Value};
use crate::gotext;
use crate::zone::Zone;

/// Prints entries in one form.
#[derive(Debug)]
pub(crate) struct Formatter {
    pub(crate) format: LogFormat,
    /// Text goes to a terminal: colours, and seconds since the start instead of the time.
    pub(crate) terminal: bool,
    pub(crate) start: SystemTime,
    pub(crate) zone: Cow<'static, Zone>,
}

impl Formatter {
    /// Appends the entry's line, its line end included.
    pub(crate) fn line(&self, out: &mut Vec<u8>, entry: &Entry) {
        match self.format {
            LogFormat::Json => self.json(out, entry),
            _ if self.terminal => self.colored(out, entry),
            _ => self.text(out, entry),
        }
        out.push(b'\n');
    }

    fn text(&self, out: &mut Vec<u8>, entry: &Entry) {
        out.extend_from_slice(b"time=");
        append_text(out, &self.time(entry.at));
        out.extend_from_slice(b" level=");
        out.extend_from_slice(entry.level.as_str().as_bytes());
        if !entry.message.is_empty() {
            out.extend_from_slice(b" msg=");
            append_text(out, &entry.message);
        }
        for (name, value) in &entry.fields {
            out.push(b' ');
            out.extend_from_slice(name.as_bytes());
            out.push(b'=');
            append_text(out, &self.value_text(value));
        }
    }

    fn colored(&self, out: &mut Vec<u8>, entry: &Entry) {
        let color = match entry.level {
            Level::Debug | Level::Trace => 37,
            Level::Warn => 33,
            Level::Error | Level::Fatal | Level::Panic => 31,
            Level::Info => 36,
        };
        let mut level = entry.level.as_str().to_uppercase();
        level.truncate(4);
        let seconds = entry.at.duration_since(self.start).unwrap_or(Duration::ZERO).as_secs();
        let message = entry.message.strip_suffix('\n').unwrap_or(&entry.message);
        // Writing to a vector cannot fail.
        let _ = write!(out, "\x1b[{color}m{level}\x1b[0m[{seconds:04}] {message:<44} ");
        for (name, value) in &entry.fields {
            let _ = write!(out, " \x1b[{color}m{name}\x1b[0m=");
            append_text(out, &self.value_text(value));
        }
    }

    fn json(&self, out: &mut Vec<u8>, entry: &Entry) {
        let time = self.time(entry.at);
        let own = [("level", entry.level.as_str()), ("msg", entry.message.as_str()), ("time", time.as_str())];
        let mut own = own.into_iter().peekable();
        out.push(b'{');
        for (name, value) in &entry.fields {
            while let Some((key, text)) = own.next_if(|(key, _)| *key < &**name) {
                append_member(out, key);
                gotext::json_string(out, text);
            }
            append_member(out, name);
            self.append_json(out, value);
        }
        for (key, text) in own {
            append_member(out, key);
            gotext::json_string(out, text);
        }
        out.push(b'}');
    }

    fn time(&self, at: SystemTime) -> String {
        let (seconds, nanos) = match at.duration_since(SystemTime::UNIX_EPOCH) {
            Ok(since) => (i64::try_from(since.as_secs()).unwrap_or(i64::MAX), since.subsec_nanos()),
            Err(_) => (0, 0),
        };
        self.zone.rfc3339(seconds, if self.format == LogFormat::Default { 0 } else { nanos })
    }

    fn value_text<'v>(&self, value: &'v Value) -> Cow<'v, str> {
        match value {
            Value::Text(text) => Cow::Borrowed(text),
            Value::Special(Logged::Time(seconds)) => Cow::Owned(self.zone.go_string(*seconds)),
            other => Cow::Owned(other.to_text()),
        }
    }

    fn append_json(&self, out: &mut Vec<u8>, value: &Value) {
        match value {
            Value::Text(text) => gotext::json_string(out, text),
            Value::Float(number) => out.extend_from_slice(gotext::json_float(*number).as_bytes()),
            Value::Special(Logged::List(items)) => {
                out.push(b'[');
                for (index, item) in items.iter().enumerate() {
                    if index > 0 {
                        out.push(b',');
                    }
                    gotext::json_string(out, item);
                }
                out.push(b']');
            }
            Value::Special(Logged::Time(seconds)) => {
                gotext::json_string(out, &self.zone.rfc3339(*seconds, 0));
            }
            Value::Special(Logged::Duration(duration)) => {
                out.extend_from_slice(duration.as_nanos().to_string().as_bytes());
            }
            Value::Special(Logged::Nil) => out.extend_from_slice(b"null"),
            // They became fields of their own.
            Value::Special(Logged::Fields(_)) => gotext::json_string(out, &value.to_text()),
            Value::Named(number, _) => out.extend_from_slice(number.to_string().as_bytes()),
            Value::Signed(_) | Value::Unsigned(_) | Value::Wide(_) | Value::Bool(_) => {
                out.extend_from_slice(value.to_text().as_bytes());
            }
        }
    }
}

impl Value {
    /// The value as Go's `%v` prints it. A time needs the zone and is printed in UTC here.
    pub(crate) fn to_text(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Signed(number) => number.to_string(),
            Self::Named(_, name) => (*name).to_owned(),
            Self::Unsigned(number) => number.to_string(),
            Self::Wide(number) => number.to_string(),
            Self::Float(number) => gotext::float(*number),
            Self::Bool(truth) => truth.to_string(),
            Self::Special(Logged::Time(seconds)) => Zone::utc().go_string(*seconds),
            Self::Special(Logged::Duration(duration)) => GoDuration::from(*duration).to_string(),
            Self::Special(special) => special.to_string(),
        }
    }
}

/// Quotes only where logrus does (`needsQuoting`); an empty text stays bare.
fn append_text(out: &mut Vec<u8>, text: &str) {
    let bare = |byte: u8| {
        byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'/' | b'@' | b'^' | b'+')
    };
    if text.bytes().all(bare) {
        out.extend_from_slice(text.as_bytes());
    } else {
        push_quoted(out, text);
    }
}

fn append_member(out: &mut Vec<u8>, name: &str) {
    if out.last() != Some(&b'{') {
        out.push(b',');
    }
    gotext::json_string(out, name);
    out.push(b':');
}

#[cfg(test)]
#[path = "format_tests.rs"]
mod tests;
