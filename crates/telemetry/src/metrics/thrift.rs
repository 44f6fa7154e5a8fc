//! The bytes of M3's `emitMetricBatchV2` in Thrift's compact protocol (tally `m3/thrift/v2`).
//!
//! Field numbers: `MetricTag` name 1, value 2; `MetricValue` type 1, count 2, gauge 3, timer 4; `Metric` name 1,
//! value 2, timestamp 3, tags 4; `MetricBatch` metrics 1, common tags 2; the call's argument 1.

/// A metric of a batch.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Metric<'a> {
    pub(crate) name: &'a str,
    pub(crate) value: Value,
    pub(crate) tags: Vec<(&'a str, &'a str)>,
}

/// What it says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Value {
    Count(i64),
    Gauge(f64),
}

/// Types of the compact protocol.
mod kind {
    pub(super) const I32: u8 = 5;
    pub(super) const I64: u8 = 6;
    pub(super) const DOUBLE: u8 = 7;
    pub(super) const BINARY: u8 = 8;
    pub(super) const LIST: u8 = 9;
    pub(super) const STRUCT: u8 = 12;
}

const PROTOCOL_ID: u8 = 0x82;
/// Version 1, type oneway.
const VERSION_ONEWAY: u8 = 1 | 4 << 5;

/// One encoded metric; batches are made of these.
pub(crate) fn metric(metric: &Metric<'_>, nanos: i64) -> Vec<u8> {
    let mut out = Vec::with_capacity(96);
    field(&mut out, 1, kind::BINARY);
    text(&mut out, metric.name);
    field(&mut out, 1, kind::STRUCT);
    let (metric_type, count, gauge) = match metric.value {
        Value::Count(count) => (1, count, 0.0),
        Value::Gauge(gauge) => (2, 0, gauge),
    };
    field(&mut out, 1, kind::I32);
    varint(&mut out, zigzag(metric_type));
    field(&mut out, 1, kind::I64);
    varint(&mut out, zigzag(count));
    field(&mut out, 1, kind::DOUBLE);
    out.extend_from_slice(&gauge.to_le_bytes());
    field(&mut out, 1, kind::I64);
    varint(&mut out, zigzag(0));
    out.push(0);
    field(&mut out, 1, kind::I64);
    varint(&mut out, zigzag(nanos));
    if !metric.tags.is_empty() {
        field(&mut out, 1, kind::LIST);
        tags(&mut out, &metric.tags);
    }
    out.push(0);
    out
}

/// The call with a batch of encoded metrics.
pub(crate) fn batch(sequence: u32, metrics: &[Vec<u8>], common: &[(&str, &str)]) -> Vec<u8> {
    let mut out = vec![PROTOCOL_ID, VERSION_ONEWAY];
    varint(&mut out, u64::from(sequence));
    text(&mut out, "emitMetricBatchV2");
    field(&mut out, 1, kind::STRUCT);
    field(&mut out, 1, kind::LIST);
    list(&mut out, metrics.len());
    for metric in metrics {
        out.extend_from_slice(metric);
    }
    if !common.is_empty() {
        field(&mut out, 1, kind::LIST);
        tags(&mut out, common);
    }
    out.extend_from_slice(&[0, 0]);
    out
}

fn tags(out: &mut Vec<u8>, tags: &[(&str, &str)]) {
    list(out, tags.len());
    for (name, value) in tags {
        field(out, 1, kind::BINARY);
        text(out, name);
        field(out, 1, kind::BINARY);
        text(out, value);
        out.push(0);
    }
}

/// A list of structs.
fn list(out: &mut Vec<u8>, length: usize) {
    match u8::try_from(length) {
        Ok(short) if short < 15 => out.push(short << 4 | kind::STRUCT),
        _ => {
            out.push(0xf0 | kind::STRUCT);
            varint(out, length as u64);
        }
    }
}

/// A field whose number is `delta` more than the last one's.
fn field(out: &mut Vec<u8>, delta: u8, kind: u8) {
    out.push(delta << 4 | kind);
}

fn text(out: &mut Vec<u8>, text: &str) {
    varint(out, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)).cast_unsigned()
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

    /// Written down by hand from the protocol's specification.
    #[test]
    fn a_batch_in_bytes() {
        let tags = vec![("k", "v")];
        let counter = metric(&Metric { name: "a", value: Value::Count(-2), tags: tags.clone() }, 1);
        let expected = [
            0x18, 1, b'a', // name
            0x1c, 0x15, 2, 0x16, 3, 0x17, 0, 0, 0, 0, 0, 0, 0, 0, 0x16, 0, 0, // value
            0x16, 2, // timestamp
            0x19, 0x1c, 0x18, 1, b'k', 0x18, 1, b'v', 0, // tags
            0,
        ];
        assert_eq!(counter, expected);
        let gauge = metric(&Metric { name: "a", value: Value::Gauge(1.0), tags: Vec::new() }, 300);
        assert_eq!(&gauge[4..17], [0x15, 4, 0x16, 0, 0x17, 0, 0, 0, 0, 0, 0, 0xf0, 0x3f]);
        assert_eq!(&gauge[17..], [0x16, 0, 0, 0x16, 0xd8, 0x04, 0]);
        let call = batch(300, std::slice::from_ref(&counter), &tags);
        let mut bytes = vec![0x82, 0x81, 0xac, 0x02, 17];
        bytes.extend_from_slice(b"emitMetricBatchV2");
        bytes.extend_from_slice(&[0x1c, 0x19, 0x1c]);
        bytes.extend_from_slice(&counter);
        bytes.extend_from_slice(&[0x19, 0x1c, 0x18, 1, b'k', 0x18, 1, b'v', 0, 0, 0]);
        assert_eq!(call, bytes);
        assert_eq!(batch(0, &vec![Vec::new(); 15], &[])[22..25], [0x19, 0xfc, 15]);
    }
}
