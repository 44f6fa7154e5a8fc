//! The functions that every Go template has (text/template/funcs.go).

use std::cmp::Ordering;

use super::{Value, printf};

/// A function that templates call.
pub(super) struct Function {
    pub(super) name: &'static str,
    /// The types of its arguments.
    pub(super) params: &'static [Type],
    /// The type of any further arguments.
    pub(super) rest: Option<Type>,
    /// Calls it with arguments of these types. An error is what the function says.
    pub(super) call: fn(&[Value]) -> Outcome,
}

pub(super) type Outcome = Result<Value, String>;

/// The type that a function wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Type {
    Any,
    Str,
    Int,
    Bool,
    Dict,
}

impl Type {
    pub(super) fn can_be_nil(self) -> bool {
        matches!(self, Self::Any | Self::Dict)
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Any => "interface {}",
            Self::Str => "string",
            Self::Int => "int",
            Self::Bool => "bool",
            Self::Dict => "map[string]interface {}",
        }
    }
}

const ANY: Option<Type> = Some(Type::Any);

static FUNCTIONS: &[Function] = &[
    // `and` and `or` stop at the first argument that decides, and so are not called.
    Function { name: "and", params: &[Type::Any], rest: ANY, call: |_| Ok(Value::Nil) },
    Function { name: "or", params: &[Type::Any], rest: ANY, call: |_| Ok(Value::Nil) },
    Function { name: "call", params: &[Type::Any], rest: ANY, call },
    Function { name: "html", params: &[], rest: ANY, call: |args| Ok(Value::str(html(&text(args)))) },
    Function { name: "index", params: &[Type::Any], rest: ANY, call: index },
    Function { name: "js", params: &[], rest: ANY, call: |args| Ok(Value::str(js(&text(args)))) },
    Function { name: "len", params: &[Type::Any], rest: None, call: len },
    Function {
        name: "not",
        params: &[Type::Any],
        rest: None,
        call: |args| Ok(Value::Bool(!args[0].is_true())),
    },
    Function { name: "print", params: &[], rest: ANY, call: |args| Ok(Value::str(printf::print(args))) },
    Function {
        name: "printf",
        params: &[Type::Str],
        rest: ANY,
        call: |args| match &args[0] {
            Value::Str(format) => printf::printf(format, &args[1..]).map(Value::str),
            _ => Ok(Value::Nil),
        },
    },
    Function { name: "println", params: &[], rest: ANY, call: |args| Ok(Value::str(printf::println(args))) },
    Function {
        name: "urlquery",
        params: &[],
        rest: ANY,
        call: |args| Ok(Value::str(url_query(&text(args)))),
    },
    Function { name: "eq", params: &[Type::Any], rest: ANY, call: |args| equal(args).map(Value::Bool) },
    Function { name: "ne", params: &[Type::Any; 2], rest: None, call: |args| Ok(Value::Bool(!equal(args)?)) },
    Function { name: "lt", params: &[Type::Any; 2], rest: None, call: |args| Ok(Value::Bool(less(args)?)) },
    Function {
        name: "le",
        params: &[Type::Any; 2],
        rest: None,
        call: |args| Ok(Value::Bool(less(args)? || equal(args)?)),
    },
    Function {
        name: "gt",
        params: &[Type::Any; 2],
        rest: None,
        call: |args| Ok(Value::Bool(!(less(args)? || equal(args)?))),
    },
    Function { name: "ge", params: &[Type::Any; 2], rest: None, call: |args| Ok(Value::Bool(!less(args)?)) },
];

pub(super) fn find(name: &str) -> Option<&'static Function> {
    FUNCTIONS.iter().find(|function| function.name == name)
}

fn call(args: &[Value]) -> Outcome {
    match &args[0] {
        Value::Nil => Err("call of nil".to_owned()),
        value => Err(format!("non-function of type {}", value.type_name())),
    }
}

fn len(args: &[Value]) -> Outcome {
    match args[0].len() {
        Some(len) => Ok(Value::Int(i64::try_from(len).unwrap_or(i64::MAX))),
        None if matches!(args[0], Value::Nil) => {
            Err("reflect: call of reflect.Value.Type on zero Value".to_owned())
        }
        None => Err(format!("len of type {}", args[0].type_name())),
    }
}

fn index(args: &[Value]) -> Outcome {
    let mut item = args[0].clone();
    if matches!(item, Value::Nil) {
        return Err("index of untyped nil".to_owned());
    }
    for index in &args[1..] {
        item = match &item {
            Value::Nil => return Err("index of nil pointer".to_owned()),
            Value::Dict(dict) => {
                let dict = dict.borrow();
                dict.get(key(index)?).cloned().unwrap_or(Value::Nil)
            }
            Value::StringMap(map) => map.get(key(index)?).map_or_else(|| Value::str(""), Value::str),
            Value::Str(text) => {
                let at = position(index, text.len())?;
                Value::Uint(u64::from(text.as_bytes()[at]))
            }
            Value::List(_) | Value::Bytes(_) => {
                let items = item.items().unwrap_or_default();
                let at = position(index, items.len())?;
                items[at].clone()
            }
            other => return Err(format!("can't index item of type {}", other.type_name())),
        };
    }
    Ok(item)
}

fn key(index: &Value) -> Result<&str, String> {
    match index {
        Value::Str(key) => Ok(key),
        Value::Nil => Err("value is nil; should be of type string".to_owned()),
        other => Err(format!("value has type {}; should be string", other.type_name())),
    }
}

fn position(index: &Value, len: usize) -> Result<usize, String> {
    let number = match index {
        Value::Int(number) => i128::from(*number),
        Value::Uint(number) => i128::from(*number),
        Value::Nil => return Err("cannot index slice/array with nil".to_owned()),
        other => return Err(format!("cannot index slice/array with type {}", other.type_name())),
    };
    let found = usize::try_from(number).ok().filter(|number| *number < len);
    found.ok_or_else(|| format!("index out of range: {number}"))
}

#[derive(PartialEq, Eq)]
enum Basic {
    Bool,
    Int,
    Uint,
    Float,
    Str,
}

fn basic(value: &Value) -> Option<Basic> {
    Some(match value {
        Value::Bool(_) => Basic::Bool,
        Value::Int(_) => Basic::Int,
        Value::Uint(_) => Basic::Uint,
        Value::Float(_) => Basic::Float,
        Value::Str(_) => Basic::Str,
        _ => return None,
    })
}

fn incompatible(a: &Value, b: &Value) -> String {
    format!("incompatible types for comparison: {} and {}", a.type_name(), b.type_name())
}

/// Whether the first argument equals one of the others.
fn equal(args: &[Value]) -> Result<bool, String> {
    let (first, others) = args.split_first().unwrap_or_else(|| unreachable!("it has a first argument"));
    if others.is_empty() {
        return Err("missing argument for comparison".to_owned());
    }
    for other in others {
        let is_equal = match (first, other) {
            (Value::Nil, Value::Nil) => true,
            (Value::Nil, _) | (_, Value::Nil) => false,
            (Value::Int(a), Value::Uint(b)) | (Value::Uint(b), Value::Int(a)) => u64::try_from(*a) == Ok(*b),
            _ => match (basic(first), basic(other)) {
                (Some(a), Some(b)) if a == b => first.deep_equal(other),
                (None, None) if first.kind() == other.kind() => {
                    return Err(format!(
                        "non-comparable type {}: {}",
                        printf::print(std::slice::from_ref(other)),
                        other.type_name()
                    ));
                }
                (None, None) => {
                    return Err(format!(
                        "non-comparable types {}: {}, {}: {}",
                        printf::print(std::slice::from_ref(first)),
                        first.type_name(),
                        other.type_name(),
                        printf::print(std::slice::from_ref(other)),
                    ));
                }
                _ => return Err(incompatible(first, other)),
            },
        };
        if is_equal {
            return Ok(true);
        }
    }
    Ok(false)
}

fn less(args: &[Value]) -> Result<bool, String> {
    const BAD: &str = "invalid type for comparison";
    Ok(match (&args[0], &args[1]) {
        (Value::Int(a), Value::Int(b)) => a < b,
        (Value::Uint(a), Value::Uint(b)) => a < b,
        (Value::Int(a), Value::Uint(b)) => i128::from(*a) < i128::from(*b),
        (Value::Uint(a), Value::Int(b)) => i128::from(*a) < i128::from(*b),
        (Value::Float(a), Value::Float(b)) => a.partial_cmp(b) == Some(Ordering::Less),
        (Value::Str(a), Value::Str(b)) => a < b,
        (a, b) => match (basic(a), basic(b)) {
            (Some(a_kind), Some(b_kind)) if a_kind != b_kind => return Err(incompatible(a, b)),
            _ => return Err(BAD.to_owned()),
        },
    })
}

/// The text that the escaping functions work on.
fn text(args: &[Value]) -> String {
    let shown: Vec<Value> = args
        .iter()
        .map(|value| if matches!(value, Value::Nil) { Value::str("<no value>") } else { value.clone() })
        .collect();
    printf::print(&shown)
}

fn html(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\0' => out.push('\u{fffd}'),
            '"' => out.push_str("&#34;"),
            '\'' => out.push_str("&#39;"),
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            c => out.push(c),
        }
    }
    out
}

fn js(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' | '\'' | '"' => out.extend(['\\', c]),
            '<' | '>' | '&' | '=' => out.push_str(&format!("\\u{:04X}", u32::from(c))),
            c if c < ' ' => out.push_str(&format!("\\u{:04X}", u32::from(c))),
            c if !c.is_ascii() && c.is_control() => out.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => out.push(c),
        }
    }
    out
}

/// url.QueryEscape
fn url_query(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(char::from(byte)),
            b' ' => out.push('+'),
            byte => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}
