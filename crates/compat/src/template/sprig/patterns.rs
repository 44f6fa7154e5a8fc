//! Regular expressions: sprig's regex.go.

use super::super::exec::too_long;
use super::{Function, Outcome, Type, Value, int, text};
use crate::quote::quote;
use crate::regexp::Regexp;
use crate::template::TEXT_MAX;

const SS: &[Type] = &[Type::Str, Type::Str];
const SSI: &[Type] = &[Type::Str, Type::Str, Type::Int];
const SSS: &[Type] = &[Type::Str, Type::Str, Type::Str];

/// A pattern that is none is an error of the function; without `must` it is Go's panic, with another text.
macro_rules! table {
    ($($name:ident / $must:ident, $params:expr, $call:expr;)*) => {
        &[
            Function {
                name: "regexMatch",
                params: SS,
                rest: None,
                call: |args| Ok(Value::Bool(Regexp::new(text(args, 0)).is_ok_and(|it| it.is_match(text(args, 1))))),
            },
            Function {
                name: "mustRegexMatch",
                params: SS,
                rest: None,
                call: |args| Ok(Value::Bool(compile(args)?.is_match(text(args, 1)))),
            },
            Function {
                name: "regexQuoteMeta",
                params: &[Type::Str],
                rest: None,
                call: |args| Ok(Value::str(crate::regexp::quote_meta(text(args, 0)))),
            },
            $(
                Function {
                    name: stringify!($name),
                    params: $params,
                    rest: None,
                    call: |args| {
                        let pattern = compile(args).map_err(|error| {
                            format!("regexp: Compile({}): {error}", quote(text(args, 0)))
                        })?;
                        $call(&pattern, args)
                    },
                },
                Function {
                    name: stringify!($must),
                    params: $params,
                    rest: None,
                    call: |args| $call(&compile(args)?, args),
                },
            )*
        ]
    };
}

pub(super) static FUNCTIONS: &[Function] = table! {
    regexFind / mustRegexFind, SS, find;
    regexFindAll / mustRegexFindAll, SSI, find_all;
    regexReplaceAll / mustRegexReplaceAll, SSS, replace;
    regexReplaceAllLiteral / mustRegexReplaceAllLiteral, SSS, replace_literal;
    regexSplit / mustRegexSplit, SSI, split;
};

fn compile(args: &[Value]) -> Result<Regexp, String> {
    Regexp::new(text(args, 0)).map_err(|error| error.to_string())
}

fn limit(count: i64) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

fn find(pattern: &Regexp, args: &[Value]) -> Outcome {
    Ok(Value::str(pattern.matches(text(args, 1)).next().map_or("", |found| &text(args, 1)[found])))
}

fn find_all(pattern: &Regexp, args: &[Value]) -> Outcome {
    let whole = text(args, 1);
    Ok(Value::strings(pattern.matches(whole).take(limit(int(args, 2))).map(|found| &whole[found])))
}

fn replace(pattern: &Regexp, args: &[Value]) -> Outcome {
    pattern.replace_all(text(args, 1), text(args, 2), TEXT_MAX).map(Value::str).ok_or_else(too_long)
}

fn replace_literal(pattern: &Regexp, args: &[Value]) -> Outcome {
    let replacement = text(args, 2).replace('$', "$$");
    pattern.replace_all(text(args, 1), &replacement, TEXT_MAX).map(Value::str).ok_or_else(too_long)
}

/// regexp.Split
fn split(pattern: &Regexp, args: &[Value]) -> Outcome {
    let (whole, count) = (text(args, 1), limit(int(args, 2)));
    if count == 0 {
        return Ok(Value::strings([""; 0]));
    }
    if whole.is_empty() && !text(args, 0).is_empty() {
        return Ok(Value::strings([""]));
    }
    let mut parts = Vec::new();
    let (mut begin, mut end) = (0, 0);
    for found in pattern.matches(whole) {
        if parts.len() == count - 1 {
            break;
        }
        end = found.start;
        if found.end != 0 {
            parts.push(&whole[begin..end]);
        }
        begin = found.end;
    }
    if end != whole.len() {
        parts.push(&whole[begin..]);
    }
    Ok(Value::strings(parts))
}
