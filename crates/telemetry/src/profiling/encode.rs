//! Sampled stacks as pprof's `profile.proto`, gzipped. Field numbers are those of github.com/google/pprof.

use std::collections::HashMap;
use std::io::{self, Write as _};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use flate2::Compression;
use flate2::write::GzEncoder;

/// The report of a sampler that ran for `duration` from `start` with `frequency` samples a second.
pub(super) fn gzipped(
    report: &pprof::Report,
    start: SystemTime,
    duration: Duration,
    frequency: i32,
) -> io::Result<Vec<u8>> {
    let stacks = report.data.iter().map(|(frames, count)| {
        let names = frames.frames.iter().flatten().map(|symbol| {
            let line = i64::from(symbol.lineno.unwrap_or_default());
            (symbol.name(), symbol.filename().into_owned(), line)
        });
        (names.collect(), i64::try_from(*count).unwrap_or(i64::MAX))
    });
    let encoded = profile(&stacks.collect::<Vec<_>>(), start, duration, frequency);
    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    gzip.write_all(&encoded)?;
    gzip.finish()
}

/// Function, file and line, innermost first; and how often the stack was seen.
type Stack = (Vec<(String, String, i64)>, i64);

fn profile(stacks: &[Stack], start: SystemTime, duration: Duration, frequency: i32) -> Vec<u8> {
    let mut texts = Texts::default();
    let period = 1_000_000_000 / i64::from(frequency.max(1));
    let mut out = Vec::new();
    for (kind, unit) in [("samples", "count"), ("cpu", "nanoseconds")] {
        message(&mut out, 1, |value| value_type(value, texts.index(kind), texts.index(unit)));
    }
    // A function has one location here: lines within it are its own.
    let mut locations: HashMap<(&str, &str, i64), u64> = HashMap::new();
    let mut tables = Vec::new();
    for (frames, count) in stacks {
        let mut ids = Vec::with_capacity(frames.len());
        for (name, file, line) in frames {
            let next = locations.len() as u64 + 1;
            let id = *locations.entry((name, file, *line)).or_insert(next);
            if id == next {
                location(&mut tables, id, *line);
                function(&mut tables, id, texts.index(name), texts.index(file));
            }
            ids.push(id);
        }
        message(&mut out, 2, |sample| {
            packed(sample, 1, ids);
            packed(sample, 2, [*count, count.saturating_mul(period)].map(i64::cast_unsigned));
        });
    }
    out.extend_from_slice(&tables);
    let since = start.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (cpu, nanoseconds) = (texts.index("cpu"), texts.index("nanoseconds"));
    for text in &texts.list {
        bytes(&mut out, 6, text.as_bytes());
    }
    number(&mut out, 9, since.as_nanos() as u64);
    number(&mut out, 10, duration.as_nanos() as u64);
    message(&mut out, 11, |value| value_type(value, cpu, nanoseconds));
    number(&mut out, 12, period.cast_unsigned());
    out
}

/// The string table, whose first entry is empty.
struct Texts {
    list: Vec<String>,
    known: HashMap<String, u64>,
}

impl Default for Texts {
    fn default() -> Self {
        Self { list: vec![String::new()], known: HashMap::from([(String::new(), 0)]) }
    }
}

impl Texts {
    fn index(&mut self, text: &str) -> u64 {
        if let Some(index) = self.known.get(text) {
            return *index;
        }
        let index = self.list.len() as u64;
        self.list.push(text.to_owned());
        self.known.insert(text.to_owned(), index);
        index
    }
}

fn value_type(out: &mut Vec<u8>, kind: u64, unit: u64) {
    number(out, 1, kind);
    number(out, 2, unit);
}

fn location(out: &mut Vec<u8>, id: u64, line: i64) {
    message(out, 4, |location| {
        number(location, 1, id);
        message(location, 4, |entry| {
            number(entry, 1, id);
            number(entry, 2, line.cast_unsigned());
        });
    });
}

fn function(out: &mut Vec<u8>, id: u64, name: u64, file: u64) {
    message(out, 5, |function| {
        number(function, 1, id);
        number(function, 2, name);
        number(function, 3, name);
        number(function, 4, file);
    });
}

fn number(out: &mut Vec<u8>, field: u32, value: u64) {
    varint(out, u64::from(field) << 3);
    varint(out, value);
}

fn bytes(out: &mut Vec<u8>, field: u32, content: &[u8]) {
    varint(out, u64::from(field) << 3 | 2);
    varint(out, content.len() as u64);
    out.extend_from_slice(content);
}

fn message(out: &mut Vec<u8>, field: u32, write: impl FnOnce(&mut Vec<u8>)) {
    let mut content = Vec::new();
    write(&mut content);
    bytes(out, field, &content);
}

fn packed(out: &mut Vec<u8>, field: u32, values: impl IntoIterator<Item = u64>) {
    let mut content = Vec::new();
    values.into_iter().for_each(|value| varint(&mut content, value));
    bytes(out, field, &content);
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stacks_share_functions() {
        let frame = |name: &str| (name.to_owned(), "a.rs".to_owned(), 7);
        let stacks = [(vec![frame("leaf"), frame("root")], 2), (vec![frame("root")], 1)];
        let encoded = profile(&stacks, UNIX_EPOCH, Duration::from_secs(1), 100);
        // The first sample: locations 1 and 2, two samples of 10 ms each.
        let sample = [0x12, 11, 0x0a, 2, 1, 2, 0x12, 5, 2, 0x80, 0xda, 0xc4, 0x09];
        assert!(encoded.windows(sample.len()).any(|window| window == sample));
        assert_eq!(encoded.windows(4).filter(|w| *w == b"leaf").count(), 1);
        assert_eq!(encoded.windows(4).filter(|w| *w == b"root").count(), 1);
        assert_eq!(encoded.windows(4).filter(|w| *w == b"a.rs").count(), 1);
    }
}
