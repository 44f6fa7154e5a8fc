//! The functions of sprig 3.3 that the reference's templates may use (pkg/common/agentpathtemplate/template.go).

mod dicts;
mod lists;
mod paths;
mod patterns;
mod texts;
mod urls;
mod words;

use super::builtins::{Function, Outcome, Type};
use super::{TEXT_MAX, Value, printf};

/// The function of that name.
pub(super) fn find(name: &str) -> Option<&'static Function> {
    let all = [texts::FUNCTIONS, lists::FUNCTIONS, dicts::FUNCTIONS, patterns::FUNCTIONS];
    all.into_iter().flatten().find(|function| function.name == name)
}

/// Why a function that the reference has is none of ours.
pub(super) fn refused(name: &str) -> Option<&'static str> {
    (name == "uuidv4").then_some("an agent would get another SPIFFE ID at each attestation")
}

const ANY: &[Type] = &[Type::Any];
const REST: Option<Type> = Some(Type::Any);

/// An argument that the executor has checked to be a text.
fn text(args: &[Value], index: usize) -> &str {
    match args.get(index) {
        Some(Value::Str(text)) => text,
        _ => "",
    }
}

/// An argument that the executor has checked to be an integer.
fn int(args: &[Value], index: usize) -> i64 {
    match args.get(index) {
        Some(Value::Int(int)) => *int,
        _ => 0,
    }
}

/// A value as sprig makes a text of it (strval).
fn show(value: &Value) -> String {
    match value {
        Value::Bytes(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        value => printf::print(std::slice::from_ref(value)),
    }
}

/// A text of bytes that were cut from one.
fn cut(bytes: &[u8]) -> Outcome {
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(Value::str(text)),
        Err(_) => Err("a text that is not UTF-8 would come out, which is not built".to_owned()),
    }
}

/// The elements of a list, or what the reference says of something else.
fn elements(list: &Value, what: &str) -> Result<std::rc::Rc<[Value]>, String> {
    list.items().ok_or_else(|| match list.kind() {
        Some(kind) => format!("{what} {kind}"),
        None => NIL.to_owned(),
    })
}

/// What Go says of a nil where a list must be.
const NIL: &str = "runtime error: invalid memory address or nil pointer dereference";

/// `text` repeated; bounded before it is made.
fn repeat(text: &str, count: i64) -> Result<String, String> {
    let Ok(count) = usize::try_from(count) else {
        return Err("strings: negative Repeat count".to_owned());
    };
    if text.len().saturating_mul(count) > TEXT_MAX {
        return Err(super::exec::too_long());
    }
    Ok(text.repeat(count))
}

/// Go's `unicode.ToUpper`, which gives one character for one.
fn upper(c: char) -> char {
    let mut upper = c.to_uppercase();
    upper.next().filter(|_| upper.next().is_none()).unwrap_or(c)
}

/// Go's `unicode.ToLower`.
fn lower(c: char) -> char {
    // Of U+0130 Rust makes an i and a dot above, Go the i.
    c.to_lowercase().next().unwrap_or(c)
}
