//! Kinds of flags and the values that they read.

use crate::duration::GoDuration;
use crate::quote;

/// What a flag takes, with its default.
#[derive(Clone, Debug)]
pub enum Kind {
    /// `-b`, `-b=true`, `-b=0`.
    Bool(bool),
    /// `-b`, or `-b=anything`: given is true (flag.BoolFunc with a function that looks at no value).
    Switch,
    /// A whole number.
    Int(i64),
    /// Any text.
    String(String),
    /// A Go duration.
    Duration(GoDuration),
    /// Any text, as often as wanted.
    Strings,
    /// Text that a function of the command checks.
    Custom {
        /// The default in the usage text; empty for none.
        shown: &'static str,
        /// Says what is wrong with an argument.
        check: fn(&str) -> Result<(), String>,
    },
}

/// The value of a flag after parsing.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the value of the kind of that name")]
pub enum Value {
    Bool(bool),
    Int(i64),
    String(String),
    Duration(GoDuration),
    Strings(Vec<String>),
    /// `None` when the flag was not given.
    Custom(Option<String>),
}

impl Kind {
    pub(super) fn initial(&self) -> Value {
        match self {
            Self::Bool(b) => Value::Bool(*b),
            Self::Switch => Value::Bool(false),
            Self::Int(n) => Value::Int(*n),
            Self::String(s) => Value::String(s.clone()),
            Self::Duration(d) => Value::Duration(*d),
            Self::Strings => Value::Strings(Vec::new()),
            Self::Custom { .. } => Value::Custom(None),
        }
    }

    /// What the usage text calls the argument; empty for none (flag.UnquoteUsage).
    pub(super) fn argument_name(&self) -> &'static str {
        match self {
            Self::Bool(_) | Self::Switch => "",
            Self::Int(_) => "int",
            Self::String(_) => "string",
            Self::Duration(_) => "duration",
            Self::Strings | Self::Custom { .. } => "value",
        }
    }

    /// The default as the usage text shows it; `None` for a zero value.
    pub(super) fn shown_default(&self) -> Option<String> {
        match self {
            Self::Bool(true) => Some("true".to_owned()),
            Self::Int(n) if *n != 0 => Some(n.to_string()),
            Self::String(s) if !s.is_empty() => Some(quote::quote(s)),
            Self::Duration(d) if *d != GoDuration::ZERO => Some(d.to_string()),
            Self::Custom { shown, .. } if !shown.is_empty() => Some((*shown).to_owned()),
            _ => None,
        }
    }
}

impl Value {
    /// Takes an argument in. The error is what Go says after `invalid value "x" for flag -f: `.
    pub(super) fn set(&mut self, kind: &Kind, argument: &str) -> Result<(), String> {
        match self {
            Self::Bool(b) if matches!(kind, Kind::Switch) => *b = true,
            Self::Bool(b) => *b = parse_bool(argument).ok_or("parse error")?,
            Self::Int(n) => *n = parse_int(argument)?,
            Self::String(s) => argument.clone_into(s),
            Self::Duration(d) => *d = argument.parse().map_err(|_| "parse error")?,
            Self::Strings(all) => all.push(argument.to_owned()),
            Self::Custom(given) => {
                if let Kind::Custom { check, .. } = kind {
                    check(argument)?;
                }
                *given = Some(argument.to_owned());
            }
        }
        Ok(())
    }
}

/// strconv.ParseBool.
fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// strconv.ParseInt with base 0: prefixes `0x`, `0o`, `0b` and `0`, underscores between digits.
fn parse_int(text: &str) -> Result<i64, String> {
    let (negative, digits) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    let lower = digits.to_ascii_lowercase();
    let (base, body) = match lower.as_bytes() {
        [b'0', b'x', ..] => (16, &lower[2..]),
        [b'0', b'o', ..] => (8, &lower[2..]),
        [b'0', b'b', ..] => (2, &lower[2..]),
        [b'0', _, ..] => (8, &lower[1..]),
        _ => (10, lower.as_str()),
    };
    let prefixed = body.len() < lower.len();
    let after_prefix = body.strip_prefix('_').filter(|_| prefixed).unwrap_or(body);
    let well_placed = !after_prefix.is_empty()
        && !after_prefix.starts_with('_')
        && !after_prefix.ends_with('_')
        && !after_prefix.contains("__")
        && (prefixed || !after_prefix.contains('_'));
    let plain: String = after_prefix.chars().filter(|c| *c != '_').collect();
    if !well_placed || !plain.chars().all(|c| c.is_digit(base)) {
        return Err("parse error".to_owned());
    }
    let magnitude = i128::from_str_radix(&plain, base).map_err(|_| "value out of range")?;
    i64::try_from(if negative { -magnitude } else { magnitude }).map_err(|_| "value out of range".to_owned())
}
