//! Cases, wrapping and shortening: what sprig takes from goutils and xstrings.
//!
//! goutils walks over bytes where it should walk over characters, and so do we: the paths must be the same.

use super::{Outcome, Value, cut, lower, upper};

/// goutils.AbbreviateFull
pub(super) fn abbreviate(text: &str, offset: i64, width: i64) -> Outcome {
    let bytes = text.as_bytes();
    let Ok(width) = usize::try_from(width) else { return Ok(Value::str(text)) };
    if width < 4 || bytes.len() <= width {
        return Ok(Value::str(text));
    }
    let mut offset = usize::try_from(offset).unwrap_or(0).min(bytes.len());
    if bytes.len() - offset < width - 3 {
        offset = bytes.len() - (width - 3);
    }
    if offset <= 4 {
        return cut(&[&bytes[..width - 3], b"..."].concat());
    }
    if width < 7 {
        return Ok(Value::str(""));
    }
    if offset + width - 3 < bytes.len() {
        // The rest is shortened in turn, to what is left beside the dots.
        let (rest, width) = (&bytes[offset..], width - 3);
        let rest = if rest.len() <= width { rest.to_vec() } else { [&rest[..width - 3], b"..."].concat() };
        return cut(&[b"...".as_slice(), &rest].concat());
    }
    cut(&[b"...".as_slice(), &bytes[bytes.len() - (width - 3)..]].concat())
}

/// Go's `strings.Title`.
pub(super) fn title(text: &str) -> String {
    let mut before = ' ';
    text.chars()
        .map(|c| {
            let starts = match before {
                before if before.is_ascii() => !before.is_ascii_alphanumeric() && before != '_',
                before => !before.is_alphanumeric() && before.is_whitespace(),
            };
            before = c;
            if starts { upper(c) } else { c }
        })
        .collect()
}

/// goutils.Uncapitalize
pub(super) fn untitle(text: &str) -> String {
    let mut next = true;
    text.chars()
        .map(|c| {
            if c.is_whitespace() {
                next = true;
                return c;
            }
            if std::mem::take(&mut next) { lower(c) } else { c }
        })
        .collect()
}

/// goutils.DeleteWhiteSpace
pub(super) fn without_space(text: &str) -> String {
    if !text.bytes().map(char::from).any(char::is_whitespace) {
        return text.to_owned();
    }
    text.bytes().map(char::from).filter(|c| !c.is_whitespace()).collect()
}

/// goutils.Initials
pub(super) fn initials(text: &str) -> String {
    let mut gap = true;
    text.bytes().map(char::from).filter(|c| std::mem::replace(&mut gap, c.is_whitespace()) && !gap).collect()
}

/// goutils.SwapCase: a small letter at the start of a word becomes a capital, as any other does.
pub(super) fn swap_case(text: &str) -> String {
    text.chars()
        .map(|c| {
            if c.is_uppercase() {
                lower(c)
            } else if c.is_lowercase() {
                upper(c)
            } else {
                c
            }
        })
        .collect()
}

/// goutils.WrapCustom
pub(super) fn wrap(text: &str, width: i64, newline: &str, long_words: bool) -> Outcome {
    let bytes = text.as_bytes();
    let width = usize::try_from(width).unwrap_or(1).max(1);
    let mut out = Vec::new();
    let mut at = 0;
    while bytes.len() - at > width {
        if bytes[at] == b' ' {
            at += 1;
            continue;
        }
        if let Some(space) = bytes[at..=at + width].iter().rposition(|byte| *byte == b' ') {
            out.extend_from_slice(&bytes[at..at + space]);
            out.extend_from_slice(newline.as_bytes());
            at += space + 1;
        } else if long_words {
            out.extend_from_slice(&bytes[at..at + width]);
            out.extend_from_slice(newline.as_bytes());
            at += width;
        } else if let Some(space) = bytes[at + width..].iter().position(|byte| *byte == b' ') {
            out.extend_from_slice(&bytes[at..at + width + space]);
            out.extend_from_slice(newline.as_bytes());
            at += width + space + 1;
        } else {
            break;
        }
        if out.len() > super::TEXT_MAX {
            return Err(super::super::exec::too_long());
        }
    }
    out.extend_from_slice(&bytes[at..]);
    cut(&out)
}

fn is_connector(c: char) -> bool {
    c == '-' || c == '_' || c.is_whitespace()
}

/// xstrings.ToPascalCase
pub(super) fn pascal_case(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text.chars();
    let mut last = None;
    let mut first_upper = false;
    for c in rest.by_ref() {
        if !is_connector(c) {
            first_upper = c.is_uppercase();
            last = Some(upper(c));
            break;
        }
        // Connectors at the start stay.
        out.push(c);
    }
    let Some(mut last) = last else {
        // Of connectors alone the reference repeats the last.
        out.extend(out.chars().next_back());
        return out;
    };
    for c in rest {
        let before = last;
        last = c;
        if is_connector(c) && is_connector(before) {
            out.push(before);
            continue;
        }
        if is_connector(before) {
            first_upper = c.is_uppercase();
            last = upper(c);
            continue;
        }
        if first_upper {
            if c.is_uppercase() {
                last = lower(c);
            } else {
                first_upper = false;
            }
        }
        out.push(before);
    }
    out.push(last);
    out
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Word {
    None,
    Number,
    Upper,
    Letters,
    Connector,
    Punctuation,
    Other,
}

/// xstrings.ToSnakeCase and ToKebabCase, by the connector.
pub(super) fn connected(text: &str, connector: char) -> String {
    let mut out = String::with_capacity(text.len() + 8);
    let (mut kind, mut word, mut rest) = next_word(text);
    while !rest.is_empty() {
        if kind != Word::Connector {
            push_word(&mut out, kind, word, connector);
        }
        let (before, last) = (kind, word);
        (kind, word, rest) = next_word(rest);
        match before {
            Word::Number => {
                while matches!(kind, Word::Letters | Word::Number) {
                    push_word(&mut out, kind, word, connector);
                    (kind, word, rest) = next_word(rest);
                }
                if !matches!(kind, Word::None | Word::Punctuation | Word::Connector) {
                    out.push(connector);
                }
            }
            Word::Connector => push_word(&mut out, before, last, connector),
            Word::Punctuation => {}
            _ if kind != Word::Number => {
                if !matches!(kind, Word::Connector | Word::Punctuation) {
                    out.push(connector);
                }
            }
            _ if rest.is_empty() => {}
            _ => {
                let number = word;
                (kind, word, rest) = next_word(rest);
                if kind != Word::Letters {
                    // The number belongs to the word before it.
                    push_word(&mut out, Word::Number, number, connector);
                    if !matches!(kind, Word::Connector | Word::Punctuation) {
                        out.push(connector);
                    }
                    continue;
                }
                // Small letters follow: the number begins a word.
                out.push(connector);
                push_word(&mut out, Word::Number, number, connector);
                while matches!(kind, Word::Letters | Word::Number) {
                    push_word(&mut out, kind, word, connector);
                    (kind, word, rest) = next_word(rest);
                }
                if !matches!(kind, Word::None | Word::Connector | Word::Punctuation) {
                    out.push(connector);
                }
            }
        }
    }
    push_word(&mut out, kind, word, connector);
    out
}

fn push_word(out: &mut String, kind: Word, word: &str, connector: char) {
    if !matches!(kind, Word::Upper | Word::Connector) {
        return out.push_str(word);
    }
    out.extend(word.chars().map(|c| match c {
        c if is_connector(c) => connector,
        c if c.is_uppercase() => lower(c),
        c => c,
    }));
}

fn is_punctuation(c: char) -> bool {
    // Go's punctuation leaves out symbols. Beyond ASCII it is taken for another kind of word.
    c.is_ascii_punctuation() && !matches!(c, '$' | '+' | '<' | '=' | '>' | '^' | '`' | '|' | '~')
}

/// The first word with its kind, and what follows it.
fn next_word(text: &str) -> (Word, &str, &str) {
    let Some(first) = text.chars().next() else { return (Word::None, "", "") };
    let run = |start: usize, belongs: fn(char) -> bool| {
        text[start..].find(|c: char| !belongs(c)).map_or(text.len(), |end| start + end)
    };
    let after = first.len_utf8();
    let small = |c: char| c.is_alphabetic() && !c.is_uppercase();
    let (kind, end) = match first {
        c if is_connector(c) => (Word::Connector, run(after, is_connector)),
        c if is_punctuation(c) => (Word::Punctuation, run(after, is_punctuation)),
        c if c.is_uppercase() => match text[after..].chars().next() {
            Some(c) if c.is_uppercase() => {
                let end = run(after, char::is_uppercase);
                let last = text[..end].chars().next_back().map_or(0, char::len_utf8);
                // The last capital before small letters begins the next word: HTTP, Status.
                let begins = text[end..].chars().next().is_some_and(char::is_alphabetic);
                (Word::Upper, if begins { end - last } else { end })
            }
            Some(c) if c.is_alphabetic() => (Word::Upper, run(after, small)),
            _ => (Word::Upper, after),
        },
        c if c.is_alphabetic() => (Word::Letters, run(after, small)),
        c if c.is_numeric() => (Word::Number, run(after, char::is_numeric)),
        _ => (
            Word::Other,
            run(after, |c| !is_connector(c) && !c.is_alphabetic() && !c.is_numeric() && !is_punctuation(c)),
        ),
    };
    (kind, &text[..end], &text[end..])
}
