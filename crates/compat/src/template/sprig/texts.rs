//! Texts: sprig's strings.go, crypto.go (hashes) and numeric.go (`seq`).

use aws_lc_rs::digest;

use super::super::exec::too_long;
use super::{
    ANY, Function, Outcome, REST, Type, Value, cut, int, lists, paths, printf, repeat, show, text, words,
};
use crate::quote::quote;
use crate::template::TEXT_MAX;

const S: &[Type] = &[Type::Str];
const SS: &[Type] = &[Type::Str, Type::Str];
const SSS: &[Type] = &[Type::Str, Type::Str, Type::Str];
const IS: &[Type] = &[Type::Int, Type::Str];

/// A function that makes a text of texts.
macro_rules! texts {
    ($name:literal, $params:expr, $call:expr) => {
        Function {
            name: $name,
            params: $params,
            rest: None,
            call: |args| {
                let call: fn(&[Value]) -> String = $call;
                Ok(Value::str(call(args)))
            },
        }
    };
}

/// A function that answers yes or no.
macro_rules! question {
    ($name:literal, $params:expr, $call:expr) => {
        Function {
            name: $name,
            params: $params,
            rest: None,
            call: |args| {
                let call: fn(&[Value]) -> bool = $call;
                Ok(Value::Bool(call(args)))
            },
        }
    };
}

/// A function that may fail.
macro_rules! fallible {
    ($name:literal, $params:expr, $call:expr) => {
        Function { name: $name, params: $params, rest: None, call: $call }
    };
}

pub(super) static FUNCTIONS: &[Function] = &[
    fallible!("abbrev", IS, |args| words::abbreviate(text(args, 1), 0, int(args, 0))),
    fallible!("abbrevboth", &[Type::Int, Type::Int, Type::Str], |args| {
        let (left, right) = (int(args, 0), int(args, 1));
        if right < 4 || left > 0 && right < 7 {
            return Ok(args[2].clone());
        }
        words::abbreviate(text(args, 2), left, right)
    }),
    fallible!("trunc", IS, trunc),
    texts!("trim", S, |args| text(args, 0).trim().to_owned()),
    texts!("upper", S, |args| text(args, 0).chars().map(super::upper).collect()),
    texts!("lower", S, |args| text(args, 0).chars().map(super::lower).collect()),
    texts!("title", S, |args| words::title(text(args, 0))),
    texts!("untitle", S, |args| words::untitle(text(args, 0))),
    fallible!("substr", &[Type::Int, Type::Int, Type::Str], substr),
    fallible!("repeat", IS, |args| repeat(text(args, 1), int(args, 0)).map(Value::str)),
    texts!("trimAll", SS, |args| text(args, 1).trim_matches(|c| text(args, 0).contains(c)).to_owned()),
    texts!("trimSuffix", SS, |args| {
        let whole = text(args, 1);
        whole.strip_suffix(text(args, 0)).unwrap_or(whole).to_owned()
    }),
    texts!("trimPrefix", SS, |args| {
        let whole = text(args, 1);
        whole.strip_prefix(text(args, 0)).unwrap_or(whole).to_owned()
    }),
    texts!("nospace", S, |args| words::without_space(text(args, 0))),
    texts!("initials", S, |args| words::initials(text(args, 0))),
    texts!("swapcase", S, |args| words::swap_case(text(args, 0))),
    texts!("snakecase", S, |args| words::connected(text(args, 0), '_')),
    texts!("camelcase", S, |args| words::pascal_case(text(args, 0))),
    texts!("kebabcase", S, |args| words::connected(text(args, 0), '-')),
    fallible!("wrap", IS, |args| words::wrap(text(args, 1), int(args, 0), "\n", false)),
    fallible!("wrapWith", &[Type::Int, Type::Str, Type::Str], |args| {
        let newline = if text(args, 1).is_empty() { "\n" } else { text(args, 1) };
        words::wrap(text(args, 2), int(args, 0), newline, true)
    }),
    question!("contains", SS, |args| text(args, 1).contains(text(args, 0))),
    question!("hasPrefix", SS, |args| text(args, 1).starts_with(text(args, 0))),
    question!("hasSuffix", SS, |args| text(args, 1).ends_with(text(args, 0))),
    Function {
        name: "quote",
        params: &[],
        rest: REST,
        call: |args| {
            let quoted: Vec<_> = present(args).map(|value| quote(&show(value))).collect();
            Ok(Value::str(quoted.join(" ")))
        },
    },
    Function {
        name: "squote",
        params: &[],
        rest: REST,
        call: |args| {
            let quoted: Vec<_> = present(args)
                .map(|value| format!("'{}'", printf::print(std::slice::from_ref(value))))
                .collect();
            Ok(Value::str(quoted.join(" ")))
        },
    },
    Function {
        name: "cat",
        params: &[],
        rest: REST,
        call: |args| {
            let shown: Vec<_> =
                present(args).map(|value| printf::print(std::slice::from_ref(value))).collect();
            Ok(Value::str(shown.join(" ")))
        },
    },
    fallible!("indent", IS, |args| indent(args, "")),
    fallible!("nindent", IS, |args| indent(args, "\n")),
    fallible!("replace", SSS, replace),
    texts!("plural", &[Type::Str, Type::Str, Type::Int], |args| {
        text(args, usize::from(int(args, 2) != 1)).to_owned()
    }),
    texts!("sha1sum", S, |args| hash(&digest::SHA1_FOR_LEGACY_USE_ONLY, text(args, 0))),
    texts!("sha256sum", S, |args| hash(&digest::SHA256, text(args, 0))),
    texts!("adler32sum", S, |args| adler32(text(args, 0).as_bytes()).to_string()),
    texts!("toString", ANY, |args| show(&args[0])),
    Function { name: "seq", params: &[], rest: Some(Type::Int), call: seq },
    Function {
        name: "splitList",
        params: SS,
        rest: None,
        call: |args| Ok(Value::strings(split(text(args, 1), text(args, 0)))),
    },
    Function {
        name: "toStrings",
        params: ANY,
        rest: None,
        call: |args| Ok(Value::strings(lists::texts(&args[0]))),
    },
    texts!("join", &[Type::Str, Type::Any], |args| lists::texts(&args[1]).join(text(args, 0))),
    texts!("base", S, |args| paths::base(text(args, 0)).to_owned()),
    texts!("dir", S, |args| paths::dir(text(args, 0))),
    texts!("clean", S, |args| paths::clean(text(args, 0))),
    texts!("ext", S, |args| paths::extension(text(args, 0)).to_owned()),
    question!("isAbs", S, |args| text(args, 0).starts_with('/')),
    texts!("b64enc", S, |args| encode(text(args, 0).as_bytes(), BASE64, 6)),
    fallible!("b64dec", S, |args| decode(text(args, 0), BASE64, 6)),
    texts!("b32enc", S, |args| encode(text(args, 0).as_bytes(), BASE32, 5)),
    fallible!("b32dec", S, |args| decode(text(args, 0), BASE32, 5)),
    fallible!("fail", S, |args| Err(text(args, 0).to_owned())),
];

fn present(args: &[Value]) -> impl Iterator<Item = &Value> {
    args.iter().filter(|value| !matches!(value, Value::Nil))
}

fn trunc(args: &[Value]) -> Outcome {
    let (count, whole) = (int(args, 0), text(args, 1).as_bytes());
    let length = usize::try_from(count.unsigned_abs()).unwrap_or(usize::MAX);
    if length >= whole.len() {
        return Ok(args[1].clone());
    }
    cut(if count < 0 { &whole[whole.len() - length..] } else { &whole[..length] })
}

fn substr(args: &[Value]) -> Outcome {
    let (start, end, whole) = (int(args, 0), int(args, 1), text(args, 2).as_bytes());
    let len = i64::try_from(whole.len()).unwrap_or(i64::MAX);
    let (from, to) = if start < 0 {
        (0, end)
    } else if end < 0 || end > len {
        (start, len)
    } else {
        (start, end)
    };
    let found = usize::try_from(from).ok().zip(usize::try_from(to).ok());
    match found.and_then(|(from, to)| whole.get(from..to)) {
        Some(part) => cut(part),
        None if to > len => {
            Err(format!("runtime error: slice bounds out of range [:{to}] with length {len}"))
        }
        None if start < 0 => Err(format!("runtime error: slice bounds out of range [:{to}]")),
        None => Err(format!("runtime error: slice bounds out of range [{from}:{to}]")),
    }
}

fn indent(args: &[Value], before: &str) -> Outcome {
    let pad = repeat(" ", int(args, 0))?;
    let whole = text(args, 1);
    if (whole.matches('\n').count() + 1).saturating_mul(pad.len()) > TEXT_MAX {
        return Err(too_long());
    }
    Ok(Value::str(format!("{before}{pad}{}", whole.replace('\n', &format!("\n{pad}")))))
}

fn replace(args: &[Value]) -> Outcome {
    let (old, new, whole) = (text(args, 0), text(args, 1), text(args, 2));
    let count = if old.is_empty() { whole.len() + 1 } else { whole.len() / old.len() };
    if count.saturating_mul(new.len()) > TEXT_MAX {
        return Err(too_long());
    }
    Ok(Value::str(whole.replace(old, new)))
}

/// Go's `strings.Split`: nothing as a separator splits characters.
pub(super) fn split<'a>(whole: &'a str, separator: &str) -> Vec<&'a str> {
    if separator.is_empty() {
        let mut rest = whole;
        return std::iter::from_fn(|| {
            let (first, after) = rest.split_at(rest.chars().next()?.len_utf8());
            rest = after;
            Some(first)
        })
        .collect();
    }
    whole.split(separator).collect()
}

fn hash(algorithm: &'static digest::Algorithm, text: &str) -> String {
    let digest = digest::digest(algorithm, text.as_bytes());
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn adler32(bytes: &[u8]) -> u32 {
    const MODULUS: u32 = 65_521;
    let (a, b) = bytes.iter().fold((1, 0), |(a, b), byte| {
        let a = (a + u32::from(*byte)) % MODULUS;
        (a, (b + a) % MODULUS)
    });
    b << 16 | a
}

/// Numbers with spaces between: up to the one, from the first to the second, or with a step between.
fn seq(args: &[Value]) -> Outcome {
    let number = |index| int(args, index);
    let (start, step, end) = match args.len() {
        1 => (1, if number(0) < 1 { -1 } else { 1 }, number(0)),
        2 => (number(0), if number(1) < number(0) { -1 } else { 1 }, number(1)),
        3 => (number(0), number(1), number(2)),
        _ => return Ok(Value::str("")),
    };
    if step == 0 || (step > 0) != (end >= start) {
        return Ok(Value::str(""));
    }
    let mut out = String::new();
    let mut at = Some(start);
    while let Some(number) = at.filter(|at| if step > 0 { *at <= end } else { *at >= end }) {
        if !out.is_empty() {
            out.push(' ');
        }
        out.push_str(&number.to_string());
        if out.len() > TEXT_MAX {
            return Err(too_long());
        }
        at = number.checked_add(step);
    }
    Ok(Value::str(out))
}

const BASE64: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
const BASE32: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";

/// How many characters a group of whole bytes has.
fn group(bits: u32) -> usize {
    if bits == 6 { 4 } else { 8 }
}

fn encode(bytes: &[u8], alphabet: &str, bits: u32) -> String {
    let alphabet = alphabet.as_bytes();
    let mut out = String::new();
    let (mut pending, mut count) = (0u32, 0);
    for byte in bytes {
        pending = (pending << 8 | u32::from(*byte)) & 0xffff;
        count += 8;
        while count >= bits {
            count -= bits;
            let index = pending >> count & ((1 << bits) - 1);
            out.push(char::from(alphabet[index as usize]));
        }
    }
    if count > 0 {
        let index = pending << (bits - count) & ((1 << bits) - 1);
        out.push(char::from(alphabet[index as usize]));
    }
    while !out.len().is_multiple_of(group(bits)) {
        out.push('=');
    }
    out
}

/// Decodes as Go does, newlines left out. What is malformed gives the error's text as the result, as in sprig.
fn decode(encoded: &str, alphabet: &str, bits: u32) -> Outcome {
    let name = if bits == 6 { "base64" } else { "base32" };
    let bad = |at: usize| Ok(Value::str(format!("illegal {name} data at input byte {at}")));
    let symbols: Vec<(usize, u8)> =
        encoded.bytes().enumerate().filter(|(_, byte)| !matches!(byte, b'\r' | b'\n')).collect();
    let mut out = Vec::new();
    let (mut pending, mut count, mut used) = (0u32, 0, 0usize);
    let mut symbols = symbols.into_iter();
    while let Some((at, symbol)) = symbols.next() {
        let Some(index) = alphabet.bytes().position(|known| known == symbol) else {
            // Padding fills the group, leaves whole bytes only, and ends the text.
            let missing = group(bits) - used % group(bits);
            let fits = if bits == 6 { matches!(missing, 1 | 2) } else { matches!(missing, 1 | 3 | 4 | 6) };
            if symbol != b'=' || !fits {
                return bad(at);
            }
            let mut padding = 1;
            for (at, symbol) in symbols {
                padding += 1;
                if symbol != b'=' || padding > missing {
                    return bad(at);
                }
            }
            return if padding == missing { cut(&out) } else { bad(encoded.len()) };
        };
        used += 1;
        pending = (pending << bits | u32::try_from(index).unwrap_or(0)) & 0xffff;
        count += bits;
        if count >= 8 {
            count -= 8;
            out.push((pending >> count & 0xff) as u8);
        }
    }
    if used.is_multiple_of(group(bits)) {
        cut(&out)
    } else {
        bad(encoded.len() - encoded.len() % group(bits))
    }
}
