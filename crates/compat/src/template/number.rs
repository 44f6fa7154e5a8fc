//! Number and character constants, and Go's string literals (text/template/parse/node.go, strconv.Unquote).

use crate::quote::quote;

/// A number constant, as all types that it fits.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Number {
    pub(super) text: String,
    pub(super) int: Option<i64>,
    pub(super) uint: Option<u64>,
    pub(super) float: Option<f64>,
}

/// Parses a number as the lexer found it.
pub(super) fn number(text: &str) -> Result<Number, String> {
    if text.ends_with('i') && !text.contains(['x', 'X']) {
        return Err(format!("complex numbers are not built: {}", quote(text)));
    }
    let mut number = Number { text: text.to_owned(), int: None, uint: None, float: None };
    if let Some((negative, magnitude)) = integer(text) {
        number.uint = magnitude.filter(|_| !negative && !text.starts_with('+'));
        number.int = magnitude.and_then(|magnitude| {
            let magnitude = i128::from(magnitude);
            i64::try_from(if negative { -magnitude } else { magnitude }).ok()
        });
        if let Some(int) = number.int {
            #[expect(clippy::cast_precision_loss, reason = "Go converts the same way")]
            let float = int as f64;
            number.float = Some(float);
            if int == 0 {
                number.uint = Some(0); // -0 too
            }
        } else if let Some(uint) = number.uint {
            #[expect(clippy::cast_precision_loss, reason = "Go converts the same way")]
            let float = uint as f64;
            number.float = Some(float);
        } else {
            return Err(format!("integer overflow: {}", quote(text)));
        }
        return Ok(number);
    }
    if text.contains(['p', 'P']) {
        return Err(format!("hexadecimal floats are not built: {}", quote(text)));
    }
    let float = match text.contains("__") || text.ends_with('_') {
        true => None,
        false => text.replace('_', "").parse::<f64>().ok().filter(|float| float.is_finite()),
    };
    let Some(float) = float else { return Err(format!("illegal number syntax: {}", quote(text))) };
    number.float = Some(float);
    // Go takes 1e3 where an integer is wanted.
    if float.fract() == 0.0 && float.abs() < 9.0e18 {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "it has no fraction and fits, as was just checked"
        )]
        let int = float as i64;
        number.int = Some(int);
        number.uint = u64::try_from(int).ok();
    }
    Ok(number)
}

/// The sign and magnitude of an integer in Go's syntax; no magnitude where it overflows.
fn integer(text: &str) -> Option<(bool, Option<u64>)> {
    let (negative, digits) = match text.as_bytes() {
        [b'-', ..] => (true, &text[1..]),
        [b'+', ..] => (false, &text[1..]),
        _ => (false, text),
    };
    let (radix, digits) = match digits.as_bytes() {
        [b'0', b'x' | b'X', ..] => (16, &digits[2..]),
        [b'0', b'o' | b'O', ..] => (8, &digits[2..]),
        [b'0', b'b' | b'B', ..] => (2, &digits[2..]),
        [b'0', _, ..] => (8, &digits[1..]),
        _ => (10, digits),
    };
    let digits = if radix == 10 { digits } else { digits.strip_prefix('_').unwrap_or(digits) };
    if digits.is_empty() || digits.starts_with('_') || digits.ends_with('_') || digits.contains("__") {
        return None;
    }
    let mut value = Some(0u64);
    for digit in digits.chars().filter(|c| *c != '_') {
        let digit = u64::from(digit.to_digit(radix)?);
        value = value.and_then(|value| value.checked_mul(u64::from(radix))?.checked_add(digit));
    }
    Some((negative, value))
}

/// A character constant with its quotes.
pub(super) fn character(text: &str) -> Result<Number, String> {
    let malformed = || format!("malformed character constant: {text}");
    let inner = text.strip_prefix('\'').and_then(|text| text.strip_suffix('\'')).ok_or_else(malformed)?;
    let mut rest = inner;
    let value = match unescape(&mut rest, '\'').ok_or_else(malformed)? {
        Piece::Char(c) => i64::from(u32::from(c)),
        Piece::Byte(byte) => i64::from(byte),
    };
    if !rest.is_empty() {
        return Err(malformed());
    }
    #[expect(clippy::cast_precision_loss, reason = "a character has 21 bits")]
    let float = value as f64;
    Ok(Number {
        text: text.to_owned(),
        int: Some(value),
        uint: u64::try_from(value).ok(),
        float: Some(float),
    })
}

/// What a string literal says, in double quotes or backquotes.
pub(super) fn unquote(literal: &str) -> Result<String, String> {
    const INVALID: &str = "invalid syntax";
    if let Some(raw) = literal.strip_prefix('`').and_then(|text| text.strip_suffix('`')) {
        return Ok(raw.replace('\r', ""));
    }
    let inner = literal.strip_prefix('"').and_then(|text| text.strip_suffix('"')).ok_or(INVALID)?;
    let mut out = Vec::with_capacity(inner.len());
    let mut rest = inner;
    while !rest.is_empty() {
        match unescape(&mut rest, '"').ok_or(INVALID)? {
            Piece::Char(c) => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            Piece::Byte(byte) => out.push(byte),
        }
    }
    String::from_utf8(out).map_err(|_| "strings that are not UTF-8 are not built".to_owned())
}

enum Piece {
    Char(char),
    Byte(u8),
}

/// Takes one character or escape (strconv.UnquoteChar).
fn unescape(rest: &mut &str, quote: char) -> Option<Piece> {
    let mut chars = rest.chars();
    let first = chars.next()?;
    if first == quote || first == '\n' {
        return None;
    }
    if first != '\\' {
        *rest = chars.as_str();
        return Some(Piece::Char(first));
    }
    let letter = chars.next()?;
    *rest = chars.as_str();
    let simple = match letter {
        'a' => '\u{7}',
        'b' => '\u{8}',
        'f' => '\u{c}',
        'n' => '\n',
        'r' => '\r',
        't' => '\t',
        'v' => '\u{b}',
        '\\' => '\\',
        '\'' | '"' if letter == quote => letter,
        'x' => return u8::try_from(digits(rest, 2, 16)?).ok().map(Piece::Byte),
        'u' => return char::from_u32(digits(rest, 4, 16)?).map(Piece::Char),
        'U' => return char::from_u32(digits(rest, 8, 16)?).map(Piece::Char),
        '0'..='7' => {
            let high = letter.to_digit(8)?;
            return u8::try_from(high * 64 + digits(rest, 2, 8)?).ok().map(Piece::Byte);
        }
        _ => return None,
    };
    Some(Piece::Char(simple))
}

fn digits(rest: &mut &str, count: usize, radix: u32) -> Option<u32> {
    let (digits, after) = rest.split_at_checked(count)?;
    *rest = after;
    if !digits.chars().all(|c| c.is_digit(radix)) {
        return None;
    }
    u32::from_str_radix(digits, radix).ok()
}
