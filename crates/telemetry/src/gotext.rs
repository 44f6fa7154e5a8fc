//! Imitates how Go prints values into text (`strconv.Quote`, `%v`) and JSON (`encoding/json`), into byte buffers.

use std::fmt::Write as _;
use std::time::Duration;

/// Appends `text` in double quotes with Go's escapes (`strconv.Quote`).
pub(crate) fn quote(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    for ch in text.chars() {
        match ch {
            '"' => out.extend_from_slice(b"\\\""),
            '\\' => out.extend_from_slice(b"\\\\"),
            ' '..='~' => out.push(ch as u8),
            '\x07' => out.extend_from_slice(b"\\a"),
            '\x08' => out.extend_from_slice(b"\\b"),
            '\x0c' => out.extend_from_slice(b"\\f"),
            '\n' => out.extend_from_slice(b"\\n"),
            '\r' => out.extend_from_slice(b"\\r"),
            '\t' => out.extend_from_slice(b"\\t"),
            '\x0b' => out.extend_from_slice(b"\\v"),
            _ if is_printable(ch) => push_char(out, ch),
            '\0'..='\x7f' => hex(out, "\\x", ch as u32, 2),
            '\u{80}'..='\u{ffff}' => hex(out, "\\u", ch as u32, 4),
            _ => hex(out, "\\U", ch as u32, 8),
        }
    }
    out.push(b'"');
}

/// Appends `text` as a JSON string as `encoding/json` does with HTML escaping on.
pub(crate) fn json_string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    for ch in text.chars() {
        match ch {
            '"' => out.extend_from_slice(b"\\\""),
            '\\' => out.extend_from_slice(b"\\\\"),
            '\x08' => out.extend_from_slice(b"\\b"),
            '\x0c' => out.extend_from_slice(b"\\f"),
            '\n' => out.extend_from_slice(b"\\n"),
            '\r' => out.extend_from_slice(b"\\r"),
            '\t' => out.extend_from_slice(b"\\t"),
            '\0'..='\x1f' | '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => hex(out, "\\u", ch as u32, 4),
            _ => push_char(out, ch),
        }
    }
    out.push(b'"');
}

/// A float as `%v` prints it: shortest digits, an exponent below 1e-4 and from 1e+06 on.
pub(crate) fn float(value: f64) -> String {
    if let Some(special) = non_finite(value) {
        return special.to_owned();
    }
    let scientific = format!("{value:e}");
    let Some((mantissa, exponent)) = scientific.split_once('e') else { return scientific };
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..SHORTEST_PRECISION).contains(&exponent) {
        return format!("{value}");
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{mantissa}e{sign}{:02}", exponent.unsigned_abs())
}

/// A float as `encoding/json` prints it. JSON has no infinities, for which Go's encoder gives up the whole line;
/// they become strings here.
pub(crate) fn json_float(value: f64) -> String {
    if let Some(special) = non_finite(value) {
        return format!("\"{special}\"");
    }
    let magnitude = value.abs();
    if magnitude == 0.0 || (1e-6..1e21).contains(&magnitude) {
        return format!("{value}");
    }
    let scientific = format!("{value:e}");
    match scientific.split_once('e') {
        Some((mantissa, exponent)) if !exponent.starts_with('-') => format!("{mantissa}e+{exponent}"),
        _ => scientific,
    }
}

/// A span of time as `time.Duration.String` prints it: `0s`, `1.5ms`, `1m30s`, `24h0m0s`.
pub(crate) fn duration(value: Duration) -> String {
    let nanos = value.as_nanos();
    let mut out = String::new();
    match nanos {
        0 => out.push_str("0s"),
        1..1_000 => push_unit(&mut out, nanos, 0, "ns"),
        1_000..1_000_000 => push_unit(&mut out, nanos, 3, "µs"),
        1_000_000..1_000_000_000 => push_unit(&mut out, nanos, 6, "ms"),
        _ => {
            let seconds = value.as_secs();
            let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
            if hours > 0 {
                let _ = write!(out, "{hours}h");
            }
            if seconds >= 60 {
                let _ = write!(out, "{minutes}m");
            }
            push_unit(&mut out, u128::from(seconds % 60) * 1_000_000_000 + nanos % 1_000_000_000, 9, "s");
        }
    }
    out
}

/// The text of an I/O error as Go prints its number: in lower case and without the number.
pub(crate) fn io_error(error: &std::io::Error) -> String {
    let text = error.to_string();
    match text.split_once(" (os error") {
        Some((reason, _)) => reason.to_lowercase(),
        None => text,
    }
}

/// From this decimal exponent on `%v` uses the exponent form when it prints the shortest digits.
const SHORTEST_PRECISION: i32 = 6;

fn push_unit(out: &mut String, value: u128, decimals: u32, unit: &str) {
    let scale = 10_u128.pow(decimals);
    let _ = write!(out, "{}", value / scale);
    let fraction = value % scale;
    if fraction != 0 {
        let digits = format!("{fraction:0width$}", width = decimals as usize);
        let _ = write!(out, ".{}", digits.trim_end_matches('0'));
    }
    out.push_str(unit);
}

fn non_finite(value: f64) -> Option<&'static str> {
    if value.is_nan() {
        Some("NaN")
    } else if value == f64::INFINITY {
        Some("+Inf")
    } else if value == f64::NEG_INFINITY {
        Some("-Inf")
    } else {
        None
    }
}

/// Go's `unicode.IsPrint`, by the standard library's own table: a character that `escape_debug` leaves alone inside
/// of a text. (A combining mark is escaped only at a text's start, hence the letter before it.)
fn is_printable(ch: char) -> bool {
    if ch.is_ascii() {
        return (' '..='~').contains(&ch);
    }
    let mut buffer = [b'a'; 5];
    let length = ch.encode_utf8(&mut buffer[1..]).len();
    std::str::from_utf8(&buffer[..=length]).is_ok_and(|text| text.escape_debug().count() == 2)
}

fn push_char(out: &mut Vec<u8>, ch: char) {
    out.extend_from_slice(ch.encode_utf8(&mut [0; 4]).as_bytes());
}

fn hex(out: &mut Vec<u8>, prefix: &str, value: u32, digits: u32) {
    out.extend_from_slice(prefix.as_bytes());
    for place in (0..digits).rev() {
        let digit = (value >> (place * 4)) & 0xf;
        out.push(b"0123456789abcdef"[digit as usize]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_as_strconv_quote() {
        for (text, expected) in [
            ("", r#""""#),
            ("x y", r#""x y""#),
            ("boom: \"q\"", r#""boom: \"q\"""#),
            (
                "é\u{a0}\0\x7f\u{200b}\u{1F600}\\\t\n\r\x07\u{2028}<&>",
                "\"é\\u00a0\\x00\\x7f\\u200b\u{1F600}\\\\\\t\\n\\r\\a\\u2028<&>\"",
            ),
            (
                "\u{ad}\u{378}\u{3000}\u{fffd}\u{feff}\u{e000}",
                "\"\\u00ad\\u0378\\u3000\u{fffd}\\ufeff\\ue000\"",
            ),
            ("\u{10ffff}\u{d7ff}\u{301}", "\"\\U0010ffff\\ud7ff\u{301}\""),
        ] {
            let mut out = Vec::new();
            quote(&mut out, text);
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
    }

    #[test]
    fn json_strings_as_encoding_json() {
        let mut out = Vec::new();
        json_string(&mut out, "é\u{a0}\0\x7f\u{200b}\u{1F600}\\\t\n\r\x07\u{2028}<&>");
        let expected =
            "\"é\u{a0}\\u0000\x7f\u{200b}\u{1F600}\\\\\\t\\n\\r\\u0007\\u2028\\u003c\\u0026\\u003e\"";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn floats() {
        for (value, text, json) in [
            (0.0, "0", "0"),
            (1.5, "1.5", "1.5"),
            (1e20, "1e+20", "100000000000000000000"),
            (1e21, "1e+21", "1e+21"),
            (1e-4, "0.0001", "0.0001"),
            (1e-5, "1e-05", "0.00001"),
            (1e-6, "1e-06", "0.000001"),
            (1e-7, "1e-07", "1e-7"),
            (123_456_789.0, "1.23456789e+08", "123456789"),
            (12_345_678_901_234_567_890.0, "1.2345678901234567e+19", "12345678901234567000"),
            (100_000.0, "100000", "100000"),
            (1_234_567.25, "1.23456725e+06", "1234567.25"),
            (f64::NAN, "NaN", "\"NaN\""),
        ] {
            assert_eq!((float(value).as_str(), json_float(value).as_str()), (text, json));
        }
    }

    #[test]
    fn durations() {
        for (nanos, expected) in [
            (0, "0s"),
            (1, "1ns"),
            (1_100, "1.1µs"),
            (2_200_000, "2.2ms"),
            (1_500_000_000, "1.5s"),
            (60_000_000_000, "1m0s"),
            (90_000_000_000, "1m30s"),
            (86_400_000_000_000, "24h0m0s"),
            (3_600_000_000_001, "1h0m0.000000001s"),
        ] {
            assert_eq!(duration(Duration::from_nanos(nanos)), expected);
        }
    }
}
