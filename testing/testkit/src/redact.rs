//! Makes outputs comparable: what differs from run to run is replaced by a word for its kind.

/// Replaces UUIDs, times, durations, serial numbers, tokens and long base64, in the order of the rules below.
///
/// - `xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx` becomes `<uuid>`
/// - `2026-08-01 10:11:12 +0000 UTC`, `2026-08-01T10:11:12Z` (with or without fraction and zone) become `<time>`
/// - `1.5ms`, `2h3m4s` become `<duration>`
/// - decimal numbers of 20 digits or more become `<serial>`
/// - three base64url parts with dots, from `eyJ`, become `<jwt>`
/// - `127.0.0.1:12345` becomes `127.0.0.1:<port>`
#[must_use]
pub fn redact(text: &str) -> String {
    text.split_inclusive('\n').map(line).collect()
}

fn line(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < bytes.len() {
        let free = at == 0 || !bytes[at - 1].is_ascii_alphanumeric();
        if let Some((length, word)) = free.then(|| rule(&bytes[at..])).flatten() {
            out.push_str(word);
            at += length;
            continue;
        }
        let length = text[at..].chars().next().map_or(1, char::len_utf8);
        out.push_str(&text[at..at + length]);
        at += length;
    }
    out
}

/// The length of what a rule takes from the start of `rest`, and its word.
fn rule(rest: &[u8]) -> Option<(usize, &'static str)> {
    if let Some(length) = uuid(rest) {
        return Some((length, "<uuid>"));
    }
    if let Some(length) = time(rest) {
        return Some((length, "<time>"));
    }
    if let Some(length) = duration(rest) {
        return Some((length, "<duration>"));
    }
    let digits = run(rest, |byte| byte.is_ascii_digit());
    if digits >= 20 {
        return Some((digits, "<serial>"));
    }
    if rest.starts_with(b"eyJ") {
        let length = run(rest, |b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
        if rest[..length].iter().filter(|byte| **byte == b'.').count() == 2 {
            return Some((length, "<jwt>"));
        }
    }
    let host = b"127.0.0.1:";
    if rest.starts_with(host) {
        let port = run(&rest[host.len()..], |byte| byte.is_ascii_digit());
        return (port > 0).then_some((host.len() + port, "127.0.0.1:<port>"));
    }
    None
}

fn run(rest: &[u8], is_in: impl Fn(u8) -> bool) -> usize {
    rest.iter().take_while(|byte| is_in(**byte)).count()
}

/// A shape: `0` a digit, `x` a hex digit, anything else itself.
fn shape(rest: &[u8], pattern: &str) -> bool {
    rest.len() >= pattern.len()
        && pattern.bytes().zip(rest).all(|(want, have)| match want {
            b'0' => have.is_ascii_digit(),
            b'x' => have.is_ascii_hexdigit(),
            other => other == *have,
        })
}

fn uuid(rest: &[u8]) -> Option<usize> {
    shape(rest, "xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx").then_some(36)
}

fn time(rest: &[u8]) -> Option<usize> {
    let blank = shape(rest, "0000-00-00 00:00:00");
    if !blank && !shape(rest, "0000-00-00T00:00:00") {
        return None;
    }
    let mut length = 19;
    if rest.get(length) == Some(&b'.') {
        length += 1 + run(&rest[length + 1..], |byte| byte.is_ascii_digit());
    }
    let zone = &rest[length..];
    if zone.first() == Some(&b'Z') {
        length += 1;
    } else if zone.len() > 5 && matches!(zone[0], b'+' | b'-') && shape(&zone[1..], "00:00") {
        length += 6;
    } else if blank && zone.len() > 6 && zone[0] == b' ' && shape(&zone[2..], "0000 ") {
        length += 7;
        length += run(&rest[length..], |byte| byte.is_ascii_alphanumeric());
    }
    Some(length)
}

/// Go's form of a duration: numbers with units, one after the other.
fn duration(rest: &[u8]) -> Option<usize> {
    const UNITS: &[&[u8]] = &[b"ns", "µs".as_bytes(), b"us", b"ms", b"s", b"m", b"h"];
    let mut length = 0;
    loop {
        let number = run(&rest[length..], |byte| byte.is_ascii_digit() || byte == b'.');
        if number == 0 || !rest[length].is_ascii_digit() {
            break;
        }
        let unit = UNITS.iter().find(|unit| rest[length + number..].starts_with(unit))?;
        length += number + unit.len();
    }
    let ended = rest.get(length).is_none_or(|byte| !byte.is_ascii_alphanumeric());
    (length > 0 && ended).then_some(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_from_run_to_run_goes() {
        let cases = [
            ("Entry ID : 0a03ce13-a007-482f-8a00-c985b41bb420\n", "Entry ID : <uuid>\n"),
            ("join_token/0a03ce13-a007-482f-8a00-c985b41bb420", "join_token/<uuid>"),
            ("after 2.003828ms\n", "after <duration>\n"),
            ("1h2m3.5s,", "<duration>,"),
            ("Until:\t2022-10-26 05:51:13 +0000 UTC\n", "Until:\t<time>\n"),
            ("time=\"2022-10-26T05:51:13+02:00\"", "time=\"<time>\""),
            ("issued 2022-10-26T05:51:13.123Z", "issued <time>"),
            ("serial 12345678901234567890123", "serial <serial>"),
            ("\teyJhbGciOiJF.eyJhdWQ_x.me-w", "\t<jwt>"),
            ("dial 127.0.0.1:8081: refused", "dial 127.0.0.1:<port>: refused"),
            ("TTL : 3600, unix:uid:1000 and v1.15.3 stay", "TTL : 3600, unix:uid:1000 and v1.15.3 stay"),
            ("µ and ü stay", "µ and ü stay"),
        ];
        for (given, want) in cases {
            assert_eq!(redact(given), want);
        }
    }
}
