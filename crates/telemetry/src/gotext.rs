//! Imitates how Go prints values into text (`%v`) and JSON (`encoding/json`).

use spire_compat::quote::push_hex;

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
            '\0'..='\x1f' | '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => push_hex(out, "\\u", ch as u32, 4),
            _ => out.extend_from_slice(ch.encode_utf8(&mut [0; 4]).as_bytes()),
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

/// From this decimal exponent on `%v` uses the exponent form when it prints the shortest digits.
const SHORTEST_PRECISION: i32 = 6;

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

#[cfg(test)]
mod tests {
    use super::*;

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
}
