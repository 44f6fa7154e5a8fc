//! JSON that users write for `-data` and `-file`, read as Go's encoding/json reads it: names in any case, unknown names
//! passed over, null as if absent.

use serde_json::{Map, Value};

use crate::failure::Failure;

/// An object of the input, with what Go's error texts say of it.
pub(crate) struct Object<'a> {
    members: &'a Map<String, Value>,
    /// The name of its Go type, without the package.
    go_name: String,
    /// The names of the members that lead to it, each with a dot behind.
    path: String,
}

/// Parses the whole input. An empty one has Go's error.
pub(crate) fn parse(bytes: &[u8]) -> Result<Value, Failure> {
    serde_json::from_slice(bytes).map_err(|error| {
        if error.is_eof() {
            Failure::new("unexpected end of JSON input")
        } else {
            Failure::new(format!("invalid JSON: {error}"))
        }
    })
}

impl<'a> Object<'a> {
    /// The root, of this Go type.
    pub(crate) fn root(value: &'a Value, go_type: &str) -> Result<Self, Failure> {
        match value {
            Value::Object(members) => {
                Ok(Self { members, go_name: unqualified(go_type), path: String::new() })
            }
            other => Err(Failure::new(format!(
                "json: cannot unmarshal {} into Go value of type {go_type}",
                kind(other)
            ))),
        }
    }

    /// A member by its name, or one that differs in case only; the last one wins, as with Go.
    fn member(&self, name: &str) -> Option<&'a Value> {
        let exact = self.members.get(name);
        let found = exact
            .or_else(|| self.members.iter().rfind(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v));
        found.filter(|value| !value.is_null())
    }

    fn mismatch(&self, name: &str, value: &Value, go_type: &str) -> Failure {
        let (found, Self { go_name, path, .. }) = (kind(value), self);
        Failure::new(format!(
            "json: cannot unmarshal {found} into Go struct field {go_name}.{path}{name} of type {go_type}"
        ))
    }

    /// A text; empty when absent.
    pub(crate) fn text(&self, name: &str) -> Result<String, Failure> {
        match self.member(name) {
            None => Ok(String::new()),
            Some(Value::String(text)) => Ok(text.clone()),
            Some(other) => Err(self.mismatch(name, other, "string")),
        }
    }

    /// A boolean; false when absent.
    pub(crate) fn flag(&self, name: &str) -> Result<bool, Failure> {
        match self.member(name) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(self.mismatch(name, other, "bool")),
        }
    }

    /// A whole number; zero when absent.
    pub(crate) fn int64(&self, name: &str) -> Result<i64, Failure> {
        match self.member(name) {
            None => Ok(0),
            Some(value) => value.as_i64().ok_or_else(|| self.mismatch(name, value, "int64")),
        }
    }

    /// A whole number of 32 bits; zero when absent.
    pub(crate) fn int32(&self, name: &str) -> Result<i32, Failure> {
        match self.member(name) {
            None => Ok(0),
            Some(value) => {
                let fitting = value.as_i64().and_then(|n| i32::try_from(n).ok());
                fitting.ok_or_else(|| self.mismatch(name, value, "int32"))
            }
        }
    }

    /// A list; empty when absent.
    pub(crate) fn list(&self, name: &str, go_type: &str) -> Result<&'a [Value], Failure> {
        match self.member(name) {
            None => Ok(&[]),
            Some(Value::Array(items)) => Ok(items),
            Some(other) => Err(self.mismatch(name, other, go_type)),
        }
    }

    /// A list of texts.
    pub(crate) fn texts(&self, name: &str) -> Result<Vec<String>, Failure> {
        let text = |item: &Value| match item {
            Value::String(text) => Ok(text.clone()),
            Value::Null => Ok(String::new()),
            other => Err(self.mismatch(name, other, "string")),
        };
        self.list(name, "[]string")?.iter().map(text).collect()
    }

    /// A list of objects; `None` for null.
    pub(crate) fn objects(&self, name: &str, go_type: &str) -> Result<Vec<Option<Object<'a>>>, Failure> {
        let items = self.list(name, &format!("[]*{go_type}"))?;
        items.iter().map(|item| self.below(name, item, go_type)).collect()
    }

    /// An object within this one.
    pub(crate) fn object(&self, name: &str, go_type: &str) -> Result<Option<Object<'a>>, Failure> {
        self.member(name).map_or(Ok(None), |value| self.below(name, value, go_type))
    }

    /// A member as it is.
    pub(crate) fn raw(&self, name: &str) -> Option<&'a Value> {
        self.member(name)
    }

    fn below(&self, name: &str, value: &'a Value, go_type: &str) -> Result<Option<Object<'a>>, Failure> {
        match value {
            Value::Null => Ok(None),
            Value::Object(members) => {
                let path = format!("{}{name}.", self.path);
                Ok(Some(Object { members, go_name: unqualified(go_type), path }))
            }
            other => Err(self.mismatch(name, other, go_type)),
        }
    }
}

fn unqualified(go_type: &str) -> String {
    go_type.rsplit('.').next().unwrap_or(go_type).to_owned()
}

/// Go's word for a kind of JSON value.
fn kind(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(_) => "bool".to_owned(),
        Value::Number(number) if number.is_f64() => format!("number {number}"),
        Value::Number(_) => "number".to_owned(),
        Value::String(_) => "string".to_owned(),
        Value::Array(_) => "array".to_owned(),
        Value::Object(_) => "object".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_read_as_go_does() {
        let value =
            parse(br#"{"Name":"x","n":3,"f":1.5,"on":true,"list":["a",null],"gone":null,"other":{}}"#)
                .unwrap();
        let object = Object::root(&value, "main.T").unwrap();
        assert_eq!(object.text("name").unwrap(), "x");
        assert_eq!((object.int32("n").unwrap(), object.int64("none").unwrap()), (3, 0));
        assert_eq!(object.texts("list").unwrap(), ["a", ""]);
        assert!(object.flag("on").unwrap() && object.object("gone", "main.G").unwrap().is_none());
        let error = |result: Result<i32, Failure>| result.unwrap_err().to_string();
        assert_eq!(
            error(object.int32("f")),
            "json: cannot unmarshal number 1.5 into Go struct field T.f of type int32"
        );
        assert_eq!(
            error(object.int32("on")),
            "json: cannot unmarshal bool into Go struct field T.on of type int32"
        );
        assert_eq!(parse(b"").unwrap_err().to_string(), "unexpected end of JSON input");
    }
}
