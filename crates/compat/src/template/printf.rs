//! Go's `fmt.Sprint` and `fmt.Sprintf` on template values.

use std::fmt::Write as _;

use super::{TEXT_MAX, Value};
use crate::quote::{quote, quote_bytes};

/// `fmt.Sprint`: values one after another, with a space between two that are no texts.
pub(super) fn print(values: &[Value]) -> String {
    let mut out = String::new();
    for (index, value) in values.iter().enumerate() {
        let is_text = |value: &Value| matches!(value, Value::Str(_));
        if index > 0 && !is_text(value) && !is_text(&values[index - 1]) {
            out.push(' ');
        }
        push(&mut out, value, &Verb { letter: 'v', ..Verb::default() });
    }
    out
}

/// `fmt.Sprintln`: values with spaces between, and a newline.
pub(super) fn println(values: &[Value]) -> String {
    let mut out = String::new();
    for (index, value) in values.iter().enumerate() {
        if index > 0 {
            out.push(' ');
        }
        push(&mut out, value, &Verb { letter: 'v', ..Verb::default() });
    }
    out.push('\n');
    out
}

/// What stands behind a percent sign.
#[derive(Clone, Copy, Default)]
struct Verb {
    plus: bool,
    minus: bool,
    sharp: bool,
    space: bool,
    zero: bool,
    width: Option<usize>,
    precision: Option<usize>,
    letter: char,
}

/// `fmt.Sprintf`.
pub(super) fn printf(format: &str, args: &[Value]) -> Result<String, String> {
    let mut out = String::new();
    let mut args = Args { all: args, next: 0, reordered: false, good: true };
    let mut rest = format;
    while let Some((before, after)) = rest.split_once('%') {
        out.push_str(before);
        rest = after;
        args.good = true;
        let mut verb = flags(&mut rest);
        args.index(&mut rest);
        verb.width = if let Some(after) = rest.strip_prefix('*') {
            rest = after;
            match args.int() {
                Some(width) => {
                    verb.minus |= width < 0;
                    verb.zero &= width >= 0;
                    usize::try_from(width.unsigned_abs()).ok()
                }
                None => {
                    out.push_str("%!(BADWIDTH)");
                    None
                }
            }
        } else {
            digits(&mut rest)
        };
        if let Some(after) = rest.strip_prefix('.') {
            rest = after;
            args.index(&mut rest);
            verb.precision = if let Some(after) = rest.strip_prefix('*') {
                rest = after;
                let precision = args.int().and_then(|precision| usize::try_from(precision).ok());
                if precision.is_none() {
                    out.push_str("%!(BADPREC)");
                }
                precision
            } else {
                Some(digits(&mut rest).unwrap_or(0))
            };
        }
        args.index(&mut rest);
        if verb.width.unwrap_or(0).max(verb.precision.unwrap_or(0)) > TEXT_MAX {
            return Err(super::exec::too_long());
        }
        let mut chars = rest.chars();
        let Some(letter) = chars.next() else {
            out.push_str("%!(NOVERB)");
            break;
        };
        rest = chars.as_str();
        verb.letter = letter;
        match letter {
            '%' => out.push('%'),
            _ if !args.good => {
                let _ = write!(out, "%!{letter}(BADINDEX)");
            }
            _ => match args.take() {
                Some(value) => push(&mut out, value, &verb),
                None => {
                    let _ = write!(out, "%!{letter}(MISSING)");
                }
            },
        }
        if out.len() > TEXT_MAX {
            return Err(super::exec::too_long());
        }
    }
    out.push_str(rest);
    if !args.reordered && args.next < args.all.len() {
        out.push_str("%!(EXTRA ");
        for (index, value) in args.all[args.next..].iter().enumerate() {
            let separator = if index > 0 { ", " } else { "" };
            match value {
                Value::Nil => {
                    let _ = write!(out, "{separator}<nil>");
                }
                value => {
                    let _ = write!(out, "{separator}{}=", value.type_name());
                    push(&mut out, value, &Verb { letter: 'v', ..Verb::default() });
                }
            }
        }
        out.push(')');
    }
    Ok(out)
}

fn flags(rest: &mut &str) -> Verb {
    let mut verb = Verb::default();
    loop {
        match rest.as_bytes().first() {
            Some(b'+') => verb.plus = true,
            Some(b'-') => {
                verb.minus = true;
                verb.zero = false;
            }
            Some(b'#') => verb.sharp = true,
            Some(b' ') => verb.space = true,
            Some(b'0') => verb.zero = !verb.minus,
            _ => return verb,
        }
        *rest = &rest[1..];
    }
}

fn digits(rest: &mut &str) -> Option<usize> {
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let number = rest[..end].parse().ok();
    *rest = &rest[end..];
    number
}

/// The arguments, and which comes next.
struct Args<'a> {
    all: &'a [Value],
    next: usize,
    /// Whether a format named arguments by number; then unused ones are no error.
    reordered: bool,
    good: bool,
}

impl<'a> Args<'a> {
    fn take(&mut self) -> Option<&'a Value> {
        let value = self.all.get(self.next);
        self.next += usize::from(value.is_some());
        value
    }

    fn int(&mut self) -> Option<i64> {
        match self.take() {
            Some(Value::Int(value)) if value.unsigned_abs() <= 1_000_000 => Some(*value),
            _ => None,
        }
    }

    /// An index in brackets, from 1.
    fn index(&mut self, rest: &mut &str) {
        let Some(inner) = rest.strip_prefix('[') else { return };
        self.reordered = true;
        let Some((number, after)) = inner.split_once(']') else {
            self.good = false;
            *rest = inner;
            return;
        };
        *rest = after;
        match number.parse::<usize>() {
            Ok(number) if (1..=self.all.len()).contains(&number) => self.next = number - 1,
            _ => self.good = false,
        }
    }
}

/// Appends a value as a verb shows it.
fn push(out: &mut String, value: &Value, verb: &Verb) {
    if verb.letter == 'T' {
        return pad(out, &value.type_name(), verb);
    }
    match value {
        Value::Nil if verb.letter == 'v' => pad(out, "<nil>", verb),
        Value::Nil => {
            let _ = write!(out, "%!{}(<nil>)", verb.letter);
        }
        Value::Bool(value) if matches!(verb.letter, 't' | 'v') => pad(out, &value.to_string(), verb),
        Value::Int(number) => push_int(out, *number < 0, number.unsigned_abs(), value, verb),
        Value::Uint(number) => push_int(out, false, *number, value, verb),
        Value::Float(float) => push_float(out, *float, value, verb),
        Value::Str(text) => push_text(out, text.as_bytes(), value, verb),
        Value::Bytes(bytes) if matches!(verb.letter, 's' | 'q' | 'x' | 'X') => {
            push_text(out, bytes, value, verb);
        }
        Value::Bytes(_) | Value::List(_) => push_items(out, value, verb),
        Value::Dict(dict) => {
            let dict = dict.borrow();
            push_map(out, dict.iter().map(|(key, value)| (key.as_str(), value.clone())), verb);
        }
        Value::StringMap(map) => {
            push_map(out, map.iter().map(|(key, value)| (key.as_str(), Value::str(value))), verb);
        }
        Value::Struct(object) => match &object.text {
            Some(text) if matches!(verb.letter, 'v' | 's' | 'x' | 'X' | 'q') => {
                push_text(out, text.as_bytes(), value, verb);
            }
            _ => {
                out.push('{');
                for (index, (name, field)) in object.fields.iter().enumerate() {
                    if index > 0 {
                        out.push(' ');
                    }
                    if verb.plus {
                        let _ = write!(out, "{name}:");
                    }
                    push(out, field, verb);
                }
                out.push('}');
            }
        },
        Value::Bool(_) => bad_verb(out, value, verb),
    }
}

fn push_items(out: &mut String, value: &Value, verb: &Verb) {
    out.push('[');
    for (index, item) in value.items().iter().flat_map(|items| items.iter()).enumerate() {
        if index > 0 {
            out.push(' ');
        }
        push(out, item, verb);
    }
    out.push(']');
}

fn push_map<'a>(out: &mut String, entries: impl Iterator<Item = (&'a str, Value)>, verb: &Verb) {
    out.push_str("map[");
    for (index, (key, value)) in entries.enumerate() {
        if index > 0 {
            out.push(' ');
        }
        push(out, &Value::str(key), verb);
        out.push(':');
        push(out, &value, verb);
    }
    out.push(']');
}

/// `%!d(string=hi)`
fn bad_verb(out: &mut String, value: &Value, verb: &Verb) {
    let _ = write!(out, "%!{}({}=", verb.letter, value.type_name());
    push(out, value, &Verb { letter: 'v', ..Verb::default() });
    out.push(')');
}

fn pad(out: &mut String, text: &str, verb: &Verb) {
    let missing = verb.width.unwrap_or(0).saturating_sub(text.chars().count());
    if !verb.minus {
        let filler = if verb.zero { '0' } else { ' ' };
        out.extend(std::iter::repeat_n(filler, missing));
    }
    out.push_str(text);
    if verb.minus {
        out.extend(std::iter::repeat_n(' ', missing));
    }
}

fn push_text(out: &mut String, bytes: &[u8], value: &Value, verb: &Verb) {
    let text = String::from_utf8_lossy(bytes);
    let cut: String = match verb.precision {
        Some(precision) => text.chars().take(precision).collect(),
        None => text.into_owned(),
    };
    match verb.letter {
        'v' if verb.sharp => pad(out, &quote(&cut), verb),
        'v' | 's' => pad(out, &cut, verb),
        'q' if verb.sharp && !cut.contains('`') && !cut.chars().any(|c| c.is_control() && c != '\t') => {
            pad(out, &format!("`{cut}`"), verb);
        }
        'q' if verb.precision.is_none() => pad(out, &quote_bytes(bytes), verb),
        'q' => pad(out, &quote(&cut), verb),
        'x' | 'X' => {
            let bytes = &bytes[..verb.precision.unwrap_or(bytes.len()).min(bytes.len())];
            let mut hex = String::with_capacity(2 * bytes.len());
            for (index, byte) in bytes.iter().enumerate() {
                if index > 0 && verb.space {
                    hex.push(' ');
                }
                if verb.sharp && (index == 0 || verb.space) {
                    hex.push_str("0x");
                }
                let _ = write!(hex, "{byte:02x}");
            }
            let hex = if verb.letter == 'X' { hex.to_uppercase() } else { hex };
            pad(out, &hex, verb);
        }
        _ => bad_verb(out, value, verb),
    }
}

fn push_int(out: &mut String, negative: bool, magnitude: u64, value: &Value, verb: &Verb) {
    let (digits, prefix) = match verb.letter {
        'd' | 'v' => (magnitude.to_string(), ""),
        'b' => (format!("{magnitude:b}"), if verb.sharp { "0b" } else { "" }),
        'o' => (format!("{magnitude:o}"), if verb.sharp { "0" } else { "" }),
        'O' => (format!("{magnitude:o}"), "0o"),
        'x' => (format!("{magnitude:x}"), if verb.sharp { "0x" } else { "" }),
        'X' => (format!("{magnitude:X}"), if verb.sharp { "0X" } else { "" }),
        'c' | 'q' | 'U' => {
            let c = u32::try_from(magnitude).ok().filter(|_| !negative).and_then(char::from_u32);
            let c = c.unwrap_or(char::REPLACEMENT_CHARACTER);
            let text = match verb.letter {
                'c' => c.to_string(),
                'q' if c == '\'' => "'\\''".to_owned(),
                'q' if c == '"' => "'\"'".to_owned(),
                'q' => format!("'{}'", quote(c.encode_utf8(&mut [0; 4])).trim_matches('"')),
                _ if verb.sharp => format!("U+{magnitude:04X} '{c}'"),
                _ => format!("U+{magnitude:04X}"),
            };
            return pad(out, &text, &Verb { zero: false, ..*verb });
        }
        _ => return bad_verb(out, value, verb),
    };
    let sign = match (negative, verb.plus, verb.space) {
        (true, ..) => "-",
        (false, true, _) => "+",
        (false, false, true) => " ",
        _ => "",
    };
    // A precision, or a width that is filled with zeros, is a count of digits.
    let mut count = verb.precision.unwrap_or(0);
    if verb.precision.is_none() && verb.zero {
        count = verb.width.unwrap_or(0).saturating_sub(sign.len());
    }
    if verb.precision == Some(0) && magnitude == 0 {
        return pad(out, "", &Verb { zero: false, ..*verb });
    }
    let zeros = "0".repeat(count.saturating_sub(digits.len()));
    pad(out, &format!("{sign}{prefix}{zeros}{digits}"), &Verb { zero: false, ..*verb });
}

fn push_float(out: &mut String, float: f64, value: &Value, verb: &Verb) {
    let text = match verb.letter {
        'v' | 'g' | 'G' => general(float, verb.precision),
        'e' | 'E' => exponent(float, Some(verb.precision.unwrap_or(6))),
        'f' | 'F' => format!("{float:.*}", verb.precision.unwrap_or(6)),
        _ => return bad_verb(out, value, verb),
    };
    let text = if matches!(verb.letter, 'E' | 'G') { text.to_uppercase() } else { text };
    let text = match text.as_bytes().first() {
        Some(b'-') => text,
        _ if verb.plus => format!("+{text}"),
        _ if verb.space => format!(" {text}"),
        _ => text,
    };
    let digits = text.trim_start_matches(['+', '-', ' ']);
    if verb.zero && digits.len() < text.len() {
        // Zeros go between the sign and the digits.
        let (sign, digits) = text.split_at(text.len() - digits.len());
        out.push_str(sign);
        let width = verb.width.map(|width| width.saturating_sub(sign.len()));
        return pad(out, digits, &Verb { width, ..*verb });
    }
    pad(out, &text, verb);
}

/// `%e`: at least two digits of exponent, with its sign.
fn exponent(float: f64, precision: Option<usize>) -> String {
    let text = match precision {
        Some(precision) => format!("{float:.precision$e}"),
        None => format!("{float:e}"),
    };
    let Some((digits, exponent)) = text.split_once('e') else { return text };
    let (sign, exponent) = match exponent.strip_prefix('-') {
        Some(exponent) => ('-', exponent),
        None => ('+', exponent),
    };
    format!("{digits}e{sign}{exponent:0>2}")
}

/// `%g`: the shortest text that gives the number, or `precision` digits. With an exponent where that is below -4, or
/// as large as the precision, which is 6 for the shortest (strconv.formatDigits).
fn general(float: f64, precision: Option<usize>) -> String {
    let scientific = match precision {
        Some(precision) => format!("{float:.*e}", precision.max(1) - 1),
        None => format!("{float:e}"),
    };
    let Some((digits, exp)) = scientific.split_once('e') else { return scientific };
    let Ok(exp) = exp.parse::<i32>() else { return scientific };
    let digits = match digits.contains('.') {
        true => digits.trim_end_matches('0').trim_end_matches('.'),
        false => digits,
    };
    let count = digits.chars().filter(char::is_ascii_digit).count();
    let count = i32::try_from(count).unwrap_or(i32::MAX);
    let limit = match precision.map(|precision| i32::try_from(precision.max(1)).unwrap_or(i32::MAX)) {
        None => 6,
        Some(limit) if limit > count && count > exp => count,
        Some(limit) => limit,
    };
    if exp < -4 || exp >= limit {
        let (sign, magnitude) = if exp < 0 { ('-', -exp) } else { ('+', exp) };
        return format!("{digits}e{sign}{magnitude:02}");
    }
    match precision {
        None => format!("{float}"),
        Some(_) => format!("{float:.*}", usize::try_from(count - 1 - exp).unwrap_or(0)),
    }
}
