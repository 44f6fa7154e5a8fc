//! StatsD and DogStatsD lines (go-metrics `statsd.go`, `datadog/dogstatsd.go`).

use std::fmt::Write as _;

use super::datagram::{AddressError, Datagrams, Peer};
use super::{Kind, Point, Sink};

/// Plain StatsD: labels have no place, so their values become parts of the name.
#[derive(Debug)]
pub(crate) struct Statsd(Datagrams);

impl Statsd {
    pub(crate) fn new(address: &str) -> Result<Self, AddressError> {
        Ok(Self(Datagrams::new(Peer::udp(address)?)))
    }

    pub(crate) async fn run(&self) {
        self.0.run().await;
    }
}

impl Sink for Statsd {
    fn emit(&self, point: &Point<'_>) {
        self.0.push(statsd_line(point));
    }
}

/// DogStatsD: labels are tags, counters whole numbers.
#[derive(Debug)]
pub(crate) struct DogStatsd(Datagrams);

/// How datadog's client names a unix socket.
const UNIX_PREFIX: &str = "unix://";

impl DogStatsd {
    /// An empty address is that of the environment, as datadog's client has it.
    pub(crate) fn new(address: &str) -> Result<Self, AddressError> {
        let environment = || {
            let host = std::env::var("DD_AGENT_HOST").ok().filter(|host| !host.is_empty());
            let port = std::env::var("DD_DOGSTATSD_PORT").unwrap_or_else(|_| "8125".to_owned());
            host.map(|host| if host.starts_with(UNIX_PREFIX) { host } else { format!("{host}:{port}") })
        };
        let address = match address {
            "" => environment().unwrap_or_default(),
            address => address.to_owned(),
        };
        let peer = match address.strip_prefix(UNIX_PREFIX) {
            Some(path) => Peer::Unix(path.into()),
            None => Peer::udp(&address)?,
        };
        Ok(Self(Datagrams::new(peer)))
    }

    pub(crate) async fn run(&self) {
        self.0.run().await;
    }
}

impl Sink for DogStatsd {
    fn emit(&self, point: &Point<'_>) {
        self.0.push(dog_line(point));
    }
}

fn statsd_line(point: &Point<'_>) -> String {
    let mut line = String::with_capacity(96);
    push_clean(&mut line, point.name);
    for (_, value) in point.labels {
        line.push('.');
        push_clean(&mut line, value);
    }
    let kind = match point.kind {
        Kind::Counter => "c",
        Kind::Gauge => "g",
        Kind::Sample | Kind::Timer => "ms",
    };
    let _ = writeln!(line, ":{:.6}|{kind}", point.value);
    line
}

fn dog_line(point: &Point<'_>) -> String {
    let mut line = String::with_capacity(96);
    push_clean(&mut line, point.name);
    let _ = match point.kind {
        Kind::Counter => write!(line, ":{}|c", point.value.trunc()),
        Kind::Gauge => write!(line, ":{}|g", point.value),
        Kind::Sample | Kind::Timer => write!(line, ":{:.6}|ms", point.value),
    };
    for (index, (name, value)) in point.labels.iter().enumerate() {
        line.push_str(if index == 0 { "|#" } else { "," });
        push_clean(&mut line, name);
        if !value.is_empty() {
            line.push(':');
            push_clean(&mut line, value);
        }
    }
    line.push('\n');
    line
}

/// What would end a name, or a line, becomes an underscore.
fn push_clean(line: &mut String, text: &str) {
    line.extend(text.chars().map(|c| if matches!(c, ':' | ' ' | '\n' | '|') { '_' } else { c }));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point<'a>(kind: Kind, value: f64, labels: &'a [super::super::naming::CleanLabel<'a>]) -> Point<'a> {
        Point { kind, name: "spire_server.a b:c.d", key: &[], value, labels }
    }

    #[test]
    fn lines_of_both_dialects() {
        let labels = [("status".into(), "OK".into()), ("host".into(), "h:1.x".into())];
        for (kind, value, statsd, dog) in [
            (
                Kind::Counter,
                1.0,
                "spire_server.a_b_c.d.OK.h_1.x:1.000000|c\n",
                "spire_server.a_b_c.d:1|c|#status:OK,host:h_1.x\n",
            ),
            (
                Kind::Gauge,
                2.5,
                "spire_server.a_b_c.d.OK.h_1.x:2.500000|g\n",
                "spire_server.a_b_c.d:2.5|g|#status:OK,host:h_1.x\n",
            ),
            (
                Kind::Timer,
                0.125,
                "spire_server.a_b_c.d.OK.h_1.x:0.125000|ms\n",
                "spire_server.a_b_c.d:0.125000|ms|#status:OK,host:h_1.x\n",
            ),
        ] {
            let point = point(kind, value, &labels);
            assert_eq!((statsd_line(&point).as_str(), dog_line(&point).as_str()), (statsd, dog));
        }
        let empty = [("x".into(), "".into())];
        assert_eq!(dog_line(&point(Kind::Gauge, 1.0, &empty)), "spire_server.a_b_c.d:1|g|#x\n");
        assert_eq!(dog_line(&point(Kind::Gauge, 1.0, &[])), "spire_server.a_b_c.d:1|g\n");
    }
}
