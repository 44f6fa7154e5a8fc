//! From the source text of strings and heredocs to what they stand for.

/// Unquotes `"…"`. With `interpolation` everything between `${` and its closing brace is kept as written,
/// which HCL does and its JSON form does not. Bytes written as `\xNN` or `\NNN` that are not UTF-8 become
/// the replacement character. `None` if the string is malformed.
pub(super) fn unquote(text: &str, interpolation: bool) -> Option<String> {
    let inner = text.strip_prefix('"')?.strip_suffix('"').filter(|_| text.len() >= 2)?;
    let mut out: Vec<u8> = Vec::with_capacity(inner.len());
    let mut rest = inner;
    while let Some(first) = rest.chars().next() {
        if interpolation && rest.starts_with("${") {
            let length = interpolation_length(rest)?;
            out.extend_from_slice(&rest.as_bytes()[..length]);
            rest = &rest[length..];
            continue;
        }
        match first {
            '"' | '\n' => return None,
            '\\' => {
                let (bytes, used) = escape(&rest[1..], interpolation)?;
                out.extend_from_slice(&bytes);
                rest = &rest[1 + used..];
            }
            _ => {
                out.extend_from_slice(&rest.as_bytes()[..first.len_utf8()]);
                rest = &rest[first.len_utf8()..];
            }
        }
    }
    Some(
        String::from_utf8(out).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()),
    )
}

/// The length in bytes of the `${…}` that `text` begins with, braces inside it balanced.
fn interpolation_length(text: &str) -> Option<usize> {
    let mut depth = 0usize;
    for (offset, c) in text.char_indices().skip(1) {
        match c {
            '{' => depth += 1,
            '}' => {
                depth -= 1;
                if depth == 0 {
                    return Some(offset + 1);
                }
            }
            char::REPLACEMENT_CHARACTER => return None,
            _ => {}
        }
    }
    None
}

/// Decodes the escape whose backslash has been read; returns its bytes and the length of what was used.
fn escape(text: &str, lenient_surrogates: bool) -> Option<(Vec<u8>, usize)> {
    let kind = text.chars().next()?;
    let simple = |byte: u8| Some((vec![byte], 1));
    match kind {
        'a' => simple(0x07),
        'b' => simple(0x08),
        'f' => simple(0x0c),
        'n' => simple(b'\n'),
        'r' => simple(b'\r'),
        't' => simple(b'\t'),
        'v' => simple(0x0b),
        '\\' => simple(b'\\'),
        '"' => simple(b'"'),
        'x' => {
            let value = digits(text.get(1..3)?, 16)?;
            Some((vec![u8::try_from(value).ok()?], 3))
        }
        '0'..='7' => {
            let value = digits(text.get(0..3)?, 8)?;
            Some((vec![u8::try_from(value).ok()?], 3))
        }
        'u' | 'U' => {
            let length = if kind == 'u' { 4 } else { 8 };
            let value = digits(text.get(1..1 + length)?, 16)?;
            let c = match char::from_u32(value) {
                Some(c) => c,
                // HCL lets surrogates through and then encodes the replacement character.
                None if lenient_surrogates && value <= 0x10_FFFF => char::REPLACEMENT_CHARACTER,
                None => return None,
            };
            let mut buffer = [0u8; 4];
            Some((c.encode_utf8(&mut buffer).as_bytes().to_vec(), 1 + length))
        }
        _ => None,
    }
}

fn digits(text: &str, base: u32) -> Option<u32> {
    // `from_str_radix` would accept a sign.
    if !text.chars().all(|c| c.is_digit(base)) {
        return None;
    }
    u32::from_str_radix(text, base).ok()
}

/// The content of a heredoc. `<<-` takes away the indentation of the closing anchor where every line has
/// it; `<<` keeps the text, with whatever stands before the closing anchor.
pub(super) fn heredoc(text: &str) -> Option<String> {
    let newline = text.find('\n')?;
    let indented = text.get(2..)?.starts_with('-');
    // The closing anchor is as long as the opening one; the last byte is its newline.
    let anchor = newline.checked_sub(2 + usize::from(indented))?;
    let end = text.len().checked_sub(anchor + 1)?;
    let content = text.get(newline + 1..end.max(newline + 1))?;
    if !indented {
        return Some(content.to_owned());
    }
    let lines: Vec<&str> = content.split('\n').collect();
    let prefix = *lines.last()?;
    if !lines.iter().all(|line| line.starts_with(prefix)) {
        return Some(content.trim_end_matches([' ', '\t']).to_owned());
    }
    let mut out = String::with_capacity(content.len());
    for line in &lines[..lines.len() - 1] {
        out.push_str(&line[prefix.len()..]);
        out.push('\n');
    }
    Some(out)
}
