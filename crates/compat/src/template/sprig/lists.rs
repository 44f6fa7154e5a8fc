//! Lists and defaults: sprig's list.go and defaults.go.

use super::{ANY, Function, NIL, Outcome, REST, Type, Value, elements, int, show};
use crate::template::value::{Elem, List};

const AA: &[Type] = &[Type::Any, Type::Any];

/// Functions under their names and with `must` before them, which the reference tells apart by how they fail and a
/// template cannot; then those that have one name.
macro_rules! table {
    ($($name:ident / $must:ident, $params:expr, $rest:expr, $call:expr;)* => $($single:literal, $one:expr, $more:expr, $f:expr;)*) => {
        &[
            $(
                Function { name: stringify!($name), params: $params, rest: $rest, call: $call },
                Function { name: stringify!($must), params: $params, rest: $rest, call: $call },
            )*
            $(Function { name: $single, params: $one, rest: $more, call: $f },)*
        ]
    };
}

pub(super) static FUNCTIONS: &[Function] = table! {
    append / mustAppend, AA, None, push;
    push / mustPush, AA, None, push;
    prepend / mustPrepend, AA, None, prepend;
    first / mustFirst, ANY, None, |args| {
        Ok(elements(&args[0], "Cannot find first on type")?.first().cloned().unwrap_or(Value::Nil))
    };
    rest / mustRest, ANY, None, |args| {
        let items = elements(&args[0], "Cannot find rest on type")?;
        Ok(Value::list(items.get(1..).unwrap_or_default().to_vec()))
    };
    last / mustLast, ANY, None, |args| {
        Ok(elements(&args[0], "Cannot find last on type")?.last().cloned().unwrap_or(Value::Nil))
    };
    initial / mustInitial, ANY, None, |args| {
        let items = elements(&args[0], "Cannot find initial on type")?;
        Ok(Value::list(items[..items.len().saturating_sub(1)].to_vec()))
    };
    reverse / mustReverse, ANY, None, |args| {
        let items = elements(&args[0], "Cannot find reverse on type")?;
        Ok(Value::list(items.iter().rev().cloned().collect()))
    };
    uniq / mustUniq, ANY, None, unique;
    without / mustWithout, ANY, REST, |args| {
        let items = elements(&args[0], "Cannot find without on type")?;
        let kept = items.iter().filter(|item| !args[1..].iter().any(|other| other.deep_equal(item)));
        Ok(Value::list(kept.cloned().collect()))
    };
    has / mustHas, AA, None, |args| {
        if matches!(args[1], Value::Nil) {
            return Ok(Value::Bool(false));
        }
        let items = elements(&args[1], "Cannot find has on type")?;
        Ok(Value::Bool(items.iter().any(|item| item.deep_equal(&args[0]))))
    };
    slice / mustSlice, ANY, REST, slice;
    compact / mustCompact, ANY, None, |args| {
        let items = elements(&args[0], "Cannot compact on type")?;
        Ok(Value::list(items.iter().filter(|item| !item.is_empty()).cloned().collect()))
    };
    chunk / mustChunk, &[Type::Int, Type::Any], None, chunk;
    =>
    "concat", &[], REST, concat;
    "tuple", &[], REST, |args| Ok(Value::list(args.to_vec()));
    "list", &[], REST, |args| Ok(Value::list(args.to_vec()));
    "sortAlpha", ANY, None, |args| {
        let mut sorted = match args[0].items() {
            Some(_) => texts(&args[0]),
            None => vec![show(&args[0])],
        };
        sorted.sort();
        Ok(Value::strings(sorted))
    };
    "default", ANY, REST, |args| {
        Ok(args.get(1).filter(|given| !given.is_empty()).unwrap_or(&args[0]).clone())
    };
    "empty", ANY, None, |args| Ok(Value::Bool(args[0].is_empty()));
    "coalesce", &[], REST, |args| {
        Ok(args.iter().find(|value| !value.is_empty()).cloned().unwrap_or(Value::Nil))
    };
    "all", &[], REST, |args| Ok(Value::Bool(!args.iter().any(Value::is_empty)));
    "any", &[], REST, |args| Ok(Value::Bool(!args.iter().all(Value::is_empty)));
    "ternary", &[Type::Any, Type::Any, Type::Bool], None, |args| {
        Ok(args[usize::from(matches!(args[2], Value::Bool(false)))].clone())
    };
};

/// What sprig makes texts of: the elements of a list that are not nil, or the value itself.
pub(super) fn texts(value: &Value) -> Vec<String> {
    match value.items() {
        Some(items) => items.iter().filter(|item| !matches!(item, Value::Nil)).map(show).collect(),
        None if matches!(value, Value::Nil) => Vec::new(),
        None => vec![show(value)],
    }
}

fn push(args: &[Value]) -> Outcome {
    let items = elements(&args[0], "Cannot push on type")?;
    Ok(Value::list(items.iter().chain([&args[1]]).cloned().collect()))
}

fn prepend(args: &[Value]) -> Outcome {
    let items = elements(&args[0], "Cannot prepend on type")?;
    Ok(Value::list([&args[1]].into_iter().chain(items.iter()).cloned().collect()))
}

fn unique(args: &[Value]) -> Outcome {
    let mut kept: Vec<Value> = Vec::new();
    for item in elements(&args[0], "Cannot find uniq on type")?.iter() {
        if !kept.iter().any(|other| other.deep_equal(item)) {
            kept.push(item.clone());
        }
    }
    Ok(Value::list(kept))
}

fn slice(args: &[Value]) -> Outcome {
    let len = elements(&args[0], "list should be type of slice or array but")?.len();
    if len == 0 {
        return Ok(Value::Nil);
    }
    let start = args.get(1).map_or(0, to_int);
    let end = args.get(2).map_or_else(|| i64::try_from(len).unwrap_or(i64::MAX), to_int);
    let bounds = usize::try_from(start).ok().zip(usize::try_from(end).ok());
    let part = bounds.and_then(|(start, end)| args[0].sub_slice(start, end));
    part.ok_or_else(|| "reflect.Value.Slice: slice index out of bounds".to_owned())
}

/// What sprig takes for an integer (cast.ToInt); 0 for what is none.
fn to_int(value: &Value) -> i64 {
    match value {
        Value::Int(int) => *int,
        Value::Uint(uint) => i64::try_from(*uint).unwrap_or(0),
        #[expect(
            clippy::cast_possible_truncation,
            reason = "Go cuts the same way, and bounds are checked after"
        )]
        Value::Float(float) => *float as i64,
        Value::Bool(value) => i64::from(*value),
        Value::Str(text) => text.parse().unwrap_or(0),
        _ => 0,
    }
}

fn chunk(args: &[Value]) -> Outcome {
    let items = elements(&args[1], "Cannot chunk type")?;
    let size = usize::try_from(int(args, 0)).unwrap_or(0);
    if size == 0 {
        return Err("runtime error: makeslice: len out of range".to_owned());
    }
    let chunks = items.chunks(size).map(|chunk| Value::list(chunk.to_vec())).collect();
    Ok(Value::List(List { elem: Elem::AnyList, items: chunks }))
}

fn concat(args: &[Value]) -> Outcome {
    let mut all = Vec::new();
    for list in args {
        let items = list.items().ok_or_else(|| match list.kind() {
            Some(kind) => format!("Cannot concat type {kind} as list"),
            None => NIL.to_owned(),
        })?;
        all.extend(items.iter().cloned());
    }
    Ok(Value::list(all))
}
