//! Dictionaries: sprig's dict.go, with mergo's merging. Where Go's order of keys is random, ours is theirs.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::{Function, Outcome, REST, Type, Value, show, text, urls};
use crate::template::value::Dict;

const D: &[Type] = &[Type::Dict];
const DS: &[Type] = &[Type::Dict, Type::Str];
const DICTS: Option<Type> = Some(Type::Dict);

pub(super) static FUNCTIONS: &[Function] = &[
    Function { name: "dict", params: &[], rest: REST, call: dict },
    Function {
        name: "get",
        params: DS,
        rest: None,
        call: |args| Ok(entry(&args[0], text(args, 1)).unwrap_or_else(|| Value::str(""))),
    },
    Function { name: "set", params: &[Type::Dict, Type::Str, Type::Any], rest: None, call: set },
    Function {
        name: "unset",
        params: DS,
        rest: None,
        call: |args| {
            if let Value::Dict(dict) = &args[0] {
                dict.borrow_mut().remove(text(args, 1));
            }
            Ok(args[0].clone())
        },
    },
    Function {
        name: "hasKey",
        params: DS,
        rest: None,
        call: |args| Ok(Value::Bool(entry(&args[0], text(args, 1)).is_some())),
    },
    Function {
        name: "pluck",
        params: &[Type::Str],
        rest: DICTS,
        call: |args| {
            Ok(Value::list(args[1..].iter().filter_map(|dict| entry(dict, text(args, 0))).collect()))
        },
    },
    Function {
        name: "keys",
        params: &[],
        rest: DICTS,
        call: |args| Ok(Value::strings(args.iter().flat_map(entries).map(|(key, _)| key))),
    },
    Function {
        name: "values",
        params: D,
        rest: None,
        call: |args| Ok(Value::list(entries(&args[0]).into_values().collect())),
    },
    Function { name: "pick", params: D, rest: Some(Type::Str), call: |args| Ok(filtered(args, true)) },
    Function { name: "omit", params: D, rest: Some(Type::Str), call: |args| Ok(filtered(args, false)) },
    Function { name: "merge", params: D, rest: DICTS, call: |args| Ok(merged(args, false)) },
    Function { name: "mustMerge", params: D, rest: DICTS, call: |args| Ok(merged(args, false)) },
    Function { name: "mergeOverwrite", params: D, rest: DICTS, call: |args| Ok(merged(args, true)) },
    Function { name: "mustMergeOverwrite", params: D, rest: DICTS, call: |args| Ok(merged(args, true)) },
    Function { name: "dig", params: &[], rest: REST, call: dig },
    Function { name: "urlParse", params: &[Type::Str], rest: None, call: urls::parse },
    Function { name: "urlJoin", params: D, rest: None, call: urls::join },
];

/// What stands under a key.
pub(super) fn entry(dict: &Value, key: &str) -> Option<Value> {
    match dict {
        Value::Dict(dict) => dict.borrow().get(key).cloned(),
        _ => None,
    }
}

fn entries(dict: &Value) -> BTreeMap<String, Value> {
    match dict {
        Value::Dict(dict) => dict.borrow().clone(),
        _ => BTreeMap::new(),
    }
}

fn dict(args: &[Value]) -> Outcome {
    let entries = args.chunks(2).map(|pair| {
        let value = pair.get(1).cloned().unwrap_or_else(|| Value::str(""));
        (show(&pair[0]), value)
    });
    Ok(Value::dict(entries.collect()))
}

fn set(args: &[Value]) -> Outcome {
    let Value::Dict(dict) = &args[0] else { return Err("assignment to entry in nil map".to_owned()) };
    dict.borrow_mut().insert(text(args, 1).to_owned(), args[2].clone());
    Ok(args[0].clone())
}

fn filtered(args: &[Value], keep: bool) -> Value {
    let named = |key: &str| (1..args.len()).any(|index| text(args, index) == key);
    let mut entries = entries(&args[0]);
    entries.retain(|key, _| named(key) == keep);
    Value::dict(entries)
}

/// Merges the others into the first, and returns that.
fn merged(args: &[Value], overwrite: bool) -> Value {
    let target = match &args[0] {
        Value::Dict(dict) => Rc::clone(dict),
        _ => Dict::default(),
    };
    for source in &args[1..] {
        merge(&target, source, overwrite);
    }
    Value::Dict(target)
}

/// mergo.Merge: dictionaries merge into each other; of anything else the target's stays, unless it is empty or to be
/// overwritten.
fn merge(target: &Dict, source: &Value, overwrite: bool) {
    for (key, value) in entries(source) {
        let there = target.borrow().get(&key).cloned();
        if let (Some(Value::Dict(inner)), Value::Dict(other)) = (&there, &value)
            && !inner.borrow().is_empty()
        {
            if !Rc::ptr_eq(inner, other) {
                merge(inner, &value, overwrite);
            }
            continue;
        }
        let is_free = !matches!(value, Value::Nil) && there.is_none_or(|value| value.is_empty());
        if overwrite || is_free {
            target.borrow_mut().insert(key, value);
        }
    }
}

fn dig(args: &[Value]) -> Outcome {
    let [keys @ .., default, dict] = args else {
        return Err("dig needs at least three arguments".to_owned());
    };
    if keys.is_empty() {
        return Err("dig needs at least three arguments".to_owned());
    }
    let mut at = dict.clone();
    for key in keys {
        if !matches!(at, Value::Dict(_)) {
            return Err(conversion(&at, "map[string]interface {}"));
        }
        let Value::Str(key) = key else { return Err(conversion(key, "string")) };
        match entry(&at, key) {
            Some(value) => at = value,
            None => return Ok(default.clone()),
        }
    }
    Ok(at)
}

fn conversion(value: &Value, wanted: &str) -> String {
    let found = match value {
        Value::Nil => "nil".to_owned(),
        value => value.type_name(),
    };
    format!("interface conversion: interface {{}} is {found}, not {wanted}")
}
