//! Imitates Go's `strconv.Quote`, which `%q`, logs and many error texts use.

/// `text` as a Go string literal in double quotes: `\n` and its kin by letter, other unprintable characters
/// as `\x01`, `\u200b` or `\U000e0001`, everything printable as it is.
pub fn quote(text: &str) -> String {
    quote_bytes(text.as_bytes())
}

/// Like [`quote`] for bytes that may not be UTF-8: a stray byte becomes `\xff`.
pub fn quote_bytes(bytes: &[u8]) -> String {
    let mut out = Vec::with_capacity(bytes.len() + 2);
    out.push(b'"');
    for chunk in bytes.utf8_chunks() {
        chunk.valid().chars().for_each(|ch| push_escaped(&mut out, ch));
        chunk.invalid().iter().for_each(|byte| push_hex(&mut out, "\\x", u32::from(*byte), 2));
    }
    out.push(b'"');
    // Nothing else was put there.
    String::from_utf8(out).unwrap_or_default()
}

/// Appends what [`quote`] gives, for log lines.
pub fn push_quoted(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    text.chars().for_each(|ch| push_escaped(out, ch));
    out.push(b'"');
}

fn push_escaped(out: &mut Vec<u8>, ch: char) {
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
        '\0'..='\x7f' => push_hex(out, "\\x", ch as u32, 2),
        _ if is_printable(ch) => out.extend_from_slice(ch.encode_utf8(&mut [0; 4]).as_bytes()),
        '\u{80}'..='\u{ffff}' => push_hex(out, "\\u", ch as u32, 4),
        _ => push_hex(out, "\\U", ch as u32, 8),
    }
}

/// Appends a prefix and a number in so many hexadecimal digits.
pub fn push_hex(out: &mut Vec<u8>, prefix: &str, value: u32, digits: u32) {
    out.extend_from_slice(prefix.as_bytes());
    for place in (0..digits).rev() {
        let digit = (value >> (place * 4)) & 0xf;
        out.push(b"0123456789abcdef"[digit as usize]);
    }
}

/// Go's `unicode.IsPrint` beyond ASCII: letters, marks, numbers, punctuation and symbols. Rust's debug form draws the same
/// line, but for combining marks only behind another character.
fn is_printable(ch: char) -> bool {
    let mut buffer = [b'a'; 5];
    let length = ch.encode_utf8(&mut buffer[1..]).len();
    std::str::from_utf8(&buffer[..=length]).is_ok_and(|text| text.escape_debug().count() == 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_as_go_does() {
        let cases = [
            ("", r#""""#),
            ("a\"b\\c", r#""a\"b\\c""#),
            ("\u{7}\u{8}\u{c}\n\r\t\u{b}", r#""\a\b\f\n\r\t\v""#),
            ("\0\u{1b}\u{7f}", r#""\x00\x1b\x7f""#),
            ("\u{85}", r#""\u0085""#),
            ("é日本'`", r#""é日本'`""#),
            ("\u{200b}\u{feff}\u{a0}", r#""\u200b\ufeff\u00a0""#),
            ("\u{e0001}\u{10ffff}", r#""\U000e0001\U0010ffff""#),
            ("e\u{301}\u{301}", "\"e\u{301}\u{301}\""),
            ("😀", "\"😀\""),
            (
                "é\u{a0}\0\x7f\u{200b}\u{1F600}\\\t\n\r\x07\u{2028}<&>",
                "\"é\\u00a0\\x00\\x7f\\u200b\u{1F600}\\\\\\t\\n\\r\\a\\u2028<&>\"",
            ),
            (
                "\u{ad}\u{378}\u{3000}\u{fffd}\u{feff}\u{e000}",
                "\"\\u00ad\\u0378\\u3000\u{fffd}\\ufeff\\ue000\"",
            ),
            ("\u{10ffff}\u{d7ff}\u{301}", "\"\\U0010ffff\\ud7ff\u{301}\""),
        ];
        for (text, expected) in cases {
            assert_eq!(quote(text), expected, "{text:?}");
            let mut out = Vec::new();
            push_quoted(&mut out, text);
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
        assert_eq!(quote_bytes(b"a\xffb\xe2\x82"), r#""a\xffb\xe2\x82""#);
    }
}
