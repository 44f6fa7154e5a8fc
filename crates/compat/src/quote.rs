//! Imitates Go's `strconv.Quote`, which `%q` and many error texts use.

use std::fmt::Write as _;

/// `text` as a Go string literal in double quotes: `\n` and its kin by letter, other unprintable characters
/// as `\x01`, `\u200b` or `\U000e0001`, everything printable as it is.
pub fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        push_escaped(&mut out, c);
    }
    out.push('"');
    out
}

/// Like [`quote`] for bytes that may not be UTF-8: a stray byte becomes `\xff`.
pub fn quote_bytes(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len() + 2);
    out.push('"');
    for chunk in bytes.utf8_chunks() {
        chunk.valid().chars().for_each(|c| push_escaped(&mut out, c));
        for byte in chunk.invalid() {
            let _ = write!(out, "\\x{byte:02x}");
        }
    }
    out.push('"');
    out
}

fn push_escaped(out: &mut String, c: char) {
    let letter = match c {
        '"' | '\\' => Some(c),
        '\u{7}' => Some('a'),
        '\u{8}' => Some('b'),
        '\u{c}' => Some('f'),
        '\n' => Some('n'),
        '\r' => Some('r'),
        '\t' => Some('t'),
        '\u{b}' => Some('v'),
        _ => None,
    };
    // Writing to a String cannot fail.
    let _ = match letter {
        Some(letter) => write!(out, "\\{letter}"),
        None if is_printable(c) => write!(out, "{c}"),
        None if u32::from(c) < 0x80 => write!(out, "\\x{:02x}", u32::from(c)),
        None if u32::from(c) < 0x1_0000 => write!(out, "\\u{:04x}", u32::from(c)),
        None => write!(out, "\\U{:08x}", u32::from(c)),
    };
}

/// Go prints letters, marks, numbers, punctuation, symbols and the ASCII space; Rust's debug form draws the
/// same line, but for combining marks only behind another character.
fn is_printable(c: char) -> bool {
    if c.is_ascii() {
        return c == ' ' || c.is_ascii_graphic();
    }
    let mut buffer = [0u8; 5];
    buffer[0] = b'a';
    let length = c.encode_utf8(&mut buffer[1..]).len();
    let text = std::str::from_utf8(&buffer[..=length]).unwrap_or_default();
    text.escape_debug().eq(text.chars())
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
        ];
        for (text, expected) in cases {
            assert_eq!(quote(text), expected, "{text:?}");
        }
        assert_eq!(quote_bytes(b"a\xffb\xe2\x82"), r#""a\xffb\xe2\x82""#);
    }
}
