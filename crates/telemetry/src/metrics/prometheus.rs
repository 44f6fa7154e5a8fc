//! Series for Prometheus and their text form (go-metrics `prometheus/prometheus.go`, the text format 0.0.4).

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Instant;

use parking_lot::Mutex;

use super::naming::CleanLabel;
use super::series::{AtomicFloat, Series};
use super::summary::{QUANTILES, Summary};
use super::{Kind, Point, Sink};
use crate::gotext;

/// What a scrape sees.
#[derive(Debug, Default)]
pub(crate) struct Prometheus {
    series: Series<One>,
}

#[derive(Debug)]
struct One {
    name: String,
    /// `a="x",b="y"`, sorted by name.
    labels: String,
    value: Value,
}

#[derive(Debug)]
enum Value {
    Counter(AtomicFloat),
    Gauge(AtomicFloat),
    Summary(Box<Mutex<Summary>>),
}

impl Value {
    fn new(kind: Kind) -> Self {
        match kind {
            Kind::Counter => Self::Counter(AtomicFloat::default()),
            Kind::Gauge => Self::Gauge(AtomicFloat::default()),
            Kind::Sample | Kind::Timer => Self::Summary(Box::new(Mutex::new(Summary::new(Instant::now())))),
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::Counter(_) => "counter",
            Self::Gauge(_) => "gauge",
            Self::Summary(_) => "summary",
        }
    }

    fn take(&self, value: f64) {
        match self {
            // Counters only grow; client_golang refuses the same.
            Self::Counter(counter) if value >= 0.0 => counter.add(value),
            Self::Counter(_) => {}
            Self::Gauge(gauge) => gauge.store(value),
            Self::Summary(summary) => summary.lock().observe(value, Instant::now()),
        }
    }
}

impl Sink for Prometheus {
    fn emit(&self, point: &Point<'_>) {
        let mut key = String::with_capacity(point.name.len() + 48);
        key.push(match point.kind {
            Kind::Counter => 'c',
            Kind::Gauge => 'g',
            Kind::Sample | Kind::Timer => 's',
        });
        key.push_str(point.name);
        for (name, value) in point.labels {
            key.push(';');
            key.push_str(name);
            key.push('=');
            key.push_str(value);
        }
        let make = || One {
            name: flatten(point.name),
            labels: label_text(point.labels),
            value: Value::new(point.kind),
        };
        self.series.with(&key, make, |one| one.value.take(point.value));
    }

    /// Series of the old names would stay at their last values for ever.
    fn renamed(&self) {
        self.series.clear();
    }
}

impl Prometheus {
    /// The text of a scrape: our series and the process's.
    pub(crate) fn text(&self, process: &[Family]) -> String {
        let now = Instant::now();
        let mut families: BTreeMap<String, Lines> = BTreeMap::new();
        self.series.each(|_, one| {
            let (kind, lines) =
                families.entry(one.name.clone()).or_insert_with(|| (one.value.kind(), Vec::new()));
            // One name has one type; what a plugin sends under a name of another type has no place.
            if *kind == one.value.kind() {
                lines.push((one.labels.clone(), lines_of(one, now)));
            }
        });
        for family in process {
            let line = format!("{} {}\n", family.name, gotext::float(family.value));
            families.insert(family.name.to_owned(), (family.kind, vec![(String::new(), line)]));
        }
        let mut text = String::new();
        for (name, (kind, mut lines)) in families {
            let help = process.iter().find(|family| family.name == name).map_or(name.as_str(), |f| f.help);
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
            lines.sort();
            text.extend(lines.into_iter().map(|(_, lines)| lines));
        }
        text
    }
}

/// The type of a name, and its labels with their lines.
type Lines = (&'static str, Vec<(String, String)>);

/// A metric of the process itself, without labels and prefix.
#[derive(Debug)]
pub(crate) struct Family {
    pub(crate) name: &'static str,
    pub(crate) help: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) value: f64,
}

fn lines_of(one: &One, now: Instant) -> String {
    let One { name, labels, value } = one;
    let braced = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
    match value {
        Value::Counter(value) | Value::Gauge(value) => {
            format!("{name}{braced} {}\n", gotext::float(value.load()))
        }
        Value::Summary(summary) => {
            let (quantiles, sum, count) = {
                let summary = summary.lock();
                (summary.quantiles(now), summary.sum(), summary.count())
            };
            let comma = if labels.is_empty() { "" } else { "," };
            let mut lines = String::new();
            for ((_, quantile), value) in QUANTILES.iter().zip(quantiles) {
                let value = gotext::float(value);
                let _ = writeln!(lines, "{name}{{{labels}{comma}quantile=\"{quantile}\"}} {value}");
            }
            let sum = gotext::float(sum);
            let _ = writeln!(lines, "{name}_sum{braced} {sum}\n{name}_count{braced} {count}");
            lines
        }
    }
}

/// A name of letters, digits, underscores and colons. go-metrics replaces the usual others; a character that it
/// leaves would fail every scrape there.
fn flatten(name: &str) -> String {
    let mut flat: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() || c == ':' { c } else { '_' }).collect();
    if flat.starts_with(|c: char| c.is_ascii_digit()) {
        flat.insert(0, '_');
    }
    flat
}

fn label_text(labels: &[CleanLabel<'_>]) -> String {
    // Of labels with one name the last counts, as in Go's map.
    let sorted: BTreeMap<&str, &str> = labels.iter().map(|(name, value)| (&**name, &**value)).collect();
    let mut text = String::new();
    for (name, value) in sorted {
        let comma = if text.is_empty() { "" } else { "," };
        let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let _ = write!(text, "{comma}{name}=\"{value}\"");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn emit(sink: &Prometheus, kind: Kind, name: &str, value: f64, labels: &[CleanLabel<'_>]) {
        sink.emit(&Point { kind, name, key: &[], value, labels });
    }

    fn label<'a>(name: &'a str, value: &'a str) -> CleanLabel<'a> {
        (name.into(), value.into())
    }

    #[test]
    fn the_text_of_a_scrape() {
        let sink = Prometheus::default();
        let labels = [label("status", "OK"), label("host", "a\"b\\c\nd")];
        emit(&sink, Kind::Counter, "s.b-c.d/e", 1.0, &labels);
        emit(&sink, Kind::Counter, "s.b-c.d/e", 2.0, &labels);
        emit(&sink, Kind::Counter, "s.b-c.d/e", -5.0, &labels);
        emit(&sink, Kind::Counter, "s.b-c.d/e", 1.0, &[label("status", "Aborted")]);
        emit(&sink, Kind::Gauge, "s.a", 1_766_000_000.0, &[]);
        emit(&sink, Kind::Gauge, "s.a", 0.25, &[]);
        emit(&sink, Kind::Timer, "s.t", 1.5, &[label("x", "y")]);
        emit(&sink, Kind::Gauge, "s.t", 9.0, &[label("x", "y")]);
        let process = [Family { name: "go_threads", help: "Threads.", kind: "gauge", value: 4.0 }];
        let text = sink.text(&process);
        let (rest, timers) = text.split_once("# HELP s_t").unwrap();
        assert_eq!(
            rest,
            "# HELP go_threads Threads.\n# TYPE go_threads gauge\ngo_threads 4\n\
             # HELP s_a s_a\n# TYPE s_a gauge\ns_a 0.25\n\
             # HELP s_b_c_d_e s_b_c_d_e\n# TYPE s_b_c_d_e counter\n\
             s_b_c_d_e{host=\"a\\\"b\\\\c\\nd\",status=\"OK\"} 3\ns_b_c_d_e{status=\"Aborted\"} 1\n"
        );
        // Which of the two types of one name came first in the table is chance; only one is shown.
        let summary = " s_t\n# TYPE s_t summary\ns_t{x=\"y\",quantile=\"0.5\"} 1.5\n\
             s_t{x=\"y\",quantile=\"0.9\"} 1.5\ns_t{x=\"y\",quantile=\"0.99\"} 1.5\n\
             s_t_sum{x=\"y\"} 1.5\ns_t_count{x=\"y\"} 1\n";
        assert!(timers == summary || timers == " s_t\n# TYPE s_t gauge\ns_t{x=\"y\"} 9\n", "{timers}");
        sink.renamed();
        assert_eq!(sink.text(&[]), "");
    }

    #[test]
    fn names_that_prometheus_takes() {
        for (name, expected) in [("a.b c=d-e/f", "a_b_c_d_e_f"), ("1x", "_1x"), ("ä:b", "_:b")] {
            assert_eq!(flatten(name), expected);
        }
    }
}
