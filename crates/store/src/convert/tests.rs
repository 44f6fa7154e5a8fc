//! Encodings of stored values.

use time::OffsetDateTime;

use super::{json_rows, parse_time, rounded, time_text};

fn at(unix: i64, nanos: i128) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(unix) * 1_000_000_000 + nanos).unwrap()
}

#[test]
fn times_are_written_as_the_reference_writes_them() {
    assert_eq!(time_text(at(1_700_000_000, 0)), "2023-11-14 22:13:20+00:00");
    assert_eq!(time_text(at(1_700_000_000, 123_456_789)), "2023-11-14 22:13:20.123456789+00:00");
    assert_eq!(time_text(at(1_700_000_000, 120_000_000)), "2023-11-14 22:13:20.12+00:00");
    assert_eq!(time_text(at(1_700_000_000, 1)), "2023-11-14 22:13:20.000000001+00:00");
}

#[test]
fn times_are_read_in_every_form_that_was_ever_written() {
    for (text, unix, nanos) in [
        ("2023-11-14 22:13:20+00:00", 1_700_000_000, 0),
        ("2023-11-14 22:13:20.123456789+00:00", 1_700_000_000, 123_456_789),
        ("2023-11-14 22:13:20.5+00:00", 1_700_000_000, 500_000_000),
        ("2023-11-15 00:13:20+02:00", 1_700_000_000, 0),
        ("2023-11-14 16:43:20.25-05:30", 1_700_000_000, 250_000_000),
        ("2023-11-14T22:13:20Z", 1_700_000_000, 0),
        ("2023-11-14 22:13:20", 1_700_000_000, 0),
        ("2023-11-14T22:13", 1_699_999_980, 0),
        ("2023-11-14", 1_699_920_000, 0),
    ] {
        assert_eq!(parse_time(text), Some(at(unix, nanos)), "{text}");
    }
    for text in
        ["", "now", "2023-13-14 22:13:20", "2023-11-14 25:13:20", "2023-11-14 22:13:20 CET", "é023-11-14"]
    {
        assert_eq!(parse_time(text), None, "{text}");
    }
}

#[test]
fn what_is_written_reads_back() {
    for nanos in [0, 1, 10, 999_999_999, 100_000_000, 499_999_999, 500_000_000] {
        let written = at(1_750_000_000, nanos);
        assert_eq!(parse_time(&time_text(written)), Some(written));
    }
}

#[test]
fn creation_times_round_to_the_nearest_second() {
    assert_eq!(rounded(at(100, 499_999_999)).unix(), 100);
    assert_eq!(rounded(at(100, 500_000_000)).unix(), 101);
}

#[test]
fn rows_become_json() {
    assert_eq!(json_rows(&[]), "[]");
    assert_eq!(json_rows(&[1, 20, 300]), "[1,20,300]");
}
